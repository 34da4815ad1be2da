"""Stage 1: tree-based experience generation with rollback (arXiv 2603.16843, Stage 1).

Every K steps and on failure the same policy is asked which step went wrong and what to do instead:
(tau, e). Environment and conversation go back to h_tau, e is shown, a revised action is sampled, and
the branch plays on. The trajectories of a tree go through a FIFO queue, one after the other, so it grows
breadth-first and its budget ends in the same place on every machine; trees grow side by side.

The two searches that the paper compares with are here, too: independent sampling, and iterative
refinement. Others are in files of their own (`EXPLORERS`). Every search spends the whole of its budget
(docs/METHODS.md, "Budgets").
"""

from __future__ import annotations

import collections
import dataclasses
import importlib
from collections.abc import Callable, Sequence
from typing import Any

from envs.base import Environment, Task
from envs.prompts import Prompts
from envs.reflections import Reflection
from leafe_jax.agent.policy import Completion, Policy
from leafe_jax.agent.rollout import Episode, Hooks, Rollout, RolloutConfig, branch
from leafe_jax.errors import UserError
from leafe_jax.types import Budget, Node, ReflectionRecord, Tree

# search.<name>.method -> module:class that decides what is played.
EXPLORERS = {
    "tree": "leafe_jax.methods.search:Explorer",
    "independent": "leafe_jax.methods.search:Explorer",
    "refine": "leafe_jax.methods.search:Explorer",
    "linear": "leafe_jax.methods.linear:Linear",
    "alternatives": "leafe_jax.methods.alternatives:Alternatives",
}
METHODS = tuple(EXPLORERS)
EXPERTS = ("player", "solver", "own")
SPANS = ("branch", "step")
MEMORIES = ("all", "last")


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """One search: on which tasks, with which agent, by which rules.

    Raises:
      UserError: a value is out of range.
    """

    agent: str = "base"  # method whose agent explores
    split: str = "train"  # tasks that are explored
    num_tasks: int = 384  # the split's first tasks; 0 takes all
    block_size: int = 48  # tasks explored together; a killed run repeats at most one block
    # tree (LEAFE), independent (independent sampling, IS), or refine (iterative refinement, IR: start
    # over with the experience); the paper's Table 3 compares them. linear: one step back at a time, as in
    # GA-Rollback. alternatives: other actions at an expert's steps, for Early Experience.
    method: str = "tree"
    # The budget. A search goes on until it is spent; a search without one ends at max_attempts.
    max_env_steps: int = 60  # environment steps per task, replayed ones included; 0: no limit
    max_generated_tokens: int = 0  # sampled tokens per task, reflections included; 0: no limit
    max_attempts: int = 0  # most trajectories per task; 0: no limit, which needs a budget
    # -- tree
    num_roots: int = 2  # trajectories begun without experience before the first branch
    max_depth: int = 4  # branches on the way from a root
    reflect_every: int = 8  # K, in steps
    # A trajectory that was branched from plays on (the paper leaves it open).
    continue_after_branch: bool = False
    # -- refine
    # What a new start is shown: "all" experiences of its chain, as Self-Refine (arXiv 2303.17651) and
    # Reflexion (arXiv 2303.11366) have it, or the "last" one.
    refine_memory: str = "all"
    # -- linear
    wait_steps: int = 6  # steps of a trajectory before the first question
    rollback_steps: int = 4  # most steps that it goes back; tau further back is brought forward
    rollbacks: int = 6  # of a chain; then its trajectory plays to its end
    shown_experiences: int = 3  # most experiences that are told again at tau, the newest ones
    # A reflection whose tokens have a lower mean probability is not followed; 0 follows all.
    min_probability: float = 0.0
    # -- alternatives
    # Who gives the expert's actions: the environment's scripted "player", its "solver", which sees hidden
    # state, or the agent's "own" first success.
    expert: str = "player"
    explain: bool = False  # ask after each alternative why the expert's action is better
    # -- tree, refine and linear
    reflect_on_failure: bool = True  # reflect when an episode ends without success
    show_experience: bool = True  # False: go back and sample again without e (control)
    experience_span: str = "branch"  # e stays in the context for the branch, or for one "step"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("method", METHODS), ("experience_span", SPANS), ("refine_memory", MEMORIES),
            ("expert", EXPERTS),
        ):  # fmt: skip
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"search.{name} = {getattr(self, name)!r}: must be one of {', '.join(allowed)}"
                )
        for name, least in (
            ("num_tasks", 0), ("block_size", 1), ("num_roots", 1), ("max_attempts", 0),
            ("max_depth", 0), ("reflect_every", 1), ("max_env_steps", 0), ("max_generated_tokens", 0),
            ("wait_steps", 0), ("rollback_steps", 1), ("rollbacks", 0), ("shown_experiences", 1),
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UserError(
                    f"search.{name} = {value!r}: must be an integer of at least {least}"
                )
        if not 0 <= self.min_probability <= 1:
            raise UserError(f"search.min_probability = {self.min_probability!r}: must be 0 to 1")
        if not (self.limited or self.max_attempts):
            raise UserError(
                "search.max_attempts = 0: must be at least 1 where search.max_env_steps and"
                " search.max_generated_tokens are 0, or the search would not end"
            )

    @property
    def limited(self) -> bool:
        """Whether there is a budget, in environment steps or tokens."""
        return self.max_env_steps > 0 or self.max_generated_tokens > 0


@dataclasses.dataclass(eq=False)
class Growth:
    """What is still to be played of a tree: roots first, then branches."""

    start: tuple[Any, str]  # state and first observation
    roots_left: int  # places that are kept for roots
    branches: collections.deque[Episode] = dataclasses.field(default_factory=collections.deque)
    # refinement and linear rollback: e of the chain so far
    memory: list[str] = dataclasses.field(default_factory=list)


class Explorer(Hooks):
    """The decisions of a search for one set of trees: tree, independent sampling and refinement.

    Args:
      rollout: plays what is queued.
      config: rules of the search.
      on_tree: called with each tree as it finishes.
      adviser: see `explore`.
    """

    def __init__(
        self,
        rollout: Rollout,
        config: SearchConfig,
        on_tree: Callable[[Tree], None],
        adviser: Callable[[Episode], str] | None = None,
    ):
        self.rollout, self.config, self.on_tree, self.adviser = rollout, config, on_tree, adviser
        self.policy, self.prompts, self.queue = rollout.policy, rollout.prompts, rollout.queue
        self.replays = rollout.env.replays
        self._growing: dict[str, Growth] = {}  # by task id

    def plant(self, tree: Tree, env: Environment) -> None:
        """Queues the first trajectory of a tree."""
        config = self.config
        roots = config.num_roots if config.method == "tree" else 1
        if config.max_attempts:
            roots = min(roots, config.max_attempts)
        self._growing[tree.task_id] = self._begin(env.reset(tree.task_id), roots)
        self._play(self._planned_root(tree))

    def _begin(self, start: tuple[Any, str], roots: int) -> Growth:
        return Growth(start, roots)

    def _play(self, episode: Episode) -> None:
        episode.budget.episodes += 1
        self.queue.append(episode)

    def _planned_root(self, tree: Tree) -> Episode:
        self._growing[tree.task_id].roots_left -= 1
        return self._root(tree)

    def _next(self, tree: Tree, last: Episode) -> Episode | None:
        """The trajectory to play after `last`; None if the tree is finished."""
        growth = self._growing[tree.task_id]
        if growth.roots_left:
            return self._planned_root(tree)
        while growth.branches:
            episode = growth.branches.popleft()
            # Where the way back is replayed, it must leave room for a step. If not, a later branch or
            # a root may still fit.
            replayed = len(episode.turns) if self.replays else 0
            if tree.budget.has_room(replayed + 1):
                tree.budget.replayed_steps += replayed
                return episode
            self._drop(episode)
        return self._another(tree, last) if self._may_begin(tree) else None

    def _another(self, tree: Tree, last: Episode) -> Episode | None:
        """What is begun when nothing waits and the budget is not spent."""
        method = self.config.method
        if method == "tree" and not self.config.limited:
            return None
        if method == "refine" and last.turns and not last.state.success:
            # No reflection gave a new e: it starts over with the memory it has.
            return self._retry(last, None, f"{last.name}/b1.0")
        if last.node.parent is None and not last.turns:
            return None  # the first prompt has no room in the context, and never will
        return self._root(tree)

    def _root(self, tree: Tree) -> Episode:
        growth = self._growing[tree.task_id]
        growth.memory = []
        number = sum(node.parent is None for node in tree.nodes)
        node = Node(len(tree.nodes), None, None, 0, "root", None)
        tree.nodes.append(node)
        state, observation = growth.start
        return Episode(
            node, f"{tree.task_id}/r{number}", state, observation, budget=tree.budget, owner=tree
        )

    def _retry(self, failed: Episode, experience: str | None, name: str) -> Episode:
        """Refinement starts over, with what its memory holds; `experience` is what is new in it."""
        tree = failed.owner
        growth = self._growing[tree.task_id]
        state, observation = growth.start
        return Episode(
            self._new_node(failed, 1, "retry", experience), name, state, observation,
            told=[(1, e) for e in growth.memory], budget=tree.budget, owner=tree,
        )  # fmt: skip

    def _new_node(
        self, parent: Episode, branch_step: int, kind: str, experience: str | None
    ) -> Node:
        tree, node = parent.owner, parent.node
        child = Node(len(tree.nodes), node.id, branch_step, node.depth + 1, kind, experience)
        tree.nodes.append(child)
        return child

    def _drop(self, episode: Episode) -> None:
        """The budget has no room for this branch."""
        episode.node.stop = "budget"
        if episode.session is not None:
            self.policy.release(episode.session)

    def _may_begin(self, tree: Tree) -> bool:
        """Whether max_attempts has room; roots to come have their places already."""
        begun = len(tree.nodes) + self._growing[tree.task_id].roots_left
        return not self.config.max_attempts or begun < self.config.max_attempts

    # -- hooks ---------------------------------------------------------------------------------
    def exhausted(self, episode: Episode) -> bool:
        return episode.budget.spent

    def reflect_now(self, episode: Episode) -> bool:
        config, node = self.config, episode.node
        # Not worth asking where the answer could not be followed.
        if config.method == "independent" or not self._may_begin(episode.owner):
            return False
        if config.method == "tree" and node.depth >= config.max_depth:
            return False
        if episode.state.done:
            return config.reflect_on_failure and not episode.state.success
        return config.method == "tree" and len(episode.turns) % config.reflect_every == 0

    def reflected(self, episode: Episode, completion: Completion) -> bool:
        config, node = self.config, episode.node
        if completion.finish_reason == "context":  # there was no room to ask
            node.reflections.append(
                ReflectionRecord(episode.step, [], [], [], text="", status="context")
            )
            return True
        text = self.adviser(episode) if self.adviser else completion.text
        cut = self.adviser is None and completion.finish_reason == "length"
        parsed = self._read(episode, text, cut)
        record = ReflectionRecord(
            step=episode.step,
            prompt_ids=list(completion.prompt_ids),
            ids=list(completion.ids),
            logprobs=list(completion.logprobs),
            text=text,
            status=parsed.status,
            tau=parsed.tau,
            experience=parsed.experience,
            cut=parsed.cut,
            sampled_logprobs=(
                None if completion.sampled_logprobs is None else list(completion.sampled_logprobs)
            ),
        )
        if parsed.status == "ok":
            record.status = self._judge(episode, record)
        node.reflections.append(record)
        if record.status != "branched" or parsed.tau is None:
            return True
        experience = record.experience if config.show_experience else None
        record.child = self._follow(episode, parsed.tau, experience).node.id
        if config.continue_after_branch:
            return True
        node.stop = node.stop or "branched"
        return False

    def _read(self, episode: Episode, text: str, cut: bool) -> Reflection:
        """What a reflection says."""
        return self.prompts.parse_reflection(text, cut)

    def _follow(self, episode: Episode, tau: int, experience: str | None) -> Episode:
        """Queues the branch, or the new start, that a reflection asks for."""
        growth = self._growing[episode.owner.task_id]
        twin = sum(r.status == "branched" for r in episode.node.reflections)
        if self.config.method == "refine":
            new = [] if experience is None else [experience]
            growth.memory = new if self.config.refine_memory == "last" else growth.memory + new
            child = self._retry(episode, experience, f"{episode.name}/b1.{twin}")
        else:
            node = self._new_node(episode, tau, "branch", experience)
            name = f"{episode.name}/b{tau}.{twin}"
            child = branch(self.policy, episode, tau, node, name, experience)
        growth.branches.append(child)
        return child

    def _judge(self, episode: Episode, record: ReflectionRecord) -> str:
        """The status of a reflection that was read."""
        tau, experience = record.tau, record.experience
        if self.config.method == "refine":
            return "branched"  # it starts over, whatever tau is
        # tau is never guessed: a step that does not exist drops the reflection.
        if tau is None or not 1 <= tau <= len(episode.turns):
            return "out_of_range"
        for earlier in episode.node.reflections:
            if (earlier.status, earlier.tau, earlier.experience) == ("branched", tau, experience):
                return "duplicate"
        return "branched"

    def finished(self, episode: Episode) -> None:
        tree = episode.owner
        following = None if tree.budget.spent else self._next(tree, episode)
        if following is not None:
            self._play(following)
            return
        self._end(self._growing.pop(tree.task_id))
        self.on_tree(tree)

    def _end(self, growth: Growth) -> None:
        """The tree is finished."""
        for dropped in growth.branches:
            self._drop(dropped)


def explore(
    policy: Policy,
    env: Environment,
    prompts: Prompts,
    tasks: Sequence[Task],
    config: SearchConfig,
    rollout_config: RolloutConfig,
    on_tree: Callable[[Tree], None],
    adviser: Callable[[Episode], str] | None = None,
) -> None:
    """Grows one tree a task.

    Args:
      policy, env, prompts: the three parties.
      tasks: training tasks; each gives one tree.
      config: rules of the search.
      rollout_config: rendering and sampling.
      on_tree: called with each tree as it finishes.
      adviser: answers in place of the model's reflections (leafe_jax/bootstrap/habits.py measures with it).
    """
    rollout = Rollout(policy, env, prompts, rollout_config)
    module, _, name = EXPLORERS[config.method].partition(":")
    kind = getattr(importlib.import_module(module), name)
    grow(kind(rollout, config, on_tree, adviser), tasks)


def grow(explorer: Explorer, tasks: Sequence[Task]) -> None:
    """Grows one tree a task by the rules of an explorer."""
    rollout, config = explorer.rollout, explorer.config
    env, rollout_config = rollout.env, rollout.config
    for task in tasks:
        budget = Budget.within(
            max_env_steps=config.max_env_steps, max_generated_tokens=config.max_generated_tokens
        )
        tree = Tree(
            env.name, task.task_id, task.family, rollout_config.seed, rollout_config.mode,
            budget=budget,
        )  # fmt: skip
        explorer.plant(tree, env)
    rollout.run(explorer)
