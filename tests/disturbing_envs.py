"""Environments that disturb the program around them; `PYTHONPATH=tests python td3.py --env-id disturbing_envs:...`."""

import signal
import sys
import time
from pathlib import Path

from envs import Walk


def hang():
    """Only once in this folder, so that what is tried again comes to its end."""
    if Path("hangs").exists():
        return
    Path("hangs").touch()
    time.sleep(1_000_000)


class HangsInConstructor(Walk):
    def __init__(self):
        super().__init__()
        hang()


class HangsInWorker(Walk):
    """In its constructor, but not in that of the process that only asks for the spaces."""

    def __init__(self):
        super().__init__()
        if Path("asked").exists():
            hang()
        Path("asked").touch()


class HangsInReset(Walk):
    """In the number 7: the first evaluation has 4 and training begins with one, so this is at the end of step 18."""

    resets = 0

    def reset(self, seed=None, options=None):
        self.resets += 1
        if self.resets == 7:
            hang()
        return super().reset(seed=seed)


class HangsInStep(Walk):
    """In the number 43: the first evaluation takes 18, so it is training's 25th."""

    steps = 0

    def step(self, action):
        self.steps += 1
        if self.steps == 43:
            hang()
        return super().step(action)


class HangsInEvaluation(HangsInStep):
    steps = 30  # less than 18 are left


class TakesSignals(Walk):
    """Its constructor sets signal handlers of its own, as ROS and some simulators do."""

    def __init__(self):
        super().__init__()
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, lambda *_: sys.exit())


class Chatty(Walk):
    def step(self, action):
        print("step", self.t, flush=True)
        return super().step(action)
