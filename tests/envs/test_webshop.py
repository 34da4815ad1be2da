"""Pages, clicks and episodes; the pages of the original where LEAFE_DATA has them."""

import html.parser
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webshop_files import human, product, write

import envs
from envs.base import EnvDataError
from envs.webshop.environment import parse_action

SEP = " [SEP] "


def shop(tmp_path, products, instructions=None, **options):
    first = products[0]["asin"]
    instructions = instructions or {first: [human(first, "a mug", ("tea",))]}
    data = write(tmp_path, products, {}, instructions)
    return envs.make("webshop", data=data, nouns="guess", **options)


def play(env, state, *actions):
    for action in actions:
        state, result = env.step(state, action)
    return state, result


COLORS = {
    "Color": [{"value": "Red"}, {"value": "Blue"}],
    "Size": [{"value": "Red"}, {"value": "S/M"}],
}


@pytest.fixture
def mugs(tmp_path):
    rows = [
        product("A1", name="Tea Mug", customization_options=COLORS, pricing="$990"),
        *(product(f"B{n:02d}", name=f"Mug {n}", pricing=f"${n}") for n in range(10, 34)),
    ]
    people = {"A1": [human("A1", "a mug", ("tea",), ("s | m",))]}
    return shop(tmp_path, rows, people)


FRAGMENTS = st.text(alphabet="[]ab\n\r\u2028", max_size=12)


@settings(max_examples=1000, deadline=None)
@given(FRAGMENTS)
def test_actions_are_read_as_the_originals_pattern_reads_them(action):
    found = re.match(r"(.+)\[(.+)\]", action)
    expected = (found.group(1), found.group(2).lower()) if found else (action, "")
    assert parse_action(action) == expected


def test_an_action_of_brackets_takes_no_time():
    for action in ("[" * 1_000_000, "[" * 500_000 + "]", "a" + "[a" * 500_000):
        parse_action(action)  # minutes, where every bracket is tried with every other


def test_pages_word_for_word(mugs):
    (task,) = mugs.tasks
    assert task.task_id == "train/garden/00000" and task.family == "garden"
    state, first = mugs.reset(task.task_id)
    assert first == "WebShop [SEP] Instruction: [SEP] a mug [SEP] Search"
    assert mugs.actions(state) == ("search[<your query>]",)
    state, result = play(mugs, state, "search[blue tea mug]")
    head = "Instruction: [SEP] a mug [SEP] Back to Search [SEP] "
    assert result.observation.startswith(
        head
        + "Page 1 (Total results: 25) [SEP] Next > [SEP] A1 [SEP] Tea Mug [SEP] $990.0 [SEP] B10"
    )
    assert mugs.actions(state)[:3] == ("click[back to search]", "click[next >]", "click[a1]")
    state, result = play(mugs, state, "click[Next >]", "click[next >]")
    assert "Page 3 (Total results: 25) [SEP] < Prev [SEP] Next > [SEP] B" in result.observation
    assert mugs.actions(state)[:3] == ("click[back to search]", "click[< prev]", "click[next >]")
    _, empty = play(mugs, state, "click[next >]")
    assert empty.observation == head + "Page 4 (Total results: 25) [SEP] < Prev [SEP] Next >"
    state, result = play(mugs, state, "click[< prev]", "click[< prev]", "click[A1]")
    item = (
        head
        + "< Prev [SEP] color [SEP] red [SEP] blue [SEP] size [SEP] red [SEP] s | m [SEP] Tea Mug"
        " [SEP] Price: $990.0 [SEP] Rating: N.A. [SEP] Description [SEP] Features [SEP] Reviews"
        " [SEP] Buy Now"
    )
    assert result.observation == item
    assert mugs.actions(state) == (
        "click[back to search]", "click[< prev]", "click[description]", "click[features]",
        "click[reviews]", "click[buy now]", "click[red]", "click[blue]", "click[s | m]",
    )  # fmt: skip
    below, result = play(mugs, state, "click[features]")
    assert result.observation == head + "< Prev [SEP] Holds tea [SEP] Blue"
    assert play(mugs, below, "click[< prev]")[1].observation == item
    assert play(mugs, state, "click[description]")[1].observation == head + "< Prev [SEP] A mug."
    assert play(mugs, state, "click[reviews]")[1].observation == head + "< Prev"


