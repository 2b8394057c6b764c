"""Figures and tables of the Action Manifold Smoothing paper, from the runs of the training scripts.

    python plot_curves.py runs/
    python plot_curves.py runs/ more_runs/ --export results/     # publish: data, figures and tables in one folder
    python plot_curves.py results/                               # the same figures and tables, from published data

A run is a folder with args.json, finished if it has result.json too: only those give numbers to the paper's tables,
others are drawn and named in captions.md. From Python, `load_runs("runs/")` has every logged value as a DataFrame.
"""

import argparse
import contextlib
import functools
import io
import json
import logging.handlers
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import scipy
import seaborn as sns
from rliable import library, metrics, plot_utils
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tqdm import tqdm

plt.switch_backend("agg")  # no display needed, and none opened

ALGORITHMS = {"ams_td3": "AMS-TD3", "ams_sac": "AMS-SAC", "ppo": "PPO", "td3": "TD3", "sac": "SAC"}
PAIRS = {"ams_td3": "td3", "ams_sac": "sac"}  # AMS and its base algorithm
# The arms of figure_is_it_ntd: what AMS adds to its base algorithm, one by one.
ARMS = {"AMS": "default", "+ LayerNorm, point target": "epsilon=0.0 num_neighbors=1", "+ LayerNorm": "ntd=False"}
ARMS |= {"Baseline": "default", "AMS, ε = 1.2": "epsilon=1.2"}
SWITCHES = {"ntd": True, "layer_norm": True, "epsilon": 0.2, "num_neighbors": 8, "sampling": "orthogonal"}
SWITCHES |= {"action_projection": "tanh"}
# Looks of curves in turn: Okabe-Ito colours, told apart by the colour-blind, then greys; dashes and markers for print.
COLORS = "#D55E00 #0072B2 #009E73 #E69F00 #56B4E9 #CC79A7 #000000 0.35 0.5 0.65 0.8".split()
DASHES = ["", (5, 1, 1, 1), (1, 1), (4, 2), (7, 2), (5, 1, 1, 1, 1, 1), (1, 2), "", (4, 2), (1, 1), (2, 1)]
MARKERS = list("osX^vDP<>*h")
STYLE = {"savefig.dpi": 300, "legend.frameon": False, "legend.handlelength": 3.2, "lines.markersize": 4}
STYLE |= {"pdf.fonttype": 42, "svg.hashsalt": "plot_curves"}  # TrueType, as journals ask; the same data, the same file
WIDTH = 6.75  # inches, the text width of a two-column page, so that font sizes are the printed ones
AXES = {"steps": ("step", "Steps (thousands)", 1e3), "frames": ("frames", "Frames (millions)", 1e6)}
AXES |= {"updates": ("updates", "Updates (thousands)", 1e3), "hours": ("wall_seconds", "Hours", 3600)}
MAX_RETURN = 1000  # of an episode in all of the paper's tasks: 1000 control steps with rewards in [0, 1]
REPS, TAUS = 1000, np.linspace(0, 1, 51)  # rliable's bootstrap, and thresholds of performance profiles
MEASURES = {name: getattr(metrics, f"aggregate_{name}") for name in ("iqm", "median", "mean", "optimality_gap")}
METRICS = {"eval": ("eval/episodic_return", "final", "Evaluation return")}  # tag, column of the table of runs, label
METRICS |= {"train": ("charts/episodic_return", "training_return_last_10_percent", "Training return")}
DIAGNOSTICS = {"diagnostics/critic_grad_norm": "Critic gradient norm"}
DIAGNOSTICS |= {"diagnostics/td_target_variance": "TD target variance"}
COUNTERS = ["frames", "updates", "wall_seconds"]
CELL = ["algorithm", "variant", "task"]
KEY = [*CELL, "seed"]
EPISODES = [*KEY, "origin", "step", *COUNTERS, "episode", "return"]
SCALARS = [*KEY, "origin", "step", *COUNTERS, "tag", "value"]


class InputError(ValueError):
    """The runs, or a file given, cannot be used; the message is one line for the user."""


def note(message):
    """One line on stderr about something left out or doubtful."""
    tqdm.write(f"plot_curves.py: note: {message}", file=sys.stderr)


def write(path, content):
    """Text or bytes replace a file in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content if isinstance(content, bytes) else content.encode())
    os.replace(temporary, path)


def read_csv(path, columns=None):
    """A CSV file as a DataFrame; InputError if one of these columns is missing, or a number in it is none."""
    types = {"seed": np.int64, "step": np.int64, "wall_seconds": float, "return": float, "value": float}
    try:
        return pd.read_csv(path, usecols=columns, dtype=types, float_precision="round_trip")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be used: {' '.join(str(error).split())}") from None


def stack(frames):
    """The frames below each other; empty ones would spoil the types of the others."""
    return pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)


@functools.cache
def paper(table):
    """The paper's numbers of one table, in its order, from results/paper.csv."""
    numbers = read_csv(Path(__file__).resolve().parent / "results" / "paper.csv")
    return numbers[numbers["table"] == table].drop(columns="table").reset_index(drop=True)


