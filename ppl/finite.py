"""Finite supports: the values that one element of a distribution can take.

A distribution with a batch shape is many independent elements; what is listed here is the values of
one of them, those of all elements together where their supports differ. Which of the values an
element really has, its log density tells.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpyro.distributions import (
    BernoulliProbs,
    BinomialProbs,
    CategoricalProbs,
    Delta,
    Distribution,
    MultinomialProbs,
    constraints,
)

from ppl import _jax
from ppl.distributions import Subsample, describe, is_masked, support_of, without_mask
from ppl.errors import UnsupportedError, at, message

#: More values of one element than this are refused: such a site is better thought of as infinite.
MOST_VALUES = 100_000

_TWO, _MANY = BernoulliProbs | BinomialProbs, CategoricalProbs | MultinomialProbs
_ROUNDING = 1e-6  # probabilities that arithmetic puts this far out are still meant


def bare(d: Distribution) -> Distribution:
    """Strip what only adds axes or leaves out scores: expanding, independence, masks."""
    while type(d).__name__ in ("ExpandedDistribution", "Independent", "MaskedDistribution"):
        d = d.base_dist  # pyright: ignore[reportAttributeAccessIssue]
    return d


def apart(d: Distribution) -> Distribution:
    """Give a distribution's independent elements: batch axes that were made event axes go back."""
    while type(d).__name__ == "Independent":
        d = d.base_dist  # pyright: ignore[reportAttributeAccessIssue]
    return d


def impossible(d: Distribution, value: Any) -> Any:
    """Tell where a value has probability zero although NumPyro's log density is finite there.

    It moves probabilities of 0 and 1 of Bernoulli and binomial distributions a little inwards. None
    for all other distributions; a mask must have been taken off.
    """
    core: Any = bare(d)
    if is_masked(d) or not isinstance(core, _TWO):
        return None
    most = core.total_count if isinstance(core, BinomialProbs) else 1
    zero = ((core.probs == 0) & (value > 0)) | ((core.probs == 1) & (value < most))
    return _by_member(d, core, zero)


def invalid(d: Distribution) -> Any:
    """Tell where a distribution's probabilities are NaN or out of range; None if they cannot be."""
    d, mask = without_mask(d)
    core: Any = bare(d)
    if is_masked(d) or not isinstance(core, _TWO | _MANY):
        return None
    wrong = ~((core.probs >= -_ROUNDING) & (core.probs <= 1 + _ROUNDING))
    wrong = wrong if isinstance(core, _TWO) else jnp.any(wrong, -1)
    found = _by_member(d, core, wrong)
    return found if mask is None else found & mask


def _by_member(d: Distribution, core: Any, flags: Any) -> Any:
    """Bring flags of the elements of a bare distribution to the batch shape."""
    joint = d.event_dim - core.event_dim  # axes of independent elements that count as one
    flags = jnp.broadcast_to(flags, d.batch_shape + d.event_shape[:joint])
    return jnp.any(flags, axis=tuple(range(flags.ndim - joint, flags.ndim)))


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
    core = bare(d)
    if isinstance(core, Subsample):
        return _ordered(operation, address, source, core)
    support: Any = support_of(core)
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
        totals, cells = [int(n) for n in np.unique(np.asarray(total))], d.event_shape[-1]
        count = sum(math.comb(n + cells - 1, cells - 1) for n in totals)
        _refuse_many(operation, address, source, d, count)
        rows = [r for n in totals for r in _compositions(n, cells)]
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
    _refuse_many(operation, address, source, d, high - low + 1)
    return np.arange(low, high + 1)


def _ordered(operation: str, address: str, source: str, d: Subsample) -> np.ndarray:
    """List the ordered subsets."""
    _refuse_many(operation, address, source, d, math.perm(d.size, d.subsample_size))
    rows = list(itertools.permutations(range(d.size), d.subsample_size))
    return np.asarray(rows, int).reshape(len(rows), d.subsample_size)


def _refuse_many(operation: str, address: str, source: str, d: Distribution, count: int) -> None:
    if count > MOST_VALUES:
        raise UnsupportedError(
            message(
                f"{operation} got {describe(d)} at {at(address, source)} with {count} values",
                needs=f"at most {MOST_VALUES} values for one element",
                why="every value is a world of its own",
                fix="a coarser site, or sampling: ppl.importance(program, num_particles=1000)",
            )
        )


def _compositions(total: int, cells: int) -> list[tuple[int, ...]]:
    """List the ways to write a total as an ordered sum of as many counts as there are cells."""
    # A composition is a choice of places for the bars between the cells.
    bars = itertools.combinations(range(total + cells - 1), cells - 1)
    edges = ((-1, *b, total + cells - 1) for b in bars)
    return [tuple(hi - lo - 1 for lo, hi in itertools.pairwise(e)) for e in edges]
