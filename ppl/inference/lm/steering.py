"""`steer`: particles that are continued several times, and thinned without replacement."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ppl.counts import count
from ppl.errors import named_keywords
from ppl.inference.lm.frontier import Frontier, log_sum, require_task, take
from ppl.inference.lm.reasoning import Reasoning, increment
from ppl.program import Program
from ppl.resampling import SystematicResampling
from ppl.semantics.population import Population
from ppl.staging import stage
from ppl.statements import sample

_LARGE = 50.0  # nats; a weight that many times another's is certain if that may be


@named_keywords
def steer(task: Reasoning, num_particles: int, expand: int) -> Program:
    """Continue every particle several times, and thin them out again without replacement.

    **Meaning.** A population for the measure of `task.program`: evidence and weighted sums are
    unbiased for any numbers, and normalised weights make estimates consistent. After each step, of
    the num_particles * expand continuations all those of large weight are kept as they are; of the
    others some are, and count for the rest (`keep`). No continuation is kept twice, so that
    particles differ as much as what was drawn does.

    Args:
        task: what is sampled.
        num_particles: how many are kept.
        expand: how often each is continued.

    Returns:
        A program of a `Population`. Weights add up to the evidence. Its `steps` has "ess" and
        "log_evidence" after each step, before particles are thinned.

    Raises:
        ArgumentError: a number is not a positive integer, or there is no task.

    Source: Lew et al. (2023), SMC steering, here with sampled continuations; Fearnhead and Clifford
        (2003), section 3.1, which of them to keep.
    """
    number = count("steer", "num_particles", num_particles)
    times = count("steer", "expand", expand)
    return stage(_steer, (require_task("steer", task), number, times), name="steer")


def _steer(task: Reasoning, num_particles: int, expand: int) -> Population:
    frontier = Frontier(task)

    def one(carry: Any, _: Any) -> Any:
        lanes, log_weights = carry
        lanes = jax.tree.map(lambda x: jnp.repeat(x, expand, axis=0), lanes)
        moved = jax.vmap(frontier.advance)(lanes)
        change = increment(lanes.log_weight, moved.log_weight)
        log_weights = jnp.repeat(log_weights, expand) - math.log(expand) + change
        known = {"ess": _ess(log_weights), "log_evidence": log_sum(log_weights)}
        kept, log_weights = keep(log_weights, num_particles)
        return (take(moved, kept), log_weights), known

    start = frontier.begin(num_particles)
    log_weights = jnp.full(num_particles, -math.log(num_particles), start.total.dtype)
    carry, steps = jax.lax.scan(one, (start, log_weights), None, length=task.num_steps)
    return frontier.population(*carry, steps=steps)


def _ess(log_weights: Any) -> Any:
    twice, squares = 2 * log_sum(log_weights), log_sum(2 * log_weights)
    dead = squares == -jnp.inf
    return jnp.where(dead, 0.0, jnp.exp(twice - jnp.where(dead, 0.0, squares)))


def keep(
    log_weights: Float[Array, " particle"], num: int, address: str = "kept"
) -> tuple[Int[Array, " kept"], Float[Array, " kept"]]:
    """Draw which particles to keep, none of them twice, and give them their new weights.

    **Meaning.** Particle i is kept with probability p_i (`inclusion`) and then has weight w_i /
    p_i, so that all weighted sums stay what they are on average. Of all ways to keep `num` with
    that, it changes the weights least, by the expected sum of squares.

    Args:
        log_weights: of the particles; NaN among them makes all new ones NaN.
        num: how many to keep, at most as many as there are.
        address: where the choice is drawn.

    Source: Fearnhead and Clifford (2003), section 3.1.
    """
    log_chance = inclusion(log_weights, num)
    # The chances add up to `num` and none is above one: systematic resampling hits none twice.
    kept = sample(address, SystematicResampling(log_chance, num))
    return kept, (log_weights - log_chance)[kept]


def inclusion(log_weights: Float[Array, " particle"], num: int) -> Float[Array, " particle"]:
    """Give the log probability with which each particle is kept: p_i = min(1, w_i / c).

    **Meaning.** c is such that they add up to `num`. If fewer than `num` weights are positive,
    those particles are certain, and of the others the first, which keep their weight of zero.

    Args:
        log_weights: of the particles.
        num: how many are kept.
    """
    order = jnp.argsort(-log_weights, stable=True)
    # Relative to the least that could be certain; what is far above it is, however far.
    base = log_weights[order[num - 1]]
    few = base == -jnp.inf
    relative = jnp.where(few & (log_weights > -jnp.inf), 0.0, log_weights - jnp.where(few, 0, base))
    weights = jnp.exp(jnp.minimum(relative, _LARGE))
    falling = weights[order]
    rest = jnp.cumsum(falling[::-1])[::-1]  # of a particle and all smaller ones
    # The first k are certain, for the least k at which the next one's w / c is at most one.
    certain = jnp.arange(num)
    fits = falling[:num] * (num - certain) <= rest[:num]
    k = jnp.argmax(fits)
    c = rest[k] / (num - k)
    place = jnp.zeros(weights.shape, int).at[order].set(jnp.arange(weights.size))
    sure = place < jnp.where(few, num, k)
    chance = jnp.minimum(weights / jnp.where(few, 1.0, c), 1.0)
    chance = jnp.where(sure, 1.0, jnp.where(few, 0.0, chance))
    never = chance <= 0  # a NaN stays one
    return jnp.where(never, -jnp.inf, jnp.log(jnp.where(never, 1.0, chance)))
