"""ACE (arXiv 2510.04618): a playbook in the prompt that grows from reviews of episodes; no weight changes.

For each task the generator (the agent with the playbook) plays. The reflector reviews a failed episode,
tags the bullets that helped or harmed, and its key insight is shown in the next attempt, up to `max_rounds`
times. Then another attempt begins afresh, until the task's budget is spent. After a batch of tasks the
curator reads the last review of each series of attempts and adds bullets. Only ADD exists, as in ACE's
public code.

Where this differs from that code (github.com/ace-agent/ace): the tasks of a batch share a playbook
(`batch_size = 1` is ACE's own); an addition that would exceed the token budget is refused; duplicates are
found by shared words, not by an embedding; the reflector sees the whole playbook, and the generator names
no bullets. In the styles "plain" and "chat" a review is the search's own reflection (tau, e), and e becomes
a bullet without a curator: models that are trained to reply in one line know no other form.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from envs.base import Environment, Task
from envs.prompts import Prompts
from envs.reflections import Reflection
from leafe_jax.agent.policy import Policy, Request
from leafe_jax.agent.rollout import Episode, Rollout, RolloutConfig
from leafe_jax.agent.seeds import seed_for
from leafe_jax.errors import UserError
from leafe_jax.methods.base import Agent, Method, Run
from leafe_jax.methods.playbook import Playbook, Review, clean, read_operations, read_review
from leafe_jax.methods.search import Explorer, SearchConfig, grow
from leafe_jax.types import Budget, Tree

# What can become of a bullet, and of a curator's reply.
COUNTS = ("added", "duplicate", "full", "empty", "unreadable")


@dataclasses.dataclass(frozen=True)
class AceConfig:
    """Whose model plays, on which tasks, and how the playbook grows.

    Raises:
      UserError: a value is out of range.
    """

    start: str = "base"  # method whose model is used
    split: str = "train"  # tasks that are played
    num_tasks: int = 384  # the split's first tasks; 0 takes all
    max_env_steps: int = 60  # environment steps per task; 0: no limit
    max_generated_tokens: int = (
        0  # sampled tokens per task; reviews and curation included; 0: no limit
    )
    batch_size: int = 8  # tasks that are played with the same playbook (ACE: 1)
    max_rounds: int = 3  # reviews after which a task is attempted afresh (ACE)
    token_budget: int = 96  # most tokens of the playbook (ACE: 80,000)
    # Two bullets are duplicates if they share this much of their words. 1: the same words.
    duplicate_similarity: float = 0.9

    def __post_init__(self) -> None:
        for name, least in (
            ("num_tasks", 0), ("max_env_steps", 0), ("max_generated_tokens", 0), ("batch_size", 1),
            ("max_rounds", 0), ("token_budget", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise UserError(f"ace.{name} = {value!r}: must be an integer of at least {least}")
        if not (self.max_env_steps or self.max_generated_tokens):
            raise UserError(
                "ace.max_env_steps = 0: must be at least 1 where ace.max_generated_tokens is 0, or a task"
                " would not end"
            )
        if not 0 < self.duplicate_similarity <= 1:
            raise UserError(
                f"ace.duplicate_similarity = {self.duplicate_similarity!r}: must be above 0 and at most 1"
            )


class Ace(Method):
    """ACE."""

    name = "ace"
    Config = AceConfig
    config: AceConfig

    @property
    def reads(self) -> tuple[str, ...]:
        return (self.config.start,)

    @property
    def played(self) -> tuple[str, int]:
        return self.config.split, self.config.num_tasks

    def fit(self, run: Run) -> bool:
        return run.adapt(self)

    def agent(self, run: Run) -> Agent:
        model = run.agent_of(self.config.start).model
        return Agent(model, run.prompts.with_playbook(run.playbook(self)))


@dataclasses.dataclass(frozen=True)
class State:
    """What a batch of tasks begins with and leaves.

    Attributes:
      playbook: the playbook.
      counts: of COUNTS, and "reviews".
      budget: what all tasks so far have spent.
    """

    playbook: Playbook = Playbook()
    counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    budget: Budget = dataclasses.field(default_factory=Budget)

    def to_json(self) -> dict[str, Any]:
        return {
            "playbook": self.playbook.text,
            "last": self.playbook.last,
            "counts": dict(self.counts),
            "budget": dataclasses.asdict(self.budget),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> State:
        """Inverse of `to_json`.

        Raises:
          UserError, ValueError, KeyError, TypeError: it is none.
        """
        last, counts, budget = data["last"], data["counts"], Budget(**data["budget"])
        numbers = [last, *counts.values(), *dataclasses.astuple(budget)]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("a number of it is not a whole number, 0 or more")
        return cls(Playbook.parse(data["playbook"], last), dict(counts), budget)


@dataclasses.dataclass(frozen=True)
class _Reviewed:
    """A review and the series of attempts that it belongs to."""

    series: int  # id of the series' first node
    review: Review
    success: bool


class _Adapting(Explorer):
    """Attempts at tasks, and reviews of them."""

    def __init__(self, rollout: Rollout, ace: AceConfig, on_tree: Callable[[Tree], None]):
        rules = SearchConfig(
            method="refine", max_env_steps=ace.max_env_steps,
            max_generated_tokens=ace.max_generated_tokens,
        )  # fmt: skip
        super().__init__(rollout, rules, on_tree)
        self._rounds = ace.max_rounds
        self.plain = self.prompts.replies_in_lines
        self.reviews: dict[str, list[_Reviewed]] = collections.defaultdict(list)  # by task id

    def _another(self, tree: Tree, last: Episode) -> Episode | None:
        if last.node.depth >= self._rounds and last.turns:
            return self._root(tree)
        return super()._another(tree, last)

    def reflect_now(self, episode: Episode) -> bool:
        if not episode.state.done:
            return False
        if episode.state.success:  # to tag the bullets that helped
            return not self.plain and self.prompts.has_bullets
        return episode.node.depth < self._rounds

    def question(self, episode: Episode, history: str) -> str | None:
        if self.plain:
            return None
        return self.prompts.reflector(
            episode.step, episode.observation, history, bool(episode.state.success)
        )

    def _read(self, episode: Episode, text: str, cut: bool) -> Reflection:
        if self.plain:
            parsed = super()._read(episode, text, cut)
            said = clean(parsed.experience or "")
            review = Review(said, {"key_insight": said}) if said else None
        else:
            review = read_review(text)
            parsed = Reflection("unparsable", cut=cut)
            if review is not None:
                status = "no_mistake" if episode.state.success else "ok"
                parsed = Reflection(status, 1, review.insight, cut)
        if review is not None:
            tree, node = episode.owner, episode.node
            while node.parent is not None:
                node = tree.nodes[node.parent]
            reviewed = _Reviewed(node.id, review, bool(episode.state.success))
            self.reviews[tree.task_id].append(reviewed)
        return parsed


def adapt(
    policy: Policy,
    env: Environment,
    prompts: Prompts,
    tasks: Sequence[Task],
    config: AceConfig,
    rollout_config: RolloutConfig,
    state: State,
) -> tuple[State, list[Tree]]:
    """Plays a batch of tasks with the playbook of `state`.

    Args:
      policy, env, prompts: the three parties; `prompts` without a playbook.
      tasks: the batch.
      config: the rules.
      rollout_config: rendering and sampling.
      state: what the batch before has left.

    Returns:
      The state afterwards, and the attempts at each task, in the order of the tasks.
    """
    found: dict[str, Tree] = {}

    def keep(tree: Tree) -> None:
        found[tree.task_id] = tree

    book = state.playbook
    rollout = Rollout(policy, env, prompts.with_playbook(book), rollout_config)
    explorer = _Adapting(rollout, config, keep)
    grow(explorer, tasks)
    trees = [found[task.task_id] for task in tasks]
    reviewed = [(tree, r) for tree in trees for r in explorer.reviews[tree.task_id]]
    book = book.tagged([tag for _, r in reviewed for tag in r.review.tags])
    counts = collections.Counter(state.counts)
    counts["reviews"] += len(reviewed)
    last = {(tree.task_id, r.series): (tree, r) for tree, r in reviewed}
    additions = _noted if explorer.plain else _curated(rollout, config, book)
    for operations in additions(list(last.values())):
        counts["unreadable"] += operations is None
        for slug, content in operations or ():
            book, outcome = book.add(
                slug, content, config.token_budget, _counter(policy), config.duplicate_similarity
            )
            counts[outcome] += 1
    budget = Budget()
    for part in (state.budget, *(tree.budget for tree in trees)):
        budget.add(part)
    return State(book, dict(counts), budget), trees


def _counter(policy: Policy) -> Callable[[str], int]:
    """Tokens of a text; the one that ends a reply does not count."""
    return lambda text: len(policy.encoder.reply(text)) - 1 if text else 0


def _limit(budget: Budget, prompts: Prompts, replies: int) -> int:
    """The most tokens that each reply may have when `replies` of them share what the budget has left."""
    most = prompts.config.reflection_tokens
    if not budget.max_generated_tokens:
        return most
    return max(0, min(most, (budget.max_generated_tokens - budget.generated_tokens) // replies))


_Reviews = Sequence[tuple[Tree, _Reviewed]]
_Operations = Iterator[list[tuple[str, str]] | None]


def _noted(reviews: _Reviews) -> _Operations:
    """Each insight as it is."""
    for _, reviewed in reviews:
        yield [("sai", reviewed.review.insight)]


def _curated(
    rollout: Rollout, config: AceConfig, book: Playbook
) -> Callable[[_Reviews], _Operations]:
    """What the curator adds; all are asked with the same playbook."""
    policy, prompts, settings = rollout.policy, rollout.prompts.with_playbook(book), rollout.config
    tokens = _counter(policy)(book.text)

    def ask(tree: Tree, reviewed: _Reviewed, limit: int) -> Request:
        insight = json.dumps(dict(reviewed.review.fields), ensure_ascii=False)
        text = prompts.curator(insight, reviewed.success, tokens, config.token_budget)
        name = f"{tree.task_id}/r{reviewed.series}"
        seed = seed_for(settings.seed, settings.purpose, name, "curate")
        return Request(policy.start(), text, None, limit, settings.sampling, seed)

    def curate(reviews: _Reviews) -> _Operations:
        of_task = collections.Counter(tree.task_id for tree, _ in reviews)
        limits = [_limit(tree.budget, prompts, of_task[tree.task_id]) for tree, _ in reviews]
        # A task whose tokens are spent has no curator.
        asked = [pair for pair, limit in zip(reviews, limits, strict=True) if limit]
        requests = [ask(*p, limit) for p, limit in zip(reviews, limits, strict=True) if limit]
        places = {policy.submit(request): number for number, request in enumerate(requests)}
        replies: dict[int, str] = {}
        while len(replies) < len(requests):
            for ticket, completion in policy.collect():
                if completion.finish_reason == "error":
                    raise UserError(completion.error)
                number = places[ticket]
                replies[number] = completion.text
                policy.release(requests[number].session)
                budget = asked[number][0].budget
                budget.generated_tokens += len(completion.ids)
                budget.prefilled_tokens += completion.prefilled
                budget.cached_tokens += completion.cached
        for number in range(len(requests)):
            yield read_operations(replies[number])

    return curate
