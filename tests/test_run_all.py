"""run_all.sh: what it lists, and sweeps with the real scripts that are stopped, killed, doubled, pasted and queued.

Every project here is a copy in a folder whose name has a space. Nothing is timed: the tests wait for what they name,
and PATIENCE only ends a test that hangs.
"""

import contextlib
import functools
import getpass
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import psutil
import pytest
import tyro

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ["ams_sac", "ams_td3", "ppo", "sac", "td3"]
PATIENCE = 300
# One short training: for any script, and for those that learn from a replay buffer. ENDLESS is stopped by the tests.
SHORT = "--num-envs 1 --eval-episodes 1 --eval-frequency 1000000 --device cpu --log-frequency 20".split()
SHORT += "--learning-starts 50 --batch-size 16 --buffer-size 1000 --checkpoint-frequency 20 --total-timesteps".split()
ENDLESS, TINY = [*SHORT, "1000000"], [*SHORT, "120"]

# Stands in for the interpreter where only the order of things matters: writes down its environment, and on SIGTERM
# leaves a checkpoint as the real scripts do. STUB_SECONDS is what a run takes; STUB_FAILS is a seed that fails.
STUB = """
import fcntl, os, pathlib, signal, sys, time
args = dict(zip(sys.argv[2::2], sys.argv[3::2]))
run = pathlib.Path("runs") / "{--env-id}__{--exp-name}__{--seed}".format_map(args)
run.mkdir(exist_ok=True)
lock = open(run / ".lock", "w")
fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
def stop(*_):
    (run / "checkpoint.pt").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
with open(run / "started", "a") as file:
    print(os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS"), file=file)
time.sleep(float(os.environ.get("STUB_SECONDS", 0)))
if os.environ.get("STUB_FAILS") == args["--seed"]:
    sys.exit("something is wrong")
(run / "result.json").touch()
"""


def clean_environment() -> dict:
    """The environment without what would change a sweep; Slurm's own variables are the fixture's business."""
    prefixes = "SLURM_", "SBATCH_", "CUDA_VISIBLE", "OMP_", "PYTHON", "CDPATH", "STUB_"
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


class Project:
    """A copy of the scripts; its runs, and its processes."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self.folder = folder
        self.environment = clean_environment() | {"PYTHON": sys.executable}
        for name in ["run_all.sh", *(f"{script}.py" for script in SCRIPTS)]:
            shutil.copy(ROOT / name, folder)

    def stub(self, **variables) -> None:
        """Makes the stand-in the interpreter."""
        path = self.folder / "stub python"
        path.write_text(f"#!{sys.executable} -IS\n{STUB}")
        path.chmod(0o755)
        self.environment |= {"PYTHON": str(path)} | variables

    def start(self, *arguments: str) -> subprocess.Popen:
        """Starts run_all.sh as a terminal would, from elsewhere, in a process group of its own."""
        command = ["bash", str(self.folder / "run_all.sh"), *arguments]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd="/", env=self.environment, start_new_session=True, **streams)

    def sweep(self, *arguments: str, status: int = 0) -> str:
        """Runs run_all.sh to its end, and returns what it printed."""
        process = self.start(*arguments)
        output = process.communicate(timeout=PATIENCE)[0]
        assert process.returncode == status, output + self.logs()
        return output

    def run_dir(self, name: str) -> Path:
        return self.folder / "runs" / name

    def log(self, name: str) -> str:
        path = self.folder / "runs" / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def attempts(self, name: str) -> list[str]:
        """The log of a run, one text for each time that a sweep started it."""
        return re.split(r"^\d{4}-.* --env-id .*\n", self.log(name), flags=re.MULTILINE)[1:]

    def logs(self) -> str:
        return "".join(f"\n== {path}\n{path.read_text()[-2000:]}" for path in self.folder.glob("runs/*.log"))

    def result(self, name: str) -> dict:
        return json.loads((self.run_dir(name) / "result.json").read_text())

    def processes(self) -> list[psutil.Process]:
        """Everything that runs in the project's folder; that is not inherited by others, unlike names or groups."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if Path(process.cwd()) == self.folder and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def trainers(self, name: str) -> list[psutil.Process]:
        """The processes of one run, the trainer before its workers."""
        _, exp_name, seed = name.split("__")
        words, found = f" --exp-name {exp_name} --seed {seed} ", []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                if words in " ".join(process.cmdline()):
                    found.append(process)
        return sorted(found, key=lambda process: process.create_time())

    def wait_for_training(self, *names: str, attempt: int = 1) -> None:
        """Waits until the runs have saved a checkpoint in their n-th attempt."""
        for name in names:
            wait_for(lambda name=name: "checkpoint\n" in "".join(self.attempts(name)[attempt - 1 :]), self)


