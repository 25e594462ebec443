"""Check docstrings, README code and links.

Usage: `python .ci/check_docs.py [docstrings] [links] [code]` (default: all three).

docstrings  everything public that `ppl` exports has one; its first line ends with a period and,
            for functions, commands ("Return ...", not "Returns ..."); where a function takes
            arguments it says what they mean (**Meaning**, or Args, Returns or Raises).
links       every relative link in a Markdown file leads to a file, and to a heading in it.
code        the README's ```python blocks run, in order, in one namespace.

Prints `file:line: message` for every failure and exits with 1 if there is one.
"""

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NOT_COMMANDS = {"a", "an", "the", "this", "these", "it"}
SECTION = re.compile(r"\*\*Meaning\.?:?\*\*|^\s*(Args|Returns|Yields|Raises):", re.MULTILINE)


# --- docstrings -------------------------------------------------------------------------------


def exported(module: ModuleType, package: str) -> Iterator[tuple[str, Any]]:
    """Yield dotted name and object for everything that a module's `__all__` makes public.

    Modules in `__all__` are entered; what comes from another package is left out.
    """
    pending, seen = [module], {module.__name__}
    while pending:
        current = pending.pop()
        for name in sorted(getattr(current, "__all__", ())):
            if not hasattr(current, name):
                raise AttributeError(f"{current.__name__}.__all__ names {name!r}: no such thing")
            thing = getattr(current, name)
            if inspect.ismodule(thing):
                inside = thing.__name__.split(".")[0] == package
                if inside and thing.__name__ not in seen:
                    seen.add(thing.__name__)
                    pending.append(thing)
            elif str(getattr(thing, "__module__", "")).split(".")[0] == package:
                yield f"{current.__name__}.{name}", thing


def function_of(member: Any) -> Callable[..., Any] | None:
    """Return the function in a method, property or wrapper; None if there is no function."""
    if isinstance(member, staticmethod | classmethod):
        member = member.__func__
    elif isinstance(member, property):
        member = member.fget
    member = inspect.unwrap(member) if callable(member) else member
    return member if inspect.isfunction(member) else None


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield name and definition of the public functions and properties a class itself defines."""
    for name, member in vars(cls).items():
        function = function_of(member)
        # What a NamedTuple, dataclass or Enum generates has no place in a file of ours.
        if not name.startswith("_") and function and function.__module__ == cls.__module__:
            yield name, member


def documented(module: ModuleType) -> list[tuple[str, Any]]:
    """Return dotted name and object of all that needs a docstring, methods included, by name."""
    found: dict[str, Any] = {module.__name__: module}
    for name, thing in exported(module, module.__name__):
        if not inspect.isclass(thing) and function_of(thing) is None:
            continue
        found[name] = thing
        if inspect.isclass(thing):
            found |= {f"{name}.{member}": value for member, value in members(thing)}
    return sorted(found.items())


def place(thing: Any) -> str:
    """Return the `file:line` where an object is defined."""
    source = thing if inspect.isclass(thing) or inspect.ismodule(thing) else function_of(thing)
    try:
        path = Path(inspect.getsourcefile(source) or "?").resolve()
        line = 1 if inspect.ismodule(thing) else inspect.getsourcelines(source)[1]
    except (OSError, TypeError):
        return "?:1"
    return f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{line}"


def takes_arguments(function: Callable[..., Any]) -> bool:
    """Tell whether a function has parameters besides `self` and `cls`."""
    return any(name not in {"self", "cls"} for name in inspect.signature(function).parameters)


def docstring_faults(name: str, thing: Any) -> list[str]:
    """Return what is wrong with the docstring of one object."""
    function = None if inspect.isclass(thing) or inspect.ismodule(thing) else function_of(thing)
    text = (function or thing).__doc__
    # A dataclass or NamedTuple without a docstring generates one, which says nothing.
    if inspect.isclass(thing) and (text or "").startswith(f"{thing.__name__}("):
        text = None
    if not (text or "").strip():
        return [f"{name} has no docstring"]
    text = inspect.cleandoc(text or "")
    first = text.splitlines()[0].strip()
    faults = []
    if not first.endswith("."):
        faults.append(f"{name}: the first line {first!r} does not end with a period")
    if function and not isinstance(thing, property):
        word = re.split(r"\W", first, maxsplit=1)[0]
        third_person = word.endswith("s") and not word.endswith(("ss", "us", "is"))
        if word.lower() in NOT_COMMANDS or third_person:
            faults.append(f'{name}: the first line {first!r} is no command ("Return ...")')
        if takes_arguments(function) and not SECTION.search(text):
            faults.append(
                f"{name} takes arguments; needs **Meaning** or one of Args, Returns, Raises"
            )
    return faults


def check_docstrings(package: str = "ppl") -> list[str]:
    """Return the faults of every docstring that the package's facade makes public."""
    module = importlib.import_module(package)
    if not getattr(module, "__all__", None):
        return [f"{place(module)}: {package} has no __all__"]
    return [
        f"{place(thing)}: {fault}"
        for name, thing in documented(module)
        for fault in docstring_faults(name, thing)
    ]


