"""plot_curves.py against runs written by the real SummaryWriter and numbers computed here by other means."""

import itertools
import json
import math
import re
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from rliable import metrics
from torch.utils.tensorboard import SummaryWriter

import plot_curves as pc

ROOT = Path(__file__).resolve().parent.parent
EVAL, TRAIN, POINT = "eval/episodic_return", "charts/episodic_return", {"num_neighbors": 1, "epsilon": 0.0}


def write_run(root, algorithm, task, seed, curve, finished=True, scalars=None, hours=1.0, **changed):
    """A run folder as the training scripts write it: evaluations of two episodes, `curve` {step: mean return}."""
    name = "_".join([algorithm, *(f"{key}{value}" for key, value in changed.items())])
    folder, last = Path(root) / f"{task}__{name}__{seed}", max(curve)
    folder.mkdir(parents=True)
    args = {"algorithm": algorithm, "exp_name": algorithm, "env_id": task, "seed": seed, "total_timesteps": last}
    args |= pc.SWITCHES if algorithm.startswith("ams") else {}
    (folder / "args.json").write_text(json.dumps(args | changed))
    rows = ["step,frames,updates,wall_seconds,episode,return,length"]
    for (step, mean), episode in itertools.product(curve.items(), (0, 1)):
        counters = f"{8 * step},{max(0, step - 1000)},{3600 * hours * step / max(1, last)}"
        rows.append(f"{step},{counters},{episode},{mean - 1 + 2 * episode},1000")
    (folder / "evaluations.csv").write_text("\n".join(rows) + "\n")
    write_events(folder, scalars or {})
    result = {"global_step": last, "final_evaluation": {"mean": curve[last]}, "wall_seconds": 3600 * hours}
    result |= {"algorithm": algorithm, "training_return_last_10_percent": curve[last] / 2, "device": "cpu"}
    if finished:
        (folder / "result.json").write_text(json.dumps(result))
    return folder


def write_events(folder, scalars, purge_step=None):
    """An event file with {tag: {step: value}}, by step; none without values."""
    if not scalars:
        return None
    writer = SummaryWriter(str(folder), purge_step=purge_step)
    for step, tag, value in sorted((s, tag, v) for tag, points in scalars.items() for s, v in points.items()):
        writer.add_scalar(tag, value, step)
    writer.close()
    return max(folder.glob("*tfevents*"), key=lambda path: path.stat().st_mtime_ns)


def straight(final, last=500_000, every=100_000):
    return {step: final * step / last for step in range(0, last + 1, every)}


def inputs(*directories, **changed):
    """What main hands to figures and tables."""
    runs, evaluations, _ = pc.read_runs(directories)
    returns = pc.evaluated(evaluations)
    it = {"runs": runs, "returns": returns, "arms": pc.in_arms(returns), "scores": pc.scores_of(runs, "final")}
    it |= {"x_axis": "steps", "ylabel": "Return", "reference": [], "value": "final", "task": "quadruped-run"}
    return SimpleNamespace(**it | changed)


def command(*arguments, **options):
    line = [sys.executable, str(ROOT / "plot_curves.py"), *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, **options)


def test_paper_values_are_the_papers():
    table = pc.paper("2").set_index(["algorithm", "task"])
    means = {"ppo": 728, "sac": 2616, "td3": 5244, "ams_td3": 8188, "ams_sac": 8250}
    assert len(table) == 60 and table.groupby("algorithm")["mean"].sum().to_dict() == means
    assert table["std"].sum() == 6220 and table["steps"].sum() == 35_000_000
    assert (len(pc.paper("3")), pc.paper("3")["mean"].sum(), pc.paper("3")["std"].sum()) == (16, 11_291, 866)
    assert len(pc.paper("B.4")) == 24 and pc.paper("B.4")["mean"].max() == 4.5
    assert pc.paper("Figure 4")["mean"].tolist() == [0.39, 0.16, 285, 63]
    wrong = {key for key, row in table.iterrows() if pc.impossible(row["mean"], row["std"], 5)}
    # n = 5 returns in [0, 1000] with mean m deviate at most sqrt(n / (n - 1) m (1000 - m)), if 5 m / 1000 is whole.
    beyond = set(table.index[table["std"] > np.sqrt(1.25 * table["mean"] * (1000 - table["mean"])) + 1])
    assert beyond == {("sac", "dog-stand"), ("sac", "h1-walk")} and beyond <= wrong
    assert wrong - beyond == {("sac", "h1-run"), ("td3", "dog-trot")}


