"""plot_curves.py against runs written by the real SummaryWriter and numbers computed here by other means."""

import itertools
import json
import math
import os
import re
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from torch.utils.tensorboard import SummaryWriter

import plot_curves as pc

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
EVAL = "eval/episodic_return"
TRAIN = "charts/episodic_return"
THREE_ARMS = [
    ("ams_td3", {}),
    ("ams_td3", {"ntd": False}),
    ("td3", {}),
]
pc.ProcessPoolExecutor = partial(ThreadPoolExecutor, 1)  # pytest has threads, with which a process must not be forked


# ---------------------------------------------------------------- runs to draw
def write_run(root, algorithm, task, seed, curve, finished=True, hours=1.0, device="cpu", **changed):
    """A run folder as the training scripts write it: evaluations of two episodes, `curve` {step: mean return}."""
    folder = root / f"{task}__{algorithm}{changed}__{seed}"
    folder.mkdir(parents=True)
    last = max(curve)
    args = {"algorithm": algorithm, "exp_name": algorithm, "env_id": task, "seed": seed, **changed}
    (folder / "args.json").write_text(json.dumps(args))
    rows = ["step,frames,updates,wall_seconds,episode,return,length"]
    for step, mean in curve.items():
        counters = f"{8 * step},{max(0, step - 1000)},{3600 * hours * step / max(1, last)}"
        rows.append(f"{step},{counters},0,{mean - 1},1000")
        rows.append(f"{step},{counters},1,{mean + 1},1000")
    (folder / "evaluations.csv").write_text("\n".join(rows) + "\n")
    result = {
        "global_step": last,
        "wall_seconds": 3600 * hours,
        "training_return_last_10_percent": curve[last] / 2,
        "device": device,
    }
    if finished:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def write_events(folder, scalars, purge_step=None):
    """An event file with {tag: {step: value}}."""
    writer = SummaryWriter(str(folder), purge_step=purge_step)
    for tag, points in scalars.items():
        for step, value in points.items():
            writer.add_scalar(tag, value, step)
    writer.close()


def changed_in(variant):
    """The arguments that make it, of a text like "ntd=False num_neighbors=1"."""
    return {name: json.loads(value) for name, value in re.findall(r"(\w+)=(\S+)", variant.lower())}


def straight(final, last=500_000, every=100_000):
    return {step: final * step / last for step in range(0, last + 1, every)}


