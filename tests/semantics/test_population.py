"""Weighted particles: arithmetic on weights that were written down by hand."""

from __future__ import annotations

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from tests.zoo import normal_normal

Y = np.array([0.5, 1.5, -1.0], np.float32)
X = np.array([1.0, 2.0, 4.0, 8.0])
LOG_WEIGHTS = np.log([1.0, 2.0, 0.0 + 1e-300, 5.0])


def population(log_weights=LOG_WEIGHTS, program=None):
    w = jnp.asarray(log_weights)
    evidence = jax.nn.logsumexp(w) - np.log(4)
    return ppl.Population(jnp.asarray(X), w, evidence, {"mu": jnp.asarray(X)}, program)


def test_weights_ess_and_expectation(x64):
    p = population()
    w = np.array([1, 2, 0, 5]) / 8
    np.testing.assert_allclose(p.weights, w, atol=1e-15)
    np.testing.assert_allclose(p.ess, 1 / np.sum(w**2), rtol=1e-12)
    mean = w @ X
    for fun in ("mu", lambda x: x):
        value, error = p.expect(fun)
        np.testing.assert_allclose(value, mean, rtol=1e-12)
        np.testing.assert_allclose(error, np.sqrt(w**2 @ (X - mean) ** 2), rtol=1e-12)
    tree = p.expect(lambda x: {"a": jnp.stack([x, x**2])})
    np.testing.assert_allclose(tree.value["a"], [mean, w @ X**2], rtol=1e-12)
    with pytest.raises(ppl.PPLError, match="mew"):
        p.expect("mew")


def test_resampling_is_systematic(x64):
    # Systematic: each particle gets floor or ceil of N W copies; unbiased over keys.
    p, w = population(), np.array([1, 2, 0, 5]) / 8
    keys = jax.random.split(jax.random.key(0), 2000)
    draws = np.asarray(jax.vmap(lambda k: p.resample(k, 10)["mu"])(keys))
    counts = np.stack([(draws == x).sum(1) for x in X], 1)
    assert np.all(counts >= np.floor(10 * w))
    assert np.all(counts <= np.ceil(10 * w))
    assert np.all(counts[:, 2] == 0)
    error = np.maximum(counts.std(0), 1e-9) / np.sqrt(2000)
    assert np.all(np.abs(counts.mean(0) - 10 * w) <= 5 * error)  # |z| < 5: 1e-6


def test_no_particle_survived(x64):
    p = population(np.full(4, -np.inf))
    assert p.weights.tolist() == [0.0] * 4
    assert p.ess == 0
    assert p.log_evidence == -np.inf
    # There is no posterior: not a number, or an error, but never a plausible answer.
    for give in (lambda: p.expect("mu").value, lambda: p.resample(0)["mu"]):
        with contextlib.suppress(ppl.PPLError):
            assert np.all(np.isnan(give()))
    assert "nan" in str(p.summary()).lower() or "zero" in str(p.summary()).lower()


def test_predictive_shapes_and_rows():
    program = normal_normal(Y, sd=1e-6)
    p = population(np.array([-np.inf, -np.inf, -np.inf, 0.0]), program)
    out = p.predictive(0, 7)
    assert out["y"].shape == (7, 3)
    np.testing.assert_allclose(out["y"], 8.0, atol=1e-3)
    with pytest.raises(ppl.PPLError, match="program"):
        population().predictive(0)


def test_save_and_load(tmp_path):
    p = population(program=normal_normal(Y))
    path = str(tmp_path / "p.npz")
    p.save(path)
    q = ppl.Population.load(path, normal_normal(Y))
    np.testing.assert_array_equal(q.log_weights, p.log_weights)
    np.testing.assert_array_equal(q.choices["mu"], p.choices["mu"])
    assert q.log_evidence == p.log_evidence
    assert q.predictive(0)["y"].shape == (4, 3)
    with pytest.raises(ppl.PPLError, match="population"):
        ppl.Chains.load(path)


def test_summary_and_html():
    p = population(program=normal_normal(Y))
    assert "mu" in str(p.summary())
    assert f"log evidence {float(p.log_evidence):.4f}" in str(p)
    page = p._repr_html_()
    assert "<table" in page
    assert "log evidence" in page


def test_arviz():
    pytest.importorskip("arviz")
    p = ppl.run(ppl.importance(normal_normal(Y), 16), 0)
    idata = p.to_arviz()
    assert dict(idata["posterior"].sizes) == {"chain": 1, "draw": 16}
    assert idata["observed_data"]["y"].dims == ("n",)


def test_absent_choices_do_not_count():
    @ppl.model
    def m():
        b = ppl.sample("b", dist.Bernoulli(0.5))
        return jax.lax.cond(b == 1, lambda: ppl.sample("x", dist.Normal(10.0, 0.1)), lambda: 0.0)

    p = ppl.run(ppl.importance(m(), 2000), 0)
    try:
        value, error = p.expect("x")
    except ppl.PPLError:
        return
    assert abs(value - 10) < 5 * error + 0.05


def test_populations_map_and_print_inside_transformations():
    keys = jax.random.split(jax.random.key(0), 3)
    q = ppl.importance(normal_normal(Y), 8)
    many = jax.vmap(lambda k: ppl.run(q, k))(keys)
    assert many.log_weights.shape == (3, 8)
    assert "(3, 8)" in repr(many)
    one = ppl.run(q, keys[1])
    np.testing.assert_allclose(many.log_evidence[1], one.log_evidence, rtol=1e-6)
