"""Figures and tables of the Action Manifold Smoothing paper, from the training scripts' TensorBoard logs.

    python plot_curves.py runs/
    python plot_curves.py runs/ --x-axis hours --metric train --format pdf svg
    python plot_curves.py runs/ --export curves.csv --out-dir figures/with_peers --reference peers.csv

A run is a folder that holds args.json. A run counts as finished when it holds result.json too; only finished runs give
numbers to the tables, unfinished ones are drawn and named. From Python, `load_runs("runs/")` returns every logged value
as a pandas DataFrame in long form. Captions of the figures are written to captions.md beside them.
"""

import contextlib
import io
import json
import math
import os
import re
import struct
import sys
import time
import uuid
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import google_crc32c
import matplotlib
import numpy as np
import pandas as pd
import scipy.special
import tyro
from tensorboard.compat.proto.event_pb2 import Event
from tqdm import tqdm

matplotlib.use("agg")  # no display needed, and none opened
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter  # noqa: E402

# Steps of training and the name in print, in the order of the paper's Figure 3.
TASKS = {
    "cheetah-run": (500_000, "Cheetah-Run"),
    "humanoid-run": (1_000_000, "Humanoid-Run"),
    "quadruped-walk": (500_000, "Quadruped-Walk"),
    "quadruped-run": (500_000, "Quadruped-Run"),
    "dog-stand": (500_000, "Dog-Stand"),
    "dog-walk": (500_000, "Dog-Walk"),
    "dog-trot": (500_000, "Dog-Trot"),
    "dog-run": (1_000_000, "Dog-Run"),
    "h1-sit": (500_000, "H1-Sit"),
    "h1-slide": (500_000, "H1-Slide"),
    "h1-walk": (500_000, "H1-Walk"),
    "h1-run": (500_000, "H1-Run"),
}
HIGH_DIMENSIONAL = ("dog-stand", "dog-walk", "dog-trot", "dog-run")  # 38 action dimensions
MAX_RETURN = 1000  # of an episode in all twelve: 1000 control steps with rewards in [0, 1]

# Okabe-Ito colours, told apart by the colour-blind; one hue a family, and dashes so that a grey print works too.
ALGORITHMS = {
    "ams_td3": ("AMS-TD3", "#D55E00", "-"),
    "ams_sac": ("AMS-SAC", "#0072B2", "-"),
    "td3": ("TD3", "#E69F00", "--"),
    "sac": ("SAC", "#56B4E9", "--"),
    "ppo": ("PPO", "#009E73", ":"),
}
PAIRS = (("ams_td3", "td3"), ("ams_sac", "sac"))  # AMS and its base algorithm
DEFAULTS = {"epsilon": 0.2, "num_neighbors": 8, "sampling": "orthogonal", "action_projection": "tanh"}
# Arguments in which seeds of one group may differ without a note.
HOUSEKEEPING = set(
    "seed exp_name total_timesteps device cuda_graphs torch_deterministic run_dir resume overwrite "
    "checkpoint_frequency keep_checkpoint log_frequency eval_frequency eval_episodes evaluate "
    "capture_video track".split()
)
# What all of the paper's runs have in common.
PAPER_ARGS = {
    "num_envs": 8,
    "eval_episodes": 10,
    "gamma": 0.99,
    "tau": 0.005,
    "batch_size": 256,
    "buffer_size": 1_000_000,
}
PAPER_ARGS |= {"updates_per_step": 1, "policy_frequency": 2, "num_steps": 2048}
TAGS = {"eval": "eval/episodic_return", "train": "charts/episodic_return"}
DIAGNOSTICS = {
    "diagnostics/critic_grad_norm": ("Critic gradient norm", "2.4"),
    "diagnostics/td_target_variance": ("TD target variance", "4.5"),  # the paper's ratios, section 4.2
}
X_LABELS = {
    "steps": ("Steps (thousands)", 1e3),
    "frames": ("Frames (millions)", 1e6),
    "updates": ("Updates (thousands)", 1e3),
    "hours": ("Hours", 3600),
}

# The paper's Table 2: mean and standard deviation over 5 seeds; columns in the order of TASKS.
PAPER_TABLE_2 = """
ppo     150±32  1±0    131±18  119±22  128±5   18±1    27±6    24±2   80±6    24±3    17±7    9±2
sac     661±185 145±26 691±336 301±8   249±781 95±166  8±3     45±95  11±4    92±57   81±501  237±458
td3     753±27  181±31 873±94  576±212 337±220 107±230 38±97   92±121 527±476 315±92  787±57  658±190
ams_td3 712±27  236±33 932±10  765±32  957±33  670±18  708±244 387±32 855±22  577±141 775±121 614±278
ams_sac 757±31  227±68 927±3   781±61  931±21  704±12  761±137 427±25 781±2   577±140 752±18  625±140
"""
ABLATION_SEEDS = (0, 42, 123)
# The paper's Table 3, Quadruped-Run, over these seeds: (group, name in print, algorithm, variant, mean, std).
PAPER_TABLE_3 = (
    ("Component", "Baseline", "td3", "default", 576, 212),
    ("Component", "w/o NTD", "ams_td3", "without_ntd", 730, 119),
    ("Component", "w/o LN-Q", "ams_td3", "without_layer_norm", 732, 59),
    ("Component", "AMS (full)", "ams_td3", "default", 765, 32),
    ("Component", "Baseline", "sac", "default", 301, 8),
    ("Component", "w/o NTD", "ams_sac", "without_ntd", 714, 67),
    ("Component", "w/o LN-Q", "ams_sac", "without_layer_norm", 726, 41),
    ("Component", "AMS (full)", "ams_sac", "default", 781, 61),
    ("Radius", "ε = 0.2 (default)", "ams_td3", "default", 766, 26),
    ("Radius", "ε = 0.4", "ams_td3", "epsilon=0.4", 716, 64),
    ("Radius", "ε = 0.6", "ams_td3", "epsilon=0.6", 733, 15),
    ("Radius", "ε = 0.8", "ams_td3", "epsilon=0.8", 734, 53),
    ("Neighbors", "K = 4", "ams_td3", "num_neighbors=4", 754, 21),
    ("Neighbors", "K = 6", "ams_td3", "num_neighbors=6", 737, 20),
    ("Neighbors", "K = 8 (default)", "ams_td3", "default", 766, 26),
    ("Neighbors", "K = 10", "ams_td3", "num_neighbors=10", 760, 42),
)
# The paper's Table B.4: hours for 1M steps on an RTX 3090, (baseline, AMS), TD3 and SAC not told apart.
PAPER_TABLE_B4 = {
    "cheetah-run": (1 / 3, 5 / 12),
    "humanoid-run": (1.5, 2.0),
    "quadruped-walk": (1.0, 1.5),
    "quadruped-run": (1.0, 1.5),
    "dog-walk": (3.5, 4.5),
    "dog-run": (3.5, 4.5),
}


@dataclass
class Args:
    directory: tyro.conf.Positional[Path]
    """where the runs are; searched through all its folders"""
    out_dir: Path = Path("figures")
    """where figures, tables and captions.md go"""
    x_axis: Literal["steps", "frames", "updates", "hours"] = "steps"
    """horizontal axis of the learning curves: vector steps, environment frames, gradient updates or hours"""
    metric: Literal["eval", "train"] = "eval"
    """which return: of deterministic evaluation episodes, or of training episodes (tables: last 10% of steps)"""
    format: tuple[Literal["png", "pdf", "svg"], ...] = ("png",)
    """file formats of the figures, one or more"""
    ablation_task: str = "quadruped-run"
    """task of Figures 4 and 5 and of Table 3"""
    reference: tuple[Path, ...] = ()
    """peers' curves drawn in grey in Figure 3: CSV files in the form that --export writes"""
    export: Path | None = None
    """write every logged value to this CSV file in long form (.csv.gz compresses)"""
    prefer: tuple[Path, ...] = ()
    """run folders to use where two runs claim the same algorithm, variant, task and seed"""
    bootstrap_reps: int = 2000
    """resamples of rliable's stratified bootstrap"""
    bootstrap_seed: int = 0
    """seed of the bootstrap: the same seed gives the same intervals"""


@dataclass(eq=False)
class Run:
    """One run folder. `events` maps a tag to (steps [N], seconds of training [N], values [N])."""

    path: Path
    algorithm: str
    variant: str
    task: str
    seed: int
    args: dict
    result: dict | None  # None until the run is finished
    events: dict = field(default_factory=dict)
    step: int = 0  # the last step that was logged