def wait_for(condition, project: Project | None = None):
    """Returns what `condition` returns once that is true."""
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, "nothing happens" + (project.logs() if project else "")
        time.sleep(0.1)
    return value


@pytest.fixture
def project(tmp_path):
    made = Project(tmp_path / "a project")
    yield made
    for process in made.processes():  # nothing, unless the test failed
        with contextlib.suppress(psutil.Error):
            process.kill()


def run_all(*arguments: str, **variables) -> subprocess.CompletedProcess:
    """run_all.sh of this checkout, for what starts no run."""
    environment = clean_environment() | variables
    return subprocess.run(["bash", ROOT / "run_all.sh", *arguments], capture_output=True, text=True, env=environment)


def listed(*arguments: str) -> list[str]:
    process = run_all("--list", *arguments)
    assert (process.returncode, process.stderr) == (0, "")
    return process.stdout.splitlines()


@functools.cache
def parse(line: str):
    """The arguments that a listed command gives its script."""
    threads, python, script, *arguments = shlex.split(line)
    assert (threads, python) == ("OMP_NUM_THREADS=1", "python")
    module = importlib.import_module(script.removesuffix(".py"))
    args = tyro.cli(module.Args, args=arguments)
    module.check_args(args)
    return args


# -------------------------------------------------------------------------------------------------------- the list

TASKS = "cheetah-run humanoid-run quadruped-walk quadruped-run dog-stand dog-walk dog-trot dog-run".split()
TASKS += ["h1-sit", "h1-slide", "h1-walk", "h1-run"]


@pytest.mark.parametrize(
    "suites, count",
    [
        (["table2"], 300),
        (["table3"], 42),
        (["sampling"], 18),
        (["smoke"], 5),
        ([], 330),  # 12 of table3's runs are table2's
        (["table3", "table2"], 330),
        (["table2", "table3", "sampling", "smoke"], 347),  # 6 of sampling's 18 runs are table2's
    ],
)
def test_each_suite_lists_each_run_once(suites, count):
    lines = listed(*suites)
    runs = {
        tuple(re.search(rf"{flag} (\S+)", line)[1] for flag in ("--env-id", "--exp-name", "--seed")) for line in lines
    }
    assert len(lines) == len(runs) == count


def test_every_listed_command_parses_in_its_script():
    budgets = Counter()
    for line in listed("table2", "table3", "sampling", "smoke"):
        args = parse(line)
        assert args.resume and args.run_dir is None
        long = args.env_id in ("dog-run", "humanoid-run")
        assert args.total_timesteps == (1_000_000 if long else 1100 if args.env_id == "walker-walk" else 500_000)
        budgets[args.total_timesteps] += 1
    assert budgets == {500_000: 250 + 30 + 6, 1_000_000: 50 + 6, 1100: 5}


def test_table2_is_the_product_of_algorithms_tasks_and_seeds():
    product = {(script, task, seed) for script in SCRIPTS for task in TASKS for seed in (0, 10, 42, 77, 123)}
    assert {(args.exp_name, args.env_id, args.seed) for args in map(parse, listed("table2"))} == product


def test_the_ablations_are_the_papers():
    def method(line):
        args, script = parse(line), shlex.split(line)[2].removesuffix(".py")
        parts = [getattr(args, name, None) for name in ("ntd", "layer_norm", "epsilon", "num_neighbors", "sampling")]
        return args.env_id, args.seed, script, *parts

    def expect(tasks, methods):
        return {(task, seed, *method) for task in tasks for seed in (0, 42, 123) for method in methods}

    bare, default = (None,) * 5, (True, True, 0.2, 8, "orthogonal")
    methods = [("td3", *bare), ("sac", *bare), ("ams_td3", *default), ("ams_sac", *default)]
    for script in ("ams_td3", "ams_sac"):
        methods += [(script, False, *default[1:]), (script, True, False, *default[2:])]
    methods += [("ams_td3", True, True, epsilon, 8, "orthogonal") for epsilon in (0.4, 0.6, 0.8)]
    methods += [("ams_td3", True, True, 0.2, number, "orthogonal") for number in (4, 6, 10)]
    assert set(map(method, listed("table3"))) == expect(["quadruped-run"], methods)
    methods = [("ams_td3", *default[:4], sampling) for sampling in ("orthogonal", "antithetic", "gaussian")]
    assert set(map(method, listed("sampling"))) == expect(["quadruped-run", "dog-run"], methods)


