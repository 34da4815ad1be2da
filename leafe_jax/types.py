"""Records that cross modules, and their JSON form (one tree a line; docs/FORMATS.md)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from leafe_jax.errors import UserError

# 2 (since 2026-12): `experiences` of a turn, `replayed_steps` of a budget, `cut` of a reflection.
TREE_SCHEMA = 2

# Arrays of a packed batch, beside the columns that an objective asks for.
PACKED = ("tokens", "targets", "positions", "segment_ids", "source", "mass")

# Columns of an example, and ENTROPY, which the train step computes.
ADVANTAGE = "advantage"
BEHAVIOUR = "behaviour_logprob"
REFERENCE = "reference_logprob"
TEACHER = "teacher_logprob"
SAMPLER_WEIGHT = (
    "sampler_weight"  # trainer's to sampler's probability of a sampled token, truncated
)
ENTROPY = "entropy"


def _is_id(value: Any) -> bool:
    """A token id of some model; True is an int in Python, and would be token 1."""
    return type(value) is int and 0 <= value < 2**31


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; the order of the options is leafe_jax.sampling.draw'.

    Attributes:
      temperature: 0 is greedy.
      top_k: only the k likeliest tokens; 0 keeps all.
      top_p: only the likeliest tokens that together have this probability, in (0, 1].
      min_p: only tokens at least this many times as likely as the likeliest, in [0, 1].
      repetition_penalty: what stands in the context already: its logit is divided by this if it is
        positive and multiplied if not (arXiv 1909.05858); 1 leaves it.
      logit_bias: (token id, value added to its logit) pairs.
      stop_ids: token ids that end a reply, beside the chat format's own.
      stop_strings: texts that end a reply; the token that completes one is the last.

    Raises:
      UserError: a value out of range, named as the config field.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    stop_ids: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """The distribution is the model's at a temperature."""
        return self == Sampling(
            self.temperature, stop_ids=self.stop_ids, stop_strings=self.stop_strings
        )

    @property
    def unchanged(self) -> bool:
        """The distribution is the model's own: plain, at temperature 1."""
        return self.plain and self.temperature == 1

    def __post_init__(self) -> None:
        rules = (
            ("temperature", 0 <= self.temperature < math.inf, "a finite number, at least 0"),
            ("top_k", isinstance(self.top_k, int) and self.top_k >= 0, "a whole number, 0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "finite and above 0"),
        )
        for name, fits, allowed in rules:
            if not fits:
                raise UserError(f"sampler.{name} = {getattr(self, name)!r}: must be {allowed}")
        for pair in self.logit_bias:
            if not (
                isinstance(pair, (tuple, list))
                and len(pair) == 2
                and _is_id(pair[0])
                and isinstance(pair[1], (int, float))
                and math.isfinite(pair[1])
            ):
                raise UserError(f"sampler.logit_bias: {pair!r}: must be (token id, finite number)")
        texts = isinstance(self.stop_strings, tuple) and all(
            isinstance(v, str) and v != "" for v in self.stop_strings
        )
        ids = isinstance(self.stop_ids, tuple) and all(map(_is_id, self.stop_ids))
        for name, fits, allowed in (("stop_ids", ids, "ids"), ("stop_strings", texts, "texts")):
            if not fits:
                raise UserError(
                    f"sampler.{name} = {getattr(self, name)!r}: must be a tuple of {allowed}"
                )


@dataclasses.dataclass
class Turn:
    """One step a_t, token-exact.

    Attributes:
      step: 1-based step number t.
      observation: o_t as the environment said it.
      experiences: every e that this turn's prompt showed, in order. In dialogue mode that is the message
        of this turn: earlier messages still show theirs. In window mode it is every e in view.
      prompt_ids: ids appended before sampling (window mode: the whole context).
      plain_prompt_ids: the same turn rendered without any e; None when none was shown.
      action_ids: sampled ids, the stop token included.
      logprobs: their log-probabilities under the model at sampling time (temperature 1, all tokens).
      text: decoded reply.
      action: what the parser made of it.
      valid: the reply was well formed and the environment understood the action.
      reward: reward of the step.
      sampled_logprobs: log-probabilities under the distribution sampled from; None (and absent in the
        JSON) if that is the model's own, so that they equal `logprobs`.
    """

    step: int
    observation: str
    experiences: list[str]
    prompt_ids: list[int]
    plain_prompt_ids: list[int] | None
    action_ids: list[int]
    logprobs: list[float]
    text: str
    action: str
    valid: bool
    reward: float
    sampled_logprobs: list[float] | None = None


@dataclasses.dataclass
class ReflectionRecord:
    """One call of the policy with p_refl.

    Attributes:
      step: the number of the step that would come next when it was asked.
      prompt_ids, ids, logprobs, text, sampled_logprobs: as in Turn.
      status: why it did or did not open a branch: "branched"; "no_mistake" (the model says that nothing
        was wrong); "unparsable" (no (tau, e) in the reply); "out_of_range" (tau is no step of this
        trajectory); "duplicate" (the same (tau, e) was followed from it before); "context"
        (there was no room left to ask); "unsure" (linear rollback: its tokens were too improbable);
        "explained" (alternatives: it says why the expert's action is better; `experience` is that).
      tau: 1-based step to go back to, when parsed.
      experience: e, when parsed.
      child: id of the node it opened, or None.
      cut: the answer is incomplete: the token limit ended it, or e was longer than allowed.
    """

    step: int
    prompt_ids: list[int]
    ids: list[int]
    logprobs: list[float]
    text: str
    status: str
    tau: int | None = None
    experience: str | None = None
    child: int | None = None
    cut: bool = False
    sampled_logprobs: list[float] | None = None


@dataclasses.dataclass
class Node:
    """A trajectory of the tree, from its branch step on; the steps before are its ancestors'.

    Attributes:
      id: number within the tree, in order of creation.
      parent, branch_step: the trajectory it left and the step tau at which; None for a root.
      depth: branches on the way from the root.
      kind: "root", "branch", "retry" (iterative refinement starts over), "expert" (its actions were given,
        not sampled; their logprobs are 0) or "alternative" (one action at an expert's step).
      experience: the e that opened it; None for a root, and for a retry without a new e.
      turns: its own turns.
      final_observation: what the last action brought.
      return_: sum of rewards along the whole path, prefix included.
      success, done: as the environment says.
      stop: "success", "failure", "branched" (left for a branch), "context", "budget" or "one_step" (an
        alternative whose game would go on).
      reflections: reflections on it.
    """

    id: int
    parent: int | None
    branch_step: int | None
    depth: int
    kind: str
    experience: str | None
    turns: list[Turn] = dataclasses.field(default_factory=list)
    final_observation: str = ""
    return_: float = 0.0
    success: bool = False
    done: bool = False
    stop: str = ""
    reflections: list[ReflectionRecord] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Budget:
    """What was spent, and how much may be; every method counts in the same units.

    The limits are attributes but no fields: JSON, sums and comparisons are of what was spent.

    Attributes:
      env_steps: environment steps.
      generated_tokens: sampled tokens.
      prefilled_tokens: prompt tokens computed.
      cached_tokens: prompt tokens found in the cache.
      episodes: trajectories begun, branches included.
      reflections: reflection calls.
      replayed_steps: environment steps played again to bring an environment without snapshots back to
        h_tau: tau - 1 a branch, whatever live simulators save.
      max_env_steps: most environment steps, replayed ones included; 0: no limit.
      max_generated_tokens: most sampled tokens; 0: no limit.
    """

    env_steps: int = 0
    generated_tokens: int = 0
    prefilled_tokens: int = 0
    cached_tokens: int = 0
    episodes: int = 0
    reflections: int = 0
    replayed_steps: int = 0
    # Without annotations, so that they are no fields.
    max_env_steps = 0
    max_generated_tokens = 0

    @classmethod
    def within(cls, *, max_env_steps: int = 0, max_generated_tokens: int = 0) -> Budget:
        """A budget of which nothing is spent yet; a limit of 0 is none.

        Raises:
          ValueError: a limit is negative.
        """
        if min(max_env_steps, max_generated_tokens) < 0:
            raise ValueError(
                f"budget: max_env_steps = {max_env_steps}, max_generated_tokens ="
                f" {max_generated_tokens}: must be at least 0"
            )
        budget = cls()
        budget.max_env_steps, budget.max_generated_tokens = max_env_steps, max_generated_tokens
        return budget

    @property
    def spent(self) -> bool:
        """Whether a limit is reached; a step or reply that has begun may go beyond it."""
        return not self.has_room(1) or (0 < self.max_generated_tokens <= self.generated_tokens)

    def has_room(self, env_steps: int) -> bool:
        """True if `env_steps` more environment steps fit within max_env_steps."""
        taken = self.env_steps + self.replayed_steps
        return not self.max_env_steps or taken + env_steps <= self.max_env_steps

    def add(self, other: Budget) -> None:
        """Adds what the other has spent."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@dataclasses.dataclass
class Tree:
    """Everything stage 1 did on one task."""

    env: str
    task_id: str
    family: str
    seed: int
    mode: str
    nodes: list[Node] = dataclasses.field(default_factory=list)
    budget: Budget = dataclasses.field(default_factory=Budget)

    def path(self, node: Node) -> list[Turn]:
        """All turns that led to the end of `node`, the shared prefix first."""
        parts, end = [node.turns], node.branch_step
        while node.parent is not None and end is not None:
            before = end
            node = self.nodes[node.parent]
            parts.append([turn for turn in node.turns if turn.step < before])
            end = before if node.branch_step is None else min(before, node.branch_step)
        return [turn for part in reversed(parts) for turn in part]

    def to_json(self) -> dict[str, Any]:
        data = {"schema": TREE_SCHEMA, **dataclasses.asdict(self)}
        for node in data["nodes"]:
            node["return"] = node.pop("return_")
            for record in (*node["turns"], *node["reflections"]):
                for name in _ABSENT_IF_NONE:
                    if record[name] is None:
                        del record[name]
        return data

    @classmethod
    def from_json(cls, data: Any) -> Tree:
        """Inverse of `to_json`.

        Raises:
          ValueError: the schema is another; or a field is missing, of the wrong type or not finite; or
            nodes, steps or lengths contradict each other. The message names node, turn and field.
        """
        if not isinstance(data, dict):
            raise ValueError(f"expected an object, found {type(data).__name__}")
        if data.get("schema") != TREE_SCHEMA:
            raise ValueError(f"tree schema {data.get('schema')!r}: must be {TREE_SCHEMA}")
        fields = {name: value for name, value in data.items() if name != "schema"}
        tree = _record(cls, fields, "tree")
        tree.budget = _record(Budget, tree.budget, "budget")
        tree.nodes = [_node(node, f"node {i}") for i, node in enumerate(tree.nodes)]
        _check_shape(tree)
        return tree


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _text(value: Any) -> bool:
    return type(value) is str


# What the elements of a list have to be.
_ELEMENTS = {"list[int]": _is_id, "list[float]": _number, "list[str]": _text}


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: type(value) is list and all(map(fits, value))


_ABSENT_IF_NONE = ("sampled_logprobs",)

# What a field's annotation asks of its JSON value, and how a message says it.
_JSON = {
    "int": (lambda v: type(v) is int, "a whole number"),
    "float": (_number, "a finite number"),
    "bool": (lambda v: type(v) is bool, "true or false"),
    "str": (_text, "text"),
    "list[int]": (_list_of(_is_id), "a list of token ids"),
    "list[float]": (_list_of(_number), "a list of finite numbers"),
    "list[str]": (_list_of(_text), "a list of texts"),
    "Budget": (lambda v: type(v) is dict, "an object"),
}


def _record(kind: type, data: Any, where: str) -> Any:
    """A record of the dataclass `kind`, whose records within are still JSON."""
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected an object, found {type(data).__name__}")
    fields = {field.name: str(field.type) for field in dataclasses.fields(kind)}
    missing = fields.keys() - data.keys() - set(_ABSENT_IF_NONE)
    for name in (*sorted(missing), *sorted(data.keys() - fields.keys())):
        raise ValueError(
            f"{where}: {name.rstrip('_')}: {'missing' if name in fields else 'unknown'}"
        )
    for name, annotation in fields.items():
        if name not in data:
            continue
        value, base = data[name], annotation.removesuffix(" | None")
        if value is None and base != annotation:
            continue
        fits, allowed = _JSON.get(base, (lambda v: type(v) is list, "a list"))
        if not fits(value):
            bad = value
            if base in _ELEMENTS and isinstance(value, list):
                bad = next(v for v in value if not _ELEMENTS[base](v))
            raise ValueError(f"{where}: {name.rstrip('_')} = {str(bad)[:60]!r}: must be {allowed}")
    return kind(**data)


def _node(data: Any, where: str) -> Node:
    if isinstance(data, dict) and "return" in data:
        data = {("return_" if name == "return" else name): v for name, v in data.items()}
    node = _record(Node, data, where)
    node.turns = [_record(Turn, t, f"{where}, turn {i}") for i, t in enumerate(node.turns)]
    node.reflections = [
        _record(ReflectionRecord, r, f"{where}, reflection {i}")
        for i, r in enumerate(node.reflections)
    ]
    for name, said in (("turn", node.turns), ("reflection", node.reflections)):
        for i, record in enumerate(said):
            ids = record.action_ids if name == "turn" else record.ids
            for field in ("logprobs", "sampled_logprobs"):
                values = getattr(record, field)
                if values is not None and len(values) != len(ids):
                    raise ValueError(
                        f"{where}, {name} {i}: {len(values)} {field} for {len(ids)} ids"
                    )
    return node


def _check_shape(tree: Tree) -> None:
    """Nodes are numbered, parents come first, and the steps of every path are 1, 2, 3 and so on."""
    last: list[int] = []  # step of each node's path
    for number, node in enumerate(tree.nodes):
        if node.id != number:
            raise ValueError(f"node {number}: id = {node.id}: must be {number}")
        first = 1
        if node.parent is not None:
            if not 0 <= node.parent < number:
                raise ValueError(f"node {number}: parent = {node.parent}: must be an earlier node")
            if node.branch_step is None or not 1 <= node.branch_step <= last[node.parent]:
                raise ValueError(
                    f"node {number}: branch_step = {node.branch_step}: must be a step of node"
                    f" {node.parent}"
                )
            first = node.branch_step
        for index, turn in enumerate(node.turns):
            if turn.step != first + index:
                raise ValueError(
                    f"node {number}, turn {index}: step = {turn.step}: must be {first + index}"
                )
        last.append(first + len(node.turns) - 1)


@dataclasses.dataclass(frozen=True)
class Example:
    """One training sequence.

    Attributes:
      ids: int32 [n] tokens.
      mass: float32 [n]; mass[i] > 0 trains the prediction of ids[i] from ids[:i], so mass[0] is 0.
      source: index into the run's sources, e.g. counterfactual and rehearsal.
      columns: name -> float32 [n], what an objective needs for each token beside its mass, e.g. its
        advantage; column[i] belongs to ids[i], like mass[i].
    """

    ids: np.ndarray
    mass: np.ndarray
    source: int
    columns: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.mass) or len(self.ids) < 2 or self.mass[0] != 0:
            raise ValueError("an example needs two ids or more, as many masses, and mass[0] == 0")
        if not (np.isfinite(self.mass).all() and np.min(self.mass) >= 0):
            raise ValueError("an example's masses must be finite and at least 0")
        for name, values in self.columns.items():
            if not (name.isidentifier() and name.isascii()) or name in PACKED:
                raise ValueError(
                    f"an example's column {name!r}: must be an ASCII identifier other than"
                    f" {', '.join(PACKED)}"
                )
            if values.dtype != np.float32 or values.shape != (len(self.ids),):
                raise ValueError(
                    f"an example's column {name}: {values.dtype} {values.shape}: must be float32"
                    f" ({len(self.ids)},)"
                )
            if not np.isfinite(values).all():
                raise ValueError(f"an example's column {name} must be finite")