class InputError(ValueError):
    """The runs, or a file given, cannot be used; the message is one line for the user."""


def note(message):
    """One line on stderr about something left out or doubtful."""
    tqdm.write(f"plot_curves.py: note: {message}", file=sys.stderr)


# ---------------------------------------------------------------- reading event files


def masked_crc(data):
    """TFRecord's masked CRC-32C of some bytes."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_event_file(path):
    """Scalars of one event file, in the order written.

    Returns (start, rows, problem): the wall time of the first event; (tag, step, wall time, value) of each scalar;
    problem is "" if the file is whole. A record is a length (8 bytes), its CRC (4), the event, its CRC (4). Behind
    damage the next place whose length and CRC agree is searched for, so that only the events between are lost.
    """
    data, position, rows, start, problem = path.read_bytes(), 0, [], math.inf, ""
    while position + 12 <= len(data):
        length, crc = struct.unpack_from("<QI", data, position)
        if masked_crc(data[position : position + 8]) != crc:
            problem = problem or f"damaged at byte {position:,}"
            position += 1
            continue
        end = position + 12 + length
        if end + 4 > len(data):
            break
        record = data[position + 12 : end]
        if struct.unpack_from("<I", data, end)[0] == masked_crc(record):
            event = Event.FromString(record)
            start = min(start, event.wall_time)
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    rows.append((value.tag, event.step, event.wall_time, value.simple_value))
        else:
            problem = problem or f"damaged at byte {position:,}"
        position = end + 4
    if position < len(data):
        problem = problem or "cut off in the middle of an event"
    if problem:
        problem = f"{path.name} is {problem}; the {len(rows):,} whole values in it are used"
    return start, rows, problem


def parse_events(files):
    """Merge the event files of one run. A resumed run has several, and where their steps overlap the later write wins.

    Returns {tag: (steps, seconds, values)} and the list of problems. Seconds count training only: the time between the
    end of one file and the start of the next, when nothing ran, is left out.
    """
    parsed = sorted(map(read_event_file, files), key=lambda file: file[0])
    points, seconds_at = {}, {}  # {tag: [(step, seconds, value)]}, {step: seconds}
    for start, rows, _ in parsed:
        first = min((step for _, step, _, _ in rows), default=0)
        before = max((seconds for step, seconds in seconds_at.items() if step < first), default=0.0)
        for tag, step, wall, value in rows:
            seconds_at[step] = before + wall - start
            points.setdefault(tag, []).append((step, seconds_at[step], value))
    events = {}
    for tag, rows in points.items():
        steps, seconds, values = np.array(rows).T
        # A point stands if everything written after it has a later step.
        keep = steps < np.minimum.accumulate(np.append(steps[1:], np.inf)[::-1])[::-1]
        events[tag] = steps[keep].astype(np.int64), seconds[keep], values[keep]
    return events, [problem for _, _, problem in parsed if problem]


def read_events(run_dir):
    """Events of a run folder through its cache, .plot_curves.npz, valid while the event files keep size and mtime.

    Returns (events, problems) as parse_events. The cache is replaced in one step, so that two processes may read the
    same runs; one that cannot be read is written anew, and where the folder is read-only there is none.
    """
    files = sorted(Path(run_dir).glob("*tfevents*"))
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    key, cache = json.dumps([1, stats]), Path(run_dir) / ".plot_curves.npz"  # 1: version of the cache
    try:
        with np.load(cache) as saved:
            if str(saved["key"]) == key:
                ends = np.cumsum(saved["counts"])[:-1]
                columns = [np.split(saved[name], ends) for name in ("steps", "seconds", "values")]
                tags = saved["tags"].tolist()
                return dict(zip(tags, zip(*columns, strict=True), strict=True)), saved["problems"].tolist()
    except Exception:  # noqa: BLE001, S110  numpy and zipfile raise a dozen kinds on a damaged file; all mean: read anew
        pass
    events, problems = parse_events(files)
    if events:
        steps, seconds, values = (np.concatenate(c) for c in zip(*events.values(), strict=True))
        saved = {"key": key, "tags": list(events), "counts": [len(e[0]) for e in events.values()]}
        saved |= {"steps": steps, "seconds": seconds, "values": values, "problems": np.array(problems, dtype=str)}
        temporary = cache.with_suffix(f".{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("wb") as file:
                np.savez(file, **saved)
            os.replace(temporary, cache)
        except OSError:  # a full disk, or a folder that may only be read
            temporary.unlink(missing_ok=True)
    return events, problems


# ---------------------------------------------------------------- finding runs


def variant_of(args):
    """What sets a run apart from its algorithm's default, e.g. "epsilon=0.4" or "without_ntd"; "default" if nothing.

    Arguments decide. An exp_name of its own counts where they do not explain it, so that runs with another batch size
    under another name are never averaged with default ones.
    """
    parts = [f"without_{name}" for name in ("ntd", "layer_norm") if args.get(name) is False]
    if "without_ntd" in parts:  # the neighbourhood's settings have no effect then
        parts += [f"{n}={args[n]}" for n in ("action_projection",) if args.get(n, DEFAULTS[n]) != DEFAULTS[n]]
    else:
        parts += [f"{name}={args[name]}" for name in DEFAULTS if args.get(name, DEFAULTS[name]) != DEFAULTS[name]]
    if not parts and args.get("exp_name", args["algorithm"]) != args["algorithm"]:
        parts = [str(args["exp_name"])]
    return " ".join(parts) or "default"


def read_json(path):
    """The object in a JSON file; InputError names the file if it holds none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__}, where a JSON object is expected")
    return content


def find_runs(directory, prefer=()):
    """All runs under a directory, without their events. Raises InputError if there are none or two claim one place."""
    directory = Path(directory)
    if not directory.is_dir():
        kind = "is a file" if directory.exists() else "does not exist"
        raise InputError(f"{directory} {kind}; give the folder that holds the runs, such as runs/")
    runs, claims = [], {}
    for folder, _, names in sorted(os.walk(directory)):
        if "args.json" not in names:
            continue
        path = Path(folder)
        try:
            args = read_json(path / "args.json")
            missing = [name for name in ("algorithm", "env_id", "seed") if name not in args]
            if missing:
                raise InputError(f"{path / 'args.json'} lacks {', '.join(missing)}")
            if not isinstance(args["seed"], int):
                raise InputError(f"{path / 'args.json'}: seed {args['seed']!r} is not a whole number")
            if args["algorithm"] not in ALGORITHMS:
                known = ", ".join(ALGORITHMS)
                raise InputError(f"{path / 'args.json'}: algorithm {args['algorithm']!r} is none of {known}")
        except InputError as error:
            note(f"{error}; this run is left out")
            continue
        result = None
        if "result.json" in names:
            try:
                result = read_json(path / "result.json")
                numbers = result["global_step"], result["final_evaluation"]["mean"], result["wall_seconds"]
                if not all(isinstance(number, int | float) for number in numbers) or numbers[0] <= 0:
                    raise InputError(f"{path / 'result.json'} holds no number of steps, final mean or wall_seconds")
            except (InputError, KeyError, TypeError) as error:
                reason = error if isinstance(error, InputError) else f"{path / 'result.json'} is incomplete ({error})"
                note(f"{reason}; the run counts as unfinished")
                result = None
        run = Run(path, args["algorithm"], variant_of(args), str(args["env_id"]), args["seed"], args, result)
        runs.append(run)
        claims.setdefault((run.algorithm, run.variant, run.task, run.seed), []).append(run)
    if not runs:
        raise InputError(
            f"no runs in {directory}: none of its folders holds a usable args.json (the scripts write one)"
        )
    preferred = {Path(path).resolve() for path in prefer}
    strangers = preferred - {run.path.resolve() for run in runs}
    if strangers:
        raise InputError(f"--prefer {min(strangers)}: no run in {directory} has this folder")
    for (algorithm, variant, task, seed), rivals in claims.items():
        chosen = [run for run in rivals if run.path.resolve() in preferred]
        if len(rivals) > 1 and len(chosen) != 1:
            where = ", ".join(str(run.path) for run in rivals)
            raise InputError(
                f"{len(rivals)} runs claim {algorithm} ({variant}), {task}, seed {seed}: {where}; "
                f"remove all but one, or name the one to use: --prefer {rivals[-1].path}"
            )
        if len(rivals) > 1:
            runs = [run for run in runs if run not in rivals or run in chosen]
    return runs


