"""Typed settings from mappings: what is wrong is refused in one line with its full name."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import ml_collections
import pytest

from leafe_jax.errors import UserError
from leafe_jax.runtime.settings import build
from leafe_jax.training.settings import TrainConfig


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    names: tuple[str, ...] = ("a",)


@dataclasses.dataclass(frozen=True)
class Outer:
    count: int
    on: bool = False
    text: str | None = None
    pair: tuple[int, float] = (1, 2.0)
    inner: Inner = Inner()
    searches: dict[str, Inner] = dataclasses.field(default_factory=dict)
    pairs: tuple[tuple[int, float], ...] = ()
    mode: Literal["tree", "flat"] = "tree"
    free: Any = None
    numbers: list[int] = dataclasses.field(default_factory=list)
    either: Inner | int = 3

    def __post_init__(self):
        if self.count > 99:
            raise UserError(f"count = {self.count}: at most 99")


def test_values_come_through():
    made = build(
        Outer,
        {
            "count": 2, "on": True, "text": "x", "pair": [3, 4], "inner": {"rate": 1, "names": ["b"]},
            "searches": {"tree": {"rate": 2.0}, "flat": {}}, "pairs": [[1, 2]], "mode": "flat",
            "free": object, "numbers": (1, 2), "either": {"rate": 3},
        },
        "outer",
    )  # fmt: skip
    assert made == Outer(
        2, True, "x", (3, 4.0), Inner(1.0, ("b",)), {"tree": Inner(2.0), "flat": Inner()},
        ((1, 2.0),), "flat", object, [1, 2], Inner(3.0),
    )  # fmt: skip
    assert type(made.inner.rate) is float and type(made.pairs[0][1]) is float
    assert build(Outer, {"count": 1}, "outer") == Outer(1)
    assert build(Outer, made, "outer") is made
    config = ml_collections.ConfigDict({"count": 1, "inner": {"names": ("c", "d")}})
    assert build(Outer, config, "") == Outer(1, inner=Inner(names=("c", "d")))
    # Back and forth.
    assert build(Outer, dataclasses.asdict(made), "outer") == made


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(coutn=1), "outer.coutn: no such field; there are count, either, free,"),
        (dict(count="1"), "outer.count = '1': must be a whole number"),
        (dict(count=1.0), "outer.count = 1.0: must be a whole number"),
        (dict(count=True), "outer.count = True: must be a whole number"),
        (dict(on=1), "outer.on = 1: must be True or False"),
        (dict(text=3), "outer.text = 3: must be a text or None"),
        (dict(pair=(1,)), "outer.pair = (1,): must be a tuple of 2: a whole number, a number"),
        (dict(pair=(1, "x")), "outer.pair[1] = 'x': must be a number"),
        (dict(inner={"rate": True}), "outer.inner.rate = True: must be a number"),
        (dict(inner={"rat": 1}), "outer.inner.rat: no such field; there are names, rate"),
        (dict(inner=3), "outer.inner = 3: must be a section with fields"),
        (
            dict(inner={"names": "ab"}),
            "outer.inner.names = 'ab': must be a tuple, each element a te",
        ),
        (dict(inner={"names": ("a", 1)}), "outer.inner.names[1] = 1: must be a text"),
        (
            dict(searches={"tree": {"rate": "x"}}),
            "outer.searches.tree.rate = 'x': must be a number",
        ),
        (dict(searches=[1]), "outer.searches = [1]: must be a section, each field a section"),
        (dict(searches={1: {}}), "outer.searches: field 1: must be a text"),
        (dict(mode="bush"), "outer.mode = 'bush': must be one of tree, flat"),
        (dict(numbers=[1, None]), "outer.numbers[1] = None: must be a whole number"),
        (dict(either="x"), "outer.either = 'x': must be a section with fields or a whole number"),
        (dict(either={"rat": 1}), "outer.either.rat: no such field"),
        (dict(count=100), "count = 100: at most 99"),
        (dict(text="x" * 99, count="y" * 99), f"outer.count = '{'y' * 56}...: must be"),
    ],
    ids=str,
)
def test_wrong_values(changes, message):
    with pytest.raises(UserError) as error:
        build(Outer, {"count": 1, **changes}, "outer")
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_missing_fields_and_sections():
    with pytest.raises(UserError, match="^outer.count: missing; must be a whole number$"):
        build(Outer, {}, "outer")
    with pytest.raises(UserError, match="^count: missing"):
        build(Outer, {}, "")
    with pytest.raises(UserError, match="^outer = 3: must be a section with fields$"):
        build(Outer, 3, "outer")


def test_a_train_section():
    made = build(TrainConfig, {"clip_norm": 2, "mesh": {"fsdp": 4}, "lora": {"rank": 2}}, "x.train")
    assert made.clip_norm == 2.0 and (made.mesh.data, made.mesh.fsdp) == (-1, 4)
    assert made.lora.rank == 2 and made.seq_len == TrainConfig().seq_len
    for changes, message in (
        (dict(mesh={"data": 0}), "train.mesh.data = 0: must be at least 1, or -1"),
        (dict(mesh={"fsdp": -1}), "train.mesh: data = -1, fsdp = -1, tensor = 1: only one of"),
        (dict(mesh={"rows": 1}), "x.train.mesh.rows: no such field; there are data, fsdp, tensor"),
    ):
        with pytest.raises(UserError, match=message):
            build(TrainConfig, changes, "x.train")


def test_settings_need_no_jax():
    import subprocess
    import sys

    code = "import sys, leafe_jax.training.settings; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
