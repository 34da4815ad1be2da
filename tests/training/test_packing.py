"""Records, packing and the order of the data; normalisation and mixing by hand."""

import itertools
import json

import numpy as np
import pytest
import trainer

from leafe_jax.errors import UserError
from leafe_jax.methods.examples import action_mass
from leafe_jax.training import records
from leafe_jax.training.packing import best_fit, make_even_plan, mixing_coefficients
from leafe_jax.training.records import ExampleFile, survey, write_examples
from leafe_jax.types import Example

# Of trainer.examples(9), by the code of before there were columns.
DIGEST = "3561989d522236ae"
# Eight examples of one length, in rows of two and batches of two rows.
PINNED = [[[3, 7], [6, 1]], [[4, 0], [2, 5]]]


def test_action_mass_by_hand():
    assert action_mass(6, [(1, 3), (5, 6)], "example").tolist() == [0, 0.5, 0.5, 0, 0, 1]
    assert action_mass(6, [(1, 3), (5, 6)], "token").tolist() == [0, 1, 1, 0, 0, 1]
    with pytest.raises(UserError, match="normalisation = 'sum'"):
        action_mass(2, [], "sum")


def test_mixing_coefficients_by_hand():
    """Source 0 has mass 1, source 1 mass 3, an epoch 1.5 batches: 1 * 1.5 / 1 and 0.5 * 1.5 / 3."""
    made = [
        Example(np.arange(3, dtype=np.int32), np.array([0, 1, 0], np.float32), 0),
        Example(np.arange(4, dtype=np.int32), np.array([0, 1, 1, 1], np.float32), 1),
    ]
    masses = survey(made, 2, 40).masses
    np.testing.assert_allclose(mixing_coefficients(masses, (1.0, 0.5), 1.5), [1.5, 0.25])
    assert mixing_coefficients((2.0, 0.0), (1.0, 0.5), 3).tolist() == [1.5, 0.0]


def test_records_come_back(tmp_path):
    made = trainer.examples(9)
    write_examples(tmp_path / "x.array_record", made)
    back = ExampleFile(tmp_path / "x.array_record")
    assert len(back) == 9
    for left, right in zip(made, (back[i] for i in range(9))):
        assert left.ids.tolist() == right.ids.tolist() and left.source == right.source
        assert left.mass.tolist() == right.mass.tolist()
    assert survey(made, 2, 40) == survey(back, 2, 40)
    changed = [*made[:-1], Example(made[-1].ids[::-1].copy(), made[-1].mass, made[-1].source)]
    assert survey(changed, 2, 40).digest != survey(made, 2, 40).digest


def with_columns(count=9) -> list[Example]:
    rng = np.random.default_rng(2)
    return [
        Example(e.ids, e.mass, e.source, {
            name: rng.normal(size=len(e.ids)).astype(np.float32) for name in ("advantage", "b_2")
        })
        for e in trainer.examples(count)
    ]  # fmt: skip


def test_records_with_columns_come_back(tmp_path):
    """In one file with records without any, whose bytes are those of before there were columns."""
    made = [*with_columns(5), *trainer.examples(2)]
    write_examples(tmp_path / "x.array_record", made)
    back = ExampleFile(tmp_path / "x.array_record")
    for left, right in zip(made, (back[i] for i in range(7))):
        assert left.ids.tolist() == right.ids.tolist() and left.source == right.source
        assert left.mass.tolist() == right.mass.tolist() and right.mass.dtype == np.float32
        assert left.columns.keys() == right.columns.keys()
        for name, values in left.columns.items():
            assert values.tolist() == right.columns[name].tolist()
    plain = made[-1]
    assert back._source[6] == (
        np.int32(plain.source).tobytes() + plain.ids.tobytes() + plain.mass.tobytes()
    )
    cut = bytes(back._source[0])
    for damaged in (cut[:-4], cut + b"1234", cut[:8] + b"\xff\xff\xff\x7f" + cut[12:], cut[:12]):
        with pytest.raises(ValueError):
            records._from_bytes(damaged)
    # The digest is of the columns, too; without them it is the one of before.
    assert survey(made, 2, 40).digest == survey(back, 2, 40).digest
    changed = dict(made[0].columns, b_2=made[0].columns["b_2"] + 1)
    other = [Example(made[0].ids, made[0].mass, made[0].source, changed), *made[1:]]
    assert survey(other, 2, 40).digest != survey(made, 2, 40).digest
    assert survey(trainer.examples(9), 2, 40).digest == DIGEST
    with pytest.raises(UserError, match="train: example 5 has no column 'advantage'"):
        survey(made, 2, 40, ("advantage",))


