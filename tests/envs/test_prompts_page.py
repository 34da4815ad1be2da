"""docs/PROMPTS.md shows what is sent: its examples are rendered here and looked for in the page."""

import dataclasses
import re
from pathlib import Path

import pytest
from prompting import prompts_for

from envs.prompts import STYLES, TEMPLATES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "PROMPTS.md").read_text()
HOUSE = "You are in a house. Commands: go to X, open X, take X from Y."
SEEN = ["You are in the kitchen. Your task is to: find the mug.", "The drawer 1 is closed."]
TOLD = [(2, "open drawer 1 before looking elsewhere.")]


@dataclasses.dataclass(frozen=True)
class Bullet:
    content: str


@dataclasses.dataclass(frozen=True)
class Book:
    """Stands for leafe_jax/methods/playbook.py, which environments do not import."""

    text: str
    bullets: tuple[Bullet, ...]


BOOK = Book(
    "[err-00001] helpful=2 harmful=0 :: do not search what is closed: open it.",
    (Bullet("do not search what is closed: open it."),),
)
INSIGHT = '{"key_insight": "open it."}'
PROBLEMS = "You solve programming problems."
ASKED = ["Read a number and print its double.", "Wrong answer on the input 3: 33, not 6."]


def examples() -> dict[str, dict[str, str]]:
    plain, words, react = (
        prompts_for(HOUSE, "household", style=style) for style in ("plain", "chat", "react")
    )
    code = prompts_for(PROBLEMS, "code", style="program")
    reasoning = prompts_for(HOUSE, "household", style="react", reasoning_tokens=256)
    house = (SEEN[0], [(SEEN[0], "go to drawer 1")], 2, SEEN[1], TOLD, "find the mug.")
    problem = (ASKED[0], [(ASKED[0], "print(input() * 2)")], 2, ASKED[1])
    return {
        "plain": {
            "first": plain.observation(1, SEEN[0]),
            "turn": plain.observation(2, SEEN[1], TOLD),
            "window": plain.window(*house),
            "reflection": plain.reflection(2, SEEN[1]),
            "playbook": plain.with_playbook(BOOK).observation(1, SEEN[0]),
        },
        "chat": {
            "system": words.system,
            "first": words.observation(1, SEEN[0]),
            "turn": words.observation(2, SEEN[1], TOLD),
            "window": words.window(*house, ["open drawer 1", "go to shelf 1"]),
            "reflection": words.reflection(2, SEEN[1]),
        },
        "react": {
            "first": react.observation(1, SEEN[0]),
            "turn": react.observation(2, SEEN[1], TOLD),
            "window": react.window(*house, ["open drawer 1", "go to shelf 1"]),
            "reflection": reasoning.reflection(2, SEEN[1]),
            "world": react.world(),
            "contrast": react.contrast(2, SEEN[1], "", "look", "go to drawer 1", SEEN[1]),
            "playbook": react.with_playbook(BOOK).observation(1, SEEN[0]),
            "reflector": react.with_playbook(BOOK).reflector(2, SEEN[1], "", False),
            "curator": react.with_playbook(BOOK).curator(INSIGHT, False, 31, 2000),
        },
        "program": {
            "first": code.observation(1, ASKED[0]),
            "turn": code.observation(2, ASKED[1], [(2, "convert the input to an int first.")]),
            "window": code.window(*problem),
            "reflection": code.reflection(2, ASKED[1]),
        },
    }


@pytest.mark.parametrize("style", STYLES)
def test_the_page_shows_every_template_as_it_is_rendered(style):
    section = PAGE.partition(f"\n## {style}\n")[2].partition("\n## ")[0]
    for name, text in examples()[style].items():
        assert f"\n{name}:\n\n````text\n{text}\n````\n" in section, (style, name)


def test_the_page_lists_every_variable():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", PAGE, re.MULTILINE)
    listed = {name: re.findall(r"`(\w+)`", variables) for name, variables in rows}
    always = {"description", "environment"}
    assert {name: set(listed[name]) | always for name in TEMPLATES} == {
        name: set(variables) for name, variables in TEMPLATES.items()
    }
    for variable in {v for variables in TEMPLATES.values() for v in variables}:
        assert f"\n* `{variable}`: " in PAGE, variable
