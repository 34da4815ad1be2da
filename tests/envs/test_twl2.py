"""The twl2 grammar: symbols as textworld 1.7 reads them, derivations by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.alfworld.twl2 import Entity, Grammar, parse_query, parse_symbols
from envs.base import EnvDataError

ENTITIES = {n: Entity(n, "object", n.replace("_", " ")) for n in ("a_1", "b_1", "c_1")}


class Facts:
    """A world with the given facts, in the order given; one atom a query."""

    def __init__(self, **facts):
        self.facts = facts

    def assignments(self, query, binding):
        (atom,) = query
        (placeholder,) = atom.placeholders
        for found in self.facts.get(atom.predicate, ()):
            if binding.get(placeholder, found) == found:
                yield {**binding, placeholder: found}

    def entity(self, object_id):
        return ENTITIES[object_id]


def shown(symbols):
    """Symbols as text: literals as they are, the rest by kind."""
    out = []
    for symbol in symbols:
        if isinstance(symbol, str):
            out.append(symbol)
        elif hasattr(symbol, "rule"):
            out.append(("rule", symbol.rule))
        elif hasattr(symbol, "source"):
            out.append(("eval", symbol.source))
        else:
            out.append(("list" if symbol.listed else "each", len(symbol.query)))
    return out


# What textworld 1.7.0 makes of each (textgen._parse_and_convert), looked up there.
READ = {
    "\nAvail: x": ["Avail: x"],
    " (it is open)": ["(it is open)"],
    " \n a": ["a"],
    "//comment\nrest": ["rest"],
    "a // c": ["a // c"],
    "a; b": ["a"],
    "a [b] c": ["a "],
    "a <b> c": ["a "],
    "a | b": ["a "],
    "tail ": ["tail "],
    "100% #": ["100% "],
    "a {r.name} (x)} tail": ["a ", ("eval", "r.name"), " (x)"],
    "[{o.name | in(o:object)}] b": [("list", 1), " b"],
    "{a.name}\n{b.name}": [("eval", "a.name"), "\n", ("eval", "b.name")],
    "#x#  #y#\n\n #z#": [("rule", "x"), "  ", ("rule", "y"), "\n\n ", ("rule", "z")],
    '"quo" x': ["quo", " x"],
    "  {r.name}": [("eval", "r.name")],
    "{#overview(o)# | p(o:o)}": [("each", 1)],
    "x {#ov# } y": ["x "],
    "# x #": [("rule", " x ")],
    "{a.name|q(a:t)&r(b:t)}": [("each", 2)],
    "#a##b#": [("rule", "a"), ("rule", "b")],
}


@pytest.mark.parametrize("text", READ)
def test_symbols_are_read_as_by_textworld(text):
    assert shown(parse_symbols(text, "test")) == READ[text]


GRAMMAR = '''
grammar :: """ {
  "seen": [{"condition": "lit(o:object)", "rhs": "Lit: [{#one(o)# | lit(o:object)}]."},
           {"rhs": "Dark."}],
  "one(o)": [{"rhs": "{o.indefinite + ' ' + o.name}"}],
  "either": [{"rhs": "{o.name or o.id}, {o}"}],
  "list_empty": [{"rhs": "nothing"}], "list_separator": [{"rhs": ", "}],
  "list_last_separator": [{"rhs": ", and "}]
} """;
# a comment
action Look { template :: "look"; feedback :: "#seen#";
  grammar :: """
    # lines like this one are no JSON
    {"all": [{"rhs": "[{o.name | lit(o:object)}]"}]}
  """; }
'''


def derive(text, world, binding=None):
    return Grammar(GRAMMAR, "test").derive(parse_symbols(text, "test"), world, binding or {})


def test_derivations_by_hand():
    assert derive("#seen#", Facts()) == "Dark."
    assert derive("#seen#", Facts(lit=["a_1"])) == "Lit: a a 1."
    assert derive("#seen#", Facts(lit=["b_1", "a_1"])) == "Lit: a b 1, and a a 1."
    assert derive("#seen#", Facts(lit=["a_1", "b_1", "c_1"])) == "Lit: a a 1, a b 1, and a c 1."
    assert derive("[{o.name | lit(o:object)}]", Facts()) == "nothing"
    assert derive("{o.name | lit(o:object)}", Facts(lit=["a_1", "b_1"])) == "a 1b 1"
    bound = {("o", "object"): "b_1"}
    assert derive("{o.name | lit(o:object)}", Facts(lit=["a_1", "b_1"]), bound) == "b 1"
    assert derive("#either#", Facts(), bound) == "b 1, b 1"
    grammar = Grammar(GRAMMAR, "test")
    assert grammar.predicates() == {"lit"} and set(grammar.actions) == {"look"}


@pytest.mark.parametrize(
    "text, message",
    [
        ('action look { template :: "look" }', "line 1: '}' where ; should be"),
        ('action look { color :: "red"; }', "'color': must be one of"),
        ('grammar :: """ {"a": [} """;', "not JSON"),
        ('grammar :: """ {"a": "b"} """;', "must map rule names to lists"),
        ('grammar :: """ {"a": [{"rhs": "{o.name.upper()}"}]} """;', "may use names"),
        ('grammar :: """ {"a": [{"rhs": "{__import__}{o.__class__}"}]} """;', "may use names"),
        ('grammar :: """ {"a": [{"rhs": "x", "condition": "lit"}]} """;', "is not predicate"),
        ("look !", "line 1: '!' is not twl2"),
    ],
)
def test_errors(text, message):
    with pytest.raises(EnvDataError, match=message) as caught:
        Grammar(text, "some file")
    assert "some file" in str(caught.value)


def test_what_is_missing_when_text_is_derived():
    with pytest.raises(EnvDataError, match="no rule 'nowhere'"):
        derive("#nowhere#", Facts())
    with pytest.raises(EnvDataError, match="names 'x', which is not bound"):
        derive("{x.name}", Facts())


def test_a_placeholder_without_a_type_is_its_own_type():
    (first, second) = parse_query("p(r, o:object) & not_q(o:object)", "test")
    assert first.placeholders == (("r", "r"), ("o", "object")) and second.predicate == "not_q"


@given(st.text(alphabet='ab #{}[]|"\n;.<>&():', max_size=30))
def test_any_text_is_read_or_refused_with_one_error(text):
    try:
        parse_symbols(text, "test")
    except EnvDataError as error:
        assert "test" in str(error)
