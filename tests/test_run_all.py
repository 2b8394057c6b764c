"""run_all.sh: what it lists, and sweeps that fail, are stopped, killed, doubled and pasted, in a folder with a space.

Nothing is timed: the tests wait for what they name, and LIMIT only ends a test that hangs."""

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
from pathlib import Path

import psutil
import pytest
import tyro
from commands import LIMIT, ROOT, SCRIPTS, wait_for

# Arguments of a training that takes a second, and of one that the tests stop. The budget comes last.
SHORT = [
    "--num-envs=1",
    "--eval-episodes=1",
    "--device=cpu",
    "--learning-starts=50",
    "--batch-size=16",
    "--buffer-size=1000",
    "--checkpoint-frequency=20",
]
TINY = [*SHORT, "--total-timesteps=120"]
ENDLESS = [*SHORT, "--total-timesteps=1000000"]

# All that run_all.sh may use beside bash, the interpreter and Slurm's scontrol: no ps, no xargs.
TOOLS = [
    "cat",
    "dirname",
    "env",
    "find",
    "getconf",
    "mkdir",
    "nproc",
    "sed",
    "sleep",
    "sort",
    "tail",
    "tr",
    "uniq",
]

# Stands in for a script, and does what the variables of the environment say.
STUB = """
import fcntl
import json
import os
import pathlib
import signal
import sys
import time

args = dict(zip(sys.argv[1::2], sys.argv[2::2]))
run = pathlib.Path("runs", f"{args['--env-id']}__{args['--exp-name']}__{args['--seed']}")
if os.environ.get("STUB_MISTAKE") == args["--exp-name"]:
    sys.stderr.write("an argument is wrong")
    sys.exit(2)
run.mkdir(exist_ok=True)
lock = open(run / ".lock", "w")
try:
    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.exit(75)
if (run / "result.json").exists():
    sys.exit(0)


def stop(number, frame):
    (run / "checkpoint.pt").touch()
    if "STUB_DEAF" not in os.environ:
        sys.exit(128 + number)


for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
        signal.signal(number, stop)
with open(run / "started", "a") as file:
    file.write(f"{os.environ.get('CUDA_VISIBLE_DEVICES')}\\n")
while "STUB_WAITS" in os.environ and not os.path.exists("go"):
    time.sleep(0.1)
if os.environ.get("STUB_FAILS") == args["--seed"]:
    sys.exit("something is wrong")
result = {"global_step": int(args["--total-timesteps"]), "more": 0}
(run / "result.json").write_text(json.dumps(result, indent=2))
"""


def clean_environment() -> dict:
    """The environment without what would change a sweep."""
    environment = {"PYTHON": sys.executable}
    for name, value in os.environ.items():
        if not name.startswith(("SLURM_", "SBATCH_", "CUDA_VISIBLE", "OMP_", "PYTHON", "CDPATH", "STUB_")):
            environment[name] = value
    return environment


class Project:
    """A copy of the scripts in `folder`, its runs and its processes."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.runs = folder / "runs"
        self.environment = clean_environment()
        folder.mkdir()
        shutil.copy(ROOT / "run_all.sh", folder)
        for script in SCRIPTS:
            shutil.copy(ROOT / f"{script}.py", folder)

    def add_tool(self, name: str, script: str):
        """Puts a shell script on the PATH of the stand-ins."""
        tool = self.folder / "bin" / name
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)

    def use_stand_ins(self, **variables: str):
        """Puts stand-ins in the scripts' places, which variables guide, with TOOLS as the only programs."""
        for script in SCRIPTS:
            (self.folder / f"{script}.py").write_text(STUB)
        programs = self.folder / "bin"
        programs.mkdir()
        for name in TOOLS:
            (programs / name).symlink_to(shutil.which(name))
        self.environment["PATH"] = str(programs)
        self.environment.update(variables)

    def start(self, *arguments: str, **options) -> subprocess.Popen:
        """Starts run_all.sh from elsewhere, in a session of its own."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options}
        command = [shutil.which("bash"), self.folder / "run_all.sh", *arguments]
        environment = self.environment
        return subprocess.Popen(command, env=environment, start_new_session=True, text=True, cwd="/", **options)

    def sweep(self, *arguments: str, status: int = 0) -> str:
        """Runs run_all.sh to its end, and returns what it printed."""
        process = self.start(*arguments)
        output = process.communicate(timeout=LIMIT)[0]
        logs = [log.read_text() for log in self.runs.glob("*.log")]
        assert process.returncode == status, output + "".join(logs)
        return output

    def log(self, name: str) -> str:
        return (self.runs / f"{name}.log").read_text()

    def count(self, name: str) -> int:
        """How many runs have a file."""
        return len([*self.runs.glob(f"*/{name}")])

    def wait_for_starts(self, number: int):
        wait_for(lambda: self.count("started") == number)

    def processes(self) -> list[psutil.Process]:
        """What runs in the project's folder."""
        folder = str(self.folder)
        return [process for process in psutil.process_iter(["cwd"]) if process.info["cwd"] == folder]


