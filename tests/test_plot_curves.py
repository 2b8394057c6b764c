"""plot_curves.py against event files written by the real SummaryWriter and numbers computed here by other means."""

import json
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from torch.utils.tensorboard import SummaryWriter

import plot_curves as pc

ROOT = Path(__file__).resolve().parent.parent


EVAL = "eval/episodic_return"


def write_events(folder, scalars, start=1000.0, sps=10.0):
    """One event file with {tag: [(step, value)]} by step; wall time: start + steps since the first / sps."""
    writer = SummaryWriter(str(folder))
    rows = sorted((step, tag, value) for tag, points in scalars.items() for step, value in points)
    for step, tag, value in rows:
        writer.add_scalar(tag, value, step, walltime=start + (step - rows[0][0]) / sps)
    writer.close()
    return max(folder.glob("*tfevents*"), key=lambda path: path.stat().st_mtime_ns)


def write_run(root, algorithm, task, seed, scalars, final=None, steps=None, exp_name=None, result=None, **extra):
    """A run folder as the training scripts write it; finished if `final`, the mean of the last evaluation, is given."""
    exp_name = exp_name or algorithm
    folder = Path(root) / f"{task}__{exp_name}__{seed}"
    folder.mkdir(parents=True)
    args = {"algorithm": algorithm, "exp_name": exp_name, "env_id": task, "seed": seed, "num_envs": 8}
    if algorithm.startswith("ams"):
        args |= {"ntd": True, "layer_norm": True, "num_neighbors": 8, "epsilon": 0.2, "sampling": "orthogonal"}
    if algorithm.endswith("td3"):
        args["action_projection"] = "tanh"
    (folder / "args.json").write_text(json.dumps(args | extra))
    if scalars:
        write_events(folder, scalars)
    if final is not None:
        content = {"global_step": steps or 500_000, "final_evaluation": {"mean": final}, "wall_seconds": 3600.0}
        content |= {"training_return_last_10_percent": final / 2, "device": "test"} | (result or {})
        (folder / "result.json").write_text(json.dumps(content))
    return folder