def read_runs(directory, prefer=(), workers=1):
    """Find all runs and read their events, with a progress bar. Returns [Run]; raises InputError as find_runs."""
    runs = find_runs(directory, prefer)
    folders = [str(run.path) for run in runs]
    bar = {"total": len(runs), "desc": "reading runs", "unit": "run", "leave": False}
    if workers > 1:
        with ProcessPoolExecutor(workers) as pool:
            read = list(tqdm(pool.map(read_events, folders, chunksize=4), **bar))
    else:
        read = [read_events(folder) for folder in tqdm(folders, **bar)]
    for run, (events, problems) in zip(runs, read, strict=True):
        run.events = events
        run.step = max((int(steps[-1]) for steps, _, _ in events.values()), default=0)
        for problem in problems:
            note(run.path / problem)
        if not events:
            note(f"{run.path} holds no events; there is nothing to draw of it")
    return runs


def counter(run, name, steps):
    """Frames or updates of a run at the given steps [N], interpolated in what it logged.

    Frames not logged follow from their definition, steps x num_envs; updates not logged are NaN.
    """
    if f"charts/{name}" not in run.events:
        known = name == "frames" and "num_envs" in run.args
        return steps * float(run.args["num_envs"]) if known else np.full(len(steps), np.nan)
    at, _, counts = run.events[f"charts/{name}"]
    if at[0] > 0:
        at, counts = np.append(0, at), np.append(0.0, counts)
    if len(steps) and steps[-1] > at[-1] and len(at) > 1:  # the last evaluation may lie behind the last log
        slope = (counts[-1] - counts[-2]) / (at[-1] - at[-2])
        at, counts = np.append(at, steps[-1]), np.append(counts, counts[-1] + slope * (steps[-1] - at[-1]))
    return np.interp(steps, at, counts)


def long_form(runs):
    """Every logged value of the runs as a DataFrame, one row a value."""
    names, blocks = [], [np.empty((0, 5))]
    for run in runs:
        for tag, (steps, seconds, values) in run.events.items():
            names.append((run.algorithm, run.variant, run.task, run.seed, tag))
            counts = counter(run, "frames", steps), counter(run, "updates", steps)
            blocks.append(np.column_stack([steps, *counts, seconds, values]))
    which = np.repeat(np.arange(len(names)), [len(block) for block in blocks[1:]])
    labels = pd.DataFrame(names, columns=["algorithm", "variant", "task", "seed", "tag"])
    labels = labels.astype(dict.fromkeys(("algorithm", "variant", "task", "tag"), "category")).take(which)
    numbers = pd.DataFrame(np.concatenate(blocks), columns=["step", "frames", "updates", "wall_seconds", "value"])
    frame = pd.concat([labels.reset_index(drop=True), numbers.astype({"step": np.int64})], axis=1)
    return frame[[*labels.columns[:4], *numbers.columns[:4], "tag", "value"]]


def load_runs(directory, prefer=(), workers=1):
    """All runs under a directory in long form.

    Columns: algorithm, variant, task, seed, step, frames, updates, wall_seconds (training time), tag, value. `prefer`
    lists run folders to use where two claim the same place; `workers` processes read (more than one only under
    `if __name__ == "__main__"`). Raises InputError, a ValueError, if there is nothing to read.
    """
    return long_form(read_runs(directory, prefer, workers))


# ---------------------------------------------------------------- curves and numbers