def by_task(rows):
    """Rows in the order of the paper's tasks, others behind."""
    known = list(paper("2")["task"].unique())
    return rows.sort_values(
        "task", kind="stable", key=lambda tasks: tasks.map({task: i for i, task in enumerate(known)})
    )


# ---------------------------------------------------------------- reading
def variant_of(args):
    """What sets a run apart from its algorithm's default: arguments, like "epsilon=0.4", or else its exp_name."""
    if args["algorithm"] not in ALGORITHMS:
        raise ValueError(f"algorithm {args['algorithm']!r} is none of {', '.join(ALGORITHMS)}")
    parts = [f"{name}={args[name]}" for name, usual in SWITCHES.items() if args.get(name, usual) != usual]
    name = args.get("exp_name", args["algorithm"])
    return " ".join(parts) or ("default" if name == args["algorithm"] else name)


def read_runs(directories):
    """All runs below the directories, or published in them, without event files: runs, evaluations, diagnostics.

    runs: a row a run, with `last`, its last evaluated step, `final`, the mean return there, and `hours` for 1M steps.
    evaluations: EPISODES and the run's index in `run`; diagnostics, of published runs: SCALARS and `run`. `origin` is
    the end of the directory's path. InputError if there are no runs, or if two claim the same place.
    """
    records, evaluations, diagnostics = [], [pd.DataFrame(columns=EPISODES)], [pd.DataFrame(columns=SCALARS)]
    for directory in map(Path, directories):
        if not directory.is_dir():
            raise InputError(f"{directory} is no folder; give the one that holds the runs, such as runs/")
        if (directory / "runs.json").exists():
            records += json.loads((directory / "runs.json").read_text())
            evaluations.append(read_csv(directory / "evaluations.csv", EPISODES))
            diagnostics.append(read_csv(directory / "diagnostics.csv", SCALARS))
            continue
        for folder in sorted(path.parent for path in directory.rglob("args.json")):
            try:
                args = json.loads((folder / "args.json").read_text())
                result = json.loads(path.read_text()) if (path := folder / "result.json").exists() else {}
                names = {"algorithm": args["algorithm"], "variant": variant_of(args), "task": args["env_id"]}
                names |= {"seed": int(args["seed"]), "origin": "/".join(directory.resolve().parts[-2:])}
                if (folder / "evaluations.csv").exists():
                    frame = read_csv(folder / "evaluations.csv", ["step", *COUNTERS, "episode", "return"])
                    evaluations.append(frame.assign(**names))
                records.append(result | names | {"args": args, "path": str(folder)})
            except (OSError, ValueError, KeyError, TypeError) as error:
                note(f"{folder} is left out, one of its files cannot be used: {error!r}")
    if not records:
        raise InputError(f"no runs in {', '.join(map(str, directories))}: no folder holds a usable args.json")
    columns = [*KEY, "origin", "path", "args", "global_step", "wall_seconds", "device", METRICS["train"][1]]
    records.sort(key=lambda record: [record[name] for name in KEY])
    runs = pd.DataFrame(records).reindex(columns=columns).assign(record=records)
    for key, rivals in runs[runs.duplicated(KEY, keep=False)].groupby(KEY):
        where = ", ".join(rivals["path"].fillna(rivals["origin"]))
        raise InputError(f"{len(rivals)} runs claim {' '.join(map(str, key))}: {where}; remove all but one")
    numbered = runs[KEY].reset_index(names="run")
    evaluations, diagnostics = (stack(frames).merge(numbered, on=KEY) for frames in (evaluations, diagnostics))
    last = evaluations.groupby("run")["step"].max().reindex(runs.index, fill_value=0)
    at_end = evaluations[evaluations["step"] == evaluations["run"].map(last)]
    runs = runs.assign(last=last, finished=runs["global_step"].notna(), final=at_end.groupby("run")["return"].mean())
    return runs.assign(hours=runs["wall_seconds"] / runs["global_step"] * 1e6 / 3600), evaluations, diagnostics


