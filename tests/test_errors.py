"""Bad input: one line on stderr that says what is wrong and what would be right, status 2, and nothing left on disk.

What is refused before worker processes are started is tested by calling main() in this process, with the command line
in sys.argv; the rest, and one case of the first kind, through the real command line.
"""

import importlib
import json
import re
import signal
import subprocess
import sys
from dataclasses import asdict

import psutil
import pytest
import torch
from test_run import LIMIT, SCRIPTS, command, contents, environment, hook, run, small

# Tasks that no package has.
ODD_TASKS = """
import os
import gymnasium as gym, numpy as np
class Task(gym.Env):
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    observation_space = gym.spaces.Box(-1, 1, (int(os.environ.get("SIZE", 3)),), np.float32)
    def __init__(self, render_mode=None):
        pass
    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}
    def observe(self):
        return self.np_random.uniform(-1, 1, self.observation_space.shape).astype(np.float32)
    def step(self, action):
        self.t += 1
        assert self.action_space.contains(action), action
        return self.observe(), 0.0, False, self.t == 25, {}
class Unbounded(Task):
    action_space = gym.spaces.Box(-1, np.array([1, np.inf], np.float32))
class Integers(Task):
    action_space = gym.spaces.Box(0, 3, (2,), np.int64)
class Odd(Task):
    action_space = gym.spaces.Box(-1, 1, (2,), np.float64)
    def __init__(self):
        pass
class Broken(Task):
    def __init__(self, render_mode=None):
        raise ValueError("first line\\nsecond line")
for kind in (Task, Unbounded, Integers, Odd, Broken):
    gym.register(f"{kind.__name__}-v0", kind)
"""


