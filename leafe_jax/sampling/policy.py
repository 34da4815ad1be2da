"""The policy that rollouts talk to: text in, text and token ids out, behind sessions.

`Policy` is the wall between the method and the device: exploration and evaluation see sessions that
start, extend, fork, rewind and release, and plain Python values. `LMPolicy` is the language model;
tests put a scripted policy in its place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from leafe_jax.chat import ChatFormat
from leafe_jax.sampling.engine import Engine
from leafe_jax.sampling.engine import Request as TokenRequest
from leafe_jax.types import Sampling


@dataclasses.dataclass(frozen=True)
class Request:
    """Ask for a reply to one user turn.

    Attributes:
      session: the conversation.
      text: the user turn.
      plain_text: the same turn without experience, to be tokenised beside it; None if the same.
      max_new_tokens: most tokens to sample.
      sampling: how tokens are drawn.
      seed: 32-bit seed of this reply.
    """

    session: Any
    text: str
    plain_text: str | None
    max_new_tokens: int
    sampling: Sampling
    seed: int


@dataclasses.dataclass(frozen=True)
class Completion:
    """The reply.

    Attributes:
      text: decoded reply.
      prompt_ids: ids that were appended for the user turn.
      plain_prompt_ids: the ids of `plain_text`, or None.
      ids, logprobs: sampled ids (stop token included) and their log-probabilities.
      finish_reason: "stop", "length", "context" or "error".
      prefilled, cached: prompt tokens computed, and found in the cache.
      error: what is wrong with the request, where finish_reason is "error".
    """

    text: str
    prompt_ids: tuple[int, ...]
    plain_prompt_ids: tuple[int, ...] | None
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    prefilled: int
    cached: int
    error: str = ""


class Policy(Protocol):
    """Sessions are opaque; lengths are in tokens.

    `submit` queues a request and returns its ticket; `collect` waits until requests have ended and returns
    (ticket, completion) pairs, [] when none is queued; `launch` lets the device go on meanwhile.
    """

    def start(self) -> Any: ...

    def length(self, session: Any) -> int: ...

    def fork(self, session: Any, length: int) -> Any: ...

    def rewind(self, session: Any, length: int) -> None: ...

    def append(self, session: Any, ids: Sequence[int]) -> None: ...

    def release(self, session: Any) -> None: ...

    def submit(self, request: Request) -> int: ...

    def launch(self) -> None: ...

    def collect(self) -> list[tuple[int, Completion]]: ...


class LMPolicy:
    """A language model behind the policy interface.

    Args:
      engine: the sampler.
      chat: tokenizer and chat template.
    """

    def __init__(self, engine: Engine, chat: ChatFormat):
        self.engine, self.chat = engine, chat
        self.num_slots = engine.num_slots  # of all copies: that many episodes keep it busy
        self.start, self.fork, self.rewind = engine.start, engine.fork, engine.rewind
        self.append, self.release, self.length = engine.append, engine.release, len
        self.launch = engine.launch
        # ticket -> ids of the user turn, with the experience and without.
        self._prompts: dict[int, tuple[tuple[int, ...], tuple[int, ...] | None]] = {}

    def _turn(self, session: Any, text: str) -> tuple[int, ...]:
        if not session.ids:
            return self.chat.first_turn(text)
        return self.chat.next_turn(text, session.ids[-1])

    def submit(self, request: Request) -> int:
        """Queues a user turn; the reply is sampled behind it."""
        session = request.session
        ids = self._turn(session, request.text)
        # Before generating: the plain rendering depends on the ids that the session has now.
        plain = request.plain_text
        plain = None if plain is None else self._turn(session, plain)
        sampling = request.sampling
        stop = self._stop_after(sampling.stop_strings) if sampling.stop_strings else None
        ticket = self.engine.submit(
            TokenRequest(session, ids, request.max_new_tokens, sampling, request.seed, stop)
        )
        self._prompts[ticket] = (ids, plain)
        return ticket

    def _stop_after(self, strings: Sequence[str]):
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
            ids, plain = self._prompts.pop(ticket)
            completion = Completion(
                self.chat.decode(g.ids), ids, plain, g.ids, g.logprobs, g.finish_reason,
                g.prefilled, g.cached, g.error,
            )  # fmt: skip
            completions.append((ticket, completion))
        return completions
