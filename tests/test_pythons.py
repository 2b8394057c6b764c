"""The Pythons that are promised beside the one that runs the tests: what stands in for labmaze, and Python 3.14."""

import re
import runpy
import subprocess
import sys

import pytest
from commands import ROOT

STAND_IN = ROOT / "no_labmaze"
LIMIT = 580  # seconds; the first time, the wheels of Python 3.14 are downloaded


def pip(*words):
    command = [sys.executable, "-m", "pip", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)


def registry_answers(folder):
    download = ["download", "--no-deps", "--no-cache-dir", "--retries", "0", "--timeout", "15", "--dest", str(folder)]
    return pip(*download, "iniconfig").returncode == 0


def test_the_stand_in_says_what_it_is():
    with pytest.raises(ImportError, match="no wheels for Python 3.13 and later"):
        runpy.run_path(str(STAND_IN / "labmaze.py"))


def test_python_3_14_has_wheels_of_all_requirements(tmp_path):
    """All but our folder, which pip builds here: pip reads the markers for the Python that runs it."""
    if not registry_answers(tmp_path):
        pytest.skip("needs a package registry")
    ours = (ROOT / "requirements.txt").read_text()
    requirements = tmp_path / "requirements.txt"
    requirements.write_text(re.sub(r"(?m)^\./.*", str(STAND_IN), ours))

    target = ["--python-version", "3.14", "--only-binary", ":all:", "--target", str(tmp_path / "target")]
    done = pip("install", "--dry-run", *target, "-r", str(requirements))

    assert done.returncode == 0, done.stderr
    assert "labmaze-1.0.6" in done.stdout
