"""`python tests/spread_plumbing.py td3.py` copies its plumbing, from the marker line on, into the other four."""

import sys
from pathlib import Path

SCRIPTS = ["ams_td3.py", "ams_sac.py", "td3.py", "sac.py", "ppo.py"]
MARKER = "# =========================== the plumbing"


def split(path: Path) -> tuple[str, str]:
    """The algorithm of a script, and its plumbing."""
    algorithm, plumbing = path.read_text().split(MARKER)
    return algorithm, MARKER + plumbing


if __name__ == "__main__":
    root = Path(__file__).resolve().parent.parent
    _, plumbing = split(root / sys.argv[1])
    for script in SCRIPTS:
        algorithm, _ = split(root / script)
        (root / script).write_text(algorithm + plumbing)
