"""What the sampler is asked for and what comes back, and which requests it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from leafe_jax.errors import UserError
from leafe_jax.sampling.draw import MAX_BIAS
from leafe_jax.types import Sampling


@dataclasses.dataclass(eq=False)
class Session:
    """One token sequence.

    Attributes:
      ids: all tokens so far, sampled ones included.
    """

    ids: list[int] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """Append `new_ids` to `session`, then sample.

    Attributes:
      session: the session to extend; it must not have a request in flight.
      new_ids: prompt tokens to append.
      max_new_tokens: most tokens to sample, at least 1.
      sampling: how tokens are drawn; its stop_strings are `stop`'s business.
      seed: 32-bit seed; the key of the token at absolute position p is fold_in(seed, p), so a
        request's tokens depend neither on its slot nor on its neighbours.
      stop: called with the sampled ids after each burst: how many of them to keep, the last being a
        stop, or None to go on.
    """

    session: Session
    new_ids: Sequence[int]
    max_new_tokens: int
    sampling: Sampling
    seed: int
    stop: Callable[[Sequence[int]], int | None] | None = None


@dataclasses.dataclass(frozen=True)
class Generation:
    """What was sampled for one request.

    Attributes:
      ids: sampled tokens, the stop token included.
      logprobs: log-probability of each under the model (temperature 1, all tokens).
      sampled_logprobs: the same under the distribution it was drawn from (0 where greedy).
      finish_reason: "stop", "length" (max_new_tokens), "context" (no room left; ids may be empty) or
        "error" (the request cannot be served; its session is as it was).
      prefilled: prompt tokens computed for this request, again after a preemption included.
      cached: prompt tokens whose keys and values were already there.
      error: what is wrong with the request, and what is allowed.
    """

    ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    sampled_logprobs: tuple[float, ...] = ()
    finish_reason: str = "error"
    prefilled: int = 0
    cached: int = 0
    error: str = ""


@dataclasses.dataclass(frozen=True)
class EngineConfig:
    """Sizes of a sampler, and what its requests may ask for.

    Attributes:
      num_slots: sequences computed together; 0 lets replicas.make_engines choose.
      max_len: most tokens a session can have.
      turn_chunk: prompt tokens handled in the same program as decoding.
      prefill_chunk: prompt tokens a prefill call handles.
      max_new_tokens: most tokens a request may ask for.
      stop_ids: token ids that end a reply, all of the model.
      page_size: positions of a page.
      num_pages: of the pool; 0 lets replicas.make_engines choose on an accelerator, and makes room for
        num_slots sessions of max_len tokens elsewhere.
      memory_share: share of a device's memory, free beside the weights, that pages and programs fill
        where a size is chosen.
      attention: "gather" or "paged" (see leafe_jax.sampling.gathered); "auto" is "paged" on TPU.
      options: requests may use top-k, top-p, min-p, repetition penalty and logit bias.

    Raises:
      UserError: a size is out of range.
    """

    num_slots: int
    max_len: int
    turn_chunk: int
    prefill_chunk: int
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    page_size: int = 16
    num_pages: int = 0
    attention: str = "auto"
    options: bool = False
    memory_share: float = 0.85

    def __post_init__(self) -> None:
        sizes = ("turn_chunk", "prefill_chunk", "max_new_tokens", "page_size")
        for name in sizes:
            if getattr(self, name) < 1:
                raise UserError(f"sampler.{name} = {getattr(self, name)}: must be at least 1")
        if self.num_slots < 0:
            raise UserError(f"sampler.num_slots = {self.num_slots}: must be at least 1, or 0")
        if self.num_pages and self.num_pages < 2:
            raise UserError(f"sampler.num_pages = {self.num_pages}: must be at least 2, or 0")
        if not 0 < self.memory_share <= 1:
            raise UserError(
                f"sampler.memory_share = {self.memory_share}: must be above 0 and at most 1"
            )

    @property
    def pool_pages(self) -> int:
        """Pages of the pool."""
        # One more than the tokens need: a page that is read in part is written anew.
        return self.num_pages or self.num_slots * (-(-self.max_len // self.page_size) + 1)


def strange_token(ids: Sequence[Any], vocab_size: int) -> str:
    """What is wrong with the first of `ids` that is no token of a model, or ""."""
    for i in ids:
        # True is an int in Python, and would be token 1.
        if isinstance(i, bool) or not isinstance(i, (int, np.integer)) or not 0 <= i < vocab_size:
            return f"token id {i!r}: the model has {vocab_size}, from 0 to {vocab_size - 1}"
    return ""


def refusal(request: Request, ids: Sequence[int], settings: EngineConfig, vocab_size: int) -> str:
    """What is wrong with a request, or "".

    Args:
      request: the request.
      ids: of its session and its prompt.
      settings: of the engine.
      vocab_size: of the model.
    """
    sampling = request.sampling
    if not 1 <= request.max_new_tokens <= settings.max_new_tokens:
        return f"max_new_tokens = {request.max_new_tokens}: must be 1..{settings.max_new_tokens}"
    if not ids:
        return "an empty prompt: at least one token is needed to sample from"
    if error := strange_token(ids, vocab_size):
        return error
    if not settings.options and not sampling.plain:
        return f"{sampling}: this engine was made with options=False"
    biased = [token for token, _ in sampling.logit_bias]
    for name, tokens in (("logit_bias", biased), ("stop_ids", sampling.stop_ids)):
        if error := strange_token(tokens, vocab_size):
            return f"sampler.{name}: {error}"
    if len(biased) > MAX_BIAS:
        return f"sampler.logit_bias: {len(biased)} ids: at most {MAX_BIAS}"
    return ""
