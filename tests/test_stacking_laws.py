"""Draws for many lanes at once, by draws: the right law in each lane, and independent lanes.

P-values are held to `LEVEL`: the file has about 500 of them, so it raises a false alarm with
probability about 1e-6.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import Distribution
from scipy import stats

import ppl.distributions as dist
from ppl.check.pvalues import kolmogorov
from ppl.stacking import stacked

LEVEL = 2e-9
DRAWS = 4000

positive = jnp.exp(jax.random.normal(jax.random.key(1), (3, 3)))
matrices = jnp.linalg.cholesky(
    jax.vmap(jnp.diag)(positive) + 0.5 * positive[:, :, None] * positive[:, None, :]
)


def dependence(x: Any, y: Any) -> float:
    """P-value of the rank correlations of two columns and of their distances from the middle."""
    found = []
    for fold in (lambda r: r, lambda r: np.abs(r - np.mean(r))):
        a, b = (fold(stats.rankdata(c)) for c in (x, y))
        if np.std(a) > 0 and np.std(b) > 0:
            z = np.corrcoef(a, b)[0, 1] * np.sqrt(len(a) - 1)
            found.append(2 * stats.norm.sf(abs(z)))
    return min(found, default=1.0)


def suspicions(draws: Any, reference: Any) -> list[str]:
    """Say what is wrong with draws, shape (draw, lane, ...), beside independent lanes."""
    draws, reference = (np.asarray(x).reshape(DRAWS, 3, -1) for x in (draws, reference))
    wrong = [
        f"law of lane {i}, element {k}"
        for i in range(3)
        for k in range(draws.shape[2])
        if kolmogorov(draws[:, i, k], reference[:, i, k])[1] < LEVEL
    ]
    pairs = itertools.combinations(range(3), 2)
    return wrong + [
        f"lanes {i} and {j} depend"
        for i, j in pairs
        if dependence(draws[:, i, 0], draws[:, j, 0]) < LEVEL
    ]


Samplers = dict[str, tuple[Callable[..., Any], list[Any]]]


def lanes_of(samplers: Samplers, draw: Callable[..., Any] = stacked) -> dict[str, Any]:
    """Draw three lanes of each sampler, many times; compiled together."""

    def all_of_them(key):
        return {n: draw(f, (3,), key, x, [(True,) * len(x)]) for n, (f, x) in samplers.items()}

    return jax.jit(jax.vmap(all_of_them))(jax.random.split(jax.random.key(3), DRAWS))


def judged(samplers: Samplers) -> dict[str, list[str]]:
    """Say what is wrong in stacked lanes, beside lanes that have keys of their own."""

    def alone(keys):
        return {n: jax.vmap(f)(keys, x) for n, (f, x) in samplers.items()}

    reference = jax.jit(jax.vmap(alone))(jax.random.split(jax.random.key(4), (DRAWS, 3)))
    draws = lanes_of(samplers)
    return {name: suspicions(draws[name], reference[name]) for name in samplers}


def sampled(make: Callable[..., Distribution]) -> Callable[..., Any]:
    return lambda key, leaves: make(*leaves).sample(key)


probs = positive / positive.sum(-1, keepdims=True)
components = lambda a: dist.Normal(jnp.array([-5.0, 5.0]), a)  # noqa: E731
CHEAP: Samplers = {
    "TruncatedNormal": (lambda a: dist.TruncatedNormal(a, 1.0, low=0.5), [positive[0]]),
    "Weibull": (dist.Weibull, [positive[0], positive[1]]),
    "Cauchy": (dist.Cauchy, [positive[0], positive[1]]),
    "transformed": (
        lambda a: dist.TransformedDistribution(
            dist.Normal(a, 1.0), dist.transforms.SigmoidTransform()
        ),
        [positive[0]],
    ),
    "mixture": (
        lambda p, a: dist.MixtureSameFamily(dist.Categorical(probs=p), components(a)),
        [probs[:, :2], positive[0]],
    ),
    "MultivariateNormal of precision": (
        lambda a, b: dist.MultivariateNormal(a, precision_matrix=b @ b.mT),
        [positive, matrices],
    ),
    "Geometric": (lambda p: dist.Geometric(probs=p), [probs[0]]),
    "Subsample": (lambda a: dist.Subsample(4, 2), [positive[0]]),
    "Seed": (lambda a: dist.Seed(), [positive[0]]),
}
LOOPING: Samplers = {
    "Gamma": (dist.Gamma, [positive[0], positive[1]]),
    "Beta": (dist.Beta, [positive[0], positive[1]]),
    "Dirichlet": (dist.Dirichlet, [positive]),
    "StudentT": (dist.StudentT, [positive[0], positive[1], positive[2]]),
    "Poisson": (dist.Poisson, [positive[0]]),
    "Binomial": (lambda p: dist.Binomial(7, probs=p), [probs[0]]),
    "Multinomial": (lambda p: dist.Multinomial(5, probs=p), [probs]),
    "VonMises": (dist.VonMises, [positive[0], positive[1]]),
    "LKJCholesky": (lambda a: dist.LKJCholesky(2, a), [positive[0]]),
}


def test_lanes_have_their_laws() -> None:
    samplers = {name: (sampled(make), leaves) for name, (make, leaves) in CHEAP.items()}
    assert judged(samplers) == {name: [] for name in CHEAP}


@pytest.mark.slow
def test_lanes_of_rejection_samplers_have_their_laws() -> None:
    samplers = {name: (sampled(make), leaves) for name, (make, leaves) in LOOPING.items()}
    assert judged(samplers) == {name: [] for name in LOOPING}


# --- Samplers that use their key in unusual ways: each draws uniform numbers --------------------

uniform = jax.random.uniform


def _loop(key, leaves):
    def body(carry):
        key, _ = carry
        key, mine = jax.random.split(key)
        return key, uniform(mine) * 2

    return jax.lax.while_loop(lambda carry: carry[1] > 1, body, (key, leaves[0] + 3.0))[1]


def _scan(key, leaves):
    def body(key, _):
        key, mine = jax.random.split(key)
        return key, uniform(mine)

    return jax.lax.scan(body, key, None, length=3)[1].sum() % 1.0


def _branches(key, leaves):
    one = lambda key: uniform(key)  # noqa: E731
    other = lambda key: 1.0 - uniform(jax.random.fold_in(key, 1))  # noqa: E731
    return jax.lax.cond(leaves[0] > 0.5, one, other, key)


def _picked(key, leaves):
    keys = jax.random.split(key, 2)
    return uniform(jnp.where(leaves[0] > 0.5, keys[0], keys[1]))


def _looked_up(key, leaves):
    return uniform(jax.random.split(key, 3)[jnp.int32(leaves[0])])


def _words(key, leaves):
    words = jax.random.key_data(jax.random.split(key)[0])
    return (words[0] >> 8) / jnp.float32(2**24)


def _many_keys(key, leaves):
    return jax.vmap(uniform)(jax.random.split(key, 4)).reshape(2, 2) + leaves[0]


def _nested_keys(key, leaves):
    keys = jax.random.split(key, (2, 3))
    return jax.vmap(jax.vmap(lambda k: uniform(k, (2,))))(keys) + leaves[0]


def _short_words(key, leaves):
    high, low = jax.random.bits(key, (2,), jnp.uint8)
    return high / 2**8 + low / 2**16 + leaves[0]


same = jnp.zeros(3)
UNUSUAL: dict[str, tuple[Callable[..., Any], Any]] = {
    "folded with data": (lambda k, x: uniform(jax.random.fold_in(k, jnp.int32(x[0]))), same),
    "in a while loop": (_loop, same),
    "in a scan": (_scan, same),
    "in branches": (_branches, jnp.array([0.0, 1.0, 0.0])),
    "picked by data": (_picked, jnp.array([0.0, 1.0, 0.0])),
    "looked up by data": (_looked_up, same),
    "read as words": (_words, same),
    "many of it": (_many_keys, same),
    "a matrix of it": (_nested_keys, same),
    "bytes": (_short_words, same),
    "checkpointed": (jax.checkpoint(lambda k, x: uniform(k) + x[0]), same),
}


def test_lanes_stay_independent_however_the_key_is_used() -> None:
    draws = lanes_of({name: (sampler, [leaf]) for name, (sampler, leaf) in UNUSUAL.items()})
    rng = np.random.default_rng(0)
    for name, lanes in draws.items():
        assert suspicions(lanes, rng.random(lanes.shape)) == [], name


# --- What the tests must find -------------------------------------------------------------------


def shared(sampler: Any, sizes: Any, key: Any, leaves: Any, mapped: Any) -> Any:
    """Draw once for all lanes."""
    return jax.vmap(lambda leaves: sampler(key, leaves))(leaves)


def shifted(sampler: Any, sizes: Any, key: Any, leaves: Any, mapped: Any) -> Any:
    """Give each lane the parameters of its neighbour."""
    return stacked(sampler, sizes, key, [jnp.roll(x, 1, axis=0) for x in leaves], mapped)


def mirrored(sampler: Any, sizes: Any, key: Any, leaves: Any, mapped: Any) -> Any:
    """Reflect the second lane's noise in the first's."""
    value = stacked(sampler, sizes, key, leaves, mapped)
    return value.at[1].set(leaves[0][1] - (value[0] - leaves[0][0]))


def test_the_tests_find_broken_lanes() -> None:
    leaves = [jnp.array([0.0, 2.0, 5.0])]
    samplers: Samplers = {"Normal": (sampled(lambda a: dist.Normal(a, 1.0)), leaves)}
    reference = np.random.default_rng(0).normal(leaves[0], size=(DRAWS, 3))

    def found(draw: Callable[..., Any]) -> list[str]:
        return suspicions(lanes_of(samplers, draw)["Normal"], reference)

    pairs = [f"lanes {i} and {j} depend" for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found(stacked) == []
    assert found(shared) == pairs
    assert found(shifted) == [f"law of lane {i}, element 0" for i in range(3)]
    assert found(mirrored) == pairs[:1]
