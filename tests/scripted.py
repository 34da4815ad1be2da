"""A policy without a model: the method's tests run on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from leafe_jax.agent.policy import Completion, Request


@dataclasses.dataclass(eq=False)
class ScriptedSession:
    """`turns` are (user text, reply); `ids` stand for tokens: one a user turn, one a reply."""

    turns: list[tuple[str, str]] = dataclasses.field(default_factory=list)
    ids: list[int] = dataclasses.field(default_factory=list)


class ScriptedEncoder:
    """One id a text."""

    def __init__(self, policy: ScriptedPolicy):
        self._policy = policy

    def turn(self, before: Sequence[int], text: str) -> tuple[int, ...]:
        return (self._policy._id(text),)

    def reply(self, text: str) -> tuple[int, ...]:
        return (self._policy._id(text),)


class ScriptedPolicy:
    """Replies by a function of the conversation so far.

    Args:
      reply: (earlier turns, user text, seed) -> reply text.
      stagger: replies come out of order and not all at once.
      num_slots: episodes in flight.
    """

    def __init__(
        self,
        reply: Callable[[list[tuple[str, str]], str, int], str],
        stagger: bool = False,
        num_slots: int = 4,
    ):
        self.reply, self.stagger, self.num_slots = reply, stagger, num_slots
        self.waiting: list[tuple[int, Request]] = []
        self.tickets = self.launches = 0
        self.calls: list[list[Request]] = []
        self.live: set[int] = set()
        self._texts: list[str] = []
        self.encoder = ScriptedEncoder(self)

    def _id(self, text: str) -> int:
        if text not in self._texts:
            self._texts.append(text)
        return self._texts.index(text)

    def text(self, ids: Sequence[int]) -> str:
        """What ids stand for, one line each."""
        return "\n".join(self._texts[i] for i in ids)

    def start(self) -> ScriptedSession:
        session = ScriptedSession()
        self.live.add(id(session))
        return session

    def length(self, session: ScriptedSession) -> int:
        return len(session.ids)

    def ids(self, session: ScriptedSession) -> Sequence[int]:
        return session.ids

    def fork(self, session: ScriptedSession, length: int) -> ScriptedSession:
        assert length % 2 == 0, "turns are forked whole"
        copy = ScriptedSession(session.turns[: length // 2], session.ids[:length])
        self.live.add(id(copy))
        return copy

    def rewind(self, session: ScriptedSession, length: int) -> None:
        del session.ids[length:]
        del session.turns[length // 2 :]

    def append(self, session: ScriptedSession, ids: Sequence[int]) -> None:
        session.ids += ids
        session.turns.append((self._texts[ids[0]], self._texts[ids[1]]))

    def release(self, session: ScriptedSession) -> None:
        self.live.discard(id(session))

    def submit(self, request: Request) -> int:
        if not self.waiting:
            self.calls.append([])
        self.calls[-1].append(request)
        self.waiting.append((self.tickets, request))
        self.tickets += 1
        return self.tickets - 1

    def launch(self) -> None:
        self.launches += 1

    def collect(self) -> list[tuple[int, Completion]]:
        """All replies, or with `stagger` every other one, the youngest first."""
        picked = self.waiting[::-2] if self.stagger else self.waiting
        self.waiting = [w for w in self.waiting if w not in picked]
        return [(ticket, self._reply(request)) for ticket, request in picked]

    def _reply(self, request: Request) -> Completion:
        text = self.reply(list(request.session.turns), request.text, request.seed)
        prompt, reply = self._id(request.text), self._id(text)
        plain = None if request.plain_text is None else (self._id(request.plain_text),)
        request.session.turns.append((request.text, text))
        request.session.ids += [prompt, reply]
        return Completion(text, (prompt,), plain, (reply,), (-0.5,), "stop", 1, 0)