def test_options_and_purchase(mugs):
    state, _ = mugs.reset(mugs.tasks[0].task_id)
    state, _ = play(mugs, state, "search[tea]", "click[a1]", "click[blue]")
    assert state.options == (("color", "blue"),)
    # "red" is a value of both options; the last one has it.
    state, _ = play(mugs, state, "click[red]")
    assert state.options == (("color", "blue"), ("size", "red"))
    state, _ = play(mugs, state, "click[features]", "click[< prev]", "click[S | M]")
    assert state.options == (("color", "blue"), ("size", "s | m"))
    assert play(mugs, state, "click[< prev]")[0].options == ()
    kept, _ = play(mugs, state, "click[features]")
    new, result = play(mugs, state, "click[buy now]")
    assert (result.reward, result.success, new.success, new.done) == (1.0, True, True, True)
    assert result.info["task_score"] == 1.0 and result.info["options"] == 1
    assert result.observation.startswith(
        "Thank you for shopping with us! [SEP] Your code: [SEP] None"
    )
    assert '[SEP] options [SEP] {"color": "blue", "size": "s | m"} [SEP]' in result.observation
    assert result.observation.endswith(
        "[SEP] Your score (min 0.0, max 1.0) [SEP] 1.0 [SEP] Reward Details [SEP] None"
    )
    assert "click[buy now]" not in mugs.actions(kept) and mugs.actions(new) == ()


def test_a_wrong_purchase_ends_the_episode_without_success(mugs):
    state, _ = mugs.reset(mugs.tasks[0].task_id)
    new, result = play(mugs, state, "search[tea]", "click[a1]", "click[buy now]")
    assert result.reward == pytest.approx(2 / 3)  # attribute and price, not the option
    assert new.done and result.done and not new.success and not result.success
    assert new.reward == result.reward == result.info["task_score"]


@pytest.mark.parametrize(
    "action",
    ["", "look", "search", "search[]", "Search[mug]", "search[a [b] c]", "click[search]", "click[]",
     "click[buy now]", "click[A1]", "click [next >]", "search[a\nb]", "[[]]", "click[reviews]"],
)  # fmt: skip
def test_actions_that_do_nothing(mugs, action):
    state, first = mugs.reset(mugs.tasks[0].task_id)
    new, result = mugs.step(state, action)
    assert result.observation == first and not result.info["valid"] and result.reward == 0
    assert new.num_steps == 1 and new.page == "start"


def test_search_works_everywhere_and_shorthands(mugs):
    state, _ = mugs.reset(mugs.tasks[0].task_id)
    item, _ = play(mugs, state, "search[tea]", "click[a1]", "click[blue]")
    again, result = play(mugs, item, "search[mug] and more]")
    assert (again.page, again.query, again.asin, again.options) == (
        "results",
        "mug] and more",
        "",
        (),
    )
    for query, total in [("<q> tea mugs", 25), ("<c> garden", 25), ("<c>", 0), ("<a> dummy_attr", 0),
                         ("<a>", 0), ("<r>", 25), ("<r> x", 25), ("zzz", 0)]:  # fmt: skip
        found = play(mugs, state, f"search[{query}]")[1].observation
        assert f"(Total results: {total})" in found, query
    assert play(mugs, state, "search[<r>]") == play(mugs, state, "search[<r>]")