def bin_width(runs):
    """Steps averaged into one point of curves logged at every run's own steps: 10,000, or 1/20 of short runs."""
    return min(10_000, max(1, max((run.step for run in runs), default=0) // 20))


def curve(runs, tag, x_axis="steps", width=None):
    """Mean over runs with a 95% band: mean +/- t(0.975, n - 1) s / sqrt(n), s the sample deviation over seeds.

    `width` averages each run over bins of so many steps first; without it points with equal steps are averaged.
    Returns a DataFrame by step with x (mean over runs, in the axis' unit), mean, low, high and count; low and high are
    NaN where only one run has a value.
    """
    tables = []
    for run in runs:
        if tag in run.events:
            steps, seconds, values = run.events[tag]
            x = {"steps": steps, "hours": seconds}.get(x_axis)
            x = counter(run, x_axis, steps) if x is None else x
            key = steps if width is None else -(-steps // width) * width
            table = pd.DataFrame({"step": key, "x": x / X_LABELS[x_axis][1], "value": values})
            tables.append(table.dropna(subset="x").groupby("step").mean())
    if not tables:
        return pd.DataFrame(columns=["x", "mean", "low", "high", "count"], dtype=float)
    by_step = pd.concat(tables).groupby(level=0)
    points = pd.DataFrame({"x": by_step["x"].mean(), "mean": by_step["value"].mean()})
    count, spread = by_step["value"].count(), by_step["value"].std(ddof=1)
    half = scipy.special.stdtrit(np.maximum(count - 1, 1), 0.975) * spread / np.sqrt(count)
    points["low"], points["high"], points["count"] = points["mean"] - half, points["mean"] + half, count
    return points


def final_return(metric):
    """The function that takes a finished run's final value out of its result.json; NaN where it has none."""
    if metric == "eval":
        return lambda run: float(run.result["final_evaluation"]["mean"])
    return lambda run: float(np.nan if (r := run.result.get("training_return_last_10_percent")) is None else r)


def hours_per_million_steps(run):
    """Hours of training for 1M steps, from the run's own number of steps."""
    return run.result["wall_seconds"] / run.result["global_step"] * 1e6 / 3600


def unlike_paper(runs):
    """Arguments in which runs differ from the paper's, as "num_envs=2", sorted."""
    values = {(name, run.args[name]) for run in runs for name in PAPER_ARGS if name in run.args}
    return sorted(f"{name}={value}" for name, value in values if value != PAPER_ARGS[name])


def differing_arguments(runs):
    """Names of arguments in which runs that are averaged differ although nothing names them apart."""
    names = sorted({name for run in runs for name in run.args} - HOUSEKEEPING)
    return [n for n in names if len({json.dumps(run.args[n]) for run in runs if n in run.args}) > 1]


def summarise(runs, value, budget):
    """Mean and sample standard deviation over the seeds of one cell of a table.

    Only finished runs count, and only those with the same number of steps: the budget's if there are any, else the
    longest. Everything else is said in `note`. Returns a dict with mean, std (NaN for one seed), seeds, steps, note
    and `runs`, the runs behind the numbers.
    """
    finished = [run for run in runs if run.result]
    unfinished = sorted(run.step for run in runs if not run.result)
    cell = {"mean": math.nan, "std": math.nan, "seeds": 0, "steps": math.nan, "note": "missing", "runs": []}
    if not runs:
        return cell
    notes = []
    if finished:
        lengths = {int(run.result["global_step"]) for run in finished}
        steps = budget if budget in lengths else max(lengths)
        used = [run for run in finished if run.result["global_step"] == steps]
        valueless = [run for run in used if math.isnan(value(run))]
        used = [run for run in used if run not in valueless]
        values = [value(run) for run in used]
        cell |= {"seeds": len(used), "steps": steps, "runs": used}
        cell["mean"] = float(np.mean(values)) if used else math.nan
        cell["std"] = float(np.std(values, ddof=1)) if len(used) > 1 else math.nan
        if valueless:
            notes.append(f"{len(valueless)} did not record this value")
        if budget and steps != budget:
            notes.append(f"at {steps:,} steps, paper {budget:,}")
        others = [f"{n:,}" for n in sorted(int(run.result["global_step"]) for run in finished) if n != steps]
        if others:
            notes.append(f"{len(others)} of other length left out ({', '.join(others)} steps)")
        if budget and unlike_paper(used):
            notes.append(f"unlike the paper's: {', '.join(unlike_paper(used))}")
        differing = differing_arguments(used)
        if differing:
            notes.append(f"seeds differ in {', '.join(differing)}")
    if unfinished:
        notes.append(f"{len(unfinished)} unfinished (at {', '.join(f'{step:,}' for step in unfinished)} steps)")
    return cell | {"note": "; ".join(notes)}


def compare(cell, paper_mean=math.nan, paper_std=math.nan, wrong=False):
    """A table row: the cell, the paper's value beside it, the difference, and whether it is outside both spreads.

    A `wrong` deviation of the paper is shown, and said to be wrong, and is not a spread to be inside of.
    """
    difference = cell["mean"] - paper_mean
    remark = "paper's deviation impossible, see caption" if wrong else ""
    spreads = [0.0 if math.isnan(s) else s for s in (cell["std"], math.nan if wrong else paper_std)]
    outside = cell["seeds"] > 1 and abs(difference) > max(spreads)
    row = {name: cell[name] for name in ("mean", "std", "seeds", "steps")}
    row |= {"paper_mean": paper_mean, "paper_std": paper_std, "difference": difference, "outside_both": outside}
    return row | {"note": "; ".join(filter(None, [cell["note"], remark]))}


def select(runs, algorithm, task, variant="default"):
    """The runs of one algorithm, task and variant, by seed."""
    chosen = [run for run in runs if (run.algorithm, run.task, run.variant) == (algorithm, task, variant)]
    return sorted(chosen, key=lambda run: run.seed)


def ablation_runs(runs, algorithm, task, variant="default"):
    """As `select`, the seeds of Table 3 and Figure 5 alone, if there are any: Table 2's others have no ablations."""
    own = select(runs, algorithm, task, variant)
    return [run for run in own if run.seed in ABLATION_SEEDS] or own


def budget_of(task):
    """Steps the paper trains this task for, None for a task that is not the paper's."""
    return TASKS.get(task, (None, ""))[0]


def title_of(task):
    """The name of a task in print."""
    return TASKS.get(task, (None, task))[1]


def tasks_of(runs):
    """Tasks that have runs, the paper's first and in its order."""
    have = {run.task for run in runs}
    return [task for task in TASKS if task in have] + sorted(have - set(TASKS))


# ---------------------------------------------------------------- figures

STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.3,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.4,
    "grid.color": "#DDDDDD",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType: journals refuse Type 3 fonts
    "svg.fonttype": "none",
}
WIDTH = 6.75  # inches, the text width of a two-column page, so that the sizes above are the printed ones
RETURN_LABELS = {"eval": "Evaluation return", "train": "Training return"}
GREYS = (("#4D4D4D", "-"), ("#7A7A7A", "--"), ("#7A7A7A", "-."), ("#A0A0A0", "-"), ("#A0A0A0", ":"))
BAND = (
    "Mean over seeds; bands are 95% confidence intervals of the mean (Student's t over seeds); a thin line goes on "
    "where not all seeds have got to."
)


def seeds_label(counts):
    """ "5 seeds", or "3-5 seeds" where panels differ."""
    low, high = min(counts), max(counts)
    return f"{high} seed{'s' * (high > 1)}" if low == high else f"{low}–{high} seeds"


def draw_curve(axis, points, color, style, label, zorder=2):
    """Mean and band of `curve`; behind the last step that all runs have, only a thin line over those that go on."""
    points = points.dropna(subset="mean")
    if points.empty:
        return
    most = points["count"].max()  # steps between, at which only some seeds were evaluated, would make a zigzag
    last = np.flatnonzero(points["count"] == most)[-1]
    whole, rest = points.iloc[: last + 1], points.iloc[last:]
    whole = whole[whole["count"] == most]
    axis.plot(whole["x"], whole["mean"], color=color, linestyle=style, label=label, zorder=zorder)
    if whole["low"].notna().any():
        axis.fill_between(whole["x"], whole["low"], whole["high"], color=color, alpha=0.16, linewidth=0, zorder=1)
    if len(rest) > 1:
        axis.plot(rest["x"], rest["mean"], color=color, linestyle=style, linewidth=0.6, zorder=zorder)


def figure_3(runs, x_axis="steps", metric="eval", references=()):
    """Learning curves, one panel a task. Returns the figure and its caption, None where there is nothing to draw."""
    tag, remarks, top = TAGS[metric], [f"Learning curves. {BAND}"], 0.0
    runs = [run for run in runs if run.variant == "default" and tag in run.events]
    tasks = tasks_of(runs)
    if not tasks:
        return note(f"Figure 3 is left out: no run with an algorithm's default settings has {tag}")
    columns = min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    size = (WIDTH if columns > 2 else 3.3 * columns, 0.6 + 1.4 * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    series = [(*ALGORITHMS[a], [run for run in runs if run.algorithm == a]) for a in ALGORITHMS]
    for i, key in enumerate(sorted({(run.path, run.algorithm, run.variant) for run in references})):
        own = [run for run in references if (run.path, run.algorithm, run.variant) == key]
        name = " ".join([ALGORITHMS.get(key[1], key[1:])[0], key[2]]).removesuffix(" default")
        series.append((f"{name}, {key[0].stem}", *GREYS[i % len(GREYS)], own))
    handles = []
    for label, color, style, own in series:
        counts = {}
        for axis, task in zip(axes.flat, tasks, strict=False):
            group = [run for run in own if run.task == task]
            points = curve(group, tag, x_axis, None if metric == "eval" else bin_width(group))
            if not points.empty:
                draw_curve(axis, points, color, style, label, zorder=3 if "AMS" in label else 2)
                counts[task] = len(group)
                if task in TASKS:
                    top = max(top, points["mean"].max(), points["high"].max() if len(group) > 2 else 0)
        if counts:
            text = f"{label} ({seeds_label(counts.values())})"
            handles.append(plt.Line2D([], [], color=color, linestyle=style, label=text))
            fewer = [f"{title_of(task)} {n}" for task, n in counts.items() if n < max(counts.values())]
            remarks += [f"{label} has fewer seeds on {', '.join(fewer)}."] if fewer else []
        elif any(run.task in tasks for run in own):
            note(f"{label} has no {x_axis}, and is not drawn")
    for panel, (axis, task) in enumerate(zip(axes.flat, tasks, strict=False)):
        axis.set_title(f"({chr(97 + panel)}) {title_of(task)}")
        axis.set_xlim(left=0)
        axis.locator_params(nbins=4)
        if panel + columns >= len(tasks):
            axis.set_xlabel(X_LABELS[x_axis][0])
        if task in TASKS:  # one scale for all of the paper's tasks
            axis.set_ylim(0, min(MAX_RETURN, top * 1.05) or MAX_RETURN)
            axis.tick_params(labelleft=panel % columns == 0)
    for axis in axes.flat[len(tasks) :]:
        axis.remove()
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4 if references else 5, columns + 1))
    figure.supylabel(RETURN_LABELS[metric], fontsize=8)
    return figure, " ".join(remarks)


def final_diagnostic(tag):
    """The function that takes a run's final value of a diagnostic: its mean over the last 10% of steps."""

    def final(run):
        steps, _, values = run.events[tag]
        return float(values[steps > 0.9 * run.step].mean()) if steps[-1] > 0.9 * run.step else math.nan

    return final


def figure_4(runs, task="quadruped-run", x_axis="steps"):
    """Critic gradient norm and TD target variance of one task, with base / AMS ratios of the final values.

    Returns the figure, its caption and {(tag, AMS algorithm): ratio}; None where no run has the tags.
    """
    ratios, labels = {}, {}
    remarks = [
        f"Critic gradient norm and TD target variance on {title_of(task)}, averaged over 10,000 steps "
        f"(1/20 of shorter runs). {BAND} "
        "Ratios of final values: means over the last 10% of steps of finished runs."
    ]
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.3), layout="constrained")
    for panel, (axis, (tag, (title, paper))) in enumerate(zip(axes, DIAGNOSTICS.items(), strict=True)):
        groups = {a: [run for run in select(runs, a, task) if tag in run.events] for a in ALGORITHMS}
        for algorithm, group in groups.items():
            if group:
                label, color, style = ALGORITHMS[algorithm]
                draw_curve(axis, curve(group, tag, x_axis, bin_width(group)), color, style, label)
                labels[f"{label} ({seeds_label([len(group)])})"] = axis.get_legend_handles_labels()[0][-1]
        lines = [f"({chr(97 + panel)}) {title}"]
        for ams, base in PAIRS:
            cells = [summarise(groups[a], final_diagnostic(tag), budget_of(task)) for a in (base, ams)]
            ratio = cells[0]["mean"] / (cells[1]["mean"] or math.nan)
            if not math.isnan(ratio):
                ratios[tag, ams] = ratio
                beside = f" (paper {paper})" if ams == "ams_td3" and task == "quadruped-run" else ""
                lines.append(f"{ALGORITHMS[base][0]} / {ALGORITHMS[ams][0]}: {ratio:.1f}×{beside}")
                remarks += [f"{lines[-1]}: {cell['note']}." for cell in cells if cell["note"]]
        axis.set_title("\n".join(lines))
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.set_xlim(left=0)
        axis.set_xlabel(X_LABELS[x_axis][0])
    if not labels:
        plt.close(figure)
        return note(
            f"Figure 4 is left out: no default run of {task} has the diagnostics (--ablation-task: another task)"
        )
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=4)
    return figure, " ".join(remarks), ratios