def test_filters_and_arguments_behind_two_dashes():
    lines = listed("--tasks", "dog-run,dog-walk", "--algorithms=td3,ppo", "--seeds", "0, 42", "--", "--num-envs", "4")
    runs = {(args.env_id, args.exp_name, args.seed, args.num_envs) for args in map(parse, lines)}
    assert len(lines) == len(runs) == 8
    assert runs == {(t, a, s, 4) for t in ("dog-run", "dog-walk") for a in ("td3", "ppo") for s in (0, 42)}
    assert shlex.split(listed("smoke", "--", "a b", "'")[0])[-2:] == ["a b", "'"]
    line = run_all("smoke", "--list", PYTHON="/my tools/python", OMP_NUM_THREADS="2").stdout.splitlines()[0]
    assert shlex.split(line)[:3] == ["OMP_NUM_THREADS=2", "/my tools/python", "td3.py"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("table4", "the suite table4 is unknown; known: table2 table3 sampling smoke"),
        (
            "--task dog-run",
            "--task is unknown; known: --tasks --algorithms --seeds --list --status --jobs --gpus --help",
        ),
        ("smoke --tasks dog", "--tasks: dog is unknown; known: walker-walk"),
        ("table3 --seeds 1", "--seeds: 1 is unknown; known: 0 42 123"),
        ("--algorithms td3,dqn", "--algorithms: dqn is unknown; known: ppo sac td3 ams_td3 ams_sac"),
        ("table3 smoke --tasks walker-walk --seeds 42", "leave no run of table3 smoke"),
        ("--tasks", "--tasks needs a value"),
        ("--seeds --list", "--seeds needs a value"),
        ("--jobs 0", "--jobs needs a positive number, not 0"),
        ("--jobs two", "--jobs needs a positive number, not two"),
        ("-- --run-dir x", "--run-dir can't be given behind --"),
        ("-- --exp_name=x", "--exp-name can't be given behind --"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message):
    process = run_all(*arguments.split())
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr.startswith("run_all.sh: error: ") and message in process.stderr
    assert process.stderr.count("\n") == 1


def test_an_old_bash_gets_one_line():
    # dash reads no further than bash 3.2 does, and lets the test say which bash it is.
    dash = shutil.which("dash") or pytest.skip("dash is not installed")
    for version, given in (("3.2.57(1)-release", "3.2.57"), ("4.3.48(1)-release", "4.3.48"), ("", "another shell")):
        environment = clean_environment() | {"BASH_VERSION": version}
        process = subprocess.run([dash, ROOT / "run_all.sh"], capture_output=True, text=True, env=environment)
        assert process.returncode == 2 and process.stderr.count("\n") == 1
        assert "needs bash 4.4 or newer" in process.stderr and given in process.stderr


def test_a_machine_without_flock_gets_one_line(tmp_path):
    for name in ("bash", "dirname", "env"):
        (tmp_path / name).symlink_to(shutil.which(name))
    process = run_all("--status", PATH=str(tmp_path))
    assert process.returncode == 2 and "flock(1) is missing" in process.stderr and process.stderr.count("\n") == 1


def test_a_script_that_is_not_in_the_project_gets_one_line(tmp_path):
    shutil.copy(ROOT / "run_all.sh", tmp_path)  # as Slurm does
    script, environment = tmp_path / "run_all.sh", clean_environment()
    process = subprocess.run(["bash", script, "--list"], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert process.returncode == 2 and "call sbatch in the project's folder" in process.stderr
    environment["SLURM_SUBMIT_DIR"] = str(ROOT)
    process = subprocess.run(["bash", script, "--list"], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert process.stdout.splitlines() == listed()


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck") or pytest.skip("shellcheck is not installed")
    process = subprocess.run([shellcheck, ROOT / "run_all.sh"], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout


# ------------------------------------------------------------------------------- sweeps with a stand-in interpreter


def test_two_sweeps_share_the_runs_out_and_report_the_same_failures(project):
    project.stub(CUDA_VISIBLE_DEVICES="3,GPU-5", STUB_FAILS="42", STUB_SECONDS="0.2")
    sweeps = [project.start("sampling", "--jobs", "3"), project.start("sampling", "--jobs=2", "--gpus", "3,GPU-5")]
    outputs = [sweep.communicate(timeout=PATIENCE)[0] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [1, 1], outputs
    starts = [path.read_text().splitlines() for path in project.folder.glob("runs/*/started")]
    assert len(starts) == 18 and all(len(lines) == 1 for lines in starts)
    assert {line for lines in starts for line in lines} == {"3 1", "GPU-5 1"}
    for output in outputs:
        assert "18 runs: 12 done, 0 running, 6 failed, 0 unfinished, 0 missing" in output
        failures = re.findall("^failed: runs/(.*).log: exit status 1, .*", output, flags=re.MULTILINE)
        assert len(failures) == 6 and all("something is wrong" in project.log(name) for name in failures)
    assert project.processes() == []

    table = project.sweep("sampling", "--status")
    assert re.search(r"^dog-run +ams_td3_gaussian +2 +0 +1 +0 +0$", table, flags=re.MULTILINE)
    assert "18 runs: 12 done, 0 running, 6 failed, 0 unfinished, 0 missing" in table and table.count("failed: ") == 6

    project.environment["STUB_FAILS"] = ""
    assert "18 runs: 18 done," in project.sweep(
        "sampling", "--jobs", "4"
    )  # what failed is tried again, the rest is not
    assert sum(len(path.read_text().splitlines()) for path in project.folder.glob("runs/*/started")) == 24


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_to_the_sweep_reaches_every_run(project, name):
    project.stub(STUB_SECONDS="1000", OMP_NUM_THREADS="2")
    sweep = project.start("smoke", "--jobs", "3")
    wait_for(lambda: len(list(project.folder.glob("runs/*/started"))) == 3)
    assert "5 runs: 0 done, 3 running, 0 failed, 0 unfinished, 2 missing" in project.sweep("smoke", "--status")
    number = getattr(signal, name)
    os.killpg(sweep.pid, number) if name == "SIGHUP" else sweep.send_signal(number)  # a closed terminal signals all
    output = sweep.communicate(timeout=PATIENCE)[0]
    assert sweep.returncode == 128 + number, output
    assert project.processes() == []
    assert len(list(project.folder.glob("runs/*/checkpoint.pt"))) == 3
    assert "5 runs: 0 done, 0 running, 0 failed, 3 unfinished, 2 missing" in output and "failed:" not in output
    assert next(project.folder.glob("runs/*/started")).read_text() == "None 2\n"


def test_no_lock_survives_a_power_failure(project):
    project.stub(STUB_SECONDS="1000")
    sweep = project.start("smoke", "--jobs", "3")
    wait_for(lambda: len(list(project.folder.glob("runs/*/started"))) == 3)
    for process in project.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    sweep.communicate()
    project.environment["STUB_SECONDS"] = "0"
    assert "5 runs: 5 done, 0 running, 0 failed, 0 unfinished, 0 missing" in project.sweep("smoke", "--jobs", "3")


@pytest.mark.parametrize(
    "cores, variables, arguments, said",
    [
        (2, {}, [], "1 at once (2 cores, GPUs: none)"),
        (36, {}, [], "4 at once (36 cores, GPUs: none)"),
        (36, {}, ["--jobs", "2"], "2 at once (36 cores, GPUs: none)"),
        (16, {"CUDA_VISIBLE_DEVICES": "0"}, [], "1 at once (16 cores, GPUs: 0)"),
        (64, {"CUDA_VISIBLE_DEVICES": "1"}, [], "4 at once (64 cores, GPUs: 1)"),
        (64, {"CUDA_VISIBLE_DEVICES": "1"}, ["--gpus", "0,1"], "5 at once (64 cores, GPUs: 0 1)"),  # smoke has 5 runs
    ],
)
def test_the_number_of_runs_at_once_follows_from_cores_and_gpus(project, cores, variables, arguments, said):
    project.stub(**variables)
    tools = project.folder / "bin"
    tools.mkdir()
    for tool, text in (("nproc", f'echo "${{OMP_NUM_THREADS:-{cores}}}"'), ("nvidia-smi", "exit 1")):  # as GNU's nproc
        (tools / tool).write_text(f"#!/bin/sh\n{text}\n")
        (tools / tool).chmod(0o755)
    for script in SCRIPTS:  # there is nothing to do
        project.run_dir(f"walker-walk__{script}__0").mkdir(parents=True)
        (project.run_dir(f"walker-walk__{script}__0") / "result.json").touch()
    project.environment["PATH"] = f"{tools}:{project.environment['PATH']}"
    assert f"5 runs, {said}; logs: {project.folder}/runs/*.log" in project.sweep("smoke", *arguments)


# ----------------------------------------------------------------------------------------- sweeps with real scripts


def test_smoke_skips_what_is_done_and_goes_on_after_a_failure(project):
    foreign = project.run_dir("walker-walk__ams_sac__0") / "notes.txt"
    foreign.parent.mkdir(parents=True)
    foreign.touch()
    output = project.sweep("smoke", "--jobs", "2", status=1)
    assert "5 runs: 4 done, 0 running, 1 failed, 0 unfinished, 0 missing" in output
    assert re.search("^failed: runs/walker-walk__ams_sac__0.log: exit status 2, ", output, flags=re.MULTILINE)
    assert "is neither a run directory nor empty" in project.log("walker-walk__ams_sac__0")

    foreign.unlink()
    results = {path: path.stat().st_mtime_ns for path in project.folder.glob("runs/*/result.json")}
    output = project.sweep("smoke")
    assert "5 runs: 5 done, 0 running, 0 failed, 0 unfinished, 0 missing" in output
    assert all(path.stat().st_mtime_ns == written for path, written in results.items()) and len(results) == 4
    assert [len(project.attempts(f"walker-walk__{script}__0")) for script in SCRIPTS] == [2, 1, 1, 1, 1]

    # The sweep, drawn: every number that the plotter reads is the run's own.
    command = [sys.executable, ROOT / "plot_curves.py", project.folder / "runs", "--format", "png"]
    exported, figures = project.folder / "curves.csv", project.folder / "figures"
    command += ["--out-dir", figures, "--export", exported]
    subprocess.run(command, check=True, capture_output=True)
    assert (figures / "figure3.png").stat().st_size > 10_000
    curves = pd.read_csv(exported)
    for path in project.folder.glob("runs/*/result.json"):
        result = json.loads(path.read_text())
        mine = curves[(curves.algorithm == result["algorithm"]) & (curves.tag == "eval/episodic_return")]
        last = mine[mine.step == result["global_step"]].value.tolist()
        assert last == pytest.approx([result["final_evaluation"]["mean"]], rel=1e-6)  # TensorBoard keeps float32

    # A listed line, pasted, gives the same run.
    name, line = "walker-walk__td3__0", project.sweep("smoke", "--list", "--algorithms", "td3")
    project.run_dir(name).rename(project.run_dir("swept"))
    subprocess.run(line, shell=True, cwd=project.folder, check=True, capture_output=True)

    def evaluations(run_dir):
        rows = [row.split(",") for row in (run_dir / "evaluations.csv").read_text().splitlines()]
        return [row[:3] + row[4:] for row in rows]  # without wall_seconds

    assert evaluations(project.run_dir(name)) == evaluations(project.run_dir("swept"))


def test_ctrl_c_and_kill_lose_nothing(project):
    names = ["cheetah-run__td3__0", "cheetah-run__td3__42"]
    arguments = "table2 --tasks cheetah-run --algorithms td3 --seeds 0,42 --jobs 2 --".split()

    sweep = project.start(*arguments, *ENDLESS)
    project.wait_for_training(*names)
    os.killpg(sweep.pid, signal.SIGINT)  # Ctrl-C goes to every process of the terminal
    output = sweep.communicate(timeout=PATIENCE)[0]
    assert sweep.returncode == 130 and "2 runs: 0 done, 0 running, 0 failed, 2 unfinished, 0 missing" in output
    assert project.processes() == []
    assert all("stopped by SIGINT" in project.log(name) for name in names)

    # One run is killed, which is a failure; then the sweep is, and takes the other run along, which saves a checkpoint.
    sweep = project.start(*arguments, *ENDLESS)
    project.wait_for_training(*names, attempt=2)
    project.trainers(names[0])[0].kill()
    failure = project.folder / "runs" / ".sweep" / f"{names[0]}.failed"
    wait_for(failure.exists, project)
    assert "exit status 137" in failure.read_text()
    sweep.kill()
    sweep.communicate()
    wait_for(lambda: not project.processes(), project)
    assert "stopped by SIGTERM" in project.attempts(names[1])[1]
    status = project.sweep(*arguments[:-1], "--status")
    assert "2 runs: 0 done, 0 running, 1 failed, 1 unfinished, 0 missing" in status

    # The same command finishes all; only the budget is smaller, so that it does so today.
    project.sweep(*arguments, *TINY)
    for name in names:
        starts = [int(re.search("from step ([0-9,]+)", text)[1].replace(",", "")) for text in project.attempts(name)]
        assert len(starts) == 3 and 0 == starts[0] < starts[1] < starts[2], starts
        assert project.result(name)["global_step"] >= starts[2]


def test_a_run_whose_worker_is_killed_saves_and_stops(project):
    """By the kernel's hand: nobody else is there to tell it. The sweep goes on, and nothing is left behind it."""
    name = "cheetah-run__td3__0"
    sweep = project.start(*"table2 --tasks cheetah-run --algorithms td3 --seeds 0 --".split(), *ENDLESS)
    project.wait_for_training(name)
    psutil.Process(project.trainers(name)[0].ppid()).kill()
    project.wait_for_training(name, attempt=2)
    assert "stopped by SIGTERM" in project.attempts(name)[0]
    sweep.send_signal(signal.SIGTERM)
    sweep.communicate(timeout=PATIENCE)
    assert sweep.returncode == 143 and project.processes() == []


def test_a_run_of_a_smaller_budget_is_not_taken_for_the_one_asked_for(project):
    folder = project.folder / "runs" / "cheetah-run__td3__0"
    folder.mkdir(parents=True)
    arguments = "table2 --tasks cheetah-run --algorithms td3 --seeds 0 --status".split()
    for steps, done, message in ((1000, 0, "complete with fewer than 500000 steps"), (500_000, 1, "")):
        (folder / "result.json").write_text(json.dumps({"global_step": steps, "frames": 8 * steps}, indent=2))
        status = project.sweep(*arguments)
        assert f"1 runs: {done} done" in status and message in status
        assert ("fewer than" in status) == bool(message)


def test_two_sweeps_and_a_pasted_command_train_each_run_once(project):
    names = [f"cheetah-run__td3__{seed}" for seed in (0, 10, 42)]
    arguments = "table2 --tasks cheetah-run --algorithms td3 --seeds 0,10,42".split()
    line = project.sweep(*arguments, "--list", "--", *ENDLESS).splitlines()[0]
    with open(project.folder / "by hand", "w") as file:
        by_hand = subprocess.Popen(f"exec env {line}", shell=True, cwd=project.folder, stdout=file)
    wait_for(lambda: (project.run_dir(names[0]) / "checkpoint.pt").exists(), project)

    sweeps = [project.start(*arguments, "--", *TINY) for _ in range(2)]
    wait_for(lambda: "another process is training in" in project.log(names[0]), project)
    by_hand.terminate()
    assert by_hand.wait(PATIENCE) == 143
    outputs = [sweep.communicate(timeout=PATIENCE)[0] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [0, 0], outputs
    assert all("3 runs: 3 done, 0 running, 0 failed, 0 unfinished, 0 missing" in output for output in outputs)
    assert "is being run by hand" in "".join(outputs)
    assert [project.log(name).count("from step 0:") for name in names] == [0, 1, 1]  # the first one went on
    assert [project.log(name).count("complete:") for name in names] == [1, 1, 1]
    assert project.processes() == []


# ----------------------------------------------------------------------------------------------------------- Slurm

SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000
PartitionName=main Nodes={host} Default=YES State=UP
"""


@pytest.fixture
def slurm(monkeypatch):
    """A Slurm of one node with 2 cores, all of it in a temporary folder and started here; yields a function that runs
    its commands."""
    programs = {
        name: shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") for name in ("munged", "slurmctld", "slurmd")
    }
    missing = [name for name, path in programs.items() if path is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (Debian: apt install slurm-wlm munge)")
    folder = Path(tempfile.mkdtemp(prefix="slurm"))  # munge wants a folder that everybody may enter
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], two.getsockname()[1]
    host = socket.gethostname().split(".")[0]
    text = SLURM_CONF.format(host=host, ports=ports, folder=folder, user=getpass.getuser())
    (folder / "slurm.conf").write_text(text)
    (folder / "key").write_bytes(os.urandom(128))
    (folder / "key").chmod(0o600)
    munge = {
        "key-file": "key",
        "socket": "munge.socket",
        "pid-file": "munge.pid",
        "seed-file": "seed",
        "log-file": "log",
    }
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    daemons = []

    def start(name, *arguments):
        with open(folder / f"{name}.out", "w") as file:
            daemons.append(subprocess.Popen([programs[name], *arguments], stdout=file, stderr=file, cwd=folder))

    def run(*command, **options):
        return subprocess.run(command, capture_output=True, text=True, check=True, **options).stdout

    def idle():
        with contextlib.suppress(subprocess.CalledProcessError):
            return "idle" in run("sinfo", "--noheader", "--format=%T")

    try:
        start("munged", "--foreground", *(f"--{key}={folder}/{value}" for key, value in munge.items()))
        wait_for((folder / "munge.socket").exists)
        start("slurmctld", "-D")
        start("slurmd", "-D")
        wait_for(idle)
        yield run
        run("scancel", f"--user={getpass.getuser()}")
        wait_for(lambda: not run("squeue", "--noheader"))
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()
        shutil.rmtree(folder)


def test_slurm_runs_and_resumes_array_tasks(project, slurm):
    names = ["cheetah-run__td3__0", "cheetah-run__td3__42"]
    arguments = "table2 --tasks cheetah-run --algorithms td3 --seeds 0,42 --".split()
    size = len(project.sweep(*arguments[:-1], "--list").splitlines())
    node = ["--gres=none", "--cpus-per-task=1", "--mem=1000"]  # the header wants a GPU and 9 cores

    def submit(*script_arguments) -> str:
        """Queues the array and returns its job id."""
        command = ["sbatch", "--parsable", f"--array=0-{size - 1}%32", *node, "run_all.sh", *script_arguments]
        return slurm(
            *command, cwd=project.folder, env=project.environment | {"SLURM_CONF": os.environ["SLURM_CONF"]}
        ).strip()

    def show(task: str) -> dict:
        return dict(re.findall(r"(\w+)=(\S*)", slurm("scontrol", "show", "job", task)))

    def resume(task: str) -> None:
        """Slurm lets a requeued job wait for two minutes; this does not."""
        wait_for(lambda: show(task)["JobState"] == "PENDING", project)
        slurm("scontrol", "update", f"JobId={task}", "StartTime=now")

    job = submit(*arguments, *ENDLESS)
    project.wait_for_training(*names)
    assert "2 runs: 0 done, 2 running" in project.sweep(*arguments[:-1], "--status")
    assert all(len(project.trainers(name)) > 0 for name in names)

    slurm("scancel", "--batch", "--signal=USR1", f"{job}_1")  # as before the time limit
    resume(f"{job}_1")
    slurm("scontrol", "requeue", f"{job}_0")  # or preempted: SIGTERM
    resume(f"{job}_0")
    project.wait_for_training(*names, attempt=2)
    for index, name in enumerate(names):
        first, second = project.attempts(name)
        stopped = re.search("stopped by SIGTERM at step ([0-9,]+)", first)[1]
        assert f"from step {stopped}:" in second and int(stopped.replace(",", "")) > 0
        assert show(f"{job}_{index}")["Restarts"] == "1"
    output = (project.folder / f"slurm-{job}_1.out").read_text()
    assert "queues itself again" in output and "1 runs, 1 at once" in output
    slurm("scancel", job)
    wait_for(lambda: not project.processes(), project)

    job = submit(*arguments, *TINY)
    wait_for(lambda: {show(f"{job}_{index}")["JobState"] for index in range(2)} == {"COMPLETED"}, project)
    assert "2 runs: 2 done" in project.sweep(*arguments[:-1], "--status", "--", *TINY)
    assert [len(project.attempts(name)) for name in names] == [3, 3]
