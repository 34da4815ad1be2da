"""Checks on a checkpoint that this package computes the same logits as transformers.

    python -m leafe_jax.tools.parity --model=DIR [--dtype=float32|bfloat16] [--json]

It loads the checkpoint here and in transformers on torch (which must be installed), runs a few prompts
through both and prints a verdict. The exit code is 0 if they agree, 1 if they do not, and 2 if the
comparison is not possible.

float32   The largest difference between two logits must be at most 1e-4 times the largest logit, or 1e-4 if
          that logit is below 1.
bfloat16  Our RMS rounding error must be at most 1.1 times that of transformers. Both are measured against
          transformers in float32.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leafe_jax.agent.tokenizer import first_line, load_tokenizer
from leafe_jax.errors import UserError
from leafe_jax.models import decoder, hf
from leafe_jax.models.attention import choose_backend, segment_attend
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.models.sharding import make_mesh
from leafe_jax.runtime import console
from leafe_jax.runtime.startup import prefer_cpu

PROMPTS = (
    "You arrive at drawer 1. The drawer 1 is closed.",
    "def add(a, b):\n    return a + b\n",
    "Résumé: 3.14159 ≈ π; 你好，世界。 " * 12,
)
_TOLERANCE = 1e-4
_MARGIN = 1.1  # allowed rounding error in bfloat16, relative to that of transformers


def prompt_ids(path: str, config: ModelConfig) -> list[np.ndarray]:
    """int32 ids of the prompts; random ids if the directory has no tokenizer."""
    try:
        tokenizer = load_tokenizer(path, config.vocab_size)
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in PROMPTS]
    except UserError as error:
        if "no tokenizer there" not in str(error):
            raise
        rng = np.random.default_rng(0)
        ids = [rng.integers(0, config.vocab_size, n).tolist() for n in (16, 16, 128)]
    return [np.asarray(i[: config.max_position_embeddings], np.int32) for i in ids if i]


def our_logits(
    path: str, config: ModelConfig, prompts: list[np.ndarray], dtype: str
) -> tuple[list[np.ndarray], float, str]:
    """Our logits: (float32 [T, V] of each prompt, seconds to load, attention backend)."""
    jax.devices()  # starts the backend, which must not count as loading time
    begin = time.perf_counter()
    params = jax.block_until_ready(hf.load_params(path, config, dtype))
    seconds = time.perf_counter() - begin
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    backend = choose_backend("auto", config, dtype, mesh)

    @jax.jit
    def forward(params, tokens):
        attend = segment_attend(jnp.ones_like(tokens), backend, mesh)
        positions = jnp.arange(tokens.shape[1])[None]
        states = decoder.hidden(config, params, tokens, positions, attend)
        return decoder.head(config, params, states)[0]

    # True float32 products: the default on accelerators is faster and less precise.
    with jax.default_matmul_precision("float32" if dtype == "float32" else "default"):
        return [np.asarray(forward(params, p[None])) for p in prompts], seconds, backend


def their_logits(
    path: str, prompts: list[np.ndarray], dtypes: tuple[str, ...]
) -> tuple[dict[str, list[np.ndarray]], float]:
    """Logits of transformers: (dtype -> float32 [T, V] of each prompt, seconds to load)."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise UserError(f"the comparison needs torch: pip install torch ({error})") from error
    found, seconds = {}, 0.0
    for dtype in dtypes:
        begin = time.perf_counter()
        try:
            # Explicit, so that transformers runs no code from the directory and no kernel from the hub.
            model = AutoModelForCausalLM.from_pretrained(
                path, dtype=getattr(torch, dtypes[-1]), local_files_only=True,
                trust_remote_code=False, use_safetensors=True, attn_implementation="sdpa",
            )  # fmt: skip
        except Exception as error:  # transformers passes on any exception of its dependencies
            raise UserError(f"{path}: transformers cannot open it: {first_line(error)}") from error
        seconds = time.perf_counter() - begin
        # Both dtypes start from the same rounded weights, so they differ only in the arithmetic.
        model = model.to(getattr(torch, dtype)).eval()
        with torch.no_grad():
            found[dtype] = [
                model(torch.from_numpy(p[None]).long()).logits[0].float().numpy() for p in prompts
            ]
        del model
    return found, seconds


def compare(path: str, dtype: str) -> dict[str, Any]:
    """All figures of the comparison. The module's docstring defines "agree".

    Raises:
      UserError: the checkpoint cannot be read, or torch is not installed.
    """
    config = hf.read_config(path)
    prompts = prompt_ids(path, config)
    ours, our_seconds, backend = our_logits(path, config, prompts, dtype)
    dtypes = ("float32",) if dtype == "float32" else ("float32", dtype)
    theirs, their_seconds = their_logits(path, prompts, dtypes)
    mine, exact = np.concatenate(ours), np.concatenate(theirs["float32"])
    rounded = np.concatenate(theirs[dtype])
    scale = max(1.0, float(np.abs(exact).max()))
    error, their_error = _rms(mine - exact), _rms(rounded - exact)
    if dtype == "float32":
        limit, found = _TOLERANCE * scale, float(np.abs(mine - exact).max())
    else:
        limit, found = _MARGIN * their_error, error
    return {
        "model": path,
        "model_type": config.model_type,
        "dtype": dtype,
        "device": jax.devices()[0].device_kind,
        "attention": backend,
        "tokens": int(sum(map(len, prompts))),
        "max_abs_logit": float(np.abs(exact).max()),
        "max_abs_difference": float(np.abs(mine - exact).max()),
        "rms_difference": error,
        "rms_difference_of_transformers_in_this_dtype": their_error,
        "same_argmax": float(np.mean(mine.argmax(-1) == rounded.argmax(-1))),
        "measured": found,
        "limit": limit,
        "agree": bool(np.isfinite(mine).all() and found <= limit),
        "load_seconds": our_seconds,
        "transformers_load_seconds": their_seconds,
    }


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x.astype(np.float64)))))


def _table(figures: dict[str, Any]) -> str:
    what = "largest difference" if figures["dtype"] == "float32" else "rounding error, rms"
    lines = [
        f"model               {figures['model']} ({figures['model_type']})",
        f"computed in         {figures['dtype']} on {figures['device']}, attention: {figures['attention']}",
        f"prompts             {figures['tokens']} tokens, logits up to {figures['max_abs_logit']:.3g}",
        f"{what:<19} {figures['measured']:.3g} (limit {figures['limit']:.3g})",
        f"same best token     {100 * figures['same_argmax']:.1f}% of positions",
        f"loading             {figures['load_seconds']:.2f} s here,"
        f" {figures['transformers_load_seconds']:.2f} s in transformers (mapped, not yet read)",
        "verdict             " + ("AGREE" if figures["agree"] else "DISAGREE"),
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m leafe_jax.tools.parity", description="compare logits with transformers"
    )
    parser.add_argument("--model", required=True, help="a Hugging Face model directory")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    options = parser.parse_args(argv)
    if prefer_cpu():
        jax.config.update("jax_platforms", "cpu")
    try:
        figures = compare(str(Path(options.model)), options.dtype)
    except UserError as error:
        console.complain(error)
        return 2
    console.say(json.dumps(figures, indent=1) if options.json else _table(figures))
    return 0 if figures["agree"] else 1


if __name__ == "__main__":
    sys.exit(main())
