"""Training as a user sees it: what a run writes, that it repeats, and that nothing is lost when it is interrupted,
killed, starved of disk or fed numbers that are none."""

import importlib
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from commands import (
    SCRIPTS,
    contents,
    error_line,
    read_checkpoint,
    read_evaluations,
    read_json,
    read_scalars,
    run,
    start,
    wait_for_end,
)
from envs import KINDS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

OFF_POLICY = [script for script in SCRIPTS if script != "ppo"]
EVALUATION = {"eval/episodic_return", "eval/episodic_return_std"}
EPISODE = {"charts/episodic_return", "charts/episodic_length"}
COUNTERS = {"charts/SPS", "charts/frames", "charts/updates"}
UPDATE = set(
    """losses/qf1_values losses/qf2_values losses/qf1_loss losses/qf2_loss losses/qf_loss losses/actor_loss
    diagnostics/critic_grad_norm diagnostics/td_target_variance""".split()
)
PPO = set(
    """losses/value_loss losses/policy_loss losses/entropy losses/old_approx_kl losses/approx_kl losses/clipfrac
    losses/explained_variance charts/learning_rate""".split()
)
PATHWAY = {"diagnostics/saturated_actions", "diagnostics/action_gradient"}
NEIGHBORHOOD = {"diagnostics/target_shift", "diagnostics/target_noise"}