def read(*arguments):
    """Data and options, as main hands them to figures and tables."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["plot_curves.py", *map(str, arguments)])
        options = pc.read_arguments()
    return pc.read_data(options), options


def command(*arguments, status=0, **options):
    line = [sys.executable, ROOT / "plot_curves.py", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, **options)
    assert done.returncode == status, done.stderr
    return done


def lines_of(axis):
    """{color: values} of the curves in a panel; thin ones are left out."""
    return {line.get_color(): line.get_ydata() for line in axis.get_lines() if line.get_linewidth() > 0.5}


def legend_of(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


# ---------------------------------------------------------------- the paper's numbers
def test_paper_table_2():
    table = pc.paper("2")
    means = {"ppo": 728, "sac": 2616, "td3": 5244, "ams_td3": 8188, "ams_sac": 8250}
    assert table.groupby("algorithm")["mean"].sum().to_dict() == means
    assert table["std"].sum() == 6220
    assert table["steps"].sum() == 35_000_000


def test_other_paper_tables():
    assert pc.paper("3")["mean"].sum() == 11_291
    assert pc.paper("3")["std"].sum() == 866
    assert pc.paper("B.4")["mean"].max() == 4.5
    assert pc.paper("Figure 4")["mean"].tolist() == [0.39, 0.16, 285, 63]


def largest_deviation(mean, seeds):
    """Of returns in [0, 1000] with this mean: all at 0 or 1000 but one."""
    at_top, rest = divmod(seeds * mean, 1000)
    returns = [1000.0] * int(at_top) + [rest] + [0.0] * seeds
    return statistics.stdev(returns[:seeds])


def test_impossible_marks_deviations_that_rounded_returns_cannot_have():
    for row in pc.paper("2").itertuples():
        means = [row.mean - 0.5, row.mean, row.mean + 0.5]
        largest = max(largest_deviation(max(0, mean), int(row.seeds)) for mean in means)
        assert (row.impossible == 1) == (row.std - 0.5 > largest)


# ---------------------------------------------------------------- reading
@pytest.mark.parametrize(
    ("changed", "variant"),
    [
        ({}, "default"),
        ({"layer_norm": False}, "layer_norm=False"),
        ({"ntd": False, "exp_name": "anything"}, pc.ARMS["+ LayerNorm"]),
        ({"num_neighbors": 1, "epsilon": 0.0}, pc.ARMS["+ LayerNorm, point target"]),
        ({"epsilon": 1.2}, pc.ARMS["AMS, ε = 1.2"]),
        ({"num_neighbors": 4, "sampling": "gaussian"}, "num_neighbors=4 sampling=gaussian"),
        ({"exp_name": "ams_td3_big_batch"}, "ams_td3_big_batch"),
    ],
)
def test_variant(changed, variant):
    usual = {"algorithm": "ams_td3", "exp_name": "ams_td3", **pc.SWITCHES}
    assert pc.variant_of({**usual, **changed}) == variant


def test_long_form_holds_every_value(tmp_path):
    curve = {0: 1.5, 1000: 2.5, 3000: 3.5}
    scalars = {
        "losses/qf_loss": {500: math.pi, 2000: 1.0, 3500: 2.0},
        EVAL: {0: 9.0},
    }
    folder = write_run(tmp_path / "deep" / "er", "ams_sac", "dog-run", 7, curve, sampling="gaussian")
    write_events(folder, scalars)

    frame = pc.load_runs(tmp_path)

    assert list(frame) == pc.SCALARS
    assert set(frame["variant"]) == {"sampling=gaussian"}
    assert set(frame["seed"]) == {7}
    evaluations = frame[frame["tag"] == EVAL].set_index("step")
    assert evaluations["value"].to_dict() == curve
    losses = frame[frame["tag"] == "losses/qf_loss"]
    np.testing.assert_allclose(losses["value"], [math.pi, 1, 2], rtol=1e-6)
    assert losses["frames"].tolist() == [4000, 16000, 28000]  # between the evaluations, and behind the last
    assert losses["updates"].tolist() == [0, 1000, 2500]
    np.testing.assert_allclose(losses["wall_seconds"], [600, 2400, 4200])


DAMAGE = [  # bytes of the file, what stands there instead, and more values than this are read
    (slice(-99, None), b"", 90),
    (slice(3000, 3002), b"??", 40),
    (slice(None), b"not an event file at all, but long enough", -1),
]


@pytest.mark.parametrize(("place", "content", "fewest"), DAMAGE)
def test_damaged_file_is_named_and_what_comes_before_is_used(tmp_path, capsys, place, content, fewest):
    folder = write_run(tmp_path, "td3", "dog-run", 1, {0: 1.0})
    write_events(folder, {"x": dict.fromkeys(range(0, 1000, 10), 1.0)})
    (path,) = folder.glob("*tfevents*")
    data = bytearray(path.read_bytes())
    data[place] = content
    path.write_bytes(data)

    steps = pc.load_runs(tmp_path).query("tag == 'x'")["step"].tolist()

    assert steps == list(range(0, 10 * len(steps), 10))
    assert fewest < len(steps) < 100
    message = capsys.readouterr().err
    assert str(path) in message
    assert "what comes before is used" in message


def test_a_resumed_run_shows_each_step_once(tmp_path):
    before = {
        "a": {0: 1.0, 10: 2.0},
        "b": {5: 3.0},
    }
    write_events(tmp_path, before)
    (first,) = tmp_path.iterdir()
    first.rename(tmp_path / "events.out.tfevents.1")  # as the older one, whatever the clock says
    write_events(tmp_path, {"a": {5: 7.0, 20: 8.0}}, purge_step=5)

    frame, problems = pc.read_scalars(tmp_path, ["a"])

    assert frame["step"].tolist() == [0, 5, 20]
    assert frame["value"].tolist() == [1, 7, 8]
    assert problems == []


@pytest.mark.parametrize("content", ["{", "[]", '{"algorithm": "dqn"}', "step,return\n1,2\n"])
@pytest.mark.parametrize("name", ["args.json", "evaluations.csv"])
def test_a_run_with_a_bad_file_is_named_and_left_out(tmp_path, capsys, name, content):
    write_run(tmp_path, "td3", "dog-run", 1, {0: 1.0})
    bad = write_run(tmp_path, "td3", "dog-run", 2, {0: 1.0})
    (bad / name).write_text(content)

    runs, _, _ = pc.read_runs([tmp_path])

    assert runs["seed"].tolist() == [1]
    error = capsys.readouterr().err
    assert error.startswith(f"plot_curves.py: note: {bad} is left out")
    assert error.count("\n") == 1


# ---------------------------------------------------------------- curves
@pytest.fixture
def unequal(tmp_path):
    """Four runs of constant returns 1 to 4: two of 40 steps, a longer one and a shorter one."""
    runs = [
        (1, 40, 4),
        (2, 40, 8),
        (3, 60, 6),
        (4, 20, 1),
    ]
    for seed, last, hours in runs:
        curve = dict.fromkeys(range(0, last + 1, 10), seed)
        write_run(tmp_path, "sac", "dog-run", seed, curve, hours=hours)
    return tmp_path


def test_a_curve_is_of_the_runs_that_got_to_its_end(unequal):
    axis = pc.figure_3(*read(unequal)).axes[0]
    mean, *thin = [line.get_ydata().tolist() for line in axis.get_lines()]
    assert mean == [2] * 5
    assert thin == [[3, 3, 3], [4, 4, 4]]  # the longer run goes on from the end of the curve


def test_hours_are_means_over_the_runs_of_the_curve(unequal):
    axis = pc.figure_3(*read(unequal, "--x-axis", "hours")).axes[0]
    hours = axis.get_lines()[0].get_xdata()
    assert hours == pytest.approx([0, 4 / 3, 8 / 3, 4, 16 / 3])  # a quarter of 4, 8 and 4, and so on


@pytest.fixture
def constant(tmp_path):
    """AMS, two more arms: runs of constant 100, 300 and 500, evaluated at different steps; one ends early."""
    for algorithm, changed in THREE_ARMS:
        for seed, last, every in [(1, 400, 50), (2, 420, 70), (3, 500, 100)]:
            curve = dict.fromkeys(range(0, last + 1, every), 200 * seed - 100)
            write_run(tmp_path, algorithm, "dog-run", seed, curve, **changed)
        write_run(tmp_path, algorithm, "dog-run", 4, {0: 900, 100: 900}, finished=False, **changed)
    return tmp_path


def test_constant_runs_at_different_steps_give_a_flat_line(constant):
    figure = pc.figure_3(*read(constant))
    mean = figure.axes[0].get_lines()[0]
    np.testing.assert_allclose(mean.get_ydata(), 300)
    assert (mean.get_xdata() * 1000).round().tolist() == [0, 100, 200, 300, 400]
    assert "n = 3" in figure.legends[0].get_title().get_text()


@pytest.mark.parametrize("first", [0, 100])
def test_area_is_the_mean_return_whenever_evaluations_begin(tmp_path, first):
    curve = dict.fromkeys(range(first, 401, 100), 300)
    for algorithm, changed in THREE_ARMS:
        write_run(tmp_path, algorithm, "dog-run", 1, curve, **changed)
    rows, _ = pc.table_is_it_ntd(*read(tmp_path))
    areas = rows[rows["measure"] == "Area"]["value"]
    assert areas.tolist() == pytest.approx([300, 300, 300])


def test_tables_use_the_same_interpolated_values(constant):
    rows, _ = pc.table_is_it_ntd(*read(constant))
    assert set(rows["seeds"]) == {3}
    assert set(rows["step"]) == {400}
    values = rows.set_index("measure").loc[["Return", "Area"], "value"]
    np.testing.assert_allclose(values, 300)


def test_values_are_interpolated_linearly_and_nothing_is_extrapolated():
    slow = pd.DataFrame({"run": 0, "step": [10, 30], "value": [1, 3]})
    quick = pd.DataFrame({"run": 1, "step": [0, 20, 25, 40], "value": [0, 8, 8, 2]})
    rows = pd.concat([slow, quick]).assign(frames=0, updates=0, wall_seconds=0)
    values = pc.at_same_steps(rows, 30)
    assert values["step"].tolist() == [[10, 30], [10, 30]]
    assert values["value"].tolist() == [[1, 3], [4, 6]]


def test_a_run_that_begins_behind_the_end_of_a_curve_is_not_in_it():
    rows = pd.DataFrame({"run": [0, 0, 1, 1], "step": [0, 10, 20, 30], "value": [1, 1, 5, 5]})
    values = pc.at_same_steps(rows.assign(frames=0, updates=0, wall_seconds=0), 10)
    assert values["value"].tolist() == [[1, 1]]


def test_band_is_the_t_interval_from_three_on():
    values = [1.0, 5.0, 6.0, 9.0]
    expected = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    mean, *ends = pc.band(values)
    assert mean == np.mean(values)
    assert ends == pytest.approx(expected)
    assert np.isnan(pc.band([1.0, 2.0])[1:]).all()


# ---------------------------------------------------------------- figures
@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Five algorithms on two tasks, three seeds: straight evaluation curves from 0 to 100 x rank + 10 x seed."""
    root = tmp_path_factory.mktemp("sweep") / "runs"
    ranks = list(enumerate(pc.ALGORITHMS, 1))
    for (rank, algorithm), task, seed in itertools.product(ranks, ["quadruped-run", "dog-walk"], [1, 2, 3]):
        curve = straight(100.0 * rank + 10 * seed)
        scalars = {TRAIN: {step + 1: value / 2 for step, value in curve.items()}}
        if task == "quadruped-run" and algorithm != "ppo":
            factor = 1.0 if algorithm.startswith("ams") else 3.0
            steps = range(10_000, 500_001, 10_000)
            scalars["diagnostics/critic_grad_norm"] = dict.fromkeys(steps, factor * 10.0 ** (seed - 2))
            scalars["diagnostics/td_target_variance"] = dict.fromkeys(steps, factor**2)
        folder = write_run(root, algorithm, task, seed, curve)
        write_events(folder, scalars)
    return root


