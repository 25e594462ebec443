"""Other coordinates, the same measure: densities differ by the change of variables alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist

pytestmark = pytest.mark.usefixtures("x64")


@ppl.model
def schools(y):
    mu = ppl.sample("mu", dist.Normal(0.5, 2.0))
    tau = ppl.sample("tau", dist.LogNormal(0.2, 0.7))
    with ppl.plate("n", y.shape[0]):
        theta = ppl.sample("theta", dist.StudentT(4.0, mu, tau))
        ppl.sample("y", dist.Normal(theta, 1.0), obs=y)
    return theta


Y = np.array([0.3, -1.0, 2.0])
MU, TAU, THETA = 0.4, 1.7, np.array([0.2, -0.5, 1.1])


@pytest.mark.parametrize("c", [0.0, 0.3, 1.0])
def test_noncentred_density(c):
    p = schools(Y)
    q = ppl.reparam(p, {"theta": ppl.NonCentred(c)})
    assert q.latents == ("mu", "tau", "theta_base")
    assert q.sites["theta"].kind == "deterministic"
    assert q.sites["theta_base"].axes == ("n",)
    # theta = mu + tau^(1 - c) (x - c mu): x = c mu + (theta - mu) tau^(c - 1), |dtheta/dx| known.
    base = c * MU + (THETA - MU) * TAU ** (c - 1)
    jacobian = 3 * (1 - c) * np.log(TAU)
    one = ppl.log_density(q, {"mu": MU, "tau": TAU, "theta_base": base})
    two = ppl.log_density(p, {"mu": MU, "tau": TAU, "theta": THETA})
    np.testing.assert_allclose(one, two + jacobian, rtol=1e-12)
    # And the model's value is the original theta.
    at = ppl.condition(q, {"mu": MU, "tau": TAU, "theta_base": base})
    t = ppl.trace(at, 0)
    np.testing.assert_allclose(t.value, THETA, rtol=1e-12)
    np.testing.assert_allclose(t.deterministics["theta"], THETA, rtol=1e-12)


def test_centredness_is_data_and_differentiable():
    base = np.array([0.1, 0.2, -0.3])

    def density(c):
        q = ppl.reparam(schools(Y), {"theta": ppl.NonCentred(c)})
        return ppl.log_density(q, {"mu": MU, "tau": TAU, "theta_base": base})

    h = 1e-6
    numeric = (density(0.4 + h) - density(0.4 - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(density)(0.4), numeric, rtol=1e-7)
    one = ppl.reparam(schools(Y), {"theta": ppl.NonCentred(0.4)})
    two = ppl.reparam(schools(Y), {"theta": ppl.NonCentred(0.9)})
    assert one.structure is two.structure
    each = ppl.reparam(schools(Y), {"theta": ppl.NonCentred(np.array([0.0, 1.0, 0.5]))})
    assert each.sites["theta_base"].shape == (3,)


def test_untransformed_density():
    p = schools(Y)
    q = ppl.reparam(p, {"tau": ppl.Untransformed()})
    one = ppl.log_density(q, {"mu": MU, "tau_base": np.log(TAU), "theta": THETA})
    two = ppl.log_density(p, {"mu": MU, "tau": TAU, "theta": THETA})
    np.testing.assert_allclose(one, two + np.log(TAU), rtol=1e-12)


@ppl.model
def looping():
    def step(state, _):
        x = ppl.sample("x", dist.Normal(jnp.full(2, state), jnp.array([0.5, 2.0])).to_event(1))
        return x[0], x

    return jax.vmap(lambda s: jax.lax.scan(step, s, None, length=3)[1])(jnp.arange(2.0))


def test_reparam_in_loops():
    q = ppl.reparam(looping(), {"x": ppl.NonCentred()})
    assert q.sites["x_base"].shape == (2, 3, 2)
    base = np.linspace(-1, 1, 12).reshape(2, 3, 2)
    t = ppl.trace(ppl.condition(q, {"x_base": base}), 0)
    x = t.deterministics["x"]
    expected = ppl.log_density(looping(), {"x": x}) + 6 * np.log(0.5 * 2.0)
    np.testing.assert_allclose(ppl.log_density(q, {"x_base": base}), expected, rtol=1e-12)


def test_reparam_in_a_branch():
    @ppl.model
    def m(w):
        return jax.lax.cond(w > 0, lambda: ppl.sample("x", dist.Normal(w, 3.0)), lambda: 0.0)

    for w in (1.0, -1.0):
        q = ppl.reparam(m(np.float64(w)), {"x": ppl.NonCentred()})
        p = m(np.float64(w))
        expected = ppl.log_density(p, {"x": w + 3 * 0.7}) + (np.log(3) if w > 0 else 0)
        np.testing.assert_allclose(ppl.log_density(q, {"x_base": 0.7}), expected, atol=1e-12)


def test_a_scaled_site_keeps_its_measure():
    # p(x)^s dx = (p(z) / 3)^s 3 dz for x = 3 z; a refusal would do as well.
    m = ppl.model(lambda: ppl.sample("x", dist.Normal(0.0, 3.0)))
    p = ppl.scale(m(), 0.5, ["x"])
    try:
        q = ppl.reparam(p, {"x": ppl.NonCentred()})
    except ppl.PPLError:
        return
    expected = ppl.log_density(p, {"x": 3.0}) + np.log(3.0)
    np.testing.assert_allclose(ppl.log_density(q, {"x_base": 1.0}), expected, rtol=1e-12)


def test_moments_agree():
    # z-tests of E theta and E theta^2 over 20000 draws each; |z| < 5: false alarm 1e-6.
    p = ppl.unobserve(schools(Y), ["y"])
    q = ppl.reparam(p, {"theta": ppl.NonCentred(0.3), "tau": ppl.Untransformed()})
    one = np.asarray(ppl.prior_predictive(p, 0, 20000)["theta"])[:, 0]
    two = np.asarray(ppl.prior_predictive(q, 1, 20000)["theta"])[:, 0]
    for f in (np.tanh, np.cos):
        a, b = f(one), f(two)
        z = (a.mean() - b.mean()) / np.sqrt((a.var() + b.var()) / 20000)
        assert abs(z) < 5
