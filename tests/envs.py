"""The tests' own environments; `PYTHONPATH=tests python td3.py --env-id envs:Ends-v0`."""

import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Tuple

KINDS = [(9, False, True), (5, True, False), (7, True, True), (1, True, False)]  # steps, and how an episode ends then


def register(name: str, kind: type, **options):
    gym.register(f"{name}-v0", kind, kwargs=options)


# ------------------------------------------------------------------------------------------------- what is right


class Ends(gym.Env):
    """Episodes of four kinds. Observations are [id, step, kind], in one array that changes in place; id and kind are
    drawn at reset. The reward is id plus the mean action over `scale`. Actions must be within the bounds.

    Its subclasses are registered by their names."""

    observation_space = Box(-np.inf, np.inf, (3,))
    kinds = 4

    def __init_subclass__(cls):
        register(cls.__name__, cls)

    def __init__(self, low=-1, high=1, dtype=np.float32, scale=1, render_mode=None):
        low, high, _ = np.broadcast_arrays(low, high, np.zeros(2))
        self.action_space = Box(low.astype(dtype), high.astype(dtype), dtype=dtype)
        self.scale = scale
        self.render_mode = render_mode
        self.array = np.zeros(3, np.float32)

    def observe(self):
        self.array[:] = self.id, self.t, self.kind
        return self.array

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.id = self.np_random.uniform(-1, 1)
        self.kind = self.np_random.integers(self.kinds)
        self.t = 0
        return self.observe(), {}

    def step(self, action):
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is outside {self.action_space}")
        self.t += 1
        length, terminated, truncated = KINDS[self.kind]
        over = self.t >= length
        reward = self.id + float(action.mean()) / self.scale
        return self.observe(), reward, over and terminated, over and truncated, {}


class Walk(Ends):
    """Every episode has 9 steps."""

    kinds = 1


class Zeros(Walk):
    """Nothing is random; observations are zeros, of a shape that may be wrong."""

    def __init__(self, shape=(3,)):
        super().__init__()
        self.shape = shape

    def observe(self):
        return np.zeros(self.shape, np.float32)

    def step(self, action):
        observation, _, *rest = super().step(action)
        return observation, float(action.mean()), *rest


class Streams(Walk):
    """Observes numbers from other streams than the environment's own."""

    def __init__(self):
        super().__init__()
        self.made = random.random()

    def observe(self):
        sample = self.observation_space.sample()[0]
        drawn = [random.random() + self.made, np.random.rand() + sample, torch.rand(())]
        return np.array(drawn, np.float32)


class Mixed(Walk):
    """Observes a dictionary with an image, a category and numbers of other types."""

    observation_space = Dict(
        z=Discrete(3),
        image=Box(0, 255, (2, 2), np.uint8),
        pair=Tuple([Box(-1, 1, (), np.float64), MultiBinary(2)]),
    )

    def observe(self):
        return {
            "image": np.full((2, 2), self.t, np.uint8),
            "z": self.t % 3,
            "pair": (np.float64(0.5), np.array([1, 0], np.int8)),
        }


class Arrays(Walk):
    """Gives arrays of one element where others give numbers."""

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, np.array([[reward]]), np.array([terminated]), np.array(truncated), info


class Endless(Walk):
    def step(self, action):
        observation, reward, *_ = super().step(action)
        return observation, reward, False, False, {}


class Drawn(Walk):
    """Draws without OpenGL and does not say how fast; writes down what MuJoCo would draw with."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode=None):
        super().__init__(render_mode=render_mode)
        Path("MUJOCO_GL").write_text(os.environ.get("MUJOCO_GL", ""))

    def render(self):
        return np.full((64, 96, 3), 20 * self.t, np.uint8)


class Normalized(gym.wrappers.NormalizeObservation):
    """Keeps statistics that no checkpoint has."""

    def __init__(self):
        super().__init__(Walk())


register("Ends", Ends)
register("Normalized", Normalized)
register("Narrow", Ends, low=-(2**-7), high=2**-7, scale=2**-7)
register("Wide", Ends, low=-128, high=128, scale=128)
# The first dimension can't move, and the second has bounds that are no float32 numbers.
register("Strict", Ends, low=[0.3, -0.1], high=[0.3, 7.7], dtype=np.float64)
# Actions that the scripts don't take
MOST = float(np.finfo(np.float32).max)
register("Huge", Ends, low=-1e10, high=1e10, dtype=np.float64)
register("Most", Ends, low=-MOST, high=MOST)
register("HalfOpen", Ends, low=[-1, -np.inf])
register("Matrix", Ends, low=-np.ones((2, 2)))
register("Integers", Ends, dtype=np.int64)


# ------------------------------------------------------------------------------------------------- what is wrong


class PhysicsError(RuntimeError):
    """Named as dm_control's."""


