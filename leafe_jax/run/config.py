"""A run's settings: every section is a frozen dataclass with defaults, and one comment per field.

The command line works on a ConfigDict made from these (`default_config`); `RunConfig.read` turns it back
into checked values. The sections of methods are in leafe_jax/methods/, that of training in
leafe_jax/training/settings.py, of the search in leafe_jax/methods/search.py.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from envs.prompts import PromptsConfig
from leafe_jax.agent.rollout import RolloutConfig
from leafe_jax.bootstrap.config import BootstrapConfig
from leafe_jax.errors import UserError
from leafe_jax.methods import base
from leafe_jax.methods.search import SearchConfig
from leafe_jax.runtime.settings import build
from leafe_jax.types import Sampling

PHASES = ("bootstrap", "habits", "explore", "fit", "evaluate", "report")
# Directories of a workdir that no variant can have.
_TAKEN = {"bootstrap", "habits", "trees", "evaluate", "report", "prompts", "explore", "distill"}


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """The model that the run starts from."""

    path: str = ""  # Hugging Face directory; "" is the embedded base model
    chat_template: str = ""  # Jinja file that replaces the checkpoint's; "" keeps that
    enable_thinking: bool = True  # given to templates that ask for it (Qwen3)
    dtype: str = "float32"  # of weights and cache while sampling: float32 or bfloat16


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    """The environment."""

    name: str = "household"  # one of envs.REGISTRY
    horizon: int = 20  # environment steps per episode (T)
    options: dict[str, Any] = dataclasses.field(default_factory=dict)  # the environment's own


@dataclasses.dataclass(frozen=True)
class ContextConfig:
    """How a history is rendered."""

    mode: str = "dialogue"  # dialogue (one growing conversation) or window (rebuilt every step)
    window: int = 2  # observation-action pairs shown in window mode (verl-agent: 2)


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """The sampler: how much it holds, and how tokens are drawn."""

    # Conversations computed together; 0: on CPU 128, on an accelerator up to 256, as many as its memory
    # has room for at half of max_len.
    num_slots: int = 0
    page_size: int = 16  # positions per cache page
    # Of the pool; 0: on CPU room for num_slots conversations of max_len, on an accelerator what fits.
    num_pages: int = 0
    # With a 0 above, the share of an accelerator's memory, free beside the weights, that is filled. More
    # holds more cached prefixes; the rest is for the programs' code and for errors of the estimate.
    memory_share: float = 0.85
    max_len: int = 384  # tokens per conversation
    turn_chunk: int = 16  # prompt tokens computed together with decoding
    prefill_chunk: int = 32  # prompt tokens per prefill call
    max_action_tokens: int = 8  # sampled tokens per action
    temperature: float = 1.0  # of actions and reflections while exploring
    top_k: int = 0  # while exploring: only the k likeliest tokens; 0 keeps all
    top_p: float = 1.0  # while exploring: only the likeliest tokens with this probability together
    # What follows holds in evaluation, too.
    min_p: float = 0.0  # only tokens at least this many times as likely as the likeliest
    repetition_penalty: float = 1.0  # on tokens that are in the context; 1 is none
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, value added to its logit) pairs
    stop_ids: tuple[int, ...] = ()  # token ids that end a reply, beside the checkpoint's own
    stop_strings: tuple[str, ...] = ()  # texts that end a reply
    copies: int = 0  # of the model; 0: as many as this process has devices for
    tensor: int = 1  # devices that share one copy
    attention: str = "auto"  # gather (contiguous rows), paged (in place); auto: paged on TPU
    compile_ahead: bool = True  # compile the sampler's programs in the background

    def sampling(self) -> Sampling:
        """How actions and reflections are drawn while exploring; UserError names a bad field."""
        return Sampling(
            self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty,
            self.logit_bias, self.stop_ids, self.stop_strings,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """The evaluation: plain episodes on held-out tasks."""

    split: str = "test"  # held-out tasks
    num_tasks: int = 48  # the split's first tasks; 0 takes all
    num_samples: int = 128  # episodes per task: n of Pass@k
    block_size: int = 12  # tasks evaluated together
    temperature: float = 1.0  # 0 takes the likeliest token (verl-agent validates at 0.4)
    top_k: int = 0  # only the k likeliest tokens; 0 keeps all
    top_p: float = 1.0  # only the likeliest tokens that together have this probability


@dataclasses.dataclass(frozen=True)
class HabitsConfig:
    """The phase `habits`, which measures a model against the scripted players."""

    reflect_every: int = 8  # K of the measured reflections, in steps
    experience_span: str = "branch"  # as search.<name>.experience_span


@dataclasses.dataclass(frozen=True)
class Variant:
    """A method once more, under another name and with settings of its own."""

    method: str  # one of methods.base.REGISTRY
    settings: Any  # an instance of the method's Config


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """All settings of a run.

    Attributes:
      seed: every random choice of the run is derived from it by name.
      phases: what to do, in this order: some of PHASES.
      methods: what is fitted and evaluated: names of methods.base.REGISTRY and of `variants`.
      search: the searches, by name; methods that name the same one share its trees.
      method: the settings of every registered method, by name: the sections `config.<name>`.
      variants: further instances of methods, by name: the sections `config.variants.<name>`, each with
        a field `method` and that method's fields.
    """

    seed: int = 0
    phases: tuple[str, ...] = ("explore", "fit", "evaluate", "report")
    methods: tuple[str, ...] = ("base", "leafe")
    model: CheckpointConfig = CheckpointConfig()
    env: EnvConfig = EnvConfig()
    prompts: PromptsConfig = PromptsConfig()
    context: ContextConfig = ContextConfig()
    sampler: SamplerConfig = SamplerConfig()
    search: dict[str, SearchConfig] = dataclasses.field(
        default_factory=lambda: {"tree": SearchConfig()}
    )
    evaluate: EvaluateConfig = EvaluateConfig()
    habits: HabitsConfig = HabitsConfig()
    bootstrap: BootstrapConfig | None = None
    method: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {name: base.find(name).Config() for name in base.REGISTRY}
    )
    variants: dict[str, Variant] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, config: ml_collections.ConfigDict) -> RunConfig:
        """The settings of a ConfigDict.

        Raises:
          UserError: names the first field that is unknown, of the wrong type or out of range.
        """
        given = config.to_dict()
        known = {field.name for field in dataclasses.fields(cls)} - {"method", "search", "variants"}
        searches = {
            name: _named("search.", f"search.{name}.", SearchConfig, section)
            for name, section in given.pop("search", {}).items()
        }
        methods: dict[str, Any] = {
            name: build(base.find(name).Config, given.pop(name, {}), name) for name in base.REGISTRY
        }
        variants = {
            name: _variant(name, section) for name, section in given.pop("variants", {}).items()
        }
        rest = build(cls, {k: v for k, v in given.items() if k in known}, "")
        for name in given:
            if name not in known:
                raise UserError(f"{name}: there is no such field")
        return dataclasses.replace(rest, search=searches, method=methods, variants=variants)

    def find(self, name: str) -> base.Method:
        """A method or variant with its settings.

        Raises:
          UserError: there is none of this name.
        """
        if name in self.variants:
            variant = self.variants[name]
            return base.find(variant.method)(variant.settings, name)
        if name not in self.method:
            known = ", ".join((*self.method, *self.variants))
            raise UserError(f"methods = {name!r}: must be one of {known}")
        return base.find(name)(self.method[name])

    def exploring(self, search: SearchConfig) -> RolloutConfig:
        """How turns are sampled in a search. All searches share their sampling keys, so that they differ by
        their rules alone."""
        return self.rollout("explore", self.sampler.sampling(), search.experience_span)

    def evaluating(self) -> RolloutConfig:
        """How turns are sampled in an evaluation. All methods share the keys, so that they differ by their
        weights alone."""
        return self.rollout("evaluate", self.evaluate_sampling(), experience_span="branch")

    def evaluate_sampling(self) -> Sampling:
        """How actions are drawn in an evaluation; UserError names a bad field."""
        own = {name: getattr(self.evaluate, name) for name in ("temperature", "top_k", "top_p")}
        exploring = self.sampler.sampling()  # outside: its errors are those of `sampler`
        try:
            return dataclasses.replace(exploring, **own)
        except UserError as error:  # Sampling knows these fields by their names in `sampler`
            raise UserError(str(error).replace("sampler.", "evaluate.", 1)) from error

    @property
    def needs_options(self) -> bool:
        """True if the sampler needs programs that can draw from more than the plain distribution."""
        return not (self.sampler.sampling().plain and self.evaluate_sampling().plain)

    def rollout(self, purpose: str, sampling: Sampling, experience_span: str) -> RolloutConfig:
        """How turns are rendered and sampled; `purpose` is part of every sampling key's name."""
        return RolloutConfig(
            mode=self.context.mode,
            window=self.context.window,
            experience_span=experience_span,
            sampling=sampling,
            max_action_tokens=self.sampler.max_action_tokens,
            seed=self.seed,
            purpose=purpose,
        )