def test_columns_are_packed_as_the_mass_is():
    """Each value stands where its token is the target."""
    made = with_columns()
    for batch in trainer.batches(made, columns=("advantage",)):
        assert "b_2" not in batch and batch["advantage"].dtype == np.float32
        assert not batch["advantage"][batch["segment_ids"] == 0].any()
        for row in range(4):
            for segment in range(1, batch["segment_ids"][row].max() + 1):
                at = batch["segment_ids"][row] == segment
                ids = [*batch["tokens"][row][at][:1], *batch["targets"][row][at]]
                example = next(e for e in made if e.ids.tolist() == ids)
                expected = example.columns["advantage"][1:].tolist()
                assert batch["advantage"][row][at].tolist() == expected


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"mass": np.ones(4, np.float32)}, "column 'mass': must be an ASCII identifier other than"),
        ({"a b": np.ones(4, np.float32)}, "column 'a b': must be an ASCII identifier"),
        ({"\xe4": np.ones(4, np.float32)}, "must be an ASCII identifier"),
        ({"a": np.ones(3, np.float32)}, r"column a: float32 \(3,\): must be float32 \(4,\)"),
        ({"a": np.ones(4)}, r"column a: float64 \(4,\): must be float32"),
        ({"a": np.full(4, np.nan, np.float32)}, "column a must be finite"),
    ],
)
def test_bad_columns(columns, message):
    with pytest.raises(ValueError, match=message):
        Example(np.arange(4, dtype=np.int32), np.r_[0, 1, 1, 1].astype(np.float32), 0, columns)


