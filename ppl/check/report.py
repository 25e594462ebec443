"""`Report`: what a check found, on which evidence, and where to look if it failed."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Sequence
from typing import Any, Literal

from ppl.errors import PPLError, ResultError, message
from ppl.results.html import bullets, details, table, text_table

Verdict = Literal["passed", "failed", "undecided"]


class CheckFailed(PPLError, AssertionError):  # noqa: N818  (reads better in a traceback)
    """A check failed, or could not decide; the text is its report."""


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """The outcome of a check; true only if the check passed.

    **Meaning.** "failed" has probability at most `false_alarm` where the property holds (none for
    an exact check, whose `false_alarm` is 0). "passed" tells that no difference of the size of
    `threshold` was seen. "undecided" tells that the budget ended first: it never passes.

    Attributes:
        check: the name of the check.
        verdict: "passed", "failed" or "undecided".
        statistic: what was compared with the threshold.
        statistic_name: its name in words.
        threshold: where the verdict turns, if there is one number for that.
        false_alarm: the probability of "failed" where the property holds.
        budget: what was spent: worlds, draws, stages, seconds.
        witness: the program in question, to read: its source or its table of sites.
        columns: the headers of `differences`.
        differences: a table, one row for each state or test function, the worst first.
        notes: what differs and what to try, in words.
    """

    check: str
    verdict: Verdict
    statistic: float
    statistic_name: str
    threshold: float | None = None
    false_alarm: float = 0.0
    budget: dict[str, Any] = dataclasses.field(default_factory=dict)
    witness: str = ""
    columns: Sequence[str] = ()
    differences: Sequence[Sequence[str]] = ()
    notes: tuple[str, ...] = ()
    draw_plot: Callable[[Any], None] | None = dataclasses.field(
        default=None, repr=False, compare=False
    )

    @property
    def passed(self) -> bool:
        """Whether the check passed; an undecided one did not."""
        return self.verdict == "passed"

    def __bool__(self) -> bool:
        return self.passed

    def require(self) -> Report:
        """Raise unless the check passed; the report is the message.

        Returns:
            The report itself.

        Raises:
            CheckFailed: the verdict is "failed" or "undecided".
        """
        if not self.passed:
            raise CheckFailed(str(self))
        return self

    def plot(self, ax: Any = None) -> Any:
        """Draw what the check looked at, if it has a picture.

        Args:
            ax: a matplotlib axis; a new one by default.

        Returns:
            The axis.

        Raises:
            ResultError: this check has only a table.
        """
        if self.draw_plot is None:
            raise ResultError(
                message(
                    f"plot got the report of {self.check}",
                    needs="a check that draws a picture: sbc or tarp",
                    why="this one compares numbers",
                    fix="print(report)",
                )
            )
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.subplots(figsize=(5, 3.4), layout="constrained")[1]
        self.draw_plot(ax)
        return ax

    def __repr__(self) -> str:
        blocks = [f"{self.check}: {self.verdict}", _indent(text_table(*self._facts(), align="ll"))]
        blocks += [_indent(f"- {note}") for note in self.notes]
        if self.differences:
            blocks += ["", _indent(text_table(self.columns, self.differences))]
        if self.witness:
            blocks += ["", _indent(self.witness)]
        return "\n".join(blocks)

    def _facts(self) -> tuple[list[str], list[list[str]]]:
        statistic = [self.statistic_name, number(self.statistic)]
        rows = [] if self.threshold is None else [["threshold", number(self.threshold)]]
        alarm = f"at most {number(self.false_alarm)}" if self.false_alarm else "none (exact)"
        rows += [["false alarm", alarm], *([k, number(v)] for k, v in self.budget.items())]
        return statistic, rows

    def _repr_html_(self) -> str:
        headers, rows = self._facts()
        body = table(headers, rows, caption=f"{self.check}: {self.verdict}", align="ll")
        body += bullets(self.notes) if self.notes else ""
        if self.differences:
            differences = table(self.columns, self.differences)
            body += details("differences", differences, open=not self.passed)
        if self.witness:
            body += details("program", f"<pre>{html.escape(self.witness)}</pre>")
        return body


def number(value: Any) -> str:
    """Write a number for a reader: integers in full, others to four digits, words as they are."""
    if isinstance(value, float):
        return f"{int(value):,}" if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _indent(text: str) -> str:
    return "\n".join(f"  {line}".rstrip() for line in text.split("\n"))
