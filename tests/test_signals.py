"""Whatever ends a run, nothing is lost and no process is left (which Command.end() looks at): it goes on from its last
whole step, or after a kill -9 from its checkpoint."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from commands import LONG, RUN, SCRIPTS, checkpoint, refused, run, start, start_long, wait_for
from test_run import check_whole

pytestmark = pytest.mark.usefixtures("own_folder")
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]  # as of kill, Ctrl-C and a closed terminal
HANGING = [("HangsInStep", 24), ("HangsInReset", 17), ("HangsInEvaluation", 0)]  # and the steps that are whole
IGNORE_HANGUP = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"


def start_hanging(kind: str, *words):
    """A run that waits for its environment, for ever."""
    command = start("td3", f"--env-id disturbing_envs:{kind}-v0", *words)
    wait_for(Path("hangs").exists)
    return command


def check_resumed(script: str):
    """From the last step that was saved, it goes on to one at which check_whole finds a reading."""
    total = checkpoint()["global_step"] // 10 * 10 + 20
    run(script, f"--total-timesteps {total} --resume")
    check_whole(script, total)


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_saves_and_ends(signum):
    command = start_long("ams_td3").stop(signum)
    step = checkpoint()["global_step"]
    assert f"stopped by {signum.name} at step {step:,}; --resume goes on" in command.stdout
    assert not command.stderr
    check_resumed("ams_td3")


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize(("kind", "whole"), HANGING)
def test_a_signal_ends_a_run_whose_environment_hangs(kind, whole, signum):
    command = start_hanging(kind).stop(signum)
    assert f"stopped by {signum.name} at step {whole}; --resume goes on" in command.stdout
    assert not command.stderr
    assert not whole or checkpoint()["global_step"] == whole
    run("td3", f"--env-id disturbing_envs:{kind}-v0 --resume")
    check_whole("td3")


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("kind", ["HangsInConstructor", "HangsInWorker"])
def test_a_signal_ends_a_run_whose_environment_is_not_made(kind, signum):
    command = start_hanging(kind).stop(signum)
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
    command = start_long("td3", before=IGNORE_HANGUP)
    os.killpg(command.pid, signal.SIGHUP)
    command.stop(signal.SIGTERM)
    assert "stopped by SIGTERM" in command.stdout


@pytest.mark.parametrize("signum", SIGNALS)
def test_signals_are_heard_whatever_an_environment_sets(signum):
    start_long("td3", "--env-id disturbing_envs:TakesSignals-v0").stop(signum)
    assert checkpoint()["global_step"] >= 40


@pytest.mark.parametrize("how", ["--resume", "--overwrite"])
def test_no_other_process_may_enter(how):
    start_long("td3").suspend()
    refused("td3", how, "another process is training there", status=os.EX_TEMPFAIL)


def test_a_killed_worker_ends_the_run_with_a_checkpoint():
    command = start_long("td3", "--checkpoint-frequency 1000000")
    workers = command.suspend()
    workers[0].kill()
    os.kill(command.pid, signal.SIGCONT)
    (line,) = command.end(1).stderr.splitlines()
    assert line.endswith(": a simulation worker died; --resume goes on from the checkpoint")
    assert checkpoint()["global_step"] >= 40
    check_resumed("td3")


def kill_and_resume(script: str, begin: int, *words) -> int:
    """Kills a run at some moment of a step, an evaluation or a checkpoint, once it has gone 50 steps from `begin` on;
    returns the step of its checkpoint."""
    command = start(script, LONG, "--resume", *words)
    command.wait_for(f"step {begin // 10 * 10 + 50:,}: return")
    command.process.kill()
    command.end(-signal.SIGKILL)
    assert f"from step {begin:,} to" in command.stdout
    assert not command.stderr
    return checkpoint()["global_step"] if (RUN / "checkpoint.pt").exists() else 0


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
        assert len(checkpoint()["rb"]["rows"]) == min(1000, 2 * total)
    assert not [*RUN.glob(".*.new")]


def test_a_run_directory_that_is_deleted_ends_the_run():
    """Nothing half-made is left that --resume would refuse."""
    command = start_long("td3")
    command.suspend()
    shutil.rmtree(RUN)
    os.kill(command.pid, signal.SIGCONT)
    (line,) = command.end(1).stderr.splitlines()
    assert "can't be written" in line
    assert not RUN.exists()
    run("td3", "--resume")
    check_whole("td3")