# --- Markdown ---------------------------------------------------------------------------------


def markdown_files(root: Path = ROOT) -> list[Path]:
    """Return the Markdown files under a folder that version control does not ignore."""
    listing = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "*.md"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode == 0:
        paths = [root / line for line in listing.stdout.splitlines()]
    else:
        paths = list(root.rglob("*.md"))
    return sorted(path for path in paths if path.is_file())


def without_code(text: str) -> str:
    """Blank out fenced blocks and inline code, line numbers kept."""
    text = re.sub(
        r"^(`{3,}|~{3,}).*?^\1\s*?$",
        lambda m: "\n" * m[0].count("\n"),
        text,
        flags=re.MULTILINE | re.DOTALL,
    )
    return re.sub(r"`[^`\n]*`", "", text)


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a Markdown file."""
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#{1,6}\s+(.*?)\s*#*$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def link_faults(path: Path) -> list[str]:
    """Return the relative links of one Markdown file that lead nowhere."""
    faults = []
    link = re.compile(r"\]\(<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s+(\S+)|(?:src|href)=\"([^\"]+)\"")
    for number, line in enumerate(without_code(path.read_text("utf-8")).splitlines(), 1):
        for match in link.finditer(line):
            target = next(group for group in match.groups() if group)
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            file, _, anchor = target.partition("#")
            goal = (path.parent / file) if file else path
            where = f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{number}"
            if not goal.exists():
                faults.append(f"{where}: link to {target!r}: no such file")
            elif anchor and goal.suffix == ".md" and anchor not in anchors(goal):
                faults.append(f"{where}: link to {target!r}: no such heading")
    return faults


def check_links() -> list[str]:
    """Return the broken relative links of every Markdown file."""
    return [fault for path in markdown_files() for fault in link_faults(path)]


def python_blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yield first line number and code of every block fenced as ```python."""
    for match in re.finditer(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        yield text[: match.start(1)].count("\n") + 1, match[1]


def check_code(path: Path = ROOT / "README.md") -> list[str]:
    """Run a file's Python blocks in one namespace and return the first failure."""
    os.environ["MPLBACKEND"] = "Agg"
    namespace: dict[str, Any] = {"__name__": "__readme__"}
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for start, code in python_blocks(path.read_text("utf-8")):
            try:
                # As many lines before it as in the file, so that tracebacks name the right one.
                tree = ast.parse("\n" * (start - 1) + code, str(path))
                exec(compile(tree, str(path), "exec"), namespace)
            except Exception as error:
                frames = traceback.extract_tb(error.__traceback__)
                lines = [frame.lineno for frame in frames if frame.filename == str(path)]
                line = error.lineno if isinstance(error, SyntaxError) else (lines or [start])[-1]
                message = "".join(traceback.format_exception_only(error)).strip()
                return [f"{path.name}:{line}: {message}"]
    return []


CHECKS = {"docstrings": check_docstrings, "links": check_links, "code": check_code}


def main(arguments: list[str]) -> int:
    """Run the named checks (default: all), print the faults and return the exit code."""
    if unknown := set(arguments) - set(CHECKS):
        print(f"unknown checks {sorted(unknown)}; known: {', '.join(CHECKS)}")
        return 2
    faults = [fault for name in arguments or CHECKS for fault in CHECKS[name]()]
    print("\n".join(faults) if faults else f"docs: {', '.join(arguments or CHECKS)} fine")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
