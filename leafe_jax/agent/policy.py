"""The policy that rollouts talk to: text in, text and token ids out.

This is the wall between method and device: sessions are opaque, everything else is a plain Python
value. `sampling.lm_policy.LMPolicy` is the language model; tests use a scripted policy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from leafe_jax.types import Sampling


@dataclasses.dataclass(frozen=True)
class Request:
    """A request for the reply to one user turn.

    Attributes:
      session: the conversation.
      text: the user turn.
      plain_text: the same turn without experience, to be tokenised too; None if it is the same.
      max_new_tokens: limit on the sampled tokens.
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
      ids, logprobs: sampled ids (stop token included) and their log-probabilities under the model.
      finish_reason: "stop", "length", "context" or "error".
      prefilled, cached: prompt tokens computed, and found in the cache.
      error: what is wrong with the request, if finish_reason is "error".
      sampled_logprobs: log-probabilities under the distribution sampled from; None if that is the
        model's own, so that they equal `logprobs`.
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
    sampled_logprobs: tuple[float, ...] | None = None


class Encoder(Protocol):
    """Token ids of text that no model has sampled: a user turn, and a reply that somebody else gave."""

    def turn(self, before: Sequence[int], text: str) -> tuple[int, ...]:
        """Ids of a user turn behind the ids of a conversation; of its first turn if `before` is empty."""

    def reply(self, text: str) -> tuple[int, ...]:
        """Ids of a reply, with the token that ends it."""


class Policy(Protocol):
    """Sessions are opaque; lengths are in tokens. `ids` are the tokens of a session so far.

    `submit` queues a request and returns its ticket; `collect` waits until requests have ended and returns
    (ticket, completion) pairs, [] when none is queued; `launch` lets the device go on meanwhile.

    Attributes:
      num_slots: requests that are served together; as many episodes keep the policy busy.
      encoder: text as token ids, for what is not sampled.
    """

    num_slots: int

    @property
    def encoder(self) -> Encoder: ...

    def start(self) -> Any: ...

    def length(self, session: Any) -> int: ...

    def ids(self, session: Any) -> Sequence[int]: ...

    def fork(self, session: Any, length: int) -> Any: ...

    def rewind(self, session: Any, length: int) -> None: ...

    def append(self, session: Any, ids: Sequence[int]) -> None: ...

    def release(self, session: Any) -> None: ...

    def submit(self, request: Request) -> int: ...

    def launch(self) -> None: ...

    def collect(self) -> list[tuple[int, Completion]]: ...