def read(root, **options):
    return pc.read_runs(root, **options)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Five algorithms on two tasks, three seeds: straight evaluation curves from 0 to 100 x rank + 10 x seed."""
    root = tmp_path_factory.mktemp("sweep") / "runs"
    for rank, algorithm in enumerate(pc.ALGORITHMS, 1):
        for task in ("quadruped-run", "dog-walk"):
            for seed in (1, 2, 3):
                final = 100.0 * rank + 10.0 * seed
                points = [(step, final * step / 500_000) for step in range(0, 500_001, 50_000)]
                scalars = {
                    EVAL: points,
                    "charts/episodic_return": [(s + 1, v / 2) for s, v in points],
                    "charts/frames": [(s, 8 * s) for s, _ in points if s],
                    "charts/updates": [(s, max(0, s - 50_000)) for s, _ in points if s],
                }
                if algorithm != "ppo":
                    factor = 1.0 if algorithm.startswith("ams") else 3.0
                    scalars["diagnostics/critic_grad_norm"] = [
                        (s, factor * (5 if s < 450_001 else 2)) for s, _ in points
                    ]
                    scalars["diagnostics/td_target_variance"] = [(s, factor**2) for s, _ in points]
                write_run(root, algorithm, task, seed, scalars, final)
    return root


@pytest.fixture(scope="module")
def sweep_runs(sweep):
    return read(sweep)


# ---------------------------------------------------------------- the paper's numbers


def test_paper_values_are_the_papers():
    table = pc.paper_table_2()
    assert len(table) == 60
    assert table["ams_sac", "dog-run"] == (427, 25) and table["ppo", "humanoid-run"] == (1, 0)
    assert table["td3", "h1-sit"] == (527, 476) and table["ams_td3", "dog-trot"] == (708, 244)
    means = {a: sum(table[a, t][0] for t in pc.TASKS) for a in pc.ALGORITHMS}
    assert means == {"ppo": 728, "sac": 2616, "td3": 5244, "ams_td3": 8188, "ams_sac": 8250}
    assert sum(std for _, std in table.values()) == 6220
    # n = 5 returns in [0, 1000] with mean m deviate at most sqrt(n / (n - 1) m (1000 - m)), if 5 m / 1000 is whole.
    coarse = {key for key, (m, s) in table.items() if s > math.sqrt(1.25 * m * (1000 - m)) + 1}
    assert coarse == {("sac", "dog-stand"), ("sac", "h1-walk")}
    impossible = {key for key, cell in table.items() if pc.impossible(*cell)}
    assert impossible == coarse | {("sac", "h1-run"), ("td3", "dog-trot")}
    assert sum(row[4] for row in pc.PAPER_TABLE_3) == 11_291 and sum(row[5] for row in pc.PAPER_TABLE_3) == 866
    assert pc.PAPER_TABLE_B4["dog-run"] == (3.5, 4.5) and len(pc.PAPER_TABLE_B4) == 6


@pytest.mark.parametrize("mean", [38, 81, 237, 249, 400, 990])
def test_largest_deviation_of_five_returns(mean):
    """Between the largest of many sets with this mean, and the bound that knows nothing of how many there are."""
    values = np.random.default_rng(0).dirichlet(np.full(5, 0.1), 100_000) * 5 * mean
    found = values[values.max(axis=1) <= 1000].std(axis=1, ddof=1).max(initial=0)
    assert found <= pc.largest_std(mean) <= math.sqrt(1.25 * mean * (1000 - mean)) + 1e-9
    assert mean == 990 or found > 0.97 * pc.largest_std(mean)


# ---------------------------------------------------------------- which run is what


@pytest.mark.parametrize(
    ("changed", "variant"),
    [
        ({}, "default"),
        ({"ntd": False}, "without_ntd"),
        ({"layer_norm": False, "exp_name": "anything"}, "without_layer_norm"),
        ({"ntd": False, "layer_norm": False}, "without_ntd without_layer_norm"),
        ({"epsilon": 0.4, "exp_name": "ams_td3_eps0.4"}, "epsilon=0.4"),
        ({"num_neighbors": 4, "sampling": "gaussian"}, "num_neighbors=4 sampling=gaussian"),
        ({"ntd": False, "epsilon": 0.4}, "without_ntd"),
        ({"action_projection": "normalize"}, "action_projection=normalize"),
        ({"exp_name": "ams_td3_big_batch"}, "ams_td3_big_batch"),
    ],
)
def test_variant(changed, variant):
    args = {"algorithm": "ams_td3", "exp_name": "ams_td3", "ntd": True, "layer_norm": True, "num_neighbors": 8}
    args |= {"epsilon": 0.2, "sampling": "orthogonal", "action_projection": "tanh"}
    assert pc.variant_of(args | changed) == variant


def test_seeds_with_other_hyperparameters_are_said(tmp_path, capsys):
    for seed, batch in ((1, 256), (2, 512)):
        write_run(
            tmp_path, "td3", "dog-run", seed, {EVAL: [(0, 1.0)]}, 1.0, 1_000_000, batch_size=batch, device=f"{seed}"
        )
    assert pc.differing_arguments(read(tmp_path)) == ["batch_size"]
    assert "seeds differ in batch_size" in pc.table_2(read(tmp_path))[37]["note"]
    pc.say_what_is_odd(read(tmp_path), [], pc.Args(tmp_path))
    assert "td3 dog-run default differ in batch_size" in capsys.readouterr().err


# ---------------------------------------------------------------- reading


def test_long_form_holds_every_value(tmp_path):
    scalars = {
        EVAL: [(0, 1.5), (1000, 2.5), (2500, 3.5)],
        "charts/frames": [(1000, 8000.0), (2000, 16000.0)],
        "charts/updates": [(1000, 0.0), (2000, 1000.0)],
        "losses/qf_loss": [(1000, math.pi)],
    }
    write_run(tmp_path / "deep" / "er", "ams_sac", "dog-run", 7, scalars, sampling="gaussian")
    frame = pc.load_runs(tmp_path)
    assert list(frame.columns) == (
        ["algorithm", "variant", "task", "seed", "step", "frames", "updates", "wall_seconds", "tag", "value"]
    )
    assert set(frame["variant"]) == {"sampling=gaussian"} and set(frame["seed"]) == {7}
    written = {(tag, step, np.float32(value)) for tag, points in scalars.items() for step, value in points}
    assert {(row.tag, row.step, np.float32(row.value)) for row in frame.itertuples()} == written
    evals = frame[frame["tag"] == EVAL]
    assert evals["frames"].tolist() == [0, 8000, 20000]
    assert evals["updates"].tolist() == [0, 0, 1500]
    steps_apart = np.diff(evals["wall_seconds"])
    np.testing.assert_allclose(steps_apart, [100, 150])


def test_the_later_write_wins_and_idle_time_does_not_count(tmp_path):
    folder = write_run(tmp_path, "td3", "dog-run", 1, {})
    first = write_events(folder, {EVAL: [(0, 0.0), (10, 1.0), (20, 2.0), (30, 3.0)], "a": [(15, 1.0)]}, 1000.0, 1.0)
    second = write_events(folder, {EVAL: [(20, 20.0), (40, 40.0)]}, 9000.0, 1.0)
    # SummaryWriter stamps the first event of a file with the clock: put both on one clock, out of order by name.
    for path, start in ((first, 1000.0), (second, 9000.0)):
        data = bytearray(path.read_bytes())
        length = int.from_bytes(data[:8], "little")
        data[13:21] = np.float64(start).tobytes()
        data[12 + length : 16 + length] = pc.masked_crc(bytes(data[12 : 12 + length])).to_bytes(4, "little")
        path.write_bytes(data)
    first.rename(folder / "zz.tfevents.1")
    events, problems = pc.read_events(folder)
    steps, seconds, values = events[EVAL]
    assert problems == []
    assert steps.tolist() == [0, 10, 20, 40] and values.tolist() == [0, 1, 20, 40]
    assert seconds.tolist() == [0, 10, 15, 35]  # 15: the last of the first file before step 20
    assert events["a"][0].tolist() == [15]


def test_overlap_within_one_file(tmp_path):
    writer = SummaryWriter(str(tmp_path))
    for step, value in ((1, 1.0), (2, 2.0), (3, 3.0), (2, 20.0), (4, 40.0)):
        writer.add_scalar("x", value, step)
    writer.add_text("notes", "no scalar " * 5)
    writer.close()
    events, problems = pc.read_events(tmp_path)
    assert events["x"][0].tolist() == [1, 2, 4] and events["x"][2].tolist() == [1, 20, 40]
    assert list(events) == ["x"] and not problems


def test_same_as_tensorboards_own_reader(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rng = np.random.default_rng(0)
    steps = np.cumsum(rng.integers(1, 5000, 300)).tolist()  # one to three bytes of varint
    scalars = {tag: [(s, float(rng.normal())) for s in steps] for tag in ("a", "bb", "a/long/tag", "x" * 90)}
    scalars["big"] = [(2**33, 1.0), (2**33 + 1, float("nan")), (2**33 + 2, float("inf"))]
    path = write_events(tmp_path, scalars)
    events, problems = pc.parse_events([path])
    theirs = EventAccumulator(str(path), size_guidance={"scalars": 0})
    theirs.Reload()
    assert set(events) == set(theirs.Tags()["scalars"]) and not problems
    for tag, (own_steps, _, own_values) in events.items():
        assert own_steps.tolist() == [event.step for event in theirs.Scalars(tag)]
        np.testing.assert_array_equal(own_values, [event.value for event in theirs.Scalars(tag)])


def test_checksum_is_tensorboards():
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    for length in (0, 1, 8, 61):
        data = np.random.default_rng(length).bytes(length)
        assert pc.masked_crc(data) == masked_crc32c(data)


def record_starts(data):
    """Where each record of a whole TFRecord file starts."""
    starts, position = [], 0
    while position < len(data):
        starts.append(position)
        position += 16 + int.from_bytes(data[position : position + 8], "little")
    return starts


@pytest.mark.parametrize("damage", ["value", "length", "long length", "cut", "cut header", "zeros", "rubbish"])
def test_damaged_file_is_named_and_its_whole_events_are_used(tmp_path, capsys, damage):
    folder = write_run(tmp_path, "td3", "dog-run", 1, {})
    path = write_events(folder, {EVAL: [(step, float(step)) for step in range(0, 1000, 10)]})
    data = bytearray(path.read_bytes())
    starts = record_starts(data)  # the first holds the version, then step 0, 10, ...
    expected = list(range(0, 1000, 10))
    if damage == "value":
        data[starts[41] + 30] ^= 1
        expected.remove(400)
    elif damage in ("length", "long length"):
        data[starts[41] + (0 if damage == "length" else 6)] ^= 64
        expected.remove(400)
    elif damage == "cut":
        data = data[: starts[61] + 20]
        expected = expected[:60]
    elif damage == "cut header":
        data = data[: starts[61] + 5]
        expected = expected[:60]
    elif damage == "zeros":  # a disk that lost power
        data = data[: starts[61]] + bytes(5000)
        expected = expected[:60]
    else:
        data = b"not an event file at all, but long enough to look like one"
        expected = []
    path.write_bytes(data)
    for _ in range(2):  # the second time from the cache
        (run,) = read(tmp_path)
        assert (run.events[EVAL][0].tolist() if run.events else []) == expected
        message = capsys.readouterr().err
        assert str(path) in message and ("cut off" if damage.startswith("cut") else "damaged at byte") in message
        assert f"the {len(expected)} whole values" in message


# ---------------------------------------------------------------- the cache


def test_cache(tmp_path, monkeypatch):
    folder = write_run(tmp_path, "td3", "dog-run", 1, {})
    path = write_events(folder, {EVAL: [(0, 1.0), (10, 2.0)], "b": [(5, 3.0)]})
    parse, calls = pc.parse_events, []
    monkeypatch.setattr(pc, "parse_events", lambda files: calls.append(files) or parse(files))
    first, _ = pc.read_events(folder)
    second, _ = pc.read_events(folder)
    assert len(calls) == 1
    for tag in ("b", EVAL):
        for one, other in zip(first[tag], second[tag], strict=True):
            np.testing.assert_array_equal(one, other)
    assert [p.name for p in folder.iterdir() if p.name.startswith(".plot_curves")] == [".plot_curves.npz"]

    cache = folder / ".plot_curves.npz"
    whole = cache.read_bytes()
    for damaged in (b"", b"rubbish", whole[: len(whole) // 2], whole[:400] + b"\xff" * 40 + whole[440:]):
        cache.write_bytes(damaged)
        calls.clear()
        again, _ = pc.read_events(folder)
        assert len(calls) == 1 and again[EVAL][2].tolist() == [1, 2]
        assert cache.read_bytes() != damaged

    path.unlink()
    write_events(folder, {EVAL: [(0, 7.0)]})
    assert pc.read_events(folder)[0][EVAL][2].tolist() == [7]


def test_two_may_read_at_once(tmp_path):
    folder = write_run(tmp_path, "td3", "dog-run", 1, {EVAL: [(step, float(step)) for step in range(500)]})

    def remove_and_read(_):
        (folder / ".plot_curves.npz").unlink(missing_ok=True)
        return pc.read_events(folder)[0][EVAL][2].sum()

    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(remove_and_read, range(40))) == {sum(range(500))}
    assert len(list(folder.iterdir())) == 3  # args.json, the events, the cache


# ---------------------------------------------------------------- curves


def test_band_is_students_t(tmp_path):
    rng = np.random.default_rng(1)
    values = rng.normal(500, 100, (4, 6)).astype(np.float32)
    for seed, row in enumerate(values):
        write_run(tmp_path, "sac", "dog-run", seed, {EVAL: [(10 * i, float(v)) for i, v in enumerate(row)]})
    points = pc.curve(read(tmp_path), EVAL)
    low, high = scipy.stats.t.interval(0.95, 3, values.mean(axis=0), scipy.stats.sem(values, axis=0))
    np.testing.assert_allclose(points["mean"], values.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(points["low"], low, rtol=1e-6)
    np.testing.assert_allclose(points["high"], high, rtol=1e-6)
    assert points["count"].tolist() == [4] * 6
    assert points["x"].tolist() == [0.0, 0.01, 0.02, 0.03, 0.04, 0.05]  # thousands of steps


def test_one_seed_has_no_band(tmp_path):
    write_run(tmp_path, "sac", "dog-run", 1, {EVAL: [(0, 1.0), (10, 2.0)]})
    points = pc.curve(read(tmp_path), EVAL)
    assert points["low"].isna().all() and points["mean"].tolist() == [1, 2]


def test_training_return_is_averaged_in_bins(tmp_path):
    for seed, first in ((1, 3), (2, 7)):  # episodes end at other steps in every seed
        points = [(step, float(step + seed)) for step in range(first, 200_000, 500)]
        write_run(tmp_path, "sac", "h1-run", seed, {"charts/episodic_return": points})
    runs = read(tmp_path)
    assert pc.bin_width(runs) == 10_000 - max(0, 10_000 - max(run.step for run in runs) // 20)
    points = pc.curve(runs, "charts/episodic_return", width=10_000)
    per_seed = []
    for seed, first in ((1, 3), (2, 7)):
        steps = [step for step in range(first, 200_000, 500) if 10_000 < step <= 20_000]
        per_seed.append((statistics.mean(steps), statistics.mean(step + seed for step in steps)))
    assert points.loc[20_000, "mean"] == pytest.approx(statistics.mean(v for _, v in per_seed))
    assert points.loc[20_000, "x"] * 1000 == pytest.approx(statistics.mean(s for s, _ in per_seed))


@pytest.mark.parametrize(("axis", "scale"), [("steps", 1e-3), ("frames", 8e-6), ("hours", 1 / 36_000)])
def test_figure_3_draws_means(sweep_runs, axis, scale):
    figure, caption = pc.figure_3(sweep_runs, axis)
    assert [a.get_title() for a in figure.axes] == ["(a) Quadruped-Run", "(b) Dog-Walk"]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    for panel in figure.axes:
        lines = {line.get_label(): line for line in panel.get_lines()}
        assert list(lines) == [label for label, _, _ in pc.ALGORITHMS.values()]
        for rank, (label, color, _) in enumerate(pc.ALGORITHMS.values(), 1):
            x, y = lines[label].get_data()
            steps = np.arange(0, 500_001, 50_000)
            np.testing.assert_allclose(y, (100 * rank + 20) * steps / 500_000, rtol=1e-5)
            np.testing.assert_allclose(np.diff(x), np.diff(steps) * scale, rtol=1e-5)
            assert lines[label].get_color() == color
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [f"{label} (3 seeds)" for label, _, _ in pc.ALGORITHMS.values()]
    assert "95%" in caption
    pc.plt.close(figure)


def test_figure_3_updates_and_training_return(sweep_runs):
    figure, _ = pc.figure_3(sweep_runs, "updates", "train")
    x, y = figure.axes[1].get_lines()[0].get_data()  # AMS-TD3: 120 on average, training returns are half of that
    assert x[-1] == pytest.approx(450.001, abs=1e-3) and y[-1] == pytest.approx(60)
    pc.plt.close(figure)


def test_seeds_that_stop_early_are_told_apart(tmp_path):
    for seed, last in ((1, 40), (2, 40), (3, 20)):
        write_run(tmp_path, "sac", "dog-run", seed, {EVAL: [(s, float(seed)) for s in range(0, last + 1, 10)]})
    write_run(tmp_path, "sac", "dog-walk", 1, {EVAL: [(0, 1.0), (10, 1.0)]})
    figure, caption = pc.figure_3(read(tmp_path))
    walk, run = figure.axes
    whole, rest = run.get_lines()
    assert whole.get_xdata().tolist() == [0, 0.01, 0.02] and whole.get_ydata().tolist() == [2, 2, 2]
    assert rest.get_xdata().tolist() == [0.02, 0.03, 0.04] and rest.get_ydata().tolist() == [2, 1.5, 1.5]
    assert rest.get_linewidth() < whole.get_linewidth() and not rest.get_label().startswith("SAC")
    assert figure.legends[0].get_texts()[0].get_text() == "SAC (1–3 seeds)"
    assert "SAC has fewer seeds on Dog-Walk 1." in caption
    pc.plt.close(figure)


def test_figure_4_ratio_of_final_values(sweep_runs):
    figure, caption, ratios = pc.figure_4(sweep_runs)
    for ams in ("ams_td3", "ams_sac"):
        assert ratios["diagnostics/critic_grad_norm", ams] == pytest.approx(3)
        assert ratios["diagnostics/td_target_variance", ams] == pytest.approx(9)
    assert "TD3 / AMS-TD3: 3.0× (paper 2.4)" in figure.axes[0].get_title()
    assert "SAC / AMS-SAC: 9.0×" in figure.axes[1].get_title()
    drawn = {line.get_label(): line.get_ydata() for line in figure.axes[0].get_lines()}
    assert drawn["TD3"][0] == pytest.approx(15) and drawn["AMS-TD3"][-1] == pytest.approx(2)
    assert "last 10% of steps" in caption
    pc.plt.close(figure)


def test_final_diagnostic_is_the_mean_over_the_last_tenth(tmp_path):
    tag = "diagnostics/critic_grad_norm"
    write_run(tmp_path, "td3", "dog-run", 1, {tag: [(step, float(step)) for step in range(0, 1001, 10)]})
    assert pc.final_diagnostic(tag)(read(tmp_path)[0]) == pytest.approx(statistics.mean(range(910, 1001, 10)))


def test_figure_5_and_table_3(tmp_path):
    finals = {}
    for _, _, algorithm, variant, _, _ in pc.PAPER_TABLE_3:
        name, _, value = variant.partition("=")
        changed = {name: float(value) if name == "epsilon" else int(value)} if value else {}
        changed = {"without_ntd": {"ntd": False}, "without_layer_norm": {"layer_norm": False}}.get(variant, changed)
        if (algorithm, variant) in finals:
            continue
        finals[algorithm, variant] = [100.0 + 10 * len(finals) + i**2 for i in (0, 1, 2)]
        table_2s = {10: 900.0, 77: 950.0} if variant == "default" else {}  # which must not enter
        for seed, final in (dict(zip((0, 42, 123), finals[algorithm, variant], strict=True)) | table_2s).items():
            exp_name = f"{algorithm}_{variant}" if changed else None
            scalars = {EVAL: [(0, 0.0), (500_000, final)]}
            write_run(tmp_path, algorithm, "quadruped-run", seed, scalars, final, exp_name=exp_name, **changed)
    gaussian = write_run(
        tmp_path, "ams_td3", "quadruped-run", 0, {EVAL: [(0, 0.0)]}, 77.0, exp_name="g", sampling="gaussian"
    )
    runs = read(tmp_path)
    rows = pc.table_3(runs)
    assert len(rows) == 17
    for row, paper in zip(rows, pc.PAPER_TABLE_3, strict=False):
        values = finals[paper[2], paper[3]]
        assert (row["group"], row["variant"], row["seeds"]) == (paper[0], paper[1], 3)
        assert row["mean"] == pytest.approx(statistics.mean(values))
        assert row["std"] == pytest.approx(statistics.stdev(values))
        assert (row["paper_mean"], row["paper_std"]) == paper[4:]
        assert row["difference"] == pytest.approx(statistics.mean(values) - paper[4])
    assert rows[16] | {} == rows[16] and rows[16]["variant"] == "sampling=gaussian" and rows[16]["mean"] == 77
    assert math.isnan(rows[16]["std"]) and math.isnan(rows[16]["paper_mean"])
    figure, _ = pc.figure_5(runs)
    for panel, (_, lines) in zip(figure.axes, pc.ablation_panels(), strict=True):
        drawn = panel.get_lines()
        assert len(drawn) == 4
        for line, (label, algorithm, variant, _, _) in zip(drawn, lines, strict=True):
            assert line.get_label() == f"{label} (3 seeds)"
            assert line.get_ydata()[-1] == pytest.approx(statistics.mean(finals[algorithm, variant]))
    assert figure.axes[0].get_ylim() == figure.axes[3].get_ylim()
    pc.plt.close(figure)
    shutil.rmtree(gaussian)
    assert pc.table_3(runs[:0], "dog-run")[0]["note"] == "missing"
    assert math.isnan(pc.table_3(runs, "dog-run")[0]["paper_mean"])  # the paper's values hold on its task only


def test_figure_a1_measures_what_the_sampler_draws():
    import torch

    def sampler(sampling, batch_size, num_directions, action_dim, device=None, generator=None):
        normal = torch.randn(batch_size, num_directions, action_dim, generator=generator)
        return normal / action_dim**0.5 if sampling == "gaussian" else torch.linalg.qr(normal.mT)[0].mT

    figure, caption, facts = pc.figure_a1(sampler, action_dim=38, num_directions=8, batch_size=2000)
    assert facts["orthogonal"]["length_mean"] == pytest.approx(1, abs=1e-5)
    assert facts["orthogonal"]["largest_cosine"] < 1e-5 and facts["orthogonal"]["volume"] == pytest.approx(1, abs=1e-4)
    expected = scipy.stats.chi(38).mean() / math.sqrt(38)
    assert facts["gaussian"]["length_mean"] == pytest.approx(expected, abs=5e-3)
    assert facts["gaussian"]["length_std"] == pytest.approx(scipy.stats.chi(38).std() / math.sqrt(38), abs=5e-3)
    assert facts["gaussian"]["volume"] < 0.8 and 0.3 < facts["gaussian"]["largest_cosine"] < 0.45
    for panel in figure.axes[2:4]:  # shares of each sampling add up to one, but for a few outside the axis
        heights = [patch.get_height() for patch in panel.patches]
        assert sum(heights[len(heights) // 2 :]) == pytest.approx(1) and sum(heights) == pytest.approx(2, abs=0.01)
    assert "d = 38, K = 8" in caption
    pc.plt.close(figure)


# ---------------------------------------------------------------- tables


def test_table_2(tmp_path):
    for seed, final in ((1, 700.0), (2, 750.0), (5, 800.0)):
        write_run(tmp_path, "ams_td3", "cheetah-run", seed, {EVAL: [(0, 0.0), (500_000, final)]}, final)
    write_run(tmp_path, "ams_td3", "cheetah-run", 3, {EVAL: [(0, 0.0), (130_000, 1.0)]})
    write_run(tmp_path, "ams_td3", "cheetah-run", 4, {EVAL: [(0, 0.0), (100_000, 1.0)]}, 1.0, 100_000)
    write_run(tmp_path, "td3", "dog-run", 1, {EVAL: [(0, 0.0), (90_000, 50.0)]}, 50.0, 90_000)
    write_run(tmp_path, "sac", "dog-run", 1, {EVAL: [(0, 0.0), (70_000, 5.0)]})
    write_run(tmp_path, "ppo", "walker-walk", 1, {EVAL: [(0, 0.0)]}, 400.0, 5_000)
    rows = pc.table_2(read(tmp_path))
    assert len(rows) == 61
    cells = {(row["task"], row["algorithm"]): row for row in rows}
    row = cells["Cheetah-Run", "AMS-TD3"]
    assert (row["mean"], row["std"], row["seeds"], row["steps"]) == (750, 50, 3, 500_000)
    assert (row["paper_mean"], row["paper_std"], row["difference"], row["outside_both"]) == (712, 27, 38, False)
    assert (
        "1 of other length left out (100,000 steps)" in row["note"] and "1 unfinished (at 130,000 steps)" in row["note"]
    )
    row = cells["Dog-Run", "TD3"]
    assert row["mean"] == 50 and math.isnan(row["std"]) and row["note"] == "at 90,000 steps, paper 1,000,000"
    row = cells["Dog-Run", "SAC"]
    assert math.isnan(row["mean"]) and row["note"] == "1 unfinished (at 70,000 steps)" and not row["outside_both"]
    assert pc.display_comparison(row, ("task",))["Ours"] == "unfinished"
    assert cells["Dog-Run", "PPO"]["note"] == "missing"
    wrong = [key for key, row in cells.items() if "impossible" in row["note"]]
    assert wrong == [("Dog-Stand", "SAC"), ("Dog-Trot", "TD3"), ("H1-Walk", "SAC"), ("H1-Run", "SAC")]
    assert cells["walker-walk", "PPO"]["mean"] == 400 and math.isnan(cells["walker-walk", "PPO"]["paper_mean"])
    trained = {(row["task"], row["algorithm"]): row for row in pc.table_2(read(tmp_path), "train")}
    assert trained["Cheetah-Run", "AMS-TD3"]["mean"] == 375


def test_difference_is_marked_outside_both_spreads():
    cell = {"mean": 100.0, "std": 10.0, "seeds": 3, "steps": 1, "note": ""}
    assert pc.compare(cell, 131.0, 30.0)["outside_both"]
    assert not pc.compare(cell, 130.0, 30.0)["outside_both"]
    assert not pc.compare(cell | {"std": 40.0}, 131.0, 30.0)["outside_both"]
    assert not pc.compare(cell | {"seeds": 1, "std": math.nan}, 500.0, 30.0)["outside_both"]
    assert not pc.compare(cell, 131.0, 500.0)["outside_both"] and pc.compare(cell, 131.0, 500.0, True)["outside_both"]
    shown = pc.display_comparison({"task": "T"} | pc.compare(cell, 131.0, 30.0), ("task",))
    assert list(shown.values()) == ["T", "100 ± 10", "3", "1", "131 ± 30", "−31 †", ""]
    assert pc.display_comparison({"task": "T"} | pc.compare(pc.summarise([], None, 1)), ("task",))["Ours"] == "missing"


def test_table_b4(tmp_path):
    for seed, hours in ((1, 1.0), (2, 2.0)):
        result = {"wall_seconds": hours * 3600, "device": "RTX 9090"}
        write_run(tmp_path, "ams_sac", "dog-walk", seed, {EVAL: [(0, 0.0)]}, 1.0, 500_000, result=result)
    cells = {(row["task"], row["algorithm"]): row for row in pc.table_b4(read(tmp_path))}
    assert len(cells) == 6 * 4
    row = cells["Dog-Walk", "AMS-SAC"]
    assert row["mean"] == pytest.approx(3) and row["std"] == pytest.approx(math.sqrt(2)) and row["device"] == "RTX 9090"
    assert row["paper_mean"] == 4.5 and row["outside_both"] and cells["Dog-Walk", "SAC"]["paper_mean"] == 3.5
    assert (
        cells["Cheetah-Run", "TD3"]["paper_mean"] == pytest.approx(1 / 3)
        and cells["Dog-Run", "TD3"]["note"] == "missing"
    )


def test_sample_efficiency(sweep_runs):
    # On the straight lines of `sweep` AMS-TD3 ends at 120 below TD3's 320, and SAC's 420 is above AMS-SAC's 220.
    rows = pc.sample_efficiency(sweep_runs)
    assert all(math.isnan(row["steps"]) and row["seeds_that_reach_it"] == 0 for row in rows) and len(rows) == 4
    swapped = [pc.replace(run, algorithm={"ams_td3": "td3", "td3": "ams_td3"}.get(run.algorithm)) for run in sweep_runs]
    row = pc.sample_efficiency(swapped)[0]
    assert row["base_return"] == pytest.approx(120) and row["base_steps"] == 500_000
    assert row["steps"] == 200_000 and row["speed_up"] == 2.5  # 320 x 4 / 10 = 128 is the first at or above 120
    assert row["seeds_that_reach_it"] == row["seeds"] == 3


def test_tables_as_files(tmp_path):
    rows = [{"task": "A_b", "mean": 1 / 3}]
    pc.write_table(tmp_path, "t", "50% ± 1 ε < 2", rows, [{"Task": "A_b | c", "Mean": "−0.3 ± 0.1 †"}])
    assert pd.read_csv(tmp_path / "t.csv")["mean"][0] == 1 / 3
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert lines[2:] == ["| Task | Mean |", "| --- | --- |", "| A_b \\| c | −0.3 ± 0.1 † |"]
    latex = (tmp_path / "t.tex").read_text()
    assert r"\caption{50\% $\pm$ 1 $\epsilon$ $<$ 2}" in latex
    assert r"A\_b | c & $-$0.3 $\pm$ 0.1 $^\dagger$ \\" in latex and latex.isascii()


# ---------------------------------------------------------------- rliable


def test_aggregates_are_rliables():
    from rliable import library, metrics

    rng = np.random.default_rng(0)
    for shape in ((5, 12), (3, 4), (2, 1)):
        scores, others = rng.random(shape), rng.random((4, shape[1])).round(1)
        value = pc.aggregate(scores)
        functions = [metrics.aggregate_iqm, metrics.aggregate_median, metrics.aggregate_mean]
        np.testing.assert_allclose(value[:3], [f(scores) for f in functions])
        assert value[3] == pytest.approx(metrics.aggregate_optimality_gap(scores))
        np.testing.assert_allclose(value[4:], library.score_distributions(scores, pc.THRESHOLDS))
        tied = scores.round(1)
        assert pc.improvement(tied, others)[0] == pytest.approx(metrics.probability_of_improvement(tied, others))


def test_intervals_are_reproducible_by_seed():
    from rliable import library, metrics

    scores = np.random.default_rng(0).random((5, 4))
    np.random.seed(99)
    before = np.random.get_state()[1].tolist()
    value, interval = pc.bootstrap(scores, pc.aggregate, 200, 3)
    assert np.random.get_state()[1].tolist() == before
    np.testing.assert_array_equal(interval, pc.bootstrap(scores, pc.aggregate, 200, 3)[1])
    assert (interval != pc.bootstrap(scores, pc.aggregate, 200, 4)[1]).any()
    assert (interval[0, :4] <= value[:4]).all() and (value[:4] <= interval[1, :4]).all()
    np.random.seed(3)
    _, theirs = library.get_interval_estimates({"x": scores}, lambda s: np.array([metrics.aggregate_iqm(s)]), reps=200)
    np.testing.assert_allclose(interval[:, :1], theirs["x"])
    assert np.isnan(pc.bootstrap(scores[:1], pc.aggregate, 200, 3)[1]).all()  # one run has no spread


def test_statistics_of_a_sweep(sweep_runs):
    rows, profiles, remarks = pc.reliable_statistics(sweep_runs, "eval", 100, 0)
    table = {(row["set"], row["algorithm"], row["measure"]): row for row in rows}
    assert len(rows) == 2 * (5 * 4 + 2)
    row = table["All tasks", "AMS-SAC", "Mean"]
    assert row["value"] == pytest.approx(0.22) and (row["tasks"], row["seeds"]) == (2, 3)
    assert table["High-dimensional", "PPO", "IQM"]["tasks"] == 1
    assert table["All tasks", "AMS-TD3 over TD3", "Probability of improvement"]["value"] == 0
    assert profiles["All tasks"]["PPO".lower()][0][0] == 1 and profiles["All tasks"]["ppo"][0][-1] == 0
    assert "Left out, not finished by all algorithms: Cheetah-Run" in remarks and "/ 1000" in remarks
    figure = pc.figure_aggregates(rows)
    drawn = [line.get_xdata()[0] for line in figure.axes[2].get_lines()]
    assert drawn == pytest.approx(
        [table["All tasks", a, "Mean"]["value"] for a in ("PPO", "SAC", "TD3", "AMS-SAC", "AMS-TD3")]
    )
    pc.plt.close(figure)
    figure = pc.figure_profiles(profiles)
    for line, algorithm in zip(figure.axes[0].get_lines(), pc.ALGORITHMS, strict=True):
        finals = [run.result["final_evaluation"]["mean"] / 1000 for run in sweep_runs if run.algorithm == algorithm]
        share = [sum(final > tau for final in finals) / len(finals) for tau in pc.THRESHOLDS]
        np.testing.assert_allclose(line.get_ydata(), share)
    pc.plt.close(figure)


def test_unequal_numbers_of_runs_are_cut_and_said(tmp_path):
    for algorithm, task, seeds in (
        ("td3", "dog-run", 3),
        ("td3", "dog-walk", 2),
        ("sac", "dog-run", 2),
        ("sac", "dog-walk", 2),
    ):
        for seed in range(seeds):
            write_run(tmp_path, algorithm, task, seed, {}, 100.0 + seed, pc.budget_of(task))
    scores, tasks, remarks = pc.normalised_scores(read(tmp_path), tuple(pc.TASKS), ("td3", "sac", "ppo"), "eval")
    assert tasks == ["dog-walk", "dog-run"] and scores["td3"].tolist() == [[0.1, 0.1], [0.101, 0.101]]
    assert "TD3: the first 2 seeds of each task." in remarks and set(scores) == {"td3", "sac"}


# ---------------------------------------------------------------- peers' curves


def test_export_comes_back_as_reference(sweep, sweep_runs, tmp_path):
    export = tmp_path / "peers.csv"
    pc.long_form([run for run in sweep_runs if run.algorithm == "sac"]).to_csv(export, index=False)
    references = pc.read_reference(export, EVAL)
    assert len(references) == 6
    ours = [run for run in sweep_runs if run.algorithm == "td3"]
    for axis in ("steps", "frames", "updates", "hours"):
        figure, _ = pc.figure_3(ours, axis, references=references)
        td3, sac = figure.axes[0].get_lines()
        theirs = pc.curve([r for r in sweep_runs if (r.algorithm, r.task) == ("sac", "quadruped-run")], EVAL, axis)
        np.testing.assert_allclose(sac.get_ydata(), theirs["mean"])
        np.testing.assert_allclose(sac.get_xdata(), theirs["x"], rtol=1e-6)
        red, green, blue = (int(sac.get_color()[i : i + 2], 16) for i in (1, 3, 5))
        assert red == green == blue and td3.get_color() == pc.ALGORITHMS["td3"][1]
        assert figure.legends[0].get_texts()[1].get_text() == "SAC, peers (3 seeds)"
        pc.plt.close(figure)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read as CSV"),
        ("", "cannot be read as CSV"),
        ("a,b\n1,2\n", "lacks the column algorithm, task, seed, step, tag, value"),
        (
            "algorithm,task,seed,step,tag,value\nx,dog-run,1,10,other,5\n",
            f"has no rows with tag {EVAL}; its tags: other",
        ),
        (f"algorithm,task,seed,step,tag,value\nx,dog-run,1,10,{EVAL},high\n", "line 2: value 'high' is not a number"),
        (f"algorithm,task,seed,step,tag,value\nx,dog-run,,10,{EVAL},1\n", "line 2: seed is empty"),
    ],
)
def test_bad_reference(tmp_path, content, message):
    path = tmp_path / "peers.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(pc.InputError, match=re.escape(message)) as error:
        pc.read_reference(path, EVAL)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


# ---------------------------------------------------------------- bad input


def test_no_runs(tmp_path):
    with pytest.raises(pc.InputError, match="does not exist; give the folder that holds the runs"):
        pc.load_runs(tmp_path / "nowhere")
    with pytest.raises(pc.InputError, match="no runs in"):
        pc.load_runs(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(pc.InputError, match="is a file"):
        pc.load_runs(tmp_path / "file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "holds list, where a JSON object is expected"),
        ('{"algorithm": "td3"}', "lacks env_id, seed"),
        ('{"algorithm": "dqn", "env_id": "dog-run", "seed": 1}', "algorithm 'dqn' is none of ams_td3"),
        ('{"algorithm": "td3", "env_id": "dog-run", "seed": "one"}', "seed 'one' is not a whole number"),
    ],
)
def test_bad_args_json_is_named_and_left_out(tmp_path, capsys, content, message):
    write_run(tmp_path, "td3", "dog-run", 1, {EVAL: [(0, 1.0)]})
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "args.json").write_text(content)
    assert len(read(tmp_path)) == 1
    error = capsys.readouterr().err
    assert message in error and str(tmp_path / "bad" / "args.json") in error and "left out" in error


@pytest.mark.parametrize(
    "content", ["{", "{}", '{"global_step": null, "final_evaluation": {"mean": 1}, "wall_seconds": 1}']
)
def test_bad_result_json_makes_a_run_unfinished(tmp_path, capsys, content):
    folder = write_run(tmp_path, "td3", "dog-run", 1, {EVAL: [(0, 1.0), (70, 1.0)]}, 5.0)
    (folder / "result.json").write_text(content)
    (row,) = [row for row in pc.table_2(read(tmp_path)) if (row["task"], row["algorithm"]) == ("Dog-Run", "TD3")]
    assert math.isnan(row["mean"]) and row["note"] == "1 unfinished (at 70 steps)"
    assert str(folder / "result.json") in capsys.readouterr().err


def test_bad_options(sweep, tmp_path):
    (tmp_path / "file").touch()
    for changed, message in (
        ({"out_dir": tmp_path / "file"}, "is a file; give a folder"),
        ({"export": tmp_path / "no" / "curves.csv"}, "there is no folder"),
        ({"bootstrap_reps": 0}, "at least 1"),
        ({"bootstrap_seed": -1}, "--bootstrap-seed in 0"),
    ):
        with pytest.raises(pc.InputError, match=message):
            pc.main(pc.Args(sweep, **({"out_dir": tmp_path / "out"} | changed)))
    assert not (tmp_path / "out").exists()


def test_a_training_return_of_zero_counts(tmp_path):
    write_run(tmp_path, "ppo", "humanoid-run", 1, {EVAL: [(0, 0.0)]}, 0.0, 1_000_000)
    write_run(
        tmp_path,
        "ppo",
        "humanoid-run",
        2,
        {EVAL: [(0, 0.0)]},
        1.0,
        1_000_000,
        result={"training_return_last_10_percent": None},
    )
    (row,) = [r for r in pc.table_2(read(tmp_path), "train") if (r["task"], r["algorithm"]) == ("Humanoid-Run", "PPO")]
    assert (row["mean"], row["seeds"], row["note"]) == (0, 1, "1 did not record this value")


def test_two_runs_that_claim_the_same_place(tmp_path):
    one = write_run(tmp_path / "a", "td3", "dog-run", 1, {EVAL: [(0, 1.0)]}, 1.0)
    two = write_run(tmp_path / "b", "td3", "dog-run", 1, {EVAL: [(0, 2.0)]}, 2.0)
    write_run(tmp_path / "b", "td3", "dog-run", 2, {EVAL: [(0, 3.0)]}, 3.0)
    with pytest.raises(pc.InputError, match="2 runs claim td3 .default., dog-run, seed 1") as error:
        read(tmp_path)
    assert str(one) in str(error.value) and str(two) in str(error.value) and "--prefer" in str(error.value)
    for chosen in (one, two):
        kept = read(tmp_path, prefer=(chosen,))
        assert {run.path for run in kept} == {chosen, tmp_path / "b" / "dog-run__td3__2"}
    with pytest.raises(pc.InputError, match="no run in"):
        read(tmp_path, prefer=(tmp_path / "c",))
    with pytest.raises(pc.InputError, match="2 runs claim"):
        read(tmp_path, prefer=(one, two))


def test_missing_tags_and_empty_runs_are_said(tmp_path, capsys):
    old = write_run(tmp_path, "td3", "quadruped-run", 1, {"charts/SPS": [(10, 1.0)]})
    empty = write_run(tmp_path, "td3", "quadruped-run", 2, {})
    runs = read(tmp_path)
    pc.say_what_is_odd(runs, [], pc.Args(tmp_path, x_axis="updates"))
    error = capsys.readouterr().err
    assert f"{empty} holds no events" in error
    for tag in (EVAL, "charts/updates", *pc.DIAGNOSTICS):
        assert f"no {tag} in {old}" in error
    assert pc.figure_3(runs) is None and pc.figure_4(runs) is None and pc.figure_5(runs, "dog-run") is None
    error = capsys.readouterr().err
    assert "Figure 3 is left out" in error and "Figure 4 is left out" in error and "Figure 5 is left out" in error
    assert np.isnan(pc.counter(runs[0], "updates", np.array([10]))).all()
    assert pc.counter(runs[0], "frames", np.array([10])).tolist() == [80]  # by definition, from num_envs


def test_hours_of_different_machines_are_different_rows(tmp_path):
    for seed, device in ((1, "H200"), (2, "H200"), (3, "cpu, 2 cores")):
        result = {"wall_seconds": 36000.0 * (seed > 2) + 1800 * seed, "device": device}
        write_run(tmp_path, "td3", "dog-run", seed, {EVAL: [(0, 0.0)]}, 1.0, 1_000_000, result=result)
    rows = [row for row in pc.table_b4(read(tmp_path)) if (row["task"], row["algorithm"]) == ("Dog-Run", "TD3")]
    assert [(row["device"], row["seeds"], row["mean"]) for row in rows] == [
        ("H200", 2, 0.75),
        ("cpu, 2 cores", 1, 11.5),
    ]


def test_runs_unlike_the_papers_are_said(tmp_path):
    for seed in (1, 2):
        write_run(
            tmp_path, "td3", "dog-run", seed, {EVAL: [(0, 0.0)]}, 1.0, 1_000_000, num_envs=2, gamma=0.5, tau=0.005
        )
    (row,) = [row for row in pc.table_2(read(tmp_path)) if (row["task"], row["algorithm"]) == ("Dog-Run", "TD3")]
    assert row["note"] == "unlike the paper's: gamma=0.5, num_envs=2"


def test_a_run_without_the_axis_is_not_averaged(tmp_path):
    scalars = {EVAL: [(0, 100.0), (10, 100.0)], "charts/updates": [(0, 0.0), (10, 10.0)]}
    write_run(tmp_path, "td3", "dog-run", 1, scalars)
    write_run(tmp_path, "td3", "dog-run", 2, {EVAL: [(0, 900.0), (10, 900.0)]})
    points = pc.curve(read(tmp_path), EVAL, "updates")
    assert points["mean"].tolist() == [100, 100] and points["count"].tolist() == [1, 1]


def test_steps_at_which_few_seeds_were_evaluated_make_no_zigzag(tmp_path):
    for seed, every in ((1, 5), (2, 10), (3, 10)):
        write_run(tmp_path, "td3", "dog-run", seed, {EVAL: [(s, 100.0 * seed) for s in range(0, 101, every)]})
    figure, _ = pc.figure_3(read(tmp_path))
    (line,) = figure.axes[0].get_lines()
    np.testing.assert_allclose(line.get_ydata(), 200)


def test_negative_returns_stay_in_figure_5(tmp_path):
    write_run(tmp_path, "td3", "Pendulum-v1", 1, {EVAL: [(0, -1500.0), (10, -150.0)]})
    figure, _ = pc.figure_5(read(tmp_path), "Pendulum-v1")
    low, high = figure.axes[0].get_ylim()
    assert low < -1500 and -150 < high


def test_families_on_different_tasks_are_drawn(tmp_path, capsys):
    """Then no task has all algorithms, and there are aggregates of pairs alone."""
    for algorithm, task in (
        ("td3", "h1-walk"),
        ("ams_td3", "h1-walk"),
        ("sac", "cheetah-run"),
        ("ams_sac", "cheetah-run"),
    ):
        for seed in (1, 2):
            write_run(tmp_path / "runs", algorithm, task, seed, {EVAL: [(0, 1.0)]}, 10.0 * seed, 500_000)
    pc.main(pc.Args(tmp_path / "runs", out_dir=tmp_path / "out", bootstrap_reps=10))
    assert (tmp_path / "out" / "table2.md").exists() and not (tmp_path / "out" / "profiles.png").exists()
    assert "earlier call" not in capsys.readouterr().err
    (tmp_path / "out" / "profiles.png").touch()
    os.utime(tmp_path / "out" / "profiles.png", (0, 0))
    pc.main(pc.Args(tmp_path / "runs", out_dir=tmp_path / "out", bootstrap_reps=10))
    assert f"profiles.png in {tmp_path / 'out'} are from an earlier call" in capsys.readouterr().err


# ---------------------------------------------------------------- the command


def test_command_on_a_lone_copy(sweep, tmp_path):
    """Everything once, from the command line, plot_curves.py copied alone: only Figure A.1 is missing, and said."""
    script = shutil.copy(ROOT / "plot_curves.py", tmp_path)
    options = ["--format", "png", "pdf", "svg", "--export", tmp_path / "curves.csv", "--bootstrap-reps", "50"]
    command = [sys.executable, script, sweep, "--out-dir", tmp_path / "out", *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    names = {"figure3", "figure4", "figure5", "aggregates", "profiles"}
    tables = {"table2", "table3", "table_b4", "aggregates", "sample_efficiency"}
    expected = {f"{name}.{kind}" for name in names for kind in ("png", "pdf", "svg")}
    expected |= {f"{name}.{kind}" for name in tables for kind in ("md", "tex", "csv")}
    assert {path.name for path in (tmp_path / "out").iterdir()} == expected | {"captions.md"}
    assert "Figure A.1 is left out" in done.stderr and "30 runs, 30 finished" in done.stdout
    assert len(pd.read_csv(tmp_path / "curves.csv")) == len(pc.load_runs(sweep))
    assert "n - 1" in (tmp_path / "out" / "table2.md").read_text()

    missing = subprocess.run([sys.executable, script, str(tmp_path / "gone")], capture_output=True, text=True)
    assert missing.returncode == 2 and missing.stdout == ""
    assert re.fullmatch(r"plot_curves\.py: error: .*gone does not exist; .*\n", missing.stderr)


@pytest.mark.parametrize(
    ("arguments", "part"), [("", "PATH"), ("runs --formatt png", "--formatt"), ("runs --format gif", "'gif'")]
)
def test_a_wrong_command_line_is_one_line(tmp_path, arguments, part):
    command = [sys.executable, str(ROOT / "plot_curves.py"), *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == "" and not any(tmp_path.iterdir())
    assert re.fullmatch(r"plot_curves\.py: error: [^\n]+\n", done.stderr) and part in done.stderr
