"""What the worlds of an exact enumeration carry, and how the weights of equal worlds are joined.

Enumeration multiplies weights along a run and adds them over runs that cannot be told apart any
more. Any commutative semiring will do: sums of masses give the measure, maxima the best run, a mass
with a weighted statistic an expectation over runs, counts of runs their number.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from ppl.errors import ArgumentError, message
from ppl.semantics.worlds import grouping
from ppl.semantics.worlds.grouping import Groups

#: Weights are a tuple of arrays (or pytrees of arrays) with a leading axis of worlds; the first is
#: the log mass by which worlds of mass zero are found.
Weights = tuple[Any, ...]


class Choice(NamedTuple):
    """A site's turn: which old world each new one comes from, and the values drawn in the new."""

    address: str
    path: tuple[int, ...]
    parents: np.ndarray
    values: np.ndarray
    log_mass: np.ndarray
    coarse: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class Sum:
    """The mass of all runs, in nats."""

    def start(self) -> Weights:
        """Give the weights of the one world at the beginning."""
        return (np.zeros(1),)

    def choose(self, weights: Weights, choice: Choice) -> Weights:
        """Multiply by the mass of a choice; `weights` are those of the parents already."""
        return (weights[0] + choice.log_mass, *weights[1:])

    def score(self, weights: Weights, log_weight: np.ndarray) -> Weights:
        """Multiply by a score."""
        return (weights[0] + log_weight, *weights[1:])

    def join(self, weights: Weights, groups: Groups) -> Weights:
        """Add up the weights of each group of worlds."""
        return (grouping.total(weights[0], groups),)

    def together(self, parts: list[Weights]) -> Weights:
        """Put the worlds of several branches side by side."""
        return jax.tree.map(lambda *xs: np.concatenate(xs), *parts)

    def results(self, weights: Weights) -> dict[str, Any]:
        """Say what else a measure should hold, given the weights of its points."""
        return {}


@dataclasses.dataclass(frozen=True)
class Nested(Sum):
    """The mass of all runs under a quadrature rule and under its coarser half."""

    def start(self) -> Weights:
        return (np.zeros(1), np.zeros(1))

    def choose(self, weights: Weights, choice: Choice) -> Weights:
        coarse = choice.log_mass if choice.coarse is None else choice.coarse
        return (weights[0] + choice.log_mass, weights[1] + coarse)

    def score(self, weights: Weights, log_weight: np.ndarray) -> Weights:
        return (weights[0] + log_weight, weights[1] + log_weight)

    def join(self, weights: Weights, groups: Groups) -> Weights:
        return tuple(grouping.total(w, groups) for w in weights)

    def results(self, weights: Weights) -> dict[str, Any]:
        return {"coarse": weights[1]}


@dataclasses.dataclass(frozen=True)
class Count(Sum):
    """The number of runs of positive weight; log masses decide which have."""

    def start(self) -> Weights:
        return (np.zeros(1), np.zeros(1))

    def join(self, weights: Weights, groups: Groups) -> Weights:
        return tuple(grouping.total(w, groups) for w in weights)

    def results(self, weights: Weights) -> dict[str, Any]:
        return {"log_masses": weights[1]}


class Node(NamedTuple):
    """One choice of many worlds, and the earlier choices that each of them came by."""

    choice: Choice
    back: np.ndarray
    before: int