@contextlib.contextmanager
def made_project(folder: Path):
    project = Project(folder)
    yield project
    for process in project.processes():  # nothing, unless the test failed
        with contextlib.suppress(psutil.Error):
            process.kill()


@pytest.fixture
def project(tmp_path):
    with made_project(tmp_path / "a project") as project:
        yield project


def run_all(*arguments: str, script=ROOT / "run_all.sh", shell="bash", **variables) -> subprocess.CompletedProcess:
    """run_all.sh of this checkout, for what starts no run."""
    environment = clean_environment() | variables
    return subprocess.run([shell, script, *arguments], capture_output=True, text=True, env=environment)


def listed(*arguments: str, **options) -> list[str]:
    process = run_all("--list", *arguments, **options)
    assert process.returncode == 0
    assert process.stderr == ""
    return process.stdout.splitlines()


def parse(line: str):
    """The arguments that a listed command gives its script, and the script's name."""
    threads, _, script, *arguments = shlex.split(line)
    assert threads == "OMP_NUM_THREADS=1"
    name = script.removesuffix(".py")
    return tyro.cli(importlib.import_module(name).Args, args=arguments), name


# -------------------------------------------------------------------------------------------------------- the list

TASKS = [
    "cheetah-run",
    "humanoid-run",
    "quadruped-walk",
    "quadruped-run",
    "dog-stand",
    "dog-walk",
    "dog-trot",
    "dog-run",
    "h1-sit",
    "h1-slide",
    "h1-walk",
    "h1-run",
]
PARTS = [
    "td3",
    "sac",
    "ams_td3",
    "ams_td3_no_ntd",
    "ams_td3_no_layer_norm",
    "ams_sac",
    "ams_sac_no_ntd",
    "ams_sac_no_layer_norm",
]
TABLE_3 = [
    *PARTS,
    "ams_td3_eps0.4",
    "ams_td3_eps0.6",
    "ams_td3_eps0.8",
    "ams_td3_k4",
    "ams_td3_k6",
    "ams_td3_k10",
]
SAMPLING = ["ams_td3", "ams_td3_antithetic", "ams_td3_gaussian"]
CONTROLS = [*PARTS, "ams_td3_point", "ams_sac_point"]
SUITES = {
    "table2": itertools.product([0, 10, 42, 77, 123], TASKS, SCRIPTS),
    "table3": itertools.product([0, 42, 123], ["quadruped-run"], TABLE_3),
    "sampling": itertools.product([0, 42, 123], ["quadruped-run", "dog-run"], SAMPLING),
    "controls": itertools.product([0, 42, 123], ["dog-stand", "dog-run", "quadruped-run"], CONTROLS),
}

# What differs from the default, by what a run's name has behind the script's
CHANGED = {
    "": {},
    "_no_ntd": {"ntd": False},
    "_no_layer_norm": {"layer_norm": False},
    "_eps0.4": {"epsilon": 0.4},
    "_eps0.6": {"epsilon": 0.6},
    "_eps0.8": {"epsilon": 0.8},
    "_k4": {"num_neighbors": 4},
    "_k6": {"num_neighbors": 6},
    "_k10": {"num_neighbors": 10},
    "_antithetic": {"sampling": "antithetic"},
    "_gaussian": {"sampling": "gaussian"},
    "_point": {"num_neighbors": 1, "epsilon": 0},
}


@functools.cache
def parsed(suite: str) -> list:
    return [parse(line) for line in listed(suite)]


@pytest.mark.parametrize("suite", SUITES)
def test_suites_have_the_papers_runs_seed_by_seed(suite):
    found = [(args.seed, args.env_id, args.exp_name) for args, _ in parsed(suite)]

    assert found == sorted(found, key=lambda run: run[0])
    assert sorted(found) == sorted(SUITES[suite])


