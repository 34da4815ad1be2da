"""Benchmarks the sampler, alone or against other engines on the same work.

    python -m leafe_jax.tools.bench_sampling --workload=branches --model=DIR
    python -m leafe_jax.tools.bench_sampling --workload=ragged --model=DIR --engine=leafe_jax,transformers

prints one JSON line per engine. Engines run interleaved, and times are medians. Other harnesses can use
`BenchEngine`: construct it with (model, dtype, workload) and `run` it on token arrays.

    plain      32 prompts of 256 tokens, 64 generated
    turns      32 sequences, 8 turns of 24 observation tokens and 16 generated
    branches   8 histories of 512 tokens, 16 branches each, 32-token suffix, 32 generated
    ragged     128 live sequences: histories of 100 to 800 tokens, forked at unequal steps; 3 turns of 5
               to 80 observation tokens and 4 to 64 generated; each starts its next turn as soon as one ends
    leafe      a recorded exploration (--trees=WORKDIR/trees/tree): its forks, turns and reflections
    step       one decode step with pages against a plain jitted step without, at the same batch size

Tokens are random, decoding is greedy, and the workload fixes the length of each reply. So every engine does
the same work. No engine learns a length earlier than it would see a stop token.
"""

from __future__ import annotations

import abc
import argparse
import functools
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leafe_jax.errors import UserError
from leafe_jax.runtime.startup import keep_freed_memory, prefer_cpu
from leafe_jax.tools.workloads import WORKLOADS, Branch, Inputs, Leafe, Play, Ragged

if TYPE_CHECKING:  # importing them would start jax, which `start_benchmark` must configure first
    from leafe_jax.models.decoder import ModelConfig
    from leafe_jax.sampling.requests import EngineConfig


class Engine(abc.ABC):
    """An engine to benchmark: constructed for a workload, run on its inputs.

    Args:
      model: checkpoint directory, or the name of one under ./ckpt (`NAME-DTYPE`); ours also takes
        random:SHAPE (leafe_jax/tools/bench_models.py).
      dtype: "float32" or "bfloat16".
      w: the workload.
      do_sample: True samples at temperature 1 instead of greedily.
      chunk: most sequences per call; 0 means all.
    """

    name = ""

    def __init__(self, model: str, dtype: str, w, *, do_sample: bool = False, chunk: int = 0):
        self.checkpoint = model
        self.dtype, self.w, self.do_sample, self.chunk = dtype, w, do_sample, chunk
        self.prefill_tokens = self.cached_tokens = 0

    @property
    def path(self) -> Path:
        """Directory of the checkpoint.

        Raises:
          UserError: the model has random weights.
        """
        from leafe_jax.tools.bench_models import find_checkpoint

        return find_checkpoint(self.checkpoint, self.dtype)

    @abc.abstractmethod
    def generate(self, prompts: list[list[int]], counts: list[int]) -> list[list[int]]:
        """One reply per prompt, of exactly `counts` tokens."""

    def run(self, x) -> np.ndarray:
        """Runs the workload and returns all generated ids in one array."""
        self.prefill_tokens = self.cached_tokens = 0
        if hasattr(x, "prompts"):
            return np.array(self._equal(x.prompts, self.w.gen))
        if hasattr(x, "obs"):
            contexts, replies = [list(map(int, row)) for row in x.system], []
            for obs in x.obs:
                contexts = [c + list(map(int, o)) for c, o in zip(contexts, obs, strict=True)]
                replies.append(self._equal(contexts, self.w.gen))
                contexts = [c + r for c, r in zip(contexts, replies[-1], strict=True)]
            return np.concatenate([np.array(r) for r in replies], 1)
        if hasattr(x, "histories"):
            repeated = np.repeat(x.histories, self.w.branches, 0)
            return np.array(self._equal(np.concatenate([repeated, x.suffixes], 1), self.w.gen))
        return self._play(x.scripts)

    def _equal(self, prompts, count: int) -> list[list[int]]:
        prompts = [list(map(int, p)) for p in prompts]
        step = self.chunk or len(prompts)
        blocks = [prompts[i : i + step] for i in range(0, len(prompts), step)]
        return [r for block in blocks for r in self.generate(block, [count] * len(block))]

    def _play(self, scripts) -> np.ndarray:
        """Runs scripts in rounds, as an engine without continuous batching must.

        Each round serves all calls that are ready, and batches contexts of similar length.
        """
        play, replies = Play(scripts), {}
        calls = play.start()
        while calls:
            calls.sort(key=lambda call: len(call[1]))
            step, found = self.chunk or len(calls), []
            for begin in range(0, len(calls), step):
                block = calls[begin : begin + step]
                found += self.generate([c[1] for c in block], [c[2] for c in block])
            coming = []
            for (number, _, _), ids in zip(calls, found, strict=True):
                replies.setdefault(number, []).extend(ids)
                coming += play.reply(number, ids)
            calls = coming
        return np.array([t for number in sorted(replies) for t in replies[number]])


