"""run_all.sh: what it lists, and sweeps that fail, are stopped, killed, doubled and pasted, in a folder with a space.

Nothing is timed: the tests wait for what they name, and PATIENCE only ends a test that hangs."""

import contextlib
import fcntl
import functools
import importlib
import itertools
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import psutil
import pytest
import tyro

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ["ppo", "td3", "sac", "ams_td3", "ams_sac"]
PATIENCE = 200
# A training of a second, and one that the tests stop. The budget comes last.
SHORT = "--num-envs 1 --eval-episodes 1 --device cpu --learning-starts 50 --batch-size 16 --buffer-size 1000"
SHORT = [*SHORT.split(), "--checkpoint-frequency", "20", "--total-timesteps"]
TINY, ENDLESS = [*SHORT, "120"], [*SHORT, "1000000"]

# Stands in for a script: takes STUB_SECONDS, saves when it is stopped, and fails for the seed STUB_FAILS.
STUB = """
import fcntl, json, os, pathlib, signal, sys, time
args = dict(zip(sys.argv[1::2], sys.argv[2::2]))
run = pathlib.Path("runs") / "{--env-id}__{--exp-name}__{--seed}".format_map(args)
run.mkdir(exist_ok=True)
lock = open(run / ".lock", "w")
try:
    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit(75)
if (run / "result.json").exists():
    sys.exit(0)
signal.signal(signal.SIGTERM, lambda *_: ((run / "checkpoint.pt").touch(), sys.exit(143)))
print(os.environ.get("CUDA_VISIBLE_DEVICES"), file=open(run / "started", "a"), flush=True)
time.sleep(float(os.environ.get("STUB_SECONDS", 0)))
if os.environ.get("STUB_FAILS") == args["--seed"]:
    sys.exit("something is wrong")
(run / "result.json").write_text(json.dumps({"global_step": int(args["--total-timesteps"]), "more": 0}, indent=2))
"""


def clean_environment() -> dict:
    """The environment without what would change a sweep."""
    prefixes = "SLURM_", "SBATCH_", "CUDA_VISIBLE", "OMP_", "PYTHON", "CDPATH", "STUB_"
    return {k: v for k, v in os.environ.items() if not k.startswith(prefixes)} | {"PYTHON": sys.executable}


def wait_for(condition) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "nothing happens"
        time.sleep(0.1)


class Project:
    """A copy of the scripts in `folder`, its runs and its processes."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self.folder, self.runs = folder, folder / "runs"
        self.environment = clean_environment()
        for name in ["run_all.sh", *(f"{script}.py" for script in SCRIPTS)]:
            shutil.copy(ROOT / name, folder)

    def stub(self, **variables) -> None:
        """Puts stand-ins in the scripts' places, which `variables` of the environment guide."""
        self.environment |= variables
        for path in self.folder.glob("*.py"):
            path.write_text(STUB)

    def start(self, *arguments: str, **options) -> subprocess.Popen:
        """Starts run_all.sh from elsewhere, in a session of its own."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": "/"} | options
        command = ["bash", self.folder / "run_all.sh", *arguments]
        return subprocess.Popen(command, env=self.environment, start_new_session=True, **options)

    def sweep(self, *arguments: str, status: int = 0) -> str:
        """Runs run_all.sh to its end, and returns what it printed."""
        process = self.start(*arguments)
        output = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == status, output + "".join(path.read_text() for path in self.runs.glob("*.log"))
        return output

    def log(self, name: str) -> str:
        return (self.runs / f"{name}.log").read_text()

    def processes(self, script: str = "") -> list[psutil.Process]:
        """What runs in the project's folder, or one script there, the oldest first."""
        found = psutil.process_iter(["cwd", "cmdline"])
        found = [process for process in found if process.info["cwd"] == str(self.folder)]
        found = [process for process in found if script in ("", *process.info["cmdline"][1:2])]
        return sorted(found, key=lambda process: process.pid)


@pytest.fixture
def project(tmp_path):
    made = Project(tmp_path / "a project")
    yield made
    for process in made.processes():  # nothing, unless the test failed
        with contextlib.suppress(psutil.Error):
            process.kill()


def run_all(*arguments: str, script=ROOT / "run_all.sh", shell="bash", **variables) -> subprocess.CompletedProcess:
    """run_all.sh of this checkout, for what starts no run."""
    options = {"capture_output": True, "text": True, "env": clean_environment() | variables}
    return subprocess.run([shell, script, *arguments], **options)


def listed(*arguments: str, **options) -> list[str]:
    process = run_all("--list", *arguments, **options)
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout.splitlines()


