"""Environments that users bring: whatever they do, a run learns from it or says in one line why it can't."""

import signal
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from commands import RUN, SCRIPTS, checkpoint, evaluations, fails, networks, result, run, start, start_long
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

import td3

pytestmark = pytest.mark.usefixtures("own_folder")


def transitions(run_dir: Path = RUN) -> torch.Tensor:
    """The rows of a replay buffer: observation, the next one, action, reward, termination."""
    return checkpoint(run_dir)["rb"]["rows"]


# ---------------------------------------------------------------------------------------- actions and observations


class Recorder(gym.Env):
    """Keeps the actions that it gets, and observes what it is told."""

    def __init__(self, action_space=None, space=None, told=None):
        self.action_space = action_space or Box(-1, 1, (1,))
        self.observation_space = space or Box(-1, 1, (1,))
        self.told = told
        self.actions = []

    def reset(self, seed=None, options=None):
        return self.told, {}

    def step(self, action):
        self.actions.append(action)
        return np.zeros(1, np.float32), 0, False, False, {}


@pytest.fixture(params=[np.float32, np.float64])
def recorder(request):
    """Has 1,000 bounds of two decimals, which are no float32 numbers; half of them have no width."""
    rng = np.random.default_rng(0)
    low = np.round(rng.uniform(-10, 10, 1000), 2)
    width = np.round(rng.uniform(0, 5, 1000), 2) * rng.integers(0, 2, 1000)
    high = low + width
    return Recorder(Box(low.astype(request.param), high.astype(request.param), dtype=request.param))


@pytest.mark.parametrize("largest", [1, 9])
def test_actions_are_within_any_bounds_in_the_dtype_of_the_space(recorder, largest):
    task = td3.Task(recorder)
    action = np.random.default_rng(1).uniform(-largest, largest, 1000)
    task.step(action.astype(np.float32))
    (got,) = recorder.actions
    assert task.action_space == Box(-1, 1, (1000,))
    assert got.dtype == recorder.action_space.dtype
    assert recorder.action_space.contains(got)


