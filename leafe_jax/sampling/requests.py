"""What the sampler is asked for and what comes back, and which requests it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

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


def strange_token(ids: Sequence[Any], vocab_size: int) -> str:
    """What is wrong with the first of `ids` that is no token of a model, or ""."""
    for i in ids:
        # True is an int in Python, and would be token 1.
        if isinstance(i, bool) or not isinstance(i, (int, np.integer)) or not 0 <= i < vocab_size:
            return f"token id {i!r}: the model has {vocab_size}, from 0 to {vocab_size - 1}"
    return ""


def refusal(
    request: Request, ids: Sequence[int], max_new_tokens: int, vocab_size: int, options: bool
) -> str:
    """What is wrong with a request, or "".

    Args:
      request: the request.
      ids: of its session and its prompt.
      max_new_tokens: most tokens that a request may ask for.
      vocab_size: of the model.
      options: the engine offers truncation, penalty and bias.
    """
    sampling = request.sampling
    if not 1 <= request.max_new_tokens <= max_new_tokens:
        return f"max_new_tokens = {request.max_new_tokens}: must be 1..{max_new_tokens}"
    if not ids:
        return "an empty prompt: at least one token is needed to sample from"
    if error := strange_token(ids, vocab_size):
        return error
    if not options and not sampling.plain:
        return f"{sampling}: this engine was made with options=False"
    biased = [token for token, _ in sampling.logit_bias]
    for name, tokens in (("logit_bias", biased), ("stop_ids", sampling.stop_ids)):
        if error := strange_token(tokens, vocab_size):
            return f"sampler.{name}: {error}"
    if len(biased) > MAX_BIAS:
        return f"sampler.logit_bias: {len(biased)} ids: at most {MAX_BIAS}"
    return ""
