"""The loop asks for reflections as the config of the prompts says."""

import pytest
from scripted import ScriptedPolicy

from envs.household.environment import Household
from envs.prompts import Prompts, PromptsConfig
from leafe_jax.agent.rollout import Episode, Hooks, Rollout, RolloutConfig
from leafe_jax.types import Node, Sampling

ENV = Household()
SAID = "In step 1 I looked around.\n[2] Nothing happens.\n**Answer:** [2] go to drawer 1."


class Reflects(Hooks):
    """Reflects once, after three steps, and ends the episode."""

    def __init__(self, prompts: Prompts):
        self.prompts, self.found = prompts, []

    def reflect_now(self, episode):
        return len(episode.turns) == 3

    def reflected(self, episode, completion):
        self.found.append(self.prompts.parse_reflection(completion.text))
        return False


@pytest.mark.parametrize("mode", ["dialogue", "window"])
def test_a_reflection_that_reasons_has_its_own_limit_and_template(mode, tmp_path):
    own = tmp_path / "own.jinja"
    own.write_text("{{ episode }}\nWHAT WENT WRONG before step {{ step }}?\n")
    fields = PromptsConfig(
        style="react", reasoning_tokens=200, answer_tokens=30, reflection=str(own)
    )
    prompts = Prompts(ENV, fields)
    policy = ScriptedPolicy(lambda turns, text, seed: SAID if "WRONG" in text else "inventory")
    rollout = Rollout(
        policy, ENV, prompts, RolloutConfig(mode, 1, "branch", Sampling(), 8, 0, "explore")
    )
    state, observation = ENV.reset("test/look/0000")
    rollout.queue.append(Episode(Node(0, None, None, 0, "root", None), "r", state, observation))
    hooks = Reflects(prompts)
    rollout.run(hooks)
    requests = [request for call in policy.calls for request in call]
    assert [request.max_new_tokens for request in requests] == [8, 8, 8, 230]
    asked = requests[-1].text
    assert asked.endswith("\nWHAT WENT WRONG before step 4?")
    # A window shows one step. The history before a reflection is all of them, and asks for no action.
    assert ("[Observation 1: " in asked and "[Observation 3: " in asked) == (mode == "window")
    assert "<action>" not in asked and "<action>" in requests[0].text
    (parsed,) = hooks.found
    assert (parsed.status, parsed.tau, parsed.experience) == ("ok", 2, "go to drawer 1.")
    assert not policy.live
