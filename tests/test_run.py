"""Training as a user sees it: what a run writes, that it repeats, and that nothing is lost when it is interrupted,
starved of disk or fed numbers that are none."""

import functools
import importlib
import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from commands import (
    ROOT,
    RUN,
    SCRIPTS,
    Command,
    checkpoint,
    contents,
    evaluations,
    fails,
    networks,
    read_json,
    refused,
    result,
    run,
    scalars,
)
from envs import KINDS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import td3

pytestmark = pytest.mark.usefixtures("own_folder")
WITH_BUFFER = ["ams_td3", "ams_sac", "td3", "sac"]
EVALUATION = {"eval/episodic_return", "eval/episodic_return_std"}
EPISODE = {"charts/episodic_return", "charts/episodic_length"}
COUNTERS = {"charts/SPS", "charts/frames", "charts/updates"}
NEIGHBORHOOD = {"diagnostics/target_shift", "diagnostics/target_noise"}
UPDATE = {
    "losses/qf1_values",
    "losses/qf2_values",
    "losses/qf1_loss",
    "losses/qf2_loss",
    "losses/qf_loss",
    "losses/actor_loss",
    "diagnostics/saturated_actions",
    "diagnostics/action_gradient",
    "diagnostics/critic_grad_norm",
    "diagnostics/td_target_variance",
}
ENTROPY = {"losses/alpha", "losses/alpha_loss"}
PPO = {
    "losses/value_loss",
    "losses/policy_loss",
    "losses/entropy",
    "losses/old_approx_kl",
    "losses/approx_kl",
    "losses/clipfrac",
    "losses/explained_variance",
    "charts/learning_rate",
}
READINGS = {
    "td3": UPDATE,
    "sac": UPDATE | ENTROPY,
    "ams_td3": UPDATE | NEIGHBORHOOD,
    "ams_sac": UPDATE | ENTROPY | NEIGHBORHOOD,
    "ppo": PPO,
}


# ------------------------------------------------------------------------------------------------ what a run writes


