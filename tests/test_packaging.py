"""The package is what its metadata says, imports little, and keeps to its layers."""

import ast
import importlib.metadata
import importlib.resources
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ppl

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def run(*command: str) -> str:
    """Run a command in the checkout and return its output; fail with it if the command does."""
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def name_of(requirement: str) -> str:
    """Return the distribution's name in a requirement such as `jax>=0.10.2`."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0]


def test_versions_agree():
    assert ppl.__version__ == PROJECT["version"] == importlib.metadata.version("ppl")


@pytest.mark.parametrize("name", ["check", "distributions", "kernels", "lm", "vi"])
def test_what_a_user_writes_after_ppl_is_a_module(name):
    """`import ppl.lm as lm`, `from ppl.lm import step` and `ppl.lm.step` are of one module."""
    code = f"import ppl.{name} as m, ppl; assert m is ppl.{name}; print(len(m.__all__))"
    assert int(run(sys.executable, "-c", code)) > 5


def test_extras():
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {"test", "notebook", "docs", "lm", "all"}
    (everything,) = extras["all"]
    for extra in set(extras) - {"all"}:
        assert extra in everything


def test_every_import_is_declared():
    declared = {name_of(requirement) for requirement in PROJECT["dependencies"]}
    extras = PROJECT["optional-dependencies"]
    optional = {name_of(requirement) for requirement in extras["notebook"] + extras["lm"]}
    outside = {}
    for path in sorted((ROOT / "ppl").rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        top = set(tree.body)  # imports inside functions may be of an extra
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            allowed = declared | {"ppl"} | set(sys.stdlib_module_names)
            allowed |= set() if node in top else optional
            for name in {name.split(".")[0] for name in names} - allowed:
                outside[f"{path.relative_to(ROOT)}:{node.lineno}"] = name
    assert outside == {}


def test_import_is_light():
    heavy = ["matplotlib", "arviz", "blackjax", "requests", "httpx", "ppl.inference.lm"]
    code = f"import sys, ppl; print([name for name in {heavy} if name in sys.modules])"
    assert run(sys.executable, "-c", code).strip() == "[]"


def test_import_warns_of_nothing():
    run(sys.executable, "-W", "error", "-c", "import ppl")


def test_data_is_in_the_package():
    file = importlib.resources.files("ppl") / "data" / "eight_schools.json"
    data = json.loads(file.read_text("utf-8"))
    assert data["y"] == [28, 8, -3, 7, -1, 1, 18, 12]
    assert data["sigma"] == [15, 10, 16, 11, 9, 11, 10, 18]
    assert len(data["school"]) == 8


def test_layers_are_kept():
    # The command's own entry point, without its cache: `python -m importlinter` does not exist.
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    run(sys.executable, "-c", code, "--no-cache")


def test_only_one_file_uses_jax_internals():
    run(sys.executable, str(ROOT / ".ci" / "check_jax_internals.py"))


def test_readme_gives_the_two_commands_that_ci_runs():
    readme = (ROOT / "README.md").read_text("utf-8")
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    for command in (
        "python -m pip install -e . && python -m ppl",
        'python -m pip install -e ".[test]" && python -m pytest',
    ):
        assert command in readme
        assert command in ci