def parse(line: str):
    """The arguments that a listed command gives its script, and the script's name."""
    threads, _, script, *arguments = shlex.split(line)
    assert threads == "OMP_NUM_THREADS=1"
    return tyro.cli(importlib.import_module(script[:-3]).Args, args=arguments), script[:-3]


# -------------------------------------------------------------------------------------------------------- the list

TASKS = "cheetah-run humanoid-run quadruped-walk quadruped-run dog-stand dog-walk dog-trot dog-run"
TASKS += " h1-sit h1-slide h1-walk h1-run"
PARTS = "td3 sac ams_td3 ams_sac ams_td3_no_ntd ams_sac_no_ntd ams_td3_no_layer_norm ams_sac_no_layer_norm "
TABLE3 = PARTS + "ams_td3_eps0.4 ams_td3_eps0.6 ams_td3_eps0.8 ams_td3_k4 ams_td3_k6 ams_td3_k10"
CHANGED = {f"_eps{value}": {"epsilon": value} for value in (0.4, 0.6, 0.8)}  # by what a name has behind the script's
CHANGED |= {f"_k{value}": {"num_neighbors": value} for value in (4, 6, 10)}
CHANGED |= {f"_{value}": {"sampling": value} for value in ("antithetic", "gaussian")}
CHANGED |= {"_point": {"num_neighbors": 1, "epsilon": 0}, "": {}}
CHANGED |= {f"_no_{value}": {value: False} for value in ("ntd", "layer_norm")}


@pytest.mark.parametrize(
    "suite, seeds, tasks, names",
    [
        ("table2", (0, 10, 42, 77, 123), TASKS, "ppo td3 sac ams_td3 ams_sac"),
        ("table3", (0, 42, 123), "quadruped-run", TABLE3),
        ("sampling", (0, 42, 123), "quadruped-run dog-run", "ams_td3 ams_td3_antithetic ams_td3_gaussian"),
        ("controls", (0, 42, 123), "dog-stand dog-run quadruped-run", PARTS + "ams_td3_point ams_sac_point"),
    ],
)
def test_suites_have_the_papers_runs_and_the_controls_with_all_other_arguments_default(suite, seeds, tasks, names):
    found = []
    for args, script in map(parse, listed(suite)):
        run = {"seed": args.seed, "env_id": args.env_id, "exp_name": args.exp_name, "resume": True}
        run["total_timesteps"] = 1_000_000 if args.env_id in ("dog-run", "humanoid-run") else 500_000
        assert vars(args) == vars(type(args)()) | run | CHANGED[args.exp_name.removeprefix(script)]
        found.append((args.seed, args.env_id, args.exp_name))
    assert sorted(found) == sorted(itertools.product(seeds, tasks.split(), names.split()))
    assert [seed for seed, *_ in found] == sorted(seed for seed, *_ in found)  # so that there is a whole table early


def test_suites_share_runs():
    suites = ["table2", "table3", "sampling", "controls", "smoke"]
    together, alone = listed(*suites), {line for suite in suites for line in listed(suite)}
    # table2's: 12 of table3's 42, 6 of sampling's 18 and 36 of controls' 90; 12 of controls' are table3's.
    assert sorted(together) == sorted(alone) and len(together) == 330 + 12 + 42 + 5 and len(listed()) == 330


def test_filters_and_arguments_behind_two_dashes():
    lines = listed("--tasks", "dog-run,dog-walk", "--algorithms=td3,ppo", "--seeds", "0,42", "--", "--num-envs", "4")
    runs = [(args.env_id, script, args.seed, args.num_envs) for args, script in map(parse, lines)]
    assert sorted(runs) == [(t, a, s, 4) for t in ("dog-run", "dog-walk") for a in ("ppo", "td3") for s in (0, 42)]
    line = run_all("smoke", "--list", "--", "a b", "'", PYTHON="/my tools/python", OMP_NUM_THREADS="2").stdout
    words = shlex.split(line.splitlines()[1])
    assert words[:3] == ["OMP_NUM_THREADS=2", "/my tools/python", "td3.py"] and words[-2:] == ["a b", "'"]


