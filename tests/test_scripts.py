"""The scripts as texts: each stands alone, installs by itself, and shares its blocks with the others to the letter."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import fields, replace
from functools import cache
from importlib.metadata import packages_distributions
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = [name for name in ("ams_td3", "ams_sac", "td3", "sac", "ppo") if (ROOT / f"{name}.py").exists()]
PAIRS = list(combinations(SCRIPTS, 2))

# What an algorithm defines for itself. Whatever else two scripts have in common is the same text.
ALGORITHM = """ALGORITHM Args QNetwork SoftQNetwork Actor Agent td_target update_critics update_actor update_alpha
update_targets make_optimizers make_update train check_args MAY_CHANGE_ON_RESUME POSITIVE NOT_NEGATIVE""".split()
# What Action Manifold Smoothing changes, and what it adds.
CHANGED = "ALGORITHM Args check_args POSITIVE NOT_NEGATIVE QNetwork SoftQNetwork Agent.__init__ td_target".split()
METHOD = "gram_schmidt orthonormal_directions sample_directions neighborhood_actions".split()
# Arguments whose default or help differs between a base algorithm and its AMS variant, and between the families.
AMS_ARGS = "policy_noise noise_clip".split()
FAMILY_ARGS = "device keep_checkpoint learning_rate learning_starts policy_frequency ntd".split()


@cache
def read(name: str) -> str:
    return (ROOT / f"{name}.py").read_text()


@cache
def find_imports(name: str) -> set[str]:
    """The modules that a script imports at any level, by full name."""
    nodes = list(ast.walk(ast.parse(read(name))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    assert not any(node.level for node in froms), "a relative import"
    return names | {f"{node.module}.{alias.name}" for node in froms for alias in node.names}


# ---------------------------------------------------------------------------------------------------- dependencies


def read_pins(lines) -> dict[str, str]:
    """{package: version} of requirements, all of which are exact; names as PyPI compares them."""
    pins = [line.split("==") for line in lines if line.strip() and not line.startswith("#")]
    return {re.sub(r"[-_.]+", "-", name).lower(): version.strip() for name, version in pins}


def read_metadata(name: str) -> dict:
    """A script's inline metadata, by the regular expression of PEP 723."""
    pattern = r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$"
    (block,) = [match for match in re.finditer(pattern, read(name)) if match["type"] == "script"]
    return tomllib.loads("\n".join(line.removeprefix("#").removeprefix(" ") for line in block["content"].splitlines()))


@pytest.mark.parametrize("name", SCRIPTS)
def test_inline_metadata_has_the_pins_of_the_requirements(name):
    metadata = read_metadata(name)
    pins = read_pins(metadata["dependencies"])
    required = read_pins((ROOT / "requirements.txt").read_text().splitlines())
    assert pins == {package: required.get(package) for package in pins}
    assert metadata["requires-python"] == ">=3.11,<3.13"


def test_every_import_is_pinned():
    """But for wandb, which --track asks for by name."""
    distributions = packages_distributions()
    for name in SCRIPTS:
        imported = {module.split(".")[0] for module in find_imports(name)} - sys.stdlib_module_names - {"wandb"}
        needed = {distribution for module in imported for distribution in distributions.get(module, [module])}
        if "torch.utils.tensorboard.SummaryWriter" in find_imports(name):
            needed.add("tensorboard")
        assert {"torch", "gymnasium"} <= needed
        pins = read_pins(read_metadata(name)["dependencies"])
        assert set(read_pins(f"{package}==" for package in needed)) <= set(pins), name


# -------------------------------------------------------------------------------------------------- one file alone


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_import_nothing_of_this_project(name):
    ours = {path.stem for folder in (ROOT, ROOT / "tests") for path in folder.glob("*.py")} | {"tests"}
    assert not {module.split(".")[0] for module in find_imports(name)} & ours


