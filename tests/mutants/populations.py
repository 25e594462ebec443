"""Populations: spawning, resampling, sequential Monte Carlo, tempering, and vmapped draws."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import ppl
import ppl.distributions as dist
from ppl.semantics.suspension import suspend
from ppl.staging import stage


def _log_mean(log_weights: Any) -> Any:
    return jax.nn.logsumexp(log_weights) - jnp.log(log_weights.shape[0])


def _logits(log_weights: Any) -> Any:
    """Logits to resample by; any will do if every weight is zero, as the evidence then is."""
    return jnp.where(jnp.all(log_weights == -jnp.inf), 0.0, log_weights)


# --- Spawning -----------------------------------------------------------------------------------


@ppl.model
def _spawned(program, count, normalised):
    run = jax.vmap(lambda _: ppl.weighted(program)())(jnp.arange(count))
    evidence = jax.nn.logsumexp(run.log_weight) - normalised * jnp.log(count)
    return ppl.Population(run.value, run.log_weight, evidence, {})


def spawn(program, count=2):
    """Several runs, each of weight 1 / count times its own."""
    return _spawned(program, count, True)


def unnormalised_spawn(program, count=2):
    """monad-bayes' spawn of its time: every copy has weight 1."""
    return _spawned(program, count, False)


# --- Sequential Monte Carlo ---------------------------------------------------------------------


@ppl.model
def _smc(pieces, count, keep_evidence):
    """Run each piece for every particle; resample between pieces (multinomial)."""
    first, *rest = pieces
    run = jax.vmap(lambda _: ppl.weighted(first)())(jnp.arange(count))
    values, weights, evidence = run.value, run.log_weight, jnp.zeros(())
    for t, piece in enumerate(rest):
        evidence = evidence + _log_mean(weights)
        with ppl.scope(f"resample{t}"), ppl.plate("particle", count):
            ancestors = ppl.sample("ancestor", dist.Categorical(logits=_logits(weights)))
        values = jax.tree.map(lambda x, a=ancestors: x[a], values)
        step = lambda _, x, p=piece: ppl.weighted(stage(p, (x,)))()  # noqa: E731
        run = jax.vmap(step)(jnp.arange(count), values)
        values, weights = run.value, run.log_weight
    kept = evidence if keep_evidence else 0.0
    return ppl.Population(values, weights, kept + _log_mean(weights), {})


def smc(program, count=2):
    """Bootstrap particle filter over a program's pieces between scores."""
    s = suspend(program)
    return _smc((s.first, *s.steps, s.last), count, True)


def smc_without_evidence(program, count=2):
    """Resampling sets the weights to 1 / count and forgets their sum."""
    s = suspend(program)
    return _smc((s.first, *s.steps, s.last), count, False)


# --- Tempering ----------------------------------------------------------------------------------


@ppl.model
def _tempered(program, count, power, corrected):
    run = jax.vmap(lambda _: ppl.weighted(program)())(jnp.arange(count))
    weights = run.log_weight
    # A zero weight stays zero, whatever the power.
    flat = jnp.where(weights == -jnp.inf, -jnp.inf, power * weights)
    with ppl.scope("resample"), ppl.plate("particle", count):
        ancestors = ppl.sample("ancestor", dist.Categorical(logits=_logits(flat)))
    values = jax.tree.map(lambda x: x[ancestors], run.value)
    if not corrected:
        return ppl.Population(values, jnp.zeros(count), _log_mean(weights), {})
    ratio = jnp.where(flat == -jnp.inf, -jnp.inf, weights - flat)[ancestors]
    return ppl.Population(values, ratio, _log_mean(flat) + _log_mean(ratio), {})


def tempered(program, count=2, power=0.5):
    """Resample by weights to a power; what the power left out stays as weight."""
    return _tempered(program, count, power, True)


def tempered_without_correction(program, count=2, power=0.5):
    """Resample by a tempered softmax, and call the outcome equally weighted."""
    return _tempered(program, count, power, False)


# --- vmap ---------------------------------------------------------------------------------------


def two_lanes(program):
    """The program twice under `jax.vmap`, each lane drawing for itself."""
    return stage(_two_lanes, (program,), name="two lanes")


def _two_lanes(program):
    return jax.vmap(lambda _: program())(jnp.arange(2))


def two_lanes_with_one_draw(program):
    """Both lanes see one draw; each of them scores."""
    return stage(_two_lanes_with_one_draw, (program,), name="two lanes")


def _two_lanes_with_one_draw(program):
    run = ppl.weighted(program)()
    ppl.factor("scores", 2 * run.log_weight)
    return jax.tree.map(lambda x: jnp.stack([x, x]), run.value)


@ppl.model
def in_sequence(program):
    """The program twice, one run after the other: what two lanes should mean."""
    with ppl.scope("one"):
        one = program()
    with ppl.scope("two"):
        two = program()
    return jax.tree.map(lambda x, y: jnp.stack([x, y]), one, two)
