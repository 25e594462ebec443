"""What the objectives compute, as functions that are staged, and the programs of them.

The functions are module level: equal calls are staged and compiled once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ppl._types import Scalar
from ppl.errors import ArgumentError, message
from ppl.program import Program
from ppl.semantics.density import log_density
from ppl.semantics.guided import guided
from ppl.semantics.population import Population
from ppl.semantics.run import refuse_scores
from ppl.semantics.weighted import traced, weighted
from ppl.staging import stage
from ppl.statements import scope

#: f, with f(1) = 0 and convex: D_f(p || q) = E_q[f(p / q)], as functions of log(p / q).
DIVERGENCES: dict[str, Callable[[Any], Any]] = {
    "reverse_kl": lambda r: -r,
    "forward_kl": lambda r: jnp.exp(r) * jnp.where(r == -jnp.inf, 0.0, r),
    "jensen_shannon": lambda r: (
        0.5 * (jnp.exp(r) * (_finite(r) - _log_mean_one(r)) - _log_mean_one(r))
    ),
    "total_variation": lambda r: 0.5 * jnp.abs(jnp.expm1(r)),
    "chi_square": lambda r: jnp.expm1(r) ** 2,
}


def _log_weight(program: Program, guide: Program) -> Scalar:
    return weighted(guided(program, guide, operation="vi"))().log_weight


def _log_weights(program: Program, guide: Program, number: int) -> Any:
    return jax.vmap(lambda _: _log_weight(program, guide))(jnp.arange(number))


def _log_mean_exp(log_weights: Any, axis: int = -1) -> Any:
    none = jnp.all(log_weights == -jnp.inf, axis, keepdims=True)  # its derivative would be NaN
    total = jax.nn.logsumexp(jnp.where(none, 0.0, log_weights), axis)
    total = jnp.where(jnp.squeeze(none, axis), -jnp.inf, total)
    return total - math.log(log_weights.shape[axis])


def _staged(fun: Callable[..., Any], name: str, *args: Any) -> Program:
    programs = [x.name for x in args if isinstance(x, Program)]
    return stage(fun, args, name=f"{name}({', '.join(programs)})")


def _elbo_value(program: Program, guide: Program) -> Scalar:
    pair = guided(program, guide, operation="elbo", subsampled=True)
    return weighted(pair)().log_weight


def elbo_program(program: Program, guide: Program) -> Program:
    """Give the program of the ELBO; see `ppl.vi.elbo`."""
    return _staged(_elbo_value, "elbo", program, guide)


def _iwelbo_value(program: Program, guide: Program, number: int) -> Scalar:
    return _log_mean_exp(_log_weights(program, guide, number))


def iwelbo_program(program: Program, guide: Program, num_particles: int) -> Program:
    """Give the program of the importance-weighted bound; see `ppl.vi.iwelbo`."""
    return _staged(_iwelbo_value, "iwelbo", program, guide, num_particles)


def _miwae_value(program: Program, guide: Program, number: int, bounds: int) -> Scalar:
    log_weights = _log_weights(program, guide, number * bounds)
    return jnp.mean(_log_mean_exp(log_weights.reshape(bounds, number)))


def miwae_program(program: Program, guide: Program, num_particles: int, num_bounds: int) -> Program:
    """Give the program of the average of importance-weighted bounds; see `ppl.vi.miwae`."""
    return _staged(_miwae_value, "miwae", program, guide, num_particles, num_bounds)


def _ciwae_value(program: Program, guide: Program, number: int, beta: float) -> Scalar:
    log_weights = _log_weights(program, guide, number)
    return beta * jnp.mean(log_weights) + (1 - beta) * _log_mean_exp(log_weights)


def ciwae_program(program: Program, guide: Program, num_particles: int, beta: float) -> Program:
    """Give the program of the mixture of two bounds; see `ppl.vi.ciwae`."""
    return _staged(_ciwae_value, "ciwae", program, guide, num_particles, beta)


def _piwae_value(program: Program, guide: Program, number: int, bounds: int) -> Scalar:
    with scope("guide"):
        loose = _log_weights(_frozen(program), guide, number * bounds)
    average = jnp.mean(_log_mean_exp(loose.reshape(bounds, number)))
    with scope("model"):
        tight = _log_mean_exp(_log_weights(program, _frozen(guide), number * bounds))
    # A score function takes the cost as it is: here that of the guide's draws.
    return average + tight - jax.lax.stop_gradient(tight)


def piwae_program(program: Program, guide: Program, num_particles: int, num_bounds: int) -> Program:
    """Give the program of the two bounds in one; see `ppl.vi.piwae`."""
    return _staged(_piwae_value, "piwae", program, guide, num_particles, num_bounds)


def _renyi_value(program: Program, guide: Program, alpha: float, number: int) -> Scalar:
    log_weights = _log_weights(program, guide, number)
    if alpha == 1:
        return jnp.mean(log_weights)
    return _log_mean_exp((1 - alpha) * log_weights) / (1 - alpha)


def renyi_program(program: Program, guide: Program, alpha: float, num_particles: int) -> Program:
    """Give the program of the Renyi bound; see `ppl.vi.renyi`."""
    return _staged(_renyi_value, "renyi", program, guide, alpha, num_particles)


def _particles(program: Program, guide: Program, number: int) -> Any:
    """Draw weighted choices without a derivative."""

    def one(_: Any) -> Any:
        trace = traced(guided(_frozen(program), _frozen(guide), operation="vi"))()
        return {a: trace.choices[a] for a in guide.latents}, trace.log_weight

    choices, log_weights = jax.vmap(one)(jnp.arange(number))
    return jax.lax.stop_gradient((choices, jax.nn.softmax(log_weights)))


def _forward_kl_value(program: Program, guide: Program, number: int) -> Scalar:
    choices, weights = _particles(program, guide, number)
    return -jnp.sum(weights * jax.vmap(lambda c: log_density(guide, c))(choices))


def forward_kl_program(program: Program, guide: Program, num_particles: int) -> Program:
    """Give the program of the wake-phase cost; see `ppl.vi.forward_kl`."""
    _require_all("forward_kl", program, guide)

    return _staged(_forward_kl_value, "forward_kl", program, guide, num_particles)


def _wake_sleep_value(program: Program, guide: Program, number: int) -> Scalar:
    choices, weights = _particles(program, guide, number)
    stop = jax.lax.stop_gradient
    p, q = (jax.vmap(lambda c, x=x: log_density(x, c))(choices) for x in (program, guide))
    value = stop(_log_mean_exp(p - q))
    return value + jnp.sum(weights * (p - stop(p) + q - stop(q)))


def wake_sleep_program(program: Program, guide: Program, num_particles: int) -> Program:
    """Give the program of reweighted wake-sleep; see `ppl.vi.wake_sleep`."""
    _require_all("wake_sleep", program, guide)

    return _staged(_wake_sleep_value, "wake_sleep", program, guide, num_particles)


def _f_divergence_value(program: Program, guide: Program, kind: str) -> Scalar:
    return DIVERGENCES[kind](_log_weight(program, guide))


def f_divergence_program(program: Program, guide: Program, divergence: str) -> Program:
    """Give the program of a divergence; see `ppl.vi.f_divergence`."""
    refuse_scores(program)
    _require_all("f_divergence", program, guide)

    return _staged(_f_divergence_value, "f_divergence", program, guide, divergence)


def _evidence_bound_value(population: Program) -> Scalar:
    found = weighted(population)()
    value = found.value
    return found.log_weight + (value.log_evidence if isinstance(value, Population) else 0.0)


def evidence_bound_program(population: Program, _: None) -> Program:
    """Give the program of a bound from an estimate; see `ppl.vi.evidence_bound`."""
    return _staged(_evidence_bound_value, "evidence_bound", population)


# --- Pieces -------------------------------------------------------------------------------------


def _frozen(program: Program) -> Program:
    return jax.tree.map(jax.lax.stop_gradient, program)


def _finite(r: Any) -> Any:
    return jnp.where(r == -jnp.inf, 0.0, r)


def _log_mean_one(r: Any) -> Any:
    return jnp.logaddexp(r, 0.0) - math.log(2)


def _require_all(operation: str, program: Program, guide: Program) -> None:
    missing = [a for a in program.latents if a not in guide.latents]
    if missing:
        raise ArgumentError(
            message(
                f"{operation} got a guide that does not draw {', '.join(missing)}",
                needs="a guide that draws every latent of the program",
                why="the log densities of both are taken at the guide's draws",
                fix="add the sites to the guide, or use ppl.vi.elbo",
            )
        )
