"""Figures and tables of the Action Manifold Smoothing paper, from the runs of the training scripts.

    python plot_curves.py runs/
    python plot_curves.py runs/ more_runs/ --export results/     # publish: data, figures and tables in one folder
    python plot_curves.py results/                               # the same figures and tables, from published data

A run is a folder with args.json, finished if it has result.json too: only those give numbers to the paper's tables,
others are drawn and named in captions.md. From Python, `load_runs("runs/")` has every logged value as a DataFrame.
"""

import argparse
import functools
import json
import logging.handlers
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

if __name__ == "__main__":
    os.environ["MPLBACKEND"] = "agg"  # no display needed; a notebook's may be unknown here

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy
import seaborn as sns
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

# ---------------------------------------------------------------- names and looks
ALGORITHMS = {
    "ams_td3": "AMS-TD3",
    "ams_sac": "AMS-SAC",
    "ppo": "PPO",
    "td3": "TD3",
    "sac": "SAC",
}
PAIRS = {"ams_td3": "td3", "ams_sac": "sac"}  # AMS and its base algorithm

# What AMS adds to its base algorithm, one by one: the variants that figure_is_it_ntd compares.
ARMS = {
    "AMS": "default",
    "AMS, ε = 1.2": "epsilon=1.2",
    "+ LayerNorm": "ntd=False",
    "+ LayerNorm, point target": "epsilon=0.0 num_neighbors=1",
    "Baseline": "default",  # of the base algorithm
}
# Arguments that make a variant of an algorithm, with their usual values.
SWITCHES = {
    "ntd": True,
    "layer_norm": True,
    "epsilon": 0.2,
    "num_neighbors": 8,
    "sampling": "orthogonal",
    "action_projection": "tanh",
}

# How a curve looks, the same in all figures: colors that the color-blind tell apart (Okabe, Ito), and lines and markers
# for print.
LOOKS = {
    "AMS-TD3": ("#D55E00", "-", "o"),
    "AMS-SAC": ("#0072B2", "-", "s"),
    "PPO": ("#000000", ":", "X"),
    "TD3": ("#E69F00", "--", "^"),
    "SAC": ("#56B4E9", "--", "v"),
    "AMS": ("#D55E00", "-", "o"),
    "AMS, ε = 1.2": ("#0072B2", "-", "s"),
    "+ LayerNorm": ("#009E73", "-.", "D"),
    "+ LayerNorm, point target": ("#CC79A7", ":", "P"),
    "AMS (full): ε = 0.2, K = 8": ("#D55E00", "-", "o"),
    "w/o LN-Q": ("#000000", ":", "X"),
    "w/o NTD": ("#009E73", "-.", "D"),
    "Baseline": ("#E69F00", "--", "^"),
    "ε = 0.4, or K = 4": ("#56B4E9", "--", "<"),
    "ε = 0.6, or K = 6": ("#0072B2", "-.", ">"),
    "ε = 0.8, or K = 10": ("#000000", ":", "*"),
}
GREYS = ["0.35", "0.5", "0.65", "0.8"]  # of others' curves
STYLE = {  # on top of matplotlib's defaults: what the user's configuration says must not change a figure
    "savefig.dpi": 300,
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib
    "legend.frameon": False,
    "legend.handlelength": 3.2,
    "lines.markersize": 3.5,
    "pdf.fonttype": 42,  # TrueType, as journals ask
    "svg.hashsalt": "plot_curves",  # the same data, the same file
}
WIDTH = 6.75  # inches, the text width of a two-column page, so that font sizes are the printed ones
MAX_RETURN = 1000  # of an episode in all of the paper's tasks: 1000 control steps with rewards in [0, 1]
# --x-axis: column, label, and how many of the column's units are one on the axis.
AXES = {
    "steps": ("step", "Steps (thousands)", 1e3),
    "frames": ("frames", "Frames (millions)", 1e6),
    "updates": ("updates", "Updates (thousands)", 1e3),
    "hours": ("wall_seconds", "Hours", 3600),
}
# --metric: tag of the curves, column of the table of runs, label.
METRICS = {
    "eval": ("eval/episodic_return", "final", "Evaluation return"),
    "train": ("charts/episodic_return", "training_return_last_10_percent", "Training return"),
}
DIAGNOSTICS = {
    "diagnostics/critic_grad_norm": "Critic gradient norm",
    "diagnostics/td_target_variance": "TD target variance",
}
MEASURES = ["IQM", "Median", "Mean", "Optimality gap"]  # as `aggregate` returns them
THRESHOLDS = np.linspace(0, 1, 51)  # of performance profiles

COUNTERS = ["frames", "updates", "wall_seconds"]
CELL = ["algorithm", "variant", "task"]
KEY = [*CELL, "seed"]
EPISODES = [*KEY, "origin", "step", *COUNTERS, "episode", "return"]
SCALARS = [*KEY, "origin", "step", *COUNTERS, "tag", "value"]
RUNS = [*KEY, "origin", "path", "args", "global_step", "wall_seconds", "device", "training_return_last_10_percent"]
TYPES = {"seed": np.int64, "step": np.int64, "wall_seconds": float, "return": float, "value": float}
NUMBER = ["measure", "value", "low", "high"]


# ---------------------------------------------------------------- files
class InputError(ValueError):
    """The runs, or a file given, cannot be used; the message is one line for the user."""


def note(message):
    """One line on stderr about something left out or doubtful."""
    tqdm.write(f"plot_curves.py: note: {message}", file=sys.stderr)