@pytest.fixture
def main(monkeypatch, capsys, tmp_path):
    """main(script, *args) calls a script's main() in an empty folder; returns its exit status, stdout and stderr."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MUJOCO_GL", "disable")  # main() sets it: pytest puts it back

    def not_refused(*args):
        raise AssertionError("the command line was not refused: training would start")

    def call(script: str, *args):
        module = importlib.import_module(script)
        monkeypatch.setattr(module, "make_envs", not_refused)
        monkeypatch.setattr(sys, "argv", command(script, *args)[1:])
        with pytest.raises(SystemExit) as ended:
            module.main()
        return ended.value.code, *capsys.readouterr()

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


def check_line(script: str, err: str, *parts: str) -> None:
    """One line, which names the script and has all of `parts`."""
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith(f"{script}.py: error: ")
    for part in parts:
        assert part in lines[0], f"{part!r} is not in {lines[0]!r}"


def written(run_dir) -> list[str]:
    """What a refused command left that the corrected one would find; a directory with a free lock is none of it."""
    return [path.name for path in run_dir.glob("*") if path.name != ".lock"]


POSITIVE = """--total-timesteps --num-envs --checkpoint-frequency --log-frequency --eval-frequency --eval-episodes
--learning-rate --buffer-size --batch-size --updates-per-step --policy-frequency""".split()
NOT_NEGATIVE = "--seed --learning-starts --exploration-noise --policy-noise --noise-clip".split()
FLOATS = "--learning-rate --gamma --tau --exploration-noise --policy-noise --noise-clip".split()

# Arguments, and what the line has to say.
BAD_ARGUMENTS = [
    *((f"{flag} {value}", (flag, "positive", value)) for flag in POSITIVE for value in ("0", "-1")),
    *((f"{flag} -1", (flag, "zero or more", "-1")) for flag in NOT_NEGATIVE),
    *((f"{flag} {value}", (flag, value)) for flag in FLOATS for value in ("nan", "inf", "-inf")),
    *((f"{flag} {v}", (flag, "between 0 and 1", v)) for flag in ("--gamma", "--tau") for v in ("-0.1", "1.1")),
    ("--seed 99999999999999999999", ("--seed",)),
    ("--batch-size 301 --learning-starts 150", ("--batch-size 301", "300", "--learning-starts", "--num-envs")),
    ("--batch-size 11 --buffer-size 10", ("--batch-size 11", "10", "--buffer-size")),
    ("--learning-starts 0", ("--batch-size", "--learning-starts")),
    ("--buffer-size 1 --batch-size 1", ("--buffer-size 1", "--num-envs 2")),
    ("--device cuda", ("--device", "CUDA", "cpu")),
    ("--cuda-graphs", ("--cuda-graphs", "CUDA")),
    ("--capture-video", ("--capture-video", "--evaluate")),
    ("--resume --overwrite", ("--resume", "--overwrite")),
    ("--env-id dog-rum", ("--env-id dog-rum", "dog-run")),
    ("--env-id dm_control/dog-rum-v0", ("--env-id", "dog-run")),
    ("--env-id Pendulum-v7", ("--env-id Pendulum-v7", "Pendulum-v1")),
    ("--env-id HalfCheeta-v5", ("--env-id", "HalfCheetah-v5")),
    *((f"--env-id {env_id}", ("--env-id",)) for env_id in ("''", "/", "nonexistent_module:Task-v0", ".:Task-v0")),
    ("--evaluate nowhere", ("--evaluate nowhere",)),
    ("--evaluate ''", ("--evaluate",)),
    ("--exp-name ''", ("--exp-name",)),
    # The networks go to {exp_name}.pt in the run directory, whose checkpoints are checkpoint*.pt and go at the end.
    ("--exp-name a/b", ("--exp-name", "a/b")),
    ("--exp-name checkpoint", ("--exp-name", "checkpoint")),
    ("--exp-name checkpoint_previous", ("--exp-name", "checkpoint_previous")),
]
AMS_ARGUMENTS = [
    *((f"--num-neighbors {value}", ("--num-neighbors", "positive", value)) for value in ("0", "-1")),
    *((f"--epsilon {value}", ("--epsilon", "zero or more", value)) for value in ("-0.1", "nan", "inf")),
    ("--sampling antithetic --num-neighbors 7", ("--sampling antithetic", "--num-neighbors", "even", "7")),
]


def has(script: str, flags: list[str]) -> bool:
    """Whether a script has these flags: not each algorithm has a replay buffer."""
    return {flag[2:].replace("-", "_") for flag in flags} <= {*asdict(importlib.import_module(script).Args())}


CASES = [
    (script, *case)
    for script in SCRIPTS
    for case in [*BAD_ARGUMENTS, *AMS_ARGUMENTS]
    if has(script, re.findall(r"--[a-z-]+", case[0]))
]


@pytest.mark.parametrize(("script", "bad", "parts"), CASES, ids=[f"{case[0]} {case[1]}" for case in CASES])
def test_bad_argument(script, bad, parts, main, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # Without --run-dir, because an empty place for the default one is where something created would be seen.
    status, _, err = main(script, "--env-id Pendulum-v1 --num-envs 2", SCRIPTS[script][0], bad)
    assert status == 2
    check_line(script, err, *parts)
    assert not any(tmp_path.iterdir()), "something was created"


@pytest.mark.parametrize("script", SCRIPTS)
def test_track_without_weights_and_biases(script, main, monkeypatch, tmp_path):
    """Also where runs of another environment left a folder called wandb, which Python takes for a package."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-packages" in path or "lib/python" in path])
    module = importlib.import_module(script)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    status, _, err = main(script, *small(script, "--track"))
    assert status == 2
    check_line(script, err, "--track", "pip install wandb")
    assert not any(tmp_path.iterdir())


