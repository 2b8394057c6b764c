"""How long plot_curves.py takes for 300 finished runs of 1M steps: the first time, then from its cache.

    python tests/plot_benchmark.py

Every event file is read (--metric train). One run is written with the real SummaryWriter, 13 tags every 1,000 steps and
evaluations every 10,000, and copied for 5 algorithms, 12 tasks and 5 seeds (600 MB with the cache, removed at the end).
"""

import itertools
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
import plot_curves as pc  # noqa: E402

STEPS, LOSSES = 1_000_000, "qf1_values qf2_values qf1_loss qf2_loss qf_loss actor_loss".split()
CHARTS = "episodic_return episodic_length SPS frames updates".split()


def main():
    """Write the runs, draw them twice, and print wall and CPU seconds of both."""
    rng = np.random.default_rng(0)
    tags = [*(f"charts/{name}" for name in CHARTS), *(f"losses/{name}" for name in LOSSES), *pc.DIAGNOSTICS]
    with tempfile.TemporaryDirectory() as temporary:
        first, runs = Path(temporary) / "first", Path(temporary) / "runs"
        writer = SummaryWriter(str(first))
        for step, tag in itertools.product(range(1000, STEPS + 1, 1000), tags):
            writer.add_scalar(tag, rng.random(), step)
        writer.close()
        rows = ["step,frames,updates,wall_seconds,episode,return,length"]
        for step, episode in itertools.product(range(0, STEPS + 1, 10_000), range(8)):
            rows.append(f"{step},{8 * step},{step},{step / 50},{episode},{900 * step / STEPS + rng.normal()},1000")
        (first / "evaluations.csv").write_text("\n".join(rows))
        for algorithm, task, seed in itertools.product(pc.ALGORITHMS, pc.paper("2")["task"].unique(), range(5)):
            folder = shutil.copytree(first, runs / f"{task}__{algorithm}__{seed}")
            args = {"algorithm": algorithm, "env_id": task, "seed": seed, "total_timesteps": STEPS}
            result = {"global_step": STEPS, "wall_seconds": 36_000.0, "device": "none"}
            result |= {"training_return_last_10_percent": rng.uniform(0, 1000), "final_evaluation": {"mean": 900.0}}
            for name, content in (("args.json", args), ("result.json", result)):
                (folder / name).write_text(json.dumps(content))
        for name in ("first time", "from the cache"):
            start, spent = time.perf_counter(), os.times()
            line = f"{sys.executable} {ROOT}/plot_curves.py {runs} --metric train --out-dir {temporary}/out"
            subprocess.run(line.split(), check=True, stderr=subprocess.DEVNULL)
            cpu = sum(os.times()[2:4]) - sum(spent[2:4])
            print(f"{name}: {time.perf_counter() - start:.1f} s, {cpu:.1f} s of CPU, on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
