"""The laboratory: physics by hand-computed cases, wording by the real simulator's."""

import importlib.util
import shutil
import time

import pytest

import envs
from envs.base import EnvDataError
from envs.prompts import Prompts, PromptsConfig
from envs.science import world as science_world
from envs.science.tasks import TASKS_PER_FAMILY, variations
from envs.science.worlds import FAMILIES

ENV = envs.make("science", horizon=60)


def begin(family, number=0, split="train"):
    return ENV.reset(f"{split}/{family}/{number:04d}")


def find_task(family, *words):
    """The first task of a family whose description has all the words."""
    for task in ENV.list_tasks("train"):
        state, text = ENV.reset(task.task_id)
        if task.family == family and all(word in text for word in words):
            return state
    raise AssertionError(f"no {family} task with {words}")


def say(state, *actions):
    """State and last observation after actions."""
    for action in actions:
        state, result = ENV.step(state, action)
    return state, result.observation


def index_of(state, name):
    return next(i for i, thing in enumerate(state.things) if thing.name == name)


def test_there_are_enough_tasks_and_they_differ():
    assert len(FAMILIES) >= 10
    for family in FAMILIES:
        splits = variations(family)
        counts = {**{s: len(w) for s, w in splits.items()}, "bootstrap": 256}
        assert counts == TASKS_PER_FAMILY
        corpus = {ENV.reset(f"bootstrap/{family}/{n:04d}")[1] for n in range(256)}
        worlds = [world for split in splits.values() for world in split]
        assert len(worlds) == len({repr(world) for world in worlds}) >= 30
        texts = [{ENV.reset(f"{s}/{family}/{n:04d}")[1] for n in range(len(w))} for s, w in splits.items()]  # fmt: skip
        assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]
        assert corpus and not corpus & set.union(*texts)


def test_task_types_can_be_chosen():
    env = envs.make("science", task_types=["melt", "boil"])
    assert {task.family for task in env.tasks} == {"boil", "melt"}
    with pytest.raises(EnvDataError, match="science task"):
        env.reset("train/freeze/0000")
    for bad in ("boil", ["simmer"], [3]):
        with pytest.raises(EnvDataError, match="env.options.task_types"):
            envs.make("science", task_types=bad)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_expert_solves_every_variation(family):
    env = envs.make("science")
    for task in env.tasks:
        if task.family != family or task.split == "bootstrap":
            continue
        state, _ = env.reset(task.task_id)
        plan = env.solve(state)
        assert plan is not None, task.task_id
        scores = [state.score]
        for action in plan:
            state, result = env.step(state, action)
            assert result.info["valid"], (task.task_id, action, result.observation)
            assert result.reward == state.score - scores[-1]
            scores.append(state.score)
        assert state.success and scores[-1] == 100 and scores == sorted(scores)


def test_half_the_way_earns_part_of_the_score():
    partial = {}
    for family in FAMILIES:
        state, _ = begin(family, 1)
        scores = []
        for action in ENV.solve(state):
            state, _ = ENV.step(state, action)
            scores.append(state.score)
        partial[family] = [s for s in scores if 0 < s < 100]
    assert all(partial[f] for f in FAMILIES if not f.startswith("lifespan"))


def test_the_expert_goes_on_from_anywhere():
    state = find_task("grow-plant", "Your task")
    for action in ("teleport to outside", "look around", "teleport to kitchen"):
        state, _ = ENV.step(state, action)
    plan = ENV.solve(state)
    assert plan and say(state, *plan)[0].success


# -- physics, computed by hand ---------------------------------------------------------------------
def test_heat_goes_to_the_surroundings_by_newtons_law():
    state = find_task("boil", "boil milk")
    state, _ = say(state, *ENV.solve(state)[:-1])
    # It stands on the stove; T + (400 - T) * 0.03 a tick, rounded to hundredths.
    milk = index_of(state, "milk")
    temperature = state.things[milk].temperature
    state, _ = say(state, "wait1")
    assert state.things[milk].temperature == round(temperature + (400 - temperature) * 0.03, 2)
    # In closed form over ten ticks, but for the rounding.
    after, _ = say(state, "wait")
    expected = 400 - (400 - state.things[milk].temperature) * 0.97**10
    assert after.things[milk].temperature == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(
    "name, degrees, state_of_matter",
    [("water", -0.1, "solid"), ("water", 0, "liquid"), ("water", 99.9, "liquid"),
     ("water", 100, "gaseous"), ("lead", 326, "solid"), ("lead", 328, "liquid"),
     ("mercury", 10, "liquid"), ("chocolate", 10, "solid"), ("chocolate", 400, "liquid")],
)  # fmt: skip
def test_states_of_matter(name, degrees, state_of_matter):
    thing = science_world.Thing(name, "substance", 1, temperature=degrees)
    world = variations("boil")["train"][0]
    assert science_world.phase(world, thing) == state_of_matter


