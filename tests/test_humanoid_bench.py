"""HumanoidBench: ids, messages and the shim against a stand-in package, always; the real package where it is installed.

The README says which two commands install it. Tests of the real package are reported as skipped where it is missing.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ams_td3

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [name for name in ("ams_td3", "ams_sac", "td3", "sac", "ppo") if (ROOT / f"{name}.py").exists()]
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("humanoid_bench") is None, reason="HumanoidBench is not installed (the README says how)"
)

# Imports what the real package imports, ends an episode after 13 steps, and can't render.
STAND_IN = """
import gymnasium as gym
import numpy as np
import humanoid_bench.dmc_deps.dmc_index as index
from humanoid_bench.mjx.flax_to_torch import TorchModel, TorchPolicy

assert "mjmodel" in index.sizes.array_sizes


class Robot(gym.Env):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (51,), np.float64)
    action_space = gym.spaces.Box(-1, 1, (19,), np.float32)

    def __init__(self, render_mode="rgb_array"):
        assert render_mode is None, "no OpenGL here"

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.normal(size=51), {}

    def step(self, action):
        self.steps += 1
        return self.np_random.normal(size=51), 1.0, self.steps == 13, False, {"stand_reward": np.ones(19)}


for task in ("walk", "run", "slide", "sit_simple", "stand"):
    gym.register(f"h1-{task}-v0", Robot, max_episode_steps=1000)
"""


def run_script(name, *arguments, path):
    environment = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / f"{name}.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)


@pytest.fixture
def stand_in(tmp_path):
    """A folder with a package whose two broken modules fail like the real ones, if they are imported."""
    package = tmp_path / "path" / "humanoid_bench"
    for folder in (package, package / "dmc_deps", package / "mjx"):
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    (package / "__init__.py").write_text(STAND_IN)
    (package / "dmc_deps" / "dmc_index.py").write_text("import humanoid_bench.dmc_deps.dmc_sizes as sizes")
    (package / "dmc_deps" / "dmc_sizes.py").write_text("raise AttributeError('flex_evpair')")
    (package / "mjx" / "flax_to_torch.py").write_text("import a_jax_that_is_not_there")
    return package.parent


@pytest.mark.parametrize("env_id", ["h1-walk", "h1-stand-v0"])
def test_missing_package_names_the_two_commands_that_install_it(env_id, tmp_path):
    (tmp_path / "humanoid_bench.py").write_text("raise ImportError('there is none')")
    result = run_script("ams_td3", "--env-id", env_id, "--run-dir", tmp_path / "run", path=tmp_path)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "git clone" in result.stderr and "checkout 791405f" in result.stderr
    assert "pip install --no-deps -e humanoid-bench" in result.stderr
    assert not (tmp_path / "run").exists()


def test_short_and_full_ids_are_one_task(stand_in, tmp_path):
    """Through the shim: the stand-in's own copies of the two modules raise."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import os; os.environ['MUJOCO_GL'] = 'disable'; import ams_td3\n"
        "ids = 'h1-walk h1-walk-v0 h1-sit h1-sit_simple-v0 h1-stand-v0'.split()\n"
        "print(*map(ams_td3.find_env_id, ids))\n"
        "print(ams_td3.make_env('h1-sit')().unwrapped.spec.id)"
    )
    environment = {**os.environ, "PYTHONPATH": str(stand_in)}
    command = [sys.executable, "-c", program, ROOT]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert result.stdout.splitlines() == ["h1-walk h1-walk h1-sit h1-sit h1-stand-v0", "h1-sit_simple-v0"], (
        result.stderr
    )


def test_a_dm_control_task_does_not_touch_the_package(stand_in, tmp_path):
    (stand_in / "humanoid_bench" / "__init__.py").write_text("raise SystemExit('imported')")
    program = "import sys; sys.path.insert(0, sys.argv[1]); import ams_td3; print(ams_td3.find_env_id('dog-run'))"
    environment = {**os.environ, "PYTHONPATH": str(stand_in), "MUJOCO_GL": "disable"}
    command = [sys.executable, "-c", program, ROOT]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=100)
    assert result.stdout.split() == ["dog-run"], result.stderr


