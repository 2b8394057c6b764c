"""Environments that users bring: whatever they do, a run learns from it or says in one line why it can't."""

import os
import signal
from pathlib import Path

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch
from commands import RUN, SCRIPTS, checkpoint, evaluations, fails, read_json, run, start, wait_for_end
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

import td3

pytestmark = pytest.mark.usefixtures("own_folder")


class Recorder(gym.Env):
    """Keeps the actions that it gets, and observes what it is told."""

    def __init__(self, action_space=None, space=None, told=None):
        self.action_space = action_space or Box(-1, 1, (1,))
        self.observation_space, self.told, self.actions = space or Box(-1, 1, (1,)), told, []

    def reset(self, seed=None, options=None):
        return self.told, {}

    def step(self, action):
        self.actions.append(action)
        return np.zeros(1, np.float32), 0, False, False, {}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_are_within_any_bounds_in_the_dtype_of_the_space(dtype):
    """Bounds of two decimals, which are no float32 numbers, some of zero width; the ends and the middle are reached."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        low = np.round(rng.uniform(-10, 10, 4), 2)
        width = np.round(rng.uniform(0, 5, 4), 2) * rng.integers(0, 2, 4)
        env = Recorder(Box(low.astype(dtype), (low + width).astype(dtype), dtype=dtype))
        task = td3.Task(env)
        assert task.action_space == Box(-1, 1, (4,), np.float32)
        for action in (-np.ones(4), np.ones(4), np.zeros(4), rng.uniform(-1, 1, 4), rng.uniform(-9, 9, 4)):
            task.step(action.astype(np.float32))
        assert all(action.dtype == dtype and env.action_space.contains(action) for action in env.actions)
        np.testing.assert_allclose(env.actions[:2], [env.action_space.low, env.action_space.high], rtol=1e-12)
        np.testing.assert_allclose(env.actions[2], low + width / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("script", SCRIPTS)
def test_bounds_change_nothing(script):
    """Half the range is the unit of everything, so powers of two, which scale without rounding, give the same run to
    the last bit, SAC's entropy coefficient and PPO's deviation included. A dimension of zero width trains too."""
    runs = []
    for env_id in ("Ends", "Narrow", "Wide"):
        run(script, f"--env-id envs:{env_id}-v0 --run-dir {env_id}")
        runs.append((evaluations(Path(env_id)), checkpoint(Path(env_id), f"{script}.pt")["agent"]))
    (rows, agent), *others = runs
    for other_rows, other_agent in others:
        assert other_rows == rows
        assert all(torch.equal(other_agent[name], agent[name]) for name in agent)
    run(script, "--env-id envs:Strict-v0 --run-dir strict")
    assert np.isfinite(read_json(Path("strict", "result.json"))["final_evaluation"]["returns"]).all()


OBSERVATIONS = [
    (Box(-1, 1, (), np.float64), np.float64(0.25), [0.25]),
    (Box(-1, 1, (), np.float32), 0.25, [0.25]),
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
    assert observation.dtype == np.float32 and observation.tolist() == flat
    assert task.observation_space == Box(-np.inf, np.inf, (len(flat),), np.float32)


def test_dm_control_keeps_the_order_of_its_specification_and_its_streams(monkeypatch):
    """Against the task itself: observations and rewards bit for bit."""
    monkeypatch.setenv("MUJOCO_GL", "disable")
    task = td3.make_env("walker-walk")
    observation, _ = task.reset(seed=5)
    again = task.reset(seed=5)[0]
    raw = task.unwrapped._env
    assert task.observation_space.shape == (24,) and [*raw.observation_spec()] == ["orientations", "height", "velocity"]
    assert np.array_equal(observation, again) and not np.array_equal(observation, task.reset(seed=6)[0])
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 6)).astype(np.float32):
        observation, reward, *ends, _ = task.step(action)
        parts = [np.ravel(part) for part in raw.task.get_observation(raw.physics).values()]
        assert np.array_equal(observation, np.concatenate(parts, dtype=np.float32))
        assert reward == raw.task.get_reward(raw.physics) and ends == [False, False]
    raw.physics.data.qvel[:] = np.nan  # what diverges
    last = observation
    observation, reward, *ends, _ = task.step(action)
    assert np.array_equal(observation, last) and reward == 0 and ends == [False, True]


@pytest.mark.parametrize("env_id", ["Mixed", "Arrays", "Diverges"])
def test_odd_tasks_that_train(env_id):
    """Dictionaries with images, numbers as arrays, and a simulation that diverges in training's step 25."""
    command = run("sac", f"--env-id envs:{env_id}-v0 --keep-checkpoint --eval-frequency 100")
    assert not command.stderr
    assert {row[5] for row in evaluations(RUN)} == {9}
    if env_id == "Diverges":  # cut short: reward 0, the observation before, and no termination
        rows = checkpoint(RUN)["rb"]["rows"][48:50]
        assert torch.equal(rows[:, :3], rows[:, 3:6]) and not rows[:, -2:].any() and (rows[:, 1] == 6).all()
        assert "it diverged; the episode is cut short" in command.stdout