def count_updates(script: str, step: int, per_step: int = 1) -> int:
    """Of the small budgets: 20 steps of warm-up; PPO's rollouts have 16 steps, and 2 times 2 minibatches."""
    if script == "ppo":
        return 4 * (step // 16)
    return per_step * max(0, step - 20)


def updated_readings(script: str, total: int, logged: list[int]) -> list[int]:
    """The readings that have losses; PPO's are the first after a rollout, and after what is left at the end."""
    if script != "ppo":
        return [step for step in logged if step > 20]
    rollouts = [*range(16, total + 1, 16), total]
    return sorted({min(step for step in logged if step >= end) for end in rollouts})


def check_whole(script, total=65, num_envs=2, per_step=1, was=0, run_dir=RUN):
    """A run's files as one uninterrupted run leaves them (one that was complete at step `was` before): nothing is
    missing, nothing there twice."""
    evaluated = sorted({*range(0, total, 30), total, was})
    logged = sorted({*range(10, total + 1, 10), total, was} - {0})

    def updates(step):
        return count_updates(script, step, per_step)

    check_result(run_dir, [script, total, total * num_envs, updates(total)])
    rows = evaluations(run_dir)
    assert [row[:4] for row in rows] == [
        [step, step * num_envs, updates(step), episode] for step in evaluated for episode in range(3)
    ]
    curves = scalars(run_dir)
    check_steps(script, curves, total, evaluated, logged)
    assert dict(curves["charts/frames"]) == {step: step * num_envs for step in logged}
    assert dict(curves["charts/updates"]) == {step: updates(step) for step in logged}
    for step, value in curves["eval/episodic_return"]:
        assert value == pytest.approx(np.mean([row[4] for row in rows if row[0] == step]), rel=1e-5)


def check_result(run_dir, expected):
    found = result(run_dir)
    final = found["final_evaluation"]
    last = [row[4] for row in evaluations(run_dir)[-3:]]
    assert [found[name] for name in ("algorithm", "global_step", "frames", "updates")] == expected
    assert final["returns"] == last
    assert final["mean"] == pytest.approx(np.mean(last))
    assert final["std"] == pytest.approx(np.std(last))


def check_steps(script, curves, total, evaluated, logged):
    """Each curve has a finite point at each step where it must have one."""
    updated = updated_readings(script, total, logged)
    expected = dict.fromkeys(EVALUATION, evaluated)
    expected |= dict.fromkeys(COUNTERS, logged)
    expected |= dict.fromkeys(READINGS[script], updated)
    assert curves.keys() == expected.keys() | EPISODE
    for tag, points in curves.items():
        steps = [step for step, _ in points]
        assert np.isfinite([value for _, value in points]).all()
        if tag in EPISODE:
            assert steps == sorted(set(steps))
            assert steps[-1] > total - 20
        else:
            assert steps == expected[tag], tag


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(script): the command of a complete run that has kept its checkpoint, made once."""

    @functools.cache
    def make(script):
        return run(script, "--keep-checkpoint", cwd=tmp_path_factory.mktemp(script))

    return make


@pytest.fixture(params=SCRIPTS)
def script(request):
    return request.param


@pytest.fixture
def run_dir(script, trained):
    """The script's run, not to be changed."""
    return trained(script).cwd / RUN


@pytest.fixture
def copied(trained, own_folder):
    """copied(script) makes RUN what `trained` has, or had before it was complete."""

    def copy(script, complete=True):
        shutil.copytree(trained(script).cwd / RUN, RUN)
        if not complete:
            (RUN / "result.json").unlink()
            (RUN / f"{script}.pt").unlink()

    return copy


def test_curves_and_result_are_whole(script, run_dir):
    check_whole(script, run_dir=run_dir)


def test_these_files_are_left(script, run_dir):
    names = {path.name for path in run_dir.iterdir() if not path.name.startswith("events.out.tfevents.")}
    assert names == {".lock", "args.json", "checkpoint.pt", f"{script}.pt", "evaluations.csv", "result.json"}


def test_what_is_printed(script, run_dir, trained):
    command = trained(script)
    assert not command.stderr
    assert "nan" not in command.stdout
    for line in (
        f"{script} trains envs:Ends-v0 from step 0 to 65\n",
        f", in {run_dir}\n",
        "step 65: return ",
        "step 65: evaluation ",
        f"over 3 episodes; all is in {run_dir}\n",
        f"python {script}.py --evaluate {run_dir} --capture-video\n",
    ):
        assert line in command.stdout


def test_arguments_and_versions_are_kept(script, run_dir):
    args = read_json(run_dir / "args.json")
    found = result(run_dir)
    assert args == {"algorithm": script, **found["args"]}
    assert args["eval_episodes"] == 3
    assert [found[name] for name in ("exp_name", "env_id", "seed")] == [script, "envs:Ends-v0", 1]
    assert {"torch", "numpy", "gymnasium", "mujoco", "dm_control"} <= found["versions"].keys()
    assert found["python"] == sys.version.split()[0]
    assert found["device"].startswith("cpu")


def test_tensorboard_shows_the_arguments(script, run_dir):
    events = EventAccumulator(str(run_dir)).Reload()
    (text,) = events.Tensors("hyperparameters/text_summary")
    table = text.tensor_proto.string_val[0].decode()
    for name, value in result(run_dir)["args"].items():
        assert f"|{name}|{value}|" in table


def test_every_network_has_learned(script, run_dir):
    """Warm-up and the delayed update of the actor are behind it: all has moved since it was initialised."""
    module = importlib.import_module(script)
    torch.manual_seed(1)
    before = module.Agent(3, 2, module.Args()).state_dict()
    after = networks(script, run_dir)
    assert after.keys() == before.keys()
    for name, value in after.items():
        assert value.isfinite().all()
        assert not torch.equal(value, before[name]), name


def test_durations_are_those_of_a_clock_that_nobody_sets():
    """Here each look at the time of day finds it an hour earlier."""
    run("td3", before="import itertools, time; time.time = map(float, itertools.count(2e9, -3600)).__next__")
    rows = np.loadtxt(RUN / "evaluations.csv", delimiter=",", skiprows=1)
    seconds = result()["wall_seconds"]
    assert rows[0, 3] < rows[-1, 3] < seconds
    assert result()["sps"] == pytest.approx(65 / seconds)
    assert all(sps > 0 for _, sps in scalars()["charts/SPS"])


# ------------------------------------------------------------------------------------------- it repeats, and it plays


def test_a_run_repeats_whatever_is_logged_and_saved(script, run_dir):
    """Without --keep-checkpoint only the networks are left."""
    run(script, "--log-frequency 7 --checkpoint-frequency 13")
    assert evaluations() == evaluations(run_dir)
    first = networks(script, run_dir)
    for name, value in networks(script).items():
        assert torch.equal(value, first[name])
    assert not (RUN / "checkpoint.pt").exists()


def summary(run_dir=RUN) -> str:
    """How --evaluate sums up the last evaluation."""
    final = result(run_dir)["final_evaluation"]
    return f"mean {final['mean']:.2f}, std {final['std']:.2f} over 3 episodes\n"


def test_evaluate_plays_the_last_evaluation(script, run_dir):
    before = contents(run_dir)
    played = run(script, f"--evaluate {run_dir}").stdout
    episodes = [f"return {row[4]:.2f}, {row[5]:.0f} steps\n" for row in evaluations(run_dir)[-3:]]
    assert played == "".join(episodes) + f"{script}_step65: {summary(run_dir)}"
    assert contents(run_dir) == before


@pytest.mark.parametrize("script", ["ams_td3", "ppo"])
def test_evaluate_plays_the_checkpoint_of_a_run_that_is_not_complete(script, run_dir, copied):
    copied(script, complete=False)
    command = run(script, "--evaluate run")
    assert f"checkpoint_step65: {summary(run_dir)}" in command.stdout


def test_evaluate_plays_other_episodes_with_another_seed(copied):
    copied("td3")
    command = run("td3", "--evaluate run --seed 2")
    assert summary() not in command.stdout


def test_evaluate_plays_the_same_episodes_in_fewer_environments(copied):
    """Each episode has a seed of its own."""
    copied("td3")
    command = run("td3", "--evaluate run --num-envs 1")
    assert summary() in command.stdout


def test_evaluate_needs_no_other_argument(copied):
    copied("td3")
    command = Command("td3", "--evaluate run").end()
    assert summary() in command.stdout


@pytest.mark.parametrize(
    ("given", "was"),
    [("--gamma 0.9", "--gamma 0.99"), ("--env-id envs:Walk-v0", "--env-id envs:Ends-v0"), ("--tau 1", "--tau 0.005")],
)
def test_evaluate_refuses_what_contradicts_the_run(given, was, copied):
    copied("td3")
    fails("td3", f"--evaluate run {given}", f"was trained with {was}, not {given.split()[1]}")


# ------------------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("switches", "num_envs", "per_step"),
    [
        ("--sampling antithetic --num-neighbors 6 --action-projection normalize --updates-per-step 2", 2, 2),
        ("--sampling gaussian --num-neighbors 1 --policy-frequency 3 --num-envs 3", 3, 1),
    ],
)
def test_switches(switches, num_envs, per_step):
    run("ams_td3", switches)
    check_whole("ams_td3", num_envs=num_envs, per_step=per_step)