def test_bad_records(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    with pytest.raises(UserError, match="none.array_record: missing"):
        ExampleFile(tmp_path / "none.array_record")
    (tmp_path / "text").write_text("no records" * 10000)
    with pytest.raises(UserError, match="not a readable ArrayRecord file"):
        ExampleFile(tmp_path / "text")
    writer = ArrayRecordWriter(str(tmp_path / "odd"), "group_size:1")
    writer.write(b"123456789")
    writer.close()
    with pytest.raises(UserError, match="record 0 is no example: 9 bytes"):
        ExampleFile(tmp_path / "odd")[0]
    with pytest.raises(UserError, match="example 1 has source 1: must be below 1"):
        survey(trainer.examples(3), 1, 40)
    with pytest.raises(UserError, match="no example"):
        survey([], 1, 40)


def fewest_rows(lengths, capacity):
    """By brute force."""
    for rows in range(1, len(lengths) + 1):
        for places in itertools.product(range(rows), repeat=len(lengths)):
            if np.bincount(places, lengths, minlength=rows).max() <= capacity:
                return rows


def test_best_fit_packs_everything_and_nearly_as_well_as_possible():
    rng = np.random.default_rng(0)
    for _ in range(30):
        lengths = rng.integers(1, 11, 6).tolist()
        rows = best_fit(lengths, 10)
        assert sorted(i for row in rows for i in row) == list(range(6))
        assert all(sum(lengths[i] for i in row) <= 10 for row in rows)
        # Known bound of best fit decreasing: 11/9 of the optimum and a bit.
        assert len(rows) <= fewest_rows(lengths, 10) * 11 / 9 + 6 / 9


def test_little_padding_on_conversations():
    """Lengths as the household's: short pairs beside whole episodes."""
    rng = np.random.default_rng(0)
    lengths = np.concatenate((rng.integers(40, 200, 400), rng.integers(150, 310, 100)))
    made = [
        Example(np.ones(n + 1, np.int32), np.r_[0, np.ones(n)].astype(np.float32), 0)
        for n in lengths.tolist()
    ]
    packed = trainer.batches(made, batch_size=8, num_epochs=5, seq_len=320)
    assert packed.padding < 0.05
    seen = np.concatenate([b["segment_ids"] for b in packed])
    assert np.mean(seen == 0) == pytest.approx(packed.padding)


def test_batches_hold_every_example_once_an_epoch():
    made = trainer.examples(23)
    batches = trainer.batches(made, num_epochs=3, seed=1)
    seen, number = [], 0
    for batch in batches:
        assert all(v.shape == (4, 24) for v in batch.values())
        for row in range(4):
            for segment in range(1, batch["segment_ids"][row].max() + 1):
                at = batch["segment_ids"][row] == segment
                assert batch["positions"][row][at].tolist() == list(range(at.sum()))
                first = batch["tokens"][row][at][:1]
                seen.append(tuple([*first.tolist(), *batch["targets"][row][at].tolist()]))
                example = next(e for e in made if tuple(e.ids) == seen[-1])
                assert batch["mass"][row][at].tolist() == example.mass[1:].tolist()
                assert set(batch["source"][row][at].tolist()) == {example.source}
        number += 1
    assert sorted(seen) == sorted(tuple(e.ids.tolist()) for e in made for _ in range(3))
    assert seen[:23] != seen[23:46], "each epoch has an order of its own"
    assert batches.num_steps == number
    orders = [
        [b["tokens"].tolist() for b in trainer.batches(made, num_epochs=3, seed=s)]
        for s in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]


def test_the_order_is_the_same_on_every_machine():
    made = [Example(np.full(6, i, np.int32), np.r_[0, np.ones(5)].astype(np.float32), 0) for i in range(8)]  # fmt: skip
    first = [
        b["tokens"][:, ::5].tolist() for b in trainer.batches(made, 7, batch_size=2, seq_len=10)
    ]
    assert first == PINNED


def test_iterator_state_resumes_exactly():
    made = trainer.examples(40)
    whole = [b["tokens"] for b in trainer.batches(made, num_epochs=2, seed=5)]
    iterator = iter(trainer.batches(made, num_epochs=2, seed=5))
    for _ in range(4):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    resumed = iter(trainer.batches(made, num_epochs=2, seed=5))
    resumed.set_state(state)
    rest = [b["tokens"] for b in resumed]
    assert len(rest) == len(whole) - 4
    assert all(np.array_equal(a, b) for a, b in zip(rest, whole[4:], strict=True))


def test_processes_read_their_own_rows_of_the_same_batches():
    made = trainer.examples(30)
    whole = list(trainer.batches(made, num_epochs=2))
    for own in ([0, 1], [2, 3], [0, 2]):
        parts = list(trainer.batches(made, num_epochs=2, own=own))
        assert len(parts) == len(whole)
        for part, batch in zip(parts, whole):
            assert all(np.array_equal(part[k], batch[k][own]) for k in batch)


def test_a_position_means_the_same_for_any_number_of_processes():
    made = trainer.examples(30)
    half = iter(trainer.batches(made, num_epochs=2, own=[0, 1]))
    for _ in range(3):
        next(half)
    whole = iter(trainer.batches(made, num_epochs=2))
    whole.set_state(half.get_state())
    left, right = next(half), next(whole)
    assert all(np.array_equal(left[k], right[k][:2]) for k in left)


@pytest.mark.parametrize(("count", "num_epochs"), [(7, 1), (7, 3), (1, 2), (23, 1), (30, 1)])
def test_batches_of_so_many_examples(count, num_epochs):
    """Every batch but the last has exactly `count`; all have the same rows, as few as the mesh allows."""
    made = trainer.examples(23)
    batches = trainer.batches(
        made, seed=1, multiple=2, batch_examples=count, batch_size=30, num_epochs=num_epochs
    )
    seen, rows = [], set()
    for batch in batches:
        rows.add(batch["tokens"].shape)
        found = []
        for segments, targets, tokens in zip(
            batch["segment_ids"], batch["targets"], batch["tokens"], strict=True
        ):
            for segment in range(1, segments.max() + 1):
                at = segments == segment
                found.append((tokens[at][0], *targets[at]))
        seen.append(found)
    total = 23 * num_epochs
    assert [len(found) for found in seen] == [
        min(count, total - begin) for begin in range(0, total, count)
    ]
    assert len(seen) == batches.num_steps
    every = sorted(example for found in seen for example in found)
    assert every == sorted(tuple(e.ids.tolist()) for e in made for _ in range(num_epochs))
    lengths = [sum(len(example) - 1 for example in found) for found in seen]
    ((number, seq_len),) = rows
    assert number % 2 == 0 and seq_len == 24 and number * 24 >= max(lengths)
    if count == 1:
        assert number == 2
    held = sum(lengths) / (len(seen) * number * seq_len)
    assert batches.padding == pytest.approx(1 - held)


def test_batches_of_so_many_examples_need_rows():
    made = trainer.examples(23)
    with pytest.raises(UserError) as error:
        trainer.batches(made, multiple=4, batch_examples=23, batch_size=4)
    message = "train.batch_size = 4: must be at least 12, the rows that batches of"
    assert str(error.value).startswith(message) and "train.batch_examples = 23" in str(error.value)
    with pytest.raises(UserError, match="train.batch_examples = -1: must be at least 0"):
        trainer.batches(made, batch_examples=-1)


@pytest.mark.parametrize("changes", [{}, {"batch_examples": 7, "batch_size": 8}])
def test_the_sources_stand_one_to_beta_over_an_epoch(changes):
    """18 pairs of mass 1 and 5 sequences of mass 2 to 5: their weights add up to 1 : beta exactly."""
    made = trainer.uneven(23)
    masses = survey(made, 2, 40).masses
    batches = trainer.batches(made, **changes)
    coefficients = mixing_coefficients(masses, (1.0, 0.5), batches.num_steps)
    weights = np.zeros(2)
    for batch in batches:
        for source in (0, 1):
            own = np.where(batch["source"] == source, batch["mass"], 0)
            weights[source] += coefficients[source] * own.sum(dtype=np.float64)
    np.testing.assert_allclose(weights / batches.num_steps, [1.0, 0.5], rtol=1e-6)


def test_bad_data_settings():
    made = trainer.examples()
    with pytest.raises(UserError, match="train.seq_len = 5: the longest example needs 1"):
        trainer.batches(made, seq_len=5)
    with pytest.raises(UserError, match="train.batch_size = 0"):
        trainer.batches(made, batch_size=0)
    with pytest.raises(ValueError):
        Example(np.arange(3, dtype=np.int32), np.ones(3, np.float32), 0)


@pytest.mark.parametrize("most", [0, 5])
def test_even_batches(most):
    """Every example once an epoch, batches of one shape, equally many examples in each or one less."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 24, 37).tolist()
    train = trainer.train_config(seq_len=24, batch_size=6, num_epochs=3, batch_examples=most)
    plan = make_even_plan(lengths, train, seed=4)
    assert plan.batch_rows == 6 and len(plan.rows) % 6 == 0
    steps = plan.num_steps // 3
    for epoch in range(3):
        batches = [
            [i for row in plan.rows[6 * s : 6 * s + 6] for i in row]
            for s in range(epoch * steps, (epoch + 1) * steps)
        ]
        sizes = [len(batch) for batch in batches]
        assert max(sizes) - min(sizes) <= 1 and max(sizes) <= (most or 37)
        assert sorted(i for batch in batches for i in batch) == list(range(37))
    for row in plan.rows:
        assert sum(lengths[i] for i in row) <= 24
    assert make_even_plan(lengths, train, seed=4) == plan
    with pytest.raises(UserError, match="train.seq_len = 24: the longest example needs 25"):
        make_even_plan([25], train, seed=0)
