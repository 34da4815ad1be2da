"""Stage 1: tree-based experience generation with rollback (arXiv 2603.16843, Stage 1).

Every K steps and on failure the same policy is asked which step went wrong and what to do instead:
(tau, e). Environment and conversation go back to h_tau, e is shown, a revised action is sampled, and
the branch plays on. The trajectories of a tree go through a FIFO queue, one after the other, so it grows
breadth-first and its budget ends in the same place on every machine; trees grow side by side.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from envs.base import Environment, Task
from envs.prompts import Prompts
from leafe_jax.agent.policy import Completion, Policy
from leafe_jax.agent.rollout import Episode, Hooks, Rollout, RolloutConfig, branch
from leafe_jax.errors import UserError
from leafe_jax.types import Budget, Node, ReflectionRecord, Tree

METHODS = ("tree", "independent", "refine")
SPANS = ("branch", "step")


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
    # over with the experience); the paper's Table 3 compares them.
    method: str = "tree"
    num_roots: int = 2  # trajectories begun without experience, per task
    max_attempts: int = 8  # trajectories per task, roots included
    max_depth: int = 4  # branches on the way from a root
    reflect_every: int = 8  # K, in steps
    reflect_on_failure: bool = True  # also reflect when an episode ends without success
    # A trajectory that was branched from plays on (the paper leaves it open).
    continue_after_branch: bool = False
    show_experience: bool = True  # False: roll back and sample again without e (control)
    experience_span: str = "branch"  # e stays in the context for the branch, or for one "step"
    max_env_steps: int = 0  # environment steps per task; 0: no limit
    max_generated_tokens: int = 0  # sampled tokens per task; 0: no limit

    def __post_init__(self) -> None:
        for name, allowed in (("method", METHODS), ("experience_span", SPANS)):
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"search.{name} = {getattr(self, name)!r}: must be one of {', '.join(allowed)}"
                )
        for name, least in (
            ("num_tasks", 0), ("block_size", 1), ("num_roots", 1), ("max_attempts", 1),
            ("max_depth", 0), ("reflect_every", 1), ("max_env_steps", 0), ("max_generated_tokens", 0),
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise UserError(
                    f"search.{name} = {value!r}: must be an integer of at least {least}"
                )


@dataclasses.dataclass(eq=False)
class _Growth:
    """What is still to be played of a tree: roots first, then branches."""

    start: tuple[Any, str]  # state and first observation
    roots_left: int
    branches: collections.deque[Episode] = dataclasses.field(default_factory=collections.deque)


class _Explorer(Hooks):
    """The decisions of the search for one set of trees."""

    def __init__(
        self,
        policy: Policy,
        prompts: Prompts,
        config: SearchConfig,
        queue: collections.deque[Episode],
        on_tree: Callable[[Tree], None],
        adviser: Callable[[Episode], str] | None,
    ):
        self.adviser = adviser
        self.policy, self.prompts, self.config = policy, prompts, config
        self.queue, self.on_tree = queue, on_tree
        self._growing: dict[str, _Growth] = {}  # by task id

    def plant(self, tree: Tree, env: Environment) -> None:
        """Queues the first trajectory of a tree."""
        config = self.config
        roots = config.max_attempts if config.method == "independent" else config.num_roots
        roots = min(roots, config.max_attempts)
        self._growing[tree.task_id] = _Growth(env.reset(tree.task_id), roots)
        first = self._next(tree)
        assert first is not None, "there is at least one root"
        self.queue.append(first)

    def _next(self, tree: Tree) -> Episode | None:
        growth = self._growing[tree.task_id]
        if growth.roots_left:
            number = sum(node.parent is None for node in tree.nodes)
            growth.roots_left -= 1
            state, observation = growth.start
            episode = Episode(
                node=self._new_node(tree, None, None, 0, "root", None),
                name=f"{tree.task_id}/r{number}",
                state=state,
                observation=observation,
                budget=tree.budget,
                owner=tree,
            )
        elif growth.branches:
            episode = growth.branches.popleft()
        else:
            return None
        tree.budget.episodes += 1
        return episode

    def _new_node(
        self,
        tree: Tree,
        parent: int | None,
        branch_step: int | None,
        depth: int,
        kind: str,
        experience: str | None,
    ) -> Node:
        node = Node(len(tree.nodes), parent, branch_step, depth, kind, experience)
        tree.nodes.append(node)
        return node

    def _attempts_left(self, tree: Tree) -> int:
        """Roots to come have their places already."""
        roots = self._growing[tree.task_id].roots_left
        return self.config.max_attempts - len(tree.nodes) - roots

    # -- hooks ---------------------------------------------------------------------------------
    def exhausted(self, episode: Episode) -> bool:
        return episode.budget.spent

    def reflect_now(self, episode: Episode) -> bool:
        config, node = self.config, episode.node
        # Not worth asking where the answer could not be followed.
        if config.method == "independent" or not self._attempts_left(episode.owner):
            return False
        if config.method == "tree" and node.depth >= config.max_depth:
            return False
        if episode.state.done:
            return config.reflect_on_failure and not episode.state.success
        return config.method == "tree" and len(episode.turns) % config.reflect_every == 0

    def reflected(self, episode: Episode, completion: Completion) -> bool:
        config, node, tree = self.config, episode.node, episode.owner
        if completion.finish_reason == "context":  # there was no room to ask
            node.reflections.append(
                ReflectionRecord(episode.step, [], [], [], text="", status="context")
            )
            return True
        text = self.adviser(episode) if self.adviser else completion.text
        cut = self.adviser is None and completion.finish_reason == "length"
        parsed = self.prompts.parse_reflection(text, cut)
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
            record.status = self._judge(episode, parsed.tau, parsed.experience)
        node.reflections.append(record)
        if record.status != "branched" or parsed.tau is None:
            return True
        tau = 1 if config.method == "refine" else parsed.tau
        experience = parsed.experience if config.show_experience else None
        kind = "retry" if config.method == "refine" else "branch"
        child = self._new_node(tree, node.id, tau, node.depth + 1, kind, experience)
        record.child = child.id
        twin = sum(r.status == "branched" for r in node.reflections)
        name = f"{episode.name}/b{tau}.{twin}"
        waiting = self._growing[tree.task_id].branches
        waiting.append(branch(self.policy, episode, tau, child, name))
        if config.continue_after_branch:
            return True
        node.stop = node.stop or "branched"
        return False

    def _judge(self, episode: Episode, tau: int | None, experience: str | None) -> str:
        # tau is never guessed: a step that does not exist drops the reflection.
        if tau is None or not 1 <= tau <= len(episode.turns):
            return "out_of_range"
        for earlier in episode.node.reflections:
            if (earlier.status, earlier.tau, earlier.experience) == ("branched", tau, experience):
                return "duplicate"
        return "branched"

    def finished(self, episode: Episode) -> None:
        tree = episode.owner
        following = None if tree.budget.spent else self._next(tree)
        if following is not None:
            self.queue.append(following)
            return
        for dropped in self._growing.pop(tree.task_id).branches:
            dropped.node.stop = "budget"
            self.policy.release(dropped.session)
        self.on_tree(tree)


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
    explorer = _Explorer(policy, prompts, config, rollout.queue, on_tree, adviser)
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