def sampler_sizes(w: Any, config: ModelConfig) -> EngineConfig:
    """The sizes of a sampler that serves a whole workload at once.

    Args:
      w: the workload.
      config: the model.
    """
    from leafe_jax.sampling.requests import EngineConfig

    slots, longest, gen, turn_chunk = 128, min(1024, config.max_position_embeddings), 64, 32
    if hasattr(w, "parents"):
        slots, gen, turn_chunk = w.parents * w.branches, w.gen, w.suffix
        longest = w.history + w.suffix + w.gen
    elif hasattr(w, "system"):
        slots, gen, longest = w.batch, w.gen, w.system + w.turns * (w.obs + w.gen)
        turn_chunk = min(32, longest - w.gen)
    elif hasattr(w, "prompt"):
        slots, longest, gen, turn_chunk = w.batch, w.prompt + w.gen, w.gen, min(128, w.prompt)
    elif isinstance(w, Ragged):
        slots, gen = w.live, w.gen[1]
        longest = w.history[1] + w.turns * (w.obs[1] + w.gen[1])
    page = 16
    return EngineConfig(
        num_slots=slots, max_len=longest, max_new_tokens=gen, turn_chunk=turn_chunk,
        prefill_chunk=128, stop_ids=(), page_size=page,
        # Room for all sessions at their full length; a page that is read in part is written anew.
        num_pages=slots * (-(-longest // page) + 1),
    )  # fmt: skip


class BenchEngine(Engine):
    """This package's sampler.

    Args:
      tensor: number of this process's devices that divide the model among them (sampler.tensor).
      The others are Engine's.
    """

    name = "leafe_jax"

    def __init__(self, *args, tensor: int = 1, **kwargs):
        super().__init__(*args, **kwargs)
        import jax

        from leafe_jax.sampling.replicas import make_engines
        from leafe_jax.tools.bench_models import open_model

        self.config, load = open_model(self.checkpoint, self.dtype)
        self.sampler = make_engines(
            self.config, functools.partial(load, self.dtype), sampler_sizes(self.w, self.config),
            copies=1, tensor=tensor, devices=jax.local_devices(),
        )  # fmt: skip

    def run(self, x) -> np.ndarray:
        self.sampler.clear()  # every run starts with an empty cache
        return super().run(x)

    def _submit(self, context: list[int], count: int) -> int:
        from leafe_jax.sampling.requests import Request, Session
        from leafe_jax.types import Sampling

        sampling = Sampling(1.0 if self.do_sample else 0.0)
        return self.sampler.submit(Request(Session(context), (), count, sampling, 0))

    def _take(self, result) -> list[int]:
        if result.finish_reason == "error":
            raise UserError(result.error)
        self.prefill_tokens += result.prefilled
        self.cached_tokens += result.cached
        return list(result.ids)

    def generate(self, prompts, counts):
        tickets = [self._submit(p, c) for p, c in zip(prompts, counts, strict=True)]
        found: dict[int, Any] = {}
        while len(found) < len(tickets):
            found.update(self.sampler.collect())
        return [self._take(found[ticket]) for ticket in tickets]

    def _play(self, scripts) -> np.ndarray:
        """Runs scripts with continuous batching: each continues as soon as it has its reply."""
        play, replies, flying = Play(scripts), {}, {}
        calls = play.start()
        while calls or flying:
            for number, context, count in calls:
                flying[self._submit(context, count)] = number
            calls = []
            for ticket, result in self.sampler.collect():
                number, ids = flying.pop(ticket), self._take(result)
                replies.setdefault(number, []).extend(ids)
                calls += play.reply(number, ids)
        return np.array([t for number in sorted(replies) for t in replies[number]])


class Transformers(Engine):
    """transformers' `generate` with left padding, on contexts of similar length; needs torch."""

    name = "transformers"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        self.chunk = self.chunk or (32 if isinstance(self.w, (Ragged, Leafe)) else 0)
        self.model = AutoModelForCausalLM.from_pretrained(
            self.path, dtype=self.dtype, local_files_only=True, trust_remote_code=False
        ).eval()

    def generate(self, prompts, counts):
        torch = self.torch
        width = max(map(len, prompts))
        ids = torch.zeros((len(prompts), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        ends = torch.tensor(counts) + width
        self.prefill_tokens += ids.numel()

        def stopped(
            tokens, scores, **kwargs
        ):  # each row stops at its own length, as at a stop token
            return tokens.shape[1] >= ends

        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids, attention_mask=mask, do_sample=self.do_sample, pad_token_id=0,
                eos_token_id=None, max_new_tokens=max(counts), stopping_criteria=[stopped],
            )  # fmt: skip
        return [row[width : width + n].tolist() for row, n in zip(out, counts, strict=True)]


def load_tunix(path: Path, c, dtype: str, param_dtype: str):
    """A Qwen2 checkpoint as Tunix's model.

    Args:
      path: of the checkpoint.
      c: its ModelConfig.
      dtype: to compute in.
      param_dtype: of the weights.
    """
    import jax.numpy as jnp
    from tunix.models.qwen2 import model as qwen2
    from tunix.models.qwen2 import params as loader

    if c.model_type != "qwen2":
        raise UserError(f"--engine=tunix: {path}: model_type = {c.model_type!r}: must be 'qwen2'")
    config = qwen2.ModelConfig(
        num_layers=c.num_layers, vocab_size=c.vocab_size, embed_dim=c.hidden_size,
        hidden_dim=c.intermediate_size, num_heads=c.num_heads, head_dim=c.head_dim,
        num_kv_heads=c.num_kv_heads, rope_theta=int(c.rope_theta), norm_eps=c.rms_norm_eps,
        use_tied_embedding=c.tie_word_embeddings, dtype=jnp.dtype(dtype),
        param_dtype=jnp.dtype(param_dtype),
    )  # fmt: skip
    return loader.create_model_from_safe_tensors(str(path), config, dtype=jnp.dtype(param_dtype))


class Tunix(Engine):
    """google-tunix's sampler, with its own bucketing (prompts padded to powers of two)."""

    name = "tunix"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        from leafe_jax.models import hf

        self.chunk = self.chunk or (32 if isinstance(self.w, (Ragged, Leafe)) else 0)
        self.config, self.samplers = hf.read_config(str(self.path)), {}
        self.model = load_tunix(self.path, self.config, self.dtype, self.dtype)

    def generate(self, prompts, counts):
        from tunix.generate import sampler

        width = 1 << (max(map(len, prompts)) - 1).bit_length()
        self.prefill_tokens += width * len(prompts)
        c, size = self.config, width + max(64, max(counts))
        if size not in self.samplers:
            cache = sampler.CacheConfig(size, c.num_layers, c.num_kv_heads, c.head_dim)
            self.samplers[size] = sampler.Sampler(self.model, _Ids(), cache)
        warm = dict(temperature=1.0, top_p=1.0, seed=0) if self.do_sample else {}
        out = self.samplers[size](
            [" ".join(map(str, prompt)) for prompt in prompts],
            max_generation_steps=max(counts), max_prompt_length=width,
            eos_tokens=[c.vocab_size + 1], **warm,
        )  # fmt: skip
        return [np.asarray(t)[:n].tolist() for t, n in zip(out.tokens, counts, strict=True)]


class _Ids:
    """A tokenizer for Tunix whose text is a list of ids in decimal."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids) -> str:
        return ""

    def bos_id(self):
        return None

    def eos_id(self) -> int:
        return -1

    def pad_id(self) -> int:
        return 0


ENGINES = {e.name: e for e in (BenchEngine, Transformers, Tunix)}


# -- command line ----------------------------------------------------------------------------------
def measure(engines: Sequence[Engine], x: Inputs, repeats: int, log: Callable) -> list[dict]:
    """One record per engine, times in seconds. The engines run interleaved."""
    samples: dict[str, list[float]] = {engine.name: [] for engine in engines}
    outputs: dict[str, np.ndarray] = {}
    for number in range(repeats + 1):  # the first run compiles
        for engine in engines:
            begin = time.perf_counter()
            outputs[engine.name] = engine.run(x)
            samples[engine.name].append(time.perf_counter() - begin)
            log(f"{engine.name} {number} {samples[engine.name][-1]:.3f} s")
    records = []
    for engine in engines:
        first, *rest = samples[engine.name]
        wall = statistics.median(rest)
        ours, theirs = outputs[engines[0].name], outputs[engine.name]
        records.append(
            {
                "engine": engine.name,
                "wall_s": wall,
                "walls_s": rest,
                "ratio": statistics.median(samples[engines[0].name][1:]) / wall,
                "generated_tokens": int(theirs.size),
                "generated_tokens_per_s": theirs.size / wall,
                "prefilled_tokens": engine.prefill_tokens,
                "cached_tokens": engine.cached_tokens,
                "compile_s": max(0.0, first - wall),
                "peak_bytes": peak_bytes(),
                "same_tokens": float(np.mean(ours == theirs)),
            }
        )
    return records


def bench_parser(
    program: str, description: str | None, engines: Iterable[str], repeats: int
) -> argparse.ArgumentParser:
    """The flags that all benchmarks share: --model, --engine, --dtype and --repeats.

    Args:
      program: the module's name.
      description: the text of --help.
      engines: names that --engine takes.
      repeats: default of --repeats.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m {program}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", required=True, help="Hugging Face directory, or random:0.5b without a file"
    )
    parser.add_argument(
        "--engine",
        default="leafe_jax",
        help=f"one or more of {', '.join(engines)}, comma-separated",
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=repeats, help="runs after the first")
    return parser


def chosen_engines(arguments: argparse.Namespace, engines: Mapping[str, Any]) -> list[Any]:
    """The values of `engines` that --engine names.

    Raises:
      UserError: --engine has another name, or --repeats is below 1.
    """
    names = arguments.engine.split(",")
    if not all(name in engines for name in names) or arguments.repeats < 1:
        raise UserError(
            f"--engine={arguments.engine} --repeats={arguments.repeats}: engines must be among"
            f" {', '.join(engines)}, and repeats at least 1"
        )
    return [engines[name] for name in names]


def start_benchmark() -> None:
    """Chooses the platform and the allocator as a run does."""
    if prefer_cpu():
        import jax

        jax.config.update("jax_platforms", "cpu")
    keep_freed_memory()


def log(text: str) -> None:
    """Prints to stderr, so that stdout has JSON lines only."""
    print(text, file=sys.stderr, flush=True)


def main(argv: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    parser = bench_parser("leafe_jax.tools.bench_sampling", __doc__, ENGINES, repeats=3)
    parser.add_argument("--workload", choices=[*WORKLOADS, "step"], required=True)
    parser.add_argument("--trees", default="", help="directory of recorded trees, for leafe")
    parser.add_argument("--seed", type=int, default=0, help="seed of the ragged workload")
    arguments = parser.parse_args(argv)
    start_benchmark()
    common = {"workload": arguments.workload, "model": arguments.model, "dtype": arguments.dtype}
    try:
        kinds = chosen_engines(arguments, ENGINES)
        if arguments.workload == "step":
            from leafe_jax.tools.bench_step import decode_step

            engine = BenchEngine(arguments.model, arguments.dtype, Branch(gen=64))
            record = decode_step(engine.sampler, 128, 512, arguments.repeats)
            print(json.dumps({**common, "engine": engine.name, **rounded(record)}), flush=True)
            return 0
        workload = WORKLOADS[arguments.workload]
        w = workload(seed=arguments.seed) if workload is Ragged else workload()
        engines = [kind(arguments.model, arguments.dtype, w) for kind in kinds]
        from leafe_jax.tools.bench_models import open_model

        config, _ = open_model(arguments.model, arguments.dtype)
        x = Inputs(w, config.vocab_size, arguments.trees)
        for record in measure(engines, x, arguments.repeats, log):
            print(json.dumps({**common, **rounded(record)}), flush=True)
    except UserError as error:
        log(f"error: {error}")
        return 2
    return 0


def peak_bytes() -> int:
    """Peak memory in bytes of all engines together: on the first device if it is an accelerator, else of
    the process."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return stats.get("peak_bytes_in_use", resident)


def rounded(record: dict[str, Any]) -> dict[str, Any]:
    """The record with floats rounded to six decimals, for printing."""
    return {
        key: round(value, 6) if isinstance(value, float) else value for key, value in record.items()
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
