"""What many chains learn together: step size, metric, and length of trajectories.

Hundreds of chains tell of a posterior at every move what one tells in hundreds, so that what they
learn needs little averaging over moves. Chains stand on the last axis; what they learn has none.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ppl.inference import warmup
from ppl.inference.lockstep import Move, Place
from ppl.inference.warmup import Moments

#: How far a move's news change the logarithms of step size and length, while that is far off.
_STEP_PACE, _LENGTH_PACE = 1.0, 0.05
#: The parts of the warmup after which changes slow down, lengths are averaged, steps are averaged.
_EARLY, _AVERAGED, _FIXED = 0.3, 0.5, 0.85
#: The least acceptance that a chain counts with: early, when none may be left behind, and later.
_LEAST_EARLY, _LEAST = 1e-6, 1e-2
#: The most that a criterion's logarithm is thought to change with that of the length: it is
#: quadratic where trajectories are short.
_STEEPEST = 2.0
#: Lengths maximise the criterion over this power of the length, which is what a move costs. Without
#: it the length can run away where the criterion has a second, far maximum: on a hierarchy of 100
#: groups, 64 chains, one key of three had 39 steps a move in place of 3. With the first power,
#: moves are too short (0.7 of the effective draws a gradient on a rotated normal law).
_PRICE = 0.5


#: The settings that are learned.
SETTINGS = "step_size", "trajectory_length", "inverse_mass"


class Learned(NamedTuple):
    """The settings in use, the means of logarithms that they settle at, and the metric's draws."""

    step_size: Array
    trajectory_length: Array
    inverse_mass: Float[Array, " size"]
    mean_log_step: Array
    mean_log_length: Array
    old: Moments
    young: Moments

    @classmethod
    def start(
        cls, like: Float[Array, " size"], step_size: Any, trajectory_length: Any, inverse_mass: Any
    ) -> Learned:
        """Start from the settings that are given; of a length that is not, from one step."""
        step = warmup.FIRST_STEP if step_size is None else step_size
        length = step if trajectory_length is None else trajectory_length
        mass = 1.0 if inverse_mass is None else inverse_mass
        step, length, mass = (jnp.asarray(x, like.dtype) for x in (step, length, mass))
        logs, none = (jnp.log(step), jnp.log(length)), Moments.none(like)
        return cls(step, length, jnp.broadcast_to(mass, like.shape), *logs, none, none)


def learn(
    known: Learned,
    index: Any,
    num_warmup: int,
    made: Move,
    place: Place,
    num: Any,
    target: Any,
    most: Any,
    adapts: dict[str, bool],
) -> Learned:
    """Learn from a move of all chains.

    Args:
        known: what they have learned.
        index: the number of the move.
        num_warmup: length of the warmup.
        made: their trajectories.
        place: where they stand after it.
        num: the steps of the trajectories.
        target: the harmonic mean of acceptance probabilities to be reached.
        most: the most steps that a trajectory of mean length may have.
        adapts: which settings are learned, by name.

    Source: Hoffman, Radul and Sountsov (2021), section 3. Deviations: steps of stochastic
    approximation, which decrease and are averaged, in place of dual averaging and Adam, as many
    chains make little noise; the criterion is measured in the scale of the metric, and its
    logarithm is climbed, whose slope is a pure number, less a price of length; a chain that accepts
    nothing counts as one that accepts a little, lest one in a thousand sets the step size of all.
    The metric is that of `ppl.inference.warmup`, fitted to the draws of all chains.
    """
    pace = jnp.minimum(1.0, _EARLY * num_warmup / (index + 1))
    last = index + 1 == num_warmup
    step, length = known.step_size, known.trajectory_length
    if adapts["trajectory_length"]:
        time = num * step
        rise = slope(made, known.inverse_mass, time) - _PRICE
        log = jnp.log(length) + _LENGTH_PACE * pace * rise
        log = jnp.clip(log, jnp.log(step), jnp.log(step * most))
        mean = _mean(known.mean_log_length, log, index, _AVERAGED * num_warmup)
        length = jnp.exp(jnp.where(last, mean, log))
        known = known._replace(trajectory_length=length, mean_log_length=mean)
    if adapts["step_size"]:
        least = jnp.where(index < _EARLY * num_warmup, _LEAST_EARLY, _LEAST)
        rate = 1 / jnp.mean(1 / jnp.maximum(made.rate, least))
        log = jnp.log(step) + _STEP_PACE * pace * (rate - target)
        mean = _mean(known.mean_log_step, log, index, _FIXED * num_warmup)
        step = jnp.exp(jnp.where(last, mean, log))
        known = known._replace(step_size=step, mean_log_step=mean)
    if adapts["inverse_mass"]:
        here = jnp.stack([place.position, place.gradient])
        old, young, mass = warmup.refit(
            known.old, known.young, known.inverse_mass, index, num_warmup, here, made.rate > 0
        )
        if adapts["step_size"]:
            same = known.step_size * _shrunk(known.inverse_mass, mass)
            known = known._replace(step_size=jnp.where(last, known.step_size, same))
        known = known._replace(old=old, young=young, inverse_mass=mass)
    return known


def begin(known: Learned, new: Learned, log_step: Any, adapts: dict[str, bool]) -> Learned:
    """Begin to learn together: take the metric that was learned, and the steps of chains alone.

    Args:
        known: what they knew, in whose metric they moved alone.
        new: what they have learned.
        log_step: the logarithm of their step size.
        adapts: which settings are learned, by name.
    """
    step = jnp.exp(log_step) * _shrunk(known.inverse_mass, new.inverse_mass)
    made = known._replace(inverse_mass=new.inverse_mass, old=new.old, young=new.young)
    made = made._replace(step_size=step.astype(known.step_size.dtype))
    return made._replace(trajectory_length=made.step_size) if adapts["trajectory_length"] else made


def _shrunk(old: Any, new: Any) -> Any:
    """Give by which factor a step is shorter that is as long in another metric."""
    return jnp.exp(-0.5 * jnp.mean(jnp.log(new / old)))


def _mean(mean: Any, log: Any, index: Any, start: float) -> Any:
    """Average from a move on; before, follow."""
    return mean + (log - mean) / jnp.maximum(index + 1 - int(start), 1)


def slope(made: Move, inverse_mass: Float[Array, " size"], time: Any) -> Any:
    """Estimate how the criterion's logarithm changes with that of the length of trajectories.

    The criterion is the expected squared jump of squared distances from the mean, "change in the
    estimator of the expected square". Chains count by their probability of acceptance.

    Args:
        made: trajectories of chains.
        inverse_mass: in whose scale distances are measured.
        time: how long the trajectories are.
    """
    root = jnp.sqrt(inverse_mass)[:, None]
    weights = made.rate / jnp.maximum(jnp.sum(made.rate), jnp.finfo(made.rate.dtype).tiny)

    def centred(x: Any) -> Any:
        x = jnp.where(weights > 0, x, 0.0) / root
        return x - jnp.sum(weights * x, -1, keepdims=True)

    begin, end = centred(made.begin.position), centred(made.end.position)
    speed = jnp.where(weights > 0, made.velocity, 0.0) / root
    change = jnp.sum(end**2 - begin**2, 0)
    faster = 2 * jnp.sum(end * speed, 0)
    ratio = 2 * time * jnp.sum(weights * change * faster) / jnp.sum(weights * change**2)
    return jnp.where(jnp.isfinite(ratio), jnp.clip(ratio, -_STEEPEST, _STEEPEST), 0.0)