def test_ice_that_boils_within_one_wait_was_water_on_the_way():
    state = find_task("melt", "melt ice")
    plan = ENV.solve(state)
    state, _ = say(state, *plan[:-1])
    assert not state.success
    state, _ = say(state, "wait", "wait")
    assert state.success


def test_a_bulb_is_lit_by_a_closed_loop_of_conductors_only():
    conducting = None
    for task in ENV.list_tasks("train"):
        if task.family != "test-conductivity":
            continue
        state, _ = ENV.reset(task.task_id)
        world = variations("test-conductivity")["train"][int(task.task_id[-4:])]
        ((sample, conducts),) = world.samples.items()
        plan = ENV.solve(state)
        last = max(n for n, action in enumerate(plan) if action.startswith("connect"))
        before, _ = say(state, *plan[:last])
        bulb = next(t.name for t in state.things if t.kind == "bulb")
        open_loop, text = say(before, f"look at {bulb}")
        assert text.endswith("which is off")
        closed_loop, text = say(before, plan[last], f"look at {bulb}")
        assert text.endswith("which is on" if conducts else "which is off"), sample
        broken, text = say(closed_loop, "disconnect battery", f"look at {bulb}")
        assert text.endswith("which is off")
        conducting = conducts if conducting is None else conducting
    assert conducting is not None


def test_a_plant_needs_soil_and_water_and_four_ticks_a_stage():
    state = find_task("grow-plant", "Your task")
    plan = ENV.solve(state)
    pour = next(n for n, action in enumerate(plan) if action.startswith("pour"))
    seed = next(i for i, t in enumerate(state.things) if t.kind == "seed")
    dry, _ = say(state, *plan[:pour], "wait", "wait")
    assert dry.things[seed].stage == 0
    wet, _ = say(state, *plan[:pour], plan[pour])  # the pouring itself takes one tick
    assert (wet.things[seed].stage, wet.things[seed].clock) == (0, 1)
    stages = []
    for _ in range(12):
        wet, _ = say(wet, "wait1")
        stages.append(wet.things[seed].stage)
    assert stages == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3]


def test_a_grown_cross_shows_the_dominant_form_only():
    for number, world in enumerate(variations("mendelian-genetics")["train"]):
        state, _ = begin("mendelian-genetics", number)
        plan = ENV.solve(state)
        state, _ = say(state, *plan[:-1])
        seed = next(t.name for t in state.things if t.kind == "seed")
        _, text = say(state, "look in flower pot 3")
        shown = world.traits[seed]
        assert f"{seed[:-5]} plant in the" in text and shown in text
        parents = {v for name, v in world.traits.items() if name != seed}
        assert len(parents) == 2 and shown in parents
        asked = world.description.split("whether ")[1].split(" ")[0]
        dominant = asked in shown.split()
        box = world.description.split(f"If the trait is {'dominant' if dominant else 'recessive'}, focus on the ")[1].split(".")[0]  # fmt: skip
        assert plan[-1] == f"focus on {box.split(',')[0]}"


def test_the_steeper_plane_is_the_one_the_block_comes_down_faster():
    for number, world in enumerate(variations("inclined-plane")["train"]):
        state, _ = begin("inclined-plane", number)
        block = next(t.name for t in state.things if t.kind == "block")
        way = {}
        for plane in world.speeds:
            _, text = say(state, "teleport to workshop", f"pick up {block}",
                          f"move {block} to {plane}", "wait1", f"look at {plane}")  # fmt: skip
            way[plane] = int(text.split("approximately ")[1].split("%")[0])
            assert way[plane] == 2 * world.speeds[plane]
        best = (max if "steepest" in world.description else min)(way, key=way.get)
        assert ENV.solve(state)[-1] == f"focus on {best.lower()}"


# -- answers ---------------------------------------------------------------------------------------
def test_an_answer_before_the_experiment_fails():
    state = find_task("measure-melting-point", "Your task")
    world = next(
        w for w in variations("measure-melting-point")["train"] if w.things == state.things
    )
    right = world.required[-1][1]
    state, result = ENV.step(say(state, "teleport to kitchen")[0], f"focus on {right}")
    assert result.done and not result.success and state.score == -100
    assert ENV.step(state, "wait")[1].observation == "The episode is over."


def test_the_wrong_box_fails_and_the_right_one_does_not_count_before_the_test():
    state = find_task("test-conductivity", "located around the workshop")
    world = next(w for w in variations("test-conductivity")["train"] if w.things == state.things)
    (_, sample, right), ((_, _, wrong),) = world.required[-1], world.fatal
    state, _ = say(state, "teleport to workshop", f"focus on {sample}", f"pick up {sample}")
    guessed, result = ENV.step(state, f"move {sample} to {right}")
    assert not result.done and guessed.score < 100
    failed, result = ENV.step(state, f"move {sample} to {wrong}")
    assert result.done and failed.score == -100 and result.reward == -100 - state.score


