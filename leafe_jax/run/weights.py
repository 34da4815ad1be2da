"""Which model a phase takes, and that it is the same one at every start."""

from __future__ import annotations

from pathlib import Path

from etils import epath

from leafe_jax.errors import UserError
from leafe_jax.models import hf
from leafe_jax.run.phase import Phase
from leafe_jax.runtime import processes
from leafe_jax.runtime.files import checksum, fingerprint

BASE_MODEL = Path(__file__).parents[1] / "assets" / "base"


def base_model_path(config, workdir: epath.Path) -> Path:
    """The model that the run starts from: the workdir's own, where it makes or has made one."""
    made = (workdir / "bootstrap" / "phase.json").exists()
    if made or "bootstrap" in config.phases:
        return Path(workdir / "bootstrap" / "model")
    return given_model(config)


def given_model(config) -> Path:
    """`model.path`, or the embedded model."""
    return Path(config.model.path).expanduser() if config.model.path else BASE_MODEL


def check_model(path: Path | epath.Path) -> None:
    """Raises UserError if a directory holds no model."""
    hf.read_config(str(path))
    if not any(Path(path).glob("*.safetensors")):
        raise UserError(f"{path}: no .safetensors file there")


def note_model(config, phase: Phase, path: Path) -> None:
    """Refuses a model, or a chat template, whose content is another than when the phase began."""
    template = config.model.chat_template

    def look(_) -> dict[str, str]:
        digests = {"model": fingerprint(path)} if path.is_dir() else {}  # it may have gone since
        if template and Path(template).is_file():
            digests["chat_template"] = checksum(template)
        return digests

    digests = processes.together(f"{phase.name}: model", decide=look)
    for source, digest in digests.items():
        phase.made_of(source, digest, str(path) if source == "model" else template)


def trained_model(config, workdir: epath.Path) -> Path:
    """The model that the phase `distill` has left, whole.

    Raises:
      UserError: it has left one, but what is there now is damaged.
    """
    phase = Phase(workdir, "distill", config)

    def look(_) -> None:
        problem = phase.problem("model", check_model) if phase.done else None
        if problem is not None and phase.directory.joinpath("model").exists():
            raise UserError(f"{problem}; put 'distill' into --config.phases to make it again")

    processes.together("evaluate: model", decide=look)
    return Path(phase.directory / "model")
