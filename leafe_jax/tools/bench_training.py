"""Benchmarks the train step, alone or against other engines on the same work.

    python -m leafe_jax.tools.bench_training --model=DIR --engine=leafe_jax,transformers,tunix

prints one JSON line per engine for a whole step: forward, backward and AdamW on the same random tokens,
without padding. All weights are trained, or with --rank adapters (ours only). Engines run interleaved,
and times are medians. If the models do not fit into memory together, run one engine per command. Other
harnesses can use `BenchTrain`: construct it with (model, batch, seq); `step` returns the loss.

    step_s, steps_s         seconds per step: the median, and each
    ratio                   step_s of the first engine, divided by step_s of this one
    tokens_per_s            tokens of the batch per second
    model_flops_per_s       hardware.train_flops per step (causal attention; nothing twice), per second
    share_of_peak           model_flops_per_s divided by the device's bfloat16 peak, if that is known and
                            --dtype=bfloat16
    peak_bytes              peak memory of the first device, by torch's count for transformers and by jax's
                            for the others together; without an accelerator, of the process
    compile_s               how much longer the first step took than the others
    loss                    of the first step, on which the engines must agree
"""

from __future__ import annotations

import abc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leafe_jax.errors import UserError
from leafe_jax.models.settings import LoraConfig, MeshConfig
from leafe_jax.tools.bench_sampling import (
    bench_parser,
    chosen_engines,
    load_tunix,
    log,
    peak_bytes,
    rounded,
    start_benchmark,
)
from leafe_jax.tools.hardware import chip_at_hand, train_flops
from leafe_jax.training.settings import REMAT, TrainConfig

LEARNING_RATE, B1, B2, EPS, WEIGHT_DECAY = 1e-4, 0.9, 0.999, 1e-8, 0.01
NEVER_CLIPPED = (
    1e9  # the norm is measured and applied as in a run, but never reached: rivals do not clip
)


class Engine(abc.ABC):
    """An engine to benchmark.

    Args:
      model: checkpoint directory, or the name of one under ./ckpt (`NAME-DTYPE`); ours also takes
        random:SHAPE (leafe_jax/tools/bench_models.py).
      batch: rows per batch.
      seq: tokens per row.
      dtype: to compute in, "float32" or "bfloat16"; weights are float32.
      remat: train.remat. transformers uses gradient checkpointing unless it is "none"; Tunix ignores it.
      scan_layers: train.scan_layers; only ours uses it.
      rank: train.lora.rank; only ours trains adapters.

    Attributes:
      num_devices: number of devices that it computes on.
      adapters: number of parameters of the adapters; None if all weights are trained.

    Raises:
      UserError: there is no such model, or this engine trains no adapters.
    """

    name = ""
    num_devices = 1
    adapters: int | None = None

    def __init__(
        self, model: str, batch: int, seq: int, dtype: str = "float32", remat: str = "none",
        scan_layers: bool = False, rank: int = 0,
    ):  # fmt: skip
        from leafe_jax.tools.bench_models import open_model

        if rank and not isinstance(self, BenchTrain):
            raise UserError(f"--rank={rank}: only --engine=leafe_jax trains adapters here")
        self.remat, self.scan_layers, self.rank = remat, scan_layers, rank
        self.checkpoint, self.dtype = model, dtype
        self.config, self.load_params = open_model(model, "float32")
        rng = np.random.default_rng(0)
        self.ids = rng.integers(10, self.config.vocab_size, (batch, seq), dtype=np.int32)
        self.load()

    @property
    def path(self) -> Path:
        """Directory of the checkpoint.

        Raises:
          UserError: the model has random weights.
        """
        from leafe_jax.tools.bench_models import find_checkpoint

        return find_checkpoint(self.checkpoint, "float32")

    @abc.abstractmethod
    def load(self) -> None:
        """Makes the model and the optimizer."""

    @abc.abstractmethod
    def step(self) -> float:
        """Takes one step and returns the mean next-token loss before it."""

    def peak_bytes(self) -> int:
        """See the module's `peak_bytes`."""
        return peak_bytes()


