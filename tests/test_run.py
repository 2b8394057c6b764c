"""Training through the real command line: what a run writes, that it repeats, and that nothing is lost when it is
interrupted, killed, starved of disk or fed a diverging simulation.

A run costs seconds of start-up, so a test makes each of its runs prove several things. `trained` shares one complete
run per script and task among all tests, also of several test processes; a test that writes works on a copy.
"""

import contextlib
import fcntl
import importlib
import json
import math
import os
import pty
import random
import resource
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 300  # seconds: no process here takes a tenth of it on an idle machine

# Small budgets, crossing warm-up (150 steps) and the delayed update of the actor (every 2nd).
SMALL = """--device cpu --num-envs 2 --eval-episodes 2 --total-timesteps 400 --log-frequency 50 --eval-frequency 150
--checkpoint-frequency 150"""
OFF_POLICY = "--learning-starts 150 --batch-size 16 --buffer-size 3000"
TD3_TAGS = """losses/qf1_values losses/qf2_values losses/qf1_loss losses/qf2_loss losses/qf_loss losses/actor_loss
diagnostics/critic_grad_norm diagnostics/td_target_variance"""


def off_policy_updates(step: int, warm_up=150, rate=1) -> int:
    """The number of updates after a number of steps."""
    return max(0, step - warm_up) * rate


# The scripts, each with its own part of a small budget, the tags that its updates log, and how many updates there are.
SCRIPTS = {
    "ams_td3": (OFF_POLICY, TD3_TAGS, off_policy_updates),
    "td3": (OFF_POLICY, TD3_TAGS, off_policy_updates),
}
COUNTER_TAGS = "charts/SPS charts/frames charts/updates charts/physics_errors".split()
EVALUATION_TAGS = "eval/episodic_return eval/episodic_return_std".split()
EPISODE_TAGS = "charts/episodic_return charts/episodic_length".split()
TINY = "--total-timesteps 60 --learning-starts 20 --log-frequency 20"  # where it does not matter what is learned
HEADER = "step,frames,updates,wall_seconds,episode,return,length"


# --------------------------------------------------------------------------------------------------------- helpers


def command(script: str, *args) -> list[str]:
    """The command line of a script; a string argument may hold several, as in a shell."""
    words = [word for arg in args for word in (shlex.split(arg) if isinstance(arg, str) else [str(arg)])]
    return [sys.executable, str(ROOT / f"{script}.py"), *words]


def small(script: str, *args) -> tuple:
    """Arguments of a small run in ./run on Pendulum-v1; later ones override."""
    return "--env-id Pendulum-v1 --run-dir run", SMALL, SCRIPTS[script][0], *args


def environment(**extra) -> dict:
    """One thread per process: the machine's cores are shared, and results then don't depend on their number."""
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | {k: str(v) for k, v in extra.items()}


def run(script: str, *args, cwd, status=0, env=None, **options) -> subprocess.CompletedProcess:
    """Runs a script to its end and checks the exit status, and that there is never a traceback."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    env = environment(**(env or {}))
    done = subprocess.run(command(script, *args), cwd=cwd, env=env, text=True, timeout=LIMIT, **options)
    assert done.returncode == status, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in (done.stderr or ""), done.stderr
    return done


def wait_for(condition, process: subprocess.Popen | None = None) -> None:
    """Waits until `condition()`; fails if `process` ends before, or if it takes far too long."""
    end = time.monotonic() + LIMIT
    while not condition():
        assert process is None or process.poll() is None or condition(), "the process ended too early"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


class Training:
    """A script running in the background, in a process group of its own as under a shell, its output in a file."""

    def __init__(self, script: str, *args, cwd: Path, env=None):
        self.log = cwd / "log.txt"
        with self.log.open("w") as log:
            options = {"stdout": log, "stderr": subprocess.STDOUT, "start_new_session": True}
            words = command(script, *args)
            self.process = subprocess.Popen(words, cwd=cwd, env=environment(**(env or {})), **options)
        self.pid = self.process.pid

    def output(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str) -> None:
        wait_for(lambda: text in self.output(), self.process)

    def wait_for_step(self, step: int) -> None:
        """Waits for the first line about a step that is not before this one."""
        wait_for(lambda: any(logged >= step for logged in self.steps()), self.process)

    def steps(self) -> list[int]:
        lines = self.output().splitlines()
        return [int(line.split(":")[0].split()[1].replace(",", "")) for line in lines if line.startswith("step ")]

    def suspend(self) -> None:
        """Stops it where it is, which is at no particular point of a step."""
        self.process.send_signal(signal.SIGSTOP)
        wait_for(lambda: psutil.Process(self.pid).status() == psutil.STATUS_STOPPED, self.process)

    def end(self, status: int) -> str:
        """Waits for the end; returns the output."""
        assert self.process.wait(LIMIT) == status, self.output()
        assert "Traceback" not in self.output(), self.output()
        return self.output()


@contextlib.contextmanager
def training(script: str, *args, cwd: Path, env=None):
    """A `Training` that does not outlive the test."""
    running = Training(script, *args, cwd=cwd, env=env)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
            running.process.wait()


def hook(folder: Path, code: str) -> dict:
    """An environment in which `code` runs at the start of the script, before its imports; workers inherit its effect.

    This is how a test makes the world fail (a diverging simulation, a signal at one exact moment) around a script that
    is run as it is.
    """
    folder = folder / "hook"
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": folder}


# Episodes of dm_control's cheetah last 40 steps instead of 1000: it takes long to play them, and to draw them.
SHORT_EPISODES = """
from dm_control.rl import control
init = control.Environment.__init__
def short(self, *args, **kwargs):
    init(self, *args, **{**kwargs, "time_limit": 0.4})
control.Environment.__init__ = short
"""


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended; nobody may be there to collect an orphan, which then stays as a zombie."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def read_events(path: Path) -> list[Event]:
    """Every record of an event file, which must end exactly where a record ends (TFRecord framing)."""
    data, events, start = path.read_bytes(), [], 0
    while start < len(data):
        (length,) = struct.unpack_from("<Q", data, start)
        assert start + 16 + length <= len(data), f"{path} ends in the middle of a record"
        events.append(Event.FromString(data[start + 12 : start + 12 + length]))
        start += 16 + length
    return events


def read_scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars of a run as they stand in its event files, oldest file first, nothing merged or left out."""
    scalars: dict[str, list] = {}
    for path in sorted(run_dir.glob("events.out.tfevents.*")):
        for event in read_events(path):
            for value in event.summary.value:
                number = value.simple_value if value.HasField("simple_value") else value.tensor.float_val[0]
                scalars.setdefault(value.tag, []).append((event.step, number))
    return scalars