def test_actions_reach_the_bounds_and_the_middle(recorder):
    task = td3.Task(recorder)
    for action in (-1, 1, 0):
        task.step(np.full(1000, action, np.float32))
    lowest, highest, middle = recorder.actions
    box = recorder.action_space
    np.testing.assert_allclose(lowest, box.low, rtol=1e-12)
    np.testing.assert_allclose(highest, box.high, rtol=1e-12)
    np.testing.assert_allclose(middle, box.low / 2 + box.high / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("script", SCRIPTS)
def test_units_of_actions_change_nothing(script):
    """Powers of two scale without rounding, so the runs are equal to the last bit: half the range is the unit of
    everything, SAC's entropy coefficient and PPO's deviation included."""

    def train(env_id):
        run(script, f"--env-id envs:{env_id}-v0 --run-dir {env_id}")
        values = [value.tolist() for value in networks(script, Path(env_id)).values()]
        return evaluations(Path(env_id)), values

    ends = train("Ends")
    assert train("Narrow") == ends
    assert train("Wide") == ends


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_action_that_can_not_move_is_trained_with(script):
    run(script, "--env-id envs:Strict-v0")
    returns = result()["final_evaluation"]["returns"]
    assert np.isfinite(returns).all()


OBSERVATIONS = [
    (Box(-1, 1, (), np.float64), np.float64(0.25), [0.25]),
    (Box(-1, 1, ()), 0.25, [0.25]),
    (Box(0, 255, (2, 1, 2), np.uint8), np.array([[[1, 2]], [[3, 255]]], np.uint8), [1, 2, 3, 255]),
    (Discrete(3), 2, [0, 0, 1]),
    (Discrete(3, start=-1), np.int64(-1), [1, 0, 0]),
    (MultiDiscrete([2, 3]), np.array([1, 0]), [0, 1, 1, 0, 0]),
    (Tuple([Discrete(2), Box(0, 9, (2,), np.int32)]), (1, np.array([7, 8], np.int32)), [0, 1, 7, 8]),
    (Dict({"b": Box(0, 9, (1,)), "a": MultiBinary(2)}), {"b": np.ones(1) * 5, "a": np.array([1, 0])}, [1, 0, 5]),
    (Dict({"o": Dict(x=Box(0, 9, (2,))), "g": Discrete(2)}), {"g": 0, "o": {"x": np.ones(2)}}, [1, 0, 1, 1]),
    (Box(-1e300, 1e300, (1,), np.float64), np.array([1 / 3]), [np.float32(1 / 3)]),
]


@pytest.mark.parametrize(("space", "told", "flat"), OBSERVATIONS)
def test_observations_become_one_vector(space, told, flat):
    task = td3.Task(Recorder(space=space, told=told))
    observation, _ = task.reset(seed=1)
    assert task.observation_space == Box(-np.inf, np.inf, (len(flat),))
    assert observation.dtype == np.float32
    assert observation.tolist() == flat


@pytest.mark.parametrize("env_id", ["Mixed", "Arrays"])
def test_odd_types_are_trained_with(env_id):
    command = run("sac", f"--env-id envs:{env_id}-v0")
    assert {row[5] for row in evaluations()} == {9}
    assert not command.stderr


# ------------------------------------------------------------------------------------------- dm_control, simulators


@pytest.fixture
def walker(monkeypatch):
    """A dm_control task, and the same task as dm_control has it."""
    monkeypatch.setenv("MUJOCO_GL", "disable")
    task = td3.make_env("walker-walk")
    return task, task.unwrapped._env


def test_dm_control_gives_what_it_computes_in_the_order_of_the_space(walker):
    task, raw = walker
    task.reset(seed=5)
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 6)).astype(np.float32):
        observation, reward, terminated, truncated, _ = task.step(action)
        parts = raw.task.get_observation(raw.physics)
        flat = [*np.ravel(parts["height"]), *parts["orientations"], *parts["velocity"]]
        assert np.array_equal(observation, np.float32(flat))
        assert reward == raw.task.get_reward(raw.physics)
        assert not terminated
        assert not truncated


def test_dm_control_begins_from_the_seed(walker):
    task, _ = walker
    first, same, other = [task.reset(seed=seed)[0] for seed in (5, 5, 6)]
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_dm_control_that_diverges_ends_the_episode_before(walker):
    task, raw = walker
    last, _ = task.reset(seed=5)
    raw.physics.data.qvel[:] = np.nan
    observation, *rest = task.step(np.zeros(6, np.float32))
    assert np.array_equal(observation, last)
    assert rest[:3] == [0, False, True]


def test_an_episode_that_diverges_is_cut_short_in_training():
    command = run("sac", "--env-id envs:Diverges-v0 --keep-checkpoint --eval-frequency 100")
    rows = transitions()[48:50]  # of the step 25
    assert (rows[:, 1] == 6).all()
    assert torch.equal(rows[:, :3], rows[:, 3:6])
    assert not rows[:, -2:].any()  # reward and termination
    assert "it diverged; the episode is cut short" in command.stdout
    assert not command.stderr


# Command.end() looks that no simulator is left.


@pytest.mark.parametrize("env_id", ["Simulator", "StubbornSimulator"])
def test_simulators_end_with_training_and_evaluation(env_id):
    """Those that close() forgets, and those of a close() that does not return."""
    run("td3", f"--env-id envs:{env_id}-v0")
    run("td3", f"--evaluate run --env-id envs:{env_id}-v0")


def test_simulators_end_after_an_error():
    run("td3", "--env-id envs:SimulatorFails-v0", status=1, traceback=True)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_simulators_end_at_a_signal(signum):
    start_long("td3", "--env-id envs:Simulator-v0").stop(signum)


# --------------------------------------------------------------------------------------------------- what breaks