def test_impossible_deviations():
    for mean in (38, 81, 237, 400):
        values = np.random.default_rng(0).dirichlet(np.full(5, 0.1), 100_000) * 5 * mean
        most = values[values.max(axis=1) <= 1000].std(axis=1, ddof=1).max()
        # Nothing that returns reach is impossible; a little more than the most that random ones reach is.
        assert not pc.impossible(mean, math.floor(most), 5) and pc.impossible(mean, math.ceil(1.06 * most), 5)


def test_variant():
    usual = {"algorithm": "ams_td3", "exp_name": "ams_td3"} | pc.SWITCHES
    assert pc.variant_of(usual) == "default" and pc.variant_of(usual | {"layer_norm": False}) == "layer_norm=False"
    assert pc.variant_of(usual | {"ntd": False, "exp_name": "anything"}) == pc.ARMS["+ LayerNorm"]
    assert pc.variant_of(usual | POINT) == pc.ARMS["+ LayerNorm, point target"]
    assert pc.variant_of(usual | {"epsilon": 1.2}) == pc.ARMS["AMS, ε = 1.2"]
    assert pc.variant_of(usual | {"num_neighbors": 4, "sampling": "gaussian"}) == "num_neighbors=4 sampling=gaussian"
    assert pc.variant_of(usual | {"exp_name": "ams_td3_big_batch"}) == "ams_td3_big_batch"


def test_long_form_holds_every_value(tmp_path):
    curve = {0: 1.5, 1000: 2.5, 3000: 3.5}
    scalars = {"losses/qf_loss": {500: math.pi, 2000: 1.0, 3500: 2.0}, EVAL: {0: 9.0}}
    write_run(tmp_path / "deep" / "er", "ams_sac", "dog-run", 7, curve, scalars=scalars, sampling="gaussian")
    frame = pc.load_runs(tmp_path)
    assert list(frame) == pc.SCALARS and set(frame["variant"]) == {"sampling=gaussian"} and set(frame["seed"]) == {7}
    evals, losses = (frame[frame["tag"] == tag] for tag in (EVAL, "losses/qf_loss"))
    assert len(frame) == 6 and dict(zip(evals["step"], evals["value"], strict=True)) == curve
    np.testing.assert_allclose(losses["value"], [math.pi, 1, 2], rtol=1e-6)
    assert losses["frames"].tolist() == [4000, 16000, 28000]  # between the evaluations, and behind the last
    assert losses["updates"].tolist() == [0, 1000, 2500]
    np.testing.assert_allclose(losses["wall_seconds"], [600, 2400, 4200])


@pytest.mark.parametrize("damage", ["cut", "flipped", "rubbish"])
def test_damaged_file_is_named_and_what_comes_before_is_used(tmp_path, capsys, damage):
    folder = write_run(tmp_path, "td3", "dog-run", 1, {0: 1.0, 1000: 1.0})
    path = write_events(folder, {"x": {step: float(step) for step in range(0, 1000, 10)}})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= damage == "flipped"
    path.write_bytes(b"not an event file at all, but long enough" if damage == "rubbish" else data[:-99])
    for _ in range(2):  # the second time from the cache
        steps = pc.load_runs(tmp_path).query("tag == 'x'")["step"].tolist()
        assert steps == list(range(0, 10 * len(steps), 10))
        assert {"cut": 90, "flipped": 40, "rubbish": -1}[damage] < len(steps) < 100
        message = capsys.readouterr().err
        assert str(path) in message and "what comes before is used" in message


