"""Check that only `ppl/_jax.py` uses `jax.extend`, `jax.interpreters` and `jax._src`.

Usage: `python .ci/check_jax_internals.py [package folder]`. Reads syntax trees, imports nothing,
prints `file:line: message` for every use and exits with 1 if there is one.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

INTERNALS = ("jax._src", "jax.extend", "jax.interpreters", "jaxlib")
ALLOWED = "_jax.py"
ROOT = Path(__file__).resolve().parents[1]


def internal(name: str) -> str | None:
    """Return the internal module that a dotted name lies in, if any."""
    return next((i for i in INTERNALS if name == i or name.startswith(i + ".")), None)


def dotted(node: ast.expr, aliases: dict[str, str]) -> str | None:
    """Spell `a.b.c` as a dotted name, with the alias that `a` stands for resolved."""
    if isinstance(node, ast.Attribute):
        head = dotted(node.value, aliases)
        return head and f"{head}.{node.attr}"
    return aliases.get(node.id) if isinstance(node, ast.Name) else None


def is_dynamic_import(node: ast.Call) -> bool:
    """Tell whether a call is `import_module(...)` or `__import__(...)`, however qualified."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in {"import_module", "__import__"}


def uses(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of every use of an internal module."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                aliases[alias.asname or top] = alias.name if alias.asname else top
                if internal(alias.name):
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                aliases[alias.asname or alias.name] = name
                if internal(name):
                    yield node.lineno, name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = dotted(node, aliases)
            if name in INTERNALS:  # the innermost attribute only: one report for each use
                yield node.lineno, name
        elif isinstance(node, ast.Call) and is_dynamic_import(node):
            for argument in node.args:
                if isinstance(argument, ast.Constant) and internal(str(argument.value)):
                    yield node.lineno, str(argument.value)


def violations(package: Path) -> list[str]:
    """Return one `file:line: message` for every use outside `_jax.py`."""
    found = []
    for path in sorted(package.rglob("*.py")):
        if path == package / ALLOWED:
            continue
        for line, name in sorted(set(uses(ast.parse(path.read_text("utf-8"), str(path))))):
            found.append(
                f"{path}:{line}: uses {name}; only {package.name}/{ALLOWED} may. "
                f"Fix: give the thing a name there and import that."
            )
    return found


def main(arguments: list[str]) -> int:
    """Print the violations in the given package (default: `ppl`) and return the exit code."""
    package = Path(arguments[0]) if arguments else ROOT / "ppl"
    if not any(package.rglob("*.py")):
        print(f"{package}: no Python files here")
        return 2
    found = violations(package)
    print("\n".join(found) if found else f"{package.name}: JAX internals only in {ALLOWED}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
