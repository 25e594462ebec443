"""What a run keeps, is told and adds up, and the pieces of drawing one site."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl._types import pytree, static
from ppl.errors import UnsupportedError, at, message
from ppl.inference.vi.alternatives import Alternatives, probabilities
from ppl.inference.vi.estimators import Reinforce
from ppl.inference.vi.relaxed import through
from ppl.primitives import Operands, Site, lanes, log_prob, presence


class Drawn(NamedTuple):
    """What a run kept of a site: its value or noise, and the parameters it was drawn from.

    `law` numbers the distributions that share an address in exclusive branches; `score` is what a
    scored draw counts with, if it stands apart.
    """

    value: Any
    law: Any
    parameters: Any = None
    alternatives: Alternatives | None = None
    probability: Any = None
    score: Score | None = None


class Score(NamedTuple):
    """What a scored draw counts with, for each of its elements.

    `rise` is zero with the derivative of the log density, `control` what its baseline takes off the
    cost, None without one, and `learned` a baseline to be learned, for each lane.
    """

    rise: Any
    control: Any = None
    learned: Any = None


@pytree
class Known:
    """What a run is told of a site.

    Where `present` (None: everywhere), `law` and `parameters` (None: whatever they are) are those
    of the site, it has the `value` of an earlier run, else a draw of its own. Where `mask` is true
    it has the value in `override`.
    """

    value: Any
    law: Any = None
    parameters: Any = None
    present: Any = None
    mask: Any = None
    override: Any = None
    listed: bool = static(default=False)

    @property
    def shared(self) -> bool:
        """Whether the value is that of the earlier run, whatever happened before the site."""
        return self.present is None and self.law is None and self.parameters is None


class Tally(NamedTuple):
    """What a run adds up for draws in loops and branches: the score, and terms of baselines.

    `score` is zero with the derivative of the log density of scored draws; `free` is the part of
    it of sites that were given no baseline. `control` is zero, with minus the derivative of the
    score times the baseline. `linear` and `square` are what learned baselines need.
    """

    score: Any
    free: Any
    control: Any
    linear: Any
    square: Any


def stopped(x: Any) -> Any:
    """Take the derivative off."""
    return jax.lax.stop_gradient(x)


def wide(flag: Any, value: Any) -> Any:
    """Give a flag the axes of a value, whose first ones it has."""
    return flag.reshape(flag.shape + (1,) * (value.ndim - flag.ndim))


def parameters(site: Site, leaves: Any) -> Any:
    """Give what a site is drawn from, for every lane."""

    def one(operands: Operands) -> Any:
        return [stopped(jnp.asarray(x)) for x in jax.tree.leaves(operands.distribution)]

    return lanes(site, one)(leaves)


def same(site: Site, leaves: Any, known: Known, law: Any) -> Any:
    """Tell, per lane, whether a site exists as it did, with the law and parameters it had."""
    same = jnp.ones(site.sizes, bool)
    if known.present is not None:
        same = same & known.present
    if known.law is not None:
        same = same & (known.law == law)
    if known.parameters is not None:
        for old, new in zip(known.parameters, parameters(site, leaves), strict=True):
            axes = tuple(range(len(site.sizes), new.ndim))
            same = same & jnp.all(old == new, axis=axes)
    return same


def probability_of(operands: Operands, value: Any) -> Any:
    """Give the probability of one lane's value."""
    assert operands.distribution is not None
    return probabilities(operands.distribution, value)


def passing(operands: Operands, value: Any) -> Any:
    """Give one lane's value with the derivative of its mean."""
    assert operands.distribution is not None
    return through(operands.distribution, value)


def scored(site: Site, leaves: Any, value: Any, estimator: Reinforce) -> Score:
    """Give what a scored draw counts with."""
    density = log_prob(site, leaves, value)
    rise = density - stopped(density)
    if estimator.baseline is None:
        return Score(rise)

    def one(operands: Operands) -> Any:
        assert isinstance(operands.grad, Reinforce)
        return jnp.asarray(operands.grad.baseline, jnp.result_type(float))

    baseline = lanes(site, one)(leaves)
    if baseline.shape != site.sizes:
        raise UnsupportedError(
            message(
                f"reinforce got a baseline of shape {baseline.shape[len(site.sizes) :]} at "
                f"{at(site.address, site.source)}",
                needs="one number",
                why="the cost is one number, whatever the shape of the draw",
                fix="ppl.vi.reinforce(baseline=jnp.mean(baseline))",
            )
        )
    of_lane = jnp.sum(rise, axis=tuple(range(len(site.sizes), rise.ndim)))
    control = -stopped(baseline) * (jnp.exp(of_lane) - 1)
    present = presence(site, leaves)
    if present is not None:
        baseline = jnp.where(present, baseline, 0.0)
    return Score(rise, control, baseline if estimator.learn else None)


def tallied(score: Score) -> Tally:
    """Add up what a scored draw counts with."""
    nothing = jnp.zeros((), jnp.result_type(float))
    rise = jnp.sum(score.rise)
    if score.control is None:
        return Tally(rise, rise, nothing, nothing, nothing)
    control, learned = jnp.sum(score.control), score.learned
    if learned is None:
        return Tally(rise, nothing, control, nothing, nothing)
    return Tally(rise, nothing, control, jnp.sum(learned), 0.5 * jnp.sum(learned**2))
