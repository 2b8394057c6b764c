"""The tests' own environments; `PYTHONPATH=tests python td3.py --env-id envs:Ends-v0`."""

import multiprocessing
import os
import random
import subprocess
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces import Box

PAIR = gym.spaces.Tuple([Box(-1, 1, (2,)), Box(-1, 1, (3,))])
KINDS = [(9, False, True), (5, True, False), (7, True, True), (1, True, False)]  # steps, and how an episode ends then


class PhysicsError(RuntimeError):
    """Named as dm_control's."""


class Ends(gym.Env):
    """Episodes of four kinds. Observations are [id, step, kind], in one array that changes in place; id and kind are
    drawn at reset. The reward is id plus the mean action over `scale`. Actions must be within the bounds."""

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    kinds = 4

    def __init__(self, low=-1, high=1, dtype=np.float32, scale=1, render_mode=None):
        low, high, _ = np.broadcast_arrays(low, high, np.zeros(2))
        self.action_space = Box(low.astype(dtype), high.astype(dtype), dtype=dtype)
        self.scale, self.render_mode, self.array = scale, render_mode, np.zeros(3, np.float32)

    def observe(self):
        self.array[:] = self.id, self.t, self.kind
        return self.array

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.id, self.kind, self.t = self.np_random.uniform(-1, 1), self.np_random.integers(self.kinds), 0
        return self.observe(), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action!r} is outside {self.action_space}"
        self.t += 1
        length, terminated, truncated = KINDS[self.kind]
        over = self.t >= length
        return self.observe(), self.id + float(action.mean()) / self.scale, over and terminated, over and truncated, {}


class Walk(Ends):
    """Every episode has 9 steps."""

    kinds = 1


class Breaks(Walk):
    """The step number `at`, or the reset, of all that an environment makes is what it should not be."""

    def __init__(self, what, at, **options):
        super().__init__(**options)
        self.what, self.at, self.steps, self.resets = what, at, 0, 0

    def reset(self, seed=None, options=None):
        self.resets += 1
        observation, info = super().reset(seed=seed)
        return observation * (np.nan if (self.what, self.at) == ("reset", self.resets) else 1), info

    def step(self, action):
        self.steps += 1
        observation, reward, *rest = super().step(action)
        broken = self.what if self.steps == self.at else ""
        if broken == "error":
            raise RuntimeError("unexpected end\n of file")
        if broken == "physics":
            raise PhysicsError("it diverged")
        reward = {"nan": np.nan, "infinity": -np.inf, "huge": 1e39}.get(broken, reward)
        return observation * (np.inf if broken == "observation" else 1), reward, *rest