def write(path, content):
    """A text replaces a file in one step: data that are published over themselves survive a full disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)


def read_csv(path, columns=None):
    """A CSV file as a DataFrame; InputError if one of these columns is missing, or a number in it is none."""
    try:
        return pd.read_csv(path, usecols=columns, dtype=TYPES)
    except (OSError, ValueError) as error:
        message = " ".join(str(error).split())
        raise InputError(f"{path} cannot be used: {message}") from None


def stack(frames):
    """The frames below each other; empty ones would spoil the types of the others."""
    filled = [frame for frame in frames if len(frame)]
    return pd.concat(filled or frames[:1], ignore_index=True)


def paper(table):
    """The paper's numbers of one table, in its order, from results/paper.csv."""
    numbers = read_csv(Path(__file__).resolve().parent / "results" / "paper.csv")
    return numbers.query("table == @table").drop(columns="table").reset_index(drop=True)


def title(task):
    """Dog-Run, as in the paper, for one of its tasks; others as the user wrote them."""
    if task in set(paper("2")["task"]):
        return task.title()
    return task


def in_papers_order(rows):
    """Rows in the order of the paper's tasks, others behind, and of its algorithms."""
    names = [*paper("2")["task"].unique(), *paper("2")["algorithm"].unique()]
    names += sorted(set(rows["task"]) - set(names))
    return rows.sort_values(["task", "algorithm"], kind="stable", key=pd.Index(names).get_indexer)


# ---------------------------------------------------------------- reading
def variant_of(args):
    """What sets a run apart from its algorithm's default: arguments, like "epsilon=0.4", or else its exp_name."""
    if args["algorithm"] not in ALGORITHMS:
        raise ValueError(f"algorithm {args['algorithm']!r} is none of {', '.join(ALGORITHMS)}")
    changed = [f"{name}={args[name]}" for name, usual in SWITCHES.items() if args.get(name, usual) != usual]
    if changed:
        return " ".join(changed)
    name = args.get("exp_name", args["algorithm"])
    if name == args["algorithm"]:
        return "default"
    return name


def read_run(folder, origin):
    """A run's record, which is its result with names and arguments, and its evaluations: EPISODES, None without."""
    args = json.loads((folder / "args.json").read_text())
    path = folder / "result.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    names = {
        "algorithm": args["algorithm"],
        "variant": variant_of(args),
        "task": args["env_id"],
        "seed": int(args["seed"]),
        "origin": origin,
    }
    episodes = None
    if (folder / "evaluations.csv").exists():
        episodes = read_csv(folder / "evaluations.csv", ["step", *COUNTERS, "episode", "return"]).assign(**names)
    return {**result, **names, "args": args, "path": str(folder)}, episodes


def read_runs(directories):
    """All runs below the directories, or published in them, without event files: runs, evaluations, diagnostics.

    runs: a row a run, with `last`, its last evaluated step, `final`, the mean return there, and `hours` for 1M steps.
    evaluations: EPISODES and the run's index in `run`; diagnostics, of published runs: SCALARS and `run`. `origin` is
    the end of the directory's path. InputError if there are no runs, or if two claim the same place.
    """
    records = []
    evaluations = [pd.DataFrame(columns=EPISODES)]
    diagnostics = [pd.DataFrame(columns=SCALARS)]
    for directory in map(Path, directories):
        if not directory.is_dir():
            raise InputError(f"{directory} is no folder; give the one that holds the runs, such as runs/")
        published = directory / "runs.json"
        if published.exists():
            try:
                records += json.loads(published.read_text())
            except ValueError as error:
                raise InputError(f"{published} cannot be used: {error}") from None
            evaluations.append(read_csv(directory / "evaluations.csv", EPISODES))
            diagnostics.append(read_csv(directory / "diagnostics.csv", SCALARS))
            continue
        origin = "/".join(directory.resolve().parts[-2:])
        for path in sorted(directory.rglob("args.json")):
            try:
                record, episodes = read_run(path.parent, origin)
            except (OSError, ValueError, KeyError, TypeError) as error:
                note(f"{path.parent} is left out, one of its files cannot be used: {error!r}")
                continue
            records.append(record)
            if episodes is not None:
                evaluations.append(episodes)
    if not records:
        raise InputError(f"no runs in {', '.join(map(str, directories))}: no folder holds a usable args.json")
    runs = pd.DataFrame(records).reindex(columns=RUNS).assign(record=records)
    runs = runs.sort_values(KEY, ignore_index=True)
    refuse_rivals(runs)
    run_numbers = runs[KEY].reset_index(names="run")
    evaluations = stack(evaluations).merge(run_numbers)
    diagnostics = stack(diagnostics).merge(run_numbers)
    runs["last"] = evaluations.groupby("run")["step"].max().reindex(runs.index, fill_value=0)
    at_end = evaluations[evaluations["step"] == evaluations["run"].map(runs["last"])]
    runs["final"] = at_end.groupby("run")["return"].mean()
    runs["finished"] = runs["global_step"].notna()
    runs["hours"] = runs["wall_seconds"] / runs["global_step"] * 1e6 / 3600
    return runs, evaluations, diagnostics


def refuse_rivals(runs):
    """InputError if two runs are of one algorithm, variant, task and seed."""
    for key, rivals in runs.groupby(KEY):
        if len(rivals) > 1:
            where = ", ".join(rivals["path"].fillna(rivals["origin"]))
            raise InputError(f"{len(rivals)} runs claim {' '.join(map(str, key))}: {where}; remove all but one")


