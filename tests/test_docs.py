"""The documentation says what is there: docstrings, links, README code, and the checks of these."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

import ppl

ROOT = Path(__file__).resolve().parents[1]


def load(name: str) -> ModuleType:
    """Import one of the scripts in `.ci`, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_docs = load("check_docs")
PUBLIC = check_docs.documented(ppl)


@pytest.mark.parametrize(("name", "thing"), PUBLIC, ids=[name for name, _ in PUBLIC])
def test_docstring(name, thing):
    assert check_docs.docstring_faults(name, thing) == [], check_docs.place(thing)


def test_the_language_is_among_what_is_checked():
    names = {name for name, _ in PUBLIC}
    assert {"ppl.sample", "ppl.model", "ppl.run", "ppl.trace", "ppl.log_density"} <= names
    assert any(name.count(".") >= 2 for name in names)  # methods too


@pytest.mark.parametrize("path", check_docs.markdown_files(), ids=lambda path: path.name)
def test_links(path):
    assert check_docs.link_faults(path) == []


def test_readme_code_runs():
    assert list(check_docs.python_blocks((ROOT / "README.md").read_text("utf-8")))
    assert check_docs.check_code() == []


# --- the checks can fail ----------------------------------------------------------------------

FAULTY = '''
"""A package with one good function and every kind of fault."""
import typing

__all__ = ["Bare", "Pair", "aside", "fine", "silent", "terse", "third"]

def fine(x):
    """Return x.

    Args:
        x: anything.
    """

def silent(x): ...

def terse(x):
    """Return x."""

def third(x):
    """Returns x

    **Meaning** the same.
    """

def aside():
    """Return nothing, of nothing."""

class Bare:
    """A class."""

    def method(self): ...

class Pair(typing.NamedTuple):
    x: int
'''


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    """Import a small package whose docstrings are wrong in known ways."""
    (tmp_path / "faulty_docs.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    yield "faulty_docs"
    sys.modules.pop("faulty_docs", None)


def test_docstring_check_finds_each_fault(faulty):
    found = check_docs.check_docstrings(faulty)
    expected = [
        ("Bare.method", "no docstring"),
        ("Pair", "no docstring"),
        ("silent", "no docstring"),
        ("terse", "takes arguments"),
        ("third", "period"),
        ("third", "no command"),
    ]
    assert len(found) == len(expected), found
    for fault, (name, reason) in zip(found, expected, strict=True):
        assert f"faulty_docs.{name}" in fault
        assert reason in fault
        assert "faulty_docs.py:" in fault


def test_link_check_finds_file_and_heading(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading\n[good](page.md#a-heading) `[code](no.md)` [out](https://example.org)\n"
        "```\n[code](no.md)\n```\n![image](gone.png)\n[bad](#another)\n"
    )
    faults = check_docs.link_faults(page)
    assert [fault.rpartition("page.md:")[2].split(":")[0] for fault in faults] == ["6", "7"]


def test_code_check_names_the_line(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# Title\n```python\nx = 1\n```\n\n```python\nassert x == 1\nassert x == 2\n```\n"
    )
    assert check_docs.check_code(page) == ["page.md:8: AssertionError"]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("import jax.extend", "jax.extend"),
        ("import jax._src.core as c", "jax._src.core"),
        ("from jax import extend", "jax.extend"),
        ("from jax.interpreters import mlir", "jax.interpreters.mlir"),
        ("import jax as j; j.extend.core", "jax.extend"),
        ("import jax; jax.interpreters.ad.x", "jax.interpreters"),
        ("import jaxlib", "jaxlib"),
        ("import importlib; importlib.import_module('jax._src.core')", "jax._src.core"),
    ],
)
def test_jax_internals_are_found(tmp_path, line, name):
    check = load("check_jax_internals")
    (tmp_path / "_jax.py").write_text(line)
    (tmp_path / "fine.py").write_text("import jax; jax.numpy.extend\nfrom jax import lax\nx.extend")
    assert check.violations(tmp_path) == []
    (tmp_path / "bad.py").write_text(f"\n{line}\n")
    (found,) = check.violations(tmp_path)
    assert f"bad.py:2: uses {name};" in found