def read_evaluations(run_dir: Path) -> list[list[float]]:
    """The rows of evaluations.csv without the wall clock: step, frames, updates, episode, return, length."""
    header, *rows = (run_dir / "evaluations.csv").read_text().splitlines()
    assert header == HEADER
    fields = [row.split(",") for row in rows]
    seconds = [float(row[3]) for row in fields]
    assert seconds == sorted(seconds) and seconds[0] >= 0
    return [[float(field) for field in row[:3] + row[4:]] for row in fields]


def read_checkpoint(run_dir: Path, name="checkpoint.pt") -> dict:
    """A checkpoint, with its checksums verified."""
    with zipfile.ZipFile(run_dir / name) as archive:
        assert archive.testzip() is None
    return torch.load(run_dir / name, map_location="cpu", weights_only=True)


def read_replay(run_dir: Path, obs_dim: int, action_dim: int) -> list[np.ndarray]:
    """The transitions in a checkpoint: observations, next observations, actions, rewards, terminations."""
    rows = read_checkpoint(run_dir)["buffer"]["rows"].numpy()
    ends = np.cumsum([obs_dim, obs_dim, action_dim, 1, 1])
    assert rows.shape[1] == ends[-1]
    *parts, rewards, terminations = np.split(rows, ends[:-1], axis=1)
    return [*parts, rewards[:, 0], terminations[:, 0]]


def contents(run_dir: Path, pattern="*") -> dict[str, bytes]:
    """The content of each file, but for the lock, which is opened by every process that looks in."""
    return {path.name: path.read_bytes() for path in run_dir.glob(pattern) if path.name != ".lock"}


def tensors(state: dict) -> dict[str, torch.Tensor]:
    """The learned tensors of an agent's state_dict: bounds and scales of the actions never move."""
    constant = "action_scale", "action_bias", "action_low", "action_high"
    return {name: tensor for name, tensor in state.items() if not name.endswith(constant)}


def check_learned(run_dir: Path, exp_name: str) -> None:
    """Every parameter, of networks and targets, moved since the checkpoint before the first update, and is finite."""
    before = read_checkpoint(run_dir, "checkpoint_previous.pt")
    assert before["updates"] == 0
    after = read_checkpoint(run_dir, f"{exp_name}.pt")["agent"]
    assert len(tensors(after)) >= 6
    for name, tensor in tensors(after).items():
        assert torch.isfinite(tensor).all(), name
        assert not torch.equal(tensor, before["agent"][name]), f"{name} did not move"


def check_result(run_dir: Path, script: str, total=400, num_envs=2, updates=None) -> list[int]:
    """Counters and evaluations as one uninterrupted run leaves them; returns the steps of the evaluations."""
    result, updates = json.loads((run_dir / "result.json").read_text()), updates or SCRIPTS[script][2]
    counters = [result[name] for name in ("global_step", "frames", "updates")]
    assert counters == [total, total * num_envs, updates(total)]
    rows, evaluated = read_evaluations(run_dir), sorted({*range(0, total, 150), total})
    expected = [[step, step * num_envs, updates(step), episode] for step in evaluated for episode in range(2)]
    assert [row[:4] for row in rows] == expected
    assert [row[4] for row in rows[-2:]] == result["final_evaluation"]["returns"]
    return evaluated


