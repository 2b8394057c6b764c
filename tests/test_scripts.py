"""The scripts as texts and as files: each stands alone, and they share their plumbing to the letter."""

import ast
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields

import pytest
from commands import LIMIT, OFF_POLICY, ROOT, SCRIPTS, SMALL, evaluations, read_json
from spread_plumbing import split

TRAINING = f"--env-id Pendulum-v1 {SMALL} {OFF_POLICY} --total-timesteps 30 --eval-episodes 2".split()


def read(script):
    return (ROOT / f"{script}.py").read_text()


def python(*words, cwd, **environ):
    """A Python of its own, which imports everything itself."""
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""} | environ
    words = [sys.executable, *map(str, words)]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    return done


def test_the_plumbing_is_the_same_text():
    tails = {split(ROOT / f"{script}.py")[1] for script in SCRIPTS}

    assert len(tails) == 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_imports_nothing_of_this_project(script):
    ours = {path.stem for folder in (ROOT, ROOT / "tests") for path in folder.glob("*.py")} | {"tests"}

    imported = set()
    for node in ast.walk(ast.parse(read(script))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.split(".")[0])

    assert "torch" in imported
    assert not imported & ours


@pytest.mark.parametrize("script", SCRIPTS)
def test_inline_metadata_are_the_requirements_of_training(script):
    """Read by the regular expression of PEP 723, for this type of block."""
    (block,) = re.findall(r"(?m)^# /// script$\s((?:^#(?:| .*)$\s)+)^# ///$", read(script))
    metadata = tomllib.loads(re.sub("(?m)^#", "", block))
    training = (ROOT / "requirements.txt").read_text().split("# Training\n")[1].split("#")[0].split()
    without_labmaze = {"override-dependencies": ["labmaze; python_version < '3.13'"]}
    assert metadata == {"requires-python": ">=3.11,<3.15", "dependencies": training, "tool": {"uv": without_labmaze}}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_argument_is_documented_and_used(script):
    source = inspect.getsource(importlib.import_module(script).Args)
    body = ast.parse(source).body[0].body
    assert len(body) > 50
    for field, text in zip(body[::2], body[1::2], strict=True):
        assert 15 < len(text.value.value) < 110
        assert "\n" not in text.value.value
        assert re.search(rf"\bargs\.{field.target.id}\b", read(script)), field.target.id


@pytest.mark.parametrize("value", ["-1", "nan", "inf"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_every_number_is_checked(script, value, monkeypatch, capsys):
    module = importlib.import_module(script)
    kinds = [float]
    if value == "-1":
        kinds.append(int)
    numbers = [field.name for field in fields(module.Args) if field.type in kinds]
    assert len(numbers) > 3
    for name in numbers:
        flag = f"--{name.replace('_', '-')}"
        monkeypatch.setattr(sys, "argv", [f"{script}.py", "--env-id", "none", flag, value])
        with pytest.raises(SystemExit, match="2"):
            module.main()
        assert f"{script}.py: error: {flag} must be" in capsys.readouterr().err


def test_scripts_copied_into_an_empty_folder(tmp_path):
    """Each imports without files, processes, threads, settings or output; `--help` and training work."""
    scripts = tmp_path / "scripts"
    work = tmp_path / "work"
    scripts.mkdir()
    work.mkdir()
    for name in SCRIPTS:
        shutil.copy(ROOT / f"{name}.py", scripts)
    (work / "look.py").write_text(f"""
import importlib, os, random, signal, sys, threading
import gymnasium, numpy, psutil, tensordict.nn, torch, torch.utils.tensorboard, tyro
def state():
    yield "processes", psutil.Process().children(recursive=True)
    yield "threads", threading.active_count()
    yield "environment", dict(os.environ)
    yield "signal handlers", [signal.getsignal(number) for number in sorted(signal.valid_signals())]
    yield "random states", (random.getstate(), str(numpy.random.get_state()), torch.get_rng_state().tolist())
    yield "settings", (torch.get_num_threads(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled())
    yield "environments", sorted(gymnasium.registry)
    yield "simulators", [name for name in ("mujoco", "dm_control") if name in sys.modules]
    yield "files", os.listdir()
for name in {[*SCRIPTS]}:
    before = dict(state())
    importlib.import_module(name)
    assert not [key for key, value in state() if value != before[key]], name
for name in {[*SCRIPTS]}:
    sys.argv = [name + ".py", "--help"]
    try:
        sys.modules[name].main()
    except SystemExit as ended:
        assert ended.code == 0
""")
    done = python("look.py", cwd=work, PYTHONPATH=str(scripts))
    assert not done.stderr
    for script in SCRIPTS:
        assert f"python {script}.py --env-id dog-run" in done.stdout
    assert done.stdout.count("--total-timesteps INT") == 5 and "step size of Adam, for actor and critics" in done.stdout
    done = python(scripts / "ams_sac.py", *TRAINING, cwd=work)
    result = read_json(work / "runs/Pendulum-v1__ams_sac__1/result.json")
    assert result["updates"] == 10 and not done.stderr
    assert {path.name for path in scripts.iterdir()} == {f"{name}.py" for name in SCRIPTS}


SPAWN = """
import sys
sys.path.insert(0, {root!r})
import td3
td3.START_METHOD = {method!r}
if __name__ == "__main__":
    sys.exit(td3.main())
"""


def test_workers_that_are_spawned_make_the_same_run(tmp_path):
    """As on macOS: the part of it that Linux can show."""
    for method in ("spawn", "fork"):
        (tmp_path / f"{method}.py").write_text(SPAWN.format(root=str(ROOT), method=method))
        done = python(f"{method}.py", *TRAINING, "--run-dir", method, cwd=tmp_path)
        assert not done.stderr

    assert len(evaluations(tmp_path / "spawn")) == 4
    assert evaluations(tmp_path / "spawn") == evaluations(tmp_path / "fork")


def test_the_benchmark_measures_every_script(tmp_path):
    turns = ["--turns=1", "--step-turns=1", "--output=numbers.json"]

    python(ROOT / "tests/benchmark.py", "--env-id=Pendulum-v1", *turns, cwd=tmp_path)

    measured = read_json(tmp_path / "numbers.json")
    for script in SCRIPTS:
        assert measured[f"training: {script}"] > 0
    assert measured["update: speed of ams_td3 over port"] > 0
