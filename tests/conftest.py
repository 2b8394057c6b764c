"""Makes the scripts and what the tests share importable, on one thread; no process outlives its test."""

import os
import signal
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]
os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is imported: numbers must not depend on the machine's cores
# What nohup, or a script's `&`, lets this process ignore would be ignored in the runs, too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """The test works in an empty folder of its own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def float64():
    """Everything that a test makes is in double precision."""
    import torch

    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def no_process_is_left():
    yield
    if "commands" in sys.modules:
        sys.modules["commands"].kill_all()
