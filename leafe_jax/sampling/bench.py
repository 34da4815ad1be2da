"""Benchmarks of the sampler, alone or beside rivals on the same work.

    python -m leafe_jax.sampling.bench --workload=branches --model=DIR
    python -m leafe_jax.sampling.bench --workload=ragged --model=DIR --engine=leafe_jax,transformers

prints one JSON line an engine. Several engines run interleaved, and times are medians. `BenchEngine` also
joins other harnesses: it is made with (model, dtype, workload) and `run`s their token arrays.

    plain      32 prompts of 256 tokens, 64 generated
    turns      32 sequences, 8 turns of 24 observation tokens and 16 generated
    branches   8 histories of 512, 16 branches of each, 32-token suffix, 32 generated
    ragged     128 live sequences: histories of 100 to 800 tokens, forked at unequal steps; 3 turns of 5
               to 80 observation tokens and 4 to 64 generated; each goes on as soon as it has stopped
    leafe      a recorded exploration (--trees=WORKDIR/explore/trees): its forks, turns and reflections
    step       one decoding step with pages against a plain jitted step without, at the same batch

Tokens are random, decoding is greedy and replies have the lengths that the workload says, so every engine
does the same work. The engine learns a length no earlier than it would see a stop token.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leafe_jax.errors import UserError
from leafe_jax.startup import keep_freed_memory, prefer_cpu


@dataclasses.dataclass(frozen=True)
class Plain:
    """`batch` prompts of `prompt` tokens, `gen` generated."""

    batch: int = 32
    prompt: int = 256
    gen: int = 64


@dataclasses.dataclass(frozen=True)
class Turns:
    """`batch` sequences; each turn appends `obs` tokens, then generates `gen`."""

    batch: int = 32
    turns: int = 8
    obs: int = 24
    gen: int = 16
    system: int = 0  # tokens before the first observation


@dataclasses.dataclass(frozen=True)
class Branch:
    """`branches` continuations of each of `parents` shared histories."""

    parents: int = 8
    history: int = 512
    branches: int = 16
    suffix: int = 32
    gen: int = 32


@dataclasses.dataclass(frozen=True)
class Ragged:
    """`live` sequences of unequal shape; see the module's docstring."""

    live: int = 128
    trunks: int = 32  # histories that the sequences fork from
    turns: int = 3
    history: tuple[int, int] = (100, 800)
    obs: tuple[int, int] = (5, 80)
    gen: tuple[int, int] = (4, 64)
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Leafe:
    """The first `num_trees` recorded trees, explored together."""

    num_trees: int = 48


WORKLOADS = {"plain": Plain, "turns": Turns, "branches": Branch, "ragged": Ragged, "leafe": Leafe}


@dataclasses.dataclass(eq=False)
class Script:
    """One session of an event-driven workload.

    Attributes:
      turns: (prompt ids, number of tokens to generate, on the side) in order; what is said on the side
        (a reflection) is no part of the context afterwards.
      parent: script that it goes on from once that has ended, or None.
      begin: 1-based turn of the parent, side turns not counted, before which it leaves it.
    """

    turns: list[tuple[list[int], int, bool]]
    parent: int | None = None
    begin: int = 0


class Inputs:
    """Token data of a workload, the same for every engine.

    Args:
      w: the workload.
      vocab: tokens are drawn from 10..vocab - 1.
      trees: directory of recorded trees, for `leafe`.
    """

    def __init__(self, w, vocab: int, trees: str = ""):
        def draw(shape, seed):
            return np.random.default_rng(seed).integers(10, vocab, size=shape, dtype=np.int32)

        if isinstance(w, Plain):
            self.prompts = draw((w.batch, w.prompt), 0)
        elif isinstance(w, Turns):
            self.system = draw((w.batch, w.system), 0)
            self.obs = draw((w.turns, w.batch, w.obs), 1)
        elif isinstance(w, Branch):
            self.histories = draw((w.parents, w.history), 0)
            self.suffixes = draw((w.parents * w.branches, w.suffix), 1)
        elif isinstance(w, Ragged):
            self.scripts = _ragged_scripts(w, draw)
        else:
            self.scripts = _recorded_scripts(Path(trees), w.num_trees, draw)


