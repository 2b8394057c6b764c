"""Runs the scripts as users do: each as the main program of a process of its own, with its own arguments, folder,
environment, signals and exit status. All that differs from `python td3.py ...` is that the libraries are not imported
again and again, which takes seconds: a server that has them forks these processes."""

import json
import multiprocessing
import os
import runpy
import shlex
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parent.parent
RUN = Path("run")  # where a small run is written, in the test's own folder
LIMIT = 400  # seconds; nothing here takes a tenth of it on an idle machine
OFF_POLICY = "--learning-starts 20 --batch-size 8 --buffer-size 1000"
SCRIPTS = {
    "ams_td3": OFF_POLICY,
    "ams_sac": OFF_POLICY,
    "td3": OFF_POLICY,
    "sac": OFF_POLICY,
    "ppo": "--num-steps 16 --num-minibatches 2 --update-epochs 2",
}
SMALL = """--device cpu --num-envs 2 --eval-episodes 3 --total-timesteps 65 --log-frequency 10 --eval-frequency 30
--checkpoint-frequency 20"""
LONG = "--total-timesteps 1000000"
CSV_HEADER = "step,frames,updates,wall_seconds,episode,return,length"
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch.utils.tensorboard", "tensordict.nn", "gymnasium.vector", "tyro", "commands"])
running = []


def become(script: str, words: list[str], cwd: Path, outputs: list[Path], environ: dict, before: str):
    """Turns this process into a script's; `before` is code that makes its world another one, such as a full disk."""
    multiprocessing.process._parent_process = None  # a shell's child has none
    multiprocessing.set_start_method("fork", force=True)  # Python's own choice on Linux
    os.setsid()
    os.chdir(cwd)
    for number, output in enumerate(outputs, 1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), number)
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["PYTHONPATH"] = str(ROOT / "tests")
    os.environ.update(environ)
    sys.path[:0] = [str(ROOT), *os.environ["PYTHONPATH"].split(":")]
    sys.argv = [f"{script}.py", *words]
    exec(before, {})
    runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")


class Command:
    """A script that runs, in a session of its own."""

    def __init__(self, script: str, *words, cwd: Path | str = ".", before: str = "", **environ: str):
        self.cwd = Path(cwd).absolute()
        self.folder = tempfile.TemporaryDirectory()
        self.out = Path(self.folder.name, "out")
        self.err = Path(self.folder.name, "err")
        self.out.touch()
        self.err.touch()
        words = shlex.split(" ".join(map(str, words)))
        args = (script, words, self.cwd, [self.out, self.err], environ, before)
        self.process = SERVER.Process(target=become, args=args)
        self.process.start()
        self.pid = self.process.pid
        running.append(self)

    def wait_for(self, text: str):
        def is_over():
            return text in self.out.read_text() or not self.process.is_alive()

        wait_for(is_over)
        if text not in self.out.read_text():
            raise AssertionError(self.out.read_text() + self.err.read_text())

    def suspend(self) -> list[psutil.Process]:
        """Halts it wherever it is, until SIGCONT; returns the workers."""
        process = psutil.Process(self.pid)
        process.suspend()
        wait_for(lambda: process.status() == psutil.STATUS_STOPPED)
        return process.children()

    def stop(self, signum: signal.Signals) -> "Command":
        """Sends a signal, which ends it: SIGTERM to itself, others to its workers too, as a terminal does."""
        send = os.kill if signum == signal.SIGTERM else os.killpg
        send(self.pid, signum)
        return self.end(128 + signum)

    def left(self) -> list[psutil.Process]:
        """The processes of its session, itself too, that have not ended."""
        return [process for process in psutil.process_iter() if is_alive(process, self.pid)]

    def end(self, status: int = 0, traceback: bool = False) -> "Command":
        """Waits for the end: with this exit status, a traceback only where one is right, and no process left."""
        self.process.join(LIMIT)
        self.stdout = self.out.read_text()
        self.stderr = self.err.read_text()
        if self.process.exitcode != status:
            raise AssertionError(f"{self.process.exitcode}, not {status}\n{self.stdout}{self.stderr}")
        if ("Traceback" in self.stdout + self.stderr) != traceback:
            raise AssertionError(self.stderr)
        wait_for(lambda: not self.left())
        return self


def kill_all():
    """Ends what a failed test has left running."""
    for command in running:
        command.process.kill()
        for process in command.left():
            process.kill()
        command.process.join()
        command.folder.cleanup()
    running.clear()


def small(script: str, *words) -> list:
    """Arguments of a run of about a second, in the folder `run`; later ones override."""
    return ["--env-id envs:Ends-v0 --run-dir run", SMALL, SCRIPTS[script], *words]


def start(script: str, *words, **options) -> Command:
    return Command(script, *small(script, *words), **options)


def start_long(script: str, *words, **options) -> Command:
    """A run of many steps, of which it has learned in some."""
    command = start(script, LONG, *words, **options)
    command.wait_for("step 40: return")
    return command


def run(script: str, *words, status: int = 0, traceback: bool = False, **options) -> Command:
    """A small run to its end."""
    return start(script, *words, **options).end(status, traceback)


def fails(script: str, words: str, *parts: str, status: int = 2, **options) -> str:
    """A small run that ends with one line on stderr, which holds `parts`; returns this line."""
    line = run(script, words, status=status, **options).stderr
    for part in (f"{script}.py: error: ", *parts):
        if part not in line or line.count("\n") != 1:
            raise AssertionError(line)
    return line


def refused(script: str, words: str, *parts: str, **options):
    """It fails, and what is in the folder `run` stays as it was."""
    before = contents()
    fails(script, words, *parts, **options)
    if contents() != before:
        raise AssertionError(words)


def wait_for(condition):
    end = time.monotonic() + LIMIT
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("waited in vain")
        time.sleep(0.005)


def is_alive(process: psutil.Process, session: int) -> bool:
    """Whether it has not ended, and is of this session; an orphan that nobody collects stays as a zombie."""
    try:
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ProcessLookupError):
        return False


def no_constant(word: str):
    raise ValueError(f"{word} is no JSON")


def read_json(path: Path) -> dict:
    """JSON in the strict sense, which has no NaN."""
    return json.loads(path.read_text(), parse_constant=no_constant)


def result(run_dir: Path = RUN) -> dict:
    return read_json(run_dir / "result.json")


def evaluations(run_dir: Path = RUN) -> list[list[float]]:
    """The rows of evaluations.csv without the wall clock: step, frames, updates, episode, return, length."""
    header, *rows = (run_dir / "evaluations.csv").read_text().splitlines()
    if header != CSV_HEADER:
        raise AssertionError(header)
    fields = [[float(field) for field in row.split(",")] for row in rows]
    return [row[:3] + row[4:] for row in fields]


def scalars(run_dir: Path = RUN) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows: {tag: [(step, value), ...]}."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0, "tensors": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def checkpoint(run_dir: Path = RUN, name: str = "checkpoint.pt") -> dict:
    return torch.load(run_dir / name, weights_only=True)


def networks(script: str, run_dir: Path = RUN) -> dict[str, torch.Tensor]:
    return checkpoint(run_dir, f"{script}.pt")["agent"]


def contents(folder: Path = RUN) -> dict[str, bytes]:
    """All files but the lock, which every process opens that looks in."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != ".lock"}