class Max(Sum):
    """The mass of the best run, and its choices.

    Each world points to its last choice, a row of a node; nodes are kept until the end.
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def start(self) -> Weights:
        return (np.zeros(1), np.full(1, -1), np.full(1, -1))

    def choose(self, weights: Weights, choice: Choice) -> Weights:
        log_mass, node, row = weights
        # A node for each combination of earlier nodes keeps rows of one node together.
        new_node, new_row = np.empty_like(node), np.empty_like(row)
        for before in np.unique(node):
            here = np.flatnonzero(node == before)
            part = choice._replace(values=choice.values[here])
            self.nodes.append(Node(part, row[here], int(before)))
            new_node[here], new_row[here] = len(self.nodes) - 1, np.arange(len(here))
        return (log_mass + choice.log_mass, new_node, new_row)

    def join(self, weights: Weights, groups: Groups) -> Weights:
        log_mass, node, row = weights
        order = np.lexsort((-log_mass, groups.codes))
        best = order[np.searchsorted(groups.codes[order], np.arange(groups.number))]
        return (log_mass[best], node[best], row[best])

    def history(self, weights: Weights, world: int) -> list[tuple[str, tuple[int, ...], Any]]:
        """List the choices of one world: address, indices of the loops around, value."""
        found = []
        node, row = int(weights[1][world]), int(weights[2][world])
        while node >= 0:
            choice, back, before = self.nodes[node]
            found.append((choice.address, choice.path, choice.values[row]))
            node, row = before, int(back[row])
        return found[::-1]


class Expectation(Sum):
    """The mass of all runs, and the mass-weighted sum of a statistic over their choices.

    The statistic of a run is the sum over its choices at the named addresses, in loops one for
    each iteration (Eisner 2002). So with `{"z": lambda z: z == 1}` the measure's `statistics` are
    expected counts, and with `{"z": lambda z, log_mass: -log_mass}` entropies.

    Args:
        statistics: by address, a function of the value (and, if it takes two arguments, of the log
            mass of the choice) to numbers.
    """

    def __init__(self, statistics: Mapping[str, Callable[..., Any]]):
        if not isinstance(statistics, Mapping) or not all(map(callable, statistics.values())):
            raise ArgumentError(
                message(
                    f"expectation got statistics {statistics!r}",
                    needs="a function of the value for each address",
                    fix='ppl.expectation({"z": lambda z: z == 1})',
                )
            )
        self.statistics = dict(statistics)

    def start(self) -> Weights:
        return (np.zeros(1), {})

    def _of(self, choice: Choice) -> Any:
        fun = self.statistics[choice.address]
        if _takes_mass(fun):
            rows = [fun(v, m) for v, m in zip(choice.values, choice.log_mass, strict=True)]
        else:
            rows = [fun(v) for v in choice.values]
        return np.stack([np.asarray(r, np.float64) for r in rows])

    def choose(self, weights: Weights, choice: Choice) -> Weights:
        log_mass, sums = weights
        sums = dict(sums)
        if choice.address in self.statistics:
            new = self._of(choice)
            old = sums.get(choice.address)
            sums[choice.address] = new if old is None else old + new
        return (log_mass + choice.log_mass, sums)

    def join(self, weights: Weights, groups: Groups) -> Weights:
        """Average statistics by mass: what a world carries is the mean over the runs in it."""
        log_mass, sums = weights
        joint = grouping.total(log_mass, groups)
        share = np.exp(log_mass - joint[groups.codes])

        def mean(x: np.ndarray) -> np.ndarray:
            flat = x.reshape(len(x), -1)
            columns = [np.bincount(groups.codes, share * c, groups.number) for c in flat.T]
            return np.stack(columns, axis=1).reshape(groups.number, *x.shape[1:])

        return (joint, jax.tree.map(mean, sums))

    def together(self, parts: list[Weights]) -> Weights:
        like = {a: x for _, sums in parts for a, x in sums.items()}

        def filled(sums: dict[str, Any], worlds: int) -> dict[str, Any]:
            none = {a: np.zeros((worlds, *x.shape[1:])) for a, x in like.items()}
            return {**none, **sums}

        return super().together([(m, filled(sums, len(m))) for m, sums in parts])

    def results(self, weights: Weights) -> dict[str, Any]:
        mass = np.exp(weights[0])
        scaled = jax.tree.map(lambda x: x * mass.reshape(-1, *[1] * (x.ndim - 1)), weights[1])
        nothing = {a: np.zeros(len(mass)) for a in self.statistics}  # no run came there
        return {"statistics": {**nothing, **scaled}}


def _takes_mass(fun: Callable[..., Any]) -> bool:
    """Tell whether a statistic has a second argument that must be given."""
    try:
        parameters = inspect.signature(fun).parameters.values()
    except (TypeError, ValueError):  # some functions written in C do not say
        return False
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in kinds and p.default is p.empty for p in parameters) == 2


def expectation(statistics: Mapping[str, Callable[..., Any]]) -> Expectation:
    """Make the expectation semiring of statistics of the choices, for `ppl.enumerate`.

    **Meaning.** `enumerate(p, semiring=expectation(s))` is the measure of p whose `.statistics[a]`
    holds, for each point, the sum over the runs that end there of their mass times the sum of
    `s[a](value)` over the run's choices at `a`. Divided by the total mass the sum over points is a
    posterior expectation: of counts (the E-step of EM), costs, or entropies.

    Args:
        statistics: by address, a function of one choice's value, or of the value and its log mass.
            A site in a `vmap` or plate has one value, of all lanes; it is zero in the lanes that
            did not take the site's branch.

    Source: Eisner (2002), expectation semirings.
    """
    return Expectation(statistics)


def take(weights: Weights, rows: Any) -> Weights:
    """Pick worlds."""
    return jax.tree.map(lambda x: x[rows], weights)


def semiring(kind: Any, nested: bool) -> Sum:
    """Give the semiring of a name."""
    if isinstance(kind, Sum):
        return kind
    known: dict[str, Callable[[], Sum]] = {"sum": Sum, "max": Max, "count": Count}
    if kind not in known:
        raise ArgumentError(
            message(
                f"enumerate got semiring={kind!r}",
                needs="'sum', 'max', 'count', or ppl.expectation(statistics)",
                fix="ppl.enumerate(program, semiring='max')",
            )
        )
    return Nested() if nested and kind == "sum" else known[kind]()


def as_choices(
    history: list[tuple[str, tuple[int, ...], Any]], places: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Lay a run's choices out in arrays by address.

    `places` gives, for an address, its full shape, dtype, and the axis of each loop around it.
    """
    found: dict[str, np.ndarray] = {}
    for address, path, value in history:
        shape, dtype, axes = places[address]
        array = found.setdefault(address, np.zeros(shape, dtype))
        index: list[Any] = [slice(None)] * array.ndim
        for axis, step in zip(axes, path, strict=True):
            index[axis] = step
        array[tuple(index)] = value
    return found