def _variant(name: str, section: Mapping[str, Any]) -> Variant:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name in _TAKEN or name in base.REGISTRY:
        raise UserError(
            f"variants.{name}: must be lower-case letters, digits and _, and not the name of a method"
            f" or of {', '.join(sorted(_TAKEN))}"
        )
    fields = dict(section)
    method = fields.pop("method", None)
    if method not in base.REGISTRY:
        raise UserError(
            f"variants.{name}.method = {method!r}: must be one of {', '.join(base.REGISTRY)}"
        )
    kind = base.find(method).Config
    return Variant(method, _named(f"{method}.", f"variants.{name}.", kind, fields))


def _named(said: str, meant: str, kind: type, section: Mapping[str, Any]) -> Any:
    """`build`, with a section's full name in its messages: the dataclass does not know it."""
    try:
        return build(kind, section, meant.rstrip("."))
    except UserError as error:
        text = str(error)
        raise UserError(text if meant in text else text.replace(said, meant, 1)) from error


# -- for the command line --------------------------------------------------------------------------
def default_config() -> ml_collections.ConfigDict:
    """The defaults, as the ConfigDict that config files change and the command line overrides."""
    return to_config_dict(RunConfig())


def to_config_dict(settings: Any) -> ml_collections.ConfigDict:
    """A dataclass of settings as a ConfigDict; sections that are None are left out."""
    made = ml_collections.ConfigDict()
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if isinstance(settings, RunConfig) and field.name == "method":
            for name, section in value.items():
                if dataclasses.fields(section):
                    made[name] = to_config_dict(section)
        elif isinstance(settings, RunConfig) and field.name == "variants":
            made[field.name] = ml_collections.ConfigDict()
            for name, variant in value.items():
                made[field.name][name] = to_config_dict(variant.settings)
                made[field.name][name].method = variant.method
        elif value is not None:
            made[field.name] = _plain(value)
    return made


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_config_dict(value)
    if isinstance(value, dict):
        return ml_collections.ConfigDict({k: _plain(v) for k, v in value.items()})
    return value