def ablation_panels():
    """The four panels of Figure 5: title and [(label, algorithm, variant, colour, line style)]."""
    panels = []
    for ams, base in PAIRS:
        rows = [
            ("Baseline", base, "default", ALGORITHMS[base][1], "--"),
            ("w/o NTD", ams, "without_ntd", "#CC79A7", "-."),
            ("w/o LN-Q", ams, "without_layer_norm", "#000000", ":"),
            ("AMS (full)", ams, "default", ALGORITHMS[ams][1], "-"),
        ]
        panels.append((f"Components ({ALGORITHMS[base][0]})", rows))
    shades = {0: ("#440154", "--"), 1: ("#31688E", "-."), 2: ("#35B779", ":"), 3: ("#9D9D00", (0, (4, 1, 1, 1, 1, 1)))}
    for group, title in (("Radius", "Radius ε (TD3)"), ("Neighbors", "Neighbors K (TD3)")):
        rows = []
        for _, label, algorithm, variant, _, _ in (row for row in PAPER_TABLE_3 if row[0] == group):
            color, style = (ALGORITHMS["ams_td3"][1], "-") if variant == "default" else shades[len(rows)]
            rows.append((label.split(" (")[0], algorithm, variant, color, style))
        panels.append((title, rows))
    return panels


def figure_5(runs, task="quadruped-run", x_axis="steps", metric="eval"):
    """Ablation curves of one task in four panels that share axes. Returns figure and caption, or None without runs."""
    figure, axes = plt.subplots(1, 4, figsize=(WIDTH, 2.7), sharex=True, sharey=True, layout="constrained")
    empty = True
    for panel, (axis, (title, rows)) in enumerate(zip(axes, ablation_panels(), strict=True)):
        for label, algorithm, variant, color, style in rows:
            group = [run for run in ablation_runs(runs, algorithm, task, variant) if TAGS[metric] in run.events]
            if group:
                points = curve(group, TAGS[metric], x_axis, None if metric == "eval" else bin_width(group))
                draw_curve(axis, points, color, style, f"{label} ({seeds_label([len(group)])})")
                empty = False
        axis.set_title(f"({chr(97 + panel)}) {title}")
        axis.set_xlabel(X_LABELS[x_axis][0])
        if axis.get_lines():
            axis.legend(loc="upper center", bbox_to_anchor=(0.45, -0.32), handlelength=2.4)
    axes[0].set_xlim(left=0)
    if task in TASKS:
        axes[0].set_ylim(0, min(MAX_RETURN, axes[0].get_ylim()[1]))
    axes[0].locator_params(nbins=4, axis="x")
    axes[0].set_ylabel(RETURN_LABELS[metric])
    figure.get_layout_engine().set(h_pad=0.08)  # room below the legends
    if empty:
        plt.close(figure)
        return note(f"Figure 5 is left out: there are no runs of {task} (--ablation-task: another task)")
    return figure, f"Ablations on {title_of(task)}, of seeds 0, 42 and 123 where there are any of these. {BAND}"


def load_sampler():
    """sample_directions of the ams_td3.py beside this file; None and a line where it cannot be had."""
    sys.path.append(str(Path(__file__).resolve().parent))
    try:
        from ams_td3 import sample_directions
    except ImportError as error:
        return note(f"Figure A.1 is left out: it draws from the functions of ams_td3.py ({error})")
    return sample_directions


