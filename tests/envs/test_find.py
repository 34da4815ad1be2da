"""Environments by name: ours, those of other packages, and what is said where there is none."""

import dataclasses
import pathlib

import pytest

import envs
from envs.base import EnvDataError, Environment, FilePath, Options, Task, one_of
from envs.household.environment import Household
from envs.sokoban.environment import Sokoban


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A function that installs a distribution with entry points: name -> module:Class."""

    def install(distribution, **points):
        folder = tmp_path / f"{distribution}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: {distribution}\nVersion: 1.0\n")
        lines = [f"{name} = {value}" for name, value in points.items()]
        (folder / "entry_points.txt").write_text("\n".join(["[leafe_jax.environments]", *lines]))
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


def test_by_module_and_by_entry_point(installed):
    assert envs.find("envs.household.environment:Household") is Household
    installed("rooms", rooms="envs.household.environment:Household")
    assert envs.find("rooms") is Household
    assert envs.names() == (*envs.REGISTRY, "rooms")
    assert envs.make("rooms", split="test", horizon=7).horizon == 7


def test_a_name_of_ours_means_ours(installed):
    """An installed package changes no config's meaning; its class is still there by module:Class."""
    installed("rooms", sokoban="envs.household.environment:Household")
    assert envs.find("sokoban") is Sokoban
    assert envs.names() == tuple(envs.REGISTRY)


def test_two_packages_with_one_name_are_refused(installed):
    installed("rooms", rooms="envs.household.environment:Household")
    installed("halls", rooms="envs.science.environment:Science")
    message = "several entry points: envs.household.environment:Household, envs.science"
    with pytest.raises(EnvDataError, match=message):
        envs.find("rooms")
    installed("rooms_again", other="envs.household.environment:Household")
    installed("rooms_twice", other="envs.household.environment:Household")
    assert envs.find("other") is Household  # the same class: an old copy of the metadata, say


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chess", "env.name = 'chess': must be one of alfworld, .*, or package.module:Class"),
        (None, "env.name = None: must be one of"),
        (["sokoban"], r"env.name = \['sokoban'\]: must be one of"),
        ("a:b:c", "env.name = 'a:b:c': must be package.module:Class"),
        ("a.b:", "must be package.module:Class"),
        (".play:Game", "must be package.module:Class"),
        ("no.such.module:Game", "cannot import no.such.module: ModuleNotFoundError: No module named 'no'"),
        ("wrong_syntax:Game", "cannot import wrong_syntax: SyntaxError: .*line 1"),
        ("that_raises:Game", "cannot import that_raises: ZeroDivisionError: division by zero"),
        ("that_exits:Game", "cannot import that_exits: SystemExit: 3"),
        ("envs.play:Game", "Game is not an Environment class of envs.play; it has none"),
        ("envs.household.environment:House", "House is not an Environment class of .*; it has Household"),
        ("envs.base:Environment", "Environment does not define _list_tasks, _reset, _step, actions, solve"),
        ("unnamed:Unnamed", "Unnamed: the class sets no name"),
        ("unnamed:Endless", "env.horizon = 0: must be an integer of at least 1"),
    ],
)  # fmt: skip
def test_what_cannot_be_found_is_one_line(tmp_path, monkeypatch, name, message):
    (tmp_path / "wrong_syntax.py").write_text("def (:")
    (tmp_path / "that_raises.py").write_text("1 / 0")
    (tmp_path / "that_exits.py").write_text("raise SystemExit(3)")
    (tmp_path / "unnamed.py").write_text(
        "from envs.household.environment import Household\n"
        "class Unnamed(Household):\n    name = ''\n"
        "class Endless(Household):\n    horizon = 0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(EnvDataError, match=message) as error:
        envs.make(name)
    assert "\n" not in str(error.value)


def test_an_entry_point_that_cannot_be_imported_says_where_it_leads(installed):
    installed("gone", gone="no_such_module:Game")
    with pytest.raises(
        EnvDataError, match=r"env.name = 'gone' \(no_such_module:Game\): cannot import"
    ):
        envs.make("gone")


# -- options ---------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class AllOptions(Options):
    flag: bool = False
    count: int = 3
    rate: float = 0.5
    word: str = "a"
    file: FilePath = ""
    files: tuple[FilePath, ...] = ()
    size: tuple[int, int] = (1, 2)
    rates: tuple[float, ...] = ()
    kind: str = one_of("x", ("x", "y", ""))
    kinds: tuple[str, ...] = one_of((), ("x", "y"))

    def check(self):
        self.require("count", self.count < 9, "below 9")


def test_options_take_what_stands_for_their_values():
    made = AllOptions(
        rate=2, files=[pathlib.Path("a"), "b"], file=pathlib.Path("c"), size=[3, 4], rates=[1, 2.5],
        kind="", kinds=["y", "x"],
    )  # fmt: skip
    assert made == AllOptions(
        False, 3, 2.0, "a", "c", ("a", "b"), (3, 4), (1.0, 2.5), "", ("y", "x")
    )
    assert type(made.rate) is float and hash(made) == hash(dataclasses.replace(made))


@pytest.mark.parametrize(
    ("option", "value", "allowed"),
    [
        ("flag", 1, "True or False"), ("count", True, "an integer"), ("count", 2.0, "an integer"),
        ("count", 9, "below 9"), ("rate", "1", "a finite number"), ("rate", float("inf"), "a finite number"),
        ("rate", 10**400, "a finite number"), ("word", b"a", "a text"), ("file", 1, "a path, or '' for none"),
        ("files", "abc", "a list of paths"), ("files", [1], "a list of paths"), ("size", [1], "a list of 2 integers"),
        ("size", (1, 2.0), "a list of 2 integers"), ("rates", [None], "a list of finite numbers"),
        ("kind", "z", "one of x, y, ''"), ("kind", [], "one of x, y, ''"), ("kinds", ["z"], "a list out of x, y"),
        ("kinds", "x", "a list out of x, y"), ("word", None, "a text"),
    ],
)  # fmt: skip
def test_wrong_values_are_named_with_what_is_allowed(option, value, allowed):
    with pytest.raises(EnvDataError, match="env.options") as error:
        AllOptions(**{option: value})
    assert str(error.value).startswith(f"env.options.{option} = ")
    assert str(error.value).endswith(f": must be {allowed}")
    assert len(str(error.value)) < 300


def test_options_of_another_environment_are_refused():
    with pytest.raises(EnvDataError, match="household options = 5: must be Options"):
        Household(20, 5)
    with pytest.raises(EnvDataError, match="sokoban options = AllOptions.*must be SokobanOptions"):
        Sokoban(options=AllOptions())


def test_reset_takes_a_task_or_its_id():
    env = Household()
    task = env.list_tasks("test")[3]
    assert env.reset(task) == env.reset(task.task_id)
    for wrong in (None, 3, [task]):
        with pytest.raises(EnvDataError, match="household task .*: must be a Task or its id"):
            env.reset(wrong)
    with pytest.raises(EnvDataError, match="household task 'nowhere'"):
        env.reset(Task("nowhere", "x", "test"))


def test_the_defaults_are_the_class_s():
    assert (Household().horizon, Household(5).horizon, Household.horizon) == (20, 5, 20)
    assert Sokoban().options == Sokoban.Options() and issubclass(Sokoban, Environment)
