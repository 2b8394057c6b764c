"""HumanoidBench: ids, messages and the shim against a stand-in package, always; the real package where it is installed.

The README says which two commands install it. Tests of the real package are reported as skipped where it is missing.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from commands import SCRIPTS, fails, result, run

pytestmark = pytest.mark.usefixtures("own_folder")
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("humanoid_bench") is None, reason="HumanoidBench is not installed (the README says how)"
)

HIDE_PACKAGE = """
import sys
import importlib.util as util

find = util.find_spec
util.find_spec = lambda name, *rest: None if name == "humanoid_bench" else find(name, *rest)
sys.modules["humanoid_bench"] = None
"""

# Imports what the real package imports, ends an episode after 13 steps, and can't render.
PACKAGE = """
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
        print("made", self.spec.id)
        return self.np_random.normal(size=51), {}

    def step(self, action):
        self.steps += 1
        return self.np_random.normal(size=51), 1.0, self.steps == 13, False, {"stand_reward": np.ones(19)}

for task in ("walk", "run", "slide", "sit_simple", "stand"):
    gym.register(f"h1-{task}-v0", Robot, max_episode_steps=1000)
"""

# The last two fail like the real ones, if they are imported.
FILES = {
    "__init__.py": PACKAGE,
    "dmc_deps/__init__.py": "",
    "dmc_deps/dmc_index.py": "import humanoid_bench.dmc_deps.dmc_sizes as sizes",
    "mjx/__init__.py": "",
    "dmc_deps/dmc_sizes.py": "raise AttributeError('flex_evpair')",
    "mjx/flax_to_torch.py": "import a_jax_that_is_not_there",
}


@pytest.fixture
def package():
    """The folder of a stand-in package."""
    folder = Path("path", "humanoid_bench")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def run_with(package, script, *words):
    """A small run that finds the package, and the tests' environments."""
    return run(script, *words, PYTHONPATH=f"{package.parent}:{Path(__file__).parent}")


def test_the_missing_package_is_named_with_what_installs_it(tmp_path):
    advice = ["git clone", "checkout 791405f", "pip install --no-deps -e humanoid-bench"]

    fails("td3", "--env-id h1-walk", "no HumanoidBench", *advice, before=HIDE_PACKAGE)

    assert not any(tmp_path.iterdir())


IDS = [("h1-stand", "h1-stand-v0"), ("h1-run-v0", "h1-run-v0"), ("h1-sit", "h1-sit_simple-v0")]


@pytest.mark.parametrize("env_id, full_id", IDS)
def test_short_and_full_ids_are_trained(package, env_id, full_id):
    command = run_with(package, "ams_td3", "--total-timesteps 30 --env-id", env_id)

    assert f"made {full_id}\n" in command.stdout
    assert result()["final_evaluation"]["returns"] == [13.0] * 3  # an episode is 13 steps of reward 1
    assert result()["training_return_last_10_percent"] is None  # none ended in them


def test_a_trained_robot_is_played(package):
    run_with(package, "ams_td3", "--total-timesteps 1 --env-id h1-stand")

    played = run_with(package, "ams_td3", "--evaluate run --env-id h1-stand")

    assert "mean 13.00, std 0.00 over 3 episodes" in played.stdout


def test_other_tasks_do_not_touch_the_package(package):
    (package / "__init__.py").write_text("raise SystemExit('imported')")

    run_with(package, "td3", "--total-timesteps 1 --eval-episodes 1")


@needs_package
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_trains_the_real_h1(script):
    run(script, "--env-id h1-walk")

    assert result()["updates"] > 0
    assert np.isfinite(result()["final_evaluation"]["returns"]).all()
