"""`report`: what particles wrote, how much each weighs, and where they part."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference.lm.judge import Judge
from ppl.inference.lm.select import text_of
from ppl.semantics.population import Population

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: How many texts are shown, how much of each, and below which share of particles is a collapse.
MOST, WIDTH, FEW = 12, 88, 0.1


@dataclasses.dataclass(frozen=True)
class Branch:
    """A piece of text that particles share, and how it goes on.

    `weight` is the share of all particles that it has, `start` the place of its first token.
    """

    text: str
    weight: float
    start: int
    stop: int
    branches: tuple[Branch, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
    """What a population of texts holds; it prints, and shows itself in a notebook.

    Attributes:
        texts: the different texts and their weights, the heaviest first.
        tree: where the texts part, from their common beginning on.
        log_evidence: in nats, with its standard error if it is known.
        ess: effective number of particles, at the end and after each step.
        notes: what looks wrong and what to try.
        spent: what was counted, by name.
    """

    texts: tuple[tuple[str, float], ...]
    tree: Branch
    num_particles: int
    log_evidence: tuple[float, float | None]
    ess: float
    steps: dict[str, np.ndarray]
    notes: tuple[str, ...]
    spent: dict[str, int]

    def __str__(self) -> str:
        return "\n".join(self._lines())

    __repr__ = __str__

    def _lines(self) -> Iterator[str]:
        value, error = self.log_evidence
        known = "" if error is None or np.isnan(error) else f" ± {error:.2g}"
        yield (
            f"log evidence {value:.4g}{known}; {self.num_particles} particles, effective "
            f"{self.ess:.3g}, {len(self.texts)} different texts"
        )
        if "ess" in self.steps:
            marks = self.steps.get("resampled", np.zeros(len(self.steps["ess"]), bool))
            shown = [
                f"{e:.3g}{'*' * bool(r)}" for e, r in zip(self.steps["ess"], marks, strict=True)
            ]
            yield f"effective by step: {' '.join(shown)}   (* resampled before it)"
        if self.spent:
            yield "spent: " + ", ".join(f"{n:,} {what}" for what, n in self.spent.items())
        yield "weight  text"
        for text, weight in self.texts[:MOST]:
            yield f"{weight:6.3f}  {_short(text, WIDTH)}"
        if len(self.texts) > MOST:
            rest = sum(w for _, w in self.texts[MOST:])
            yield f"{rest:6.3f}  in {len(self.texts) - MOST} more texts"
        yield from _drawn(self.tree)
        yield from (f"! {note}" for note in self.notes)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def plot(self) -> Figure:
        """Draw the tree of texts, its branches as thick as they are heavy, and the steps' ESS."""
        from matplotlib.figure import Figure

        rows = 2 if len(self.steps.get("ess", ())) > 1 else 1
        figure = Figure(figsize=(8, 2.2 + 2.2 * rows), layout="constrained")
        ratios = [3, 1][:rows]
        axes = figure.subplots(rows, 1, squeeze=False, height_ratios=ratios)[:, 0]
        heights: dict[int, float] = {}
        leaves = [0]

        def place(branch: Branch) -> float:
            below = [place(b) for b in branch.branches]
            if not below:
                leaves[0] += 1
                below = [float(leaves[0])]
            heights[id(branch)] = height = sum(below) / len(below)
            return height

        def draw(branch: Branch) -> None:
            height = heights[id(branch)]
            width = 0.6 + 7 * branch.weight
            axes[0].plot([branch.start, branch.stop], [height] * 2, lw=width, color="C0")
            label = _short(branch.text, 36) if branch.text else ""
            axes[0].annotate(label, (branch.start, height), xytext=(2, 4 + width / 2),
                             textcoords="offset points", fontsize=7)  # fmt: skip
            for b in branch.branches:
                ends = [height, heights[id(b)]]
                axes[0].plot([branch.stop] * 2, ends, lw=0.8, color="C0", alpha=0.6)
                draw(b)

        place(self.tree)
        draw(self.tree)
        axes[0].set(xlabel="token", yticks=[], title=f"{len(self.texts)} texts")
        axes[0].margins(y=0.15)
        if rows == 2:
            ess = self.steps["ess"]
            axes[1].plot(range(1, len(ess) + 1), ess, "o-")
            axes[1].set(xlabel="step", ylabel="effective particles", ylim=(0, None))
        return figure