def test_an_option_named_like_a_button(tmp_path):
    values = ["Reviews", "Next >", "Red [new]", "", "Fine"]
    odd = {"Style": [{"value": value} for value in values]}
    env = shop(tmp_path, [product("A1", customization_options=odd, pricing="$999")])
    state, _ = env.reset(env.tasks[0].task_id)
    item, _ = play(env, state, "search[<c> garden]", "click[a1]")
    assert env.actions(item)[-2:] == ("click[next >]", "click[fine]")  # not what no action can say
    assert play(env, item, "click[next >]")[0].options == (("style", "next >"),)
    assert play(env, item, "click[reviews]")[0].page == "reviews"


def test_blank_texts(tmp_path):
    """As the original's parser: nothing for empty texts and blank lines, an empty part for a space."""
    rows = [product("A1", full_description="", small_description=["", " ", "\n", " x "])]
    env = shop(tmp_path, rows)
    state, _ = env.reset(env.tasks[0].task_id)
    item, _ = play(env, state, "search[<c> garden]", "click[a1]")
    assert play(env, item, "click[description]")[1].observation.endswith(
        "Back to Search [SEP] < Prev"
    )
    assert play(env, item, "click[features]")[1].observation.endswith(
        "< Prev [SEP]  [SEP]  [SEP] x"
    )


def test_verl_agents_form():
    full, bare = envs.make("webshop"), envs.make("webshop", show_instruction=False)
    task = full.list_tasks("test")[0].task_id
    state, first = bare.reset(task)
    assert full.reset(task) == (state, first)
    goal = bare.goal(first)
    assert (
        first == f"WebShop [SEP] Instruction: [SEP] {goal} [SEP] Search" and full.goal(first) == ""
    )
    for action in [*full.solve(state)[:-1], "click[features]", "click[back to search]"]:
        whole, part = full.step(state, action)[1], bare.step(state, action)[1]
        parts = whole.observation.split(SEP)
        rest = parts[parts.index(goal) + 1 :]
        assert part.observation == SEP.join(f"'{text}'" for text in rest)
        state, _ = full.step(state, action)
    assert part.observation == "'Search'"


def test_the_expert_from_anywhere_and_where_there_is_no_way(tmp_path, mugs):
    state, _ = mugs.reset(mugs.tasks[0].task_id)
    for actions in (["click[search]"], ["search[mug]", "click[next >]"], ["search[tea]", "click[a1]"],
                    ["search[tea]", "click[a1]", "click[blue]", "click[features]"],
                    ["search[<c> garden]", "click[b10]", "click[reviews]"]):  # fmt: skip
        here, _ = play(mugs, state, *actions)
        assert play(mugs, here, *mugs.solve(here))[1].reward == 1.0
    here, _ = play(mugs, state, "search[tea]", "click[a1]", "click[features]")
    assert mugs.solve(here) == ["click[< prev]", "click[s | m]", "click[buy now]"]
    late, _ = play(mugs, state, *["look"] * 12)
    assert mugs.solve(late) is None  # four steps are needed, three are left
    bought, _ = play(mugs, here, "click[< prev]", "click[buy now]")
    assert mugs.solve(bought) is None
    wants_more = {"A1": [human("A1", "a mug", ("tea",), ("gold",))]}
    (tmp_path / "other").mkdir()
    env = shop(tmp_path / "other", [product("A1")], wants_more)
    assert env.solve(env.reset(env.tasks[0].task_id)[0]) is None


def test_bad_options():
    cases = [
        (dict(goals="both"), "env.options.goals = 'both': must be one of human, synthetic"),
        (dict(num_products=-1), "env.options.num_products = -1"),
        (dict(num_products=2.0), "env.options.num_products = 2.0"),
        (dict(show_instruction="no"), "env.options.show_instruction = 'no'"),
        (dict(products="items_shuffle.json"), "needs env.options.data"),
        (dict(nouns="all"), "env.options.nouns = 'all'"),
    ]
    for options, message in cases:
        with pytest.raises(EnvDataError, match=re.escape(message)):
            envs.make("webshop", **options)
    env = envs.make("webshop")
    good = env.list_tasks("test")[0].task_id
    for bad in (good.replace("test", "valid"), good[:-1], good + "0", good.replace("/0", "/x", 1)):
        with pytest.raises(EnvDataError, match="webshop task"):
            env.reset(bad)