def test_a_full_buffer_has_the_last_steps():
    """The last 25, oldest first from `position` on."""
    switches = "--no-autotune --alpha 0 --torch-deterministic --updates-per-step 3"
    run("sac", switches, "--buffer-size 50 --batch-size 1 --keep-checkpoint")
    rb = checkpoint()["rb"]
    rows = rb["rows"].roll(-rb["position"], dims=0)
    goes_on = (rows[:-2, 3:6] == rows[2:, :3]).all(dim=1)
    assert len(rows) == 50
    assert torch.equal(goes_on, rows[2:, 1] > 0)
    assert goes_on.sum() > 20
    assert result()["updates"] == 135


def test_track_sends_to_wandb():
    """A small module stands for the package."""
    Path("wandb.py").write_text("import json\ndef init(**options): json.dump(options, open('wandb.json', 'w'))")
    run("td3", "--track", PYTHONPATH=f"{Path.cwd()}:{ROOT / 'tests'}")
    options = read_json(Path("wandb.json"))
    assert options["sync_tensorboard"] is True
    assert options["resume"] == "allow"


def test_a_warning_where_nothing_is_learned():
    command = run("td3", "--total-timesteps 1")
    assert "warning: nothing is learned in 1 steps: --learning-starts is 20" in command.stdout


