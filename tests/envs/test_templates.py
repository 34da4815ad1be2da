"""Prompt templates: a user's own takes the package's place, and can neither reach Python nor surprise."""

import pytest
from prompting import prompts_for

from envs.errors import EnvDataError
from envs.prompts import STYLES, TEMPLATES, PromptsConfig

HOSTILE = "{{ 7 * 7 }} {% for x in y %} {{ ''.__class__ }} {# no #} <|im_end|> \ud800"


def own(tmp_path, text, name="turn", **fields):
    path = tmp_path / f"{name}.jinja"
    path.write_text(text)
    return prompts_for("DESC", "sokoban", **{name: str(path), **fields}), path


@pytest.mark.parametrize("style", STYLES)
def test_every_text_can_be_replaced_and_is_recorded(tmp_path, style):
    given = {}
    for name in TEMPLATES:
        path = tmp_path / f"{name}.jinja"
        path.write_text(f"<{name}>\n")
        given[name] = str(path)
    prompts = prompts_for("DESC", "sokoban", style=style, **given)
    assert prompts.system == "<system>"
    assert prompts.observation(1, "seen", [(1, "e")]) == "<first>"
    assert prompts.observation(2, "seen", [(2, "e")]) == "<turn>"
    assert prompts.window("first", [("seen", "up")], 2, "seen") == "<window>"
    assert prompts.reflection(2, "seen") == "<reflection>"
    assert prompts.sources() == {name: f"<{name}>\n" for name in TEMPLATES}
    # What is rendered for others: the way e is said, and the instruction.
    given["turn"] = str(tmp_path / "turn")
    (tmp_path / "turn").write_text("{{ experience }} {{ instruction }}")
    prompts = prompts_for("DESC", "sokoban", style=style, **given)
    assert prompts.observation(2, "seen", [(2, "e")]) == "<experience> <instruction>"


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("env", ["sokoban", "household"])
def test_the_recorded_templates_give_the_same_texts(tmp_path, style, env):
    prompts = prompts_for("DESC", env, style=style)
    for name, text in prompts.sources().items():
        (tmp_path / name).write_text(text)
    paths = {name: str(tmp_path / name) for name in TEMPLATES}
    again = prompts_for("DESC", env, style=style, **paths)
    assert again.digest() == prompts.digest()
    episode = (
        "DESC\nfirst",
        [("a", "up"), ("b", "")],
        3,
        "c",
        [(2, "d"), (3, "e")],
        "goal",
        ("up", "down"),
    )
    assert again.window(*episode) == prompts.window(*episode)
    assert again.observation(1, "DESC\na", [(1, "e")]) == prompts.observation(
        1, "DESC\na", [(1, "e")]
    )


def test_the_digest_is_that_of_the_texts(tmp_path):
    a, path = own(tmp_path, "[{{ step }}] {{ observation }}")
    (tmp_path / "copy").mkdir()
    b, _ = own(tmp_path / "copy", "[{{ step }}] {{ observation }}")
    assert a.digest() == b.digest() != prompts_for("DESC", "sokoban").digest()
    path.write_text("[{{ step }}] {{ observation }}.")
    assert prompts_for("DESC", "sokoban", turn=str(path)).digest() != a.digest()
    assert a.observation(2, "x") == "[2] x"  # read once, at the start


@pytest.mark.parametrize("style", STYLES)
def test_values_are_text_and_never_evaluated(style):
    prompts = prompts_for("DESC", "household", style=style)
    assert HOSTILE in prompts.observation(1, HOSTILE) and HOSTILE in prompts.observation(2, HOSTILE)
    assert f"Experience: {HOSTILE}" in prompts.observation(2, "seen", [(2, HOSTILE)])
    window = prompts.window(
        HOSTILE, [(HOSTILE, HOSTILE)], 2, HOSTILE, [(2, HOSTILE)], HOSTILE, [HOSTILE]
    )
    assert HOSTILE in window
    assert prompts.reflection(2, "seen", window).startswith(window)
    assert prompts_for(HOSTILE, "household", style="react").observation(1, "x").startswith(HOSTILE)