@pytest.mark.parametrize(
    "arguments, message, variables",
    [
        ("table4", "table4 is unknown; known: table2 table3 sampling controls smoke", {}),
        ("--task dog-run", "--task is unknown", {}),
        ("smoke --tasks walker-walk,dog-run", "dog-run is in no run of smoke", {}),
        ("table3 smoke --tasks walker-walk --seeds 42", "leave no run of table3 smoke", {}),
        ("--seeds --list", "--seeds needs a value", {}),
        ("--jobs two", "--jobs needs a positive number, not two", {}),
        ("-- --run_dir=x", "--run-dir can't be given behind --", {}),
        ("table2 --seeds 0 -- --num_envs 4 --buffer-size 9", "ppo.py does not know --buffer-size", {}),
        ("smoke", "there is no run 5; use --array=0-4", {"SLURM_ARRAY_TASK_ID": "5"}),
        ("smoke", "/bin/false can't import tyro; activate", {"PYTHON": "/bin/false"}),
        ("", "needs bash 4.4 or newer; macOS: brew install", {"shell": "dash", "BASH_VERSION": "3.2.57(1)-release"}),
    ],  # dash reads no further than bash 3.2 does
)
def test_what_is_wrong_is_one_line_and_status_2(arguments, message, variables):
    process = run_all(*arguments.split(), **variables)
    assert (process.returncode, process.stdout, process.stderr.count("\n")) == (2, "", 1), process.stderr
    assert process.stderr.startswith("run_all.sh: error: ") and message in process.stderr


def test_slurms_copy_finds_the_project(tmp_path):
    copy = shutil.copy(ROOT / "run_all.sh", tmp_path)
    assert listed(script=copy, SLURM_SUBMIT_DIR=str(ROOT)) == listed()
    assert "error: no td3.py beside run_all.sh, nor where sbatch was called\n" in run_all(script=copy).stderr


# ------------------------------------------------------------------------------------------- sweeps with stand-ins


def test_two_terminals_share_the_runs_out_and_failures_are_named(project):
    project.stub(STUB_SECONDS="0.3", STUB_FAILS="42")
    sweeps = [project.start("sampling", "--jobs", "3", "--gpus", gpus) for gpus in ("3,GPU-5", "0")]
    outputs = [sweep.communicate(timeout=PATIENCE)[0] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [1, 1], outputs
    starts = {path.parent.name: path.read_text().splitlines() for path in project.runs.glob("*/started")}
    assert len(starts) == 18 and {line for lines in starts.values() for line in lines} == {"3", "GPU-5", "0"}
    assert all(len(lines) == 1 for name, lines in starts.items() if not name.endswith("__42"))
    status = project.sweep("sampling", "--status")
    assert status.endswith("18 runs: 12 done, 6 failed\n")
    assert len(set(re.findall(r"failed: runs/(.*__42).log: exit status 1: something is wrong\n", status))) == 6
    assert status in {output[-len(status) :] for output in outputs}  # the other one may have ended before

    del project.environment["STUB_FAILS"]  # the same command trains what failed, and nothing else
    finished = {path: path.stat().st_mtime_ns for path in project.runs.glob("*/result.json")}
    assert project.sweep("sampling", "--jobs", "3").endswith("18 runs: 18 done\n") and len(finished) == 12
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())


@pytest.mark.parametrize("how", ["Ctrl-C", "closed", "TERM", "tee"])
def test_every_way_to_stop_a_sweep_lets_its_runs_save(project, how):
    """In a terminal of its own: Ctrl-C, closing it, `kill`; and Ctrl-C that ends `| tee` first."""
    project.stub(STUB_SECONDS="1000")
    ours, theirs = pty.openpty()
    output, pipe = os.pipe()
    take = functools.partial(fcntl.ioctl, theirs, termios.TIOCSCTTY, 0)
    streams = {"stdin": theirs, "stdout": pipe if how == "tee" else theirs, "stderr": theirs}
    sweep = project.start("smoke", "--jobs", "3", preexec_fn=take, **streams)
    wait_for(lambda: len(list(project.runs.glob("*/started"))) == 3)
    for end in (theirs, pipe, output, *[ours] * (how == "closed")):
        os.close(end)
    if how == "TERM":
        sweep.terminate()
    elif how != "closed":
        os.write(ours, b"\x03")  # Ctrl-C
    assert sweep.wait(PATIENCE) == {"closed": 129, "TERM": 143}.get(how, 130)
    assert len(list(project.runs.glob("*/checkpoint.pt"))) == 3 and project.processes() == []
    (project.runs / "walker-walk__sac__0.log").write_text("")  # of a full disk
    assert project.sweep("smoke", "--status").endswith("5 runs: 2 missing, 3 unfinished\n")
    if how == "tee":
        assert "rror" not in os.read(ours, 100_000).decode()