def read_scalars(folder, tags=None):
    """Scalars of a run's event files, of these tags or all: a DataFrame tag, step, value; and what damage was found."""
    damage = logging.handlers.BufferingHandler(1_000_000)
    logger = logging.getLogger("tensorboard")
    logger.setLevel(logging.DEBUG)  # the level at which a truncated file is said
    logger.handlers = [damage]
    logger.propagate = False
    frames = [pd.DataFrame(columns=["tag", "step", "value"], dtype=float)]
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    for tag in events.Tags()["scalars"]:
        if tags is None or tag in tags:
            frames.append(pd.DataFrame(events.Scalars(tag)).assign(tag=tag))
    problems = [record.getMessage() for record in damage.buffer if record.msg.startswith("Truncated record")]
    return stack(frames), problems


def scalars(runs, evaluations, tags=None, apply=map):
    """SCALARS of the runs' event files, of these tags or all, and `run`; counters are interpolated in evaluations."""
    runs = runs.dropna(subset="path")
    reading = apply(functools.partial(read_scalars, tags=tags), map(Path, runs["path"]))
    reading = tqdm(reading, "reading event files", len(runs), leave=False, disable=None)
    blocks = [pd.DataFrame(columns=[*SCALARS, "run"])]
    for run, (frame, problems) in zip(runs.index, reading, strict=True):
        for problem in problems:
            note(f"{problem}; what comes before is used")
        frame = frame.assign(**runs.loc[run, [*KEY, "origin"]], run=run)
        frame[COUNTERS] = np.nan
        known = evaluations[evaluations["run"] == run].groupby("step")[COUNTERS].first()
        if len(known) > 1:
            counters_at = scipy.interpolate.interp1d(known.index, known, axis=0, fill_value="extrapolate")
            frame[COUNTERS] = counters_at(frame["step"])
        blocks.append(frame)
    return stack(blocks)