BUDGET = "--num-envs 2 --total-timesteps 200 --eval-frequency 200 --eval-episodes 2 --log-frequency 50".split()
OFF_POLICY = "--learning-starts 50 --batch-size 32 --buffer-size 5000".split()
PPO = "--num-steps 50 --num-minibatches 4 --update-epochs 2".split()


def train(name, env_id, run_dir, path):
    budget = [*BUDGET, *(PPO if name == "ppo" else OFF_POLICY)]
    result = run_script(name, "--env-id", env_id, "--run-dir", run_dir, *budget, path=path)
    assert result.returncode == 0, result.stderr
    return json.loads((run_dir / "result.json").read_text())


def test_training_on_the_stand_in(stand_in, tmp_path):
    """Worker processes import it through the shim as well, also for --evaluate; an episode is 13 steps of reward 1."""
    result = train("ams_td3", "h1-stand-v0", tmp_path / "run", stand_in)
    assert result["final_evaluation"]["returns"] == [13.0, 13.0]
    assert result["training_return_last_10_percent"] == 13.0
    played = run_script("ams_td3", "--evaluate", tmp_path / "run", "--eval-episodes", "2", path=stand_in)
    assert played.returncode == 0 and "mean 13.00, std 0.00 over 2 episodes" in played.stdout, played.stderr


@needs_package
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_trains_the_real_h1(name, tmp_path):
    result = train(name, "h1-walk", tmp_path / "run", tmp_path)
    assert result["updates"] > 0
    assert all(np.isfinite(result["final_evaluation"]["returns"]))


def play_to_the_end(env_id, action, seed=3):
    """Observations, rewards and how the episode ended, for a constant action."""
    ams_td3.find_env_id(env_id)
    env = ams_td3.make_env(env_id)()
    observations, rewards = [env.reset(seed=seed)[0]], []
    while True:
        observation, reward, terminated, truncated, _ = env.step(np.full(env.action_space.shape, action, np.float32))
        observations.append(observation)
        rewards.append(reward)
        if terminated or truncated:
            return np.array(observations), np.array(rewards), terminated, truncated


@needs_package
@pytest.mark.parametrize("env_id", ["h1-walk", "h1-run", "h1-slide", "h1-sit", "h1-sit_hard-v0"])
def test_equal_seeds_give_equal_episodes(env_id):
    first, other, third = play_to_the_end(env_id, 0.5), play_to_the_end(env_id, 0.5), play_to_the_end(env_id, 0.5, 4)
    assert first[0].dtype == np.float32 and first[0].shape[1] == (64 if "hard" in env_id else 51)
    np.testing.assert_array_equal(first[0], other[0])
    np.testing.assert_array_equal(first[1], other[1])
    assert not np.array_equal(first[0][0], third[0][0])


@needs_package
def test_bootstrapping_at_both_ends_of_real_episodes(monkeypatch):
    """A fall is a termination: y = r. The time limit is not: y = r + gamma Q'(s', a')."""
    fall, limit = play_to_the_end("h1-walk", -1.0), play_to_the_end("h1-sit", 0.0)
    assert fall[2:] == (True, False) and len(fall[1]) < 1000
    assert limit[2:] == (False, True) and len(limit[1]) == 1000
    args = ams_td3.Args()
    agent = ams_td3.Agent(51, ams_td3.make_env("h1-walk")().action_space, args)
    last = [torch.as_tensor(np.stack([episode[0][at] for episode in (fall, limit)])) for at in (-2, -1)]
    rewards = torch.tensor([fall[1][-1], limit[1][-1]], dtype=torch.float32)
    batch = ams_td3.Batch(*last, torch.zeros(2, 19), rewards, torch.tensor([float(fall[2]), float(limit[2])]))
    monkeypatch.setattr(agent.qf1_target, "forward", lambda _, actions: torch.full(actions.shape[:2], 7.0))
    monkeypatch.setattr(agent.qf2_target, "forward", lambda _, actions: torch.full(actions.shape[:2], 9.0))
    expected = rewards + args.gamma * torch.tensor([0.0, 7.0])
    torch.testing.assert_close(ams_td3.td_target(agent, batch, args), expected)