@pytest.mark.parametrize(("x_axis", "scale"), [("steps", 1e-3), ("frames", 8e-6), ("hours", 1 / 500_000)])
def test_figure_3_draws_means(sweep, x_axis, scale):
    figure = pc.figure_3(*read(sweep, "--x-axis", x_axis))
    steps = np.arange(0, 500_001, 100_000)
    for panel in figure.axes:
        assert len(panel.get_lines()) == 5
        for rank, name in enumerate(pc.ALGORITHMS.values(), 1):
            (line,) = [line for line in panel.get_lines() if line.get_label() == name]
            assert (line.get_color(), line.get_linestyle(), line.get_marker()) == pc.LOOKS[name]
            np.testing.assert_allclose(line.get_ydata(), (100 * rank + 20) * steps / 500_000)
            np.testing.assert_allclose(line.get_xdata(), steps * scale)


def test_figure_3_has_bands_titles_one_scale_and_one_legend(sweep):
    figure = pc.figure_3(*read(sweep))
    first, second = figure.axes
    tops = [band.get_paths()[0].get_extents().y1 for band in first.collections]
    assert min(tops) == pytest.approx(120 + scipy.stats.t.ppf(0.975, 2) * 10 / math.sqrt(3))  # of 110, 120, 130
    assert [first.get_title(), second.get_title()] == ["Quadruped-Run", "Dog-Walk"]
    assert first.get_ylim() == second.get_ylim()
    assert legend_of(figure) == list(pc.ALGORITHMS.values())