@pytest.mark.parametrize("cores, gpus, jobs", [(2, "", 1), (36, "", 4), (16, "0", 1), (64, "1", 4), (64, "0,1", 7)])
def test_the_number_of_runs_at_once_follows_from_cores_and_gpus(project, cores, gpus, jobs):
    project.stub(PATH=f"{project.folder}:{os.environ['PATH']}", CUDA_VISIBLE_DEVICES=gpus, OMP_NUM_THREADS="3")
    (project.folder / "nproc").write_text(f'#!/bin/sh\necho "${{OMP_NUM_THREADS:-{cores}}}"\n')  # as GNU's
    (project.folder / "nproc").chmod(0o755)
    expected = f" at once ({cores} cores, GPUs: {gpus.replace(',', ' ') or 'none'}); logs: {project.runs}/\n"
    assert f"5 runs, {jobs}{expected}" in project.sweep("smoke")
    assert f"5 runs, 2{expected}" in project.sweep("smoke", "--jobs", "2")


# ----------------------------------------------------------------------------------------- sweeps with real scripts


def test_smoke_a_failure_a_smaller_budget_and_a_pasted_line(project):
    failing = "runs/walker-walk__ams_sac__0"
    foreign = project.folder / failing / "notes"
    foreign.mkdir(parents=True)
    output = project.sweep("smoke", "--jobs", "2", status=1)
    reason = f"exit status 2: ams_sac.py: error: --run-dir {failing} can't be used: it is neither"
    assert f"failed: {failing}.log: {reason}" in output and output.endswith("5 runs: 4 done, 1 failed\n")
    foreign.rmdir()
    assert project.sweep("smoke").endswith("5 runs: 5 done\n")
    assert [project.log(f"walker-walk__{script}__0").count("--resume") for script in SCRIPTS] == [1, 1, 1, 1, 2]

    # Of a run that is complete, but for less than what is asked, the status says so, and the script why it can't go on.
    longer = ["smoke", "--algorithms", "td3", "--", "--total-timesteps", "1200"]
    assert "1 complete with only 1100 steps" in project.sweep(*longer[:3], "--status", *longer[3:])
    assert "walker-walk__td3__0 is complete at step 1100; only --keep-checkpoint" in project.sweep(*longer, status=1)

    # A listed line, pasted, is the same run: the script compares all arguments before it says so.
    line = project.sweep("smoke", "--list", "--algorithms", "ams_td3")
    pasted = subprocess.run(line, shell=True, cwd=project.folder, capture_output=True, text=True)
    assert (pasted.returncode, pasted.stdout) == (0, "runs/walker-walk__ams_td3__0 is complete\n"), pasted.stderr


def test_real_runs_survive_ctrl_c_kill_9_and_a_second_terminal(project):
    names = ["cheetah-run__ams_td3__0", "cheetah-run__ams_td3__42"]
    arguments = "table2 --tasks cheetah-run --algorithms ams_td3 --seeds 0,42 --jobs 2 --".split()
    sweep = project.start(*arguments, *ENDLESS)
    wait_for(lambda: len(list(project.runs.glob("*/checkpoint.pt"))) == 2)
    sweep.send_signal(signal.SIGINT)
    assert sweep.communicate(timeout=PATIENCE)[0].endswith("2 runs: 2 unfinished\n") and sweep.returncode == 130
    assert project.processes() == [] and all("stopped by SIGTERM" in project.log(name) for name in names)

    # kill -9 of the sweep: the run in training goes on, nothing new is started, and the same command passes it over.
    sweep = project.start(*arguments[:-3], "--jobs", "1", "--", *ENDLESS)
    wait_for(lambda: "from step" in project.log(names[0]).split("stopped by")[-1])
    with sweep:
        sweep.kill()
    output = project.sweep(*arguments, *TINY, status=75)
    assert output.endswith("2 runs: 1 done, 1 running\n") and f"{names[0]}: elsewhere: " in output
    told = project.sweep(*arguments[:-1], "--status")
    assert re.search(r"2 runs: 1 complete with only \d+ steps, 1 running\n$", told), told
    project.processes("ams_td3.py")[0].terminate()
    wait_for(lambda: not project.processes())

    # Two terminals at once. What was interrupted goes on from its last step: nothing starts from step 0 a second time.
    sweeps = [project.start(*arguments, *TINY) for _ in range(2)]
    outputs = [sweep.communicate(timeout=PATIENCE)[0] for sweep in sweeps]
    assert {sweep.returncode for sweep in sweeps} <= {0, 75} and "2 runs: 2 done" in "".join(outputs)
    for log, attempts in zip(map(project.log, names), (5, 4), strict=True):
        assert log.count("--resume --num-envs") == attempts, log
        assert log.count("from step 0,") == log.count("complete: runs/") == 1, log