def test_cache_and_resumed_runs(tmp_path, monkeypatch):
    folder = write_run(tmp_path, "td3", "dog-run", 1, {0: 1.0})
    path = write_events(folder, {"a": {0: 1 / 3, 10: 2.0}, "b": {5: 3.0}})
    first, _ = pc.read_scalars(folder)
    with monkeypatch.context() as patch:
        patch.setattr(pc, "EventAccumulator", None)
        pd.testing.assert_frame_equal(pc.read_scalars(folder)[0], first)
        assert pc.read_scalars(folder, ["b"])[0]["value"].tolist() == [3]
    whole = (folder / ".plot_curves.csv").read_text()
    for damaged in ("", "rubbish", whole[10:], '{"files": {}}\ntag,step,value\n'):
        (folder / ".plot_curves.csv").write_text(damaged)
        pd.testing.assert_frame_equal(pc.read_scalars(folder)[0], first)
        assert (folder / ".plot_curves.csv").read_text() == whole
    path.rename(folder / "events.out.tfevents.1.first")  # a resumed run shows each step once
    write_events(folder, {"a": {5: 7.0, 20: 8.0}}, purge_step=5).rename(folder / "events.out.tfevents.2.second")
    frame = pc.read_scalars(folder, ["a"])[0]
    assert frame["step"].tolist() == [0, 5, 20] and frame["value"].round(4).tolist() == [0.3333, 7, 8]


@pytest.mark.parametrize("content", ["{", "[]", '{"algorithm": "dqn"}', "step,return\n1,2\n"])
@pytest.mark.parametrize("name", ["args.json", "evaluations.csv"])
def test_a_run_with_a_bad_file_is_named_and_left_out(tmp_path, capsys, name, content):
    write_run(tmp_path, "td3", "dog-run", 1, {0: 1.0})
    bad = write_run(tmp_path, "td3", "dog-run", 2, {0: 1.0})
    (bad / name).write_text(content)
    assert pc.read_runs([tmp_path])[0]["seed"].tolist() == [1]
    assert (error := capsys.readouterr().err).startswith(f"plot_curves.py: note: {bad} is left out") and error.count(
        "\n"
    ) == 1


