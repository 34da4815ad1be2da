"""The "program" style: many-line replies in fences."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prompting import prompts_for

from envs.actions import MAX_PROGRAM_CHARS
from envs.errors import EnvDataError
from envs.prompts import PromptsConfig

PROGRAM = prompts_for("You solve problems.", style="program")
TEXTS = st.one_of(
    st.text(max_size=200),
    st.lists(st.sampled_from(["```", "````", "``", "`", "python", "\n", " ", "x = 1", "</think>", "\t"]),
             max_size=30).map("".join),
)  # fmt: skip


@pytest.mark.parametrize(
    "reply, program, well_formed",
    [
        ("```python\nx = 1\nprint(x)\n```", "x = 1\nprint(x)", True),
        ("Sure:\n\n```\na\n```\nor\n```\nb\n```", "a", True),
        ("print(1)", "print(1)", False),
        ("", "", False),
        ("```python\n```", "", False),
        ("```python\nfor i in x:\n    pass", "for i in x:\n    pass", True),  # cut short
        ("<think>```\nno\n```</think>\n```\nyes\n```", "yes", True),
        ("````\n```\ninner\n```\n````", "```\ninner\n```", True),
        ("  ```py\n  indented\n  ```", "indented", True),
        ("  ```py\n  if x:\n    y\n  ```", "if x:\n  y", True),
        ("  ```py\nif x:\n  y\n```", "if x:\n  y", True),
        ("```python\n    return x\n```", "    return x", True),  # a function's body
        ("x = ```y```", "x = ```y```", False),
        ("```python\r\nx\r\ny\r\n```\r\nDone", "x\ny", True),
        # Fences that CTRL's reader takes too.
        ("Solution: ```python\nprint(1)\n```", "print(1)", True),
        ("Solution: ```\nprint(1)\n```", "print(1)", True),
        ("1. ```python\nprint(1)\n```", "print(1)", True),
        ("- ```python\n  print(1)\n  ```\n- more", "print(1)", True),
        ("```python\nprint(1)```", "print(1)", True),
        ("```python\nprint(1)```\nor\n```python\nprint(2)\n```", "print(1)", True),
        ("```python\nprint(1)\n``` That prints 1.", "print(1)", True),
        ("```python\nprint(1)``` That prints 1.\n```\nx\n```", "print(1)", True),
        ("```python print(1)```", "print(1)", True),
        ("So ```Python3 print(1) ``` it is", "print(1)", True),
        ("```python print(1)\n```", "print(1)", True),
        ('```python title="a.py"\nprint(1)\n```', "print(1)", True),
        # A fence in a string, and what only looks like an opening one.
        ("```python\nprint('```')\nx\n```", "print('```')\nx", True),
        ("```python\nprint('```')", "print('", True),
        ("Fence it by ``` marks.\n```python\nx\n```", "x", True),
        ("print(1)```\nThis prints 1.", "print(1)```\nThis prints 1.", False),
        ("print(1) ```\nThis prints 1.", "print(1) ```\nThis prints 1.", False),
    ],
)
def test_the_first_fenced_block_is_the_program(reply, program, well_formed):
    assert PROGRAM.parse_action(reply) == (program, well_formed)


@settings(max_examples=150, deadline=None)
@given(TEXTS)
def test_parsing_is_total_and_formatting_is_its_inverse(text):
    program, well_formed = PROGRAM.parse_action(text)
    assert isinstance(program, str) and len(program) <= MAX_PROGRAM_CHARS
    assert not well_formed or program.strip()
    if "</think>" not in program:
        again = PROGRAM.parse_action(PROGRAM.format_action(program))
        assert again == (program, bool(program.strip()))


def test_long_replies_are_cut_and_take_no_time():
    for text in (
        "```\n" + "x" * 10**6,
        "`" * 10**6,
        " " * 10**6,
        "```\n" * 10**5,
        "\n```" * 10**5,
        "x```y " * 10**5,
        "```python\n" + "x```y " * 10**5,
        "x ```a b\n" * 10**5,
        "```python\n" + "`" * 10**6 + "x",
        "1. " * 10**5 + "```python\nx",
    ):
        program, _ = PROGRAM.parse_action(text)
        assert len(program) <= MAX_PROGRAM_CHARS


def test_what_the_model_reads():
    first = PROGRAM.observation(1, "Print 1.")
    assert first.startswith("You solve problems.\n\n[1] Print 1.\n") and "```python" in first
    later = PROGRAM.observation(2, "Wrong answer", told=[(2, "print more")])
    assert later.startswith("[2] Wrong answer\nExperience: print more\n")
    assert "You solve problems" not in later
    window = PROGRAM.window(
        "Print 1.", [("Wrong answer A", "print(2)"), ("Wrong answer B", "print(3)\nx")], 4,
        "Wrong answer C", [(2, "print 1")], goal="Print 1.",
    )  # fmt: skip
    parts = window.split("\n\n")
    assert parts[:2] == ["You solve problems.", "Print 1."]
    assert parts[2:6] == [
        "[2] Your submission:\n```python\nprint(2)\n```", "[2] Feedback: Wrong answer B",
        "[3] Your submission:\n```python\nprint(3)\nx\n```", "[3] Feedback: Wrong answer C",
    ]  # fmt: skip
    assert parts[6] == "Experience: print 1" and parts[7].startswith("Now write submission 4.")
    # What is asked of a reflection has the history and no request for another program.
    assert "Now write" not in PROGRAM.window("Print 1.", [], 1, "Print 1.", actions=None)
    assert "no mistake" in PROGRAM.reflection(2, "Wrong answer")


def test_the_style_is_checked():
    with pytest.raises(EnvDataError, match="prompts.style = 'prose'"):
        PromptsConfig(style="prose")
