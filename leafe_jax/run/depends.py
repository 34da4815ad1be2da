"""What a result depends on: the order of work, and the fields that may not change once it is made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from leafe_jax.errors import UserError
from leafe_jax.methods.on_policy import OnPolicy
from leafe_jax.run.config import RunConfig, to_config_dict

_SAMPLING = ("seed", "model", "env", "prompts", "context", "sampler")


_DEPENDS = {
    "bootstrap": ("seed", "model", "sampler.max_len", "bootstrap"),
    "habits": (*_SAMPLING, "bootstrap", "habits", "evaluate"),
}


# Fields that change where and how a result is computed, but not the result (up to rounding).
_CHANGEABLE = {
    "train": (
        "mesh", "remat", "scan_layers", "accumulation", "loss_chunk", "attention", "max_nonfinite",
        "checkpoint_every", "log_every", "notice_url",
    ),
    "sampler": (
        "tensor", "copies", "num_slots", "num_pages", "memory_share", "page_size", "turn_chunk",
        "prefill_chunk", "attention", "compile_ahead",
    ),
}  # fmt: skip


_CHANGEABLE_FIELD = re.compile(
    "|".join(rf"\b{section}\.({'|'.join(names)})(\.|$)" for section, names in _CHANGEABLE.items())
)


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Field -> value of a dataclass of settings, nested names joined by dots, tuples as lists."""
    return _flatten(to_config_dict(settings), prefix)


def _flatten(section: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in sorted(section.items()):
        if hasattr(value, "items"):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def closure(config: RunConfig, name: str) -> list[str]:
    """A method or "trees/<search>" and all that it reads, what is read first standing first.

    Raises:
      UserError: it reads a search or a method that is not there, or itself.
    """
    order: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise UserError(f"methods: {' reads '.join((*above, name))}: must end somewhere")
        if name in order:
            return
        for needed in reads(config, name):
            visit(needed, (*above, name))
        order.append(name)

    visit(name, ())
    return order


def reads(config: RunConfig, name: str) -> tuple[str, ...]:
    """What a method or "trees/<search>" reads itself."""
    kind, _, search = name.partition("/")
    if kind != "trees":
        return config.find(name).reads
    if search not in config.search:
        raise UserError(
            f"search.{search}: missing; the searches of this config are {', '.join(config.search)}"
        )
    return (config.search[search].agent,)


def _section(config: RunConfig, name: str) -> str:
    """The section of the config that has the settings of a method, variant or "trees/<search>"."""
    if name in config.variants:
        return f"variants.{name}"
    return name.replace("trees/", "search.")


def relevant(config: RunConfig, phase: str) -> dict[str, Any]:
    """The fields that a phase's result depends on.

    Not among them: which methods are fitted, the gate (what is measured is the same), and what may
    change between two starts, such as the mesh.

    Args:
      config: the settings.
      phase: "bootstrap", "habits", "trees/<search>", a method, or "evaluate/<method>".
    """
    sections = _DEPENDS.get(phase)
    if sections is None:
        evaluated = phase.removeprefix("evaluate/")
        own = [_section(config, part) for part in closure(config, evaluated)]
        sections = (*_SAMPLING, *own, *(["evaluate"] * (evaluated != phase)))
    return {
        name: value
        for name, value in flatten(config).items()
        if any(name == s or name.startswith(s + ".") for s in sections)
        and not name.startswith("bootstrap.gate.")
        and not _CHANGEABLE_FIELD.search(name)
    }


def without_seed(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a flattened config that decide a run's numbers, its seed apart: runs that agree on them
    are runs of one experiment with several seeds.

    Args:
      flat: field -> value, as `flatten` and results.json have it.
    """
    return {
        name: value
        for name, value in flat.items()
        if name not in ("seed", "phases", "methods") and not _CHANGEABLE_FIELD.search(name)
    }


def methods_behind(config: RunConfig, names: Iterable[str]) -> list[str]:
    """Methods and all that these read; what is read first stands first."""
    parts = dict.fromkeys(part for name in names for part in closure(config, name))
    return [part for part in parts if not part.startswith("trees/")]


def fitted(config: RunConfig) -> list[str]:
    """The methods that this run fits, those that others read first."""
    wanted = list(config.methods) if "fit" in config.phases else []
    if "explore" in config.phases:
        wanted += [search.agent for search in config.search.values()]
    return methods_behind(config, wanted)


def searches(config: RunConfig) -> list[str]:
    """The searches that this run grows or reads, what is read first standing first."""
    wanted: list[str] = []
    if "explore" in config.phases:
        wanted += [f"trees/{name}" for name in config.search]
    if "fit" in config.phases:
        wanted += config.methods
    parts = dict.fromkeys(part for name in wanted for part in closure(config, name))
    return [part.removeprefix("trees/") for part in parts if part.startswith("trees/")]


def on_policy(config: RunConfig) -> list[OnPolicy]:
    """The methods that this run trains on their own rollouts."""
    wanted = config.methods if "fit" in config.phases else ()
    if "explore" in config.phases:
        wanted = (*wanted, *(search.agent for search in config.search.values()))
    parts = dict.fromkeys(part for name in wanted for part in closure(config, name))
    methods = [config.find(part) for part in parts if not part.startswith("trees/")]
    return [method for method in methods if isinstance(method, OnPolicy)]
