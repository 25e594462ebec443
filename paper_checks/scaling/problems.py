"""Running sums of five digits: prompts, an exact checker, and a noisy verifier made from it."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import norm

DIGITS, LINES, EXAMPLES = 5, 4, 6


class Problem(NamedTuple):
    """Digits to add, one after the other."""

    digits: tuple[int, ...]

    @property
    def question(self) -> str:
        """The line that the model is given."""
        return f"Numbers: {' '.join(map(str, self.digits))}\n"

    @property
    def lines(self) -> list[str]:
        """The lines that are right."""
        lines, total = [], self.digits[0]
        for digit in self.digits[1:]:
            lines.append(f"{total} + {digit} = {total + digit}\n")
            total += digit
        return lines

    @property
    def answer(self) -> str:
        """The sum."""
        return str(sum(self.digits))


def problems(number: int, seed: int) -> list[Problem]:
    """Draw problems, all different."""
    rng = random.Random(seed)
    found: dict[Problem, None] = {}
    while len(found) < number:
        found[Problem(tuple(rng.randint(1, 9) for _ in range(DIGITS)))] = None
    return list(found)


def examples() -> str:
    """Give the worked examples that every prompt begins with."""
    return "".join(p.question + "".join(p.lines) + "\n" for p in problems(EXAMPLES, seed=-1))


def parsed(text: str) -> tuple[Problem, list[str]] | None:
    """Read a text that begins with its question: the problem, and the lines so far."""
    head, _, rest = text.partition("\n")
    digits = tuple(int(d) for d in head.removeprefix("Numbers: ").split() if d.isdigit())
    if len(digits) != DIGITS:
        return None
    lines = rest.splitlines(keepends=True)
    return Problem(digits), lines


def correct(text: str) -> bool:
    """Tell whether every line so far is exactly right."""
    found = parsed(text)
    if found is None:
        return False
    problem, lines = found
    return 0 < len(lines) <= LINES and lines == problem.lines[: len(lines)]


def answered(text: str) -> str | None:
    """Give the last line's result, if there are as many lines as there should be."""
    found = parsed(text)
    if found is None or len(found[1]) < LINES:
        return None
    _, equals, result = found[1][LINES - 1].strip().partition("= ")
    return result if equals and result.isdigit() else None


def score(text: str, margin: float, noise: float) -> float:
    """Judge a text: the logistic of plus or minus `margin`, and noise that belongs to the text.

    The noise is a normal number made from a hash: the same text always has the same, in every
    method.
    """
    digest = hashlib.sha256(text.encode()).digest()
    uniform = (int.from_bytes(digest[:8], "big") + 0.5) / 2.0**64
    logit = (margin if correct(text) else -margin) + noise * float(norm.ppf(uniform))
    return 1.0 / (1.0 + math.exp(-logit))


def scores(text: str, margin: float, noise: float) -> list[float]:
    """Judge a text after each of its lines."""
    head, _, rest = text.partition("\n")
    lines = rest.splitlines(keepends=True)[:LINES]
    return [score(head + "\n" + "".join(lines[: i + 1]), margin, noise) for i in range(len(lines))]


def majority(votes: Sequence[tuple[str | None, float]]) -> str | None:
    """Give the answer of the largest total weight; of equal ones the first."""
    totals: dict[str, float] = {}
    for answer, weight in votes:
        if answer is not None:
            totals[answer] = totals.get(answer, 0.0) + weight
    return max(totals, key=lambda a: totals[a]) if totals else None
