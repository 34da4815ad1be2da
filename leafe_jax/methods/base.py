"""What a method is: what it reads, how it is fitted, and the agent that it leaves.

A method is one file in this package and one line in `REGISTRY`. Its settings are one frozen dataclass,
which becomes the section `config.<name>`. docs/METHODS.md shows how to add one.
"""

from __future__ import annotations

import abc
import dataclasses
import importlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from envs.prompts import Prompts, PromptsConfig
from leafe_jax.agent.policy import Encoder
from leafe_jax.errors import UserError
from leafe_jax.methods.playbook import Playbook
from leafe_jax.training.settings import TrainConfig
from leafe_jax.types import Example, Tree

# Name -> module:class. A method's directory in the workdir has its name.
REGISTRY = {
    "ace": "leafe_jax.methods.ace:Ace",
    "base": "leafe_jax.methods.base:Base",
    "early_experience": "leafe_jax.methods.early_experience:EarlyExperience",
    "erl": "leafe_jax.methods.erl:ERL",
    "gigpo": "leafe_jax.methods.gigpo:GiGPO",
    "grpo": "leafe_jax.methods.grpo:GRPO",
    "leafe": "leafe_jax.methods.leafe:Leafe",
    "rft": "leafe_jax.methods.rft:RejectionFineTuning",
    "sdpo": "leafe_jax.methods.sdpo:SDPO",
}


@dataclasses.dataclass(frozen=True)
class Agent:
    """What is evaluated: a model and how it is prompted.

    Attributes:
      model: a directory in Hugging Face format.
      prompts: how observations become prompts.
    """

    model: Path
    prompts: Prompts


class Run(Protocol):
    """What a run offers a method; leafe_jax/run/experiment.py implements it."""

    seed: int
    prompts: Prompts

    def base_model(self) -> Path:
        """The model that the run starts from."""

    def encoder(self, method: str) -> Encoder:
        """Text as token ids, as the model of a method's agent reads it."""

    def agent_of(self, method: str) -> Agent:
        """The agent that a method has left."""

    def adapt(self, method: Method) -> bool:
        """Grows the playbook of a method, resumably, in the workdir; False if that was done before."""

    def playbook(self, method: Method) -> Playbook:
        """The playbook that a method has left."""

    def trees(self, search: str) -> Iterable[Tree]:
        """The trees of `config.search.<search>`, all of them; read anew at each iteration."""

    def fine_tune(self, method: FineTuned) -> bool:
        """Trains `method`, resumably, in the workdir; False if that was done before."""

    def practise(self, method: Method) -> bool:
        """Trains `method` (methods/on_policy.py) on its own rollouts, resumably, in the workdir; False if
        that was done before."""

    def trained_model(self, method: Method) -> Path:
        """The model that `method` has trained; the one it started from if it had no example."""


class Method(abc.ABC):
    """A way to get from a base model to an agent.

    Args:
      config: the method's own settings, an instance of `Config`.
      name: of a variant (`config.variants.<name>`); "" keeps the method's own.

    Attributes:
      name: in `config.methods`, in tables, and of the directory.
      Config: frozen dataclass of the settings, with defaults and checks.
    """

    name: str
    Config: ClassVar[type]

    def __init__(self, config: Any, name: str = ""):
        self.config = config
        self.name = name or self.name

    @property
    def reads(self) -> tuple[str, ...]:
        """What must be finished before `fit`: "trees/<search>", or another method's name. The fields
        that those depend on, this method depends on, too."""
        return ()

    def check(self, prompts: PromptsConfig) -> None:  # noqa: B027 - most go with any prompts
        """Refuses settings that do not go with the run's prompts, before any work.

        Raises:
          UserError: names the field.
        """

    @property
    def played(self) -> tuple[str, int] | None:
        """(split, number of tasks, 0 for all) that `fit` plays itself; None if it plays none."""
        return None

    @abc.abstractmethod
    def fit(self, run: Run) -> bool:
        """Does the work, resumably; False if it was done before."""

    @abc.abstractmethod
    def agent(self, run: Run) -> Agent:
        """What is evaluated; called after `fit`."""


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """The settings of a method that has none."""


class Base(Method):
    """The model that the run starts from, as it is."""

    name = "base"
    Config = NoSettings

    def fit(self, run: Run) -> bool:
        return False

    def agent(self, run: Run) -> Agent:
        return Agent(run.base_model(), run.prompts)


@dataclasses.dataclass(frozen=True)
class Made:
    """What a method makes of trees.

    Attributes:
      examples: to train on.
      duplicates: exact duplicates that were left out of them.
    """

    examples: list[Example]
    duplicates: int = 0


@dataclasses.dataclass(frozen=True)
class FineTuneConfig:
    """The settings that all methods share which fine-tune a model on trees."""

    start: str = "base"  # method whose model is trained
    trees: str = "tree"  # search whose trees the examples are made from
    normalisation: str = "example"  # loss: mean over (h_t, a_t) pairs, or over every "token"
    train: TrainConfig = TrainConfig()


class FineTuned(Method):
    """A method that fine-tunes a model on examples made from trees.

    Attributes:
      sources: names of the data sources, in the order of `Example.source`.
      labels: the same in words, for the report: "518 counterfactual pairs".
    """

    sources: ClassVar[tuple[str, ...]]
    labels: ClassVar[tuple[str, ...]]
    config: FineTuneConfig

    @property
    def reads(self) -> tuple[str, ...]:
        return (f"trees/{self.config.trees}", self.config.start)

    @property
    @abc.abstractmethod
    def weights(self) -> Sequence[float]:
        """Loss weight of each source; examples of a source with weight 0 are not trained on."""

    @abc.abstractmethod
    def examples(self, trees: Iterable[Tree], seed: int) -> Made:
        """Training examples; `trees` may be iterated several times."""

    @property
    def named_weights(self) -> dict[str, float]:
        """Source -> loss weight, in the order of `sources`."""
        return dict(zip(self.sources, self.weights, strict=True))

    def training_examples(self, trees: Iterable[Tree], seed: int) -> Made:
        """`examples`, without those of a source with weight 0."""
        made = self.examples(trees, seed)
        kept = [e for e in made.examples if self.weights[e.source] > 0]
        return dataclasses.replace(made, examples=kept)

    def fit(self, run: Run) -> bool:
        return run.fine_tune(self)

    def agent(self, run: Run) -> Agent:
        return Agent(run.trained_model(self), run.prompts)


def find(name: str) -> type[Method]:
    """The class of a method.

    Raises:
      UserError: there is none of this name.
    """
    if name not in REGISTRY:
        raise UserError(f"methods = {name!r}: must be one of {', '.join(REGISTRY)}")
    module, _, attribute = REGISTRY[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