def read_scalars(folder, tags=None):
    """Scalars of a run's event files, of these tags or all: a DataFrame tag, step, value; and their problems."""
    # The cache is valid while all event files keep size and time.
    files = {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in folder.glob("*tfevents*")}
    cache, head = folder / ".plot_curves.csv", {}
    with contextlib.suppress(OSError, ValueError), cache.open() as file:  # none yet, or damaged
        head, frame = json.loads(file.readline()), pd.read_csv(file)
    if head.get("files") != files:
        logger, messages = logging.getLogger("tensorboard"), logging.handlers.BufferingHandler(1_000_000)
        logger.setLevel(logging.DEBUG)  # the level at which a truncated file is said
        logger.handlers, logger.propagate = [messages], False
        accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        names = accumulator.Reload().Tags()["scalars"] if files else []
        rows = [(name, event.step, event.value) for name in names for event in accumulator.Scalars(name)]
        frame = pd.DataFrame(rows, columns=["tag", "step", "value"])
        problems = [record.getMessage() for record in messages.buffer if record.msg.startswith("Truncated record")]
        head = {"files": files, "problems": problems}
        with contextlib.suppress(OSError):  # a full disk, or a read-only folder
            write(cache, f"{json.dumps(head)}\n{frame.to_csv(index=False)}")
    frame = frame.astype({"tag": str, "step": np.int64, "value": float})
    return frame if tags is None else frame[frame["tag"].isin(tags)], head["problems"]


def scalars(runs, evaluations, tags=None, apply=map):
    """SCALARS of the runs' event files, of these tags or all, and `run`; counters are interpolated in evaluations."""
    runs, blocks = runs.dropna(subset="path"), [pd.DataFrame(columns=[*SCALARS, "run"])]
    reading = apply(functools.partial(read_scalars, tags=tags), map(Path, runs["path"]))
    reading = tqdm(reading, "reading event files", len(runs), leave=False)
    for run, (frame, problems) in zip(runs.itertuples(), reading, strict=True):
        for problem in problems:
            note(f"{problem}; what comes before is used")
        counts = np.full((len(frame), len(COUNTERS)), np.nan)
        known = evaluations[evaluations["run"] == run.Index].groupby("step")[COUNTERS].first()
        if len(known) > 1:
            counts = scipy.interpolate.interp1d(known.index, known, axis=0, fill_value="extrapolate")(frame["step"])
        names = {name: getattr(run, name) for name in (*KEY, "origin")} | {"run": run.Index}
        blocks.append(frame.assign(**names, **dict(zip(COUNTERS, counts.T, strict=True))))
    return stack(blocks)


