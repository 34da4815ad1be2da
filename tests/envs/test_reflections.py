"""Reflections: what is read as (tau, e), as "no mistake", or as neither, in the two forms."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prompting import prompts_for

from envs.reflections import MAX_EXPERIENCE_CHARS, Reflection, after_reasoning, from_line

UNPARSABLE = Reflection("unparsable")
NONE = Reflection("no_mistake")
FORMS = pytest.mark.parametrize("read", [from_line, after_reasoning])


# -- both forms ------------------------------------------------------------------------------------
@FORMS
@pytest.mark.parametrize(
    "reply",
    [
        "Step 1 was fine. The first mistake was step 4",
        "Step 1 was fine. The first mistake was step 4: open it.",
        "Step 1: that was fine. The first mistake was step 4",
        "1. was fine, but step 4 was not",
        "3 drawers were left closed",
        "3 drawers were left closed.",
        "I left 3 drawers closed: [4] was the first.",
        "The first mistake was step 4",
        "no mistake until step 4",
        "There was no mistake in step 1, but step 4 was wrong",
        "In 3 of 5 rooms: nothing",
    ],
)
def test_a_number_in_prose_is_no_step(read, reply):
    assert read(reply) == UNPARSABLE


@FORMS
@pytest.mark.parametrize(
    "reply",
    [
        "no mistake", "no mistake.", "No mistake!", "There was no mistake.", "**no mistake**",
        "[no mistake]", "Answer: no mistake", "I see no mistake so far.", "No mistakes were made.",
    ],
)  # fmt: skip
def test_no_mistake_is_read_in_both_forms(read, reply):
    assert read(reply) == NONE


@FORMS
@pytest.mark.parametrize(
    "reply",
    [
        "[4] open it", "**[4]** open it", "**[4]:** open it", "`[4] open it`", "- [4] open it",
        "> [4] open it", "[4]: open it", "[4] - open it", "[4]\nopen it", "Step [4] open it",
        "[Step 4] open it", "Step 4: open it", "4. open it", "(4) open it", "Answer: [4] open it",
        "**Answer:** [4] open it", "The first mistake was step [4]: open it",
        "<think>[9] no</think>[4] open it",
    ],
)  # fmt: skip
def test_the_step_in_brackets_or_with_a_mark_is_read_in_both_forms(read, reply):
    assert read(reply) == Reflection("ok", 4, "open it")


@FORMS
def test_a_thought_without_end_holds_no_answer(read):
    assert read("<think>[4] open it") == read("<think>\nAnswer: [4] open it") == UNPARSABLE


def test_a_list_is_no_answer_of_one_line():
    """Without brackets the step must be on the reply's only line."""
    assert from_line("1. I looked around.\n2. I left the room.") == UNPARSABLE
    assert from_line("Step 1: I looked around.\nStep 2: I left the room.") == UNPARSABLE
    assert from_line("[1] look around first.\nStep 2 was right.") == (
        Reflection("ok", 1, "look around first.")
    )


# -- one line --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "reply",
    [
        "[1-3] open", "[1\u20133] open", "[2,3] open", "[1, 3] open", "[1 or 2] open", "[1.5] open",
        "[1e3] open", "[10**9] open", "[10^9] open", "[1/2] open", "[1 2] open",
        "1-3 open", "2,3 open", "1.5 open", "1e3 open", "12 3] open",
        "[1][2] open", "[1] [2] open", "[1], [2] open", "[1]-[3] open", "[1] and [2] open",
        "[1] through [3] open", "[1] to 3 open", "[1], 3 open", "[1] or 2 open", "[1] & 2 open",
        "3 to 5 open", "3 or 5: open", "step 3 and 4: open", "1 - 3 open", "3, 4 open", "3rd drawer",
        "[1234567890] open", "1234567890 open", "[" + "9" * 5000 + "] open", "9" * 5000 + " open",
        "[+2] open", "[-1] open", "[\u00b2] open", "[x] open",
        "[3: open", "3 put [a] in b", "3\u6253\u5f00", "[3]", "[3] ", "[3] ...", "[3] !?", "[3]: -", "", "[]", "\ud800",
    ],
)  # fmt: skip
def test_a_reflection_on_no_single_step_or_without_advice_is_unparsable(reply):
    assert from_line(reply) == UNPARSABLE