@pytest.mark.parametrize("name", ["webshop", "webshop_qwen2_5_7b", "webshop_llama3_1_8b"])
@pytest.mark.parametrize("mode", ["full", "smoke"])
def test_configs(name, mode):
    """What the configs say is what the environment takes; the paper's two play verl-agent's form."""
    path = Path(__file__).resolve().parents[2] / "configs" / f"{name}.py"
    config = runpy.run_path(str(path))["get_config"](mode)
    options = config.env.options.to_dict()
    env = envs.make(config.env.name, horizon=config.env.horizon, **options)
    assert len(env.list_tasks("test")) >= config.evaluate.num_tasks
    assert env.goal(env.reset(env.tasks[0].task_id)[1])
    if name != "webshop":
        assert config.context.mode == "window" and config.context.window == 2
        assert options["goals"] == "synthetic"
        if mode == "full":
            assert (config.env.horizon, config.sampler.max_action_tokens) == (15, 512)


# -- the original's own pages ----------------------------------------------------------------------
DATA = Path(os.environ.get("LEAFE_DATA", "")) / "webshop"
needs_pages = pytest.mark.skipif(
    not (DATA / "mock_parse_results_ws.html").exists(), reason="LEAFE_DATA has no WebShop pages"
)


class PageParser(html.parser.HTMLParser):
    """Visible texts, clickables and named parts of a rendered page."""

    def __init__(self, path):
        super().__init__()
        self.texts, self.buttons, self.links, self.radios = [], [], [], []
        self.parts: dict[str, list[str]] = {}
        self.open: list[tuple[str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    @property
    def clickables(self):
        return list(dict.fromkeys([*self.buttons, *self.links, *self.radios]))

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        if tag == "input":
            self.radios.append(values["value"])
        if tag not in ("input", "img", "br", "link", "meta"):
            self.open.append((tag, values.get("class") or ""))

    def handle_endtag(self, tag):
        # The templates close <h4> with </h5>: whatever is open ends.
        self.open.pop()

    def handle_data(self, data):
        tag, kind = self.open[-1] if self.open else ("", "")
        if not data.strip() or tag in ("script", "style", "head", "title"):
            return
        self.texts.append(data.strip())
        self.parts.setdefault(kind or tag, []).append(data)
        if "btn" in kind.split():
            self.buttons.append(data.lower())
        if kind == "product-link":
            self.links.append(data.lower())


@needs_pages
@pytest.mark.parametrize(
    "name", ["results_ws", "item_page_ws", "item_page_ws_desc", "item_page_ws_feat"]
)
def test_the_originals_pages(tmp_path, name):
    """A shop with the products of the page shows the same texts and offers the same clicks."""
    page = PageParser(DATA / f"mock_parse_{name}.html")
    instruction = page.texts[page.texts.index("Instruction:") + 1]
    if name == "results_ws":
        asins, titles, prices = (
            page.links,
            page.parts["mt-0 font-weight-bold mb-2 product-title"],
            [
                text
                for kind, texts in page.parts.items()
                if "product-price" in kind
                for text in texts
            ],
        )
        rows = [
            product(asin.upper(), name=title, pricing=price)
            for asin, title, price in zip(asins, titles, prices, strict=True)
        ]
        assert len(rows) == 10
        rows += [product(f"X{n}") for n in range(40)]
    else:
        options = {
            "Color": [{"value": v} for v in ("Black", "Purple", "Red")],
            "Size": [{"value": v} for v in ("6.5", "7.5", "8", "8.5", "9")],
        }
        texts = page.parts.get("product-info", [])
        bullets = [text[1:] for text in texts]
        title = page.parts.get("h2", ["x"])[0]
        rows = [product("B09P87V3LZ", name=title, pricing="", customization_options=options,
                        full_description="".join(texts), small_description=bullets)]  # fmt: skip
    rows.append(product("GOAL", pricing="$999", category="beauty"))
    env = shop(tmp_path, rows, {"GOAL": [human("GOAL", instruction, ("x",))]})
    click = {"item_page_ws": [], "item_page_ws_desc": ["click[description]"],
             "item_page_ws_feat": ["click[features]"]}  # fmt: skip
    actions = ["search[<c> garden]"]
    if name != "results_ws":
        actions += ["click[b09p87v3lz]", *click[name]]
    state, _ = env.reset(env.tasks[0].task_id)
    state, result = play(env, state, *actions)
    assert result.observation == SEP.join(page.texts)
    assert list(env.clickables(state)) == page.clickables
    assert len(page.texts) > 4


# -- size ------------------------------------------------------------------------------------------
LARGE = """
import re, sys, time
import envs
start = time.process_time()
env = envs.make("webshop", data=sys.argv[1], nouns="guess")
ready = time.process_time() - start
queries = [env._goal(task.task_id).text for task in env.list_tasks("test")[:200]]
env._shop.index.search(queries[0])  # imports the stemmer where the index was read from a file
start = time.process_time()
for query in queries:
    env._shop.index.search(query)
spent = (time.process_time() - start) / len(queries)
# Not ru_maxrss: a child begins with what its parent had.
print(ready, spent, re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.slow
def test_a_hundred_thousand_products(tmp_path, monkeypatch):
    """Loaded and indexed in a minute and 1.5 GB, a query in 5 ms; the second start reads the index.

    Seconds of this process on a processor, so that neighbours on the machine do not count. Records
    have 3.1 KB; those of the official 1,000 have 4.4 KB, a part of which is dropped when read.
    """
    from envs.webshop import catalogue as webshop_catalogue

    def longer(number):
        for n, (row, attributes, people) in enumerate(webshop_catalogue.records(number)):
            other = [f"{row['full_description']} {word}{n % 977}" for word in "abcdefghijklmno"]
            row["full_description"] = " ".join(other)
            yield row, attributes, people

    rows = list(longer(100_000))
    write(tmp_path, [r[0] for r in rows], {r[0]["asin"]: r[1] for r in rows},
          {r[0]["asin"]: r[2] for r in rows})  # fmt: skip
    del rows
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": root}
    for attempt in ("first", "second"):
        output = subprocess.run(
            [sys.executable, "-c", LARGE, str(tmp_path)], capture_output=True, text=True, check=True,
            env=environment,
        ).stdout.split()  # fmt: skip
        ready, query, memory = float(output[0]), float(output[1]), float(output[2]) / 2**20
        print(f"{attempt} start: {ready:.1f} s, query {1000 * query:.2f} ms, peak {memory:.2f} GiB")
        assert ready < 60 and query < 0.005 and memory < 1.4  # GiB
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 1


def test_texts_with_half_characters_and_escape_sequences_are_played(tmp_path):
    """Half a character is shown as U+FFFD, and what is shown can be clicked."""
    options = {"Color": [{"value": "\udc80 red"}, {"value": "\x1b(b"}, {"value": ""}]}
    rows = [product("A1", name="Tea \ud800 Mug", customization_options=options)]
    env = shop(tmp_path, rows, {"A1": [human("A1", "a \udfff mug", options=("\udc80 red",))]})
    state, first = env.reset(env.tasks[0].task_id)
    assert "a \ufffd mug" in first
    state, result = play(env, state, "search[tea]", "click[a1]")
    assert "Tea \ufffd Mug" in result.observation
    for text in ("\ufffd red", "\x1b(b"):
        assert text in result.observation and f"click[{text}]" in env.actions(state)
        assert env.step(state, f"click[{text}]")[1].info["valid"]
    assert env.solve(state) == ["click[\ufffd red]", "click[buy now]"]