def _ragged_scripts(w: Ragged, draw) -> list[Script]:
    rng = np.random.default_rng(w.seed)

    def between(bounds: tuple[int, int]) -> int:
        return int(rng.integers(bounds[0], bounds[1] + 1))

    trunks = [draw(between(w.history), 100 + i).tolist() for i in range(w.trunks)]
    scripts = []
    for number in range(w.live):
        trunk = trunks[number % w.trunks]
        # The first on each trunk has all of it, the others fork at unequal steps.
        cut = len(trunk) if number < w.trunks else between((w.history[0], len(trunk)))
        turns = []
        for turn in range(w.turns):
            ids = draw(between(w.obs), 1000 + number * w.turns + turn).tolist()
            turns.append((trunk[:cut] + ids if turn == 0 else ids, between(w.gen), False))
        scripts.append(Script(turns))
    return scripts


def _recorded_scripts(directory: Path, num_trees: int, draw) -> list[Script]:
    """Sessions of recorded trees; every node is one, every reflection a turn on the side.

    Raises:
      UserError: no trees there.
    """
    lines = [line for path in sorted(directory.glob("*.jsonl")) for line in path.open()]
    if not lines:
        raise UserError(f"--trees={directory}: no *.jsonl there; give a run's explore/trees")
    scripts: list[Script] = []
    for line in lines[:num_trees]:
        first = len(scripts)
        for node in json.loads(line)["nodes"]:
            turns = []
            asked = {r["step"]: r for r in node["reflections"]}
            for turn in node["turns"]:
                turns.append((turn["prompt_ids"], len(turn["action_ids"]), False))
                reflection = asked.get(turn["step"] + 1)
                if reflection is not None:
                    turns.append((reflection["prompt_ids"], len(reflection["ids"]), True))
            parent = None if node["parent"] is None else first + node["parent"]
            scripts.append(Script(turns, parent, node["branch_step"] or 1))
    return scripts


class Play:
    """The event-driven workloads: which contexts can be asked for now, given the replies so far.

    Args:
      scripts: of the workload.
    """

    def __init__(self, scripts: Sequence[Script]):
        self.scripts = scripts
        self._contexts: list[list[int]] = [[] for _ in scripts]
        self._marks: list[list[int]] = [[] for _ in scripts]  # context length before each turn
        self._next = [0] * len(scripts)
        self._children: dict[int | None, list[int]] = {}
        for number, script in enumerate(scripts):
            self._children.setdefault(script.parent, []).append(number)
        self.generated = 0

    def start(self) -> list[tuple[int, list[int], int]]:
        """(script, context, tokens to generate) of all that can begin."""
        return [call for number in self._children.get(None, []) for call in self._ask(number)]

    def reply(self, number: int, ids: Sequence[int]) -> list[tuple[int, list[int], int]]:
        """Takes in a reply; what can be asked for now."""
        prompt, count, side = self.scripts[number].turns[self._next[number]]
        assert len(ids) == count
        self.generated += count
        if not side:
            context = self._contexts[number]
            self._marks[number].append(len(context))
            context += [*prompt, *ids]
        self._next[number] += 1
        return self._ask(number)

    def _ask(self, number: int) -> list[tuple[int, list[int], int]]:
        script, turn = self.scripts[number], self._next[number]
        if turn < len(script.turns):
            prompt, count, _ = script.turns[turn]
            return [(number, self._contexts[number] + prompt, count)]
        calls = []
        for child in self._children.get(number, []):
            marks = self._marks[number][: self.scripts[child].begin]
            self._contexts[child] = self._contexts[number][: marks[-1] if marks else 0]
            self._marks[child] = marks[:-1]
            calls += self._ask(child)
        return calls