@pytest.mark.parametrize(
    "reply, tau, advice",
    [
        ("[3] open it.", 3, "open it."),
        ("<think>[9] x</think>\n[3]\nopen  it", 3, "open it"),
        ("step 3: open", 3, "open"),
        ("Step [3] - open", 3, "open"),
        ("3) open", 3, "open"),
        ("[ 2 ] open", 2, "open"),
        ("1. 5 apples", 1, "5 apples"),
        ("[1] 3 apples", 1, "3 apples"),
        ("[1] - 3 apples", 1, "3 apples"),
        ("[1] to be sure, open", 1, "to be sure, open"),
        ("[3] put [a] in [b]", 3, "put [a] in [b]"),
        ("[02] open", 2, "open"),
        ("[\uff12] open", 2, "open"),  # a full-width digit
        ("[3] \u6253\u5f00", 3, "\u6253\u5f00"),
    ],
)
def test_one_line_is_read(reply, tau, advice):
    assert from_line(reply) == Reflection("ok", tau, advice)


REFLECTION_PIECES = st.sampled_from(
    [
        "[",
        "]",
        "1",
        "23",
        "\uff12",
        "-",
        ",",
        ".",
        "e",
        "step",
        "no mistake",
        "and",
        " ",
        "\n",
        "open",
    ]
)


@given(st.lists(st.one_of(REFLECTION_PIECES, st.text(max_size=5)), max_size=10))
def test_any_string_is_a_reflection_or_a_named_failure(pieces):
    parsed = from_line("".join(pieces))
    assert parsed.status in ("ok", "no_mistake", "unparsable")
    if parsed.status == "ok":
        assert parsed.tau >= 0 and any(map(str.isalnum, parsed.experience))
    else:
        assert parsed.tau is None and parsed.experience is None


# -- reasoning, then a line ------------------------------------------------------------------------
REASONS = "In step 2 I went to the wrong room.\n[3] You see a drawer. Then I opened it.\n\n"


@pytest.mark.parametrize(
    "answer",
    [
        "Answer: [4] open it",
        "**Answer:** [4] open it",
        "**Answer**: [4] open it",
        "**Answer: [4] open it**",
        "Answer: **[4]** open it",
        "Answer: **[4]: open it**",
        "Answer: [4]: **open it**",
        "Answer: [4] - open it",
        "Answer: `[4] open it`",
        "Answer: [Step 4] open it",
        "Answer: Step [4] open it",
        "Answer: step 4: open it",
        "Answer: (4) open it",
        "Answer: 4. open it",
        "Answer: The first mistake was step [4]: open it",
        "answer: [4] open it",
        "Final answer: [4] open it",
        "The answer is: [4] open it",
        "- Answer: [4] open it",
        "### Answer\n[4] open it",
        "Answer:\n\n[4] open it",
        "Answer: [4]\nopen it",
        "Answer\uff1a\u30104\u3011open it",
        "So it went wrong there. Answer: [4] open it",
        "**[4]** open it",
        "**[4]:** open it",
        "[4]: open it",
        "[4] open it",
        "> [4] open it",
        "[4]\nopen it",
        "Step [4] open it",
        "Answer: [4] open it\n\nI hope that this helps in all 3 rooms.",
        "Answer: [2] wait\nNo, that step was right.\nAnswer: [4] open it",
    ],
)
def test_the_answer_after_the_reasoning_is_read(answer):
    assert after_reasoning(REASONS + answer) == Reflection("ok", 4, "open it")
    assert after_reasoning(f"<think>\n{REASONS}[9] no\n</think>\n{answer}\n ").tau == 4


@pytest.mark.parametrize(
    "answer",
    [
        "Answer: no mistake",
        "Answer: No mistake.",
        "**Answer:** no mistake",
        "Answer: **no mistake**",
        "Answer: [no mistake]",
        "Answer: there was no mistake.",
        "Answer: [0] no mistake",
        "Answer: [0]",
        "There was no mistake.",
        "no mistake.",
        "**No mistakes were made.**",
        "I see no mistake so far.",
    ],
)
def test_no_mistake_is_read(answer):
    assert after_reasoning(REASONS + answer) == NONE
    assert after_reasoning(answer) == NONE


