"""How long plot_curves.py takes for 300 finished runs of 1M steps: the first time, then from its cache.

    python tests/plot_benchmark.py
    python tests/plot_benchmark.py --keep /tmp/benchmark_runs

One run an algorithm is written with the real SummaryWriter, 13 tags every 1,000 steps and evaluations every 10,000 as
the training scripts log them, and copied for 12 tasks and 5 seeds (about 300 MB).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from plot_curves import ALGORITHMS, DIAGNOSTICS, TASKS  # noqa: E402

STEPS = 1_000_000
LOSSES = ("qf1_values", "qf2_values", "qf1_loss", "qf2_loss", "qf_loss", "actor_loss")
CHARTS = ("episodic_return", "episodic_length", "SPS", "frames", "updates")


def write_events(folder, rng):
    """The event file of one run of STEPS steps."""
    writer = SummaryWriter(str(folder))
    tags = [f"charts/{name}" for name in CHARTS] + [f"losses/{name}" for name in LOSSES] + list(DIAGNOSTICS)
    for step in range(0, STEPS + 1, 1000):
        if step % 10_000 == 0:
            writer.add_scalar("eval/episodic_return", 900 * step / STEPS + rng.normal(), step)
            writer.add_scalar("eval/episodic_return_std", rng.random(), step)
        for tag in tags if step else []:
            writer.add_scalar(tag, 8 * step if tag == "charts/frames" else rng.random(), step)
    writer.close()


def write_runs(root, rng):
    """300 finished runs: the events of one per algorithm, args.json and result.json of each."""
    for algorithm in ALGORITHMS:
        first = root / ".first"
        write_events(first, rng)
        for task in TASKS:
            for seed in range(5):
                folder = root / f"{task}__{algorithm}__{seed}"
                shutil.copytree(first, folder)
                args = {"algorithm": algorithm, "exp_name": algorithm, "env_id": task, "seed": seed, "num_envs": 8}
                (folder / "args.json").write_text(json.dumps(args))
                result = {"global_step": STEPS, "wall_seconds": 36_000.0 + seed, "device": "none"}
                result |= {"final_evaluation": {"mean": float(rng.uniform(0, 1000))}}
                (folder / "result.json").write_text(json.dumps(result))
        shutil.rmtree(first)


def main():
    """Write the runs, then draw them twice and print both times."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--keep", type=Path, help="write the runs here and leave them, instead of to a temporary folder"
    )
    keep = parser.parse_args().keep
    with tempfile.TemporaryDirectory() as temporary:
        root = keep or Path(temporary) / "runs"
        root.mkdir(parents=True)
        write_runs(root, np.random.default_rng(0))
        command = [sys.executable, str(ROOT / "plot_curves.py"), str(root), "--out-dir", f"{temporary}/figures"]
        for name in ("first time", "from the cache"):
            start = time.perf_counter()
            subprocess.run(command, check=True)
            print(f"{name}: {time.perf_counter() - start:.1f} s on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