def test_a_folder_called_wandb_is_not_weights_and_biases(tmp_path):
    env = hook(tmp_path, "")
    (env["PYTHONPATH"] / "wandb").mkdir()
    probe = [sys.executable, "-c", "import wandb; print(wandb.__file__)"]
    found = subprocess.run(probe, env=environment(**env), cwd=tmp_path, capture_output=True, text=True, timeout=LIMIT)
    if found.stdout.strip() != "None":
        pytest.skip("Weights & Biases is installed here")
    done = run("td3", *small("td3", "--track"), cwd=tmp_path, env=env, status=2)
    check_line("td3", done.stderr, "--track", "pip install wandb")


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("bad", "parts"),
    [
        ("--sed 1", ("--sed", "--seed")),
        ("--seed one", ("--seed", "one")),
        ("--device gpu", ("--device", "gpu", "cpu")),
        ("--resume yes", ("yes",)),
        ("dog-run", ("dog-run",)),
        ("--gamma", ("--gamma",)),
    ],
)
def test_what_tyro_refuses(script, bad, parts, main, tmp_path, monkeypatch):
    """What tyro says in a box of several lines comes as one line, on a terminal in colour too."""
    monkeypatch.setattr("tyro._fmtlib._FORCE_ANSI", True)
    status, out, err = main(script, "--env-id Pendulum-v1", bad)
    assert status == 2 and not out
    check_line(script, err, *parts)
    assert not set("\x1b│─╭╰") & set(err)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_real_command_line_ends_with_status_2(script, tmp_path):
    """The closest matches come with it; the short form and the registered name of a task are one task."""
    done = run(script, "--env-id dm_control/dog-rum-v0", cwd=tmp_path, status=2)
    check_line(script, done.stderr, "dm_control/dog-rum-v0", "dog-run")
    assert not done.stdout and not any(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize(
    ("env_id", "parts"),
    [
        ("CartPole-v1", ("Discrete(2)", "continuous")),
        ("Unbounded-v0", ("inf", "bounded")),
        ("Integers-v0", ("int64", "continuous")),
        ("Broken-v0", ("first line",)),
    ],
)
def test_a_task_that_can_not_be_trained(env_id, parts, tmp_path):
    env = hook(tmp_path, ODD_TASKS)
    done = run("ams_td3", *small("ams_td3", "--env-id", env_id), cwd=tmp_path, env=env, status=2)
    check_line("ams_td3", done.stderr, f"--env-id {env_id}", *parts)
    assert not written(tmp_path / "run"), "a corrected command would find a run there"


def test_a_task_that_looks_odd_and_is_not(tmp_path):
    """In a module of the user's, named as in Gymnasium, with float64 actions and without an argument render_mode."""
    env = hook(tmp_path, "")
    (env["PYTHONPATH"] / "odd.py").write_text(ODD_TASKS)
    run("td3", *small("td3", "--total-timesteps 30 --learning-starts 20 --env-id odd:Odd-v0"), cwd=tmp_path, env=env)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["updates"] == 10


def test_a_buffer_that_does_not_fit(tmp_path):
    """The line says how much it takes and how much there is, and --overwrite has not deleted anything yet."""
    make_run(tmp_path / "run", "td3", result={"global_step": 400})
    before = contents(tmp_path / "run")
    done = run("td3", *small("td3", "--overwrite --buffer-size 1000000000000"), cwd=tmp_path, status=2)
    check_line("td3", done.stderr, "--buffer-size", "1,000,000,000,000", "GiB", "free")
    needed, free = (float(number) for number in re.findall(r"([\d.]+) (?:GiB|free|of)", done.stderr)[:2])
    assert needed == pytest.approx(1e12 * 4 * (3 + 3 + 1 + 1 + 1) / 2**30, rel=0.01)
    assert 0 < free < psutil.virtual_memory().total / 2**30
    assert contents(tmp_path / "run") == before


# ----------------------------------------------------------------------------------------------- run directories


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("how", ["", "--resume", "--overwrite"])
@pytest.mark.parametrize("file", ["notes.txt", "args.json"])
def test_a_foreign_directory_is_left_alone(script, how, file, main, tmp_path):
    """Also one that has an args.json, as many projects have: --overwrite would delete its networks."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / file).write_text('{"learning_rate": 0.1}')
    (folder / "networks.pt").write_text("precious")
    before = contents(folder)
    status, _, err = main(script, *small(script, "--run-dir mine", how))
    assert status == 2
    check_line(script, err, "mine", "--run-dir")
    assert contents(folder) == before


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"overwrite": True}])
def test_a_directory_left_by_a_run_killed_in_its_first_write_is_taken(how, tmp_path):
    module = importlib.import_module("td3")
    (tmp_path / "args.json.new").write_text('{"algorithm"')
    (tmp_path / ".lock").touch()
    module.Run(module.Args(run_dir=str(tmp_path), **how), []).lock.close()


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_directory_that_can_not_be_written(script, main, tmp_path):
    (tmp_path / "file").write_text("")
    for path in ("file", "file/run"):
        status, _, err = main(script, *small(script, "--run-dir", path))
        assert status == 2
        check_line(script, err, f"--run-dir {path}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def make_run(folder, script: str, **files: dict) -> None:
    """A run directory with JSON files of the given names and contents, and the script's args.json."""
    folder.mkdir()
    args = asdict(importlib.import_module(script).Args())
    for name, content in {"args": {"algorithm": script, **args}, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_existing_run_needs_a_decision(script, main, tmp_path):
    make_run(tmp_path / "run", script)
    before = contents(tmp_path / "run")
    status, _, err = main(script, *small(script))
    assert status == 2
    check_line(script, err, "run exists", "--resume", "--overwrite", "--run-dir")
    assert contents(tmp_path / "run") == before


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_that_is_training_is_left_alone(script, main, tmp_path):
    """Its lock is held by another process, as by the one that trains."""
    make_run(tmp_path / "run", script)
    before = contents(tmp_path / "run")
    hold = "import fcntl; lock = open('run/.lock', 'w'); fcntl.lockf(lock, fcntl.LOCK_EX); print('held', flush=True)"
    options = {"cwd": tmp_path, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", hold + "; input()"], **options) as holder:
        assert holder.stdout.readline() == "held\n"
        for how in ("--resume", "--overwrite"):
            status, _, err = main(script, *small(script, how))
            assert status == 1
            check_line(script, err, "another process is training in run")
            assert contents(tmp_path / "run") == before
        holder.communicate("\n")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_finished_run_says_so(script, main, tmp_path):
    make_run(tmp_path / "run", script, result={"global_step": 400})
    before = contents(tmp_path / "run")
    status, out, err = main(script, *small(script, "--resume"))
    assert status == 0 and not err
    assert "run is complete" in out and len(out.splitlines()) == 1
    assert contents(tmp_path / "run") == before


# --------------------------------------------------------------------------------------------------- checkpoints


OTHER = {"ams_td3": "td3", "td3": "ams_td3"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_evaluate_of_a_file_that_is_not_a_policy_of_ours(script, main, tmp_path):
    other = OTHER.get(script, "td3")
    args = asdict(importlib.import_module(other).Args())
    torch.save({"algorithm": other, "args": args, "global_step": 0, "agent": {}}, "other.pt")
    torch.save({"weights": torch.zeros(3)}, "foreign.pt")
    torch.save([torch.zeros(3)], "list.pt")
    torch.save(torch.nn.Linear(1, 1), "pickled.pt")  # unpickling it could run code
    (tmp_path / "text.pt").write_text("not a checkpoint")
    (tmp_path / "empty.pt").write_text("")
    (tmp_path / "empty").mkdir()
    before = contents(tmp_path, "*.pt")
    for name in ("other.pt", "foreign.pt", "list.pt", "pickled.pt", "text.pt", "empty.pt", "empty"):
        status, _, err = main(script, "--evaluate", name)
        assert status == 2, name
        check_line(script, err, f"--evaluate {name}", *([f"{other}.py"] if name == "other.pt" else []))
    assert contents(tmp_path, "*.pt") == before


@pytest.mark.parametrize(
    ("algorithm", "env_id", "parts"),
    [
        ("sac", "Pendulum-v1", ("sac.py", "ams_td3.py")),
        ("ams_td3", "cheetah-run", ("--env-id cheetah-run, not Pendulum-v1",)),
    ],
)
def test_resume_of_a_checkpoint_of_another_run(algorithm, env_id, parts, tmp_path):
    """Of another algorithm or task: named, and nothing changes."""
    make_run(tmp_path / "run", "ams_td3")
    values = {"env_id": env_id, "num_envs": 2, "learning_starts": 150, "batch_size": 16, "buffer_size": 3000}
    args = asdict(importlib.import_module("ams_td3").Args(**values, eval_episodes=2))
    torch.save({"algorithm": algorithm, "args": args}, tmp_path / "run" / "checkpoint.pt")
    before = contents(tmp_path / "run")
    done = run("ams_td3", *small("ams_td3", "--resume"), cwd=tmp_path, status=2)
    check_line("ams_td3", done.stderr, *parts)
    assert contents(tmp_path / "run") == before


def test_networks_of_another_shape(tmp_path):
    """The task's observations grew since the run was made, as they do when a user works on the task."""
    env = hook(tmp_path, ODD_TASKS)
    budget = small("ams_td3", "--env-id Task-v0 --learning-starts 20")
    run("ams_td3", *budget, "--total-timesteps 30 --checkpoint-frequency 25 --keep-checkpoint", cwd=tmp_path, env=env)
    (tmp_path / "run" / "result.json").unlink()
    before = contents(tmp_path / "run")
    for how in ("--resume", "--evaluate run"):
        done = run("ams_td3", *budget, how, cwd=tmp_path, env=env | {"SIZE": 4}, status=2)
        check_line("ams_td3", done.stderr, "shape")
        assert contents(tmp_path / "run") == before
