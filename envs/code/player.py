"""The player of `code`'s drills. It falls into a drill's trap unless it is aware of it.

habit    unaware player                            experience that mends it
int      computes with the text that was read      turn the input into numbers with int.
floor    divides with /                            use // to round down.
part     forgets what comes last                   do not forget the last part: {plus 3}.
end      lets range end too soon                   range leaves out its end: add 1 to it.
list     prints a list with its brackets           print with * to leave out the brackets.
order    sorts from small to large                 sort with reverse=True.
"""

from __future__ import annotations

from envs.base import EnvDataError
from envs.code.environment import CodeState
from envs.code.problems import drills
from envs.player import Player


class CodePlayer(Player):
    """The player of `code` with the layout "drills".

    Raises:
      EnvDataError: on first use, if the environment plays other problems.
    """

    habits = drills.TRAPS
    spelt = r"Read [^\n]*|print\([^\n]*"

    def _drill(self, task_id: str) -> drills.Drill:
        found = drills.drills(task_id.partition("/")[0]).get(task_id)
        if self.env.options.layout != "drills" or found is None:
            raise EnvDataError(
                f"code task {task_id!r}: the scripted player knows drills only; set"
                ' env.options.layout = "drills"'
            )
        return found

    def start(self, task_id: str, observation: str) -> None:
        self._drill(task_id)

    def update(self, memory: None, action: str, state: CodeState, observation: str) -> None:
        """Nothing to remember: the drill says everything."""

    def decide(
        self, state: CodeState, memory: None, aware: frozenset[str]
    ) -> tuple[str, str | None]:
        drill = self._drill(state.task_id)
        return (drill.reference if drill.trap in aware else drill.flawed), drill.trap

    def advice(self, habit: str, task_id: str) -> str:
        drill = self._drill(task_id)
        return drill.advice if habit == drill.trap else drills.ADVICE.get(habit, "")
