"""Terminal output has no control characters, no characters outside its encoding, and no traceback."""

import logging
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from leafe_jax.runtime import console

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\x00\u202eevil\u2066\u2028\x85\ud83d\U000e0041"


def test_every_control_character_is_escaped():
    shown = console.visible(HOSTILE)
    assert shown.isprintable() and shown.encode()
    assert shown.startswith(r"\x1b]0;owned\x07\x1b[2J\x9b31m\r\x00\u202eevil\u2066\u2028\x85\ud83d")
    for code in range(sys.maxunicode + 1):
        kind = unicodedata.category(chr(code))
        if kind in ("Cc", "Cs", "Zl", "Zp"):
            assert console.visible(chr(code)) != chr(code), hex(code)
    for bidirectional in "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069":
        assert console.visible(bidirectional).isascii()


def test_ordinary_text_is_unchanged():
    text = "Żółć 日本語 👩\u200d💻 $x$ <b> \\n"
    assert console.visible(text) == text
    assert console.visible("a\nb\tc", keep="\n") == "a\nb\\tc"


def test_every_way_to_print_escapes_them(capsys):
    console.say(f"table\n{HOSTILE}")
    console.complain(f"{HOSTILE}\n2")
    notes = logging.getLogger("leafe_jax.test_console")
    notes.propagate = False
    notes.addHandler(console.Notes())
    notes.warning("a note %s\n2", HOSTILE)
    try:
        raise RuntimeError(HOSTILE)
    except RuntimeError as error:
        console.print_crash(type(error), error, error.__traceback__)
    out, err = capsys.readouterr()
    assert out.count("\n") == 2 and out.replace("\n", "").isprintable()
    assert err.replace("\n", "").isprintable()
    lines = err.splitlines()
    assert lines[0].startswith("error: \\x1b") and lines[0].endswith(r"\n2")
    assert lines[1].startswith("a note \\x1b") and lines[2].startswith("Traceback")


CHILD = """
import sys
from leafe_jax.runtime import console
console.set_up()
console.say("\\u017b\\xf3\\u0142\\u0107 " * 3)
console.say("more " * 20000)
console.tell("a note: \\u017b\\xf3\\u0142\\u0107")
reason = console.unwritten()
if reason:
    console.complain(f"standard output: {reason}")
sys.exit(2 if reason else 0)
"""


def shell(command, **settings):
    return subprocess.run(
        ["bash", "-c", command.replace("CHILD", f'{sys.executable} -c "$0"'), CHILD],
        capture_output=True, text=True, errors="replace", timeout=60, cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **settings},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("command", "code", "lines"),
    [
        ("CHILD", 0, ["a note: Żółć"]),
        ("CHILD >/dev/full", 2, ["a note: Żółć", "error: standard output: No space left on device"]),
        ("CHILD | true; exit ${PIPESTATUS[0]}", 2,
         ["a note: Żółć", "error: standard output: Broken pipe"]),
        ("CHILD >&-", 0, ["a note: Żółć"]),
        ("CHILD 2>&-", 0, []),
        ("CHILD 2>/dev/full", 0, []),
        ("CHILD <&- >&- 2>&-", 0, []),
    ],
)  # fmt: skip
def test_streams_that_cannot_be_written_to(command, code, lines):
    done = shell(command, LC_ALL="C.UTF-8")
    assert done.returncode == code
    assert done.stderr.splitlines() == lines


@pytest.mark.parametrize(
    "settings",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)
def test_a_terminal_that_knows_ascii_only(settings):
    done = shell("CHILD", **settings)
    assert done.returncode == 0 and done.stderr == "a note: \\u017b\\xf3\\u0142\\u0107\n"
    assert done.stdout.startswith("\\u017b")


def test_nothing_is_printed_into_a_file_that_is_opened_later(tmp_path):
    code = (
        "import os; from leafe_jax.runtime import console; console.set_up();"
        f" f = open({str(tmp_path / 'data')!r}, 'w'); os.write(1, b'x'); os.write(2, b'x'); f.close()"
    )
    command = f'{sys.executable} -c "$0" <&- >&- 2>&-'
    subprocess.run(["bash", "-c", command, code], check=True, cwd=ROOT)
    assert (tmp_path / "data").read_text() == ""