def test_others_are_drawn_in_grey(sweep, tmp_path):
    write_run(tmp_path / "ours", "td3", "dog-walk", 1, straight(50.0))
    evaluations = pc.read_runs([sweep])[1].query("algorithm == 'sac'")[pc.EPISODES]
    constant = evaluations.assign(origin=None, **{"return": 7.0})
    files = [tmp_path / "a" / "results" / "peers.csv", tmp_path / "b" / "results" / "peers.csv"]
    for frame, file in zip([constant, evaluations], files, strict=True):
        file.parent.mkdir(parents=True)
        frame.to_csv(file, index=False)

    figure = pc.figure_3(*read(tmp_path / "ours", "--reference", *files))

    assert legend_of(figure) == ["TD3", *[f"sac default, {file.with_suffix('')}" for file in files]]
    ends = {color: values[-1] for color, values in lines_of(figure.axes[-1]).items()}
    assert ends == {pc.LOOKS["TD3"][0]: 50, "0.35": 7, "0.5": 520}


def test_figure_4_is_geometric_and_gives_the_ratio(sweep):
    figure = pc.figure_4(*read(sweep))
    left, right = figure.axes
    assert "TD3 / AMS-TD3: 3.0× (paper 2.4)" in left.get_title()
    assert "SAC / AMS-SAC: 9.0×" in right.get_title()
    assert len(left.collections) == len(right.collections) == 4
    lowest = min(band.get_paths()[0].get_extents().y0 for axis in figure.axes for band in axis.collections)
    assert lowest > 0  # bands of plain means would go below 0 here
    np.testing.assert_allclose(lines_of(left)[pc.LOOKS["TD3"][0]], 3)  # of 0.3, 3 and 30; their plain mean is 11.1


@pytest.fixture
def ablations(tmp_path):
    """Folder and final returns {(algorithm, variant): [of seeds 0, 42, 123]} of Table 3's cells."""
    finals = {}
    design = pc.paper("3")[["algorithm", "variant"]].drop_duplicates()
    for algorithm, variant in design.itertuples(index=False):
        changed = changed_in(variant)
        finals[algorithm, variant] = [100.0 + 10 * len(finals) + square for square in [0, 1, 4]]
        for seed, final in zip([0, 42, 123], finals[algorithm, variant], strict=True):
            write_run(tmp_path, algorithm, "quadruped-run", seed, straight(final), **changed)
        if variant == "default":  # of Table 2, which must not enter
            write_run(tmp_path, algorithm, "quadruped-run", 10, straight(900.0))
    write_run(tmp_path, "ams_td3", "quadruped-run", 0, straight(77.0), sampling="gaussian")
    return tmp_path, finals


def test_table_3_is_of_the_papers_seeds(ablations):
    folder, finals = ablations
    rows, _ = pc.table_3(*read(folder))
    for row, paper in zip(rows.itertuples(), pc.paper("3").itertuples(), strict=False):
        values = finals[paper.algorithm, paper.variant]
        assert row.Ours == f"{statistics.mean(values):.0f} ± {statistics.stdev(values):.0f} (3)"
        assert row.Paper == f"{paper.mean:.0f} ± {paper.std:.0f}"
        assert row.label == paper.label
    assert len(rows) == 17
    assert rows[["variant", "Ours"]].iloc[16].tolist() == ["sampling=gaussian", "77 (1)"]


def test_the_papers_ablations_hold_on_its_task_alone(ablations):
    _, shown = pc.table_3(*read(ablations[0], "--ablation-task", "dog-run"))
    assert set(shown["Paper"]) == {"–"}


def test_figure_5_draws_every_ablation(ablations):
    folder, finals = ablations
    figure = pc.figure_5(*read(folder))
    assert len(figure.axes) == 4
    assert len(legend_of(figure)) == 7
    ends = {round(values[-1], 6) for axis in figure.axes for values in lines_of(axis).values()}
    assert ends == {round(statistics.mean(values), 6) for values in finals.values()}


def test_figure_a1_draws_the_scripts_directions():
    gaussian, orthogonal = pc.figure_a1(None, None).axes
    products = np.asarray(orthogonal.collections[0].get_array()).reshape(8, 8)
    np.testing.assert_allclose(products, np.eye(8), atol=0.05)
    mean = scipy.stats.chi.mean(38) / math.sqrt(38)
    deviation = scipy.stats.chi.std(38) / math.sqrt(38)
    assert gaussian.get_title() == f"Gaussian: length {mean:.2f} ± {deviation:.2f}"