@pytest.mark.parametrize(
    "reply",
    [
        "Step 1 was fine. The first mistake was step 4",
        "3 drawers were left closed",
        "Answer: 3 drawers were left closed",
        "Answer: Step 1 was fine. The first mistake was step 4",
        "Answer: the first mistake was step 4",
        "Answer: [1-3] open it",
        "Answer: [1][2] open it",
        "Answer: [1] and [2] open it",
        "Answer: [1.5] open it",
        "Answer: 1.5: open it",
        "Answer: 1 - 3 open it",
        "Answer: -1: open it",
        "Answer: [1234567890] open it",
        "Answer: [N] open it",
        "Answer: [4]",
        "Answer: [4] ...",
        "Answer: [4] no mistake",
        "Answer: no mistake until step 4",
        "Answer:",
        "Answer: open it",
        "no mistake until step 4",
        "There was no mistake in step 1, but step 4 was wrong",
        REASONS + "4. I left the room.",
        REASONS + "Step 4: I left the room.",
        REASONS + "(4) I left the room.",
        REASONS + "So the drawer [4] it is.",
        "[4] open it\nThat is all.",
        "<think>[4] open it",
        "<think>Answer: [4] open it\n",
        "",
        "[",
        "[]",
        "\ud800",
    ],
)
def test_a_number_in_prose_is_never_taken(reply):
    assert after_reasoning(reply) == UNPARSABLE


@pytest.mark.parametrize(
    ("reply", "parsed"),
    [
        # The heading says that the answer has begun; its advice lacks its end.
        (REASONS + "Answer: [4] open the", Reflection("ok", 4, "open the", cut=True)),
        ("[4] open the", Reflection("ok", 4, "open the", cut=True)),
        # Cut in what came after the answer.
        (REASONS + "Answer: [4] open it\nI ho", Reflection("ok", 4, "open it")),
        # The reasoning quotes its history, and would have gone on.
        (REASONS + "[4] You see", Reflection("unparsable", cut=True)),
        (REASONS + "There was no mistake", Reflection("unparsable", cut=True)),
        ("<think>" + REASONS, Reflection("unparsable", cut=True)),
        (REASONS + "Answer: no mistake", Reflection("no_mistake", cut=True)),
        ("", Reflection("unparsable", cut=True)),
    ],
)
def test_an_answer_that_the_token_limit_cut_is_flagged(reply, parsed):
    assert after_reasoning(reply, cut=True) == parsed


def test_a_cut_line_is_flagged():
    assert from_line("[3] open the", cut=True) == Reflection("ok", 3, "open the", cut=True)
    assert from_line("[3", cut=True) == Reflection("unparsable", cut=True)
    assert from_line("[3] open it\nI ho", cut=True) == Reflection("ok", 3, "open it")


def test_advice_that_is_too_long_is_flagged():
    for read in (from_line, after_reasoning):
        parsed = read("[3] " + "x" * (MAX_EXPERIENCE_CHARS + 1))
        assert parsed == Reflection("ok", 3, "x" * MAX_EXPERIENCE_CHARS, cut=True)


def test_quotes_and_operators_in_advice_stay():
    for advice in ("use `print`", "`print` the sum", "compute a**b", "use _x_ and __y__", "2 * 3"):
        assert after_reasoning(f"Answer: [3] {advice}") == Reflection("ok", 3, advice)


MARKED = st.sampled_from(
    ["Answer:", "Answer", "**", "[", "]", "(", ")", "4", "12", "step", "no mistake", "\n", " ", ".",
     ":", "-", "`", "<think>", "</think>", "open", "there was"]
)  # fmt: skip


@given(st.lists(st.one_of(MARKED, st.text(max_size=5)), max_size=14), st.booleans())
def test_any_string_with_reasoning_is_a_reflection_or_a_named_failure(pieces, cut):
    parsed = after_reasoning("".join(pieces), cut)
    assert parsed.status in ("ok", "no_mistake", "unparsable")
    if parsed.status == "ok":
        assert parsed.tau >= 0 and any(map(str.isalnum, parsed.experience))
    else:
        assert parsed.tau is None and parsed.experience is None


SPOKEN = [prompts_for(**fields) for fields in ({}, {"reasoning_tokens": 9}, {"style": "react"})]


@given(st.integers(1, 10**9 - 1), st.lists(st.sampled_from(["open", "it", "[2]", "1.", "`x`"])))
def test_what_is_formatted_is_read(tau, words):
    advice = " ".join(["go", *words, "now"])
    for prompts in SPOKEN:
        parsed = prompts.parse_reflection(prompts.format_reflection(tau, advice))
        assert (parsed.status, parsed.tau) == ("ok", tau)
        assert parsed.experience == advice[:MAX_EXPERIENCE_CHARS]


def test_a_long_reply_takes_no_time():
    for piece in (
        "[3",
        "Answer:",
        "**",
        "- ",
        "the first ",
        "no mistake ",
        "(",
        "Answer: [",
        "`",
        "1 ",
    ):
        begin = time.thread_time()
        after_reasoning(piece * (200_000 // len(piece)))
        after_reasoning("\n".join([piece * 10] * 5_000))
        assert time.thread_time() - begin < 2, piece
