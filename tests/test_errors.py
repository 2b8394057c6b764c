"""A user's mistake ends in one clear line that says what would be right, with status 2, and leaves nothing behind.

What is refused before worker processes are started is tested by calling main() in this process.
"""

import importlib
import re
import shlex
import signal
import sys

import pytest
import torch
from commands import SCRIPTS, small


@pytest.fixture
def main(monkeypatch, capsys, tmp_path):
    """main(script, *words) calls a script's main() in an empty folder; returns its exit status and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its handlers
    monkeypatch.setenv("MUJOCO_GL", "disable")  # which main() sets: pytest puts it back
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def call(script, *words):
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *shlex.split(" ".join(words))])
        with pytest.raises(SystemExit) as ended:
            importlib.import_module(script).main()
        return ended.value.code, *capsys.readouterr()

    return call


# What is wrong, and what the line says of it; of each script that has these flags.
ARGUMENTS = {
    "--total-timesteps 0": "--total-timesteps must be positive, not 0",
    "--gamma 1.5": "--gamma must be between 0 and 1, not 1.5",
    "--seed 99999999999999999999": "--seed",
    "--sampling antithetic --num-neighbors 7": "--sampling antithetic .* even --num-neighbors",
    "--learning-starts 0": "only 0 transitions for a batch: raise --learning-starts",
    "--batch-size 41": "only 40 transitions for a batch",
    "--buffer-size 1 --batch-size 1": "--buffer-size must hold one step of --num-envs",
    "--num-steps 4 --num-minibatches 32": "--num-minibatches leaves less than 2",
    "--cuda-graphs": "--cuda-graphs needs CUDA",
    "--device cuda": "--device cuda: .* no CUDA device",
    "--exp-name a/b": "--exp-name must be good for a file name",
    "--resume --overwrite": "--resume .* --overwrite .*: give one of them",
    "--capture-video": "--capture-video goes with --evaluate",
    "--track": "pip install wandb",
    "--evaluate nowhere": "nowhere is missing, damaged or foreign: FileNotFoundError",
    "--env-id dog-rum": "--env-id dog-rum can't be made: .*Did you mean: `dog-run`",
    "--env-id Pendulum-v7": "--env-id Pendulum-v7 .*`v1`",
    "--env-id HalfCheeta-v5": "--env-id HalfCheeta-v5 .*HalfCheetah",
    "--env-id none:Task-v0": "--env-id none:Task-v0 .*none",
    "--env-id CartPole-v1": "Discrete.*a vector of bounded continuous actions",
    "--env-id lqr-lqr_2_1": "a vector of bounded continuous actions",  # bounds of 1e10
    "--env-id envs:Most-v0": "a vector of bounded continuous actions",
    "--env-id envs:HalfOpen-v0": "a vector of bounded continuous actions",
    "--env-id envs:Integers-v0": "int64.*a vector of bounded continuous actions",
    "--env-id envs:Matrix-v0": r"\(2, 2\).*a vector of bounded continuous actions",
    "--run-dir /dev/null": "--run-dir /dev/null can't be used",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_wrong_arguments(script, main, tmp_path):
    known = {f"--{name.replace('_', '-')}" for name in vars(importlib.import_module(script).Args())}
    small_words = " ".join(small(script)).replace("--run-dir run", "")
    cases = {words: line for words, line in ARGUMENTS.items() if {*re.findall(r"(--[a-z-]+)", words)} <= known}
    assert len(cases) > 20
    for words, expected in cases.items():
        status, out, err = main(script, small_words, words)
        assert (status, len(err.splitlines())) == (2, 1), (words, out, err)
        assert err.startswith(f"{script}.py: error: ") and re.search(expected, err), (words, err)
        assert not any(tmp_path.iterdir()), f"{words} has left something"


@pytest.mark.parametrize("words", ["--sed 1", "--device gpu", "--resume yes", "dog-run", "--gamma"])
def test_what_tyro_refuses(words, main, tmp_path):
    for script in ("ams_td3", "ppo"):
        status, out, err = main(script, "--env-id Pendulum-v1", words)
        assert status == 2 and words.split()[-1].strip("-") in err and "Traceback" not in err
        assert not any(tmp_path.iterdir())
