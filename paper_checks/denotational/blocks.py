"""The paper's operations on populations, and SMC from them, as functions on programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import ppl
import ppl.distributions as dist


def digest(value: Any) -> Any:
    """Reduce any value to a whole number below four, so that later steps can depend on it."""
    return sum(jnp.sum(jnp.asarray(x)).astype(int) for x in jax.tree.leaves(value)) % 4


def noisy(number: Any) -> Any:
    """Draw and score in a way that depends on a number."""
    bit = ppl.sample("bit", dist.Bernoulli(0.1 + 0.2 * number))
    ppl.factor("weight", -0.3 * bit * number)
    return bit


noisy_program = ppl.model(noisy)


# --- Populations --------------------------------------------------------------------------------


def normalised(log_weights: Any) -> Any:
    """Weights of total one; equal ones where all are zero, as the mass is zero there anyway."""
    nothing = jnp.all(log_weights == -jnp.inf)
    return jax.nn.softmax(jnp.where(nothing, 0.0, log_weights))


@ppl.model
def spawn(program, n, normalised=True):
    """Run n copies of weight 1 / n."""
    runs = jax.vmap(lambda _: ppl.weighted(program)())(jnp.arange(n))
    evidence = jax.nn.logsumexp(runs.log_weight) - (jnp.log(n) if normalised else 0.0)
    return ppl.Population(runs.value, runs.log_weight, evidence, {})


def multinomial(w: Any) -> Any:
    """Draw every ancestor by weight."""
    return ppl.sample("ancestors", dist.Categorical(probs=w).expand(w.shape))


def stratified(w: Any) -> Any:
    """Draw ancestor i at a uniform point of the i-th of n equal strata.

    A stratum and a particle's interval of the cumulated weights overlap in the probability of that
    ancestor, so that the point itself need not be drawn.
    """
    n, ends = w.shape[0], jnp.cumsum(w)
    strata = jnp.arange(n)[:, None] / n
    overlap = jnp.minimum(ends, strata + 1 / n) - jnp.maximum(ends - w, strata)
    return ppl.sample("ancestors", dist.Categorical(probs=n * jnp.maximum(overlap, 0.0)))


def systematic(w: Any) -> Any:
    """Draw one point for all strata.

    The ancestors change with the point at the ends of the particles' intervals only: which piece
    it lies in is all that is drawn.
    """
    n, ends = w.shape[0], jnp.cumsum(w)
    edges = jnp.sort(jnp.concatenate([jnp.zeros(1), jnp.mod(n * ends, 1.0), jnp.ones(1)]))
    piece = ppl.sample("piece", dist.Categorical(probs=jnp.diff(edges)))
    point = (edges[piece] + edges[piece + 1]) / 2
    found = jnp.searchsorted(ends, (jnp.arange(n) + point) / n)
    return jnp.minimum(found, n - 1)


SCHEMES = (multinomial, stratified, systematic)


@ppl.model
def resample(population, scheme, drop=False):
    """Draw ancestors and make all weights equal; the evidence stays."""
    particles = population()
    with ppl.scope("resample"):
        ancestors = scheme(normalised(particles.log_weights))
    values = jax.tree.map(lambda x: x[ancestors], particles.values)
    nothing = particles.log_evidence == -jnp.inf
    evidence = jnp.where(nothing, -jnp.inf, 0.0) if drop else particles.log_evidence
    return ppl.Population(values, jnp.zeros_like(particles.log_weights), evidence, {})


@ppl.model
def push_evidence(population, stay=False):
    """Score the evidence estimate, and take it out of the population."""
    particles = population()
    ppl.factor("evidence", particles.log_evidence)
    evidence = particles.log_evidence if stay else jnp.zeros(())
    return ppl.Population(particles.values, particles.log_weights, evidence, {})


# --- Suspension ---------------------------------------------------------------------------------


@ppl.model
def _without_scores(program):
    return ppl.weighted(program)().value


def forgetful(s: ppl.Suspended) -> ppl.Suspended:
    """Run on to the next score, and lose all scores so far."""
    return s.advance().hoist_first(_without_scores)


def of_particles(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Make a step on states one on populations: each particle runs it and takes its weight."""

    @ppl.model
    def one(value):
        return step(value)

    def stepped(particles):
        size = particles.num_particles  # what is carried may hold no arrays
        weigh = jax.vmap(lambda x: ppl.weighted(one.program(x))(), axis_size=size)
        runs = weigh(particles.values)
        before = jax.nn.logsumexp(particles.log_weights)
        log_weights = particles.log_weights + runs.log_weight
        evidence = particles.log_evidence + jax.nn.logsumexp(log_weights) - before
        return ppl.Population(runs.value, log_weights, evidence, {})

    return stepped


def in_population(s: ppl.Suspended, n: int) -> ppl.Suspended:
    """Hoist (spawn n): run all that is to come in every particle."""
    steps = tuple(of_particles(step) for step in s.steps)

    def last(particles):
        values = jax.vmap(s.last, axis_size=n)(particles.values)
        return ppl.Population(values, particles.log_weights, particles.log_evidence, {})

    return ppl.Suspended(spawn(s.first, n), steps, last)


def smc(s: ppl.Suspended, n: int, scheme: Callable[[Any], Any], drop: bool = False) -> ppl.Program:
    """Compose finish . (advance . hoist resample)^k . hoist (spawn n)."""
    s = in_population(s, n)
    for k in range(len(s.steps)):
        s = s.hoist_first(lambda p, k=k: _resample_under(f"before{k}", p, scheme, drop)).advance()
    return s.finish()


@ppl.model
def _resample_under(name, population, scheme, drop):
    with ppl.scope(name):
        return resample(population, scheme, drop)