def test_without_pytorch_figure_a1_is_left_out_with_a_note(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert pc.figure_a1(None, None) is None
    assert capsys.readouterr().err.startswith("plot_curves.py: note: figure_a1 is left out")


def test_the_same_arm_has_the_same_look_in_all_figures():
    looks = pc.LOOKS
    assert looks["AMS-TD3"] == looks["AMS"] == looks["AMS (full): ε = 0.2, K = 8"]
    assert looks["TD3"] == looks["Baseline"]
    assert looks["+ LayerNorm"] == looks["w/o NTD"]


# ---------------------------------------------------------------- tables
@pytest.fixture
def cells(tmp_path):
    for seed, final in [(1, 700.0), (2, 750.0), (5, 800.0)]:
        write_run(tmp_path, "ams_td3", "cheetah-run", seed, straight(final))
    write_run(tmp_path, "ams_td3", "cheetah-run", 3, {130_000: 1.0}, finished=False)
    write_run(tmp_path, "ams_td3", "cheetah-run", 4, {100_000: 1.0})
    write_run(tmp_path, "td3", "dog-run", 1, {90_000: 50.0})
    write_run(tmp_path, "sac", "dog-run", 1, {70_000: 5.0}, finished=False)
    write_run(tmp_path, "ppo", "walker-walk", 1, {5_000: 400.0})
    return tmp_path


def test_table_2(cells):
    rows, matrix = pc.table_2(*read(cells))
    assert len(rows) == 61
    assert matrix.shape == (10, 15)
    assert list(matrix)[2:5:2] == ["Cheetah-Run", "Quadruped-Walk"]
    assert list(matrix)[-1] == "walker-walk"  # none of the paper's
    shown = matrix.set_index(["algorithm", ""])
    ours = shown.xs("Ours", level=1)
    papers = shown.xs("Paper", level=1)
    assert ours.loc["AMS-TD3", "Cheetah-Run"] == "750 ± 50 (3 of 5)"
    assert papers.loc["AMS-TD3", "Cheetah-Run"] == "712 ± 27"
    assert ours["Dog-Run"][["TD3", "SAC", "PPO"]].tolist() == ["50 (1) at 90K", "unfinished at 70K", "missing"]
    assert ours.loc["PPO", "walker-walk"] == "400 (1)"
    assert papers.loc["SAC", "Dog-Stand"] == "249 ± 781 †"
    assert shown.to_csv().count("†") == 4


def test_table_2_of_training_returns(cells):
    rows, _ = pc.table_2(*read(cells, "--metric", "train"))
    assert 375 in rows["ours"].tolist()


def test_final_returns_are_printed_in_the_order_of_table_2(cells, capsys):
    pc.print_returns(read(cells)[0].runs, "final")
    lines = [re.split("  +", line.strip()) for line in capsys.readouterr().out.splitlines()]
    half = scipy.stats.t.ppf(0.975, 2) * 50 / math.sqrt(3)
    assert lines[0] == ["task", "algorithm", "variant", "return", "seeds", "unfinished or shorter"]
    interval = f"750 [{750 - half:.0f}, {750 + half:.0f}]"
    others = "seed 3: 1 at 130,000, seed 4: 1 at 100,000"
    assert lines[1] == ["Cheetah-Run", "AMS-TD3", "default", interval, "3", others]
    assert lines[2] == ["Dog-Run", "SAC", "default", "–", "0", "seed 1: 5 at 70,000"]
    assert lines[3] == ["Dog-Run", "TD3", "default", "50", "1"]
    assert lines[4] == ["walker-walk", "PPO", "default", "400", "1"]


def test_training_returns_are_printed_where_there_are_some(cells, capsys):
    pc.print_returns(read(cells)[0].runs, "training_return_last_10_percent")
    first = capsys.readouterr().out.splitlines()[1]
    assert "375 [" in first
    assert first.endswith("seed 3: – at 130,000, seed 4: 0 at 100,000")


def test_tasks_that_are_none_of_the_papers_stand_in_one_order(tmp_path, capsys):
    for algorithm, task in [("ams_td3", "zebra-v0"), ("td3", "ant-v0"), ("td3", "dog-run")]:
        write_run(tmp_path, algorithm, task, 1, straight(1.0))
    data, options = read(tmp_path)
    _, matrix = pc.table_2(data, options)
    pc.print_returns(data.runs, "final")
    printed = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert printed == ["Dog-Run", "ant-v0", "zebra-v0"]
    assert list(matrix)[-2:] == ["ant-v0", "zebra-v0"]


def test_table_b4_keeps_machines_apart(tmp_path):
    for hours, device in [(1, "H200"), (2, "H200"), (9, "cpu")]:
        write_run(tmp_path, "ams_sac", "dog-walk", hours, straight(1.0, 1_000_000), hours=hours, device=device)
    _, shown = pc.table_b4(*read(tmp_path))
    rows = shown.to_numpy().tolist()
    assert ["dog-walk", "ams_sac", "H200", "1.50 ± 0.71 (2 of 3)", "4.50"] in rows
    assert ["dog-walk", "ams_sac", "cpu", "9.00 (1 of 3)", "4.50"] in rows
    assert shown["Ours"].tolist().count("missing") == 23


# ---------------------------------------------------------------- is it NTD
FINALS = {
    "AMS": [390, 405, 310],
    "+ LayerNorm": [300, 420, 380],
    "+ LayerNorm, point target": [400, 410, 500],
    "Baseline": [50, 60, 70],
}
P_VALUES = {  # of 20 ways to split six values
    "+ LayerNorm": 1.0,
    "+ LayerNorm, point target": 0.2,
    "Baseline": 0.1,
}


@pytest.fixture(scope="module")
def arms(tmp_path_factory):
    """Four arms of TD3, a run that is not there yet, a fifth arm that has started, a task without arms."""
    root = tmp_path_factory.mktemp("arms")
    for arm, finals in FINALS.items():
        algorithm = "td3" if arm == "Baseline" else "ams_td3"
        hours = 3 if arm == "AMS" else 1
        for seed, final in zip([0, 42, 123], finals, strict=True):
            curve = straight(final, 150_000, 50_000)
            write_run(root, algorithm, "dog-stand", seed, curve, hours=hours, **changed_in(pc.ARMS[arm]))
    write_run(root, "td3", "dog-stand", 10, {110_000: 45.678901234567}, finished=False)
    write_run(root, "ams_td3", "dog-stand", 0, {0: 45.0}, finished=False, epsilon=1.2)
    write_run(root, "ams_td3", "h1-walk", 0, straight(1.0))
    return root


@pytest.fixture(scope="module")
def measured(arms):
    """Value, low and high of each arm and measure."""
    rows, _ = pc.table_is_it_ntd(*read(arms))
    return rows.set_index(["arm", "measure"])[["value", "low", "high"]]


def test_arms_are_compared_where_all_have_got_to(arms):
    _, shown = pc.table_is_it_ntd(*read(arms))
    assert list(shown["arm"]) == list(FINALS)
    assert set(shown["seeds"]) == {3}
    assert set(shown["step"]) == {150_000}
    assert shown["short"].tolist() == ["", "", "", "seed 10 at 110,000"]


@pytest.mark.parametrize("arm", FINALS)
def test_measures_of_an_arm(measured, arm):
    value, *ends = measured.loc[(arm, "Return")]
    mean = np.mean(FINALS[arm])
    assert value == pytest.approx(mean)
    assert ends == pytest.approx(scipy.stats.t.interval(0.95, 2, mean, scipy.stats.sem(FINALS[arm])))
    assert measured.loc[(arm, "Area"), "value"] == pytest.approx(mean / 2)
    assert measured.loc[(arm, "Hours"), "value"] == pytest.approx(3 if arm == "AMS" else 1)


@pytest.mark.parametrize(("arm", "p"), P_VALUES.items())
def test_an_arm_beside_ams(measured, arm, p):
    value, low, high = measured.loc[(arm, "P(AMS better)")]
    wins = statistics.mean(ours > theirs for ours in FINALS["AMS"] for theirs in FINALS[arm])
    assert value == pytest.approx(wins)
    assert low <= value <= high
    assert measured.loc[(arm, "Mann-Whitney p"), "value"] == pytest.approx(p)


def test_figure_is_it_ntd(arms):
    data, options = read(arms)
    figure = pc.figure_is_it_ntd(data, options)
    titles = [(axis.get_title(), axis.get_xlabel()) for axis in figure.axes]
    assert titles == [("Dog-Stand, TD3", "Steps (thousands)"), ("Dog-Stand, TD3", "Hours")]
    assert [text.get_text() for text in figure.axes[0].texts] == [" paper: 337", " paper: 957"]
    assert legend_of(figure) == [label for label in pc.LOOKS if label in pc.ARMS]
    assert data.arms["task"].unique() == ["dog-stand"]


def test_without_runs_of_ams_the_other_arms_are_compared(arms):
    data, options = read(arms)
    data.arms = data.arms[(data.arms["label"] != "AMS") | (data.arms["step"] == 0)]
    _, shown = pc.table_is_it_ntd(data, options)
    assert list(shown["arm"]) == list(FINALS)[1:]
    assert set(shown["step"]) == {150_000}


# ---------------------------------------------------------------- aggregates: the numbers are those of rliable 1.2
MADE_UP = np.random.default_rng(0).random((2, 5, 7)).round(2)  # ours and theirs, runs, tasks
RLIABLE = {  # by measure: value, ends of the interval of 5,000 repetitions
    "IQM": [0.5668421052631579, 0.4384210526315789, 0.6694868421052631],
    "Median": [0.478, 0.386, 0.658],
    "Mean": [0.5288571428571428, 0.4391357142857143, 0.6168642857142855],
    "Optimality gap": [0.4711428571428571, 0.3831357142857143, 0.5608642857142857],
}
# An end of the interval is a quantile, whose standard error is sqrt(0.025 * 0.975 / 5000) / density: with a normal
# density 0.0378 standard deviations of the statistic, or 0.0096 of the interval's width. Twice that (two bootstraps
# differ by sqrt(2) of it), five times over:
WITHIN = 5 * math.sqrt(2) * 0.0096


@pytest.mark.parametrize("measure", RLIABLE)
def test_aggregates_are_rliables(measure):
    values, lows, highs = pc.bootstrap(pc.aggregate, list(MADE_UP[0].T))
    place = pc.MEASURES.index(measure)
    value, low, high = RLIABLE[measure]
    assert values[place] == pytest.approx(value, abs=1e-12)
    tolerance = WITHIN * (high - low) + 0.005  # scores are of two digits, so that the median's quantiles are coarse
    assert [lows[place], highs[place]] == pytest.approx([low, high], abs=tolerance)


def test_profiles_are_rliables():
    shares, lows, highs = pc.bootstrap(pc.profile, list(MADE_UP[0].T))
    at = [5, 25, 45]  # the thresholds 0.1, 0.5 and 0.9
    assert shares[at] == pytest.approx([0.857142857, 0.628571429, 0.114285714])
    run = 1 / 35  # the ends are shares of 35 runs
    assert lows[at] == pytest.approx([0.742857143, 0.485714286, 0.028571429], abs=1.01 * run)
    assert highs[at] == pytest.approx([0.942857143, 0.771428571, 0.2], abs=1.01 * run)


def test_probability_of_improvement_is_rliables():
    samples = [*MADE_UP[0, :3].T, *MADE_UP[1].T]
    value, *ends = pc.bootstrap(pc.probability_of_improvement, samples)
    low = 0.342857143
    high = 0.657142857
    assert value == pytest.approx(0.49523809523809526, abs=1e-12)
    assert ends == pytest.approx([low, high], abs=WITHIN * (high - low) + 0.01)


def test_aggregates_of_the_published_dogs_are_rliables():
    runs, _, _ = pc.read_runs([RESULTS])
    scores = pc.scores_of(runs[runs["task"] == "dog-stand"], "final")
    values = pc.aggregates_of(scores).set_index(["algorithm", "measure"])["value"]
    assert values["AMS-TD3", "IQM"] == pytest.approx(0.4934357401099983)
    assert values["TD3", "IQM"] == pytest.approx(0.157646381761979)
    assert values["TD3", "Optimality gap"] == pytest.approx(0.842353618238021)
    assert values["AMS-TD3", "P(better than base)"] == 1


def test_scores_are_of_every_seed_of_every_task(tmp_path):
    for task, seeds in [("dog-walk", 4), ("dog-trot", 3)]:
        for seed in range(seeds):
            write_run(tmp_path, "td3", task, seed, straight(100 * seed))
    data, options = read(tmp_path)
    trot, walk = data.scores["TD3"]
    assert trot.tolist() == pytest.approx([0, 0.1, 0.2])
    assert walk.tolist() == pytest.approx([0, 0.1, 0.2, 0.3])
    _, shown = pc.table_aggregates(data, options)
    assert shown["seeds"].tolist() == ["3–4"]


def test_one_run_has_no_interval():
    samples = [np.array([1]), np.array([0, 2])]
    _, *ends = pc.bootstrap(pc.probability_of_improvement, samples)
    assert np.isnan(ends).all()


# ---------------------------------------------------------------- the command
@pytest.fixture(scope="module")
def published(sweep, arms, tmp_path_factory):
    """The folder that one --export wrote, of the sweep and of other runs from another place."""
    folder = tmp_path_factory.mktemp("published") / "out"
    done = command(sweep, arms, "--export", folder)
    assert "45 runs, 43 finished" in done.stdout
    return folder


def test_what_is_published(published):
    names = {path.name for path in published.iterdir()}
    expected = {"evaluations.csv", "diagnostics.csv", "runs.json", "captions.md"}
    for name in ["3", "4", "5", "a1", "is_it_ntd", "aggregates", "profiles"]:
        expected |= {f"figure_{name}.png", f"figure_{name}.svg"}
    for name in ["2", "3", "b4", "is_it_ntd", "aggregates"]:
        expected |= {f"table_{name}.csv", f"table_{name}.md", f"table_{name}.tex"}
    assert names == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("captions.md", "td3 default dog-stand 10 at step 110,000"),
        ("captions.md", "interpolated linearly"),
        ("table_is_it_ntd.tex", r"95\% t-intervals"),
        ("table_3.tex", r"$\epsilon$ = 0.4 & ams\_td3 & epsilon=0.4"),
    ],
)
def test_what_captions_and_latex_say(published, name, words):
    assert words in (published / name).read_text()