@pytest.mark.parametrize("suite", SUITES)
def test_runs_have_the_papers_lengths_and_all_other_arguments_default(suite):
    for args, script in parsed(suite):
        length = 500_000
        if args.env_id in ("dog-run", "humanoid-run"):
            length = 1_000_000
        changed = CHANGED[args.exp_name.removeprefix(script)]
        named = {"env_id": args.env_id, "exp_name": args.exp_name, "seed": args.seed}
        assert args == type(args)(**named, **changed, total_timesteps=length, resume=True)


def test_tables_2_and_3_are_330_runs():
    assert len(listed()) == 330
    assert listed() == listed("table2", "table3")


def test_suites_share_runs():
    suites = [*SUITES, "smoke"]
    alone = {line for suite in suites for line in listed(suite)}

    together = listed(*suites)

    # table2 has 12 of table3's 42, 6 of sampling's 18 and 36 of controls' 90; table3 has 12 of controls'.
    assert len(together) == 330 + 12 + 42 + 5
    assert sorted(together) == sorted(alone)


def test_filters_leave_what_they_name():
    lines = listed("--tasks", "dog-run,dog-walk", "--algorithms=td3,ppo", "--seeds", "0,42")

    runs = [(args.env_id, script, args.seed) for args, script in map(parse, lines)]
    assert sorted(runs) == sorted(itertools.product(["dog-run", "dog-walk"], ["td3", "ppo"], [0, 42]))


def test_arguments_behind_two_dashes_go_to_every_script_as_they_are():
    for line in listed("smoke", "--", "a b", "'", "$x", ""):
        assert shlex.split(line)[-4:] == ["a b", "'", "$x", ""]


def test_the_interpreter_and_the_threads_are_the_environments():
    for line in listed("smoke", PYTHON="/my tools/python", OMP_NUM_THREADS="2"):
        assert shlex.split(line)[:2] == ["OMP_NUM_THREADS=2", "/my tools/python"]


@pytest.mark.parametrize("variables", [{"PYTHON": "tools/python"}, {"PATH": "tools:/usr/bin:/bin", "PYTHON": "python"}])
def test_a_relative_interpreter_is_looked_for_where_the_user_stands(tmp_path, monkeypatch, variables):
    monkeypatch.chdir(tmp_path)
    Path("tools").mkdir()
    Path("tools/python").symlink_to(sys.executable)

    lines = listed("smoke", **variables)

    assert shlex.split(lines[0])[1] == str(tmp_path / "tools/python")


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
        ("-- --no-resume", "--no-resume can't be given behind --", {}),
        ("smoke", "there is no run 5; use --array=0-4", {"SLURM_ARRAY_TASK_ID": "5"}),
        ("smoke", "/bin/false can't import tyro; activate", {"PYTHON": "/bin/false"}),
        # dash reads no further than bash 3.2 does
        ("", "needs bash 4.4 or newer; macOS: brew install", {"shell": "dash", "BASH_VERSION": "3.2.57(1)-release"}),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(arguments, message, variables):
    process = run_all(*arguments.split(), **variables)

    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.count("\n") == 1
    assert process.stderr.startswith("run_all.sh: error: ")
    assert message in process.stderr


def test_help_names_every_suite_and_option():
    process = run_all("--help")

    words = ["table2", "table3", "sampling", "controls", "smoke"]
    words += ["--tasks", "--algorithms", "--seeds", "--list", "--status", "--jobs", "--gpus"]
    assert process.returncode == 0
    assert [word for word in words if word not in process.stdout] == []


def test_slurms_copy_finds_the_project(tmp_path):
    copy = shutil.copy(ROOT / "run_all.sh", tmp_path)
    assert listed(script=copy, SLURM_SUBMIT_DIR=str(ROOT)) == listed()


def test_a_copy_without_a_project_says_so(tmp_path):
    copy = shutil.copy(ROOT / "run_all.sh", tmp_path)
    assert "error: no td3.py beside run_all.sh, nor where sbatch was called\n" in run_all(script=copy).stderr


# ------------------------------------------------------------------------------------------- sweeps with stand-ins