def binned(rows):
    """Scalars averaged over 10,000 steps (1/20 of the task's longest run if short): seeds log at steps of their own."""
    width = (rows.groupby("task")["step"].transform("max") // 20).clip(1, 10_000)
    rows = rows.assign(step=-(-rows["step"] // width) * width)
    return rows.groupby([*KEY, "origin", "run", "tag", "step"], as_index=False)[[*COUNTERS, "value"]].mean()


def evaluated(evaluations):
    """The mean return of each evaluation, in the form of `scalars`."""
    rows = evaluations.groupby([*KEY, "origin", "run", "step"], as_index=False)[[*COUNTERS, "return"]].mean()
    return rows.rename(columns={"return": "value"}).assign(tag="eval/episodic_return")


def load_runs(*directories):
    """Every value that the runs below the directories logged: a DataFrame with the columns SCALARS.

    wall_seconds are those of training; InputError, a ValueError, says that there is nothing to read.
    """
    runs, evaluations, diagnostics = read_runs(directories)
    logged = scalars(runs, evaluations)
    logged = logged[logged["tag"] != "eval/episodic_return"]
    return stack([evaluated(evaluations), diagnostics, logged])[SCALARS]


# ---------------------------------------------------------------- curves
def reached(last):
    """The last step that more than half of the runs have got to, of the last steps of each."""
    return last.quantile(0.5, "lower")


def at_same_steps(runs, end):
    """The runs of a curve that got to the step `end`, until there, at the same steps: {column: values [runs, steps]}.

    The steps are those of the run with the fewest, and `end`; between its own steps a run is interpolated linearly.
    """
    whole = [run for _, run in runs.sort_values("step").groupby("run") if run["step"].min() <= end <= run["step"].max()]
    start = max(run["step"].min() for run in whole)
    steps_of_runs = [run["step"][run["step"].between(start, end)] for run in whole]
    steps = np.union1d(min(steps_of_runs, key=len), end)
    values = {}
    for column in ["step", *COUNTERS, "value"]:
        values[column] = np.array([np.interp(steps, run["step"], run[column]) for run in whole])
    return values


def band(values):
    """The mean of runs, and the ends of its 95% interval, mean +/- t(0.975, n - 1) s / sqrt(n); NaN below n = 3."""
    mean = np.mean(values, axis=0)
    half = mean * np.nan
    if len(values) > 2:
        half = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)
    return mean, mean - half, mean + half


def seeds_of(counts):
    """ "3" for one count of seeds, "2–5" for several."""
    if min(counts) == max(counts):
        return str(min(counts))
    return f"{min(counts)}–{max(counts)}"


def draw_curve(axis, runs, x_axis, look, log):
    """The mean of the runs that got to a curve's end, with its interval; others thin. Its line and number of runs."""
    column, _, unit = AXES[x_axis]
    color, line, marker = look
    steps = runs.groupby("run")["step"]
    end = reached(steps.max())
    whole = at_same_steps(runs, end)
    if log:
        mean, low, high = np.exp(band(np.log(whole["value"])))
    else:
        mean, low, high = band(whole["value"])
    x = whole[column].mean(axis=0) / unit
    label = runs["label"].iloc[0].replace("$", r"\$")
    (curve,) = axis.plot(x, mean, color=color, linestyle=line, marker=marker, markevery=0.15, label=label)
    axis.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    last = steps.transform("max")
    following = steps.shift(-1).fillna(last)
    single = runs[(last < end) | (following > end)]
    for _, run in single.groupby("run"):
        axis.plot(run[column] / unit, run["value"], color=color, linewidth=0.5)
    return curve, len(whole["value"])


def draw(panels, ylabel, columns, looks=LOOKS, log=False):
    """Panels [title, rows with `label`, one of AXES] with one legend: the figure, None if there are none.

    With `log` mean and interval are of the logarithms.
    """
    if not panels:
        return None
    columns = min(columns, len(panels))
    lines = -(-len(panels) // columns)
    tasks = {task for _, rows, _ in panels for task in rows["task"]}
    of_paper = not log and tasks <= set(paper("2")["task"])
    size = (WIDTH, 0.8 + (1.5 if columns > 2 else 2) * lines)
    figure, axes = plt.subplots(lines, columns, squeeze=False, sharey=of_paper, figsize=size, layout="constrained")
    seeds = []
    curves = {}
    for axis, (name, rows, x_axis) in zip(axes.flat, panels, strict=False):
        column, xlabel, _ = AXES[x_axis]
        for label, runs in rows.dropna(subset=column).groupby("label"):
            curves[label], count = draw_curve(axis, runs, x_axis, looks[label], log)
            seeds.append(count)
        axis.set(title=name.replace("$", r"\$"), xlabel=xlabel, xlim=(0, None), yscale="log" if log else "linear")
    if not curves:
        return None
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    if of_paper:  # one scale, which no interval stretches
        _, top = axes[0, 0].get_ylim()
        axes[0, 0].set_ylim(0, min(MAX_RETURN, top))
    figure.supylabel(ylabel, fontsize=8)
    figure.legend(
        handles=[curves[label] for label in looks if label in curves],
        loc="outside lower center",
        ncols=4,
        title=f"Mean of seeds (n = {seeds_of(seeds)}); 95% confidence interval from n = 3 on",
    )
    return figure


# ---------------------------------------------------------------- figures; the docstring is the caption
def figure_3(data, options):
    """Learning curves of the algorithms with their default settings, and of --reference in grey."""
    ours = data.returns.query("variant == 'default'")
    rows = [ours.assign(label=ours["algorithm"].map(ALGORITHMS))]
    for path in options.reference:
        name = str(path.with_suffix(""))
        theirs = evaluated(read_csv(path, EPISODES).assign(run=name, origin=name))
        theirs["label"] = theirs["algorithm"] + " " + theirs["variant"] + ", " + name
        theirs["run"] = name + theirs["seed"].astype(str)
        rows.append(theirs)
    rows = in_papers_order(stack(rows))
    looks = dict(LOOKS)
    for i, label in enumerate(sorted(set(rows["label"]) - set(LOOKS))):
        looks[label] = (GREYS[i % len(GREYS)], "-", "h")
    panels = [[title(task), own, options.x_axis] for task, own in rows.groupby("task", sort=False)]
    return draw(panels, options.ylabel, 4, looks)


def figure_4(data, options):
    """Critic gradient norm and TD target variance; the ratios are of means over the last 10% of the finished runs."""
    rows = data.diagnostics.query("task == @options.task and variant == 'default'")
    rows = rows.assign(label=rows["algorithm"].map(ALGORITHMS))
    last = rows["run"].map(data.runs["last"].where(data.runs["finished"]))
    means = rows[rows["step"] > 0.9 * last].groupby(["tag", "algorithm"])["value"].mean()
    papers = paper("Figure 4").set_index(["task", "measure", "algorithm"])["mean"]
    panels = []
    for tag, of_tag in rows.groupby("tag"):
        lines = [DIAGNOSTICS[tag]]
        for ams, base in PAIRS.items():
            if (tag, ams) not in means or (tag, base) not in means:
                continue
            ratio = means[tag, base] / means[tag, ams]
            line = f"{ALGORITHMS[base]} / {ALGORITHMS[ams]}: {ratio:.1f}×"
            if (options.task, tag, base) in papers:
                papers_ratio = papers[options.task, tag, base] / papers[options.task, tag, ams]
                line += f" (paper {papers_ratio:.1f})"
            lines.append(line)
        panels.append(["\n".join(lines), of_tag, options.x_axis])
    return draw(panels, "Geometric mean", 2, log=True)


def of_ablation(rows, task):
    """Rows of one task, of each variant's seeds 0, 42 and 123 alone where there are any, as in the paper's Table 3."""
    rows = rows[rows["task"] == task]
    papers_seed = rows["seed"].isin([0, 42, 123])
    has_papers_seed = papers_seed.groupby([rows["algorithm"], rows["variant"]]).transform("any")
    return rows[papers_seed | ~has_papers_seed]


def figure_5(data, options):
    """Ablations: components with TD3 and SAC, radius, number of neighbours."""
    design = paper("3")[["group", "curve", "algorithm", "variant"]].rename(columns={"curve": "label"})
    design["base"] = design["algorithm"].str.removeprefix("ams_").str.upper()
    rows = design.merge(of_ablation(data.returns, options.task))
    groups = rows.groupby(["group", "base"], sort=False)
    panels = [[f"{group}, {base}", own, options.x_axis] for (group, base), own in groups]
    return draw(panels, options.ylabel, 2)


def figure_a1(data, options):
    """Inner products of Gaussian and of orthogonal directions, one draw of K = 8 in 38 dimensions; lengths of 4,096."""
    try:  # only this figure needs PyTorch
        import torch

        from ams_td3 import sample_directions
    except ImportError as error:
        note(f"figure_a1 is left out: {error}")
        return None
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3), layout="constrained")
    for axis, name in zip(axes, ["gaussian", "orthogonal"], strict=True):
        directions = sample_directions(name, 4096, 8, 38, generator=torch.Generator().manual_seed(0))
        products = (directions[0] @ directions[0].T).round(decimals=1) + 0.0  # no -0.0
        lengths = directions.norm(dim=2)
        sns.heatmap(
            products,
            ax=axis,
            vmin=-1,
            vmax=1,
            cmap="RdBu_r",
            square=True,
            annot=True,
            fmt=".1f",
            annot_kws={"size": 6},
            cbar=False,
        )
        axis.set_title(f"{name.capitalize()}: length {lengths.mean():.2f} ± {lengths.std():.2f}")
    return figure


def in_arms(rows):
    """The rows of ARMS, with `label` and `base`, of tasks that have three or more of them."""
    design = []
    for ams, base in PAIRS.items():
        for label, variant in ARMS.items():
            algorithm = base if label == "Baseline" else ams
            design.append([label, variant, algorithm, base])
    rows = pd.DataFrame(design, columns=["label", "variant", "algorithm", "base"]).merge(rows)
    arms = rows.groupby(["task", "base"])["label"].transform("nunique")
    return in_papers_order(rows[arms > 2])


def figure_is_it_ntd(data, options):
    """What AMS adds to TD3 and SAC, one by one, against steps and hours. Dotted: the paper, at 500K or 1M steps."""
    papers = paper("2").set_index(["task", "algorithm"])["mean"]
    panels = []
    for (task, base), arms in data.arms.groupby(["task", "base"], sort=False):
        for x_axis in ["steps", "hours"]:
            panels.append([f"{title(task)}, {base.upper()}", arms, x_axis])
    figure = draw(panels, "Evaluation return", 2)
    if figure is None:
        return None
    for axis, (_, arms, _) in zip(figure.axes, panels, strict=True):
        task, base = arms[["task", "base"]].iloc[0]
        for algorithm, label in [(base, "Baseline"), (f"ams_{base}", "AMS")]:
            mean = papers.get((task, algorithm))
            if mean is None:
                continue
            color = LOOKS[label][0]
            axis.set_ylim(0, MAX_RETURN)
            axis.axhline(mean, color=color, linestyle=":", linewidth=1)
            axis.text(0, mean, f" paper: {mean:g}", va="top", color=color, fontsize=6)
    return figure


def figure_aggregates(data, options):
    """Aggregates (Agarwal et al. 2021, arXiv 2108.13264) of final returns / 1000.

    With 95% intervals of a bootstrap stratified by task.
    """
    if data.aggregates.empty:
        return None
    height = 0.5 + 0.25 * len(data.scores)
    figure, axes = plt.subplots(1, len(MEASURES), sharey=True, figsize=(WIDTH, height), layout="constrained")
    for axis, measure in zip(axes, MEASURES, strict=True):
        rows = data.aggregates.query("measure == @measure")
        colors = [LOOKS[name][0] for name in rows["algorithm"]]
        width = rows["high"] - rows["low"]
        axis.barh(rows["algorithm"], width, left=rows["low"], height=0.6, color=colors, alpha=0.75)
        axis.plot(rows["value"], rows["algorithm"], "k|", markersize=10)
        axis.set_title(measure)
        axis.grid(visible=False, axis="y")
        axis.use_sticky_edges = False  # a bar at the edge would look cut off
    axes[0].invert_yaxis()
    return figure


def figure_profiles(data, options):
    """Performance profiles (Agarwal et al. 2021, arXiv 2108.13264): the share of runs above each final return / 1000.

    With 95% bands of a bootstrap stratified by task.
    """
    if not data.scores:
        return None
    figure, axis = plt.subplots(figsize=(5, 3))
    for name, tasks in data.scores.items():
        color, line, _ = LOOKS[name]
        shares, low, high = bootstrap(profile, tasks)
        axis.plot(THRESHOLDS, shares, color=color, linestyle=line, label=name)
        axis.fill_between(THRESHOLDS, low, high, color=color, alpha=0.15, linewidth=0)
    axis.set(xlabel="Return / 1000", ylabel="Share of runs above")
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


# ---------------------------------------------------------------- numbers of tables
def comparable(runs, cell=CELL):
    """Finished runs that may be averaged: of each cell those with the paper's number of steps, else the longest."""
    done = runs[runs["finished"]]
    papers_steps = done["task"].map(paper("2").groupby("task")["steps"].first())
    length = done["global_step"].astype(float).mask(done["global_step"] == papers_steps, np.inf)
    longest = length.groupby([done[name] for name in cell]).transform("max")
    return done[length == longest]


def text(value, *spread, digits=0):
    """ "712", "712 ± 27" with a deviation, "712 [685, 739]" with the two ends of an interval, "–" without a value."""
    if pd.isna(value):
        return "–"
    shown = f"{value:.{digits}f}"
    ends = [f"{end:.{digits}f}" for end in spread if not pd.isna(end)]
    if len(ends) == 1:
        return f"{shown} ± {ends[0]}"
    if len(ends) == 2:
        return f"{shown} [{ends[0]}, {ends[1]}]"
    return shown


def papers_text(cell, digits):
    """Mean ± sample deviation; † if no returns in [0, 1000] have this deviation."""
    shown = text(cell.mean, cell.std, digits=digits)
    if cell.impossible == 1:
        shown += " †"
    return shown


def our_text(cell, digits):
    """Mean ± sample deviation (seeds, of how many runs), and the steps where they are not the paper's."""
    if pd.isna(cell.runs):
        return "missing"
    if pd.isna(cell.n):
        return f"unfinished at {cell.last / 1000:g}K"
    seeds = f"{cell.n:.0f}"
    if cell.n < cell.runs:
        seeds += f" of {cell.runs:.0f}"
    shown = f"{text(cell.ours, cell.deviation, digits=digits)} ({seeds})"
    if cell.steps > 0 and cell.at != cell.steps:
        shown += f" at {cell.at / 1000:g}K"
    return shown


def beside_paper(runs, value, numbers, by=CELL, digits=0):
    """The paper's numbers of a table, and other cells that have runs, with ours: a row for each group `by`."""
    done = comparable(runs).dropna(subset=value).groupby(by, as_index=False)
    ours = done.agg(
        ours=(value, "mean"),
        deviation=(value, "std"),
        n=(value, "count"),
        at=("global_step", "max"),
    )
    all_runs = runs.groupby(CELL, as_index=False).agg(runs=("seed", "count"), last=("last", "max"))
    rows = numbers.reset_index(names="order").merge(all_runs, how="outer")
    rows = rows.merge(ours, how="left").sort_values("order", kind="stable", ignore_index=True)
    rows["Paper"] = [papers_text(cell, digits) for cell in rows.itertuples()]
    rows["Ours"] = [our_text(cell, digits) for cell in rows.itertuples()]
    return rows


def scores_of(runs, value):
    """Final returns / 1000 of default runs, on the tasks that all algorithms have finished at one length.

    {algorithm: [scores of a task's runs, ...]}, of algorithms with two runs or more of every task.
    """
    done = runs[(runs["variant"] == "default") & runs["task"].isin(paper("2")["task"])]
    done = comparable(done, ["task"]).dropna(subset=value)
    # A row is a task, a column an algorithm, and each cell the list of its returns.
    returns = done.groupby(["task", "algorithm"])[value].agg(list).unstack().dropna()
    scores = {}
    for algorithm, name in ALGORITHMS.items():
        if algorithm in returns and returns[algorithm].map(len).min() > 1:
            scores[name] = [np.array(finals) / MAX_RETURN for finals in returns[algorithm]]
    return scores


def aggregate(*tasks, axis=-1):
    """MEASURES of the scores of each task's runs: of all runs, or of the means of the tasks (Median, Mean)."""
    runs = np.concatenate(tasks, axis=axis)
    means = np.stack([task.mean(axis=axis) for task in tasks])
    return np.stack(
        [
            scipy.stats.trim_mean(runs, 0.25, axis=axis),
            np.median(means, axis=0),
            np.mean(means, axis=0),
            1 - np.minimum(runs, 1).mean(axis=axis),
        ]
    )


def profile(*tasks, axis=-1):
    """The share of runs above each threshold."""
    runs = np.concatenate(tasks, axis=axis)
    return np.stack([(runs > threshold).mean(axis=axis) for threshold in THRESHOLDS])


def probability_of_improvement(*samples, axis=-1):
    """Our runs' share of wins over theirs, of all pairs, mean over tasks; the samples are our tasks, then theirs."""
    half = len(samples) // 2
    wins = []
    for ours, theirs in zip(samples[:half], samples[half:], strict=True):
        pairs = ours[..., :, None] - theirs[..., None, :]
        wins.append(np.heaviside(pairs, 0.5).mean(axis=(-2, -1)))
    return np.mean(wins, axis=0)


def bootstrap(statistic, samples):
    """A statistic of samples with its 95% interval, for which each sample is drawn anew; NaN if one is a single run."""
    value = statistic(*samples)
    if min(map(len, samples)) < 2:
        return value, np.nan, np.nan
    drawn = scipy.stats.bootstrap(samples, statistic, n_resamples=5000, method="percentile", rng=0)
    return value, drawn.confidence_interval.low, drawn.confidence_interval.high


def aggregates_of(scores):
    """MEASURES of each algorithm, and whether AMS beats its base algorithm: a row for each of these numbers."""
    rows = []
    for name, tasks in scores.items():
        ids = [name, len(tasks), seeds_of([len(task) for task in tasks])]
        for measure, value, low, high in zip(MEASURES, *bootstrap(aggregate, tasks), strict=True):
            rows.append([*ids, measure, value, low, high])
        base = name.removeprefix("AMS-")
        if base != name and base in scores:
            numbers = bootstrap(probability_of_improvement, [*tasks, *scores[base]])
            rows.append([*ids, "P(better than base)", *numbers])
    return pd.DataFrame(rows, columns=["algorithm", "tasks", "seeds", *NUMBER])


def wide(rows):
    """Rows with measure, value, low and high as a table of texts, a column a measure."""
    cells = []
    for row in rows.itertuples():
        digits = 0 if row.measure in ["Return", "Area"] else 2
        cells.append(text(row.value, row.low, row.high, digits=digits))
    names = [name for name in rows if name not in NUMBER]
    shown = rows.assign(cell=cells).pivot_table("cell", names, "measure", aggfunc="first", sort=False)
    return rows, shown.reset_index()


# ---------------------------------------------------------------- tables: all rows, and what is shown
def table_2(data, options):
    """Table 2: final returns, mean ± sample deviation (seeds); † cannot be that of so many returns in [0, 1000]."""
    rows = beside_paper(data.runs.query("variant == 'default'"), options.value, paper("2"))
    matrix = rows.set_index(["algorithm", "task"])[["Ours", "Paper"]].stack().unstack("task")
    matrix = matrix[in_papers_order(rows)["task"].unique()].reindex(rows["algorithm"].unique(), level=0)
    matrix = matrix.rename(index=ALGORITHMS, columns=title)
    return rows, matrix.rename_axis(["algorithm", ""]).reset_index()


def table_3(data, options):
    """Table 3: final returns of ablations, mean ± sample deviation (seeds)."""
    numbers = paper("3")  # which hold on its task alone
    columns = ["mean", "std", "steps"]
    numbers[columns] = numbers[columns].where(numbers["task"] == options.task)
    numbers["task"] = options.task
    runs = of_ablation(data.runs.query("algorithm != 'ppo'"), options.task)
    rows = beside_paper(runs, options.value, numbers)
    return rows, rows[["group", "label", *CELL, "Ours", "Paper"]]


def table_b4(data, options):
    """Table B.4: hours for 1M steps with evaluations, mean ± sample deviation (seeds); the paper's on an RTX 3090."""
    runs = data.runs.query("variant == 'default'")
    rows = beside_paper(runs, "hours", paper("B.4"), by=[*CELL, "device"], digits=2)
    return rows, rows[["task", "algorithm", "device", "Ours", "Paper"]]


def table_aggregates(data, options):
    """Aggregates (Agarwal et al. 2021, arXiv 2108.13264) of final returns / 1000.

    With 95% intervals of a bootstrap stratified by task, on the tasks that all algorithms have finished. P: the share
    of the pairs of runs in which AMS has more.
    """
    if data.aggregates.empty:
        return None
    return wide(data.aggregates)


def table_is_it_ntd(data, options):
    """What AMS adds, one by one, at the last step that more than half of the runs of every arm have got to.

    Means over seeds with 95% t-intervals of the return there, of the mean return until there (area under the curve) and
    of the hours; the probability that AMS has the higher return, with an interval too narrow for few seeds; so p
    is of the exact two-sided Mann-Whitney test, at least 0.1 with 3 against 3 seeds. `short`: runs not there yet.
    """
    rows = []
    for (task, base), arms in data.arms.groupby(["task", "base"], sort=False):
        last = arms.groupby(["label", "seed"])["step"].max()  # a row is a run
        end = last[last > 0].groupby("label").agg(reached).min()
        finals = {}
        for label in ARMS:
            runs = arms[arms["label"] == label]
            if not runs["step"].min() <= end <= runs["step"].max():
                continue
            seeds = at_same_steps(runs, end)
            finals[label] = seeds["value"][:, -1]
            short = [f"seed {seed} at {step:,}" for seed, step in last[label].items() if step < end]
            ids = [task, base, label, end, len(finals[label]), ", ".join(short)]
            steps = seeds["step"][0]
            area = np.trapezoid(seeds["value"], steps) / (end - steps[0] if len(steps) > 1 else np.nan)
            numbers = {
                "Return": band(finals[label]),
                "Area": band(area),
                "Hours": band(seeds["wall_seconds"][:, -1] / 3600),
            }
            if label != "AMS" and "AMS" in finals:
                both = [finals["AMS"], finals[label]]
                test = scipy.stats.mannwhitneyu(*both, method="exact")
                numbers["P(AMS better)"] = bootstrap(probability_of_improvement, both)
                numbers["Mann-Whitney p"] = [test.pvalue, np.nan, np.nan]
            rows += [[*ids, measure, *number] for measure, number in numbers.items()]
    if not rows:
        return None
    return wide(pd.DataFrame(rows, columns=["task", "base", "arm", "step", "seeds", "short", *NUMBER]))


def in_markdown(name):
    """A text with a backslash before what Markdown would take for its own."""
    return re.sub(r"([\\|_$*<&`~])", r"\\\1", str(name))


LATEX = r"""% \usepackage{booktabs,adjustbox}
\begin{table}
\caption{CAPTION}
\begin{adjustbox}{max width=\linewidth, center}
TABULAR\end{adjustbox}
\end{table}
"""


def write_table(path, caption, rows, shown):
    """path.csv with all digits, path.md and path.tex as shown."""
    shown = shown.fillna("–").rename(columns={name: name.capitalize() for name in rows})
    write(path.with_suffix(".csv"), rows.to_csv(index=False))
    markdown = shown.map(in_markdown).rename(columns=in_markdown).to_markdown(index=False, disable_numparse=True)
    write(path.with_suffix(".md"), f"{caption}\n\n{markdown}\n")
    style = shown.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    tabular = style.to_latex(hrules=True).replace("ε", r"$\epsilon$").replace("|", r"\textbar{}")
    latex = LATEX.replace("CAPTION", caption.replace("%", r"\%")).replace("TABULAR", tabular)
    write(path.with_suffix(".tex"), latex)


# ---------------------------------------------------------------- command line
def read_arguments():
    """The options, with `value`, `tag` and `ylabel` of --metric."""
    parser = argparse.ArgumentParser(
        "plot_curves.py",
        "python plot_curves.py DIR [DIR ...] [options]",
        __doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    add = parser.add_argument
    add("directories", nargs="+", type=Path, metavar="DIR", help="folder of runs, or one that --export wrote")
    add("--out-dir", type=Path, help="where figures and tables go (default: --export, a published DIR, or figures)")
    add("--x-axis", choices=AXES, default="steps", help="of Figures 3-5; default steps (vector steps)")
    add("--metric", choices=METRICS, default="eval", help="evaluation or training return (tables: last 10%% of steps)")
    add("--format", nargs="+", choices=("png", "pdf", "svg"), default=["png", "svg"], help="default png svg")
    add("--ablation-task", dest="task", default="quadruped-run", help="of Figures 4, 5 and Table 3")
    add("--reference", nargs="+", type=Path, default=[], help="others' evaluations.csv, drawn in grey in Figure 3")
    add("--export", type=Path, help="publish in this folder: the data of all runs, figures and tables")
    options = parser.parse_args()
    if options.reference and options.metric == "train":
        parser.error("--reference holds evaluations, which go with --metric eval")
    options.tag, options.value, options.ylabel = METRICS[options.metric]
    return options


def read_data(options):
    """What figures and tables are made of: the tables of `read_runs`, returns of --metric, arms, scores."""
    runs, evaluations, diagnostics = read_runs(options.directories)
    drawn = runs
    if not options.export and options.metric == "eval":  # then figure 4 alone is of event files
        drawn = runs.query("variant == 'default' and task == @options.task")
    with ProcessPoolExecutor() as pool:
        logged = scalars(drawn, evaluations, ["charts/episodic_return", *DIAGNOSTICS], pool.map)
    logged = binned(logged)
    scores = scores_of(runs, options.value)
    return SimpleNamespace(
        runs=runs,
        evaluations=evaluations,
        diagnostics=stack([diagnostics, logged[logged["tag"].isin(DIAGNOSTICS)]]),
        returns=stack([evaluated(evaluations), logged]).query("tag == @options.tag"),
        arms=in_arms(evaluated(evaluations)),
        scores=scores,
        aggregates=aggregates_of(scores),
    )


def export(data, folder):
    """The data of all runs, to be read again."""
    records = [{**record, "path": None} for record in data.runs["record"]]
    write(folder / "runs.json", json.dumps(records, indent=1) + "\n")
    evaluations = data.evaluations.sort_values(EPISODES)[EPISODES]
    write(folder / "evaluations.csv", evaluations.to_csv(index=False))
    diagnostics = data.diagnostics.sort_values(SCALARS)[SCALARS]
    write(folder / "diagnostics.csv", diagnostics.to_csv(index=False))


def caption_of(function):
    """Its docstring in one line."""
    return " ".join(function.__doc__.split())


def draw_figures(data, options, folder):
    """Figures in every format asked for, and captions.md."""
    unfinished = [
        f"{run.algorithm} {run.variant} {run.task} {run.seed} at step {run.last:,}"
        for run in data.runs[~data.runs["finished"]].itertuples()
    ]
    captions = [
        f"Unfinished: {in_markdown(', '.join(unfinished) or 'none')}.",
        "A curve is the mean of the runs that got to its end; thin lines are single runs, short of or beyond it. "
        "Runs evaluated at different steps are interpolated linearly, at the steps of the one with the fewest.",
    ]
    functions = [
        figure_3,
        figure_4,
        figure_5,
        figure_a1,
        figure_is_it_ntd,
        figure_aggregates,
        figure_profiles,
    ]
    for function in functions:
        name = function.__name__
        figure = function(data, options)
        if figure is None:
            captions.append(f"{name}: left out, its data are missing.")
            continue
        for kind in options.format:
            metadata = {"Date": None} if kind == "svg" else None  # the same data, the same file
            figure.savefig(folder / f"{name}.{kind}", bbox_inches="tight", metadata=metadata)
        plt.close("all")
        captions.append(f"{name}: {caption_of(function)}")
    write(folder / "captions.md", "\n\n".join(captions) + "\n")


def write_tables(data, options, folder):
    """Tables as CSV, Markdown and LaTeX."""
    for function in [table_2, table_3, table_b4, table_is_it_ntd, table_aggregates]:
        table = function(data, options)
        if table is not None:
            write_table(folder / function.__name__, caption_of(function), *table)


def print_returns(runs, value):
    """Final returns as they stand, a line a cell: mean with its 95% t-interval, and runs that are not in it."""
    lines = []
    for (algorithm, variant, task), own in in_papers_order(runs).groupby(CELL, sort=False):
        final = comparable(own)[value].dropna()
        rest = own.drop(final.index)[["seed", value, "last"]].itertuples(index=False)
        others = [f"seed {seed}: {text(so_far)} at {last:,}" for seed, so_far, last in rest]
        names = [title(task), ALGORITHMS[algorithm], variant]
        lines.append([*names, text(*band(final)), len(final), ", ".join(others)])
    columns = ["task", "algorithm", "variant", "return", "seeds", "unfinished or shorter"]
    print(pd.DataFrame(lines, columns=columns).to_markdown(index=False, tablefmt="plain", disable_numparse=True))


def main():
    """Read the runs, write figures, captions and tables, and say what was written."""
    options = read_arguments()
    plt.rcdefaults()
    sns.set_theme("paper", "whitegrid", font_scale=0.85, rc=STYLE)
    data = read_data(options)
    published = [directory for directory in options.directories if (directory / "runs.json").exists()]
    folder = options.export or options.out_dir or [*published, Path("figures")][0]
    folder.mkdir(parents=True, exist_ok=True)
    if options.export:
        export(data, folder)
    draw_figures(data, options, folder)
    write_tables(data, options, folder)
    print_returns(data.runs, options.value)
    print(f"{len(data.runs)} runs, {data.runs['finished'].sum()} finished; figures and tables are in {folder}")


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        sys.exit(f"plot_curves.py: error: {error}")