BROKEN = {
    "NanReward": "the reward is nan",
    "InfiniteReward": "the reward is -inf",
    "HugeReward": "the reward is 1e+39",  # beyond float32
    "InfiniteObservation": "the observation is not finite",
    "InfiniteLast": "the observation is not finite",
    "NanFirst": "the observation is not finite",
    "Raises": "RuntimeError: unexpected end of file; --resume",  # no advice on Gymnasium's API
}


@pytest.mark.parametrize("env_id", BROKEN)
@pytest.mark.parametrize("script", ["ams_td3", "ppo"])
@pytest.mark.parametrize("learning_starts", ["--learning-starts 20", "--learning-starts 1000"])
def test_what_breaks_in_training_is_named_and_not_stored(script, env_id, learning_starts):
    """The run ends at this step, in warm-up too, and goes on from the step before. The environment's own exceptions
    keep their traceback, above our line."""
    step = {"InfiniteLast": 26, "NanFirst": 17 if script == "ppo" else 26}.get(env_id, 24)  # PPO resets once more
    if script == "ppo":
        learning_starts = "" if "20" in learning_starts else "--num-steps 64"
    words = f"--env-id envs:{env_id}-v0 --eval-frequency 50 --total-timesteps 40", learning_starts
    command = run(script, *words, status=1, traceback=env_id == "Raises")
    *above, last = command.stderr.splitlines()
    assert last.startswith(f"{script}.py: error: step {step}: environment ")
    assert BROKEN[env_id] in last and last.endswith("; --resume goes on from the checkpoint")
    assert not above or env_id == "Raises"
    assert not (RUN / "result.json").exists()
    saved = checkpoint(RUN)
    stored = [saved["rb"]["rows"]] if script != "ppo" else [*saved["rollout"].values()]
    assert all(torch.isfinite(part).all() for part in [*stored, *saved["agent"].values()])
    assert saved["global_step"] == step and (script == "ppo" or len(stored[0]) == 2 * step)
    if env_id == "NanReward":
        run(script, *words, "--resume")
        assert read_json(RUN / "result.json")["global_step"] == 40


AT_ONCE = {
    "NanAtOnce": ("the reward is nan",),
    "InfiniteAtOnce": ("the observation is not finite",),
    "Scalar": ("shape", "()", "(3,)"),
    "Single": ("shape", "(1,)", "(3,)"),
    "Column": ("shape", "(3, 1)", "(3,)"),
    "Nested": ("shape", "(3,)", "(2,)"),
    "FourValues": ("unpack", "step() returns 5 values"),
    "NoInfo": ("unpack", "reset(seed=..., options=...) 2"),
    "NoSeed": ("seed",),
    "OnlyHere": ("can't be made", "no licence in this worker"),
    "Differs": ("can't be made", "observation spaces are not equivalent"),
}


@pytest.mark.parametrize("env_id", AT_ONCE)
def test_what_breaks_at_once_does_not_advise_to_resume(env_id):
    """In the evaluation at step 0 or before. One line, below the traceback of the user's own error in making it."""
    status = 2 if env_id in ("OnlyHere", "Differs") else 1
    command = run("td3", f"--env-id envs:{env_id}-v0", status=status, traceback=env_id == "OnlyHere")
    *above, last = command.stderr.splitlines()
    assert last.startswith("td3.py: error: ") and all(part in last for part in AT_ONCE[env_id])
    assert len(above) < (50 if env_id == "OnlyHere" else 20 if env_id == "Differs" else 1), above
    assert "ConnectionReset" not in command.stderr and "--resume" not in last
    assert not (RUN / "checkpoint.pt").exists()