def test_published_runs_keep_their_origin_and_hide_their_path(published):
    records = (published / "runs.json").read_text()
    assert len(json.loads(records)) == 45
    assert str(published.parent) not in records
    origins = pd.read_csv(published / "evaluations.csv").groupby("task")["origin"].unique()
    (of_sweep,) = origins["dog-walk"]
    (of_arms,) = origins["dog-stand"]
    assert of_sweep.endswith("/runs")
    assert "/arms" in of_arms


def test_published_data_make_the_same_files_again(published):
    files = {path.name: path.read_bytes() for path in published.iterdir()}
    for path in [*published.glob("*_*"), published / "captions.md"]:
        path.unlink()
    command(published, "--export", published)
    assert {path.name: path.read_bytes() for path in published.iterdir()} == files


def test_figures_do_not_depend_on_the_users_matplotlib(arms, tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.family: serif\nlines.linewidth: 9\n")
    theirs = {**os.environ, "MATPLOTLIBRC": str(tmp_path), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    command(arms, "--format", "png", "--out-dir", tmp_path / "plain")
    command(arms, "--format", "png", "--out-dir", tmp_path / "theirs", env=theirs)
    for path in (tmp_path / "plain").glob("*.png"):
        np.testing.assert_array_equal(plt.imread(path), plt.imread(tmp_path / "theirs" / path.name))


NAMES = {"task": "my_$pend$|a_&_50%-v0", "exp_name": "a_b_$c$|d%&e"}


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """Figures and tables of a run whose task and variant have special characters."""
    root = tmp_path_factory.mktemp("named")
    write_run(root, "td3", NAMES["task"], 1, straight(9.0))
    write_run(root, "td3", NAMES["task"], 1, straight(9.0), finished=False, exp_name=NAMES["exp_name"])
    done = command(root, "--ablation-task", NAMES["task"], "--format", "svg", "--out-dir", root / "out")
    assert NAMES["task"] in done.stdout
    return root / "out"


def unescaped(markdown):
    """A row of a Markdown table as a reader sees its cells: bars that are not escaped divide, backslashes go."""
    cells = re.split(r"(?<!\\)\|", markdown)
    return [re.sub(r"\\(.)", r"\1", cell).strip() for cell in cells[1:-1]]


@pytest.mark.parametrize("name", ["task", "exp_name"])
def test_names_survive_markdown(named, name):
    lines = (named / "table_3.md").read_text().splitlines()[2:]
    rows = [unescaped(line) for line in lines]
    assert {len(row) for row in rows} == {7}
    assert NAMES[name] in rows[-1]


def test_names_survive_markdown_as_headers(named):
    lines = (named / "table_2.md").read_text().splitlines()
    assert unescaped(lines[2])[-1] == NAMES["task"]


def test_names_survive_latex(named):
    assert r"my\_\$pend\$\textbar{}a\_\&\_50\%-v0" in (named / "table_2.tex").read_text()
    assert r"a\_b\_\$c\$\textbar{}d\%\&e" in (named / "table_3.tex").read_text()


def test_names_survive_in_figures(named):
    text = re.findall("<!-- (.*?) -->", (named / "figure_3.svg").read_text())
    assert NAMES["task"].replace("&", "&amp;") in text


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    done = command("gone", status=1, cwd=tmp_path)
    error = "plot_curves.py: error: gone is no folder; give the one that holds the runs, such as runs/"
    assert done.stderr.strip() == error
    assert not done.stdout
    assert not any(tmp_path.iterdir())


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(pc.InputError, match="no runs in"):
        pc.load_runs(tmp_path)


def test_damaged_published_runs_are_refused(tmp_path):
    (tmp_path / "runs.json").write_text("[{")
    with pytest.raises(pc.InputError, match="runs.json cannot be used"):
        pc.load_runs(tmp_path)


def test_two_runs_of_one_seed_are_refused(tmp_path):
    one = write_run(tmp_path / "a", "td3", "dog-run", 1, {0: 1.0})
    two = write_run(tmp_path / "b", "td3", "dog-run", 1, {0: 1.0})
    with pytest.raises(pc.InputError, match=f"2 runs claim td3 default dog-run 1: {one}, {two}; remove all but one"):
        pc.load_runs(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "DIR"),
        ([".", "--format", "gif"], "'gif'"),
        ([".", "--metric", "train", "--reference", "x"], "--metric eval"),
    ],
)
def test_a_wrong_argument_is_one_line(capsys, arguments, words):
    with pytest.raises(SystemExit, match="2"):
        read(*arguments)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("plot_curves.py: error: ")
    assert words in last