# ------------------------------------------------------------------------------------------------ what is stored


@pytest.fixture(params=WITH_BUFFER)
def buffer_dir(request, trained):
    return trained(request.param).cwd / RUN


@pytest.fixture
def stored(buffer_dir):
    """The transitions of 65 steps of two environments."""
    rows = checkpoint(buffer_dir)["rb"]["rows"]
    *vectors, rewards, terminations = rows.split([3, 3, 2, 1, 1], dim=1)
    return td3.Batch(*vectors, rewards[:, 0], terminations[:, 0] > 0)


def endings(stored):
    """Of a transition's episode: how long it is, and whether a termination ends it; whether this transition ends it."""
    length, terminated, _ = torch.tensor(KINDS)[stored.observations[:, 2].long()].T
    return length, terminated > 0, stored.next_observations[:, 1] == length


def test_a_transition_is_one_step_of_one_environment(stored):
    """The environment changes its array in place."""
    step = torch.tensor([[0.0, 1, 0]]).expand(130, 3)
    assert torch.equal(stored.next_observations - stored.observations, step)
    torch.testing.assert_close(stored.rewards, stored.observations[:, 0] + stored.actions.mean(dim=1))


def test_actions_are_drawn_for_each_environment(stored):
    assert (stored.actions.abs() <= 1).all()
    assert not torch.equal(stored.actions[0], stored.actions[1])


def test_only_a_termination_is_stored_as_one(stored):
    """At every kind of end, also of episodes of one step."""
    _, terminated, over = endings(stored)
    assert torch.equal(stored.terminations, over & terminated)
    assert {*stored.observations[over, 2].tolist()} == {0, 1, 2, 3}


def test_no_episode_crosses_an_evaluation(stored):
    """All other steps go on where the one before has ended."""
    reset = torch.zeros(64, 2, dtype=bool)
    reset[[29, 59]] = True  # the evaluations
    *_, over = endings(stored)
    goes_on = (stored.next_observations[:-2] == stored.observations[2:]).all(dim=1)
    assert torch.equal(goes_on, ~(over[:-2] | reset.flatten()))
    assert not stored.observations[2:, 1][~goes_on].any()


def test_logged_lengths_are_means_over_the_episodes_of_a_step(stored, buffer_dir):
    length, _, over = endings(stored)
    logged = {}
    for step in over.view(65, 2).any(dim=1).nonzero()[:, 0].tolist():
        rows = slice(2 * step, 2 * step + 2)
        logged[step + 1] = length[rows][over[rows]].float().mean()
    assert dict(scalars(buffer_dir)["charts/episodic_length"]) == logged


def test_ppos_rollout_ends_at_an_evaluation():
    """The run fails in the middle of a rollout and of the second episode after the evaluation, and so saves both."""
    words = "--env-id envs:NanReward-v0 --num-steps 64 --eval-frequency 17 --eval-episodes 2"
    fails("ppo", words, "step 24: environment", "the reward is nan", status=1)
    rollout = checkpoint()["rollout"]
    ends = rollout["dones"][:, 0].bool()
    goes_on = (rollout["next_observations"][:-1] == rollout["observations"][1:]).all(dim=2)[:, 0]
    assert len(ends) == 24
    assert ends.nonzero()[:, 0].tolist() == [8, 16], "the second episode is cut after 8 steps of 9"
    assert not rollout["terminations"].any()
    assert torch.equal(goes_on, ~ends[:-1])