class Odd(Walk):
    """One thing is not as Gymnasium has it; where `what` is a shape, it is the observations'."""

    def __init__(self, what, **options):
        super().__init__(**options)
        self.what, self.made = what, random.random()
        self.observation_space = PAIR if what == "nested" else self.observation_space

    def observe(self):
        if self.what == "streams":  # numbers from other streams than the environment's own
            drawn = random.random() + self.made, np.random.rand() + self.observation_space.sample()[0], torch.rand(())
            return np.array(drawn, np.float32)
        if self.what == "nested":
            return np.zeros(3), np.zeros(2)
        return np.zeros(self.what, np.float32) if isinstance(self.what, tuple) else super().observe()

    def reset(self, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        return observation if self.what == "no info" else (observation, info)

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        if isinstance(self.what, tuple):  # then nothing that is random matters
            reward = float(action.mean())
        if self.what == "four values":
            return observation, reward, terminated or truncated, info
        if self.what == "arrays":
            return observation, np.array([[reward]]), np.array([terminated]), np.array(truncated), info
        return observation, reward, terminated, truncated and self.what != "endless", info


class NoSeed(Walk):
    def reset(self):
        return super().reset()


class Mixed(Walk):
    observation_space = gym.spaces.Dict(
        z=gym.spaces.Discrete(3),
        image=Box(0, 255, (2, 2), np.uint8),
        pair=gym.spaces.Tuple([Box(-1, 1, (), np.float64), gym.spaces.MultiBinary(2)]),
    )

    def observe(self):
        pair = np.float64(0.5), np.array([1, 0], np.int8)
        return {"image": np.full((2, 2), self.t, np.uint8), "z": self.t % 3, "pair": pair}


class Simulator(Breaks):
    """Has a process of its own, ended by close(), and writes down which."""

    def __init__(self, what="", at=0, stubborn=False, **options):
        super().__init__(what, at, **options)
        self.process, self.stubborn = subprocess.Popen(["sleep", "1000"]), stubborn
        with open("simulators", "a") as file:
            file.write(f"{self.process.pid}\n")

    def close(self):
        if self.stubborn and multiprocessing.parent_process():
            time.sleep(1000)
        self.process.kill()
        self.process.wait()


class OnlyHere(Walk):
    """In workers it can't be made, as where a licence is missing, or is another task, as where layouts are random."""

    def __init__(self, differs=False, render_mode=None):
        super().__init__()
        if multiprocessing.parent_process():
            self.observation_space = Box(-1, 1, (4,))
            assert differs, "no licence in this worker"


class Drawn(Walk):
    """Draws without OpenGL and does not say how fast; writes down what MuJoCo would draw with."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode=None):
        super().__init__(render_mode=render_mode)
        Path("MUJOCO_GL").write_text(os.environ.get("MUJOCO_GL", ""))

    def render(self):
        return np.full((64, 96, 3), 20 * self.t, np.uint8)


for own in [value for value in list(globals().values()) if isinstance(value, type) and issubclass(value, Ends)]:
    gym.register(f"{own.__name__}-v0", own)
MOST = float(np.finfo(np.float32).max)
for name, own, options in (
    ("Narrow", Ends, {"low": -(2**-7), "high": 2**-7, "scale": 2**-7}),
    ("Wide", Ends, {"low": -128, "high": 128, "scale": 128}),
    # The first dimension can't move, and the second has bounds that are no float32 numbers.
    ("Strict", Ends, {"low": [0.3, -0.1], "high": [0.3, 7.7], "dtype": np.float64}),
    ("Huge", Ends, {"low": -1e10, "high": 1e10, "dtype": np.float64}),
    ("Most", Ends, {"low": -MOST, "high": MOST}),
    ("HalfOpen", Ends, {"low": [-1, -np.inf]}),
    ("Matrix", Ends, {"low": -np.ones((2, 2))}),
    ("Integers", Ends, {"dtype": np.int64}),
    # An evaluation of three episodes in two environments takes 18 steps of each, so the step 43 is training's 25th.
    ("NanReward", Breaks, {"what": "nan", "at": 43}),
    ("InfiniteReward", Breaks, {"what": "infinity", "at": 43}),
    ("HugeReward", Breaks, {"what": "huge", "at": 43}),
    ("InfiniteObservation", Breaks, {"what": "observation", "at": 43}),
    ("InfiniteLast", Breaks, {"what": "observation", "at": 45}),
    ("NanFirst", Breaks, {"what": "reset", "at": 8}),
    ("Raises", Breaks, {"what": "error", "at": 43}),
    ("Diverges", Breaks, {"what": "physics", "at": 43}),
    ("NanAtOnce", Breaks, {"what": "nan", "at": 4}),
    ("InfiniteAtOnce", Breaks, {"what": "observation", "at": 9}),
    ("SimulatorFails", Simulator, {"what": "error", "at": 43}),
    ("StubbornSimulator", Simulator, {"stubborn": True}),
    ("Column", Odd, {"what": (3, 1)}),
    ("Single", Odd, {"what": (1,)}),
    ("Scalar", Odd, {"what": ()}),
    ("Nested", Odd, {"what": "nested"}),
    ("Differs", OnlyHere, {"differs": True}),
    ("Zeros", Odd, {"what": (3,)}),
    ("Streams", Odd, {"what": "streams"}),
    ("NoInfo", Odd, {"what": "no info"}),
    ("FourValues", Odd, {"what": "four values"}),
    ("Arrays", Odd, {"what": "arrays"}),
    ("Endless", Odd, {"what": "endless"}),
):
    gym.register(f"{name}-v0", own, kwargs=options)
