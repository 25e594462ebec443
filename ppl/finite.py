"""Finite supports: the values that one element of a distribution can take.

A distribution with a batch shape is many independent elements; what is listed here is the values of
one of them, those of all elements together where their supports differ. Which of the values an
element really has, its log density tells.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpyro.distributions import Delta, Distribution, constraints

from ppl import _jax
from ppl.distributions import describe, support_of
from ppl.errors import UnsupportedError, at, message

#: More values of one element than this are refused: such a site is better thought of as infinite.
MOST_VALUES = 100_000


def bare(d: Distribution) -> Distribution:
    """Strip what only adds axes or leaves out scores: expanding, independence, masks."""
    while type(d).__name__ in ("ExpandedDistribution", "Independent", "MaskedDistribution"):
        d = d.base_dist  # pyright: ignore[reportAttributeAccessIssue]
    return d


def is_point(d: Distribution) -> bool:
    """Tell whether a distribution is a point mass, whose one value is a parameter."""
    return isinstance(bare(d), Delta)


def finite_values(d: Distribution, *, operation: str, address: str, source: str = "") -> np.ndarray:
    """List the values that an element can take, of shape (value, *event).

    Args:
        d: a distribution; parameters that bound its support must be concrete.
        operation: who asks, for the message.
        address: the site.
        source: where the site stands.

    Raises:
        UnsupportedError: the support is not finite, or depends on a traced value.
    """
    own = getattr(bare(d), "finite_values", None)
    if own is not None:
        return np.asarray(own())
    support: Any = support_of(bare(d))
    while isinstance(support, type(constraints.independent(constraints.real, 1))):
        support = support.base_constraint
    if support is constraints.boolean:
        return np.arange(2)
    if isinstance(support, type(constraints.integer_interval(0, 1))):
        low, high = support.lower_bound, support.upper_bound
        _refuse_traced(operation, address, source, d, low, high)
        return _checked(operation, address, source, d, int(np.min(low)), int(np.max(high)))
    if isinstance(support, type(constraints.multinomial(1))):
        total = support.upper_bound
        _refuse_traced(operation, address, source, d, total)
        rows = [r for n in np.unique(np.asarray(total)) for r in _compositions(int(n), d)]
        return np.asarray(rows)
    kind = "discrete" if support.is_discrete else "continuous"
    fix = (
        f'ppl.enumerate(program, quadrature={{"{address}": 64}}) integrates a continuous site '
        "numerically"
        if operation == "enumerate" and kind == "continuous"
        else "a site with finitely many values, such as dist.Categorical"
    )
    raise UnsupportedError(
        message(
            f"{operation} got {describe(d)} at {at(address, source)}, which is {kind} with support "
            f"{type(support).__name__.strip('_').lower()}",
            needs="a finite support",
            why="all values of the site are to be listed",
            fix=fix,
        )
    )


def _refuse_traced(operation: str, address: str, source: str, d: Distribution, *bounds: Any):
    if any(map(_jax.is_tracer, bounds)):
        raise UnsupportedError(
            message(
                f"{operation} got {describe(d)} at {at(address, source)}, whose support depends on "
                "a traced value",
                needs="bounds that are known when the program is traced",
                why="the number of values becomes the size of an array axis",
                fix="pass the bound as a Python number (a static argument), or ppl.enumerate",
            )
        )


def _checked(operation: str, address: str, source: str, d: Distribution, low: int, high: int):
    if high - low >= MOST_VALUES:
        raise UnsupportedError(
            message(
                f"{operation} got {describe(d)} at {at(address, source)} with {high - low + 1} "
                "values",
                needs=f"at most {MOST_VALUES} values for one element",
                why="every value is a world of its own",
                fix="a coarser site, or sampling: ppl.importance(program, num_particles=1000)",
            )
        )
    return np.arange(low, high + 1)


def _compositions(total: int, d: Distribution) -> list[tuple[int, ...]]:
    """List the ways to write a total as an ordered sum of as many counts as there are cells."""
    cells = d.event_shape[-1]
    # A composition is a choice of places for the bars between the cells.
    bars = itertools.combinations(range(total + cells - 1), cells - 1)
    edges = ((-1, *b, total + cells - 1) for b in bars)
    return [tuple(hi - lo - 1 for lo, hi in itertools.pairwise(e)) for e in edges]
