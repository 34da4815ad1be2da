"""The language model as a policy (agent/policy.py): text in, text and token ids out, behind sessions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from leafe_jax.agent.chat import ChatFormat
from leafe_jax.agent.policy import Completion, Request
from leafe_jax.sampling.engine import Engine
from leafe_jax.sampling.engine import Request as TokenRequest
from leafe_jax.sampling.replicas import Replicas
from leafe_jax.types import Sampling


class LMPolicy:
    """A language model behind the policy interface.

    Args:
      engine: the sampler, one copy of the model or several.
      chat: tokenizer and chat template.
    """

    def __init__(self, engine: Engine | Replicas, chat: ChatFormat):
        self.engine, self.chat, self.encoder = engine, chat, chat
        self.num_slots = engine.num_slots  # of all copies: that many episodes keep it busy
        self.start, self.fork, self.rewind = engine.start, engine.fork, engine.rewind
        self.append, self.release, self.length = engine.append, engine.release, len
        self.launch = engine.launch
        # ticket -> ids of the user turn, with the experience and without, and how the reply is sampled.
        self._asked: dict[int, tuple[tuple[int, ...], tuple[int, ...] | None, Sampling]] = {}

    def ids(self, session: Any) -> Sequence[int]:
        """The tokens of a session so far."""
        return session.ids

    def submit(self, request: Request) -> int:
        """Queues a user turn; the reply is sampled behind it."""
        session = request.session
        ids = self.chat.turn(session.ids, request.text)
        # Before generating: the plain rendering depends on the ids that the session has now.
        text = request.plain_text
        plain = None if text is None else self.chat.turn(session.ids, text)
        sampling = request.sampling
        stop = self._stop_after(sampling.stop_strings) if sampling.stop_strings else None
        ticket = self.engine.submit(
            TokenRequest(session, ids, request.max_new_tokens, sampling, request.seed, stop)
        )
        self._asked[ticket] = (ids, plain, sampling)
        return ticket

    def _stop_after(self, strings: Sequence[str]) -> Callable[[Sequence[int]], int | None]:
        tests = [self.chat.holds(string) for string in strings]

        def stop(ids: Sequence[int]) -> int | None:
            def has(count: int) -> bool:
                return any(found(ids[:count]) for found in tests)

            if not has(len(ids)):
                return None
            return next(count for count in range(1, len(ids) + 1) if has(count))

        return stop

    def collect(self) -> list[tuple[int, Completion]]:
        """Replies that have ended since."""
        completions = []
        for ticket, g in self.engine.collect():
            ids, plain, sampling = self._asked.pop(ticket)
            sampled = None if sampling.unchanged else g.sampled_logprobs
            completion = Completion(
                self.chat.decode(g.ids), ids, plain, g.ids, g.logprobs, g.finish_reason,
                g.prefilled, g.cached, g.error, sampled,
            )  # fmt: skip
            completions.append((ticket, completion))
        return completions
