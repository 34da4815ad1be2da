"""A game of a few tokens, a tokenizer of a few words, and what the on-policy loop needs to play it; also run
as a program, which is killed:

    python bandit.py DIRECTORY OUT METHOD [JSON of settings]
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

import jax
import numpy as np

from envs.base import Environment, State, StepResult, Task
from envs.prompts import Prompts, PromptsConfig
from envs.reflections import Reflection
from leafe_jax.agent.rollout import RolloutConfig
from leafe_jax.methods import base
from leafe_jax.methods.loop import Loop, Stage
from leafe_jax.models.settings import MeshConfig
from leafe_jax.runtime import processes
from leafe_jax.sampling.engine import Engine
from leafe_jax.sampling.lm_policy import LMPolicy
from leafe_jax.sampling.requests import EngineConfig
from leafe_jax.training.settings import TrainConfig
from leafe_jax.training.start import Start, place
from leafe_jax.types import Sampling

sys.path.append(str(Path(__file__).resolve().parents[1]))
import drawn  # noqa: E402
from trainer import CONFIG  # noqa: E402

SIZES = EngineConfig(
    num_slots=8, max_len=32, turn_chunk=4, prefill_chunk=8, max_new_tokens=2, stop_ids=()
)
DOORS = 4


@dataclasses.dataclass(frozen=True)
class BanditState(State):
    """`tries` are the wrong doors so far."""

    tries: tuple[str, ...] = ()


class Bandit(Environment):
    """Two tries to say a word of the first third of the vocabulary; which task it is makes no difference."""

    name = "bandit"
    description = "Say the right word."
    horizon = 2

    def _list_tasks(self, split):
        return [Task(f"{split}/door/{i:04d}", "door", split) for i in range(DOORS)]

    def _reset(self, task_id):
        return BanditState(task_id), f"door {task_id[-1]}"

    def _step(self, state, action):
        word = int(action.split()[0][1:]) if action.startswith("w") else 39
        right = word < 12
        new = dataclasses.replace(
            state, num_steps=state.num_steps + 1, tries=(*state.tries, str(word)),
            done=right, success=right,
        )  # fmt: skip
        info = {"valid": word < 36}
        return new, StepResult("no", float(right), right, right, info)

    def actions(self, state):
        return ("w1",)

    def solve(self, state):
        return ["w1"]


class BanditPrompts(Prompts):
    """A reflection is one or two words; most of them are advice."""

    def parse_reflection(self, reply, cut=False):
        if reply.startswith(("w1", "w2")):
            return Reflection("unparsable")
        return Reflection("ok", 1, reply)


class Words:
    """Token 7 is spelled w7. A prompt is one token for the task, and one for what follows a wrong word."""

    stop_ids = ()

    def first_turn(self, text):
        return (36, 36 + int(text.split("door ")[-1][0]) % 4, 1 + len(text) % 7)

    def turn(self, before, text):
        return (38, 39, 1 + len(text) % 7) if before else self.first_turn(text)

    def decode(self, ids):
        return " ".join(f"w{i}" for i in ids)


def method(name="grpo", **changes) -> base.Method:
    kind = base.find(name)
    train = dict(
        seq_len=16, batch_size=4, num_epochs=2, learning_rate=1e-2, schedule="constant", warmup_steps=0,
        checkpoint_every=1, mesh=MeshConfig(1, 1, 1),
    )  # fmt: skip
    train |= changes.pop("train", {})
    if isinstance(train["mesh"], dict):
        train["mesh"] = MeshConfig(**train["mesh"])
    settings = dict(
        iterations=4, episodes=16, group_size=4, probe_every=2, probe_tasks=2, probe_samples=2,
    )  # fmt: skip
    return kind(kind.Config(**{**settings, **changes}, train=TrainConfig(**train)))


def engine() -> Engine:
    return Engine(CONFIG, drawn.params(CONFIG, 0), SIZES)


def stage(directory, sampler, logged=None, mode="dialogue", exported=None) -> Stage:
    env = Bandit()
    logged = {} if logged is None else logged
    exported = {} if exported is None else exported
    sampling = Sampling()

    def rollout(purpose):
        return RolloutConfig(mode, 1, "branch", sampling, 1, 0, purpose)

    def log(number, values):
        for name, value in values.items():
            if not name.startswith("speed/"):
                logged[number, name] = value

    def pass_at_k(found):
        return {"pass_at_1": float(np.mean([r["successes"] for r in found.tasks]))}

    return Stage(
        seed=0, directory=Path(directory), start=Start(CONFIG, place(drawn.params(CONFIG, 0))),
        policy=LMPolicy(sampler, Words()), env=env, prompts=BanditPrompts(env, PromptsConfig(answer_tokens=2)),
        tasks=env.list_tasks("train"), probe=env.list_tasks("valid")[:2], rollout=rollout,
        probing=rollout("probe"), log=log, interval=lambda values: (min(values), max(values)),
        pass_at_k=pass_at_k,
        export=lambda params, name: exported.__setitem__(name, jax.tree.map(np.array, params)),
        progress=lambda *_: None,
    )  # fmt: skip


def run(directory, sampler, logged=None, mode="dialogue", exported=None, **changes):
    """(parameters, loop) after all iterations that are left."""
    loop = Loop(method(**changes), stage(directory, sampler, logged, mode, exported))
    params = loop.run()
    return jax.tree.map(np.array, params), loop


def main(directory, out, name, settings="{}"):
    if "BANDIT_RANK" in os.environ:
        processes.join(f"127.0.0.1:{os.environ['BANDIT_PORT']}", 2, int(os.environ["BANDIT_RANK"]))
    logged = {}
    params, _ = run(directory, engine(), logged, name=name, **json.loads(settings))
    lines = [f"{number} {key} {value!r}\n" for (number, key), value in sorted(logged.items())]
    Path(out).with_suffix(".txt").write_text("".join(lines))
    np.savez(out, *jax.tree.leaves(params))
    processes.together("end")
    processes.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