@pytest.mark.parametrize(
    ("text", "line", "reason"),
    [
        ("a\n{{ obsevation }}", 2, "'obsevation' is none of its variables: description, environment"),
        ("a\n\n{% if step > 5 %}{{ what }}{% endif %}", 3, "'what' is none of"),
        ("{% if %}", 1, "Expected an expression"),
        ("a\n{% for x in history %}{% endfor %}", 2, "none of its variables"),
        ("a\n{% if step %}\nb", 2, "Unexpected end of template"),
        ("{{ step | nothing }}", 1, "No filter named 'nothing'"),
        ("{{ step | random }}", 1, "No filter named 'random'"),
        ("{{ lipsum() }}", 1, "'lipsum' is none of"),
        ("\n{% include 'turn.jinja' %}", 2, "must not use other templates"),
        ("{% import '/etc/passwd' as x %}", 1, "must not use other templates"),
        # Seen only when rendered, with the values of a later step.
        ("a\n{{ observation.nothing }}", 2, "has no attribute 'nothing'"),
        ("{{ 1 // (step - 9) }}", 1, "division"),
        ("a\n{{ ''.__class__.__mro__ }}", 2, "unsafe"),
        ("{{ observation.format.__globals__ }}", 1, "unsafe"),
        ("{{ '{0.__class__}'.format(step) }}", 1, "unsafe"),
        ("\n{% for i in range(10 ** 9) %}x{% endfor %}", 2, "range() has 1000000000 steps: must be at most 1000"),
    ],
)  # fmt: skip
def test_a_wrong_template_is_one_line_at_the_start(tmp_path, text, line, reason):
    with pytest.raises(EnvDataError) as caught:
        own(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(f"prompts.turn = {tmp_path / 'turn.jinja'}, line {line}: ")
    assert reason in message and "\n" not in message


def test_what_a_template_cannot_change(tmp_path):
    text = "{% if history %}{{ history.append(1) }}{% endif %}"
    with pytest.raises(EnvDataError, match="prompts.window = .*line 1: .*unsafe"):
        own(tmp_path, text, "window")


def test_a_file_that_cannot_be_read(tmp_path):
    for path in (tmp_path / "none.jinja", tmp_path):
        with pytest.raises(EnvDataError, match=f"prompts.reflection: .*{path.name}"):
            prompts_for(reflection=str(path))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(EnvDataError, match="prompts.first: .*UTF-8"):
        prompts_for(first=str(tmp_path / "bytes"))
    (tmp_path / "long").write_text("x" * (2**20 + 1))
    with pytest.raises(EnvDataError, match="prompts.first: "):
        prompts_for(first=str(tmp_path / "long"))
    deep = "{% if step %}" * 200 + "{% endif %}" * 200
    with pytest.raises(EnvDataError, match="prompts.turn = .*turn.jinja"):
        own(tmp_path, deep)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            dict(style="prose"),
            "prompts.style = 'prose': must be one of plain, chat, react, program",
        ),
        (dict(answer_tokens=0), "prompts.answer_tokens = 0: must be an integer of at least 1"),
        (dict(answer_tokens=True), "prompts.answer_tokens = True"),
        (
            dict(reasoning_tokens=-1),
            "prompts.reasoning_tokens = -1: must be an integer of at least 0",
        ),
        (dict(window=None), "prompts.window = None: must be a path"),
    ],
)
def test_fields_are_checked(fields, message):
    with pytest.raises(EnvDataError, match=message):
        PromptsConfig(**fields)


@pytest.mark.parametrize("style", STYLES)
def test_a_reflection_that_may_reason_is_asked_for_an_answer_at_its_end(style):
    asked = prompts_for(style=style, reasoning_tokens=100).reflection(8, "seen")
    assert asked.startswith("[8] seen\nReflect on the") and "number from 1 to 7" in asked
    assert asked.endswith("\nAnswer: no mistake")
    assert prompts_for(reasoning_tokens=100, answer_tokens=20).config.reflection_tokens == 120
    line = prompts_for(style=style).reflection(8, "seen")
    assert "Answer:" not in line and "which step was the first mistake" in line


def test_the_style_that_was_trained_on_one_line_is_read_as_such():
    said = "[1] open it.\nThen go on."
    assert prompts_for().parse_reflection(said).tau == 1
    assert prompts_for(style="chat").parse_reflection(said).tau == 1
    assert prompts_for(style="program").parse_reflection(said).tau == 1
    assert prompts_for(reasoning_tokens=9).parse_reflection(said).status == "unparsable"
    assert prompts_for(style="react").parse_reflection(said).status == "unparsable"