# --------------------------------------------------------------------------------------------------- resume, overwrite


def test_a_resumed_run_is_the_uninterrupted_one_to_the_last_bit(script):
    """Where the episodes that a resume cuts don't matter: each observation is 0, and at step 48 one ends anyway."""
    words = "--env-id envs:Zeros-v0"
    if script == "td3":
        words += " --policy-frequency 3"
    if script == "ppo":
        words += " --no-anneal-lr"
    run(script, words, "--run-dir whole")
    run(script, words, "--total-timesteps 48 --keep-checkpoint")
    run(script, words, "--resume")
    resumed = networks(script)
    assert [row for row in evaluations() if row[0] != 48] == evaluations(Path("whole"))
    for name, value in networks(script, Path("whole")).items():
        if "count" not in name:  # PPO counts the observations of the step that it begins with once more
            assert torch.equal(value, resumed[name]), name


REFUSED = [
    ("sac", "--gamma 0.9", "--gamma 0.99, not 0.9"),
    ("sac", "--num-envs 3 --log-frequency 20 --eval-frequency 40", "--num-envs 2, not 3"),
    ("sac", "--seed 2 --total-timesteps 80", "--seed 1, not 2"),
    ("ppo", "--gamma 0.9", "--gamma 0.99, not 0.9"),
    ("ppo", "--total-timesteps 80", "--total-timesteps 65, not 80"),
]


@pytest.mark.parametrize(("script", "changed", "line"), REFUSED)
@pytest.mark.parametrize("complete", [True, False])
def test_resume_takes_the_same_arguments_only(script, changed, line, complete, copied):
    copied(script, complete)
    refused(script, f"--resume {changed}", line)


def test_resume_refuses_the_run_of_another_script(copied):
    copied("sac")
    fails("td3", "--resume --exp-name sac", "trained with --algorithm sac, not td3")


def test_a_complete_run_is_complete(copied):
    copied("sac")
    before = contents()
    assert run("sac", "--resume").stdout == f"{RUN.absolute()} is complete\n"
    fails("sac", "", "run exists", "--resume", "--overwrite", "--run-dir")
    assert contents() == before


def test_a_complete_run_with_its_checkpoint_is_made_longer(copied):
    copied("sac")
    run("sac", "--resume --total-timesteps 80")
    check_whole("sac", 80, was=65)
    refused("sac", "--resume --total-timesteps 90", "step 80", "--keep-checkpoint")


@pytest.mark.parametrize(
    "wrong", ["--gamma 2", "--env-id envs:None-v0", "--env-id envs:Huge-v0", "--buffer-size 1000000000000"]
)
def test_overwrite_deletes_nothing_while_something_is_wrong(wrong, copied):
    copied("td3")
    refused("td3", f"--overwrite {wrong}")


def test_overwrite_deletes_a_run_and_nothing_else(copied):
    copied("td3")
    (RUN / "notes.txt").write_text("mine")
    before = contents()
    run("td3", "--overwrite --seed 2")
    check_whole("td3")
    after = contents()
    assert after["notes.txt"] == b"mine"
    assert "checkpoint.pt" not in after
    assert after["td3.pt"] != before["td3.pt"]


@pytest.mark.parametrize("how", ["", "--resume", "--overwrite"])
def test_a_directory_that_is_no_run_is_refused(how):
    RUN.mkdir()
    (RUN / "td3.pt").write_text("precious")
    refused("td3", how, "must be new, empty or that of a run")


def test_a_tilde_in_the_run_directory_is_the_home():
    run("td3", "--run-dir=~/x", HOME=str(Path("home").absolute()))
    check_whole("td3", run_dir=Path("home/x"))
    assert not Path("~").exists()


