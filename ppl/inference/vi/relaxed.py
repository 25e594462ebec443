"""Draws of discrete distributions that derivatives pass, at the price of a bias."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution

from ppl import _jax
from ppl import distributions as dist
from ppl.distributions import describe
from ppl.errors import UnsupportedError, at, message
from ppl.finite import apart, bare
from ppl.primitives import Site

_BERNOULLI = dist.BernoulliProbs | dist.BernoulliLogits
_ONE_HOT = dist.MultinomialProbs | dist.MultinomialLogits


def refuse_unrelaxed(site: Site, d: Distribution, name: str) -> None:
    """Refuse a site whose draws cannot be floating numbers.

    Args:
        site: the site.
        d: its distribution.
        name: the estimator.
    """
    core = bare(d)
    floating = jnp.issubdtype(site.dtype, jnp.floating)
    if floating and (isinstance(core, _BERNOULLI) or _is_one_hot(core)):
        return
    raise UnsupportedError(
        message(
            f"ppl.vi.{name} got {describe(d)} of {jnp.dtype(site.dtype).name} at "
            f"{at(site.address, site.source)}",
            needs="a Bernoulli distribution, or a one-hot one (a multinomial of one trial), whose "
            "draws are floating numbers",
            why="no derivative passes an integer, and what a site draws is settled where it stands",
            fix=f'ppl.sample("{site.address}", dist.Multinomial(1, probs), grad=ppl.vi.{name}'
            + ("())" if name == "straight_through" else "(0.5))"),
        )
    )


def through(d: Distribution, value: Any) -> Any:
    """Give the value with the derivative of the mean of the distribution.

    Args:
        d: a Bernoulli or one-hot distribution.
        value: draws of it.
    """
    mean = jnp.broadcast_to(_probabilities(bare(d)), jnp.shape(value))
    return value + mean - jax.lax.stop_gradient(mean)


def relaxed(d: Distribution, seed: Any, temperature: Any, *, hard: bool) -> Any:
    """Draw a smooth function of noise and parameters that is near a draw of the distribution.

    Args:
        d: a Bernoulli or one-hot distribution.
        seed: of the noise.
        temperature: how near; positive.
        hard: give the draw itself the function's derivative.
    """
    core: Any = bare(d)
    key = dist.Seed.key(seed)
    shape: tuple[int, ...] = (*apart(d).batch_shape, *core.event_shape)
    dtype = jnp.result_type(float)
    if isinstance(core, _BERNOULLI):
        noisy = _logits(core) + jax.random.logistic(key, shape, dtype)
        soft, value = jax.nn.sigmoid(noisy / temperature), (noisy > 0).astype(dtype)
    else:
        noisy = _logits(core) + jax.random.gumbel(key, shape, dtype)
        soft = jax.nn.softmax(noisy / temperature)
        value = jax.nn.one_hot(jnp.argmax(noisy, -1), shape[-1], dtype=dtype)
    return value + soft - jax.lax.stop_gradient(soft) if hard else soft


def _is_one_hot(core: Any) -> bool:
    if not isinstance(core, _ONE_HOT) or _jax.is_tracer(core.total_count):
        return False
    return bool(np.all(np.asarray(core.total_count) == 1))


def _probabilities(core: Any) -> Any:
    if isinstance(core, dist.BernoulliLogits):
        return jax.nn.sigmoid(core.logits)
    if isinstance(core, dist.MultinomialLogits):
        return jax.nn.softmax(jnp.asarray(core.logits))
    return core.probs


def _logits(core: Any) -> Any:
    if isinstance(core, dist.BernoulliLogits | dist.MultinomialLogits):
        return core.logits
    p = jnp.asarray(core.probs)
    return jnp.log(p) - jnp.log1p(-p) if isinstance(core, dist.BernoulliProbs) else jnp.log(p)