class Engine:
    """What the benchmarks run: made for a workload, run on its inputs.

    Args:
      model: checkpoint directory, or the name of one under ./ckpt (`NAME-DTYPE`).
      dtype: "float32" or "bfloat16".
      w: the workload.
      do_sample: temperature 1 in place of greedy.
      chunk: sequences per call; 0 takes all.
    """

    name = ""

    def __init__(self, model: str, dtype: str, w, *, do_sample: bool = False, chunk: int = 0):
        self.path = Path(model) if Path(model).is_dir() else Path("ckpt") / f"{model}-{dtype}"
        self.dtype, self.w, self.do_sample, self.chunk = dtype, w, do_sample, chunk
        self.prefill_tokens = self.cached_tokens = 0

    def generate(self, prompts: list[list[int]], counts: list[int]) -> list[list[int]]:
        """Replies of exactly so many tokens, one a prompt."""
        raise NotImplementedError

    def run(self, x) -> np.ndarray:
        """Serves the workload and returns the generated ids, in one array."""
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
        """In rounds, as an engine without continuous batching has to: all that can be asked for, the
        shortest contexts together."""
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


class BenchEngine(Engine):
    """This package's sampler."""

    name = "leafe_jax"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        from leafe_jax.models import hf
        from leafe_jax.sampling.engine import Engine as Sampler

        self.config = hf.read_config(str(self.path))
        params = hf.load_params(str(self.path), self.config, self.dtype)
        slots, max_len, gen, turn_chunk = self._sizes()
        self.sampler = Sampler(
            self.config, params, num_slots=slots, max_len=max_len, max_new_tokens=gen,
            turn_chunk=turn_chunk, prefill_chunk=128, stop_ids=(),
        )  # fmt: skip

    def _sizes(self) -> tuple[int, int, int, int]:
        """Slots, tokens of a session, of a reply and of a turn's chunk."""
        w = self.w
        if hasattr(w, "parents"):
            return w.parents * w.branches, w.history + w.suffix + w.gen, w.gen, w.suffix
        if hasattr(w, "system"):
            longest = w.system + w.turns * (w.obs + w.gen)
            return w.batch, longest, w.gen, min(32, longest - w.gen)
        if hasattr(w, "prompt"):
            return w.batch, w.prompt + w.gen, w.gen, min(128, w.prompt)
        if isinstance(w, Ragged):
            longest = w.history[1] + w.turns * (w.obs[1] + w.gen[1])
            return w.live, longest, w.gen[1], 32
        return 128, min(1024, self.config.max_position_embeddings), 64, 32

    def run(self, x) -> np.ndarray:
        self.sampler.clear()  # every run begins with an empty cache
        return super().run(x)

    def _submit(self, context: list[int], count: int) -> int:
        from leafe_jax.sampling.engine import Request, Session
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
        """Each goes on as soon as it has its reply."""
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
    """transformers' generate with left padding, contexts of similar length together; needs torch."""

    name = "transformers"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        import torch
        from transformers import AutoModelForCausalLM

        self.torch = torch
        self.chunk = self.chunk or (32 if isinstance(self.w, (Ragged, Leafe)) else 0)
        self.model = AutoModelForCausalLM.from_pretrained(self.path, dtype=self.dtype).eval()

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

        def stopped(tokens, scores, **kwargs):  # each row at its own length, as at an end token
            return tokens.shape[1] >= ends

        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids, attention_mask=mask, do_sample=self.do_sample, pad_token_id=0,
                eos_token_id=None, max_new_tokens=max(counts), stopping_criteria=[stopped],
            )  # fmt: skip
        return [row[width : width + n].tolist() for row, n in zip(out, counts, strict=True)]


