"""Whatever ends a run, nothing is lost and no process is left (which Command.end() looks at): it goes on from its last
whole step, or after a kill -9 from its checkpoint."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from commands import RUN, SCRIPTS, checkpoint, contents, fails, run, start, wait_for
from test_run import check_whole

pytestmark = pytest.mark.usefixtures("own_folder")
LONG = "--total-timesteps 1000000"
SIGNALS = [
    (signal.SIGTERM, os.kill),
    (signal.SIGINT, os.killpg),  # Ctrl-C: a terminal sends it to the workers too
    (signal.SIGHUP, os.killpg),  # and this, when it is closed
]
HANGING = [("HangsInStep", 24), ("HangsInReset", 17), ("HangsInEvaluation", 0)]  # and the steps that are whole
IGNORE_HANGUP = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"


def start_hanging(kind: str, *words):
    """A run that waits for its environment, for ever."""
    command = start("td3", f"--env-id disturbing_envs:{kind}-v0", *words)
    wait_for(Path("hangs").exists)
    return command


def after(step: int) -> int:
    """A number of steps to go on to, at which check_whole finds a reading."""
    return step // 10 * 10 + 20


@pytest.mark.parametrize(("signum", "send"), SIGNALS)
def test_a_signal_saves_and_ends(signum, send):
    command = start("ams_td3", LONG)
    command.wait_for("step 40: return")
    send(command.pid, signum)
    command.end(128 + signum)
    saved = checkpoint(RUN)["global_step"]
    assert f"stopped by {signum.name} at step {saved:,}; --resume goes on" in command.stdout
    assert not command.stderr
    run("ams_td3", f"--total-timesteps {after(saved)} --resume")
    check_whole("ams_td3", after(saved))


@pytest.mark.parametrize(("signum", "send"), SIGNALS)
@pytest.mark.parametrize(("kind", "whole"), HANGING)
def test_a_signal_ends_a_run_whose_environment_hangs(kind, whole, signum, send):
    command = start_hanging(kind)
    send(command.pid, signum)
    command.end(128 + signum)
    assert f"stopped by {signum.name} at step {whole}; --resume goes on" in command.stdout
    assert not command.stderr
    assert not whole or checkpoint(RUN)["global_step"] == whole
    run("td3", f"--env-id disturbing_envs:{kind}-v0 --resume")
    check_whole("td3")


@pytest.mark.parametrize(("signum", "send"), SIGNALS)
@pytest.mark.parametrize("kind", ["HangsInConstructor", "HangsInWorker"])
def test_a_signal_ends_a_run_whose_environment_is_not_made(kind, signum, send):
    command = start_hanging(kind)
    send(command.pid, signum)
    command.end(128 + signum)
    assert command.stderr == f"td3.py: error: stopped by {signum.name} before the first step\n"
    assert not [*Path().glob("run/[!.]*")]


def test_a_second_ctrl_c_ends_at_once():
    """It does not wait for the environment, and saves nothing."""
    command = start_hanging("HangsInStep", "--checkpoint-frequency 1000")

    def interrupt():
        if command.process.is_alive():
            os.killpg(command.pid, signal.SIGINT)
        return not command.process.is_alive()

    wait_for(interrupt)
    command.end(128 + signal.SIGINT)
    assert not (RUN / "checkpoint.pt").exists()


def test_a_hangup_that_is_ignored_stays_ignored():
    """As under nohup."""
    command = start("td3", LONG, before=IGNORE_HANGUP)
    command.wait_for("step 20: return")
    os.killpg(command.pid, signal.SIGHUP)
    os.kill(command.pid, signal.SIGTERM)
    command.end(128 + signal.SIGTERM)
    assert "stopped by SIGTERM" in command.stdout


@pytest.mark.parametrize(("signum", "send"), SIGNALS)
def test_signals_are_heard_whatever_an_environment_sets(signum, send):
    command = start("td3", LONG, "--env-id disturbing_envs:TakesSignals-v0")
    command.wait_for("step 20: return")
    send(command.pid, signum)
    command.end(128 + signum)
    assert checkpoint(RUN)["global_step"] >= 20


def test_what_an_environment_forgets_to_end_ends_with_the_run():
    run("td3", "--env-id disturbing_envs:LeavesProcess-v0")


def test_no_other_process_may_enter():
    command = start("td3", LONG)
    command.wait_for("step 20: return")
    command.suspend()
    before = contents(RUN)
    for how in ("--resume", "--overwrite"):
        fails("td3", f"{LONG} {how}", "another process is training there", status=os.EX_TEMPFAIL)
    assert contents(RUN) == before


def test_a_killed_worker_ends_the_run_with_a_checkpoint():
    command = start("td3", LONG, "--checkpoint-frequency 1000000")
    command.wait_for("step 40: return")
    workers = command.suspend()
    workers[0].kill()
    os.kill(command.pid, signal.SIGCONT)
    (line,) = command.end(1).stderr.splitlines()
    assert line.endswith(": a simulation worker died; --resume goes on from the checkpoint")
    saved = checkpoint(RUN)["global_step"]
    assert saved >= 40
    run("td3", f"--total-timesteps {after(saved)} --resume")
    check_whole("td3", after(saved))


def kill_and_resume(script: str, begin: int, *words) -> int:
    """Kills a run at some moment of a step, an evaluation or a checkpoint, once it has gone 50 steps from `begin` on;
    returns the step of its checkpoint."""
    command = start(script, LONG, "--resume", *words)
    command.wait_for(f"step {begin // 10 * 10 + 50:,}: return")
    command.process.kill()
    command.end(-signal.SIGKILL)
    assert f"from step {begin:,} to" in command.stdout
    assert not command.stderr
    return checkpoint(RUN)["global_step"] if (RUN / "checkpoint.pt").exists() else 0


@pytest.mark.parametrize("script", SCRIPTS)
def test_kill_9_and_resume(script):
    """Before the first checkpoint, then twice: the run goes on from the checkpoint as if nothing had happened."""
    anneal = "--no-anneal-lr" if script == "ppo" else ""  # else the budget is part of the step size
    nothing = kill_and_resume(script, 0, anneal, "--checkpoint-frequency 1000000")
    first = kill_and_resume(script, nothing, anneal)
    second = kill_and_resume(script, first, anneal)
    assert nothing == 0
    assert 0 < first < second
    total = (second // 16 + 3) * 16
    run(script, anneal, f"--total-timesteps {total} --resume --keep-checkpoint")
    check_whole(script, total)
    if script != "ppo":
        assert len(checkpoint(RUN)["rb"]["rows"]) == min(1000, 2 * total)
    assert not [*RUN.glob(".*.new")]


def test_a_run_directory_that_is_deleted_ends_the_run():
    """Nothing half-made is left that --resume would refuse."""
    command = start("td3", LONG)
    command.wait_for("step 20: return")
    command.suspend()
    shutil.rmtree(RUN)
    os.kill(command.pid, signal.SIGCONT)
    (line,) = command.end(1).stderr.splitlines()
    assert "can't be written" in line
    assert not RUN.exists()
    run("td3", "--resume")
    check_whole("td3")