def test_failed_runs_stop_no_others_and_are_named(project):
    project.use_stand_ins(STUB_FAILS="42")

    output = project.sweep("sampling", "--tasks", "dog-run", "--jobs", "3", status=1)

    failures = re.findall(r"failed runs/dog-run__(\w+)__42.log: something is wrong: failed, exit status 1\n", output)
    assert sorted(failures) == ["ams_td3", "ams_td3_antithetic", "ams_td3_gaussian"]
    assert output.endswith("9 runs: 6 done 3 failed \n")


def test_the_status_is_what_the_sweep_said_at_its_end(project):
    project.use_stand_ins(STUB_FAILS="42")
    output = project.sweep("sampling", "--tasks", "dog-run", "--jobs", "3", status=1)

    status = project.sweep("sampling", "--tasks", "dog-run", "--status")

    assert "2 done dog-run__ams_td3\n" in status
    assert output.endswith(status)


def test_the_same_command_trains_what_failed_and_nothing_else(project):
    project.use_stand_ins(STUB_FAILS="42")
    command = ["sampling", "--tasks", "dog-run", "--seeds", "0,42", "--jobs", "3"]
    project.sweep(*command, status=1)
    del project.environment["STUB_FAILS"]

    output = project.sweep(*command)

    assert output.endswith("6 runs: 6 done \n")
    assert project.log("dog-run__ams_td3__0").count("--resume") == 1
    assert project.log("dog-run__ams_td3__42").count("--resume") == 2


def test_two_terminals_share_the_runs_and_their_gpus(waiting):
    sweeps = [waiting.start("sampling", "--jobs", "3", "--gpus", gpus) for gpus in ("3,GPU-5", "0")]
    waiting.wait_for_starts(6)  # each terminal has three
    (waiting.folder / "go").touch()
    outputs = [sweep.communicate(timeout=LIMIT)[0] for sweep in sweeps]

    starts = [path.read_text().splitlines() for path in waiting.runs.glob("*/started")]
    assert [len(lines) for lines in starts] == [1] * 18
    assert {lines[0] for lines in starts} == {"3", "GPU-5", "0"}
    assert "18 runs: 18 done \n" in "".join(outputs)  # the other one may have ended before
    assert {sweep.returncode for sweep in sweeps} <= {0, 75}


def test_a_wrong_call_of_the_first_run_stops_the_sweep_and_the_others_save(project):
    project.use_stand_ins(STUB_MISTAKE="ppo", STUB_WAITS="yes")

    output = project.sweep("smoke", "--jobs", "2", status=1)

    assert "walker-walk__ppo__0: failed: an argument is wrong\n" in output
    assert "5 runs: 1 failed 3 missing 1 unfinished \n" in output or "5 runs: 1 failed 4 missing \n" in output


def test_a_wrong_call_of_a_later_run_stops_no_other(project):
    project.use_stand_ins(STUB_MISTAKE="sac")
    assert project.sweep("smoke", status=1).endswith("5 runs: 4 done 1 failed \n")


class Terminal:
    """A sweep in a terminal of its own."""

    def __init__(self, project: Project, *arguments: str, stdout: int | None = None, **options):
        self.ours, self.theirs = pty.openpty()
        take = functools.partial(fcntl.ioctl, self.theirs, termios.TIOCSCTTY, 0)
        streams = {"stdin": self.theirs, "stdout": self.theirs, "stderr": self.theirs}
        if stdout is not None:
            streams["stdout"] = stdout
        self.sweep = project.start(*arguments, preexec_fn=take, **streams)
        os.close(self.theirs)

    def press_ctrl_c(self):
        os.write(self.ours, b"\x03")

    def close(self):
        os.close(self.ours)


@pytest.fixture
def waiting(project):
    """A project whose runs wait to be stopped."""
    project.use_stand_ins(STUB_WAITS="yes")
    return project


def start_three(project: Project, **options) -> Terminal:
    terminal = Terminal(project, "smoke", "--jobs", "3", **options)
    project.wait_for_starts(3)
    return terminal


def assert_saved(project: Project):
    """All three runs that were training saved, and ended, and --status tells."""
    assert project.count("checkpoint.pt") == 3
    assert project.processes() == []
    assert project.sweep("smoke", "--status").endswith("5 runs: 2 missing 3 unfinished \n")


@pytest.mark.parametrize("act, status", [(Terminal.press_ctrl_c, 130), (Terminal.close, 129)])
def test_ctrl_c_and_closing_the_terminal_let_the_runs_save(waiting, act, status):
    terminal = start_three(waiting)

    act(terminal)

    assert terminal.sweep.wait(LIMIT) == status
    assert_saved(waiting)