class Tunix(Engine):
    """google-tunix's sampler with its own bucketing (prompts padded to powers of two)."""

    name = "tunix"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        import jax.numpy as jnp
        from tunix.models.qwen2 import model as qwen2
        from tunix.models.qwen2 import params as loader

        from leafe_jax.models import hf

        c = hf.read_config(str(self.path))
        self.chunk = self.chunk or (32 if isinstance(self.w, (Ragged, Leafe)) else 0)
        config = qwen2.ModelConfig(
            num_layers=c.num_layers, vocab_size=c.vocab_size, embed_dim=c.hidden_size,
            hidden_dim=c.intermediate_size, num_heads=c.num_heads, head_dim=c.head_dim,
            num_kv_heads=c.num_kv_heads, rope_theta=int(c.rope_theta), norm_eps=c.rms_norm_eps,
            use_tied_embedding=c.tie_word_embeddings, dtype=jnp.dtype(self.dtype),
            param_dtype=jnp.dtype(self.dtype),
        )  # fmt: skip
        self.config, self.samplers = c, {}
        self.model = loader.create_model_from_safe_tensors(
            str(self.path), config, dtype=jnp.dtype(self.dtype)
        )

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
    """The tokenizer that Tunix asks for: ids written out in words."""

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


# -- one decoding step -----------------------------------------------------------------------------
def decode_step(engine: BenchEngine, rows: int, context: int, repeats: int) -> dict[str, float]:
    """Seconds of a decoding step with pages and without.

    With pages: a turn of a whole burst against one of a single token, the difference divided by the
    steps between them; gathering and writing back, once a burst, is counted by itself. Without: the
    same layers on contiguous buffers, jitted alone, sampling left to an argmax.

    Args:
      engine: made for a workload with room for `rows` of `context` tokens.
      rows, context: of the batch.
      repeats: of which the median is taken.
    """
    import jax
    import jax.numpy as jnp

    from leafe_jax.models import decoder
    from leafe_jax.sampling.storage import Gathered, KVCache, Pages

    sampler, storage = engine.sampler, Gathered()
    statics, params = sampler.programs.statics, sampler.params
    program = next(
        p
        for p in reversed(sampler.programs.listed)
        if (p.kind, p.rows, p.groups) == ("turn", rows, 0)
        and p.pages * statics.page_size >= context + p.tokens + statics.burst
    )
    compiled = sampler.programs.get(program)
    arguments = sampler.programs.zeros(program)
    pages, ids, _, _, options, seeds, _ = arguments
    pages = Pages(*pages[:3], np.full(rows, context, np.int32), pages.target)
    ones = np.ones(rows, np.int32)
    pool = sampler._pool

    def turn(count: int) -> None:
        nonlocal pool
        pool, *out = compiled(
            params, pool, pages, ids, ones, ones * count, options, seeds, np.int32(rows)
        )
        jax.block_until_ready(out)

    @functools.partial(jax.jit, donate_argnums=1)
    def plain(params, cache, last, start):
        written: list = []
        nothing = KVCache(tuple(k[..., :0] for k in cache.k), tuple(v[:, :, :0] for v in cache.v))
        fixed = (nothing, jnp.zeros_like(start))
        attend = storage.attend(cache, fixed, start, written)
        hidden = decoder.hidden(statics.config, params, last[:, None], start[:, None], attend)
        logits = decoder.head(statics.config, params, hidden[:, 0])
        return storage.carry(written), jnp.argmax(logits, -1).astype(jnp.int32)

    length = program.pages * statics.page_size
    cache = storage.empty(statics.config, rows, length, jax.tree.leaves(params)[0].dtype)
    last, start = jnp.zeros(rows, jnp.int32), jnp.full(rows, context, jnp.int32)

    def loop(count: int) -> None:
        nonlocal cache, last
        for _ in range(count):
            cache, last = plain(params, cache, last, start)
        last.block_until_ready()

    times: dict[str, list[float]] = {"whole": [], "single": [], "plain": []}
    for number in range(repeats + 1):
        for name, work in (
            ("whole", lambda: turn(statics.burst)),
            ("single", lambda: turn(1)),
            ("plain", lambda: loop(statics.burst)),
        ):
            begin = time.perf_counter()
            work()
            if number:
                times[name].append(time.perf_counter() - begin)
    sampler._pool = pool
    whole, single, bare = (statistics.median(times[k]) for k in ("whole", "single", "plain"))
    step = (whole - single) / (statics.burst - 1)
    return {
        "rows": rows,
        "context": context,
        "burst": statics.burst,
        "step_s": step,
        "plain_step_s": bare / statics.burst,
        "step_ratio": step / (bare / statics.burst),
        "burst_ratio": whole / bare,  # gathering, chunk and writing back included
        "once_a_burst_s": whole - step * statics.burst,
    }