BROKEN = {
    "NanReward": "the reward is nan",
    "InfiniteReward": "the reward is -inf",
    "HugeReward": "the reward is 1e+39",  # beyond float32
    "InfiniteObservation": "the observation is not finite",
    "InfiniteLast": "the observation is not finite",
    "NanFirst": "the observation is not finite",
    "Raises": "RuntimeError: unexpected end of file;",  # no advice on Gymnasium's API
    "Unpicklable": "RuntimeError: ('unexpected end', ",
    "Aborts": "a simulation worker died",
}
LAST_STEP = {"InfiniteLast": 26, "NanFirst": 26}  # of the others it is 24
WITH_TRACEBACK = ["Raises", "Unpicklable"]  # of the environment's own code


def check_broken(script: str, env_id: str, step: int, words: str):
    """A run ends with the one line, below a traceback of the environment's own code; the step before is saved."""
    words = f"--env-id envs:{env_id}-v0 --eval-frequency 50 --total-timesteps 40 {words}"
    with_traceback = env_id in WITH_TRACEBACK
    command = run(script, words, status=1, traceback=with_traceback)
    *above, last = command.stderr.splitlines()
    assert last.startswith(f"{script}.py: error: step {step}: ")
    assert BROKEN[env_id] in last
    assert last.endswith("; --resume goes on from the checkpoint")
    assert bool(above) == with_traceback
    assert not (RUN / "result.json").exists()
    saved = checkpoint()
    assert saved["global_step"] == step
    for value in saved["agent"].values():
        assert value.isfinite().all()


@pytest.mark.parametrize("env_id", BROKEN)
@pytest.mark.parametrize("learning_starts", [20, 1000])
def test_what_breaks_is_named_and_not_stored(env_id, learning_starts):
    """While it learns, and in its warm-up."""
    step = LAST_STEP.get(env_id, 24)
    check_broken("ams_td3", env_id, step, f"--learning-starts {learning_starts}")
    assert len(transitions()) == 2 * step
    assert transitions().isfinite().all()


@pytest.mark.parametrize("env_id", BROKEN)
@pytest.mark.parametrize("num_steps", ["--num-steps 16", "--num-steps 64"])
def test_what_breaks_is_named_and_not_stored_by_ppo(env_id, num_steps):
    step = LAST_STEP.get(env_id, 24)
    if env_id == "NanFirst":  # PPO resets once more
        step = 17
    check_broken("ppo", env_id, step, num_steps)
    for part in checkpoint()["rollout"].values():
        assert part.isfinite().all()


@pytest.mark.parametrize("script", ["ams_td3", "ppo"])
def test_a_run_that_broke_goes_on(script):
    words = "--env-id envs:NanReward-v0 --eval-frequency 50 --total-timesteps 40"
    run(script, words, status=1)
    run(script, words, "--resume")
    assert result()["global_step"] == 40


AT_ONCE = {
    "NanAtOnce": ["the reward is nan"],
    "InfiniteAtOnce": ["the observation is not finite"],
    "Scalar": ["shape", "(1,)", "(3,)"],
    "Single": ["shape", "(1,)", "(3,)"],
    "FourValues": ["unpack", "step() returns 5 values"],
    "NoInfo": ["unpack", "reset(seed=..., options=...) 2"],
    "NoSeed": ["seed"],
}


@pytest.mark.parametrize("env_id", AT_ONCE)
def test_what_breaks_at_once_does_not_advise_to_resume(env_id):
    line = fails("td3", f"--env-id envs:{env_id}-v0", *AT_ONCE[env_id], status=1)
    assert "--resume" not in line
    assert not (RUN / "checkpoint.pt").exists()


@pytest.mark.parametrize("env_id", ["Exits", "ExitsAtOnce"])
def test_a_constructor_that_ends_its_process_is_an_error(env_id):
    fails("td3", f"--env-id envs:{env_id}-v0", "can't be made: its process ended with status 0")