@pytest.mark.parametrize("name, status", [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129), ("SIGUSR1", 138)])
def test_signals_to_the_sweep_alone_let_the_runs_save(waiting, name, status):
    sweep = waiting.start("smoke", "--jobs", "3")
    waiting.wait_for_starts(3)

    sweep.send_signal(signal.Signals[name])
    output = sweep.communicate(timeout=LIMIT)[0]

    assert sweep.returncode == status
    assert f"{name}: the runs save their checkpoints\n" in output
    assert_saved(waiting)


def test_ctrl_c_that_ends_the_reader_of_a_pipe_first_lets_the_runs_save(waiting):
    reader, pipe = os.pipe()
    terminal = start_three(waiting, stdout=pipe)
    os.close(pipe)
    os.close(reader)

    terminal.press_ctrl_c()

    assert terminal.sweep.wait(LIMIT) == 130
    assert_saved(waiting)
    assert "rror" not in os.read(terminal.ours, 100_000).decode()


def test_a_second_ctrl_c_ends_at_once_what_does_not_listen(waiting):
    waiting.environment["STUB_DEAF"] = "yes"
    terminal = start_three(waiting)
    terminal.press_ctrl_c()
    wait_for(lambda: waiting.count("checkpoint.pt") == 3)  # they heard it, and go on

    terminal.press_ctrl_c()

    assert terminal.sweep.wait(LIMIT) == 130
    assert waiting.processes() == []