class Breaks(Walk):
    """Its step number `at` aborts, raises `error` or gives a `wrong` value. An evaluation of three episodes in two
    environments takes 18 steps of each, so the step 43 is training's 25th."""

    def __init__(self, at=43, error=None, abort=False, **wrong):
        super().__init__()
        self.at = at
        self.error = error
        self.abort = abort
        self.wrong = wrong
        self.steps = 0

    def step(self, action):
        self.steps += 1
        observation, reward, *rest = super().step(action)
        if self.steps != self.at:
            return observation, reward, *rest
        if self.abort:
            os.abort()
        if self.error:
            raise self.error
        return self.wrong.get("observation", observation), self.wrong.get("reward", reward), *rest


class NanFirst(Walk):
    """The eighth reset gives no numbers."""

    resets = 0

    def reset(self, **options):
        self.resets += 1
        observation, info = super().reset(**options)
        if self.resets == 8:
            observation[:] = np.nan
        return observation, info


class FourValues(Walk):
    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, info


class NoInfo(Walk):
    def reset(self, **options):
        observation, _ = super().reset(**options)
        return observation


class NoSeed(Walk):
    def reset(self):
        return super().reset()


class SmallSeeds(Walk):
    """Gives its seed to C code that takes an int."""

    def reset(self, seed=None, options=None):
        if seed is not None and seed >= 2**31:
            raise OverflowError("Python int too large to convert to C int")
        return super().reset(seed=seed)


class SecondFails(Walk):
    """Only the first in a folder can be made, as where licences are counted."""

    def __init__(self):
        super().__init__()
        first = Path("first")
        if first.exists():
            self.be_second()
        first.touch()

    def be_second(self):
        raise RuntimeError("no licence left")


class SecondDiffers(SecondFails):
    """The first in a folder is another task than the others, as where layouts are random."""

    def be_second(self):
        self.observation_space = Box(-1, 1, (4,))


class SecondExits(SecondFails):
    def be_second(self):
        sys.exit(0)


nothing = np.full(3, np.inf, np.float32)
end = RuntimeError("unexpected end\n of file")
register("NanReward", Breaks, reward=np.nan)
register("InfiniteReward", Breaks, reward=-np.inf)
register("HugeReward", Breaks, reward=1e39)
register("InfiniteObservation", Breaks, observation=nothing)
register("InfiniteLast", Breaks, at=45, observation=nothing)
register("Raises", Breaks, error=end)
register("Unpicklable", Breaks, error=RuntimeError("unexpected end", lambda: None))
register("Aborts", Breaks, abort=True)
register("Diverges", Breaks, error=PhysicsError("it diverged"))
register("NanAtOnce", Breaks, at=4, reward=np.nan)
register("InfiniteAtOnce", Breaks, at=9, observation=nothing)
register("Scalar", Zeros, shape=())
register("Single", Zeros, shape=(1,))


# -------------------------------------------------------------------------- what disturbs the process around it


class Simulator(Breaks):
    """Starts a process that its close() forgets."""

    def __init__(self, error=None):
        super().__init__(error=error)
        subprocess.Popen(["sleep", "1000"])


class StubbornSimulator(Simulator):
    def close(self):
        time.sleep(1000)


class CloseFails(Walk):
    def close(self):
        raise RuntimeError("the simulator is gone already")


class ChangesTorch(Walk):
    def __init__(self):
        super().__init__()
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)


class LeavesThread(Walk):
    """Its thread never ends, and is no daemon."""

    def __init__(self):
        super().__init__()
        threading.Thread(target=time.sleep, args=[1_000_000]).start()


class ChangesFolder(Walk):
    def __init__(self):
        super().__init__()
        os.chdir(tempfile.gettempdir())


class Exits(Walk):
    def __init__(self, leave=sys.exit):
        super().__init__()
        leave(0)


register("SimulatorFails", Simulator, error=end)
register("ExitsAtOnce", Exits, leave=os._exit)