def test_a_curve_is_of_the_runs_that_got_to_its_end(tmp_path):
    for seed, last, hours in ((1, 40, 4.0), (2, 40, 8.0), (3, 60, 6.0), (4, 20, 1.0)):
        write_run(tmp_path, "sac", "dog-run", seed, dict.fromkeys(range(0, last + 1, 10), float(seed)), hours=hours)
    rows = pc.on_axis(inputs(tmp_path).returns.assign(panel="p", label="l"), "hours")
    whole, alone = rows[rows["whole"]], rows[~rows["whole"]]
    assert set(whole["seed"]) == {1, 2, 3} and set(alone["seed"]) == {3, 4} and alone["x"].max() == 6
    at = whole.groupby("step")["x"].agg(["min", "max"]).to_numpy()
    np.testing.assert_allclose(at, np.repeat([[0], [4 / 3], [8 / 3], [4], [16 / 3]], 2, axis=1))  # means of 1, 2, 1
    figure = pc.figure_3(inputs(tmp_path))
    means, *thin = (line.get_ydata().tolist() for line in figure.axes[0].get_lines() if len(line.get_ydata()))
    assert means == [2] * 5 and thin == [[3, 3], [4, 4, 4]]
    assert "Mean over 3 seeds" in figure.legends[0].get_title().get_text()
    values = [1.0, 5.0, 6.0, 9.0]
    expected = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    assert pc.band(values) == pytest.approx(expected) and np.isnan(pc.band([1.0, 2.0])).all()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Five algorithms on two tasks, three seeds: straight evaluation curves from 0 to 100 x rank + 10 x seed."""
    root = tmp_path_factory.mktemp("sweep") / "runs"
    for (rank, algorithm), task in itertools.product(enumerate(pc.ALGORITHMS, 1), ("quadruped-run", "dog-walk")):
        for seed in (1, 2, 3):
            curve, factor = straight(100.0 * rank + 10 * seed), 1 if algorithm.startswith("ams") else 3
            scalars = {TRAIN: {step + 1: value / 2 for step, value in curve.items()}}
            if task == "quadruped-run" and algorithm != "ppo":
                noise = {step: 10.0 ** (seed - 2) for step in range(10_000, 500_001, 10_000)}
                scalars["diagnostics/critic_grad_norm"] = {step: factor * value for step, value in noise.items()}
                scalars["diagnostics/td_target_variance"] = {step: float(factor**2) for step in noise}
            write_run(root, algorithm, task, seed, curve, scalars=scalars)
    return root


@pytest.mark.parametrize(("axis", "scale"), [("steps", 1e-3), ("frames", 8e-6), ("hours", 1 / 500_000)])
def test_figure_3_draws_means(sweep, axis, scale):
    figure = pc.figure_3(inputs(sweep, x_axis=axis))
    assert [a.get_title() for a in figure.axes] == ["Quadruped-Run", "Dog-Walk"]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim()
    steps = np.arange(0, 500_001, 100_000)
    for panel in figure.axes:
        lines = {line.get_color(): line for line in panel.get_lines() if len(line.get_xdata())}
        for rank, color in zip(range(1, 6), pc.COLORS, strict=False):
            np.testing.assert_allclose(lines[color].get_ydata(), (100 * rank + 20) * steps / 500_000)
            np.testing.assert_allclose(lines[color].get_xdata(), steps * scale)
        assert len(lines) == 5 and len({line.get_linestyle() for line in lines.values()}) > 1
        top = panel.collections[0].get_paths()[0].get_extents().y1  # AMS-TD3: 110, 120, 130
        assert top == pytest.approx(120 + scipy.stats.t.ppf(0.975, 2) * 10 / math.sqrt(3))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(pc.ALGORITHMS.values())
    assert len(figure.legends) == 1 and "3 seeds" in figure.legends[0].get_title().get_text()


def test_others_are_drawn_in_grey(sweep, tmp_path):
    evaluations = pc.read_runs([sweep])[1].query("algorithm == 'sac'")[pc.EPISODES]
    write_run(tmp_path / "ours", "td3", "dog-walk", 1, straight(50.0))
    files = [tmp_path / "peers.csv", tmp_path / "ours" / "peers.csv"]
    evaluations.to_csv(files[0], index=False)
    evaluations.assign(origin=None, **{"return": 7.0}).to_csv(files[1], index=False)
    figure = pc.figure_3(inputs(tmp_path / "ours", reference=files))
    peers = ["sac default, ours/peers", f"sac default, {tmp_path.name}/peers"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["TD3", *peers]
    lines = {line.get_color(): line.get_ydata()[-1] for line in figure.axes[-1].get_lines() if len(line.get_xdata())}
    assert lines == {pc.COLORS[3]: 50, pc.COLORS[7]: 7, pc.COLORS[8]: 520} and pc.COLORS[7].startswith("0.")


def test_figure_4_is_geometric_and_gives_the_ratio(sweep):
    it = inputs(sweep)
    it.diagnostics = pc.binned(pc.scalars(it.runs, pc.read_runs([sweep])[1], list(pc.DIAGNOSTICS)))
    figure = pc.figure_4(it)
    assert "TD3 / AMS-TD3: 3.0× (paper 2.4)" in figure.axes[0].get_title()
    assert "SAC / AMS-SAC: 9.0×" in figure.axes[1].get_title()
    bands = [path.vertices[:, 1] for axis in figure.axes for band in axis.collections for path in band.get_paths()]
    assert len(bands) == 8 and np.concatenate(bands).min() > 0  # bands of plain means would go below 0 here
    means = [line.get_ydata() for line in figure.axes[0].get_lines() if line.get_color() == pc.COLORS[3]][0]
    np.testing.assert_allclose(means, 3)  # of 0.3, 3 and 30; their plain mean is 11.1


def test_ablations_are_of_the_papers_seeds(tmp_path):
    finals = {}
    for algorithm, variant in set(zip(pc.paper("3")["algorithm"], pc.paper("3")["variant"], strict=True)):
        name, _, value = variant.partition("=")
        changed = {name: json.loads(value.lower())} if value else {}
        finals[algorithm, variant] = [100.0 + 10 * len(finals) + i**2 for i in (0, 1, 2)]
        others = [] if value else [900.0, 950.0]  # of Table 2, which must not enter
        for seed, final in zip((0, 42, 123, 10, 77), finals[algorithm, variant] + others, strict=False):
            write_run(tmp_path, algorithm, "quadruped-run", seed, straight(final), **changed)
    write_run(tmp_path, "ams_td3", "quadruped-run", 0, straight(77.0), sampling="gaussian")
    rows, shown = pc.table_3(inputs(tmp_path))
    assert len(rows) == 17 and rows["Ours"].iloc[16] == "77 (1)" and rows["variant"].iloc[16] == "sampling=gaussian"
    for row, paper in zip(rows.itertuples(), pc.paper("3").itertuples(), strict=False):
        values = finals[paper.algorithm, paper.variant]
        assert row.Ours == f"{statistics.mean(values):.0f} ± {statistics.stdev(values):.0f} (3)"
        assert row.Paper == f"{paper.mean:.0f} ± {paper.std:.0f}" and row.label == paper.label
    assert set(pc.table_3(inputs(tmp_path, task="dog-run"))[1]["Paper"]) == {"–"}  # the paper's hold on its task
    figure = pc.figure_5(inputs(tmp_path))
    assert len(figure.axes) == 4 and len(figure.legends) == 1 and len(figure.legends[0].get_texts()) == 7
    ends = {line.get_ydata()[-1] for axis in figure.axes for line in axis.get_lines() if len(line.get_ydata()) == 6}
    assert {round(end, 6) for end in ends} == {round(statistics.mean(values), 6) for values in finals.values()}


def test_figure_a1_draws_the_scripts_directions():
    gaussian, orthogonal = pc.figure_a1(None).axes
    np.testing.assert_allclose(np.asarray(orthogonal.collections[0].get_array()).reshape(8, 8), np.eye(8), atol=0.05)
    mean, std = scipy.stats.chi.mean(38) / math.sqrt(38), scipy.stats.chi.std(38) / math.sqrt(38)
    assert gaussian.get_title() == f"Gaussian: length {mean:.2f} ± {std:.2f}"


def test_table_2(tmp_path):
    for seed, final in ((1, 700.0), (2, 750.0), (5, 800.0)):
        write_run(tmp_path, "ams_td3", "cheetah-run", seed, straight(final))
    write_run(tmp_path, "ams_td3", "cheetah-run", 3, {0: 0.0, 130_000: 1.0}, finished=False)
    write_run(tmp_path, "ams_td3", "cheetah-run", 4, {0: 0.0, 100_000: 1.0})
    write_run(tmp_path, "td3", "dog-run", 1, {0: 0.0, 90_000: 50.0})
    write_run(tmp_path, "sac", "dog-run", 1, {0: 0.0, 70_000: 5.0}, finished=False)
    write_run(tmp_path, "ppo", "walker-walk", 1, {0: 0.0, 5_000: 400.0})
    rows, matrix = pc.table_2(inputs(tmp_path))
    assert len(rows) == 61 and matrix.shape == (10, 2 + 13) and list(matrix)[2:5:2] == ["Cheetah-Run", "Quadruped-Walk"]
    cells = matrix.set_index(["algorithm", ""])
    ours, papers = cells.xs("Ours", level=1), cells.xs("Paper", level=1)
    assert ours.loc["AMS-TD3", "Cheetah-Run"] == "750 ± 50 (3 of 5)"
    assert papers.loc["AMS-TD3", "Cheetah-Run"] == "712 ± 27"
    assert ours["Dog-Run"][["TD3", "SAC", "PPO"]].tolist() == ["50 (1) at 90K", "unfinished", "missing"]
    assert (ours.loc["PPO", "Walker-Walk"], papers.loc["SAC", "Dog-Stand"]) == ("400 (1)", "249 ± 781 †")
    assert sum("†" in cell for cell in cells.astype(str).to_numpy().ravel()) == 4
    assert 375 in pc.table_2(inputs(tmp_path, value="training_return_last_10_percent"))[0]["ours"].tolist()


def test_table_b4_keeps_machines_apart(tmp_path):
    for seed, hours, device in ((1, 1.0, "H200"), (2, 2.0, "H200"), (3, 9.0, "cpu")):
        path = write_run(tmp_path, "ams_sac", "dog-walk", seed, straight(1.0), hours=hours) / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"device": device}))
    rows = pc.table_b4(inputs(tmp_path))[0].set_index(["task", "algorithm"])
    own = rows.loc[[("dog-walk", "ams_sac")], ["device", "Ours", "Paper"]].to_numpy().tolist()
    assert own == [["H200", "3.00 ± 1.41 (2)", "4.50"], ["cpu", "18.00 (1)", "4.50"]]
    assert rows.loc[[("cheetah-run", "td3")], "Ours"].tolist() == ["missing"]


FINALS = {"AMS": [390, 405, 310], "+ LayerNorm, point target": [400, 410, 500], "+ LayerNorm": [300, 420, 380]}
FINALS |= {"Baseline": [50, 60, 70]}


def write_arms(root):
    """Four arms of TD3, a run that is not there yet, a fifth arm that has begun, a task without arms."""
    for arm, changed in zip(FINALS, ({}, POINT, {"ntd": False}, {}), strict=True):
        algorithm, hours = "td3" if arm == "Baseline" else "ams_td3", 3 if arm == "AMS" else 1
        for seed, final in zip((0, 42, 123), FINALS[arm], strict=True):
            write_run(root, algorithm, "dog-stand", seed, straight(final, 150_000, 50_000), hours=hours, **changed)
    write_run(root, "td3", "dog-stand", 10, {0: 0.0, 110_000: 45.678901234567}, finished=False)
    write_run(root, "ams_td3", "dog-stand", 0, {0: 0.0, 50_000: 45.0}, finished=False, epsilon=1.2)
    write_run(root, "ams_td3", "h1-walk", 0, straight(1.0))


def test_is_it_ntd(tmp_path):
    write_arms(tmp_path)
    it = inputs(tmp_path)
    rows, shown = pc.table_is_it_ntd(it)
    assert list(shown["arm"]) == list(pc.ARMS)[:4] and set(shown["seeds"]) == {3} and set(shown["step"]) == {150_000}
    assert shown["short"].tolist() == ["", "", "", "seed 10 at 110,000"]
    cells = rows.set_index(["arm", "measure"])
    for arm, finals in FINALS.items():
        expected = [np.mean(finals), *scipy.stats.t.interval(0.95, 2, np.mean(finals), scipy.stats.sem(finals))]
        assert cells.loc[(arm, "return"), ["value", "low", "high"]].tolist() == pytest.approx(expected)
        assert cells.loc[(arm, "area"), "value"] == pytest.approx(statistics.mean(finals) / 2)
        assert cells.loc[(arm, "hours"), "value"] == pytest.approx(3 if arm == "AMS" else 1)
        if arm != "AMS":
            value, low, high = cells.loc[(arm, "P(AMS better)"), ["value", "low", "high"]]
            wins = statistics.mean(ours > theirs for ours in FINALS["AMS"] for theirs in finals)
            assert value == pytest.approx(wins) and low <= value <= high
    assert cells.loc[("Baseline", "Mann-Whitney p"), "value"] == pytest.approx(0.1)  # 2 of 20 ways to split six
    figure = pc.figure_is_it_ntd(it)
    titles = [(axis.get_title().strip(), axis.get_xlabel()) for axis in figure.axes]
    assert titles == [("Dog-Stand, TD3", "Steps (thousands)"), ("Dog-Stand, TD3", "Hours")]
    assert [text.get_text() for text in figure.axes[0].texts] == [" paper: 337", " paper: 957"]
    assert len(figure.legends[0].get_texts()) == 5 and pc.in_arms(it.returns)["task"].unique() == ["dog-stand"]
    it.arms = it.arms[(it.arms["label"] != "AMS") | (it.arms["step"] == 0)]  # whose runs have only started
    reached = pc.table_is_it_ntd(it)[1][["arm", "step"]]
    assert reached.to_numpy().tolist() == [[arm, 150_000] for arm in list(pc.ARMS)[1:4]]


@pytest.fixture(scope="module")
def published(sweep, tmp_path_factory):
    """The folder that one --export wrote, of the sweep and of other runs from another place."""
    root = tmp_path_factory.mktemp("published")
    write_arms(root / "more")
    done = command(sweep, root / "more", "--export", root / "out")
    assert done.returncode == 0 and "45 runs, 43 finished" in done.stdout, done.stderr
    return root / "out"


def test_aggregates_are_rliables(sweep, published):
    scores = inputs(sweep).scores
    assert len(scores) == 5 and sorted(scores["AMS-TD3"].ravel()) == pytest.approx(sorted([0.11, 0.12, 0.13] * 2))
    rows = pd.read_csv(published / "table_aggregates.csv").set_index(["algorithm", "measure"])
    for (name, own), measure in itertools.product(scores.items(), ("iqm", "median", "mean", "optimality_gap")):
        value, low, high = rows.loc[(name, measure), ["value", "low", "high"]]
        assert value == pytest.approx(getattr(metrics, f"aggregate_{measure}")(own)) and low <= value <= high
    assert rows.loc[("AMS-TD3", "P(better than base)"), "value"] == 0  # 110 ... 130 against 410 ... 430
    x, y = np.random.default_rng(0).random((2, 4, 3)).round(1)  # with ties
    assert pc.better(x, y[:2])["value"] == pytest.approx(metrics.probability_of_improvement(x, y[:2]))
    assert math.isnan(pc.better(x[:1], y)["low"])  # one run has no spread


def test_published_data_make_the_same_files_again(published):
    files = {path.name: path.read_bytes() for path in published.iterdir()}
    expected = {"evaluations.csv", "diagnostics.csv", "runs.json", "captions.md"}
    figures, tables = "3 4 5 a1 is_it_ntd aggregates profiles".split(), "2 3 b4 is_it_ntd aggregates".split()
    expected |= {f"figure_{name}.{kind}" for name in figures for kind in ("png", "svg")}
    assert set(files) == expected | {f"table_{name}.{kind}" for name in tables for kind in ("csv", "md", "tex")}
    assert "td3 default dog-stand 10 at step 110,000" in files["captions.md"].decode()
    assert r"95\% t-intervals" in files["table_is_it_ntd.tex"].decode()
    assert r"$\epsilon$ = 0.4 & ams\_td3 & epsilon=0.4" in files["table_3.tex"].decode()
    assert b"pytest" not in files["runs.json"] and len(json.loads(files["runs.json"])) == 45
    origins = pd.read_csv(published / "evaluations.csv").groupby("task")["origin"].unique().loc["dog-stand":"dog-walk"]
    assert [origin.split("/")[-1] for origin in np.concatenate(origins.to_list())] == ["more", "runs"]
    for name in files:
        if not name.endswith((".csv", ".json")) or name.startswith("table"):
            (published / name).unlink()
    assert command(published, "--export", published).returncode == 0
    assert {path.name: path.read_bytes() for path in published.iterdir()} == files


def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys):
    done = command(tmp_path / "gone", cwd=tmp_path)
    error = f"plot_curves.py: error: {tmp_path / 'gone'} is no folder; give the one that holds the runs, such as runs/"
    assert done.returncode and done.stderr.strip() == error and not done.stdout and not any(tmp_path.iterdir())
    with pytest.raises(pc.InputError, match="no runs in"):
        pc.load_runs(tmp_path)
    one, two = (write_run(tmp_path / name, "td3", "dog-run", 1, {0: 1.0}) for name in "ab")
    with pytest.raises(pc.InputError, match=f"2 runs claim td3 default dog-run 1: {one}, {two}; remove all but one"):
        pc.load_runs(tmp_path)
    for line, words in (("", "DIR"), (". --format gif", "'gif'"), (". --metric train --reference x", "--metric eval")):
        monkeypatch.setattr(sys, "argv", ["plot_curves.py", *line.split()])
        with pytest.raises(SystemExit, match="2"):
            pc.main()
        last = capsys.readouterr().err.splitlines()[-1]
        assert words in last and last.startswith("plot_curves.py: error: ")


def test_the_published_tables_are_those_of_the_published_evaluations(published):
    """The tables in results/, or of the test's own runs until there are any, computed here by other means."""
    folder = ROOT / "results" if (ROOT / "results" / "runs.json").exists() else published
    episodes = pd.read_csv(folder / "evaluations.csv").set_index(["algorithm", "variant", "task", "step"]).sort_index()
    rows = pd.read_csv(folder / "table_is_it_ntd.csv").query("measure in ('return', 'hours')")
    assert set(rows["measure"]) == {"return", "hours"}
    for row in rows.itertuples():
        algorithm = row.base if row.arm == "Baseline" else f"ams_{row.base}"
        at_end = episodes.loc[(algorithm, pc.ARMS[row.arm], row.task, row.step)].groupby("seed")
        means = at_end["return"].mean() if row.measure == "return" else at_end["wall_seconds"].mean() / 3600
        assert row.value == pytest.approx(statistics.mean(means)) and row.seeds == len(means)
    results = json.loads((folder / "runs.json").read_text())
    for row in pd.read_csv(folder / "table_2.csv").dropna(subset="ours").itertuples():
        own = [r for r in results if [r[key] for key in pc.CELL] == [getattr(row, key) for key in pc.CELL]]
        finals = [r["final_evaluation"]["mean"] for r in own if r.get("global_step") == row.at]
        assert row.ours == pytest.approx(statistics.mean(finals)) and row.n == len(finals)
        shown = f"{row.ours:.0f}" + ("" if len(finals) < 2 else f" ± {statistics.stdev(finals):.0f}")
        assert f"| {shown} ({row.n:.0f}" in re.sub(" +", " ", (folder / "table_2.md").read_text())