def figure_a1(sample_directions, action_dim=38, num_directions=8, batch_size=4096, seed=0):
    """Lengths and pairwise cosines of Gaussian against orthogonal directions, drawn from the scripts' own function.

    Returns the figure, its caption and, for each sampling, the mean and deviation of the lengths, the mean over batch
    elements of the largest |cosine| between two directions, and the mean volume they span (Proposition A.5).
    """
    import torch  # only for this figure; the rest of the plotter does without

    figure, axes = plt.subplots(1, 4, figsize=(WIDTH, 2.3), layout="constrained")
    facts, ticks = {}, [str(k + 1) if k % 2 == 0 else "" for k in range(num_directions)]
    for axis, (sampling, color) in zip(axes, (("gaussian", "#999999"), ("orthogonal", "#D55E00")), strict=False):
        generator = torch.Generator().manual_seed(seed)
        v = sample_directions(sampling, batch_size, num_directions, action_dim, generator=generator).double().numpy()
        lengths = np.linalg.norm(v, axis=-1)
        gram = v @ v.transpose(0, 2, 1)
        first, second = np.triu_indices(num_directions, 1)
        cosines = (gram / (lengths[:, :, None] * lengths[:, None]))[:, first, second]
        facts[sampling] = {
            "length_mean": lengths.mean(),
            "length_std": lengths.std(),
            "largest_cosine": np.abs(cosines).max(axis=1).mean(),
            "volume": np.sqrt(np.maximum(np.linalg.det(gram), 0)).mean(),
        }
        image = axis.imshow(gram[0], vmin=-1, vmax=1, cmap="RdBu_r")
        axis.set(
            title=f"({'a' if sampling == 'gaussian' else 'b'}) {sampling.capitalize()}: $V V^\\top$", xlabel="Direction"
        )
        axis.set_xticks(range(num_directions), ticks)
        axis.set_yticks(range(num_directions), ticks)
        axis.grid(False)
        # Bins are centred on 0 and on 1, where the orthogonal directions lie up to rounding.
        for panel, values, bins in (
            (axes[2], cosines, np.arange(-0.825, 0.84, 0.05)),
            (axes[3], lengths, np.arange(0.475, 1.54, 0.05)),
        ):
            weights = np.full(values.size, 1 / values.size)
            panel.hist(values.ravel(), bins, weights=weights, color=color, alpha=0.85, label=sampling.capitalize())
    figure.colorbar(
        image, ax=axes[:2], shrink=0.7, aspect=30, ticks=(-1, 0, 1), location="bottom"
    ).outline.set_linewidth(0.4)
    axes[2].set(title="(c) Cosines of pairs", xlabel="Cosine", ylabel="Share (log scale)", yscale="log")
    axes[3].set(title="(d) Lengths", xlabel="Length", yscale="log")
    figure.legend(*axes[2].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    caption = (
        f"Gaussian N(0, I/d) against orthogonal directions, d = {action_dim}, K = {num_directions}, from ams_td3.py: "
        f"inner products in one batch element, then cosines and lengths over {batch_size:,}."
    )
    for name, fact in facts.items():
        caption += (
            f" {name.capitalize()}: length {fact['length_mean']:.3f} ± {fact['length_std']:.3f}, largest |cosine| of "
            f"two {fact['largest_cosine']:.3f} on average, spanned volume {fact['volume']:.3f}."
        )
    return figure, caption, facts


# ---------------------------------------------------------------- beyond the paper: rliable

MEASURES = ("IQM", "Median", "Mean", "Optimality gap")
THRESHOLDS = np.linspace(0, 1, 101)


def aggregate(scores):
    """rliable's interquartile mean, median, mean and optimality gap of scores [runs, tasks], and the profile [105].

    The interquartile mean is that of rliable.metrics, without scipy's checks, which take most of a bootstrap's time.
    """
    from rliable import metrics

    cut = scores.size // 4
    iqm = np.sort(scores, axis=None)[cut : scores.size - cut].mean()
    three = [f(scores) for f in (metrics.aggregate_median, metrics.aggregate_mean, metrics.aggregate_optimality_gap)]
    return np.array([iqm, *three, *(scores.ravel()[:, None] > THRESHOLDS).mean(axis=0)])


def improvement(scores_x, scores_y):
    """Probability that x beats y, ties half, averaged over tasks.

    The value of rliable.metrics.probability_of_improvement, which asks scipy's Mann-Whitney test for it and would take
    minutes in a bootstrap.
    """
    x, y = scores_x[:, None], scores_y[None]
    return np.array([(np.mean(x > y, axis=(0, 1)) + 0.5 * np.mean(x == y, axis=(0, 1))).mean()])


def bootstrap(scores, function, reps, seed):
    """rliable's stratified bootstrap of `function`: its value [M] and the 95% interval [2, M], NaN from single runs.

    rliable draws from numpy's global generator whatever random_state it is given, so that one is seeded, then restored.
    """
    from rliable import library

    state = np.random.get_state()
    np.random.seed(seed)
    try:
        if min(len(s) for s in (scores if isinstance(scores, list) else [scores])) < 2:
            value = function(*scores) if isinstance(scores, list) else function(scores)
            return value, np.full((2, len(value)), np.nan)
        values, intervals = library.get_interval_estimates({"": scores}, function, reps=reps)
    finally:
        np.random.set_state(state)
    return values[""], intervals[""]


def normalised_scores(runs, tasks, algorithms, metric):
    """Final returns / 1000 of finished default runs: {algorithm: [seeds, tasks]}, the tasks, and remarks.

    rliable compares algorithms on the same tasks with equal numbers of runs: tasks that lack an algorithm are left out,
    algorithms with less than half of the best covered one's tasks too, and seeds beyond the smallest number.
    """
    value, cells, remarks = final_return(metric), {}, []
    for algorithm in algorithms:
        for task in tasks:
            cell = summarise(select(runs, algorithm, task), value, budget_of(task))
            if not math.isnan(cell["mean"]):
                cells[algorithm, task] = cell
    covered = {a: [t for t in tasks if (a, t) in cells] for a in algorithms}
    most = max(map(len, covered.values()), default=0)
    kept = [a for a in algorithms if covered[a] and len(covered[a]) * 2 >= most]
    shared = [t for t in tasks if kept and all(t in covered[a] for a in kept)]
    scores = {}
    for algorithm in kept if shared else []:
        own = [cells[algorithm, task] for task in shared]
        seeds = min(cell["seeds"] for cell in own)
        columns = [[value(run) / MAX_RETURN for run in cell["runs"][:seeds]] for cell in own]
        scores[algorithm] = np.array(columns).T
        remarks += [
            f"{ALGORITHMS[algorithm][0]}, {title_of(task)}: {cell['note']}."
            for task, cell in zip(shared, own, strict=True)
            if cell["note"]
        ]
        if any(cell["seeds"] > seeds for cell in own):
            remarks.append(f"{ALGORITHMS[algorithm][0]}: the first {seeds} seeds of each task.")
    left = [title_of(task) for task in tasks if task not in shared]
    if left and kept:
        remarks.append(f"Left out, not finished by all algorithms: {', '.join(left)}.")
    gone = [ALGORITHMS[a][0] for a in algorithms if covered[a] and a not in kept]
    if gone:
        remarks.append(f"Left out, too few tasks finished: {', '.join(gone)}.")
    return scores, shared, remarks


def reliable_statistics(runs, metric, reps, seed):
    """All of rliable's numbers: rows of the table, {set: {algorithm: (profile, interval)}} and what to say of them."""
    rows, profiles = [], {}
    remarks = [
        "rliable on final returns / 1000 (the largest return of an episode in every dm_control task, and in the four "
        "H1 tasks too: 1,000 steps with rewards in [0, 1]); stratified bootstrap over seeds, 95% percentile intervals, "
        f"{reps:,} resamples, seed {seed}. High-dimensional: the dog's tasks, 38 action dimensions."
    ]
    for name, tasks in (("All tasks", tuple(TASKS)), ("High-dimensional", HIGH_DIMENSIONAL)):
        scores, shared, own = normalised_scores(runs, tasks, tuple(ALGORITHMS), metric)
        remarks += [f"{name}: {remark}" for remark in own]
        profiles[name] = {}
        for algorithm, matrix in scores.items():
            value, interval = bootstrap(matrix, aggregate, reps, seed)
            profiles[name][algorithm] = value[4:], interval[:, 4:]
            for i, measure in enumerate(MEASURES):
                row = {"set": name, "algorithm": ALGORITHMS[algorithm][0], "measure": measure, "value": value[i]}
                rows.append(
                    row | {"low": interval[0, i], "high": interval[1, i], "tasks": len(shared), "seeds": len(matrix)}
                )
        for ams, base in PAIRS:
            scores, shared, _ = normalised_scores(runs, tasks, (ams, base), metric)
            if len(scores) == 2:
                value, interval = bootstrap([scores[ams], scores[base]], improvement, reps, seed)
                row = {"set": name, "algorithm": f"{ALGORITHMS[ams][0]} over {ALGORITHMS[base][0]}"}
                row |= {"measure": "Probability of improvement", "value": value[0], "low": interval[0, 0]}
                rows.append(
                    row | {"high": interval[1, 0], "tasks": len(shared), "seeds": min(map(len, scores.values()))}
                )
    return rows, profiles, " ".join(remarks)


def figure_aggregates(rows):
    """rliable's point estimates with their intervals: a row of panels for each set of tasks, a column a measure."""
    sets = list(dict.fromkeys(row["set"] for row in rows))
    measures = (*MEASURES, "Probability of improvement")
    figure, axes = plt.subplots(
        len(sets), 5, figsize=(WIDTH, 0.5 + 1.15 * len(sets)), squeeze=False, sharex="col", layout="constrained"
    )
    colors = {label: color for label, color, _ in ALGORITHMS.values()}
    for line, name in enumerate(sets):
        for column, measure in enumerate(measures):
            axis = axes[line, column]
            own = [row for row in rows if (row["set"], row["measure"]) == (name, measure)][::-1]
            for y, row in enumerate(own):
                color = colors[row["algorithm"].split(" over ")[0]]
                axis.barh(y, row["high"] - row["low"], 0.6, row["low"], color=color, alpha=0.35, linewidth=0)
                axis.plot([row["value"]] * 2, [y - 0.3, y + 0.3], color=color, clip_on=False)
            names = [row["algorithm"].replace(" over ", "\nover ") for row in own]
            axis.set_yticks(range(len(own)), names if column in (0, 4) else [""] * len(own))
            axis.set_ylim(-0.6, len(own) - 0.4)
            axis.grid(axis="y", visible=False)
            axis.set_xlim(0, 1)
            axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            if line == 0:
                axis.set_title(measure.replace("Probability of i", "Probability of\ni"))
        axes[line, 0].set_ylabel(name)
    return figure


def figure_profiles(profiles):
    """Performance profiles: the share of runs above each normalised return, with 95% bands."""
    sets = {name: own for name, own in profiles.items() if own}
    figure, axes = plt.subplots(
        1, len(sets), figsize=(3.3 * len(sets), 2.3), squeeze=False, sharey=True, layout="constrained"
    )
    for axis, (name, own) in zip(axes[0], sets.items(), strict=True):
        for algorithm, (profile, interval) in own.items():
            label, color, style = ALGORITHMS[algorithm]
            axis.plot(THRESHOLDS, profile, color=color, linestyle=style, label=label)
            axis.fill_between(THRESHOLDS, *interval, color=color, alpha=0.16, linewidth=0)
        axis.set_title(name)
        axis.set_xlabel("Normalised return τ")
        axis.set_xlim(0, 1)
        axis.set_ylim(0, 1.02)
    axes[0, 0].set_ylabel("Share of runs above τ")
    handles = {h.get_label(): h for axis in axes[0] for h in axis.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5 if len(sets) > 1 else 3)
    return figure


# ---------------------------------------------------------------- tables


def paper_table_2():
    """{(algorithm, task): (mean, std)} of the paper's Table 2."""
    lines = (line.split() for line in PAPER_TABLE_2.strip().split("\n"))
    rows = {algorithm: dict(zip(TASKS, cells, strict=True)) for algorithm, *cells in lines}
    return {(a, t): tuple(map(float, c.split("±"))) for a, row in rows.items() for t, c in row.items()}


def largest_std(mean, count=5):
    """The largest standard deviation (n - 1) of returns in [0, 1000] with this mean: all are 0 or 1000, but for one."""
    full, rest = divmod(mean * count, MAX_RETURN)
    values = [MAX_RETURN] * int(full) + [rest] + [0] * count
    return np.std(values[:count], ddof=1)


def impossible(mean, std):
    """Whether no five returns in [0, 1000] have this mean and standard deviation, both rounded to whole numbers."""
    return mean >= 1 and std - 0.5 > max(map(largest_std, (mean - 0.5, mean, mean + 0.5)))


def table_2(runs, metric="eval"):
    """Rows of Table 2: every task of the paper, then other tasks that have runs, by every algorithm."""
    rows, paper = [], paper_table_2()
    others = [task for task in tasks_of(runs) if task not in TASKS]
    for task in [*TASKS, *others]:
        for algorithm, (label, _, _) in ALGORITHMS.items():
            own = select(runs, algorithm, task)
            if own or task in TASKS:
                cell = summarise(own, final_return(metric), budget_of(task))
                values = paper.get((algorithm, task), (math.nan, math.nan))
                rows.append({"task": title_of(task), "algorithm": label} | compare(cell, *values, impossible(*values)))
    return rows


def table_3(runs, task="quadruped-run", metric="eval"):
    """Rows of Table 3, then every other variant of an AMS script on that task; the paper's values on its task only."""
    rows, value, shown = [], final_return(metric), set()
    for group, label, algorithm, variant, mean, std in PAPER_TABLE_3:
        paper = (mean, std) if task == "quadruped-run" else (math.nan, math.nan)
        cell = summarise(ablation_runs(runs, algorithm, task, variant), value, budget_of(task))
        base = ALGORITHMS[algorithm][0].removeprefix("AMS-")
        rows.append({"group": group, "variant": label, "base": base} | compare(cell, *paper))
        shown.add((algorithm, variant))
    for algorithm, variant in sorted({(r.algorithm, r.variant) for r in runs if r.task == task} - shown):
        if variant != "default":
            cell = summarise(ablation_runs(runs, algorithm, task, variant), value, budget_of(task))
            rows.append({"group": "Other", "variant": variant, "base": ALGORITHMS[algorithm][0]} | compare(cell))
    return rows


def table_b4(runs):
    """Rows of Table B.4: hours for 1M steps, base algorithm and AMS, on the tasks of the paper's two tables, a row for
    each device that runs were finished on."""
    rows = []
    have = {run.task for run in runs}
    for task in [t for t in TASKS if t in PAPER_TABLE_B4 or t in have]:
        for algorithm in (algorithm for pair in PAIRS for algorithm in pair[::-1]):
            paper = PAPER_TABLE_B4.get(task, (math.nan, math.nan))[algorithm in ("ams_td3", "ams_sac")]
            own = {}
            for run in select(runs, algorithm, task):
                own.setdefault(str(run.result.get("device", "device not recorded")) if run.result else "", []).append(
                    run
                )
            unfinished = own.pop("", [])
            for device, group in own.items() or [("", [])]:
                cell = summarise(group + unfinished, hours_per_million_steps, budget_of(task))
                row = {"task": title_of(task), "algorithm": ALGORITHMS[algorithm][0], "device": device}
                rows.append(row | compare(cell, paper))
    return rows


def sample_efficiency(runs, metric="eval"):
    """Rows: steps at which the mean curve of AMS first reaches its base algorithm's final return (finished runs)."""
    rows = []
    for task in tasks_of(runs):
        for ams, base in PAIRS:
            cells = [summarise(select(runs, a, task), final_return(metric), budget_of(task)) for a in (ams, base)]
            group = [run for run in cells[0]["runs"] if TAGS[metric] in run.events]
            if not group or math.isnan(cells[1]["mean"]):
                continue
            target, width = cells[1]["mean"], None if metric == "eval" else bin_width(group)
            curves = [curve(own, TAGS[metric], "steps", width) for own in [group, *([run] for run in group)]]
            curves[0] = curves[0][curves[0]["count"] == len(group)]
            first, *alone = (points.index[points["mean"] >= target] for points in curves)
            row = {"task": title_of(task), "algorithm": ALGORITHMS[ams][0], "base": ALGORITHMS[base][0]}
            row |= {
                "base_return": target,
                "base_steps": cells[1]["steps"],
                "steps": first[0] if len(first) else math.nan,
            }
            row["speed_up"] = row["base_steps"] / row["steps"] if row["steps"] else math.nan  # reached at step 0
            row |= {"seeds_that_reach_it": sum(len(reached) > 0 for reached in alone), "seeds": len(group)}
            rows.append(row | {"note": "; ".join(filter(None, (cell["note"] for cell in cells)))})
    return rows


def spread(mean, std, digits):
    """ "712 ± 27", "712" where there is no deviation, "–" where there is no value."""
    if math.isnan(mean):
        return "–"
    return f"{mean:.{digits}f}" + ("" if math.isnan(std) else f" ± {std:.{digits}f}")


def display_comparison(row, labels, digits=0):
    """One row of Tables 2, 3 and B.4 as text."""
    absent = "missing" if row["note"].startswith("missing") else "unfinished" if math.isnan(row["steps"]) else "–"
    number = "–" if math.isnan(row["difference"]) else f"{row['difference']:+.{digits}f}".replace("-", "−")
    return {label.capitalize(): row[label] for label in labels} | {
        "Ours": spread(row["mean"], row["std"], digits) if row["seeds"] else absent,
        "Seeds": str(row["seeds"]),
        "Steps": "–" if math.isnan(row["steps"]) else f"{row['steps']:,}",
        "Paper": spread(row["paper_mean"], row["paper_std"], digits),
        "Difference": number + (" †" if row["outside_both"] else ""),
        "Note": row["note"],
    }


def display_statistic(row):
    """One row of rliable's numbers as text."""
    interval = "–" if math.isnan(row["low"]) else f"[{row['low']:.3f}, {row['high']:.3f}]"
    shown = {name.capitalize(): row[name] for name in ("set", "algorithm", "measure")} | {
        "Value": f"{row['value']:.3f}"
    }
    return shown | {"95% interval": interval, "Tasks": str(row["tasks"]), "Seeds": str(row["seeds"])}


def display_efficiency(row):
    """One row of the sample-efficiency table as text."""
    return {
        "Task": row["task"],
        "Algorithm": row["algorithm"],
        "Base": row["base"],
        "Base return": f"{row['base_return']:.0f}",
        "Base steps": f"{row['base_steps']:,}",
        "Steps to reach it": "not reached" if math.isnan(row["steps"]) else f"{row['steps']:,}",
        "Ratio": "–" if math.isnan(row["speed_up"]) else f"{row['speed_up']:.1f}×",
        "Seeds that reach it": f"{row['seeds_that_reach_it']} of {row['seeds']}",
        "Note": row["note"],
    }


def latex(text):
    """Text with LaTeX's special characters escaped."""
    text = re.sub(r"([&%$#_{}])", r"\\\1", text)
    for character, code in {
        "±": r"$\pm$",
        "ε": r"$\epsilon$",
        "†": r"$^\dagger$",
        "–": "--",
        "−": "$-$",
        "×": r"$\times$",
    }.items():
        text = text.replace(character, code)
    return re.sub(r"([<>=])", r"$\1$", text)


def write_table(out_dir, name, caption, rows, shown):
    """Write rows as name.csv (all digits), and their text form `shown` as name.md and name.tex."""
    pd.DataFrame(rows).to_csv(out_dir / f"{name}.csv", index=False)
    header = list(shown[0])
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header))]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row.values()) + " |" for row in shown]
    (out_dir / f"{name}.md").write_text("\n".join([caption, "", *lines, ""]), encoding="utf-8")
    body = [" & ".join(map(latex, cells)) + r" \\" for cells in (header, *(row.values() for row in shown))]
    head = [
        r"% \usepackage{booktabs,adjustbox}",
        r"\begin{table}",
        rf"\caption{{{latex(caption)}}}",
        r"\begin{adjustbox}{max width=\linewidth, max totalheight=0.8\textheight, center}",
        rf"\begin{{tabular}}{{{'l' * len(header)}}}",
    ]
    tail = [r"\bottomrule", r"\end{tabular}", r"\end{adjustbox}", r"\end{table}", ""]
    parts = [*head, r"\toprule", body[0], r"\midrule", *body[1:], *tail]
    (out_dir / f"{name}.tex").write_text("\n".join(parts), encoding="utf-8")