def check_whole(run_dir: Path, script: str, total=400, log=50, num_envs=2, updates=None) -> None:
    """Counters, evaluations and curves as one uninterrupted run leaves them: nothing missing, nothing twice."""
    evaluated = check_result(run_dir, script, total, num_envs, updates)
    rows, updates = read_evaluations(run_dir), updates or SCRIPTS[script][2]
    scalars = read_scalars(run_dir)
    assert {*scalars} - {*EPISODE_TAGS} == {*COUNTER_TAGS, *EVALUATION_TAGS, *SCRIPTS[script][1].split()}
    logged = [*range(log, total + 1, log)]
    for tag, points in scalars.items():
        steps = [step for step, _ in points]
        if tag in EPISODE_TAGS:
            assert steps == sorted(set(steps)), tag
        elif tag in EVALUATION_TAGS:
            assert steps == evaluated, tag
        elif tag in COUNTER_TAGS:
            assert steps == logged, tag
        else:
            assert steps == [step for step in logged if updates(step)], tag
        assert all(math.isfinite(value) for _, value in points), tag
    assert scalars["charts/frames"] == [(step, step * num_envs) for step in logged]
    assert scalars["charts/updates"] == [(step, updates(step)) for step in logged]
    assert all(value > 0 for _, value in scalars["charts/SPS"])
    for step, mean in scalars["eval/episodic_return"]:
        assert mean == pytest.approx(np.mean([row[4] for row in rows if row[0] == step]), rel=1e-5)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """trained(script, env_id): the directory of a complete run, made once, with its checkpoints of steps 150 (before
    the first update) and 300. Read only."""

    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root  # test processes share the folder above

    def make(script: str, env_id="Pendulum-v1") -> Path:
        cwd = root / f"trained_{script}_{env_id}"
        cwd.mkdir(exist_ok=True)
        run_dir = cwd / "runs" / f"{env_id}__{script}__1"
        with (cwd / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the first to come trains, others wait
            if not (run_dir / "result.json").exists():
                args = "--env-id", env_id, SMALL, SCRIPTS[script][0], "--keep-checkpoint --overwrite"
                done = run(script, *args, cwd=cwd)
                assert not done.stderr, done.stderr
        return run_dir

    return make


@pytest.fixture
def stopped(trained, tmp_path):
    """stopped(script): a directory run/ as it is when a run was killed after its checkpoint of step 300."""

    def copy(script: str) -> Path:
        shutil.copytree(trained(script), tmp_path / "run")
        (tmp_path / "run" / "result.json").unlink()
        return tmp_path / "run"

    return copy


# ---------------------------------------------------------------------------------------------------- complete runs


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_is_complete_and_repeats(script, trained, tmp_path):
    run_dir = trained(script)
    assert {path.name.split(".out.")[0] for path in run_dir.iterdir()} == {
        *(".lock", "args.json", "evaluations.csv", "result.json", "events"),
        *(f"{script}.pt", "checkpoint.pt", "checkpoint_previous.pt"),
    }
    assert len([*run_dir.glob("events.out.tfevents.*")]) == 1
    check_whole(run_dir, script)
    check_learned(run_dir, script)
    result = json.loads((run_dir / "result.json").read_text())
    args = json.loads((run_dir / "args.json").read_text())
    assert args == {"algorithm": script, **result["args"]}
    assert {name: result[name] for name in ("algorithm", "exp_name", "env_id", "seed")} == {
        **{"algorithm": script, "exp_name": script, "env_id": "Pendulum-v1", "seed": 1}
    }
    evaluation = result["final_evaluation"]
    assert evaluation["mean"] == pytest.approx(np.mean(evaluation["returns"]))
    assert evaluation["std"] == pytest.approx(np.std(evaluation["returns"]))
    assert result["wall_seconds"] > 0 and result["sps"] == pytest.approx(400 / result["wall_seconds"])
    assert {"torch", "numpy", "gymnasium", "dm_control", "mujoco", "python"} <= {*result["versions"]}
    assert result["physics_errors"] == 0 and "cpu" in result["device"]
    # Pendulum's episodes are 200 steps long; the last 10% of the run hold the second of each environment.
    episodes = read_scalars(run_dir)
    assert episodes["charts/episodic_length"] == [(200, 200), (400, 200)]
    assert [step for step, _ in episodes["charts/episodic_return"]] == [200, 400]
    last_return = episodes["charts/episodic_return"][-1][1]
    assert result["training_return_last_10_percent"] == pytest.approx(last_return, rel=1e-5)

    # The same again, with other values of what may not change the results; then nothing is kept but the networks.
    other = "--log-frequency 37 --checkpoint-frequency 110 --run-dir again"
    run(script, *small(script, other), cwd=tmp_path)
    assert read_evaluations(tmp_path / "again") == read_evaluations(run_dir)
    assert not [*(tmp_path / "again").glob("checkpoint*")]
    first, second = (read_checkpoint(path, f"{script}.pt")["agent"] for path in (run_dir, tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_ams_td3_learns(tmp_path):
    """InvertedPendulum-v5, where each step that the pole stays up is worth 1, in 900 steps.

    Mean returns of the untrained and the trained policy for seeds 1 to 5, measured: 9.5 and 57, 6 and 64, 7.8 and 61,
    11 and 59, 14 and 73; the episodes of one policy differ by 3 at most. A policy drawn at random lasts 5 steps.
    """
    budget = """--env-id InvertedPendulum-v5 --total-timesteps 900 --num-envs 8 --eval-episodes 4 --eval-frequency 5000
    --checkpoint-frequency 5000 --learning-starts 200 --batch-size 64 --learning-rate 1e-3 --gamma 0.98 --tau 0.01
    --exploration-noise 0.2 --num-neighbors 4 --buffer-size 10000"""
    run("ams_td3", *small("ams_td3", budget), cwd=tmp_path)
    returns = [row[4] for row in read_evaluations(tmp_path / "run")]
    untrained, learned = returns[:4], returns[4:]
    assert len(learned) == 4
    assert min(learned) > 3 * max(untrained)


def test_seeds_differ_and_ams_td3_without_its_method_is_td3(tmp_path):
    """On a task with 6 action dimensions; equal to the last digit of every return."""
    budget, env = "--env-id cheetah-run --total-timesteps 260", hook(tmp_path, SHORT_EPISODES)
    run("td3", *small("td3", budget, "--run-dir td3"), cwd=tmp_path, env=env)
    run("td3", *small("td3", budget, "--run-dir other --seed 2"), cwd=tmp_path, env=env)
    run("ams_td3", *small("ams_td3", budget, "--run-dir ams --no-ntd --no-layer-norm"), cwd=tmp_path, env=env)
    td3, other, ams = (read_evaluations(tmp_path / name) for name in ("td3", "other", "ams"))
    assert td3 == ams
    assert [row[2] for row in td3] == [0, 0, 0, 0, 110, 110]
    returns, other_returns = ([row[4] for row in rows] for rows in (td3, other))
    assert not {*returns} & {*other_returns}
    assert returns[:2] == returns[2:4] and len({*returns}) == 4  # episodes differ, and training changed the policy
    td3, ams = (read_checkpoint(tmp_path / d, f)["agent"] for d, f in (("td3", "td3.pt"), ("ams", "ams_td3.pt")))
    assert td3.keys() == ams.keys() and all(torch.equal(td3[name], ams[name]) for name in td3)


SWITCHES = [
    # Six action dimensions and K = 10 > 6, in antithetic pairs.
    (
        "ams_td3",
        """--env-id cheetah-run --num-envs 1 --updates-per-step 2 --torch-deterministic
        --sampling antithetic --num-neighbors 10 --action-projection normalize""",
    ),
    ("ams_td3", "--sampling gaussian --num-neighbors 3 --policy-frequency 3 --epsilon 0 --gamma 1 --tau 1 --track"),
    ("ams_td3", "--batch-size 1 --no-layer-norm --exploration-noise 0 --num-neighbors 1"),
    (
        "td3",
        """--num-envs 3 --updates-per-step 3 --torch-deterministic --action-projection normalize --policy-noise 0
        --noise-clip 0 --buffer-size 110""",
    ),
]


# In the place of Weights & Biases: writes down what it is told.
WANDB = """
import json
def init(**options):
    json.dump(options, open("wandb.json", "w"))
"""


@pytest.mark.parametrize(("script", "switches"), SWITCHES, ids=["antithetic", "gaussian", "minimal", "td3"])
def test_switches_train(script, switches, tmp_path):
    env = hook(tmp_path, SHORT_EPISODES)
    (env["PYTHONPATH"] / "wandb.py").write_text(WANDB)
    run(script, *small(script, "--total-timesteps 320 --keep-checkpoint", switches), cwd=tmp_path, env=env)
    words = dict(zip(switches.split(), switches.split()[1:], strict=False))
    num_envs, rate = int(words.get("--num-envs", 2)), int(words.get("--updates-per-step", 1))
    updates = partial(off_policy_updates, rate=rate)
    check_whole(tmp_path / "run", script, total=320, num_envs=num_envs, updates=updates)
    check_learned(tmp_path / "run", script)
    if "--buffer-size 110" in switches:  # the last 110 of 900 transitions: steps 263 to 300 of 3 environments
        obs, next_obs, *_ = read_replay(tmp_path / "run", 3, 1)
        position = read_checkpoint(tmp_path / "run")["buffer"]["position"]
        obs, next_obs = np.roll(obs, -position, axis=0), np.roll(next_obs, -position, axis=0)
        assert len(obs) == 110 and 0 < position < 110
        assert (next_obs[:-3] == obs[3:]).all()  # oldest first, and each environment's episode goes on
    assert (tmp_path / "wandb.json").exists() == ("--track" in switches)
    if "--track" in switches:
        told = json.loads((tmp_path / "wandb.json").read_text())
        assert told["sync_tensorboard"] is True and told["config"]["sampling"] == "gaussian"


def test_a_terminal_shows_a_progress_bar(tmp_path):
    """The other tests see plain lines: their output goes to a file."""
    terminal, end = pty.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 160, 0, 0))  # lines and columns
    words = command("td3", *small("td3", TINY))
    process = subprocess.Popen(words, cwd=tmp_path, env=environment(), stdout=end, stderr=end, start_new_session=True)
    os.close(end)
    shown = b""
    with contextlib.suppress(OSError):  # what Linux says when the other end of a terminal is closed
        while part := os.read(terminal, 4096):
            shown += part
    os.close(terminal)
    assert process.wait(LIMIT) == 0, shown
    # Step of how many, speed, time left, and the last return and evaluation.
    for text in (b"60/60", b"SPS", b"step/s", b"<00:00", b"return", b"evaluation"):
        assert text in shown, text


# ------------------------------------------------------------------------------------------------------ evaluation


def printed_episodes(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("episode ")]


def expected_lines(rows: list[list[float]]) -> list[str]:
    return [f"episode {row[3]:.0f}: return {row[4]:.2f}, {row[5]:.0f} steps" for row in rows]


@pytest.mark.parametrize("script", SCRIPTS)
def test_evaluate_plays_what_the_run_ended_with(script, trained, tmp_path):
    """From the directory, without a file in the directory changing."""
    run_dir, before = trained(script), contents(trained(script))
    rows = read_evaluations(run_dir)
    done = run(script, "--eval-episodes 2 --device cpu --evaluate", run_dir, cwd=tmp_path)
    assert printed_episodes(done.stdout) == expected_lines(rows[-2:])
    mean, std = (json.loads((run_dir / "result.json").read_text())["final_evaluation"][k] for k in ("mean", "std"))
    assert f"mean {mean:.2f}, std {std:.2f} over 2 episodes" in done.stdout
    assert contents(run_dir) == before and not any(tmp_path.iterdir())


def test_evaluate_plays_a_run_that_is_only_checkpointed(stopped, tmp_path):
    run_dir = stopped("ams_td3")
    rows = read_evaluations(run_dir)
    (run_dir / "ams_td3.pt").unlink()
    done = run("ams_td3", "--eval-episodes 2 --device cpu --evaluate run", cwd=tmp_path)
    assert printed_episodes(done.stdout) == expected_lines([row for row in rows if row[0] == 300])


@pytest.mark.parametrize(("env_id", "seconds_per_step"), [("cheetah-run", 0.01), ("InvertedPendulum-v5", 0.04)])
def test_video(env_id, seconds_per_step, trained, tmp_path):
    """An mp4 that plays in real time, of the episode that the evaluation reports; without EGL, one line."""
    import imageio.v3 as imageio

    env, file = hook(tmp_path, SHORT_EPISODES), tmp_path / "run" / "ams_td3.pt"
    if env_id == "cheetah-run":
        run("ams_td3", *small("ams_td3", TINY, "--env-id", env_id), cwd=tmp_path, env=env)
    else:
        shutil.copytree(trained("ams_td3", env_id), tmp_path / "run")
    play = "--eval-episodes 2 --capture-video --device cpu --evaluate", file

    # In an empty folder there is no vendor's EGL to be found.
    done = run("ams_td3", *play, cwd=tmp_path, env=env | {"__EGL_VENDOR_LIBRARY_DIRS": tmp_path / "hook"}, status=1)
    assert "apt install" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert not [*(tmp_path / "run").glob("*.mp4*")]

    words = command("ams_td3", *play)
    done = subprocess.run(words, cwd=tmp_path, env=environment(**env), text=True, capture_output=True, timeout=LIMIT)
    if done.returncode == 1 and "needs EGL" in done.stderr:
        pytest.skip(f"no EGL here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert printed_episodes(done.stdout) == expected_lines(read_evaluations(tmp_path / "run")[-2:])
    (video,) = (tmp_path / "run").glob("*.mp4")
    fps = imageio.immeta(video, plugin="FFMPEG")["fps"]
    frames = np.stack([*imageio.imiter(video, plugin="FFMPEG")])
    steps = read_evaluations(tmp_path / "run")[-2][5]
    assert frames.shape[1:] in [(480, 640, 3), (480, 480, 3)]
    assert abs(len(frames) / fps - steps * seconds_per_step) <= 2 / fps
    assert 20 <= fps <= 50
    assert frames[0].std() > 10  # there is something to see
    assert np.abs(frames[0].astype(float) - frames[-1]).mean() > 0.1  # and it moves


# ------------------------------------------------------------------------------------------------- what is stored


def test_pendulum_replay_holds_real_transitions_only(trained):
    """Pendulum-v1 ends by its time limit alone. Its equations of motion say what the true next observation is."""
    run_dir = trained("ams_td3")
    obs, next_obs, actions, rewards, terminations = read_replay(run_dir, 3, 1)
    assert len(obs) == 2 * 300 == len(np.unique(obs, axis=0))
    assert not terminations.any()
    assert (np.abs(actions) <= 2).all() and actions[:300].std() == pytest.approx(2 / math.sqrt(3), rel=0.1)
    theta, speed, torque = np.arctan2(obs[:, 1], obs[:, 0]), obs[:, 2], actions[:, 0]
    next_speed = np.clip(speed + (15 * np.sin(theta) + 3 * torque) * 0.05, -8, 8)
    next_theta = theta + next_speed * 0.05
    truth = np.stack([np.cos(next_theta), np.sin(next_theta), next_speed], axis=1)
    np.testing.assert_allclose(next_obs, truth, atol=1e-4)
    np.testing.assert_allclose(rewards, -(theta**2 + 0.1 * speed**2 + 0.001 * torque**2), rtol=1e-3, atol=1e-3)
    returns = []
    for i in range(2):  # row 2 t + i is step t of environment i
        continues = (next_obs[i::2][:-1] == obs[i::2][1:]).all(axis=1)
        assert np.flatnonzero(~continues).tolist() == [199], "the episode of 200 steps is followed by a new one"
        returns.append(rewards[i::2][:200].sum())
    logged = dict(read_scalars(run_dir)["charts/episodic_return"])
    assert logged[200] == pytest.approx(np.mean(returns), rel=1e-4)
    assert not (obs[0] == obs[1]).any() and not (actions[0] == actions[1]).any()  # each environment has its own seed


def test_inverted_pendulum_replay_marks_terminations(trained):
    """InvertedPendulum-v5 ends by falling over, |angle| > 0.2, and not before 1000 steps otherwise."""
    run_dir = trained("ams_td3", "InvertedPendulum-v5")
    obs, next_obs, actions, rewards, terminations = read_replay(run_dir, 4, 1)
    assert len(obs) == 2 * 300
    fallen = np.abs(next_obs[:, 1]) > 0.2
    assert (terminations == fallen).all() and fallen.sum() > 20
    assert (np.abs(obs[:, 1]) <= 0.2).all()  # no step from a state that is already over
    lengths: dict[int, list] = {}
    for i in range(2):
        continues = (next_obs[i::2][:-1] == obs[i::2][1:]).all(axis=1)
        assert (continues == ~fallen[i::2][:-1]).all()
        ends = np.flatnonzero(fallen[i::2]) + 1
        for end, length in zip(ends, np.diff(ends, prepend=0), strict=True):
            lengths.setdefault(int(end), []).append(length)
    # Every finished episode was logged, at the step where it ended, also when both ended in one step.
    logged = dict(read_scalars(run_dir)["charts/episodic_length"])
    assert {step: logged[step] for step in logged if step <= 300} == pytest.approx(
        {step: np.mean(value) for step, value in lengths.items()}
    )
    assert any(len(value) == 2 for value in lengths.values())
    # Its return is 1 per step that stays up.
    returns = dict(read_scalars(run_dir)["charts/episodic_return"])
    assert all(returns[step] == logged[step] - 1 for step in logged)


# An episode's 40th step diverges, in training and in evaluation.
DIVERGE = """
from dm_control.rl import control
step, reset = control.Environment.step, control.Environment.reset
def counted_reset(self):
    self.count = 0
    return reset(self)
def diverge(self, action):
    self.count += 1
    if self.count == 40:
        raise control.PhysicsError("diverged")
    return step(self, action)
control.Environment.step, control.Environment.reset = diverge, counted_reset
"""


def test_a_simulation_that_diverges_ends_its_episode_only(tmp_path):
    budget = "--env-id cheetah-run --keep-checkpoint --total-timesteps 320"
    run("ams_td3", *small("ams_td3", budget), cwd=tmp_path, env=hook(tmp_path, DIVERGE))
    run_dir = tmp_path / "run"
    check_whole(run_dir, "ams_td3", total=320)
    assert all(row[5] == 40 for row in read_evaluations(run_dir))
    scalars = read_scalars(run_dir)
    assert scalars["charts/physics_errors"] == [(step, 2 * (step // 40)) for step in range(50, 321, 50)]
    assert scalars["charts/episodic_length"] == [(step, 40) for step in range(40, 321, 40)]
    assert json.loads((run_dir / "result.json").read_text())["physics_errors"] == 16
    obs, next_obs, _, _, terminations = read_replay(run_dir, 17, 6)
    assert len(obs) == 2 * (300 - 300 // 40)  # the checkpoint of step 300; a diverged step is no transition
    assert not (obs == next_obs).all(axis=1).any() and not terminations.any()
    for i in range(2):
        continues = (next_obs[i::2][:-1] == obs[i::2][1:]).all(axis=1)
        assert (np.flatnonzero(~continues) + 1).tolist() == [*range(39, 39 * 7 + 1, 39)]


# ----------------------------------------------------------------------------------------------- signals and kills


# In the evaluation number AT: the vector environments' step() is what an evaluation calls, training sends and waits.
DURING_EVALUATION = """
import os, signal
from gymnasium.vector import AsyncVectorEnv
step, count = AsyncVectorEnv.step, 0
def counted(self, actions):
    global count
    count += 1
    if count == int(os.environ["AT"]):
        {action}
    return step(self, actions)
AsyncVectorEnv.step = counted
"""


def test_signals_save_and_resume_completes(tmp_path):
    """Ctrl-C in training, SIGTERM in an evaluation, then to the end. Meanwhile no other process may enter."""
    run_dir = tmp_path / "run"
    with training("ams_td3", *small("ams_td3", "--log-frequency 10"), cwd=tmp_path) as first:
        first.wait_for_step(170)
        workers = psutil.Process(first.pid).children()
        assert len(workers) == 4
        first.suspend()  # it neither ends nor writes while the second process tries
        before = contents(run_dir)
        second = run("ams_td3", *small("ams_td3", "--log-frequency 10 --resume"), cwd=tmp_path, status=1)
        assert "another process" in second.stderr and len(second.stderr.splitlines()) == 1
        assert contents(run_dir) == before
        first.process.send_signal(signal.SIGCONT)
        os.killpg(first.pid, signal.SIGINT)  # a terminal sends it to the whole group
        output = first.end(130)
    step = read_checkpoint(run_dir)["global_step"]
    assert f"step {step:,}: checkpoint" in output and f"stopped by SIGINT at step {step:,}" in output
    assert 170 <= step < 400 and not (run_dir / "result.json").exists()
    wait_for(lambda: all(gone(worker) for worker in workers))

    # The next evaluation takes 200 steps.
    env = hook(tmp_path, DURING_EVALUATION.format(action="os.kill(os.getpid(), signal.SIGTERM)")) | {"AT": 77}
    resume = small("ams_td3", "--log-frequency 10 --resume --keep-checkpoint")
    done = run("ams_td3", *resume, cwd=tmp_path, env=env, status=143)
    evaluated = min((step // 150 + 1) * 150, 400)
    assert f"stopped by SIGTERM at step {evaluated}" in done.stdout
    assert f"from step {step}" in done.stdout
    assert read_checkpoint(run_dir)["global_step"] == evaluated
    assert read_evaluations(run_dir)[-1][0] == step // 150 * 150

    done = run("ams_td3", *resume, cwd=tmp_path)
    assert f"from step {evaluated}" in done.stdout
    check_whole(run_dir, "ams_td3", log=10)
    # Simulators are not saved: a resumed run starts new episodes, from seeds of its own, and loses no transition.
    checkpoint = read_checkpoint(run_dir)
    rows = checkpoint["buffer"]["rows"]
    assert len(rows) == 2 * checkpoint["global_step"]
    starts = rows[[0, 1, 2 * step, 2 * step + 1], :3]
    assert len(torch.unique(starts, dim=0)) == 4


# The next checkpoint has been written, the last one is already set aside, and then the process dies.
BETWEEN_RENAMES = """
import os, signal
replace = os.replace
def killed(source, target):
    if str(target).endswith("checkpoint.pt"):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = killed
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_kill_9_at_any_moment(script, tmp_path):
    """About the first checkpoint, in the middle of learning, and in the middle of replacing a checkpoint; then the run
    completes."""
    run_dir, moments = tmp_path / "run", random.Random(f"kill -9 {script}")
    args = small(script, "--log-frequency 10 --checkpoint-frequency 80 --resume")
    resumed = 0
    for first_step, last_step in [(0, 50), (180, 270)]:
        with training(script, *args, cwd=tmp_path) as running:
            running.wait_for_step(moments.randrange(first_step, last_step))
            time.sleep(moments.uniform(0, 0.05))  # into a step, an evaluation or a checkpoint, whichever it is
            workers = psutil.Process(running.pid).children()
            assert len(workers) == 4
            running.process.kill()
            assert running.end(-signal.SIGKILL).count(f"from step {resumed}:") == 1
            wait_for(lambda workers=workers: all(gone(worker) for worker in workers))
        names = [name for name in ("checkpoint.pt", "checkpoint_previous.pt") if (run_dir / name).exists()]
        resumed = read_checkpoint(run_dir, names[0])["global_step"] if names else 0
    assert resumed >= 160

    # Killed between two renames, there is only the previous checkpoint under its name; that one is whole.
    done = run(script, *args, cwd=tmp_path, env=hook(tmp_path, BETWEEN_RENAMES), status=-signal.SIGKILL)
    assert f"from step {resumed}:" in done.stdout
    assert not (run_dir / "checkpoint.pt").exists() and (run_dir / "checkpoint.pt.new").exists()
    assert read_checkpoint(run_dir, "checkpoint_previous.pt")["global_step"] == resumed

    done = run(script, *args, cwd=tmp_path)
    assert f"from step {resumed}:" in done.stdout
    check_whole(run_dir, script, log=10)
    assert not [*run_dir.glob("checkpoint*")]


AT_THE_END = """
import os, signal
from torch.utils import tensorboard
close = tensorboard.SummaryWriter.close
def signalled(self):
    os.kill(os.getpid(), signal.SIGTERM)
    close(self)
tensorboard.SummaryWriter.close = signalled
"""


def test_a_signal_in_the_last_moment_loses_nothing(stopped, tmp_path):
    """All steps and evaluations are done: either the run completes, or the checkpoint holds its last step."""
    run_dir = stopped("td3")
    words = command("td3", *small("td3", "--resume --keep-checkpoint"))
    env = environment(**hook(tmp_path, AT_THE_END))
    done = subprocess.run(words, cwd=tmp_path, env=env, text=True, capture_output=True, timeout=LIMIT)
    if done.returncode == 0:
        check_whole(run_dir, "td3")
    else:
        assert done.returncode == 143 and not (run_dir / "result.json").exists()
        assert read_checkpoint(run_dir)["global_step"] == 400


def test_a_signal_never_ends_training_without_a_checkpoint():
    """Whatever the moment at which the signal arrives within one turn of the loop, if it ends the loop it also saves.

    In the process: no real signal can be sent between two chosen instructions. The signal arrives after the n-th time
    that the loop looks for one.
    """

    class Late(list):
        def __init__(self, looks):
            super().__init__([signal.SIGTERM])
            self.looks = looks

        def __bool__(self):
            self.looks -= 1
            return self.looks < 0

    for script in SCRIPTS:
        module = importlib.import_module(script)
        for looks in range(4):
            loop, saved = module.Run.__new__(module.Run), []
            loop.args = module.Args(env_id="Pendulum-v1", eval_frequency=100, checkpoint_frequency=100)
            loop.global_step, loop.first_step, loop.evaluations, loop.stop = 50, 0, [[0]], Late(looks)
            loop.save_checkpoint = lambda saved=saved: saved.append("checkpoint")
            goes_on = loop.goes_on(policy=None, eval_envs=None)
            assert goes_on or saved, f"{script}.py: the signal came after {looks} looks"


# Step AT of all, evaluations included: a worker takes the action and dies with it, while the others simulate.
DURING_A_STEP = """
import os, signal, psutil
from gymnasium.vector import AsyncVectorEnv
step_async, count = AsyncVectorEnv.step_async, 0
def counted(self, actions):
    global count
    count += 1
    if count == int(os.environ["AT"]):
        worker = psutil.Process(self.processes[0].pid)
        worker.suspend()
        while worker.status() != psutil.STATUS_STOPPED:
            pass
        step_async(self, actions)
        worker.kill()
    else:
        step_async(self, actions)
AsyncVectorEnv.step_async = counted
"""


def test_killed_workers_end_the_run_with_a_checkpoint(tmp_path):
    """A training worker in training, then an evaluation worker in an evaluation; then the run completes."""
    run_dir, args = tmp_path / "run", small("td3", "--checkpoint-frequency 1000 --resume")
    # Evaluations, of 200 steps, at steps 0 and 150.
    env = hook(tmp_path, DURING_A_STEP) | {"AT": 200 + 200 + 171}
    with training("td3", *args, cwd=tmp_path, env=env) as first:
        first.wait_for_step(100)
        workers = psutil.Process(first.pid).children()
        output = first.end(1)
    last = output.splitlines()[-1]
    assert last.startswith("td3.py: error: ") and "died" in last and "--resume" in last
    assert sum(line.startswith("td3.py") for line in output.splitlines()) == 1
    wait_for(lambda: len(workers) == 4 and all(gone(worker) for worker in workers))
    assert read_checkpoint(run_dir)["global_step"] == 170 and "step 170: checkpoint" in output

    env = hook(tmp_path, DURING_EVALUATION.format(action="self.processes[0].kill()")) | {"AT": 77}
    done = run("td3", *args, cwd=tmp_path, env=env, status=1)
    assert "died" in done.stderr and "--resume" in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert "from step 170:" in done.stdout
    assert read_checkpoint(run_dir)["global_step"] == 300

    done = run("td3", *args, cwd=tmp_path)
    assert "from step 300:" in done.stdout
    check_whole(run_dir, "td3")


# ----------------------------------------------------------------------------------------------------- checkpoints


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if how == "flip":
        data[middle : middle + 64] = bytes(byte ^ 0xFF for byte in data[middle : middle + 64])
    path.write_bytes(data[:middle] if how == "truncate" else data)


@pytest.mark.parametrize("how", ["flip", "truncate"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(how, stopped, tmp_path):
    run_dir = stopped("ams_td3")
    damage(run_dir / "checkpoint.pt", how)
    if how == "flip":
        done = run("ams_td3", *small("ams_td3", "--resume"), cwd=tmp_path)
        assert "warning" in done.stdout + done.stderr and "checkpoint.pt is damaged" in done.stdout + done.stderr
        assert "from step 150" in done.stdout
        check_whole(run_dir, "ams_td3")
    else:
        damage(run_dir / "checkpoint_previous.pt", how)
        before = contents(run_dir)
        done = run("ams_td3", *small("ams_td3", "--resume"), cwd=tmp_path, status=1)
        assert "no checkpoint" in done.stderr and len(done.stderr.splitlines()) == 1
        assert contents(run_dir) == before


def test_no_damage_goes_unnoticed(trained, tmp_path):
    """Wherever a file is damaged: it is recognised, or what is read is what was written."""
    module = importlib.import_module("ams_td3")
    original = trained("ams_td3") / "ams_td3.pt"
    written, data = torch.load(original, weights_only=True), original.read_bytes()
    moments, path, recognised = random.Random(1), tmp_path / "damaged.pt", 0
    for attempt in range(120):
        copy = bytearray(data)
        if attempt % 3 == 0:
            copy = copy[: moments.randrange(len(copy))]
        else:
            # The directory at the end is 1% of the file: every second flip goes there.
            start = len(copy) - 6000 if attempt % 3 == 1 else 0
            for _ in range(3):
                copy[moments.randrange(start, len(copy))] ^= 1 << moments.randrange(8)
        path.write_bytes(copy)
        loaded = module.load_file(path)
        recognised += loaded is None
        if loaded is not None:
            assert loaded["args"] == written["args"]
            assert all(torch.equal(loaded["agent"][name], written["agent"][name]) for name in written["agent"])
    assert recognised > 80


def test_resume_needs_the_same_arguments(stopped, tmp_path):
    """All that differ are named, and nothing in the directory changes; those that may differ are not named."""
    before = contents(stopped("ams_td3"))
    changed = "--gamma 0.9 --epsilon 0.3 --log-frequency 20 --eval-frequency 40 --total-timesteps 500"
    done = run("ams_td3", *small("ams_td3", "--resume", changed), cwd=tmp_path, status=2)
    (line,) = done.stderr.splitlines()
    assert "--gamma 0.99, not 0.9" in line and "--epsilon 0.2, not 0.3" in line
    assert not any(name in line for name in ("frequency", "timesteps", "resume", "batch-size"))
    assert contents(tmp_path / "run") == before


AT_THE_START = """
import os, signal
from torch.utils import tensorboard
init = tensorboard.SummaryWriter.__init__
def signalled(self, *args, **kwargs):
    os.kill(os.getpid(), signal.SIGTERM)
    init(self, *args, **kwargs)
tensorboard.SummaryWriter.__init__ = signalled
"""


def test_a_checkpoint_holds_and_resume_restores_everything(stopped, tmp_path):
    """A run that is resumed and stopped before its first step writes the checkpoint that it read."""
    before = read_checkpoint(stopped("ams_td3"))
    run("ams_td3", *small("ams_td3", "--resume"), cwd=tmp_path, env=hook(tmp_path, AT_THE_START), status=143)
    after = read_checkpoint(tmp_path / "run")
    assert after.pop("wall_seconds") >= before.pop("wall_seconds") > 0
    assert len(after.pop("log_sizes")) == len(before.pop("log_sizes")) + 1
    for checkpoint in (before, after):
        for name in ("run_dir", "resume", "overwrite", "keep_checkpoint"):
            del checkpoint["args"][name]
    assert before["updates"] == 150 and len(before["buffer"]["rows"]) == 600
    assert {"torch_rng", "numpy_rng", "agent", "q_optimizer", "actor_optimizer"} <= {*before}

    def compare(old, new, where):
        assert type(old) is type(new), where
        if isinstance(old, dict):
            assert old.keys() == new.keys(), where
        if isinstance(old, torch.Tensor):
            assert torch.equal(old, new), where
        elif isinstance(old, dict | list):
            for name in old if isinstance(old, dict) else range(max(len(old), len(new))):
                compare(old[name], new[name], f"{where}.{name}")
        else:
            assert old == new or (old != old and new != new), where

    compare(before, after, "checkpoint")


def test_resume_logs_what_an_uninterrupted_run_logs(tmp_path):
    """The first thing logged after the resume, at step 301, follows an update of the critics alone; the actor's loss of
    the update before is in the checkpoint of step 300."""
    args = small("td3", "--log-frequency 7 --keep-checkpoint")
    run("td3", *args, "--total-timesteps 302", cwd=tmp_path)
    (tmp_path / "run" / "result.json").unlink()
    whole = read_scalars(tmp_path / "run")
    run("td3", *args, "--total-timesteps 302 --resume", cwd=tmp_path)
    resumed = read_scalars(tmp_path / "run")
    for tag in SCRIPTS["td3"][1].split():
        assert [step for step, _ in resumed[tag]] == [step for step, _ in whole[tag]] == [*range(154, 302, 7)], tag
        assert resumed[tag][:-1] == whole[tag][:-1], tag
    assert resumed["losses/actor_loss"] == whole["losses/actor_loss"]


def test_overwrite_starts_again(stopped, tmp_path):
    run_dir = stopped("td3")
    (run_dir / "notes.txt").write_text("mine")
    done = run("td3", *small("td3", TINY, "--overwrite --seed 2"), cwd=tmp_path)
    assert "from step 0:" in done.stdout
    check_whole(run_dir, "td3", total=60, log=20, updates=partial(off_policy_updates, warm_up=20))
    assert json.loads((run_dir / "args.json").read_text())["seed"] == 2
    assert not [*run_dir.glob("checkpoint*")] and (run_dir / "notes.txt").read_text() == "mine"


def test_overwrite_killed_at_any_moment_leaves_the_directory_of_an_unfinished_run(tmp_path, monkeypatch):
    module = importlib.import_module("td3")
    names = "args.json result.json td3.pt checkpoint.pt events.out.tfevents.1 evaluations.csv".split()
    unlink = Path.unlink
    for moment in range(len(names)):
        folder = tmp_path / str(moment)
        folder.mkdir()
        for name in names:
            (folder / name).write_text('{"algorithm"')
        calls = iter(range(moment))

        def killed(path, calls=calls, **options):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            unlink(path, **options)

        run = module.Run(module.Args(run_dir=str(folder), overwrite=True), [])
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Path, "unlink", killed)
            run.start(torch.device("cpu"))
        run.lock.close()
        assert len([*folder.iterdir()]) == len(names) + 1 - moment  # and the lock
        assert (folder / "args.json").exists() and (folder / "result.json").exists() == (moment == 0)


# ------------------------------------------------------------------------------------------------------- full disks


def test_a_checkpoint_that_does_not_fit(stopped, tmp_path):
    """A limit on the size of files stands for the full disk: the networks fit, the checkpoint does not."""
    run_dir = stopped("ams_td3")
    networks, whole = (run_dir / "ams_td3.pt").stat().st_size, (run_dir / "checkpoint.pt").stat().st_size
    limit = (networks + whole) // 2
    before = contents(run_dir, "checkpoint*")
    done = run(
        *("ams_td3", *small("ams_td3", "--resume --keep-checkpoint --checkpoint-frequency 40")),
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    warnings = [line for line in done.stdout.splitlines() if line.startswith("warning")]
    assert [f"no checkpoint at step {step}" in line for step, line in zip((320, 360), warnings, strict=True)]
    assert contents(run_dir, "checkpoint*") == before  # nor is anything half written left
    check_whole(run_dir, "ams_td3")


@contextlib.contextmanager
def filled(disk: Path, running: Training):
    """Fills a disk while the process that uses it is stopped."""
    running.suspend()
    with (disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(1 << 12))
    running.process.send_signal(signal.SIGCONT)
    yield
    (disk / "filler").unlink()


def test_a_full_disk(tmp_path):
    """Nothing at all can be written from step 160 on: training goes on to its end, which says in one line that the
    result can't be written. Resumed, it meets a full disk again, until step 300: then all is well but for curves."""
    disk = tmp_path / "run"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("a disk to fill needs the right to mount one")
    try:
        args = small("td3", "--resume --log-frequency 10 --total-timesteps 500")
        with training("td3", *args, cwd=tmp_path) as running:
            running.wait_for("step 150: checkpoint")
            before = contents(disk, "checkpoint*")
            with filled(disk, running):
                output = running.end(1)
                assert contents(disk, "checkpoint*") == before
                done = run("td3", *args, cwd=tmp_path, status=1)
                assert len(done.stderr.splitlines()) == 1, done.stderr
                assert contents(disk, "checkpoint*") == before
        assert "warning: no checkpoint at step 300" in output and "warning: no checkpoint at step 450" in output
        (line,) = [line for line in output.splitlines() if line.startswith("td3.py: error")]
        assert "can't be written" in line
        assert "step 500: evaluation" in output

        with training("td3", *args, cwd=tmp_path) as running:
            running.wait_for("from step 150:")
            running.wait_for_step(160)
            with filled(disk, running):
                running.wait_for("warning: no checkpoint at step 300")
            output = running.end(0)
        assert "step 450: checkpoint" in output
        assert check_result(disk, "td3", total=500) == [0, 150, 300, 450, 500]
        # What was logged on the full disk is lost, and nothing else: TensorBoard reads over the half of a record.
        curves = EventAccumulator(str(disk), size_guidance={"scalars": 0}).Reload()
        for tag in COUNTER_TAGS:
            steps = [point.step for point in curves.Scalars(tag)]
            assert steps == sorted({*steps}) and {*steps} >= {*range(10, 160, 10), *range(400, 501, 10)}, tag
    finally:
        subprocess.run(["umount", disk], check=True)


LOGS_FAIL = """
from torch.utils import tensorboard
def flush(self):
    raise OSError(28, "No space left on device")
tensorboard.SummaryWriter.flush = flush
"""


def test_output_that_can_not_be_written_costs_no_checkpoint_and_no_training(tmp_path):
    """What a run prints may go to a disk that is full, or into a pipe that nobody reads any more; TensorBoard's files
    may have failed in a moment in which the disk was full, while the checkpoint itself fits again."""
    args = small("td3", TINY, "--checkpoint-frequency 40 --keep-checkpoint")
    with open("/dev/full", "w") as full:
        run("td3", *args, cwd=tmp_path, env=hook(tmp_path, LOGS_FAIL), stdout=full)
    check_whole(tmp_path / "run", "td3", total=60, log=20, updates=partial(off_policy_updates, warm_up=20))
    assert read_checkpoint(tmp_path / "run")["global_step"] == 40


# ------------------------------------------------------------------------------------------------------- not finite


REWARDS_BREAK = """
from gymnasium.envs.classic_control.pendulum import PendulumEnv
step, count = PendulumEnv.step, 0
def broken(self, action):
    global count
    count += 1
    obs, reward, terminated, truncated, info = step(self, action)
    return obs, float("nan") if count > 45 else reward, terminated, truncated, info
PendulumEnv.step = broken
"""


def test_a_target_that_is_not_finite_stops_the_run(stopped, tmp_path):
    """Rewards are NaN from step 345 on; what was logged before is in the logs."""
    run_dir = stopped("ams_td3")
    before = contents(run_dir, "checkpoint*")
    args = small("ams_td3", "--resume --log-frequency 20 --total-timesteps 2000 --eval-frequency 5000")
    done = run(
        "ams_td3", *args, "--checkpoint-frequency 5000", cwd=tmp_path, env=hook(tmp_path, REWARDS_BREAK), status=1
    )
    (line,) = done.stderr.splitlines()
    step = int(line.split("step ")[1].split(":")[0])
    assert 345 < step < 2000 and step % 20 == 0
    assert "losses/qf_loss" in line and "not finite" in line
    assert contents(run_dir, "checkpoint*") == before
    scalars = read_scalars(run_dir)
    assert [logged for logged, _ in scalars["losses/qf_loss"] if logged > 300] == [*range(320, step, 20)]
    assert all(math.isfinite(value) for points in scalars.values() for _, value in points)


def test_networks_that_are_not_finite_never_reach_a_checkpoint(tmp_path):
    """With an absurd learning rate, noticed when the next checkpoint is due: the checkpoint of step 100 stays."""
    args = "--learning-rate 1e30 --checkpoint-frequency 100 --log-frequency 1000 --eval-frequency 1000"
    done = run("td3", *small("td3", args), cwd=tmp_path, status=1)
    (line,) = done.stderr.splitlines()
    assert "step 200" in line and "losses/" in line and "not finite" in line
    checkpoint = read_checkpoint(tmp_path / "run")
    assert checkpoint["global_step"] == 100
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint["agent"].values())
    assert [path.name for path in (tmp_path / "run").glob("checkpoint*")] == ["checkpoint.pt"]


# ----------------------------------------------------------------------------------------------------- environments


@pytest.mark.parametrize("script", SCRIPTS)
def test_dm_control_observations_and_rewards_are_the_raw_ones(script, monkeypatch):
    """Against shimmy's, for the dog: its dictionary in the order of observation_spec(), in float32, bit for bit."""
    monkeypatch.setenv("MUJOCO_GL", "disable")
    import gymnasium as gym

    shimmy = pytest.importorskip("shimmy")
    gym.register_envs(shimmy)
    module = importlib.import_module(script)
    ours = module.make_env("dog-run")()
    theirs = gym.make("dm_control/dog-run-v0", disable_env_checker=True)
    names = list(theirs.unwrapped._env.observation_spec())

    def flat(observation):
        return np.concatenate([np.ravel(observation[name]) for name in names]).astype(np.float32)

    assert ours.observation_space.shape == (223,) and ours.observation_space.dtype == np.float32
    for bounds in ("low", "high"):
        np.testing.assert_array_equal(getattr(ours.action_space, bounds), getattr(theirs.action_space, bounds))
    obs, _ = ours.reset(seed=5)
    assert obs.dtype == np.float32
    np.testing.assert_array_equal(obs, flat(theirs.reset(seed=5)[0]))
    first, rng = obs, np.random.default_rng(0)
    for _ in range(20):
        action = rng.uniform(ours.action_space.low, ours.action_space.high).astype(np.float32)
        obs, reward, terminated, truncated, _ = ours.step(action)
        raw, raw_reward, *raw_ends, _ = theirs.step(action)
        np.testing.assert_array_equal(obs, flat(raw))
        assert reward == raw_reward and [terminated, truncated] == raw_ends
    assert not np.array_equal(obs, first)
    again, _ = ours.reset(seed=5)
    other, _ = ours.reset(seed=6)
    np.testing.assert_array_equal(again, first)
    assert not np.array_equal(other, first)


@pytest.mark.parametrize("script", SCRIPTS)
def test_streams_of_seeds_are_apart(script):
    """Each environment, training at different starts, and evaluation: no seed twice, for neighboring --seed values."""
    module = importlib.import_module(script)
    seeds = []
    for seed in (0, 1, 2):
        seeds += module.derive_seeds(seed, module.EVALUATION, count=20)
        for step in (0, 1, 1000):
            seeds += module.derive_seeds(seed, module.TRAINING, step, count=8)
    assert len({*seeds}) == len(seeds) == 3 * (20 + 3 * 8)
    assert module.derive_seeds(1, module.EVALUATION, count=20) == module.derive_seeds(1, module.EVALUATION, count=20)