def test_a_run_directory_whose_name_is_not_utf8_is_refused():
    name = os.fsdecode(b"r\xff")
    fails("td3", f"--run-dir {name}", "TensorBoard")
    assert not any(Path().iterdir())


# -------------------------------------------------------------------------------------------- files that are damaged


OTHER_SPACE = "import envs; envs.Ends.observation_space = envs.Box(-1, 1, (4,))"


@pytest.mark.parametrize("how", ["--resume", "--evaluate run"])
def test_networks_of_another_task_are_refused(how, copied):
    copied("td3", complete=False)
    refused("td3", how, "of another version", "size mismatch for actor", before=OTHER_SPACE)


def test_a_task_that_is_gone_is_named(copied):
    copied("td3")
    fails("td3", "--evaluate run", "can't be made", "envs", before="import sys; sys.modules['envs'] = None")


def damage(data: bytes) -> bytes:
    """Another bit in the middle of its largest array: only checksums tell."""
    largest = max(zipfile.ZipFile(io.BytesIO(data)).infolist(), key=lambda part: part.file_size)
    middle = largest.header_offset + largest.file_size // 2 + 100  # behind the array's name
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def saved(content) -> bytes:
    torch.save(content, "saved")
    return Path("saved").read_bytes()


def version(args: dict) -> bytes:
    """A checkpoint of a version that has these arguments."""
    return saved({"algorithm": "td3", "agent": {}, "args": args})