def step_settings(
    batch: int, seq: int, dtype: str, remat: str, scan_layers: bool, rank: int
) -> TrainConfig:
    """The settings of the benchmark's train step, over all devices; see Engine for the arguments."""
    return TrainConfig(
        batch_size=batch, seq_len=seq, compute_dtype=dtype, remat=remat, scan_layers=scan_layers,
        mesh=MeshConfig(data=1, fsdp=-1, tensor=1), lora=LoraConfig(rank=rank),
        learning_rate=LEARNING_RATE, schedule="constant", warmup_steps=0, b1=B1, b2=B2, eps=EPS,
        weight_decay=WEIGHT_DECAY, clip_norm=NEVER_CLIPPED,
    )  # fmt: skip


def step_objective(rows: int, seq: int) -> dict[str, Any]:
    """What make_train_step optimizes in the benchmark: the mean over the targets of a batch."""
    from leafe_jax.training.objectives import sft

    return {"objective": sft(rows * (seq - 1.0)), "sources": {"sft": 1.0}}


class BenchTrain(Engine):
    """This package's train step, over all devices."""

    name = "leafe_jax"

    def load(self) -> None:
        import jax
        from jax.sharding import NamedSharding

        from leafe_jax.models import lora
        from leafe_jax.models.decoder import abstract_params
        from leafe_jax.models.sharding import BATCH, shardings_for, train_mesh
        from leafe_jax.training.optimizer import make_optimizer
        from leafe_jax.training.step import init_state, make_train_step, step_options

        self.num_devices = jax.device_count()
        rows, seq = self.ids.shape
        settings = step_settings(rows, seq, self.dtype, self.remat, self.scan_layers, self.rank)
        mesh = train_mesh(settings.mesh)
        adapted = lora.with_adapters(self.config, settings.lora)
        options = step_options(settings, adapted, mesh)
        places = shardings_for(abstract_params(self.config), mesh)
        if self.rank:
            self.frozen = self.load_params(self.dtype, places)
            trained = lora.init_adapters(adapted, jax.random.key(0))
            self.adapters = sum(x.size for x in jax.tree.leaves(trained))
        else:
            self.frozen, trained = {}, self.load_params("float32", places)
        tx = make_optimizer(settings, 10**9)
        self.state = init_state(trained, tx, mesh)
        self._step = make_train_step(
            adapted, tx, **step_objective(rows, seq), options=options, state=self.state,
            frozen=self.frozen,
        )  # fmt: skip
        self.batch = jax.device_put(_packed(self.ids), NamedSharding(mesh, BATCH))

    def step(self) -> float:
        self.state, measurements = self._step(self.state, self.frozen, self.batch)
        return float(measurements["loss"])


def _packed(ids: np.ndarray) -> dict[str, np.ndarray]:
    """A batch like those of training.packing: rows of one segment; the last token has no target."""
    targets = np.roll(ids, -1, axis=1)
    mass = np.ones(ids.shape, np.float32)
    mass[:, -1] = 0
    zeros = np.zeros_like(ids)
    return {
        "tokens": ids,
        "targets": targets,
        "positions": zeros + np.arange(ids.shape[1], dtype=np.int32),
        "segment_ids": zeros + 1,
        "source": zeros,
        "mass": mass,
    }


