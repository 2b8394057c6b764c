"""README as its readers use it: its commands in order, its files, links and names. Long runs get a small budget."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import LIMIT, ROOT

README = (ROOT / "README.md").read_text()
FENCED = re.compile(r"^```(\w+)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
PROSE = FENCED.sub("", README)
FILES = {"python": "my_envs.py", "diff": "ball.diff"}  # a block's language, and as what its reader saves it
SMALL = (
    " --device cpu --num-envs 1 --eval-episodes 1 --total-timesteps 30 --learning-starts 20 --batch-size 8"
    " --buffer-size 1000 "
)
# A run there with episodes of some steps: to film 1,000 of a dog takes minutes.
SHORT_EPISODES = (
    f"python ams_td3.py --env-id InvertedPendulum-v5 --run-dir runs/dog-run__ams_td3__1 --overwrite {SMALL}"
)
INSTALL = "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt"
NOT_RUN = {  # and why
    INSTALL: "gigabytes from a package registry; .ci/run does it",
    f"{INSTALL} && .venv/bin/python -m pytest -n 2 tests": "it is what runs this test",
    "sbatch --array=0-299%32 run_all.sh table2": "needs Slurm",
    "git clone https://github.com/carlosferrazza/humanoid-bench && git -C humanoid-bench checkout 791405f": "network",
    "pip install --no-deps -e humanoid-bench": "needs that clone",
}
MADE = {  # files that a run, plot_curves.py or the reader makes
    "evaluations.csv",
    "captions.md",
    "peers.csv",
    "my_envs.py",
    "ball/evaluations.csv",
}
FOREIGN_FLAGS = {"logdir", "array", "no-deps"}  # of TensorBoard, Slurm and pip


def commands_of(text: str) -> list[str]:
    """The indented lines without their comments."""
    lines = [line for line in FENCED.sub("", text).splitlines() if line.startswith("    ")]
    return [line.split("  #")[0].strip() for line in lines]


def sections() -> dict[str, list[str]]:
    """The commands below each heading."""
    parts = re.split(r"(?m)^##+ (.*)\n", README)
    return {name: commands_of(text) for name, text in zip(parts[1::2], parts[2::2], strict=True)}


def shortened(command: str) -> str:
    """The command with what makes it short; ValueError for a command of a kind that is not known here."""
    if " --env-id " in command:
        return re.sub(r"python \w+\.py --env-id [^;>]*", lambda found: found[0] + SMALL, command)
    if command.startswith("bash run_all.sh"):
        return command.replace("run_all.sh", "run_all.sh --list", 1)
    if command.startswith("tensorboard "):
        return f"{command} --inspect"
    if " results/" in command and " --evaluate " in command:  # as if it had been asked for without the film
        return command.replace(" --capture-video", "")
    if " --evaluate " in command:
        return f"{SHORT_EPISODES} && {command} --num-envs 1 --eval-episodes 1"
    if command.startswith("python plot_curves.py ") or command in ("git apply ball.diff", "python ams_td3.py --help"):
        return command
    raise ValueError(f"README has a command that no test knows: {command}")


def shell(command, folder):
    """Runs it by bash in this folder; what it printed. An error if it, or a part of it, fails."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = os.environ | {"PATH": path, "CUDA_VISIBLE_DEVICES": ""}
    words = ["bash", "-ec", f"{command}\nwait $!"]
    done = subprocess.run(words, cwd=folder, env=environ, capture_output=True, text=True, timeout=LIMIT)
    if done.returncode != 0 or "Traceback" in done.stderr:
        raise AssertionError(f"{command}\n{done.stdout}{done.stderr}")
    return done.stdout


