"""What a completion keeps of a generation."""

import pytest

from leafe_jax.agent.policy import Request
from leafe_jax.sampling.lm_policy import LMPolicy
from leafe_jax.sampling.requests import Generation, Session
from leafe_jax.types import Sampling


class Chat:
    stop_ids = (0,)

    def turn(self, before, text):
        return tuple(map(ord, text))

    def decode(self, ids):
        return "".join(map(chr, ids))


class Engine:
    """Answers every request with "ok"."""

    num_slots = 1
    fork = rewind = append = release = launch = None

    def __init__(self):
        self.asked = []

    def start(self):
        return Session()

    def submit(self, request):
        self.asked.append(request)
        return len(self.asked) - 1

    def collect(self):
        result = Generation((111, 107), (-0.5, -1.0), (-0.25, -2.0), "length", 2, 0)
        return [(ticket, result) for ticket in range(len(self.asked))]


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(), None),
        (Sampling(stop_ids=(5,), stop_strings=("x",)), None),
        (Sampling(0.7), (-0.25, -2.0)),
        (Sampling(0.0), (-0.25, -2.0)),
        (Sampling(top_p=0.9), (-0.25, -2.0)),
        (Sampling(logit_bias=((1, 2.0),)), (-0.25, -2.0)),
    ],
)
def test_log_probabilities_of_the_distribution_sampled_from(sampling, kept):
    chat = Chat()
    chat.holds = lambda string: lambda ids: False
    policy = LMPolicy(Engine(), chat)
    policy.submit(Request(policy.start(), "hi", None, 2, sampling, 0))
    ((_, completion),) = policy.collect()
    assert completion.text == "ok" and completion.logprobs == (-0.5, -1.0)
    assert completion.sampled_logprobs == kept
