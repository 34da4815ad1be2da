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
      finish_reason: "stop", "length" or "context".
      prefilled, cached: prompt tokens computed, and found in the cache.
    """

    text: str
    prompt_ids: tuple[int, ...]
    plain_prompt_ids: tuple[int, ...] | None
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str
    prefilled: int
    cached: int


class Policy(Protocol):
    """Sessions are opaque; lengths are in tokens."""

    def start(self) -> Any: ...

    def length(self, session: Any) -> int: ...

    def fork(self, session: Any, length: int) -> Any: ...

    def rewind(self, session: Any, length: int) -> None: ...

    def append(self, session: Any, ids: Sequence[int]) -> None: ...

    def release(self, session: Any) -> None: ...

    def extend(self, requests: Sequence[Request]) -> list[Completion]: ...


class LMPolicy:
    """A language model behind the policy interface.

    Args:
      engine: the sampler.
      chat: tokenizer and chat template.
    """

    def __init__(self, engine: Engine, chat: ChatFormat):
        self.engine, self.chat = engine, chat
        self.start, self.fork, self.rewind = engine.start, engine.fork, engine.rewind
        self.append, self.release, self.length = engine.append, engine.release, len

    def _turn(self, session: Any, text: str) -> tuple[int, ...]:
        if not session.ids:
            return self.chat.first_turn(text)
        return self.chat.next_turn(text, session.ids[-1])

    def extend(self, requests: Sequence[Request]) -> list[Completion]:
        """Appends each request's user turn to its session and samples the replies."""
        prompts = [self._turn(r.session, r.text) for r in requests]
        # Before generating: the plain rendering depends on the ids that the session has now.
        plain = [
            None if r.plain_text is None else self._turn(r.session, r.plain_text) for r in requests
        ]
        generations = self.engine.generate(
            [
                TokenRequest(r.session, ids, r.max_new_tokens, r.sampling, r.seed)
                for r, ids in zip(requests, prompts, strict=True)
            ]
        )
        return [
            Completion(
                self.chat.decode(g.ids), ids, without, g.ids, g.logprobs, g.finish_reason,
                g.prefilled, g.cached,
            )
            for ids, without, g in zip(prompts, plain, generations, strict=True)
        ]  # fmt: skip
