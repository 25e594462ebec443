"""Kernels that follow gradients, and gradient estimators."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import ppl
import ppl.distributions as dist


def _density(trace: Any) -> Any:
    return lambda x: ppl.log_density(trace.program, {"x": x})


def _accept(trace: Any, x: Any, log_ratio: Any) -> Any:
    accepted = ppl.sample("accept", dist.Bernoulli(jnp.exp(jnp.minimum(0.0, log_ratio))))
    return ppl.choose(accepted == 1, trace.with_choices({"x": x}), trace)


# --- Langevin -----------------------------------------------------------------------------------


def _mala(trace: Any, shape: tuple[int, ...], step: float = 0.9) -> Any:
    """One move on "x" (Roberts and Tweedie 1996), with noise of a given shape."""
    x, slope = trace.choices["x"], jax.grad(_density(trace))
    noise = ppl.sample("noise", dist.Normal(0.0, 1.0).expand(shape))
    there = x + 0.5 * step**2 * slope(x) + step * noise

    def log_q(a: Any, b: Any) -> Any:
        return -jnp.sum((b - a - 0.5 * step**2 * slope(a)) ** 2) / (2 * step**2)

    density = _density(trace)
    log_ratio = density(there) - density(x) + log_q(there, x) - log_q(x, there)
    return _accept(trace, there, log_ratio)


@ppl.kernel
def mala(trace):
    return _mala(trace, trace.choices["x"].shape)


@ppl.kernel
def mala_with_one_noise(trace):
    """GenJAX: one number of noise for each leaf, added to all elements of it."""
    return _mala(trace, ())


# --- Hamiltonian --------------------------------------------------------------------------------


def _hmc(trace: Any, kinetic: bool, step: float = 0.7, steps: int = 3) -> Any:
    """Leapfrog from a fresh momentum (Duane et al. 1987)."""
    x, density = trace.choices["x"], _density(trace)
    slope = jax.grad(density)
    momentum = ppl.sample("momentum", dist.Normal(0.0, 1.0).expand(x.shape))
    y, p = x, momentum + 0.5 * step * slope(x)
    for i in range(steps):
        y = y + step * p
        p = p + (0.5 if i == steps - 1 else 1.0) * step * slope(y)
    log_ratio = density(y) - density(x)
    if kinetic:
        log_ratio = log_ratio + 0.5 * jnp.sum(momentum**2) - 0.5 * jnp.sum(p**2)
    return _accept(trace, y, log_ratio)


@ppl.kernel
def hmc(trace):
    return _hmc(trace, True)


@ppl.kernel
def hmc_without_momentum(trace):
    """Accepts by the densities of the two positions alone."""
    return _hmc(trace, False)


# --- Importance-weighted bounds -----------------------------------------------------------------
# A model of two bits z with joint log probabilities `table[z]` (the data are in the table), and a
# guide of independent bits with logits phi. With K draws from the guide and weights w_k, the bound
# is E[L], L = log mean w (Burda et al. 2016). Its gradient is E[sum_k score_k L + dL/dphi], where
# score_k is the gradient of the log probability of the k-th draw.


def log_guide(phi: Any, z: Any) -> Any:
    return jnp.sum(z * phi - jax.nn.softplus(phi), axis=-1)


def bound_of(phi: Any, table: Any, z: Any) -> Any:
    log_w = table[z[..., 0], z[..., 1]] - log_guide(phi, z)
    return jax.nn.logsumexp(log_w) - jnp.log(z.shape[0])


def _draws(phi: Any, count: int) -> Any:
    return ppl.sample("z", dist.Bernoulli(logits=phi).expand((count, 2)))


def _estimate(phi: Any, table: Any, z: Any, signals: Any) -> Any:
    scores = jax.vmap(jax.grad(log_guide), in_axes=(None, 0))(phi, z)
    return jnp.sum(scores * signals[:, None], axis=0) + jax.grad(bound_of)(phi, table, z)


def _log_w(phi: Any, table: Any, z: Any) -> Any:
    return table[z[:, 0], z[:, 1]] - log_guide(phi, z)


@ppl.model
def iwae(phi, table, count):
    z = _draws(phi, count)
    return _estimate(phi, table, z, jnp.full(count, bound_of(phi, table, z)))


@ppl.model
def iwae_with_baseline(phi, table, count):
    """Leave-one-out baseline (Mnih and Rezende 2016): the bound with w_k replaced by the others'
    geometric mean, which does not depend on the k-th draw."""
    z = _draws(phi, count)
    log_w = _log_w(phi, table, z)
    others = (jnp.sum(log_w) - log_w) / (count - 1)
    replaced = jnp.where(jnp.eye(count, dtype=bool), others[:, None], log_w[None, :])
    baseline = jax.nn.logsumexp(replaced, axis=1) - jnp.log(count)
    return _estimate(phi, table, z, bound_of(phi, table, z) - baseline)


@ppl.model
def iwae_with_own_baseline(phi, table, count):
    """The baseline of the k-th draw is the mean over all draws, its own among them."""
    z = _draws(phi, count)
    baseline = jnp.mean(_log_w(phi, table, z))
    return _estimate(phi, table, z, jnp.full(count, bound_of(phi, table, z) - baseline))


@ppl.model
def iwae_with_single_signals(phi, table, count):
    """The signal of the k-th draw is its own log weight, as for a bound of one draw."""
    z = _draws(phi, count)
    return _estimate(phi, table, z, _log_w(phi, table, z) / count)


@ppl.model
def iwae_without_scores(phi, table, count):
    """Only the derivative at fixed draws, as if they could be differentiated."""
    z = _draws(phi, count)
    return _estimate(phi, table, z, jnp.zeros(count))