def count_updates(script: str, step: int, per_step: int = 1) -> int:
    """Of the small budgets: 20 steps of warm-up; PPO's rollouts have 16 steps, and 2 times 2 minibatches."""
    return 4 * (step // 16) if script == "ppo" else per_step * max(0, step - 20)


def check_whole(run_dir, script: str, total: int = 65, num_envs: int = 2, per_step: int = 1, was: int = 0) -> None:
    """A run's files as one uninterrupted run leaves them (one that was complete at step `was` before): nothing is
    missing, nothing there twice."""
    result, rows, scalars = read_json(run_dir / "result.json"), read_evaluations(run_dir), read_scalars(run_dir)
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

    own = {*UPDATE, *({"losses/alpha", "losses/alpha_loss"} if "sac" in script else {})} if script != "ppo" else PPO
    pathway = set() if script == "ppo" else PATHWAY | (NEIGHBORHOOD if script.startswith("ams") else set())
    assert {*scalars} == EVALUATION | EPISODE | COUNTERS | own | pathway
    steps = {tag: [step for step, _ in points] for tag, points in scalars.items()}
    assert all(steps[tag] == evaluated for tag in EVALUATION) and all(steps[tag] == logged for tag in COUNTERS)
    updated = [step for step in logged if step > 20]
    if script == "ppo":  # at its first reading after a rollout, and after what is left at the end
        updated = sorted({min(step for step in logged if step >= end) for end in [*range(16, total + 1, 16), total]})
    assert all(steps[tag] == updated for tag in own)
    assert all(steps[tag] == [step for step in updated if step % 10 == 0] for tag in pathway)
    assert all(steps[tag] == sorted({*steps[tag]}) and steps[tag][-1] > total - 20 for tag in EPISODE)
    assert all(np.isfinite(value) for points in scalars.values() for _, value in points)
    assert dict(scalars["charts/frames"]) == {step: step * num_envs for step in logged}
    assert dict(scalars["charts/updates"]) == {step: count_updates(script, step, per_step) for step in logged}
    for step, value in scalars["eval/episodic_return"]:
        assert value == pytest.approx(np.mean([row[4] for row in rows if row[0] == step]), rel=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(script): the folder of a complete run that has kept its checkpoint, made once, and not to be changed."""
    folders = {}

    def make(script):
        if script not in folders:
            folder = tmp_path_factory.mktemp(script)
            folders[script] = folder / "run", run(script, "--keep-checkpoint", cwd=folder)
        return folders[script]

    return make


@pytest.fixture
def copied(trained, tmp_path):
    """copied(script): the folder `run` in the test's own folder as `trained` has it."""

    def copy(script, complete=True):
        shutil.copytree(trained(script)[0], tmp_path / "run", dirs_exist_ok=True)
        if not complete:
            (tmp_path / "run" / "result.json").unlink()
        return tmp_path / "run"

    return copy


# ---------------------------------------------------------------------------------------------------- complete runs


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
    assert all(
        f"|{name}|{value}|" in text.tensor_proto.string_val[0].decode() for name, value in result["args"].items()
    )
    # Warm-up and the delayed update of the actor are behind it: everything has moved since it was initialised.
    module = importlib.import_module(script)
    torch.manual_seed(1)
    before = module.Agent(3, 2, module.Args()).state_dict()
    after = read_checkpoint(run_dir, f"{script}.pt")["agent"]
    assert after.keys() == before.keys() and all(torch.isfinite(tensor).all() for tensor in after.values())
    assert not [name for name in after if torch.equal(after[name], before[name])]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_run_repeats_and_is_played_again(script, trained, tmp_path):
    """Whatever is logged and saved meanwhile; without --keep-checkpoint only the networks are left."""
    run_dir, _ = trained(script)
    run(script, "--log-frequency 7 --checkpoint-frequency 13", cwd=tmp_path)
    assert read_evaluations(tmp_path / "run") == read_evaluations(run_dir)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
    first, again = (read_checkpoint(folder, f"{script}.pt")["agent"] for folder in (run_dir, tmp_path / "run"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    before = contents(tmp_path / "run")
    played = run(script, "--evaluate run", cwd=tmp_path).stdout
    episodes = ", ".join(f"{row[4]:.2f} ({row[5]:.0f} steps)" for row in read_evaluations(run_dir)[-3:])
    final = read_json(run_dir / "result.json")["final_evaluation"]
    assert f"mean {final['mean']:.2f}, std {final['std']:.2f} over 3 episodes: {episodes}\n" in played
    assert contents(tmp_path / "run") == before
    (tmp_path / "run" / f"{script}.pt").unlink()
    shutil.copy(run_dir / "checkpoint.pt", tmp_path / "run")  # of a run that is not complete, the checkpoint is played
    assert played.split("mean")[1] == run(script, "--evaluate run", cwd=tmp_path).stdout.split("mean")[1]


@pytest.mark.parametrize("base", ["td3", "sac"])
def test_ams_without_its_parts_is_the_base_algorithm_to_the_last_bit(base, trained, tmp_path):
    run(f"ams_{base}", "--no-ntd --no-layer-norm --keep-checkpoint", cwd=tmp_path)
    assert read_evaluations(tmp_path / "run") == read_evaluations(trained(base)[0])
    one, other = (read_checkpoint(folder) for folder in (tmp_path / "run", trained(base)[0]))
    assert torch.equal(one["rb"]["rows"], other["rb"]["rows"]) and torch.equal(one["torch_rng"], other["torch_rng"])
    assert all(torch.equal(one["agent"][name], other["agent"][name]) for name in other["agent"])
    assert read_evaluations(trained(f"ams_{base}")[0]) != read_evaluations(trained(base)[0])


SWITCHES = [
    ("ams_td3", "--sampling antithetic --num-neighbors 6 --action-projection normalize --updates-per-step 2", 2, 2),
    ("ams_td3", "--sampling gaussian --num-neighbors 1 --policy-frequency 3 --num-envs 3 --track", 3, 1),
    ("sac", "--no-autotune --torch-deterministic --updates-per-step 3 --buffer-size 50 --batch-size 1", 2, 3),
]
WANDB = "import json\ndef init(**options): json.dump(options, open('wandb.json', 'w'))"  # in the place of the package


@pytest.mark.parametrize(("script", "switches", "num_envs", "per_step"), SWITCHES)
def test_switches(script, switches, num_envs, per_step, tmp_path):
    (tmp_path / "wandb.py").write_text(WANDB)
    path = f"{tmp_path}:{os.path.dirname(__file__)}"
    run(script, switches, "--keep-checkpoint", cwd=tmp_path, PYTHONPATH=path)
    if script == "ams_td3":
        check_whole(tmp_path / "run", script, num_envs=num_envs, per_step=per_step)
    assert read_json(tmp_path / "run" / "result.json")["updates"] == 45 * per_step
    if "--track" in switches:
        told = read_json(tmp_path / "wandb.json")
        assert told["sync_tensorboard"] is True and told["config"]["sampling"] == "gaussian"
    if "--buffer-size" in switches:  # the last 25 steps, oldest first from `position` on
        saved = read_checkpoint(tmp_path / "run")["rb"]
        rows = saved["rows"].roll(-saved["position"], dims=0)
        goes_on = (rows[:-2, 3:6] == rows[2:, :3]).all(dim=1)
        assert len(rows) == 50 and torch.equal(goes_on, rows[2:, 1] > 0) and goes_on.sum() > 20


# ------------------------------------------------------------------------------------------------- what is stored


@pytest.mark.parametrize("script", OFF_POLICY)
def test_stored_transitions_are_those_of_the_environments(script, trained):
    """At every kind of end, also of episodes of one step; and none crosses the evaluations of steps 30 and 60. The
    environment changes its array in place."""
    rows = read_checkpoint(trained(script)[0])["rb"]["rows"]
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
    logged = read_scalars(trained(script)[0])  # the means over the episodes that ended in a step
    lengths = {
        i // 2 + 1: length[i - i % 2 : i - i % 2 + 2][over[i - i % 2 : i - i % 2 + 2]]
        for i in over.nonzero()[:, 0].tolist()
    }
    assert dict(logged["charts/episodic_length"]) == {step: value.float().mean() for step, value in lengths.items()}


def test_ppos_rollout_ends_at_an_evaluation(tmp_path):
    """The run fails in the middle of a rollout and of the second episode after the evaluation, and so saves both."""
    words = "--env-id envs:NanReward-v0 --num-steps 64 --eval-frequency 17 --eval-episodes 2"
    error_line("ppo", run("ppo", words, cwd=tmp_path, status=1), "step 24: environment", "the reward is nan")
    rollout = read_checkpoint(tmp_path / "run")["rollout"]
    ends = rollout["dones"][:, 0].bool()
    assert len(ends) == 24 and ends.nonzero()[:, 0].tolist() == [8, 16], "the second episode is cut after 8 steps of 9"
    assert not rollout["terminations"].any()
    goes_on = (rollout["next_observations"][:-1] == rollout["observations"][1:]).all(dim=2)[:, 0]
    assert torch.equal(goes_on, ~ends[:-1])


# ----------------------------------------------------------------------------------------------- kills and signals


@pytest.mark.parametrize("script", SCRIPTS)
def test_kill_9_and_resume(script, tmp_path):
    """Twice, at some moment of a step, an evaluation or a checkpoint; no worker is left, and the run goes on from the
    checkpoint as if nothing had happened."""
    script_args = "--no-anneal-lr" if script == "ppo" else ""  # whose --total-timesteps is no part of the step size
    resumed = 0
    for moment in (50, 90):
        command = start(script, script_args, "--total-timesteps 1000000 --resume", cwd=tmp_path)
        command.wait_for(f"step {moment}: return")
        workers = command.workers()
        command.process.kill()
        command.end(-signal.SIGKILL)
        assert f"run: from step {resumed}," in command.stdout and len(workers) == 2 and not command.stderr
        wait_for_end(workers)
        resumed = read_checkpoint(tmp_path / "run")["global_step"]
        assert resumed >= moment - 10
    total = (resumed // 16 + 3) * 16
    command = run(script, script_args, f"--total-timesteps {total} --resume --keep-checkpoint", cwd=tmp_path)
    assert f"run: from step {resumed}," in command.stdout
    check_whole(tmp_path / "run", script, total)
    checkpoint = read_checkpoint(tmp_path / "run")
    if script != "ppo":
        assert len(checkpoint["rb"]["rows"]) == min(1000, 2 * total)
    assert not [*(tmp_path / "run").glob("*.new")]


def test_signals_save_while_no_other_process_may_enter(tmp_path):
    """SIGTERM to the process, then Ctrl-C, which a terminal sends to the workers too."""
    for signum, step in ((signal.SIGTERM, 40), (signal.SIGINT, 80)):
        command = start("ams_td3", "--total-timesteps 1000000 --resume", cwd=tmp_path)
        command.wait_for(f"step {step}: return")
        workers = command.workers()
        os.kill(command.pid, signal.SIGSTOP)
        before = contents(tmp_path / "run")
        for how in ("--resume", "--overwrite"):
            second = run("ams_td3", "--total-timesteps 1000000", how, cwd=tmp_path, status=75)
            error_line("ams_td3", second, "run", "another process is training there")
        assert contents(tmp_path / "run") == before
        os.kill(command.pid, signum) if signum == signal.SIGTERM else os.killpg(command.pid, signum)
        os.kill(command.pid, signal.SIGCONT)
        command.end(128 + signum)
        assert not command.stderr
        saved = read_checkpoint(tmp_path / "run")["global_step"]
        name = signal.Signals(signum).name
        assert f"stopped by {name} at step {saved}; --resume goes on" in command.stdout and saved >= step
        wait_for_end(workers)
    total = saved // 10 * 10 + 20
    run("ams_td3", f"--total-timesteps {total} --resume", cwd=tmp_path)
    check_whole(tmp_path / "run", "ams_td3", total)


def test_a_killed_worker_ends_the_run_with_a_checkpoint(tmp_path):
    command = start("td3", "--total-timesteps 1000000 --checkpoint-frequency 1000000", cwd=tmp_path)
    command.wait_for("step 40: return")
    workers = command.workers()
    os.kill(command.pid, signal.SIGSTOP)
    workers[0].kill()
    os.kill(command.pid, signal.SIGCONT)
    command.end(1)
    error_line("td3", command, "a simulation worker died; --resume goes on from the checkpoint")
    wait_for_end(workers)
    saved = read_checkpoint(tmp_path / "run")["global_step"]
    assert saved >= 40
    run("td3", f"--total-timesteps {saved // 10 * 10 + 20} --resume", cwd=tmp_path)
    check_whole(tmp_path / "run", "td3", saved // 10 * 10 + 20)


# --------------------------------------------------------------------------------- complete, longer, again, another


@pytest.mark.parametrize("script", ["ams_sac", "ppo"])
@pytest.mark.parametrize("complete", [True, False])
def test_resume_takes_the_same_arguments_only(script, complete, copied, tmp_path):
    run_dir = copied(script, complete)
    before = contents(run_dir)
    changed = "--resume --gamma 0.9 --num-envs 3 --log-frequency 20 --eval-frequency 40"
    line = error_line(
        script, run(script, changed, cwd=tmp_path, status=2), "--gamma 0.99, not 0.9", "--num-envs 2, not 3"
    )
    assert not any(word in line for word in ("frequency", "batch-size", "timesteps"))
    other = {"ams_sac": "sac", "ppo": "td3"}[script]
    error_line(other, run(other, "--resume --exp-name", script, cwd=tmp_path, status=2), f"{script}, not {other}")
    longer = run(script, "--resume --total-timesteps 80 --seed 2", cwd=tmp_path, status=2)
    assert ("--total-timesteps 65, not 80" in error_line(script, longer, "--seed 1, not 2")) == (script == "ppo")
    assert contents(run_dir) == before


def test_a_complete_run_is_complete_or_made_longer(copied, tmp_path):
    run_dir = copied("sac")
    before = contents(run_dir)
    assert run("sac", "--resume", cwd=tmp_path).stdout == "run is complete\n" and contents(run_dir) == before
    error_line("sac", run("sac", cwd=tmp_path, status=2), "run exists", "--resume", "--overwrite", "--run-dir")
    assert contents(run_dir) == before
    run("sac", "--resume --total-timesteps 80", cwd=tmp_path)
    check_whole(run_dir, "sac", 80, was=65)
    before = contents(run_dir)
    error_line(
        "sac", run("sac", "--resume --total-timesteps 90", cwd=tmp_path, status=2), "step 80", "--keep-checkpoint"
    )
    assert contents(run_dir) == before


def test_overwrite_deletes_a_run_when_nothing_can_be_wrong_any_more(copied, tmp_path):
    run_dir = copied("td3")
    (run_dir / "notes.txt").write_text("mine")
    before = contents(run_dir)
    for wrong in ("--gamma 2", "--env-id envs:None-v0", "--env-id envs:Huge-v0", "--buffer-size 1000000000000"):
        error_line("td3", run("td3", "--overwrite", wrong, cwd=tmp_path, status=2))
        assert contents(run_dir) == before, wrong
    run("td3", "--overwrite --seed 2", cwd=tmp_path)
    check_whole(run_dir, "td3")
    after = contents(run_dir)
    assert after["notes.txt"] == b"mine" and "checkpoint.pt" not in after and after["td3.pt"] != before["td3.pt"]
    other = tmp_path / "other"
    other.mkdir()
    (other / "td3.pt").write_text("precious")
    for how in ("", "--resume", "--overwrite"):
        error_line(
            "td3", run("td3", "--run-dir other", how, cwd=tmp_path, status=2), "neither a run directory nor empty"
        )
    assert (other / "td3.pt").read_text() == "precious"


# ---------------------------------------------------------------------------------------------- disks and numbers


@pytest.mark.parametrize("how", ["cut", "empty", "foreign", "other"])
def test_a_checkpoint_that_is_none(how, copied, trained, tmp_path):
    run_dir = copied("td3", complete=False)
    data = (run_dir / "checkpoint.pt").read_bytes()
    content = {"cut": data[: len(data) // 2], "empty": b"", "foreign": b"not a checkpoint"}
    content["other"] = (trained("sac")[0] / "checkpoint.pt").read_bytes()
    (run_dir / "checkpoint.pt").write_bytes(content[how])
    before, words = contents(run_dir), "written by sac.py" if how == "other" else "damaged"
    error_line("td3", run("td3", "--resume", cwd=tmp_path, status=2), "run/checkpoint.pt", words)
    error_line("td3", run("td3", "--evaluate run/checkpoint.pt", cwd=tmp_path, status=2), "run/checkpoint.pt", words)
    assert contents(run_dir) == before


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    """A limit on the size of files stands for it: checkpoints grow with the replay buffer."""
    run("td3", "--total-timesteps 20 --keep-checkpoint --learning-starts 15", cwd=tmp_path)
    size = (tmp_path / "run" / "checkpoint.pt").stat().st_size
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
    words = "--resume --learning-starts 15 --total-timesteps 60 --checkpoint-frequency 15 --keep-checkpoint"
    command = run("td3", words, cwd=tmp_path, before=limit)
    assert command.stdout.count("warning: run/checkpoint.pt can't be written, the one before is kept") == 3
    assert read_checkpoint(tmp_path / "run")["global_step"] == 20 and not [*(tmp_path / "run").glob("*.new")]
    assert read_json(tmp_path / "run" / "result.json")["global_step"] == 60


def test_a_full_disk_for_output_and_logs_stops_nothing(tmp_path):
    full = "from torch.utils.tensorboard import SummaryWriter\ndef flush(self): raise OSError(28, 'No space left')\n"
    run("td3", cwd=tmp_path, stdout="/dev/full", before=full + "SummaryWriter.flush = flush")
    assert read_json(tmp_path / "run" / "result.json")["global_step"] == 65


@pytest.mark.parametrize(
    ("script", "rate"), [("td3", "--learning-rate"), ("sac", "--q-lr"), ("ppo", "--learning-rate")]
)
def test_what_is_not_finite_stops_the_run_and_reaches_no_checkpoint(script, rate, tmp_path):
    """An absurd step size, noticed when the next checkpoint is due: the one of the step before learning stays."""
    words = "--learning-starts 15 --env-id envs:Deaf-v0" if script != "ppo" else "--num-steps 20 --env-id envs:Deaf-v0"
    command = run(script, rate, "1e18 --checkpoint-frequency 15 --log-frequency 1000", words, cwd=tmp_path, status=1)
    error_line(script, command, "step 30: ", "losses/", "not finite")
    checkpoint = read_checkpoint(tmp_path / "run")
    assert checkpoint["global_step"] == 15 and all(t.isfinite().all() for t in checkpoint["agent"].values())
    assert not (tmp_path / "run" / "result.json").exists()


# ------------------------------------------------------------------------------------------------------------ video


@pytest.mark.parametrize(("env_id", "size"), [("envs:Drawn-v0", (64, 96)), ("InvertedPendulum-v5", (480, 480))])
def test_a_video_of_the_first_episode(env_id, size, tmp_path):
    """30 frames a second if the task does not say; where OpenGL fails, and only there, EGL is advised."""
    import imageio.v3 as imageio

    run("td3", "--total-timesteps 1 --eval-episodes 1 --env-id", env_id, cwd=tmp_path)
    length, play = int(read_evaluations(tmp_path / "run")[-1][5]), "--eval-episodes 1 --capture-video --evaluate run"
    if "Pendulum" in env_id:  # in an empty folder there is no vendor's EGL to be found
        broken = run("td3", play, cwd=tmp_path, __EGL_VENDOR_LIBRARY_DIRS=str(tmp_path), status=1)
        assert "apt install" in error_line("td3", broken, "no video") and not [*(tmp_path / "run").glob("*.mp4")]
    run("td3", play, cwd=tmp_path)
    (video,) = (tmp_path / "run").glob("*.mp4")
    frames = np.stack([*imageio.imiter(video, plugin="FFMPEG")])
    assert frames.shape[1:] == (*size, 3) and len(frames) == length + 1
    assert np.abs(frames[0].astype(float) - frames[-1]).mean() > 0.1, "it moves"
    assert imageio.immeta(video, plugin="FFMPEG")["fps"] == (30 if "Drawn" in env_id else 25)


def test_a_task_that_cannot_draw_and_a_users_own_choice_of_opengl(tmp_path):
    run("td3", "--total-timesteps 1 --env-id envs:Drawn-v0", cwd=tmp_path, MUJOCO_GL="osmesa")
    assert (tmp_path / "MUJOCO_GL").read_text() == "osmesa"
    run("td3", "--total-timesteps 1 --env-id envs:Walk-v0 --overwrite", cwd=tmp_path)
    command = run("td3", "--capture-video --evaluate run", cwd=tmp_path, status=1)
    assert "apt" not in error_line("td3", command, "no video", "does not draw")