class Transformers(Engine):
    """A plain torch loop with transformers' model, fused AdamW, and autocast for bfloat16; needs torch."""

    name = "transformers"

    def load(self) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForCausalLM.from_pretrained(
            self.path, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
        self.model = model.to(self.device).train()
        if self.remat != "none":
            self.model.gradient_checkpointing_enable()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), LEARNING_RATE, (B1, B2), EPS, WEIGHT_DECAY, fused=True
        )
        self.tokens = torch.from_numpy(self.ids).long().to(self.device)

    def step(self) -> float:
        narrow = self.dtype == "bfloat16"
        with self.torch.autocast(self.device, self.torch.bfloat16, enabled=narrow):
            loss = self.model(self.tokens, labels=self.tokens, use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def peak_bytes(self) -> int:
        cuda = self.device == "cuda"
        return self.torch.cuda.max_memory_allocated() if cuda else super().peak_bytes()


class Tunix(Engine):
    """The jitted step of google-tunix's PeftTrainer, with all weights trained."""

    name = "tunix"

    def load(self) -> None:
        import jax.numpy as jnp
        import optax
        from tunix.sft import peft_trainer

        batch, seq = self.ids.shape
        model = load_tunix(self.path, self.config, self.dtype, "float32")
        optimizer = optax.adamw(LEARNING_RATE, B1, B2, EPS, weight_decay=WEIGHT_DECAY)
        never = 10**9
        trainer = peft_trainer.PeftTrainer(
            model, optimizer, peft_trainer.TrainingConfig(eval_every_n_steps=never, max_steps=never)
        )
        positions = jnp.broadcast_to(jnp.arange(seq), (batch, seq))
        causal = jnp.broadcast_to(jnp.tril(jnp.ones((seq, seq), bool)), (batch, seq, seq))
        trainer.with_gen_model_input_fn(
            lambda x: {
                "input_tokens": x.input_tokens,
                "input_mask": x.input_mask,
                "positions": positions,
                "attention_mask": causal,
            }
        )
        self._step, _ = trainer.jit_train_and_eval_step()
        ids = jnp.asarray(self.ids)
        self.inputs = peft_trainer.TrainingInput(ids, jnp.ones_like(ids))

    def step(self) -> float:
        return float(self._step(self.inputs)[0])


ENGINES = {e.name: e for e in (BenchTrain, Transformers, Tunix)}


def measure(engines: Sequence[Engine], repeats: int, log: Callable[[str], None]) -> list[dict]:
    """One record per engine. The engines run interleaved: a first step, then `repeats` measured ones."""
    import jax

    seconds: dict[str, list[float]] = {engine.name: [] for engine in engines}
    losses: dict[str, float] = {}
    for number in range(repeats + 1):  # the first step compiles
        for engine in engines:
            begin = time.perf_counter()
            loss = engine.step()
            seconds[engine.name].append(time.perf_counter() - begin)
            losses.setdefault(engine.name, loss)
            log(f"{engine.name} {number} {seconds[engine.name][-1]:.3f} s, loss {loss:.6f}")
    records = []
    peak = chip_at_hand(jax.local_devices()[0]).flops
    for engine in engines:
        first, *rest = seconds[engine.name]
        step = statistics.median(rest)
        rows, seq = engine.ids.shape
        pairs = rows * seq * (seq + 1) // 2
        flops = train_flops(engine.config, rows * seq, pairs, "none", engine.adapters)
        known = peak > 0 and engine.dtype == "bfloat16"
        records.append(
            {
                "engine": engine.name,
                "step_s": step,
                "steps_s": rest,
                "ratio": statistics.median(seconds[engines[0].name][1:]) / step,
                "tokens_per_s": rows * seq / step,
                "model_flops_per_s": flops / step,
                "share_of_peak": flops / step / peak / engine.num_devices if known else None,
                "peak_bytes": engine.peak_bytes(),
                "compile_s": max(0.0, first - step),
                "loss": losses[engine.name],
            }
        )
    return records


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    parser = bench_parser("leafe_jax.tools.bench_training", __doc__, ENGINES, repeats=5)
    parser.add_argument("--batch", type=int, default=32, help="rows per batch")
    parser.add_argument("--seq", type=int, default=256, help="tokens per row")
    parser.add_argument("--remat", choices=REMAT, default="none", help="train.remat")
    parser.add_argument("--scan_layers", action="store_true", help="train.scan_layers")
    parser.add_argument("--rank", type=int, default=0, help="train.lora.rank; only ours")
    arguments = parser.parse_args(argv)
    start_benchmark()
    names = ("model", "batch", "seq", "dtype", "remat", "scan_layers", "rank")
    common = {name: getattr(arguments, name) for name in names}
    try:
        kinds = chosen_engines(arguments, ENGINES)
        if arguments.batch < 1 or arguments.seq < 2:
            raise UserError(
                f"--batch={arguments.batch} --seq={arguments.seq}: must be at least 1 and 2"
            )
        engines = [kind(*common.values()) for kind in kinds]
        for record in measure(engines, arguments.repeats, log):
            print(json.dumps({**common, **rounded(record)}), flush=True)
    except UserError as error:
        log(f"error: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
