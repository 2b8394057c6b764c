"""HumanoidBench: ids, messages and the shim against a stand-in package, always; the real package where it is installed.

The README says which two commands install it. Tests of the real package are reported as skipped where it is missing.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from commands import RUN, SCRIPTS, fails, read_json, run

pytestmark = pytest.mark.usefixtures("own_folder")
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
        print("made", self.spec.id)
        return self.np_random.normal(size=51), {}
    def step(self, action):
        self.steps += 1
        return self.np_random.normal(size=51), 1.0, self.steps == 13, False, {"stand_reward": np.ones(19)}
for task in ("walk", "run", "slide", "sit_simple", "stand"):
    gym.register(f"h1-{task}-v0", Robot, max_episode_steps=1000)
"""


@pytest.fixture
def stand_in(tmp_path):
    """A PYTHONPATH with a package whose two broken modules fail like the real ones, if they are imported."""
    package = Path("path") / "humanoid_bench"
    for folder in (package, package / "dmc_deps", package / "mjx"):
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    (package / "__init__.py").write_text(STAND_IN)
    (package / "dmc_deps" / "dmc_index.py").write_text("import humanoid_bench.dmc_deps.dmc_sizes as sizes")
    (package / "dmc_deps" / "dmc_sizes.py").write_text("raise AttributeError('flex_evpair')")
    (package / "mjx" / "flax_to_torch.py").write_text("import a_jax_that_is_not_there")
    return f"{package.parent}:{Path(__file__).parent}"


def test_the_missing_package_is_named_with_what_installs_it(tmp_path):
    absent = "import sys; sys.modules['humanoid_bench'] = None; import importlib.util as util; find = util.find_spec; "
    absent += "util.find_spec = lambda name, *rest: None if name == 'humanoid_bench' else find(name, *rest)"
    advice = "git clone", "checkout 791405f", "pip install --no-deps -e humanoid-bench"
    fails("td3", "--env-id h1-walk", "no HumanoidBench", *advice, before=absent)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("env_id", "full"), [("h1-stand", "h1-stand-v0"), ("h1-run-v0", "h1-run-v0"), ("h1-sit", "h1-sit_simple-v0")]
)
def test_training_on_the_stand_in(env_id, full, stand_in):
    """By short and full ids; worker processes import it through the shim as well, also for --evaluate; an episode is
    13 steps of reward 1."""
    command = run("ams_td3", "--total-timesteps 30 --env-id", env_id, PYTHONPATH=stand_in)
    assert f"made {full}\n" in command.stdout
    result = read_json(RUN / "result.json")
    assert result["final_evaluation"]["returns"] == [13.0] * 3 and result["training_return_last_10_percent"] is None
    if env_id == "h1-stand":
        played = run("ams_td3", "--evaluate run", PYTHONPATH=stand_in)
        assert "mean 13.00, std 0.00 over 3 episodes" in played.stdout


def test_other_tasks_do_not_touch_the_package(stand_in):
    Path(stand_in.split(":")[0], "humanoid_bench", "__init__.py").write_text("raise SystemExit('imported')")
    run("td3", "--total-timesteps 1 --eval-episodes 1", PYTHONPATH=stand_in)


@needs_package
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_trains_the_real_h1(script):
    run(script, "--env-id h1-walk")
    result = read_json(RUN / "result.json")
    assert result["updates"] > 0 and np.isfinite(result["final_evaluation"]["returns"]).all()