@pytest.fixture
def project(tmp_path):
    """A copy of the project with README's files and an environment, as its readers have them."""
    for path in [*ROOT.glob("*.py"), ROOT / "run_all.sh"]:
        shutil.copy(path, tmp_path)
    shutil.copytree(ROOT / "results", tmp_path / "results")
    (tmp_path / ".venv").symlink_to(sys.prefix)
    for language, text in FENCED.findall(README):
        (tmp_path / FILES[language]).write_text(text)
    return tmp_path


@pytest.fixture
def runs(project):
    """Runs, and curves of others: what the section on figures has before it begins."""
    for folder, seed in [("runs/one", 1), ("more/two", 2)]:
        shell(f"python td3.py --env-id Pendulum-v1 --run-dir {folder} --seed {seed} {SMALL}", project)
    shutil.copy(project / "results" / "evaluations.csv", project / "peers.csv")


def run_section(name, folder):
    """Runs its commands in order; what each printed."""
    return [shell(shortened(command), folder) for command in sections()[name] if command not in NOT_RUN]


@pytest.mark.parametrize(
    "name", ["Start", "Bring an environment", "Reference", "Every run of the paper", "HumanoidBench"]
)
def test_commands_of_a_section_work(name, project):
    printed = run_section(name, project)

    assert all(printed)


def test_networks_in_results_are_played(project):
    results = (ROOT / "results/README.md").read_text()
    commands = [command for command in commands_of(results) if " --evaluate " in command]
    assert len(commands) == len(list(ROOT.glob("results/*.pt")))

    for command in commands:
        assert "over 1 episodes" in shell(shortened(command), project)


def test_figures_are_made_from_runs_and_from_what_they_export(project, runs):
    printed = run_section("Figures and tables", project)

    assert "figures and tables are in figures" in printed[0]
    assert "figures and tables are in results" in printed[-1]


def test_the_section_on_training_leaves_runs_and_a_film(project):
    run_section("Train", project)

    folder = project / "runs" / "dog-run__ams_td3__1"
    assert {"result.json", "ams_td3.pt", "evaluations.csv", "args.json"} <= set(os.listdir(folder))
    assert list(folder.glob("*.mp4"))


def test_the_changed_method_is_in_numbers_and_figure(project):
    shell(f"python ams_td3.py --env-id dog-stand {SMALL}", project)

    *_, printed = run_section("Change the method", project)

    assert "sampling=ball" in printed
    assert "sampling=ball" in (project / "figures" / "figure_3.svg").read_text()


def test_no_section_with_commands_is_forgotten():
    with_commands = [name for name, commands in sections().items() if commands]
    assert with_commands == [
        "Start",
        "Train",
        "Bring an environment",
        "Change the method",
        "Reference",
        "Every run of the paper",
        "Figures and tables",
        "HumanoidBench",
    ]


def test_readme_is_short():
    assert len(README.splitlines()) <= 230


def test_the_environment_is_short():
    (environment,) = [text for language, text in FENCED.findall(README) if language == "python"]
    assert len(environment.splitlines()) <= 25


def test_what_is_not_run_is_in_readme():
    assert set(NOT_RUN) <= set(commands_of(README))


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((.*?)\)", README))))
def test_a_link_leads_somewhere(link):
    headings = ["#" + name.lower().replace(" ", "-") for name in sections()]
    assert link in headings or (ROOT / link).exists()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"[\w/]+\.(?:py|sh|txt|md|csv|gif|png|cff)\b", PROSE))))
def test_a_file_exists_or_is_made(name):
    assert name in MADE or (ROOT / name).exists()


@pytest.mark.parametrize("flag", sorted(set(re.findall(r"(?<=[\s`])--([a-z][a-z-]+)", PROSE))))
def test_a_flag_exists(flag):
    paths = [*ROOT.glob("*.py"), ROOT / "run_all.sh", ROOT / "tests/benchmark.py"]
    sources = "\n".join(path.read_text() for path in paths)
    argument = flag.removeprefix("no-").replace("-", "_")
    assert flag in FOREIGN_FLAGS or f"--{flag}" in sources or f"    {argument}: " in sources
