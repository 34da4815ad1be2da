"""A playbook grows batch by batch: what is there is not played again, and what does not fit is."""

import dataclasses
import json

import pytest
from etils import epath

from envs.household.environment import Household
from leafe_jax.errors import UserError
from leafe_jax.methods.ace import State
from leafe_jax.run import adapt, validate
from leafe_jax.run.config import RunConfig
from leafe_jax.run.phase import Phase
from leafe_jax.run.presets import add_ace, add_early_experience, load_config

TASKS = Household().list_tasks("train")[:5]
BATCHES = [TASKS[:2], TASKS[2:4], TASKS[4:]]


class Play:
    """Adds a bullet for each task; raises where it is told to."""

    def __init__(self):
        self.batches, self.kill = [], None

    def __call__(self, batch, state):
        self.batches.append([task.task_id for task in batch])
        if len(self.batches) == self.kill:
            raise SystemExit(75)
        book = state.playbook
        for task in batch:
            book, _ = book.add("misc", f"bullet {task.task_id}", 10**6, len, 1.0)
        return dataclasses.replace(state, playbook=book), []


def phase_in(directory, **fields):
    c = load_config("quickstart")
    add_ace(c, **fields)
    return Phase(epath.Path(directory), "ace", RunConfig.read(c))


def run(directory, play, **fields):
    phase, progress = phase_in(directory, **fields), []
    phase.begin()
    state = adapt._all_batches(phase, BATCHES, play, progress.append)
    assert sum(progress) == len(TASKS)
    return state


def test_a_killed_run_continues_and_ends_in_the_same_playbook(tmp_path):
    whole = run(tmp_path / "whole", Play())
    assert len(whole.playbook.bullets) == 5
    play = Play()
    play.kill = 2
    with pytest.raises(SystemExit):
        run(tmp_path / "killed", play)
    play.kill = None
    assert run(tmp_path / "killed", play) == whole
    assert len(play.batches) == 4  # the second batch twice
    assert run(tmp_path / "killed", play) == whole and len(play.batches) == 4


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_text("{"),
        lambda path: path.write_text('{"made_of": 3}'),
        lambda path: path.write_text(path.read_text().replace('"last"', '"lost"')),
        lambda path: path.unlink(),
        lambda path: path.write_text(path.read_text().replace("bullet train", "another train")),
    ],
)
def test_a_batch_that_cannot_be_used_is_played_again(tmp_path, spoil):
    whole = run(tmp_path, Play())
    spoil(tmp_path / "ace" / "batch-0001.json")
    play = Play()
    # Batch 1 gives what it gave, so the batch after it fits again.
    assert run(tmp_path, play) == whole and len(play.batches) == 1


def test_a_batch_that_was_made_from_another_playbook_is_played_again(tmp_path):
    class Other(Play):
        def __call__(self, batch, state):
            state, trees = super().__call__(batch, state)
            book, _ = state.playbook.add("misc", "another thing", 10**6, len, 1.0)
            return dataclasses.replace(state, playbook=book), trees

    run(tmp_path, Play())
    (tmp_path / "ace" / "batch-0000.json").unlink()
    play = Other()
    state = run(tmp_path, play)
    assert len(play.batches) == 3 and "another thing" in state.playbook.text
    # An unfinished run may go on with other settings; nothing of the old ones is taken over.
    play = Play()
    run(tmp_path, play, token_budget=7)
    assert len(play.batches) == 3


def test_a_playbook_that_is_missing_or_damaged_is_refused(tmp_path):
    phase = phase_in(tmp_path)
    with pytest.raises(UserError, match="'ace' needs .*playbook.json; run the phase 'fit' first"):
        adapt.read_playbook(phase)
    phase.begin()
    file = tmp_path / "ace" / "playbook.json"
    state, _ = Play()(TASKS[:1], State())
    file.write_text(json.dumps({"state": state.to_json()}))
    phase.keep("playbook.json")
    phase.finish()
    assert adapt.read_playbook(phase) == state.playbook
    file.write_text(json.dumps({"state": State().to_json()}))
    with pytest.raises(UserError, match="damaged: it is not as it was written"):
        adapt.read_playbook(phase_in(tmp_path))


def test_what_cannot_be_played_is_refused_before_any_work():
    c = load_config("quickstart")
    add_ace(c)
    c.ace.split = "test"
    with pytest.raises(
        UserError, match="ace.split = 'test': must not be the split that is evaluated"
    ):
        validate.validate(RunConfig.read(c))
    c.ace.split, c.ace.num_tasks = "train", 10**6
    with pytest.raises(UserError, match="ace.num_tasks = 1000000: split 'train' has"):
        validate.validate(RunConfig.read(c))
    c = load_config("quickstart")
    add_early_experience(c, explain=True)
    with pytest.raises(
        UserError, match="early_experience.reflection_weight = 1.0: must be 0 where"
    ):
        validate.validate(RunConfig.read(c))
