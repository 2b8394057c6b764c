"""Training as a user sees it: what a run writes, that it repeats, and that nothing is lost when it is interrupted,
killed, starved of disk or fed numbers that are none."""

import functools
import importlib
import os
import shutil
import signal
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
from commands import RUN, SCRIPTS, checkpoint, contents, evaluations, fails, read_json, run, scalars, start
from envs import KINDS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

pytestmark = pytest.mark.usefixtures("own_folder")
OFF_POLICY = [script for script in SCRIPTS if script != "ppo"]
EVALUATION = {"eval/episodic_return", "eval/episodic_return_std"}
EPISODE = {"charts/episodic_return", "charts/episodic_length"}
COUNTERS = {"charts/SPS", "charts/frames", "charts/updates"}
PATHWAY = {"diagnostics/saturated_actions", "diagnostics/action_gradient"}
NEIGHBORHOOD = {"diagnostics/target_shift", "diagnostics/target_noise"}
UPDATE = """losses/qf1_values losses/qf2_values losses/qf1_loss losses/qf2_loss losses/qf_loss losses/actor_loss
    diagnostics/critic_grad_norm diagnostics/td_target_variance"""
UPDATES = {
    "td3": UPDATE,
    "sac": UPDATE + " losses/alpha losses/alpha_loss",
    "ppo": """losses/value_loss losses/policy_loss losses/entropy losses/old_approx_kl losses/approx_kl losses/clipfrac
    losses/explained_variance charts/learning_rate""",
}