# ---------------------------------------------------------------- peers' curves


def read_reference(path, tag):
    """Peers' curves in the form of --export, as runs that hold only this tag. Raises InputError."""
    needed = ("algorithm", "task", "seed", "step", "tag", "value")
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(f"--reference {path} cannot be read as CSV ({str(error).strip()})") from None
    missing = [name for name in needed if name not in frame]
    if missing:
        raise InputError(f"--reference {path} lacks the column {', '.join(missing)}; it needs {', '.join(needed)}")
    own = frame[frame["tag"] == tag]
    if own.empty:
        have = ", ".join(sorted(map(str, frame["tag"].unique()))) or "none"
        raise InputError(f"--reference {path} has no rows with tag {tag}; its tags: {have}")
    for name in needed:
        numeric = name in ("step", "value")
        bad = (pd.to_numeric(own[name], errors="coerce") if numeric else own[name]).isna()
        if bad.any():
            row = own.index[bad][0]
            wrong = f"{frame[name][row]!r} is not a number" if numeric else "is empty"
            raise InputError(f"--reference {path}, line {row + 2}: {name} {wrong}")
    own = own.astype({"step": float, "value": float})
    own = own.assign(variant=own["variant"].fillna("default") if "variant" in own else "default")
    runs = []
    for (algorithm, variant, task, seed), rows in own.groupby(["algorithm", "variant", "task", "seed"]):
        rows = rows.sort_values("step")
        steps = rows["step"].to_numpy(np.int64)
        seconds = rows["wall_seconds"].to_numpy(float) if "wall_seconds" in rows else np.full(len(rows), np.nan)
        run = Run(Path(path), str(algorithm), str(variant), str(task), seed, {}, None, step=int(steps[-1]))
        run.events[tag] = steps, seconds, rows["value"].to_numpy(float)
        for name in ("frames", "updates"):
            if name in rows and rows[name].notna().all():
                run.events[f"charts/{name}"] = steps, seconds, rows[name].to_numpy(float)
        runs.append(run)
    return runs