def test_importing_a_script_does_nothing_else(tmp_path):
    """Copied alone, a script can be imported for its functions: no files, processes, threads, settings or output."""
    for folder in ("scripts", "work"):
        (tmp_path / folder).mkdir()
    for name in SCRIPTS:
        shutil.copy(ROOT / f"{name}.py", tmp_path / "scripts")
    code = f"""
import importlib, os, random, signal, sys, threading
import gymnasium, imageio, numpy, psutil, torch, torch.utils.tensorboard, tqdm, tyro
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
for name in {SCRIPTS}:
    before = dict(state())
    importlib.import_module(name)
    changed = [key for key, value in state() if value != before[key]]
    assert not changed, f"importing {{name}} changes {{changed}}"
"""
    path = {"PYTHONPATH": str(tmp_path / "scripts"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "work",
        env=os.environ | path | {name: str(tmp_path / "work") for name in ("HOME", "TMPDIR")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == sorted(f"{s}.py" for s in SCRIPTS)


# ----------------------------------------------------------------------------------------------------------- drift


@cache
def definitions(name: str) -> dict[str, tuple[int, int]]:
    """The first and last line of each function, class, method and constant at the top level of a script, by name."""

    def lines(node):
        return min(part.lineno for part in [node, *node.decorator_list]), node.end_lineno

    found = {}
    for node in ast.parse(read(name)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = lines(node)
        if isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            found |= {f"{node.name}.{method.name}": lines(method) for method in methods}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
            found |= dict.fromkeys(names, (node.lineno, node.end_lineno))
    return found


def text_of(name: str, lines: tuple[int, int]) -> str:
    first, last = lines
    return "\n".join(read(name).splitlines()[first - 1 : last])


@pytest.mark.parametrize("one, other", PAIRS)
def test_shared_blocks_are_the_same_text(one, other):
    in_one, in_other = definitions(one), definitions(other)
    shared = {name for name in set(in_one) & set(in_other) if name.split(".")[0] not in ALGORITHM}
    assert {"DMControlEnv", "make_envs", "derive_seeds", "evaluate", "Run", "CHECKPOINT", "main"} <= shared
    drifted = [name for name in sorted(shared) if text_of(one, in_one[name]) != text_of(other, in_other[name])]
    assert not drifted, f"{one}.py and {other}.py differ in {drifted}"


@pytest.mark.parametrize("base", [name for name in ("td3", "sac") if {name, f"ams_{name}"} <= set(SCRIPTS)])
def test_the_method_is_all_that_ams_changes(base):
    """`diff td3.py ams_td3.py` shows the method: apart from the docstring, the definitions that it changes and those
    that it adds, the files are the same, line by line."""
    ams = f"ams_{base}"
    assert set(definitions(ams)) - set(definitions(base)) == set(METHOD)
    assert set(definitions(base)) <= set(definitions(ams))
    rest = {}
    for name in (base, ams):
        docstring = ast.parse(read(name)).body[0]
        own = [lines for defined, lines in definitions(name).items() if defined in CHANGED + METHOD]
        own.append((docstring.lineno, docstring.end_lineno))
        own = {line for first, last in own for line in range(first, last + 1)}
        rest[name] = [line for number, line in enumerate(read(name).splitlines(), 1) if line and number not in own]
    assert rest[base] == rest[ams]


# ------------------------------------------------------------------------------------------------------- arguments


@cache
def argument_lines(name: str) -> dict[str, tuple[str, str | None]]:
    """For each field of Args its line and the string below it, None where there is none."""
    (args,) = [node for node in ast.parse(read(name)).body if isinstance(node, ast.ClassDef) and node.name == "Args"]
    found = {}
    for field, below in zip(args.body, [*args.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            found[field.target.id] = ast.unparse(field), below.value.value if is_text else None
    return found


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_argument_has_a_help_line_and_is_used(name):
    arguments = argument_lines(name)
    assert not [field for field, (_, text) in arguments.items() if not text or "\n" in text or len(text) < 10]
    assert not [field for field in arguments if not re.search(rf"\bargs\.{field}\b", read(name))]


@pytest.mark.parametrize("one, other", PAIRS)
def test_common_arguments_have_the_same_default_and_help(one, other):
    in_one, in_other = argument_lines(one), argument_lines(other)
    shared = set(in_one) & set(in_other)
    assert {"seed", "num_envs", "eval_frequency", "resume"} <= shared
    same_family = one.removeprefix("ams_") == other.removeprefix("ams_")
    shared -= set(AMS_ARGS if same_family else FAMILY_ARGS)
    assert not {field for field in shared if in_one[field] != in_other[field]}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_number_is_checked(name, capsys):
    """By the lists that check_args goes through, in which a misspelled name would do nothing."""
    module = importlib.import_module(name)
    names = {field.name for field in fields(module.Args)}
    assert set(module.MAY_CHANGE_ON_RESUME) | set(module.POSITIVE) | set(module.NOT_NEGATIVE) <= names
    numbers = [field.name for field in fields(module.Args) if field.type in (int, float)]
    assert len(numbers) > 10
    for field in numbers:
        for value in (-1, float("nan"), float("inf")):
            with pytest.raises(SystemExit, match="2"):
                module.check_args(replace(module.Args(), **{field: value}))
            assert f"--{field.replace('_', '-')}" in capsys.readouterr().err
    module.check_args(module.Args())


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="there is no README yet")
def test_the_readme_names_every_script():
    readme = (ROOT / "README.md").read_text()
    assert not [name for name in SCRIPTS if not re.search(rf"\b{name}\.py", readme)]