def count_updates(script: str, step: int, per_step: int = 1) -> int:
    """Of the small budgets: 20 steps of warm-up; PPO's rollouts have 16 steps, and 2 times 2 minibatches."""
    return 4 * (step // 16) if script == "ppo" else per_step * max(0, step - 20)


def check_whole(run_dir, script: str, total: int = 65, num_envs: int = 2, per_step: int = 1, was: int = 0) -> None:
    """A run's files as one uninterrupted run leaves them (one that was complete at step `was` before): nothing is
    missing, nothing there twice."""
    result, rows, logs = read_json(run_dir / "result.json"), evaluations(run_dir), scalars(run_dir)
    assert [result[name] for name in ("algorithm", "global_step", "frames")] == [script, total, total * num_envs]
    assert result["updates"] == count_updates(script, total, per_step)
    evaluated = sorted({*range(0, total, 30), total, was})
    logged = sorted({*range(10, total + 1, 10), total, was} - {0})
    assert [row[:4] for row in rows] == [
        [step, step * num_envs, count_updates(script, step, per_step), i] for step in evaluated for i in range(3)
    ]
    last = [row[4] for row in rows[-3:]]
    mean, std = np.mean(last), np.std(last)
    assert result["final_evaluation"] == {"mean": pytest.approx(mean), "std": pytest.approx(std), "returns": last}

    own = {*UPDATES[script.removeprefix("ams_")].split()}
    pathway = set() if script == "ppo" else PATHWAY | (NEIGHBORHOOD if script.startswith("ams") else set())
    assert {*logs} == EVALUATION | EPISODE | COUNTERS | own | pathway
    steps = {tag: [step for step, _ in points] for tag, points in logs.items()}
    assert all(steps[tag] == evaluated for tag in EVALUATION) and all(steps[tag] == logged for tag in COUNTERS)
    updated = [step for step in logged if step > 20]
    if script == "ppo":  # at its first reading after a rollout, and after what is left at the end
        updated = sorted({min(step for step in logged if step >= end) for end in [*range(16, total + 1, 16), total]})
    assert all(steps[tag] == updated for tag in own)
    assert all(steps[tag] == [step for step in updated if step % 10 == 0] for tag in pathway)
    assert all(steps[tag] == sorted({*steps[tag]}) and steps[tag][-1] > total - 20 for tag in EPISODE)
    assert all(np.isfinite(value) for points in logs.values() for _, value in points)
    assert dict(logs["charts/frames"]) == {step: step * num_envs for step in logged}
    assert dict(logs["charts/updates"]) == {step: count_updates(script, step, per_step) for step in logged}
    for step, value in logs["eval/episodic_return"]:
        assert value == pytest.approx(np.mean([row[4] for row in rows if row[0] == step]), rel=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(script): the folder of a complete run that has kept its checkpoint, made once, and not to be changed."""

    @functools.cache
    def make(script):
        folder = tmp_path_factory.mktemp(script)
        return folder / "run", run(script, "--keep-checkpoint", cwd=folder)

    return make


@pytest.fixture
def copied(trained, own_folder):
    """copied(script) makes RUN what `trained` has, or what it was before it was complete."""

    def copy(script, complete=True):
        shutil.copytree(trained(script)[0], RUN, dirs_exist_ok=True)
        complete or (RUN / "result.json").unlink()

    return copy


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_is_complete(script, trained):
    run_dir, command = trained(script)
    check_whole(run_dir, script)
    names = {path.name for path in run_dir.iterdir() if not path.name.startswith("events.out.tfevents.")}
    assert names == {".lock", "args.json", "checkpoint.pt", f"{script}.pt", "evaluations.csv", "result.json"}
    assert not command.stderr and "nan" not in command.stdout
    for line in ("run: from step 0, on cpu", "step 65: return", "step 65: evaluation", "complete: run, evaluation"):
        assert line in command.stdout
    args, result = read_json(run_dir / "args.json"), read_json(run_dir / "result.json")
    assert args == {"algorithm": script, **result["args"]} and args["eval_episodes"] == 3
    assert [result[name] for name in ("exp_name", "env_id", "seed")] == [script, "envs:Ends-v0", 1]
    assert {"python", "torch", "numpy", "gymnasium", "mujoco", "dm_control"} <= {*result["versions"]}
    assert result["wall_seconds"] > 0 and result["sps"] > 0 and result["device"].startswith("cpu")
    events = EventAccumulator(str(run_dir)).Reload()
    (text,) = events.Tensors("hyperparameters/text_summary")
    table = text.tensor_proto.string_val[0].decode()
    assert all(f"|{name}|{value}|" in table for name, value in result["args"].items())
    # Warm-up and the delayed update of the actor are behind it: everything has moved since it was initialised.
    module = importlib.import_module(script)
    torch.manual_seed(1)
    before = module.Agent(3, 2, module.Args()).state_dict()
    after = checkpoint(run_dir, f"{script}.pt")["agent"]
    assert after.keys() == before.keys() and all(torch.isfinite(tensor).all() for tensor in after.values())
    assert not [name for name in after if torch.equal(after[name], before[name])]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_repeats_and_is_played_again(script, trained):
    """Whatever is logged and saved meanwhile; without --keep-checkpoint only the networks are left."""
    run_dir, _ = trained(script)
    run(script, "--log-frequency 7 --checkpoint-frequency 13")
    assert evaluations(RUN) == evaluations(run_dir)
    assert not (RUN / "checkpoint.pt").exists()
    first, again = (checkpoint(folder, f"{script}.pt")["agent"] for folder in (run_dir, RUN))
    assert all(torch.equal(first[name], again[name]) for name in first)
    before = contents(RUN)
    played = run(script, "--evaluate run").stdout
    episodes = ", ".join(f"{row[4]:.2f} ({row[5]:.0f} steps)" for row in evaluations(run_dir)[-3:])
    final = read_json(run_dir / "result.json")["final_evaluation"]
    assert f"mean {final['mean']:.2f}, std {final['std']:.2f} over 3 episodes: {episodes}\n" in played
    assert contents(RUN) == before
    (RUN / f"{script}.pt").unlink()
    shutil.copy(run_dir / "checkpoint.pt", RUN)  # of a run that is not complete, the checkpoint is played
    assert played.split("mean")[1] == run(script, "--evaluate run").stdout.split("mean")[1]


SWITCHES = [
    ("ams_td3", "--sampling antithetic --num-neighbors 6 --action-projection normalize --updates-per-step 2", 2, 2),
    ("ams_td3", "--sampling gaussian --num-neighbors 1 --policy-frequency 3 --num-envs 3 --track", 3, 1),
    ("sac", "--no-autotune --alpha 0 --torch-deterministic --updates-per-step 3 --buffer-size 50 --batch-size 1", 2, 3),
]
WANDB = "import json\ndef init(**options): json.dump(options, open('wandb.json', 'w'))"  # in the place of the package


@pytest.mark.parametrize(("script", "switches", "num_envs", "per_step"), SWITCHES)
def test_switches(script, switches, num_envs, per_step):
    Path("wandb.py").write_text(WANDB)
    run(script, switches, "--keep-checkpoint", PYTHONPATH=f"{Path.cwd()}:{os.path.dirname(__file__)}")
    if script == "ams_td3":
        check_whole(RUN, script, num_envs=num_envs, per_step=per_step)
    assert read_json(RUN / "result.json")["updates"] == 45 * per_step
    if "--track" in switches:
        assert {"sync_tensorboard": True, "resume": "allow"}.items() <= read_json(Path("wandb.json")).items()
    if "--buffer-size" in switches:  # the last 25 steps, oldest first from `position` on
        saved = checkpoint(RUN)["rb"]
        rows = saved["rows"].roll(-saved["position"], dims=0)
        goes_on = (rows[:-2, 3:6] == rows[2:, :3]).all(dim=1)
        assert len(rows) == 50 and torch.equal(goes_on, rows[2:, 1] > 0) and goes_on.sum() > 20


@pytest.mark.parametrize("script", OFF_POLICY)
def test_stored_transitions_are_those_of_the_environments(script, trained):
    """At every kind of end, also of episodes of one step; and none crosses the evaluations of steps 30 and 60. The
    environment changes its array in place."""
    rows = checkpoint(trained(script)[0])["rb"]["rows"]
    assert rows.shape == (130, 3 + 3 + 2 + 2)
    observations, next_observations, actions, rewards, terminations = rows.split([3, 3, 2, 1, 1], dim=1)
    assert torch.equal(next_observations - observations, torch.tensor([[0.0, 1, 0]]).expand(130, 3))
    torch.testing.assert_close(rewards[:, 0], observations[:, 0] + actions.mean(dim=1))
    length, terminated, _ = torch.tensor(KINDS)[observations[:, 2].long()].T
    over = next_observations[:, 1] == length
    assert torch.equal(terminations[:, 0] > 0, over & (terminated > 0))
    assert {*observations[over, 2].tolist()} == {0, 1, 2, 3}, "each kind has been seen"
    reset = torch.zeros(64, 2, dtype=bool)
    reset[[29, 59]] = True  # the evaluations
    goes_on = (next_observations[:-2] == observations[2:]).all(dim=1)
    assert torch.equal(goes_on, ~(over[:-2] | reset.flatten()))
    assert (observations[2:, 1][~goes_on] == 0).all()
    assert (actions.abs() <= 1).all() and not torch.equal(actions[0], actions[1])
    logged = scalars(trained(script)[0])  # the means over the episodes that ended in a step
    ended, length = over.view(65, 2), length.view(65, 2)
    lengths = {t + 1: length[t, ended[t]].float().mean() for t in range(65) if ended[t].any()}
    assert dict(logged["charts/episodic_length"]) == lengths


def test_ppos_rollout_ends_at_an_evaluation():
    """The run fails in the middle of a rollout and of the second episode after the evaluation, and so saves both."""
    words = "--env-id envs:NanReward-v0 --num-steps 64 --eval-frequency 17 --eval-episodes 2"
    fails("ppo", words, "step 24: environment", "the reward is nan", status=1)
    rollout = checkpoint(RUN)["rollout"]
    ends = rollout["dones"][:, 0].bool()
    assert len(ends) == 24 and ends.nonzero()[:, 0].tolist() == [8, 16], "the second episode is cut after 8 steps of 9"
    assert not rollout["terminations"].any()
    goes_on = (rollout["next_observations"][:-1] == rollout["observations"][1:]).all(dim=2)[:, 0]
    assert torch.equal(goes_on, ~ends[:-1])


@pytest.mark.parametrize("script", SCRIPTS)
def test_kill_9_and_resume(script):
    """Before the first checkpoint, then twice, at some moment of a step, an evaluation or a checkpoint; no worker is
    left, and the run goes on from the checkpoint as if nothing had happened."""
    resumed, script_args = 0, "--no-anneal-lr" if script == "ppo" else ""  # whose budget is no part of the step size
    for frequency in (10**6, 20, 20):
        command = start(script, script_args, f"--total-timesteps 1000000 --checkpoint-frequency {frequency} --resume")
        command.wait_for(f"step {resumed // 10 * 10 + 50:,}: return")
        workers = command.workers()
        command.process.kill()
        command.end(-signal.SIGKILL)
        assert f"run: from step {resumed:,}," in command.stdout and len(workers) == 2 and not command.stderr
        commands.wait_for_end(workers)
        before, resumed = resumed, checkpoint(RUN)["global_step"] if frequency == 20 else 0
        assert resumed > before or frequency != 20
    total = (resumed // 16 + 3) * 16
    command = run(script, script_args, f"--total-timesteps {total} --resume --keep-checkpoint")
    assert f"run: from step {resumed:,}," in command.stdout
    check_whole(RUN, script, total)
    assert script == "ppo" or len(checkpoint(RUN)["rb"]["rows"]) == min(1000, 2 * total)
    assert not [*RUN.glob("*.new")]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(script):
    """Where the episodes that a resume cuts don't matter: each observation is 0, and at step 48 one ends anyway."""
    words = "--env-id envs:Zeros-v0", {"td3": "--policy-frequency 3", "ppo": "--no-anneal-lr"}.get(script, "")
    run(script, *words, "--run-dir whole")
    run(script, *words, "--total-timesteps 48 --keep-checkpoint")
    run(script, *words, "--resume")
    whole, resumed = (checkpoint(Path(folder), f"{script}.pt")["agent"] for folder in ("whole", "run"))
    assert [row for row in evaluations(RUN) if row[0] != 48] == evaluations(Path("whole"))
    # PPO counts the observations of the step that it begins with once more.
    assert not [name for name in whole if not torch.equal(whole[name], resumed[name]) and "count" not in name]


def test_signals_save_while_no_other_process_may_enter():
    """SIGTERM to the process, then Ctrl-C, which a terminal sends to the workers too."""
    saved = 0
    for signum in (signal.SIGTERM, signal.SIGINT):
        command = start("ams_td3", "--total-timesteps 1000000 --resume")
        command.wait_for(f"step {saved // 10 * 10 + 40:,}: return")
        workers = command.suspend()
        before = contents(RUN)
        for how in ("--resume", "--overwrite"):
            fails("ams_td3", f"--total-timesteps 1000000 {how}", "another process is training there", status=75)
        assert contents(RUN) == before
        os.kill(command.pid, signum) if signum == signal.SIGTERM else os.killpg(command.pid, signum)
        os.kill(command.pid, signal.SIGCONT)
        command.end(128 + signum)
        assert not command.stderr
        saved = checkpoint(RUN)["global_step"]
        assert f"stopped by {signal.Signals(signum).name} at step {saved:,}; --resume goes on" in command.stdout
        commands.wait_for_end(workers)
    total = saved // 10 * 10 + 20
    run("ams_td3", f"--total-timesteps {total} --resume")
    check_whole(RUN, "ams_td3", total)


def test_a_killed_worker_ends_the_run_with_a_checkpoint():
    command = start("td3", "--total-timesteps 1000000 --checkpoint-frequency 1000000")
    command.wait_for("step 40: return")
    workers = command.suspend()
    workers[0].kill()
    os.kill(command.pid, signal.SIGCONT)
    (line,) = command.end(1).stderr.splitlines()
    assert line.endswith(": a simulation worker died; --resume goes on from the checkpoint")
    commands.wait_for_end(workers)
    total = checkpoint(RUN)["global_step"] // 10 * 10 + 20
    assert total >= 60
    run("td3", f"--total-timesteps {total} --resume")
    check_whole(RUN, "td3", total)


@pytest.mark.parametrize("script", ["ams_sac", "ppo"])
@pytest.mark.parametrize("complete", [True, False])
def test_resume_takes_the_same_arguments_only(script, complete, copied):
    copied(script, complete)
    before = contents(RUN)
    changed = "--resume --gamma 0.9 --num-envs 3 --log-frequency 20 --eval-frequency 40"
    line = fails(script, changed, "--gamma 0.99, not 0.9", "--num-envs 2, not 3")
    assert not any(word in line for word in ("frequency", "batch-size", "timesteps"))
    other = {"ams_sac": "sac", "ppo": "td3"}[script]
    fails(other, f"--resume --exp-name {script}", f"{script}, not {other}")
    line = fails(script, "--resume --total-timesteps 80 --seed 2", "--seed 1, not 2")
    assert ("--total-timesteps 65, not 80" in line) == (script == "ppo")
    assert contents(RUN) == before


def test_a_complete_run_is_complete_or_made_longer(copied):
    copied("sac")
    before = contents(RUN)
    assert run("sac", "--resume").stdout == "run is complete\n" and contents(RUN) == before
    fails("sac", "", "run exists", "--resume", "--overwrite", "--run-dir")
    assert contents(RUN) == before
    run("sac", "--resume --total-timesteps 80")
    check_whole(RUN, "sac", 80, was=65)
    before = contents(RUN)
    fails("sac", "--resume --total-timesteps 90", "step 80", "--keep-checkpoint")
    assert contents(RUN) == before


def test_overwrite_deletes_a_run_when_nothing_can_be_wrong_any_more(copied):
    copied("td3")
    (RUN / "notes.txt").write_text("mine")
    before = contents(RUN)
    for wrong in ("--gamma 2", "--env-id envs:None-v0", "--env-id envs:Huge-v0", "--buffer-size 1000000000000"):
        fails("td3", f"--overwrite {wrong}")
        assert contents(RUN) == before, wrong
    run("td3", "--overwrite --seed 2")
    check_whole(RUN, "td3")
    after = contents(RUN)
    assert after["notes.txt"] == b"mine" and "checkpoint.pt" not in after and after["td3.pt"] != before["td3.pt"]
    Path("other").mkdir()
    Path("other", "td3.pt").write_text("precious")
    for how in ("", "--resume", "--overwrite"):
        fails("td3", f"--run-dir other {how}", "neither a run directory nor empty")
    assert Path("other", "td3.pt").read_text() == "precious" and len([*Path("other").iterdir()]) == 1


def test_networks_of_another_task_and_a_task_that_is_gone(copied):
    copied("td3", complete=False)
    before, other = contents(RUN), "import envs; envs.Ends.observation_space = envs.Box(-1, 1, (4,))"
    for how in ("--resume", "--evaluate run"):
        fails("td3", how, "of another version", "size mismatch for actor", before=other)
    fails("td3", "--evaluate run", "can't be made", "envs", before="import sys; sys.modules['envs'] = None")
    assert contents(RUN) == before


@pytest.mark.parametrize("how", ["cut", "empty", "foreign", "other", "less"])
def test_a_checkpoint_that_is_none(how, copied, trained):
    copied("td3", complete=False)
    data = (RUN / "checkpoint.pt").read_bytes()
    content = {"cut": data[: len(data) // 2], "empty": b"", "foreign": b"not a checkpoint"}
    torch.save({"algorithm": "td3", "args": {}}, "less")
    content |= {"other": (trained("sac")[0] / "checkpoint.pt").read_bytes(), "less": Path("less").read_bytes()}
    (RUN / "checkpoint.pt").write_bytes(content[how])
    before, words = contents(RUN), {"other": "sac.py wrote it", "less": "KeyError 'agent'"}.get(how, "BadZipFile")
    for how in ("--resume", "--evaluate run/checkpoint.pt"):
        fails("td3", how, "run/checkpoint.pt", words)
    assert contents(RUN) == before


def test_a_full_disk_leaves_the_checkpoint_before():
    """A limit on the size of files stands for it: checkpoints grow with the replay buffer."""
    run("td3", "--total-timesteps 20 --keep-checkpoint --learning-starts 15")
    size = (RUN / "checkpoint.pt").stat().st_size
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
    words = "--resume --learning-starts 15 --total-timesteps 60 --checkpoint-frequency 15 --keep-checkpoint"
    command = run("td3", words, before=limit)
    assert command.stdout.count("warning: run/checkpoint.pt can't be written, the one before is kept") == 3
    assert checkpoint(RUN)["global_step"] == 20 and not [*RUN.glob("*.new")]
    assert read_json(RUN / "result.json")["global_step"] == 60


def test_a_full_disk_for_output_and_logs_stops_nothing():
    """For a while, a limit on the size of files stands for it: from step 20 on there is a new TensorBoard log."""
    run("td3", stdout="/dev/full")
    limit = "import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, -1)); signal.signal("
    limit += "signal.SIGALRM, lambda *_: resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1)))"
    command = start("td3", "--overwrite --total-timesteps 1000000", before=limit)
    command.wait_for("is not in TensorBoard's log: [Errno 27]")
    os.kill(command.pid, signal.SIGALRM)
    command.wait_for("step 500: return")
    os.kill(command.pid, signal.SIGTERM)
    command.end(143)
    assert not command.stderr and scalars(RUN)["charts/SPS"][-1][0] >= 500


@pytest.mark.parametrize("log_frequency", [1, 1000])
@pytest.mark.parametrize(("script", "rate"), [("td3", "learning-rate"), ("sac", "q-lr"), ("ppo", "learning-rate")])
def test_what_is_not_finite_stops_the_run_and_reaches_no_checkpoint(script, rate, log_frequency):
    """An absurd step size, noticed in what is logged, or else before the environments get an action that is none: the
    checkpoint of the step before learning stays."""
    begin = "--num-steps 20" if script == "ppo" else "--learning-starts 15"
    words = f"{begin} --{rate} 1e18 --checkpoint-frequency 15 --log-frequency {log_frequency}"
    names = "s/" if log_frequency == 1 else "the networks are"
    fails(script, words, "step ", names, "not finite; the checkpoint is left as it was", status=1)
    saved = checkpoint(RUN)
    assert saved["global_step"] == 15 and all(tensor.isfinite().all() for tensor in saved["agent"].values())
    assert not (RUN / "result.json").exists()


def test_a_video_of_the_first_episode():
    """30 frames a second if the task does not say."""
    import imageio.v3 as imageio

    command = run("td3", "--total-timesteps 1 --eval-episodes 1 --env-id envs:Drawn-v0")
    assert "warning: nothing is learned in 1 steps: --learning-starts is 20" in command.stdout
    length, play = int(evaluations(RUN)[-1][5]), "--eval-episodes 1 --capture-video --evaluate run"
    run("td3", play)
    (video,) = RUN.glob("*.mp4")
    frames = np.stack([*imageio.imiter(video, plugin="FFMPEG")])
    assert frames.shape[1:] == (64, 96, 3) and len(frames) == length + 1
    assert np.abs(frames[0].astype(float) - frames[-1]).mean() > 0.1, "it moves"
    assert imageio.immeta(video, plugin="FFMPEG")["fps"] == 30


def test_a_task_that_cannot_draw_and_a_users_own_choice_of_opengl():
    run("td3", "--total-timesteps 1 --env-id envs:Drawn-v0", MUJOCO_GL="osmesa")
    assert Path("MUJOCO_GL").read_text() == "osmesa"
    run("td3", "--total-timesteps 1 --env-id envs:Walk-v0 --overwrite")
    assert "apt" not in fails("td3", "--capture-video --evaluate run", "no video", "does not draw", status=1)