def test_under_nohup_the_runs_outlive_the_terminal(waiting):
    ignore = functools.partial(signal.signal, signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    sweep = waiting.start("smoke", "--jobs", "5", preexec_fn=ignore)
    waiting.wait_for_starts(5)

    os.killpg(sweep.pid, signal.SIGHUP)
    (waiting.folder / "go").touch()
    output = sweep.communicate(timeout=LIMIT)[0]

    assert sweep.returncode == 0
    assert output.endswith("5 runs: 5 done \n")


def test_a_log_that_a_full_disk_left_empty_does_not_hide_the_run(project):
    project.use_stand_ins()
    project.sweep("smoke")
    (project.runs / "walker-walk__sac__0.log").write_text("")

    assert project.sweep("smoke", "--status").endswith("5 runs: 5 done \n")


@pytest.mark.parametrize("cores, gpus, jobs", [(2, "", 1), (36, "", 4), (16, "0", 1), (64, "1", 4), (64, "0,1", 7)])
@pytest.mark.parametrize("given", [[], ["--jobs", "2"]])
def test_the_number_of_runs_at_once_follows_from_cores_and_gpus(project, cores, gpus, jobs, given):
    project.use_stand_ins(CUDA_VISIBLE_DEVICES=gpus, OMP_NUM_THREADS="3")
    (project.folder / "bin/nproc").unlink()
    project.add_tool("nproc", f'echo "${{OMP_NUM_THREADS:-{cores}}}"')  # as GNU's

    output = project.sweep("smoke", "--algorithms", "ppo", *given)

    number = given[-1] if given else jobs
    names = gpus.replace(",", " ") or "none"
    assert f"1 runs, {number} at once ({cores} cores, GPUs: {names}); logs: {project.runs}/\n" in output


def test_without_a_choice_all_gpus_are_used_in_turn(project):
    project.use_stand_ins()
    project.add_tool("nvidia-smi", "echo 'GPU 0: NVIDIA A (UUID: GPU-1)'; echo 'GPU 1: NVIDIA B (UUID: GPU-2)'")

    project.sweep("smoke", "--jobs", "5")

    starts = [path.read_text() for path in project.runs.glob("*/started")]
    assert sorted(starts) == ["0\n", "0\n", "0\n", "1\n", "1\n"]


def test_a_task_of_a_slurm_array_trains_its_line_of_the_list(project):
    project.use_stand_ins(SLURM_ARRAY_TASK_ID="2")
    assert project.sweep("smoke").endswith("1 runs: 1 done \n")
    assert [path.name for path in project.runs.glob("*.log")] == ["walker-walk__sac__0.log"]


@pytest.mark.parametrize("array, job", [({"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}, "7_2"), ({}, "9")])
def test_slurms_job_saves_before_its_end_and_queues_itself_again(waiting, array, job):
    waiting.add_tool("scontrol", f"echo scontrol $* >'{waiting.folder}/requeued'")
    waiting.environment.update(array, SLURM_JOB_ID="9")
    sweep = waiting.start("smoke")
    waiting.wait_for_starts(1)

    sweep.send_signal(signal.SIGUSR1)
    sweep.communicate(timeout=LIMIT)

    assert (waiting.folder / "requeued").read_text() == f"scontrol requeue {job}\n"
    assert waiting.count("checkpoint.pt") == 1


# ----------------------------------------------------------------------------------------- sweeps with real scripts


def test_smoke_trains_every_script(project):
    output = project.sweep("smoke", "--jobs", "2")

    assert output.endswith("5 runs: 5 done \n")
    for script in SCRIPTS:
        command = project.log(f"walker-walk__{script}__0").splitlines()[0]
        assert command.count("--resume") == 1


def test_an_argument_that_the_first_script_does_not_know_is_tried_once(project):
    output = project.sweep("table2", "--jobs", "1", "--", "--num_envs", "4", "--buffer-size", "9", status=1)

    assert "The first run was called wrongly" in output
    assert "--buffer-size" in project.log("cheetah-run__ppo__0")
    assert len([*project.runs.glob("*.log")]) == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A project with a complete run of td3.py."""
    with made_project(tmp_path_factory.mktemp("trained") / "a project") as project:
        project.sweep("smoke", "--algorithms", "td3")
        yield project


def test_a_pasted_line_is_the_same_run(trained):
    line = trained.sweep("smoke", "--list", "--algorithms", "td3")

    pasted = subprocess.run(line, shell=True, cwd=trained.folder, capture_output=True, text=True)

    assert pasted.returncode == 0
    assert pasted.stdout == f"{trained.runs.resolve()}/walker-walk__td3__0 is complete\n"


def test_a_complete_run_is_unfinished_where_more_steps_are_asked_for(trained):
    status = trained.sweep("smoke", "--algorithms", "td3", "--status", "--", "--total-timesteps", "1200")
    assert "unfinished walker-walk__td3__0: evaluated up to step 1100 of 1200\n" in status


def test_a_complete_run_that_can_not_go_on_says_why(trained):
    output = trained.sweep("smoke", "--algorithms", "td3", "--", "--total-timesteps=1200", status=1)
    assert "walker-walk__td3__0 is complete at step 1100; only --keep-checkpoint" in output


CHEETAH = ["table2", "--tasks", "cheetah-run", "--algorithms", "ams_td3"]
NAMES = ["cheetah-run__ams_td3__0", "cheetah-run__ams_td3__42"]


def test_real_runs_save_at_ctrl_c_and_two_terminals_go_on_with_them(project):
    command = [*CHEETAH, "--seeds", "0,42", "--jobs", "2", "--"]
    terminal = Terminal(project, *command, *ENDLESS)
    wait_for(lambda: project.count("checkpoint.pt") == 2)

    terminal.press_ctrl_c()
    stopped = terminal.sweep.wait(LIMIT)
    left = project.processes()
    sweeps = [project.start(*command, *TINY) for _ in range(2)]
    outputs = [sweep.communicate(timeout=LIMIT)[0] for sweep in sweeps]

    assert stopped == 130
    assert left == []
    assert {sweep.returncode for sweep in sweeps} <= {0, 75}
    assert "2 runs: 2 done \n" in "".join(outputs)
    for log in map(project.log, NAMES):  # which goes on from the last step
        assert log.count("stopped by SIG") == 1
        assert log.count("from step 0 to") == 1
        assert log.count("complete: evaluation") == 1


def test_a_killed_sweep_leaves_its_run_training_and_starts_no_other(project):
    sweep = project.start(*CHEETAH, "--seeds", "0,42", "--jobs", "1", "--", *ENDLESS)
    wait_for(lambda: project.count("checkpoint.pt") == 1)

    with sweep:
        sweep.kill()
    output = project.sweep(*CHEETAH, "--seeds", "0,42", "--jobs", "2", "--", *TINY, status=75)
    [run] = [process for process in project.processes() if process.ppid() == 1]
    run.terminate()
    wait_for(lambda: not project.processes())

    assert f"{NAMES[0]}: elsewhere: " in output
    assert output.endswith("2 runs: 1 done 1 running \n")
    assert "stopped by SIGTERM" in project.log(NAMES[0])