MADE_LATER = {
    "SecondFails": "RuntimeError: no licence left",
    "SecondDiffers": "observation spaces are not equivalent",
    "SecondExits": "a simulation worker died",
}


@pytest.mark.parametrize("env_id", MADE_LATER)
def test_a_task_that_only_one_process_can_make_is_an_error(env_id):
    command = run("td3", f"--env-id envs:{env_id}-v0", status=2, traceback=env_id == "SecondFails")
    *_, last = command.stderr.splitlines()
    assert last.startswith(f"td3.py: error: --env-id envs:{env_id}-v0 can't be made: ")
    assert MADE_LATER[env_id] in command.stderr


MEMORY = """
import psutil, resource
used = psutil.Process().memory_info().vms + 2**29
resource.setrlimit(resource.RLIMIT_AS, (used, used))
"""
FILES = """
import os, resource
used = len(os.listdir('/proc/self/fd')) + 12
resource.setrlimit(resource.RLIMIT_NOFILE, (used, used))
"""
LIMITS = [
    ("td3", "--buffer-size 100000000000", "", "the replay buffer does not fit"),
    ("td3", "--buffer-size 20000000", MEMORY, "the replay buffer does not fit"),
    ("ppo", "--num-steps 20000000", MEMORY, "memory is too small"),
    ("td3", "--num-envs 30", FILES, "Too many open files"),
]


@pytest.mark.parametrize(("script", "words", "limit", "message"), LIMITS)
def test_a_limit_of_the_machine_is_named(script, words, limit, message):
    """By what memory is free, by `ulimit -v`, by `ulimit -n`."""
    fails(script, words, message, before=limit)


def test_an_evaluation_without_end_says_so_and_hears_signals():
    command = start("ppo", "--env-id envs:Endless-v0 --num-envs 1 --eval-episodes 1")
    command.wait_for("10,000 steps; register the task with max_episode_steps")
    command.stop(signal.SIGTERM)
    assert "stopped by SIGTERM at step 0" in command.stdout
    assert not command.stderr


# ------------------------------------------------------------------------------------- what disturbs its process


@pytest.mark.parametrize("env_id", ["SmallSeeds", "LeavesThread", "ChangesFolder"])
def test_training_ends_well(env_id):
    """Seeds fit into a C int; a thread that never ends does not keep the program; a run is where the shell was."""
    command = run("td3", f"--env-id envs:{env_id}-v0")
    assert not command.stderr
    assert (RUN / "result.json").exists()


def test_a_close_that_fails_is_shown_and_stops_nothing():
    command = run("td3", "--env-id envs:CloseFails-v0", traceback=True)
    assert "warning: environment 1: RuntimeError: the simulator is gone already\n" in command.stdout
    assert (RUN / "result.json").exists()


def test_settings_of_pytorch_are_the_learners_own():
    run("td3", "--env-id envs:Walk-v0 --run-dir plain")
    run("td3", "--env-id envs:ChangesTorch-v0 --run-dir changed")
    assert evaluations(Path("changed")) == evaluations(Path("plain"))


def test_statistics_that_no_checkpoint_has_are_warned_of_once():
    warning = "warning: envs:Normalized-v0 normalizes by statistics that no checkpoint has"
    trained = run("td3", "--env-id envs:Normalized-v0")
    played = run("td3", "--evaluate run --env-id envs:Normalized-v0")
    assert trained.stdout.count(warning) == 1
    assert played.stdout.count(warning) == 1


def test_one_seed_is_one_run_whatever_numbers_an_environment_draws():
    for name in ("one", "two"):
        run("td3", f"--env-id envs:Streams-v0 --run-dir {name} --keep-checkpoint")
    one = transitions(Path("one"))
    assert torch.equal(one, transitions(Path("two")))
    for column in one[:, :3].T:
        assert len(column.unique()) == len(one), "every step of every environment draws another number"