DAMAGE = {
    "cut": ("BadZipFile", lambda data: data[: len(data) // 2]),
    "empty": ("BadZipFile", lambda data: b""),
    "foreign": ("BadZipFile", lambda data: b"not a checkpoint"),
    "one bit": ("is damaged", damage),
    "a list": ("TypeError", lambda data: saved([1])),
    "nothing": ("KeyError: 'algorithm'", lambda data: saved({})),
    "code": ("UnpicklingError", lambda data: saved({"algorithm": Path("td3")})),
    "another script's": ("sac.py wrote it", lambda data: saved({"algorithm": "sac"})),
    "an older version's": ("another version wrote it", lambda data: version({"gamma": 0.99})),
    "a newer version's": ("another version wrote it", lambda data: version({**vars(td3.Args()), "momentum": 0.9})),
}


@pytest.mark.parametrize("how", ["--resume", "--evaluate run/checkpoint.pt"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_checkpoint_that_is_none(kind, how, copied):
    copied("td3", complete=False)
    line, make = DAMAGE[kind]
    path = RUN / "checkpoint.pt"
    path.write_bytes(make(path.read_bytes()))
    refused("td3", how, f"{path.absolute()} is missing, damaged or foreign: ", line)


def test_python_o_refuses_a_damaged_checkpoint_too(copied):
    copied("td3")
    path = RUN / "td3.pt"
    path.write_bytes(damage(path.read_bytes()))
    command = [sys.executable, "-O", ROOT / "td3.py", "--evaluate", RUN]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert "is damaged" in ended.stderr


# ------------------------------------------------------------------------------------------------- full disks, output


FULL = """
import os
sync = os.fsync
def fsync(file):
    if os.readlink(f"/proc/self/fd/{file}").endswith("/.NAME.new"):
        raise OSError(28, "No space left on device")
    sync(file)
os.fsync = fsync
"""


LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (BYTES, BYTES))"


@pytest.fixture
def begun():
    """A run up to the step 20 with its checkpoint; returns the checkpoint's size."""
    run("td3", "--total-timesteps 20 --keep-checkpoint")
    return (RUN / "checkpoint.pt").stat().st_size


def check_what_a_full_disk_leaves(line: str, words: str, before: str):
    """The run goes on from the checkpoint before."""
    fails("td3", f"--resume {words}", line, status=1, before=before)
    assert not [*RUN.glob(".*.new")]
    assert checkpoint()["global_step"] == 20
    run("td3", "--resume")
    check_whole("td3", was=20)


@pytest.mark.parametrize("name", ["checkpoint.pt", "evaluations.csv", "td3.pt", "result.json"])
def test_a_full_disk_ends_the_run_and_resume_goes_on(name, begun):
    frequency = "--checkpoint-frequency 30" if name == "checkpoint.pt" else "--checkpoint-frequency 1000"
    line = f"{name} can't be written, what was there before is kept"
    check_what_a_full_disk_leaves(line, frequency, FULL.replace("NAME", name))


def test_a_checkpoint_that_does_not_fit_ends_the_run(begun):
    """Checkpoints grow with the replay buffer: this is the disk's own error in the middle of one."""
    check_what_a_full_disk_leaves("checkpoint.pt can't be written", "", LIMITED.replace("BYTES", str(begun)))


def test_a_log_that_does_not_fit_ends_the_run(begun):
    """TensorBoard's, which a thread of its own writes; the next log has what is missing in this."""
    words = "--log-frequency 1 --checkpoint-frequency 1000"
    check_what_a_full_disk_leaves("can't be written", words, LIMITED.replace("BYTES", "8192"))


def test_output_to_a_full_disk_stops_nothing():
    run("td3", before="import os; os.dup2(os.open('/dev/full', os.O_WRONLY), 1)")
    check_whole("td3")


@pytest.mark.parametrize("env_id", ["envs:Ends-v0", "disturbing_envs:Chatty-v0"])
def test_output_that_nobody_reads_stops_nothing(env_id):
    """As `| head -1`, with an environment that prints, too."""
    closed = "import os; reader, writer = os.pipe(); os.close(reader); os.dup2(writer, 1)"
    run("td3", f"--env-id {env_id}", before=closed)
    check_whole("td3")


# ------------------------------------------------------------------------------------------- what is not finite, videos


@pytest.mark.parametrize(("log_frequency", "what"), [(1, "s/"), (1000, "the network's ")])
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("td3", "--learning-starts 15 --learning-rate 1e18"),
        ("sac", "--learning-starts 15 --q-lr 1e18"),
        ("ppo", "--num-steps 20 --learning-rate 1e18"),
    ],
)
def test_what_is_not_finite_stops_the_run_and_reaches_no_checkpoint(script, words, log_frequency, what):
    """An absurd step size, noticed in what is logged, or else before it is saved: the checkpoint of the step before
    learning stays."""
    frequency = f"--checkpoint-frequency 15 --log-frequency {log_frequency}"
    fails(script, f"{words} {frequency}", "step ", what, "not finite; the checkpoint is left as it was", status=1)
    assert checkpoint()["global_step"] == 15
    assert not (RUN / "result.json").exists()


def test_a_video_of_the_first_episode():
    """30 frames a second if the task does not say."""
    run("td3", "--total-timesteps 1 --eval-episodes 1 --env-id envs:Drawn-v0")
    length = int(evaluations()[-1][5])
    run("td3", "--env-id envs:Drawn-v0 --eval-episodes 1 --capture-video --evaluate run")
    (video,) = RUN.glob("*.mp4")
    frames = np.stack([*imageio.imiter(video, plugin="FFMPEG")])
    assert frames.shape == (length + 1, 64, 96, 3)
    assert np.abs(frames[0].astype(float) - frames[-1]).mean() > 0.1, "it moves"
    assert imageio.immeta(video, plugin="FFMPEG")["fps"] == 30


def test_a_task_that_cannot_draw():
    run("td3", "--total-timesteps 1 --env-id envs:Walk-v0")
    words = "--env-id envs:Walk-v0 --capture-video --evaluate run"
    fails("td3", words, "no video", status=1)


def test_a_users_own_choice_of_opengl():
    run("td3", "--total-timesteps 1 --env-id envs:Drawn-v0", MUJOCO_GL="osmesa")
    assert Path("MUJOCO_GL").read_text() == "osmesa"