def test_limits_of_the_machine_are_named():
    """A replay buffer that does not fit, by what is free or by `ulimit -v`; and too many open files."""
    fails("td3", "--buffer-size 100000000000", "the replay buffer does not fit")
    limit = "import os, psutil, resource; used = psutil.Process().memory_info().vms + 2**29; "
    limit += "resource.setrlimit(resource.RLIMIT_AS, (used, used))"
    fails("td3", "--buffer-size 20000000", "the replay buffer does not fit", before=limit)
    fails("ppo", "--num-steps 20000000", "memory is too small", before=limit)
    limit = "import os, resource; used = len(os.listdir('/proc/self/fd')) + 12; "
    limit += "resource.setrlimit(resource.RLIMIT_NOFILE, (used, used))"
    fails("td3", "--num-envs 30", "Too many open files", before=limit)


def test_one_seed_is_one_run_whatever_numbers_an_environment_draws():
    for name in ("one", "two"):
        run("td3", f"--env-id envs:Streams-v0 --run-dir {name} --keep-checkpoint")
    one, two = (checkpoint(Path(name))["rb"]["rows"] for name in ("one", "two"))
    assert torch.equal(one, two)
    for column in range(3):
        assert len(one[:, column].unique()) == len(one), "every step of every environment draws another number"


def simulators() -> list[psutil.Process]:
    pids = [int(line) for line in Path("simulators").read_text().split()]
    return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]


@pytest.mark.parametrize("how", ["complete", "error", "SIGTERM", "SIGINT", "stubborn"])
def test_simulators_in_processes_of_their_own_are_ended(how):
    """By close(); a worker whose close() does not return is killed, and its simulator is not ours to know."""
    env_id = {"error": "SimulatorFails", "stubborn": "StubbornSimulator"}.get(how, "Simulator")
    command = start("td3", f"--env-id envs:{env_id}-v0 --total-timesteps {10**6 if 'SIG' in how else 40}")
    if "SIG" in how:
        command.wait_for("step 20: return")
        os.killpg(command.pid, signal.SIGINT) if how == "SIGINT" else os.kill(command.pid, signal.SIGTERM)
    elif how == "complete":
        command.end()
        assert len(Path("simulators").read_text().split()) >= 3  # some only look whether the task can be made
        assert not simulators()
        command = start("td3", "--evaluate run")
    command.end({"error": 1, "SIGTERM": 143, "SIGINT": 130}.get(how, 0), traceback=how == "error")
    left = simulators()
    assert len(left) == (2 if how == "stubborn" else 0)
    for simulator in left:
        simulator.kill()


def test_an_evaluation_without_end_says_so_and_hears_signals():
    command = start("ppo", "--env-id envs:Endless-v0 --num-envs 1 --eval-episodes 1")
    command.wait_for("10,000 steps; register the task with max_episode_steps")
    workers = command.workers()
    os.kill(command.pid, signal.SIGTERM)
    command.end(143)
    assert "stopped by SIGTERM at step 0" in command.stdout and not command.stderr
    wait_for_end(workers)


def test_evaluate_networks_of_another_version():
    run("ams_td3", "--total-timesteps 21")
    played = run("ams_td3", "--evaluate run").stdout.split("mean")[1]
    saved = checkpoint(RUN, "ams_td3.pt")
    epsilon = saved["args"].pop("epsilon")
    torch.save(saved, "fewer.pt")
    command = run("ams_td3", "--evaluate fewer.pt")
    assert f"fewer.pt has no argument epsilon ({epsilon}); the default is taken\n" in command.stdout
    assert command.stdout.split("mean")[1] == played
    saved["args"] |= {"epsilon": epsilon, "momentum": 0.9}
    torch.save(saved, "more.pt")
    fails("ams_td3", "--evaluate more.pt", "more.pt", "unexpected keyword argument 'momentum'")