# ---------------------------------------------------------------- results/, computed here by other means
def test_the_published_comparison_is_that_of_the_published_evaluations():
    episodes = pd.read_csv(RESULTS / "evaluations.csv").set_index(["algorithm", "variant", "task", "step"]).sort_index()
    rows = pd.read_csv(RESULTS / "table_is_it_ntd.csv").query("measure == 'Return'")
    assert len(rows) > 3
    for row in rows.itertuples():
        algorithm = row.base if row.arm == "Baseline" else f"ams_{row.base}"
        at_end = episodes.loc[(algorithm, pc.ARMS[row.arm], row.task, row.step)].groupby("seed")
        assert row.value == pytest.approx(at_end["return"].mean().mean())
        assert row.seeds == len(at_end)


def test_the_published_table_2_is_that_of_the_published_runs():
    records = json.loads((RESULTS / "runs.json").read_text())
    runs = pd.json_normalize(records).set_index([*pc.CELL, "global_step"]).sort_index()
    table = re.sub(" +", " ", (RESULTS / "table_2.md").read_text())
    for row in pd.read_csv(RESULTS / "table_2.csv").dropna(subset="ours").itertuples():
        finals = runs.loc[[(row.algorithm, row.variant, row.task, row.at)], "final_evaluation.mean"]
        assert row.ours == pytest.approx(finals.mean())
        assert row.n == len(finals)
        deviation = f" ± {finals.std():.0f}" if len(finals) > 1 else ""
        assert f"| {row.ours:.0f}{deviation} ({row.n:.0f}" in table
