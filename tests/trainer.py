"""A small model, its data and its settings, for the tests of training; also run as a program:

    python trainer.py DIRECTORY OUT [JSON of settings]

trains and writes the parameters to OUT, and a line a step. Several processes: see `join_processes`.
"""

import json
import os
import sys
import time
from pathlib import Path

import drawn
import jax
import jax.numpy as jnp
import numpy as np

from leafe_jax.methods.examples import action_mass
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.models.sharding import make_mesh
from leafe_jax.runtime.settings import build
from leafe_jax.training.objectives import sft
from leafe_jax.training.optimizer import make_optimizer
from leafe_jax.training.packing import Batches, make_plan
from leafe_jax.training.settings import TrainConfig
from leafe_jax.training.start import Data, Start, place
from leafe_jax.training.step import init_state, make_train_step, step_options
from leafe_jax.training.trainer import fit
from leafe_jax.types import Example

CONFIG = ModelConfig(
    model_type="llama", vocab_size=40, hidden_size=32, intermediate_size=64, num_layers=2,
    num_heads=4, num_kv_heads=2, head_dim=8, rope_theta=1e4, rms_norm_eps=1e-6,
    tie_word_embeddings=True, max_position_embeddings=64,
)  # fmt: skip
SOURCES = ("counterfactual", "rehearsal")


def train_config(lora=None, mesh=None, **changes) -> TrainConfig:
    fields = dict(
        seq_len=24, batch_size=4, num_epochs=2, learning_rate=1e-2, schedule="constant",
        warmup_steps=2, loss_chunk=4096, checkpoint_every=2, log_every=1, max_nonfinite=3,
    )  # fmt: skip
    adapters = dict(rank=0, alpha=16.0, targets=("q_proj", "down_proj")) | (lora or {})
    mesh = mesh or dict(data=1, fsdp=1, tensor=1)
    return build(TrainConfig, {**fields, **changes, "lora": adapters, "mesh": mesh}, "train")


def examples(count: int = 30, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        length = int(rng.integers(4, 20))
        ids = rng.integers(1, 40, length).astype(np.int32)
        made.append(Example(ids, action_mass(length, [(length - 3, length)], "example"), index % 2))
    return made


def uneven(count: int = 23, seed: int = 0) -> list[Example]:
    """Pairs of one action, and sequences of two to five: a fifth of them."""
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        actions = 1 if index % 5 else 2 + index % 4
        ids = rng.integers(1, 40, 3 * actions + int(rng.integers(1, 6))).astype(np.int32)
        spans = [(len(ids) - 3 * n - 2, len(ids) - 3 * n) for n in range(actions)]
        made.append(Example(ids, action_mass(len(ids), spans, "example"), int(actions > 1)))
    return made


def batches(made, seed=0, own=None, multiple=1, columns=(), **changes) -> Batches:
    settings = train_config(**{"num_epochs": 1, **changes})
    plan = make_plan([len(e.ids) - 1 for e in made], settings, seed, multiple)
    return Batches(made, plan, settings.seq_len, own, columns)


def params(config=CONFIG, seed=0):
    return drawn.params(config, seed)


def one_device():
    return make_mesh(dict(data=1, fsdp=1, tensor=1), jax.devices()[:1])


def options(config=CONFIG, **changes):
    return step_options(train_config(**changes), config, one_device())


def sources(coefficients=(1.0, 1.0)) -> dict[str, float]:
    return dict(zip(SOURCES, map(float, coefficients), strict=True))


def make_step(start=None, config=CONFIG, coefficients=(1.0, 1.0), objective=None, **changes):
    """(step(state, batch), state) on one device."""
    settings = train_config(**changes)
    mesh = one_device()
    tx = make_optimizer(settings, 20)
    state = init_state(jax.tree.map(jnp.array, start or params(config)), tx, mesh)
    step = make_train_step(
        config, tx, objective=objective or sft(), sources=sources(coefficients),
        options=step_options(settings, config, mesh), state=state, frozen={},
    )  # fmt: skip
    return lambda state, batch: step(state, {}, batch), state


def run_fit(
    directory, made=None, config=CONFIG, log=lambda *_: None, progress=lambda *_: None, **changes
):
    return fit(
        Start(config, place(params(config))),
        Data(made or examples(), sources((1.0, 0.5))),
        train_config(**changes),
        sft(),
        directory=Path(directory),
        seed=3,
        log=log,
        progress=progress,
    )


def equal(a, b) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def join_processes() -> None:
    """Joins the other processes when LEAFE_TEST_RANK, _PROCESSES and _PORT are set."""
    if "LEAFE_TEST_RANK" in os.environ:
        # Gloo writes its lines to C's stdout, in pieces and from several threads.
        sys.stdout = open(os.dup(1), "w")
        os.dup2(2, 1)
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(
            f"127.0.0.1:{os.environ['LEAFE_TEST_PORT']}",
            int(os.environ["LEAFE_TEST_PROCESSES"]),
            int(os.environ["LEAFE_TEST_RANK"]),
            heartbeat_timeout_seconds=30,
        )


def main(directory: str, out: str, settings: str = "{}") -> None:
    from leafe_jax.errors import UserError

    settings = json.loads(settings)
    join_processes()
    slow, made = settings.pop("slow", 0.0), examples(settings.pop("count", 30))
    fields = settings.pop("model", {})
    config = ModelConfig(
        **{**{k: getattr(CONFIG, k) for k in CONFIG.__dataclass_fields__}, **fields}
    )

    def log(step, measured):
        print(step, repr(measured["loss"]), flush=True)

    def progress(step, total):
        time.sleep(slow)

    try:
        trained = run_fit(directory, made, config, log=log, progress=progress, **settings)
    except UserError as error:
        print("error:", error, flush=True)
        os._exit(2)
    flat, _ = jax.tree_util.tree_flatten_with_path(trained)
    whole = jax.jit(lambda x: x, out_shardings=jax.sharding.NamedSharding(
        next(iter(flat))[1].sharding.mesh, jax.sharding.PartitionSpec()))  # fmt: skip
    arrays = {jax.tree_util.keystr(k): np.asarray(whole(x).addressable_data(0)) for k, x in flat}
    if jax.process_index() == 0:
        np.savez(out, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