@named_keywords
def report(population: Population, *, spent: Sequence[Any] | Any = ()) -> Report:
    """Show what particles wrote.

    Args:
        population: particles whose values are texts, or have a field `text`.
        spent: judges and models whose counters to show: verifier calls, tokens.

    Returns:
        A `Report`: it prints; `report.plot()` draws the tree of texts.

    Raises:
        ArgumentError: the particles hold no texts.
    """
    text = text_of(population.values)
    tokens, lengths = np.asarray(text.tokens), np.asarray(text.length)
    weights = np.asarray(population.weights, float)
    rows = [tuple(t[:n].tolist()) for t, n in zip(tokens, lengths, strict=True)]
    masses: dict[tuple[int, ...], float] = {}
    for row, weight in zip(rows, weights, strict=True):
        masses[row] = masses.get(row, 0.0) + float(weight)
    decode = text.vocabulary.decode
    shares: dict[str, float] = {}
    for row, mass in masses.items():
        shares[decode(row)] = shares.get(decode(row), 0.0) + mass
    error = population.log_evidence_se
    return Report(
        tuple(sorted(shares.items(), key=lambda item: -item[1])),
        _tree(masses, 0, decode),
        population.num_particles,
        (float(population.log_evidence), None if error is None else float(error)),
        float(population.ess),
        {k: np.asarray(x) for k, x in population.steps.items()},
        tuple(_notes(population, shares)),
        _spent(spent if isinstance(spent, (list, tuple)) else [spent]),
    )


def _spent(counters: Sequence[Any]) -> dict[str, int]:
    found: dict[str, int] = {}
    for counter in counters:
        if isinstance(counter, Judge):
            what, number = f"calls of {counter.name}", counter.calls
        elif hasattr(counter, "tokens_decoded"):
            what, number = "tokens", counter.tokens_decoded
        elif hasattr(counter, "spent"):
            what, number = "tokens", counter.spent.completion_tokens
        else:
            raise ArgumentError(
                message(
                    f"report got spent={counter!r}",
                    needs="judges, or models that count their tokens",
                    fix="ppl.lm.report(population, spent=[judge, lm])",
                )
            )
        found[what] = found.get(what, 0) + int(number)
    return found


def _tree(masses: dict[tuple[int, ...], float], start: int, decode: Any) -> Branch:
    """Find what texts share from a place on, and how they go on after that."""
    rows = list(masses)
    stop = start
    while all(len(r) > stop and r[stop] == rows[0][stop] for r in rows):
        stop += 1
    groups: dict[int | None, dict[tuple[int, ...], float]] = {}
    for row, mass in masses.items():
        groups.setdefault(row[stop] if len(row) > stop else None, {})[row] = mass
    branches = []
    if len(groups) > 1:
        branches = [
            Branch("", sum(group.values()), stop, stop, ())
            if token is None
            else _tree(group, stop, decode)
            for token, group in groups.items()
        ]
    branches.sort(key=lambda b: -b.weight)
    weight = sum(masses.values())
    return Branch(decode(rows[0][start:stop]), weight, start, stop, tuple(branches))


def _drawn(branch: Branch, indent: str = "", mark: str = "", most: int = 40) -> list[str]:
    """Write a tree in lines."""
    lines = [f"{indent}{mark}{_short(branch.text, WIDTH - len(indent) - 3)} {branch.weight:.2f}"]
    below = indent + ("" if not mark else "   " if mark == "└─ " else "│  ")
    for i, b in enumerate(branch.branches):
        last = i == len(branch.branches) - 1
        lines += _drawn(b, below, "└─ " if last else "├─ ", most)
    if not indent and not mark and len(lines) > most:
        lines = [*lines[:most], f"… {len(lines) - most} more branches"]
    return lines


def _notes(population: Population, shares: dict[str, float]) -> Iterator[str]:
    count, ess = population.num_particles, float(population.ess)
    if ess == 0:
        yield "Every particle has weight zero: no text is possible. Use more particles or a mask."
    elif count >= 8 and ess < FEW * count:
        yield (
            f"The weights have collapsed: {count} particles count as {ess:.1f}. Use a smaller "
            "sharpness, a proposal that knows the verifier, or more particles."
        )
    families = population.families
    if families is not None and count > 1 and len(set(np.asarray(families).tolist())) == 1:
        yield (
            "All particles descend from one first particle: beginnings are as good as not "
            "explored. Use a lower ess_threshold, more particles, or ppl.particle_gibbs."
        )
    if len(shares) == 1 and count > 1:
        yield "All particles wrote the same text."


def _short(text: str, width: int) -> str:
    shown = repr(text)
    return shown if len(shown) <= width else shown[: width - 2] + "…" + shown[-1]