# ---------------------------------------------------------------- command line


def write_tables(runs, args, statistics, about):
    """Write every table that has rows. Returns their names."""
    over = "10 deterministic evaluation episodes at the end of training"
    if args.metric == "train":
        over = "training episodes of the last 10% of steps"
    seeds = "Mean ± standard deviation over seeds (sample deviation, n - 1)"
    marks = "† marks a difference larger than both standard deviations."
    wrong = ", ".join(
        f"{mean:.0f} ± {std:.0f} for {ALGORITHMS[algorithm][0]} on {title_of(task)} (at most {largest_std(mean):.0f})"
        for (algorithm, task), (mean, std) in paper_table_2().items()
        if impossible(mean, std)
    )
    wrong = f"Impossible deviations of five returns in [0, 1000], as the paper prints them: {wrong}."
    tables = {
        "table2": (
            f"Table 2. Returns of {over}. {seeds}; the paper's over 5 seeds. {marks} {wrong}",
            table_2(runs, args.metric),
            lambda row: display_comparison(row, ("task", "algorithm")),
        ),
        "table3": (
            f"Table 3. {title_of(args.ablation_task)}, returns of {over}. {seeds}, of seeds 0, 42 and 123 "
            f"where there are any of these, as in the paper. {marks}",
            table_3(runs, args.ablation_task, args.metric),
            lambda row: display_comparison(row, ("group", "variant", "base")),
        ),
        "table_b4": (
            f"Table B.4. Hours for 1M steps, evaluations included, scaled up from the run's own steps. {seeds}; the "
            "paper gives one time for baseline and AMS each, on an RTX 3090, without a spread. † marks a difference "
            "larger than our standard deviation.",
            table_b4(runs),
            lambda row: display_comparison(row, ("task", "algorithm", "device"), digits=2),
        ),
        "aggregates": (f"Aggregates. {about}", statistics, display_statistic),
        "sample_efficiency": (
            "Sample efficiency. Steps after which the mean curve of AMS first reaches the final return of its base "
            "algorithm, and the base algorithm's own steps over these.",
            sample_efficiency(runs, args.metric),
            display_efficiency,
        ),
    }
    for name, (caption, rows, display) in tables.items():
        if rows:
            write_table(args.out_dir, name, caption, rows, [display(row) for row in rows])
    return [f"{name}.md" for name, (_, rows, _) in tables.items() if rows]


def save_figures(figures, args):
    """Save {name: (figure, caption, ...) or None} in every format. Returns the captions as lines."""
    lines = []
    for name, drawn in figures.items():
        if drawn:
            for kind in dict.fromkeys(args.format):
                drawn[0].savefig(args.out_dir / f"{name}.{kind}")
            plt.close(drawn[0])
            lines.append(f"**{name}**: {drawn[1]}\n")
    return lines


def say_what_is_odd(runs, references, args):
    """A line for each tag that some runs lack, each group whose seeds differ in an argument, each stray reference."""
    diagnosed = [run for run in runs if run.task == args.ablation_task and run.algorithm != "ppo"]
    wanted = [(TAGS[args.metric], runs), *((tag, diagnosed) for tag in DIAGNOSTICS)]
    if args.x_axis in ("frames", "updates"):
        wanted.append((f"charts/{args.x_axis}", runs))
    for tag, group in wanted:
        lacking = [run for run in group if run.events and tag not in run.events]
        if lacking:
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            note(f"no {tag} in {lacking[0].path}{more}; what is drawn from it leaves them out")
    for key in sorted({(run.algorithm, run.task, run.variant) for run in runs}):
        differing = differing_arguments(select(runs, *key))
        if differing:
            note(f"the seeds of {' '.join(key)} differ in {', '.join(differing)}, and are averaged all the same")
    strangers = sorted({run.task for run in references} - {run.task for run in runs})
    if strangers:
        note(f"--reference: no runs of {', '.join(strangers)} to draw these curves beside")


def parse_args():
    """The command line as Args. What tyro says of a wrong flag or value, in a box, becomes one line: InputError."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(Args, description=__doc__)
    except SystemExit as ended:
        if ended.code:
            words = re.sub(r"\x1b\[[\d;]*m|[│─]", "", "".join(box.getvalue().splitlines(True)[1:-1])).split()
            raise InputError(" ".join(words)) from None
        raise


def main(args):
    """Read the runs, write figures, captions and tables, and say what was written."""
    plt.rcParams.update(STYLE)
    started = time.time() - 1  # clocks of file systems are a little coarser
    if args.bootstrap_reps < 1 or not 0 <= args.bootstrap_seed < 2**32:
        raise InputError("--bootstrap-reps must be at least 1, and --bootstrap-seed in 0 ... 4294967295")
    if args.out_dir.exists() and not args.out_dir.is_dir():
        raise InputError(f"--out-dir {args.out_dir} is a file; give a folder")
    if args.export and not args.export.parent.is_dir() and args.export.parent != args.out_dir:
        raise InputError(f"--export {args.export}: there is no folder {args.export.parent}")
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    references = [run for path in args.reference for run in read_reference(path, TAGS[args.metric])]
    runs = read_runs(args.directory, args.prefer, workers)
    say_what_is_odd(runs, references, args)
    args.out_dir.mkdir(parents=True, exist_ok=True)
    if args.export:
        long_form(runs).to_csv(args.export, index=False)
    with ProcessPoolExecutor(1) as pool:  # rliable's bootstrap takes as long as the drawing, and goes on meanwhile
        light = [replace(run, events={}) for run in runs]
        promise = pool.submit(reliable_statistics, light, args.metric, args.bootstrap_reps, args.bootstrap_seed)
        sampler = load_sampler()
        figures = {
            "figure3": figure_3(runs, args.x_axis, args.metric, references),
            "figure4": figure_4(runs, args.ablation_task, args.x_axis),
            "figure5": figure_5(runs, args.ablation_task, args.x_axis, args.metric),
            "figure_a1": figure_a1(sampler) if sampler else None,
        }
        captions = save_figures(figures, args)
        rows, profiles, about = promise.result()
    if rows:
        figures = {"aggregates": (figure_aggregates(rows), f"Aggregates and probability of improvement. {about}")}
        if any(profiles.values()):
            figures["profiles"] = figure_profiles(profiles), f"Share of runs above a normalised return. {about}"
        captions += save_figures(figures, args)
    else:
        note("aggregates and profiles are left out: no task of the paper has a finished default run")
    (args.out_dir / "captions.md").write_text("\n".join(captions), encoding="utf-8")
    tables = write_tables(runs, args, rows, about)
    old = sorted(path.name for path in args.out_dir.glob("*.*") if path.stat().st_mtime < started)
    if old:
        note(f"{', '.join(old)} in {args.out_dir} are from an earlier call")
    finished = sum(run.result is not None for run in runs)
    print(f"{len(runs)} runs, {finished} finished; {len(captions)} figures, {', '.join(tables)} in {args.out_dir}")


if __name__ == "__main__":
    try:
        main(parse_args())
    except (InputError, OSError) as error:
        print(f"plot_curves.py: error: {error}", file=sys.stderr)
        sys.exit(2)