def binned(rows):
    """Scalars averaged over 10,000 steps (1/20 of the task's longest run if short): seeds log at steps of their own."""
    width = (rows.groupby("task")["step"].transform("max") // 20).clip(1, 10_000)
    rows = rows.assign(step=-(-rows["step"] // width) * width)
    return rows.groupby([*KEY, "origin", "run", "tag", "step"], as_index=False)[[*COUNTERS, "value"]].mean()


def evaluated(evaluations):
    """The mean return of each evaluation, in the form of `scalars`."""
    rows = evaluations.groupby([*KEY, "origin", "run", "step"], as_index=False)[[*COUNTERS, "return"]].mean()
    return rows.rename(columns={"return": "value"}).assign(tag=METRICS["eval"][0])


def load_runs(*directories):
    """Every value that the runs below the directories logged: a DataFrame with the columns SCALARS.

    wall_seconds are those of training; InputError, a ValueError, says that there is nothing to read.
    """
    runs, evaluations, diagnostics = read_runs(directories)
    logged = scalars(runs, evaluations)
    return stack([evaluated(evaluations), diagnostics, logged[logged["tag"] != METRICS["eval"][0]]])[SCALARS]


# ---------------------------------------------------------------- figures
def reached(last):
    """The last step that more than half of the runs have got to, of the last steps of each."""
    return last.sort_values().iloc[(len(last) - 1) // 2]


def on_axis(rows, x_axis):
    """Rows of curves (`panel`, `label`) with `x`, `xlabel`; `whole` ones, of runs that got to `end`, make the mean."""
    (column, xlabel, unit), curve = AXES[x_axis], ["panel", "label"]
    rows = rows.dropna(subset=column)
    last = rows.groupby([*curve, "run"])["step"].transform("max")
    end = rows.groupby([*curve, "run"])["step"].max().groupby(level=[0, 1]).agg(reached)
    rows = rows.assign(last=last, xlabel=xlabel).join(end.rename("end"), on=curve)
    rows["whole"] = (rows["step"] <= rows["end"]) & (rows["last"] >= rows["end"])
    means = rows[rows["whole"]].groupby([*curve, "step"])[column].transform("mean")
    return rows.assign(x=means.reindex(rows.index).fillna(rows[column]) / unit)


def band(values):
    """The 95% confidence interval of the mean: mean +/- t(0.975, n - 1) s / sqrt(n); NaN below n = 3."""
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * pd.Series(values).sem() if len(values) > 2 else np.nan
    return np.mean(values) - half, np.mean(values) + half


def draw(rows, labels, ylabel, columns, log=False, ends=False):
    """Curves of `on_axis`, a panel each `panel`, with one legend, by seaborn: the figure, None without rows.

    With `log` mean and interval are of the logarithms; `ends`: bars right of the curves for the last, instead of bands.
    """
    if rows.empty:
        return None
    names = [name for name in labels if (rows["label"] == name).any()]
    looks = {"palette": COLORS, "dashes": DASHES, "markers": MARKERS}
    looks = {key: dict(zip(labels, values, strict=False)) for key, values in looks.items()}
    mean = scipy.stats.gmean if log else "mean"
    interval = (lambda values: np.exp(band(np.log(values)))) if log else band
    options = {"height": 1.5 if columns > 3 else 2, "facet_kws": {"sharex": False, "sharey": False}}
    options |= {"hue_order": names, "style_order": names, "col_order": rows["panel"].unique(), "col_wrap": columns}
    options |= {"estimator": mean, "errorbar": None if ends else interval, "err_kws": {"alpha": 0.15, "linewidth": 0}}
    options |= {"kind": "line", "markevery": 0.15, "hue": "label", "style": "label", "col": "panel"}
    grid = sns.relplot(rows[rows["whole"]], x="x", y="value", **options, **looks)
    for panel, axis in grid.axes_dict.items():
        own = rows[rows["panel"] == panel]
        for (_, label), curve in own[~own["whole"]].groupby(["run", "label"]):
            axis.plot(curve["x"], curve["value"], color=looks["palette"][label], linewidth=0.5)
        last = own[own["whole"] & (own["step"] == own["end"]) & ends]
        for i, (label, curve) in enumerate(last.groupby("label")):
            (x, y), (low, _) = curve[["x", "value"]].mean(), interval(curve["value"])
            axis.errorbar(x * (1.03 + 0.02 * i), y, y - low, color=looks["palette"][label], capsize=2)
        axis.set(title=panel, xlabel=own["xlabel"].iloc[0], ylabel="", xlim=(0, None))
        axis.set_yscale("log" if log else "linear")
    if not log and set(rows["task"]) <= set(paper("2")["task"]):  # one scale for all of the paper's tasks
        grid.set(ylim=(0, min(MAX_RETURN, 1.05 * max(axis.dataLim.y1 for axis in grid.axes.flat))))
    seeds = sorted(rows[rows["whole"]].groupby(["panel", "label"])["run"].nunique().unique())
    title = f"Mean over {'–'.join(map(str, seeds[:: len(seeds) - 1 or 1]))} seeds; 95% confidence interval from 3 on"
    sns.move_legend(grid, "upper center", bbox_to_anchor=(0.5, 0), ncols=min(4, len(names)), title=title)
    grid.figure.supylabel(ylabel, fontsize=8)
    grid.figure.set_figwidth(WIDTH)
    grid.tight_layout(rect=(0, 0, 1, 1))
    return grid.figure


def figure_3(it):
    """Learning curves of the algorithms with their default settings, and of --reference in grey."""
    rows = it.returns[it.returns["variant"] == "default"]
    rows = [rows.assign(label=rows["algorithm"].map(ALGORITHMS))]
    for path in it.reference:
        name = "/".join(path.with_suffix("").parts[-2:])
        others = evaluated(read_csv(path, EPISODES).assign(run=name, origin=name))
        label = others["algorithm"] + " " + others["variant"] + ", " + name
        rows.append(others.assign(label=label, run=name + others["seed"].astype(str)))
    rows = on_axis(by_task(stack(rows)).assign(panel=lambda own: own["task"].str.title()), it.x_axis)
    labels = [*ALGORITHMS.values(), *"ab", *sorted(set(rows["label"]) - {*ALGORITHMS.values()})]  # greys come eighth
    return draw(rows, labels, it.ylabel, min(4, max(1, rows["task"].nunique())))


def figure_4(it):
    """Critic gradient norm and TD target variance; the ratios are of means over the last 10% of the finished runs."""
    rows = it.diagnostics[(it.diagnostics["task"] == it.task) & (it.diagnostics["variant"] == "default")]
    rows = rows.assign(label=rows["algorithm"].map(ALGORITHMS), panel=rows["tag"].map(DIAGNOSTICS))
    ends = rows[rows["step"] > 0.9 * rows["run"].map(it.runs["last"].where(it.runs["finished"]))]
    ends = ends.groupby(["task", "tag", "algorithm"])["value"].mean()
    papers = paper("Figure 4").set_index(["task", "measure", "algorithm"])["mean"]
    for task, tag, ams in ends.index:
        if (base := (task, tag, PAIRS.get(ams))) in ends:
            ratio = f"\n{ALGORITHMS[base[2]]} / {ALGORITHMS[ams]}: {ends[base] / ends[task, tag, ams]:.1f}×"
            ratio += f" (paper {papers[base] / papers[task, tag, ams]:.1f})" if base in papers else ""
            rows.loc[rows["tag"] == tag, "panel"] += ratio
    return draw(on_axis(rows, it.x_axis), list(ALGORITHMS.values()), "Geometric mean", 2, log=True)


def of_ablation(rows, task):
    """Rows of one task, of each variant's seeds 0, 42 and 123 alone where there are any, as in the paper's Table 3."""
    rows = rows[rows["task"] == task]
    own = rows["seed"].isin([0, 42, 123])
    return rows[own | ~own.groupby([rows["algorithm"], rows["variant"]]).transform("any")]


def figure_5(it):
    """Ablations: components with TD3 and SAC, radius, number of neighbours; the bars are the intervals at the end."""
    design = paper("3")[["group", "curve", "algorithm", "variant"]].rename(columns={"curve": "label"})
    design["panel"] = design["group"] + ", " + design["algorithm"].str.removeprefix("ams_").str.upper()
    labels = list(pd.concat([design["label"][3::-1], design["label"]]).unique())  # AMS (full) first
    rows = design.merge(of_ablation(it.returns, it.task), on=["algorithm", "variant"])
    return draw(on_axis(rows, it.x_axis), labels, it.ylabel, 2, ends=True)


def figure_a1(it):
    """Inner products of Gaussian and of orthogonal directions, one draw of K = 8 in 38 dimensions; lengths of 4,096."""
    import torch  # only for this figure; the rest of the plotter does without

    from ams_td3 import sample_directions

    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 3), layout="constrained")
    for axis, name in zip(axes, ("gaussian", "orthogonal"), strict=True):
        v = sample_directions(name, 4096, 8, 38, generator=torch.Generator().manual_seed(0))
        look = {"vmin": -1, "vmax": 1, "cmap": "RdBu_r", "square": True, "annot": True, "fmt": ".1f", "cbar": False}
        sns.heatmap((v[0] @ v[0].T).round(decimals=1) + 0.0, ax=axis, annot_kws={"size": 6}, **look)
        axis.set_title(f"{name.capitalize()}: length {v.norm(dim=2).mean():.2f} ± {v.norm(dim=2).std():.2f}")
    return figure


def in_arms(rows):
    """The rows of ARMS, with `label` and `panel`, of tasks that have AMS and two more of its arms."""
    arms = [(label, variant, ams, base) for ams, base in PAIRS.items() for label, variant in ARMS.items()]
    arms = pd.DataFrame(arms, columns=["label", "variant", "algorithm", "base"])
    arms["algorithm"] = arms["algorithm"].where(arms["label"] != "Baseline", arms["base"])
    rows = arms.merge(rows, on=["algorithm", "variant"])
    rows["panel"] = rows["task"].str.title() + ", " + rows["base"].str.upper()
    arms = rows.groupby("panel")["label"].agg(set)
    return by_task(rows[rows["panel"].isin([panel for panel, own in arms.items() if "AMS" in own and len(own) > 2])])


def figure_is_it_ntd(it):
    """What AMS adds to TD3 and SAC, one by one, against steps and hours. Dotted: the paper, at 500K or 1M steps."""
    papers, both, axes = paper("2").set_index(["task", "algorithm"]), [it.arms[:0]], []
    for cell, own in it.arms.groupby(["task", "base"], sort=False):
        both += [on_axis(own, "steps"), on_axis(own.assign(panel=own["panel"] + " "), "hours")]
        axes += [cell, cell]
    figure = draw(stack(both), list(ARMS), "Evaluation return", 2)
    for axis, (task, base) in zip(figure.axes if figure else (), axes, strict=True):
        axis.set_ylim(0, MAX_RETURN)
        for key, color in (((task, base), COLORS[3]), ((task, f"ams_{base}"), COLORS[0])):
            if key in papers.index:
                mean = papers.loc[key, "mean"]
                axis.axhline(mean, color=color, linestyle=":", linewidth=1)
                axis.text(0, mean, f" paper: {mean:g}", va="top", color=color, fontsize=6)
    return figure


def figure_aggregates(it):
    """rliable's aggregates of final returns / 1000, with 95% intervals of a stratified bootstrap over seeds."""
    looks = {"colors": dict(zip(ALGORITHMS.values(), COLORS, strict=False)), "xlabel": "", "subfigure_width": 2.2}
    return plot_utils.plot_interval_estimates(*it.aggregates, list(MEASURES), **looks)[0]


def figure_profiles(it):
    """rliable's performance profiles: the share of runs above each final return / 1000, with 95% bands."""
    looks = {"colors": COLORS, "linestyles": [(0, dash) if dash else "-" for dash in DASHES]}
    looks = {key: dict(zip(ALGORITHMS.values(), values, strict=False)) for key, values in looks.items()}
    values, bounds = library.create_performance_profile(it.scores, TAUS, reps=REPS)
    axis = plot_utils.plot_performance_profiles(values, TAUS, bounds, xlabel="Return / 1000", figsize=(5, 3), **looks)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return axis.figure


# ---------------------------------------------------------------- tables
def comparable(runs, cell=CELL):
    """Finished runs that may be averaged: of each cell those with the paper's number of steps, else the longest."""
    done = runs[runs["finished"]]
    steps = done["task"].map(paper("2").groupby("task")["steps"].first())
    length = done["global_step"].astype(float).mask(done["global_step"] == steps, np.inf)
    return done[length == length.groupby([done[name] for name in cell]).transform("max")]


def impossible(mean, std, seeds):
    """Whether no returns in [0, 1000] have this mean and sample deviation, both rounded to whole numbers."""
    totals = [seeds * max(0, mean + error) for error in (-0.5, 0, 0.5)]
    # Of returns with a given total those at 0 or 1000, but for one, deviate most.
    most = [([MAX_RETURN] * int(total // MAX_RETURN) + [total % MAX_RETURN] + [0] * seeds)[:seeds] for total in totals]
    return std - 0.5 > np.std(most, axis=1, ddof=1).max()


def text(value, *spread, digits=0):
    """ "712", "712 ± 27" with a deviation, "712 [685, 739]" with the two ends of an interval, "–" without a value."""
    ends = [f"{end:.{digits}f}" for end in spread if not pd.isna(end)]
    tail = f" [{', '.join(ends)}]" if len(ends) > 1 else "".join(f" ± {end}" for end in ends)
    return "–" if pd.isna(value) else f"{value:.{digits}f}{tail}"


def beside_paper(runs, value, numbers, extra=(), digits=0):
    """The paper's numbers of a table, and other cells that have runs, with ours: a row a cell.

    `Ours` is mean ± sample deviation (seeds, of how many runs if some are not finished or not as long), and the steps
    where they are not the paper's; `Paper` is marked where its deviation is impossible.
    """
    how = {"ours": (value, "mean"), "deviation": (value, "std"), "n": (value, "count"), "at": ("global_step", "max")}
    ours = comparable(runs).dropna(subset=value).groupby([*CELL, *extra], as_index=False).agg(**how)
    rows = numbers.reset_index(names="order").merge(runs.value_counts(CELL).reset_index(name="runs"), how="outer")
    rows = rows.merge(ours, how="left", on=CELL).sort_values("order", kind="stable", ignore_index=True)
    rows["impossible"] = [row.std > 0 and impossible(row.mean, row.std, int(row.seeds)) for row in rows.itertuples()]
    rows["Paper"] = [text(row.mean, row.std, digits=digits) + " †" * row.impossible for row in rows.itertuples()]
    rows["Ours"] = ["missing" if pd.isna(count) else "unfinished" for count in rows["runs"]]
    for row in rows[rows["n"] > 0].itertuples():
        seeds = f"{row.n:.0f} of {row.runs:.0f}" if row.n < row.runs and not extra else f"{row.n:.0f}"
        at = f" at {row.at / 1000:g}K" if value != "hours" and row.steps > 0 and row.at != row.steps else ""
        rows.loc[row.Index, "Ours"] = f"{text(row.ours, row.deviation, digits=digits)} ({seeds}){at}"
    return rows


def better(ours, theirs):
    """rliable's probability that our scores [runs, tasks] beat theirs, with its interval, NaN of single runs."""
    np.random.seed(0)  # rliable draws from numpy's global generator
    # As rliable.metrics.probability_of_improvement, but without the test by scipy, which is slow in a bootstrap.
    wins = [lambda x, y: np.array([np.mean(x[:, None] > y) + np.mean(x[:, None] == y) / 2])]
    values, bounds = library.get_interval_estimates({"": (ours, theirs)}, *wins, reps=REPS)
    low, high = bounds[""][:, 0] if min(len(ours), len(theirs)) > 1 else (np.nan, np.nan)
    return {"value": values[""][0], "low": low, "high": high}


def scores_of(runs, value):
    """Final returns / 1000 of default runs {algorithm: [runs > 1, tasks]}, on tasks that all finished at one length."""
    done = runs[(runs["variant"] == "default") & runs["task"].isin(paper("2")["task"])]
    done = comparable(done, ["task"]).dropna(subset=value)
    lists = done.sort_values("seed").groupby(["task", "algorithm"])[value].agg(list).unstack().dropna()
    seeds = {name: n for name in lists if len(lists) and (n := lists[name].map(len).min()) > 1}
    return {ALGORITHMS[name]: np.array([own[:n] for own in lists[name]]).T / MAX_RETURN for name, n in seeds.items()}


def wide(rows):
    """Rows with measure, value, low and high as a table of texts, a column a measure."""
    values = zip(rows["measure"], rows["value"], rows["low"], rows["high"], strict=True)
    cells = [text(*own, digits=0 if measure in ("return", "area") else 2) for measure, *own in values]
    index = [name for name in rows if name not in ("measure", "value", "low", "high")]
    shown = rows.assign(cell=cells).pivot_table("cell", index, "measure", aggfunc="first", sort=False)
    return rows, shown.reset_index()


def table_2(it):
    """Table 2: final returns, mean ± sample deviation (seeds); † cannot be that of so many returns in [0, 1000]."""
    rows = beside_paper(it.runs[it.runs["variant"] == "default"], it.value, paper("2"))
    matrix = rows.set_index(["algorithm", "task"])[["Ours", "Paper"]].stack().unstack("task")[rows["task"].unique()]
    matrix = matrix.reindex(rows["algorithm"].unique(), level=0).rename(index=ALGORITHMS, columns=str.title)
    return rows, matrix.rename_axis(["algorithm", ""]).reset_index()


def table_3(it):
    """Table 3: final returns of ablations, mean ± sample deviation (seeds)."""
    numbers = paper("3")  # which hold on its task alone
    numbers = numbers.assign(**numbers[["mean", "std", "steps"]].where(numbers["task"] == it.task), task=it.task)
    rows = beside_paper(of_ablation(it.runs[it.runs["algorithm"] != "ppo"], it.task), it.value, numbers)
    return rows, rows[["group", "label", *CELL, "Ours", "Paper"]]


def table_b4(it):
    """Table B.4: hours for 1M steps with evaluations, mean ± sample deviation (seeds); the paper's on an RTX 3090."""
    rows = beside_paper(it.runs[it.runs["variant"] == "default"], "hours", paper("B.4"), ["device"], digits=2)
    return rows, rows[["task", "algorithm", "device", "Ours", "Paper"]]


def table_aggregates(it):
    """rliable's aggregates of final returns / 1000, on the tasks that all algorithms have finished."""
    rows, (values, bounds) = [], it.aggregates
    for name, own in it.scores.items():
        ids = {"algorithm": name, "tasks": own.shape[1], "seeds": len(own)}
        for measure, value, low, high in zip(MEASURES, values[name], *bounds[name], strict=True):
            rows.append(ids | {"measure": measure, "value": value, "low": low, "high": high})
        if name.removeprefix("AMS-") in it.scores and name.startswith("AMS-"):
            rows.append(ids | {"measure": "P(better than base)"} | better(own, it.scores[name.removeprefix("AMS-")]))
    return wide(pd.DataFrame(rows))


def table_is_it_ntd(it):
    """What AMS adds, one by one, at the last step that more than half of the runs of every arm have got to.

    Means over seeds with 95% t-intervals of the return there, of the mean return until there (area under the curve) and
    of the hours; rliable's probability that AMS has the higher return, with an interval too narrow for few seeds; so p
    is of the exact two-sided Mann-Whitney test, at least 0.1 with 3 against 3 seeds. `short`: runs not there yet.
    """
    rows = []
    for (task, base), own in it.arms.groupby(["task", "base"], sort=False):
        last = own.groupby(["label", "seed"])["step"].max()
        end = last[last > 0].groupby("label").agg(reached).drop("AMS, ε = 1.2", errors="ignore").min()
        own = own[own["step"] <= end].set_index(["label", "seed"])
        own = own[last.reindex(own.index) >= end].groupby(level=[0, 1])
        area = own[["step", "value"]].apply(lambda run: np.trapezoid(run["value"], run["step"])) / end
        measures = {"return": own["value"].last(), "area": area, "hours": own["wall_seconds"].last() / 3600}
        for label in [label for label in ARMS if label in area]:
            short = ", ".join(f"seed {seed} at {step:,}" for seed, step in last[label].items() if step < end)
            ids = {"task": task, "base": base, "arm": label, "step": end, "seeds": len(area[label]), "short": short}
            for measure, values in measures.items():
                low, high = band(values[label])
                rows.append(ids | {"measure": measure, "value": values[label].mean(), "low": low, "high": high})
            if label != "AMS" and "AMS" in area:
                scores = [measures["return"][name].to_numpy()[:, None] for name in ("AMS", label)]
                rows.append(ids | {"measure": "P(AMS better)"} | better(*scores))
                p = scipy.stats.mannwhitneyu(*scores, method="exact").pvalue[0]
                rows.append(ids | {"measure": "Mann-Whitney p", "value": p})
    return wide(pd.DataFrame(rows))


def write_table(path, caption, rows, shown):
    """path.csv with all digits, path.md and path.tex as shown."""
    shown = shown.fillna("–").rename(columns=lambda name: name[:1].upper() + name[1:])
    write(path.with_suffix(".csv"), rows.to_csv(index=False))
    write(path.with_suffix(".md"), f"{caption}\n\n{shown.to_markdown(index=False, disable_numparse=True)}\n")
    style = shown.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis="columns")
    latex = "% \\usepackage{booktabs,adjustbox}\n\\begin{table}\n\\caption{" + caption.replace("%", "\\%")
    latex += "}\n\\begin{adjustbox}{max width=\\linewidth, center}\n" + style.to_latex(hrules=True)
    latex = latex.replace("ε", r"$\epsilon$") + "\\end{adjustbox}\n\\end{table}\n"
    write(path.with_suffix(".tex"), latex)


def main():
    """Read the runs, write figures, captions and tables, and say what was written."""
    usage = "python plot_curves.py DIR [DIR ...] [options]"
    parser = argparse.ArgumentParser("plot_curves.py", usage, __doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("directories", nargs="+", type=Path, metavar="DIR", help="folder of runs, or one that --export wrote")
    add("--out-dir", type=Path, help="where figures and tables go (default: --export, a published DIR, or figures)")
    add("--x-axis", choices=AXES, default="steps", help="of Figures 3-5; default steps (vector steps)")
    add("--metric", choices=METRICS, default="eval", help="evaluation or training return (tables: last 10%% of steps)")
    add("--format", nargs="+", choices=("png", "pdf", "svg"), default=["png", "svg"], help="default png svg")
    add("--ablation-task", dest="task", default="quadruped-run", help="of Figures 4, 5 and Table 3")
    add("--reference", nargs="+", type=Path, default=[], help="others' evaluations.csv, drawn in grey in Figure 3")
    add("--export", type=Path, help="publish in this folder: the data of all runs, figures and tables")
    it = parser.parse_args()  # what figures and tables are made of is added to it
    if it.reference and it.metric == "train":
        parser.error("--reference holds evaluations, which go with --metric eval")
    sns.set_theme("paper", "whitegrid", font_scale=0.85, rc=STYLE)
    it.runs, evaluations, it.diagnostics = runs, *_ = read_runs(it.directories)
    tag, it.value, it.ylabel = METRICS[it.metric]
    published = (directory for directory in it.directories if (directory / "runs.json").exists())
    folder = it.export or it.out_dir or next(published, Path("figures"))
    folder.mkdir(parents=True, exist_ok=True)
    read = (runs["variant"] == "default") & (runs["task"] == it.task) | bool(it.export) | (it.metric == "train")
    with ProcessPoolExecutor() as pool:
        logged = binned(scalars(runs[read], evaluations, [METRICS["train"][0], *DIAGNOSTICS], pool.map))
    it.diagnostics = stack([it.diagnostics, logged[logged["tag"].isin(DIAGNOSTICS)]])
    it.arms = in_arms(evaluated(evaluations))
    it.returns = stack([evaluated(evaluations), logged]).query("tag == @tag")
    if it.export:
        records = [record | {"path": None} for record in runs["record"]]
        write(folder / "runs.json", json.dumps(records, indent=1) + "\n")
        for name, rows, columns in (("evaluations", evaluations, EPISODES), ("diagnostics", it.diagnostics, SCALARS)):
            write(folder / f"{name}.csv", rows.sort_values(columns)[columns].to_csv(index=False))
    functions = [figure_3, figure_4, figure_5, figure_a1, figure_is_it_ntd, table_2, table_3, table_b4]
    functions += [table_is_it_ntd] * bool(it.arms["step"].any())
    it.scores = scores_of(runs, it.value)
    if it.scores:
        np.random.seed(0)  # rliable draws from numpy's global generator
        functions += [figure_aggregates, figure_profiles, table_aggregates]
        measure = [lambda own: np.array([function(own) for function in MEASURES.values()])]
        it.aggregates = library.get_interval_estimates(it.scores, *measure, reps=REPS)
    left = (f"{' '.join(map(str, run[1:5]))} at step {run.last:,}" for run in runs[~runs["finished"]].itertuples())
    captions = [f"Unfinished: {', '.join(left) or 'none'}. Thin lines: single runs, short of or beyond the mean."]
    for function in functions:
        name, caption, drawn = function.__name__, " ".join(function.__doc__.split()), function(it)
        if name.startswith("table"):
            write_table(folder / name, caption, *drawn)
            continue
        for kind in it.format if drawn else ():
            buffer = io.BytesIO()
            drawn.savefig(buffer, format=kind, bbox_inches="tight", metadata={"Date": None} if kind == "svg" else None)
            write(folder / f"{name}.{kind}", buffer.getvalue())
        plt.close("all")
        captions.append(f"{name}: {caption if drawn else 'no run has its data.'}")
    write(folder / "captions.md", "\n\n".join(captions) + "\n")
    print(f"{len(runs)} runs, {runs['finished'].sum()} finished; figures and tables are in {folder}")


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        sys.exit(f"plot_curves.py: error: {error}")