def test_ambiguous_commands_give_a_menu_and_take_a_number():
    state = find_task("boil", "Your task")
    state, text = say(state, "teleport to hallway", "open door")
    lines = text.splitlines()
    assert lines[0].startswith("Ambiguous request: Please enter the number")
    assert lines[1] == "0:\topen door between hallway and art studio"
    assert ENV.actions(state) == tuple(str(n) for n in range(5))
    assert say(state, "0")[1] == "The door is already open."
    cancelled, text = say(state, "open door to kitchen")
    assert text.startswith("Unknown action.") and cancelled.pending == ()
    assert say(cancelled, "open door to kitchen")[1] == "The door is already open."


def test_doors():
    state, _ = say(begin("boil")[0], "teleport to hallway", "close door to kitchen")
    state, text = say(state, "go to kitchen")
    assert text == "The door is not open."
    assert "A door to the kitchen (that is closed)" in say(state, "look around")[1]
    # The same door from its other side.
    assert say(state, "teleport to kitchen", "go to hallway")[1] == "The door is not open."
    state, text = say(state, "teleport to kitchen", "open door to hallway", "go to hallway")
    assert text == "You move to the hallway."


def test_window_prompts_list_objects_in_place_of_commands():
    state, text = begin("boil")
    prompts = Prompts(ENV, PromptsConfig(style="react"))
    prompt = prompts.window(text, [], 1, text, actions=ENV.prompt_actions(state))
    (line,) = [line for line in prompt.splitlines() if line.startswith("OBJ can be: ")]
    assert "agent" in line and "door to" in line and "admissible" not in prompt
    assert prompt.endswith("exactly one action inside <action> </action>.")


@pytest.mark.slow
def test_five_thousand_steps_a_second():
    moves = []
    for task in ENV.list_tasks("train"):
        state, _ = ENV.reset(task.task_id)
        for action in ENV.solve(state):
            moves.append((state, action))
            state, _ = ENV.step(state, action)
    start = time.thread_time()
    for state, action in moves:
        ENV.step(state, action)
    assert len(moves) / (time.thread_time() - start) >= 5000


def test_clear_errors():
    for task_id in ("", "train/boil/32", "train/boil/0032", "test/cook/0000", "train/boil/٠٠٠٠"):
        with pytest.raises(EnvDataError, match="science task"):
            ENV.reset(task_id)


# -- wording, beside the real simulator ------------------------------------------------------------
SAME = (
    "open fridge", "open fridge", "close fridge", "close fridge", "look in fridge", "open cupboard",
    "pick up metal pot", "look at metal pot", "look in metal pot", "move metal pot to sink",
    "activate sink", "activate sink", "look at metal pot", "pick up water", "mix metal pot",
    "deactivate sink", "pick up metal pot", "move metal pot to metal pot", "move metal pot to fridge",
    "open freezer", "look in freezer", "move metal pot to freezer", "look in freezer", "read fridge",
    "eat sink", "activate table", "open table", "close table", "pick up sink", "dance",
    "go to nowhere", "use thermometer on stove", "use thermometer on metal pot", "pick up thermometer",
    "put down thermometer", "pour thermometer in table", "move thermometer to thermometer",
    "look in thermometer", "go to kitchen", "close door to hallway", "go to hallway",
    "open door to hallway", "open door to hallway", "look at door to hallway", "activate stove",
    "look at stove", "deactivate stove", "wait1", "wait", "task", "go to hallway", "go to kitchen",
    "connect metal pot to table", "focus on",
)  # fmt: skip
# Where the laboratory knowingly differs: its own physics, a thermometer that holds nothing and lies in
# no container, and task descriptions of its own.
DIFFERENT = (
    "use thermometer on metal pot", "pour thermometer in table", "look in thermometer", "task",
)  # fmt: skip


@pytest.mark.skipif(
    shutil.which("java") is None or importlib.util.find_spec("scienceworld") is None,
    reason="needs Java and the extra scienceworld",
)
def test_it_says_what_the_simulator_says():
    real = envs.make("scienceworld", num_workers=1, horizon=200)
    state = next(
        s
        for s in (begin("boil", n)[0] for n in range(32))
        if "boil water" in ENV.goal(ENV.reset(s.task_id)[1])
    )
    other, _ = real.reset("train/boil/0000")
    state, other = say(state, "teleport to kitchen")[0], real.step(other, "teleport to kitchen")[0]
    said = {}
    for action in SAME:
        state, result = ENV.step(state, action)
        other, expected = real.step(other, action)
        if result.observation.strip() != expected.observation.strip():
            said[action] = (result.observation, expected.observation)
    real.close()
    assert set(said) <= set(DIFFERENT), said