# -- command line ----------------------------------------------------------------------------------
def measure(engines: Sequence[Engine], x: Inputs, repeats: int, log: Callable) -> list[dict]:
    """Runs the engines interleaved; one record each, times in seconds."""
    import jax

    samples: dict[str, list[float]] = {engine.name: [] for engine in engines}
    outputs: dict[str, np.ndarray] = {}
    for number in range(repeats + 1):  # the first compiles
        for engine in engines:
            begin = time.perf_counter()
            outputs[engine.name] = engine.run(x)
            samples[engine.name].append(time.perf_counter() - begin)
            log(f"{engine.name} {number} {samples[engine.name][-1]:.3f} s")
    records = []
    stats = jax.local_devices()[0].memory_stats() or {}
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
                # On an accelerator of the device, else of the whole process.
                "peak_bytes": stats.get(
                    "peak_bytes_in_use", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
                ),
                "same_tokens": float(np.mean(ours == theirs)),
            }
        )
    return records


def main(argv: Sequence[str]) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m leafe_jax.sampling.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workload", choices=[*WORKLOADS, "step"], required=True)
    parser.add_argument("--model", required=True, help="Hugging Face directory")
    parser.add_argument("--engine", default="leafe_jax", help=f"of {', '.join(ENGINES)}, by commas")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=3, help="runs after the first")
    parser.add_argument("--trees", default="", help="directory of recorded trees, for leafe")
    parser.add_argument("--seed", type=int, default=0, help="of the ragged workload")
    arguments = parser.parse_args(argv)
    if prefer_cpu():
        import jax

        jax.config.update("jax_platforms", "cpu")
    keep_freed_memory()

    def log(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    common = {"workload": arguments.workload, "model": arguments.model, "dtype": arguments.dtype}
    try:
        names = arguments.engine.split(",")
        unknown = [name for name in names if name not in ENGINES]
        if unknown or arguments.repeats < 1:
            raise UserError(
                f"--engine={arguments.engine} --repeats={arguments.repeats}: engines are"
                f" {', '.join(ENGINES)}, and one run is the least"
            )
        if arguments.workload == "step":
            engine = BenchEngine(arguments.model, arguments.dtype, Branch(gen=64))
            record = decode_step(engine, 128, 512, arguments.repeats)
            print(json.dumps({**common, "engine": engine.name, **_rounded(record)}), flush=True)
            return 0
        kind = WORKLOADS[arguments.workload]
        w = kind(seed=arguments.seed) if kind is Ragged else kind()
        engines = [ENGINES[name](arguments.model, arguments.dtype, w) for name in names]
        from leafe_jax.models import hf

        x = Inputs(w, hf.read_config(arguments.model).vocab_size, arguments.trees)
        for record in measure(engines, x, arguments.repeats, log):
            print(json.dumps({**common, **_rounded(record)}), flush=True)
    except UserError as error:
        log(f"error: {error}")
        return 2
    return 0


def _rounded(record: dict[str, Any]) -> dict[str, Any]:
    return {
        key: round(value, 6) if isinstance(value, float) else value for key, value in record.items()
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
