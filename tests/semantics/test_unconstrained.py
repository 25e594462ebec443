"""Real coordinates: round trips, Jacobians against automatic differentiation, branches."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import ppl
import ppl.distributions as dist
from ppl.distributions import constraints
from tests.zoo import branching, nested_intervals, nested_intervals_log_density

pytestmark = pytest.mark.usefixtures("x64")


def improper(constraint, shape):
    return lambda: dist.ImproperUniform(constraint, (), shape)


# Distribution, dimension, and the free entries of a value: coordinates on its manifold.
lower3 = np.tril_indices(3)
strict3 = np.tril_indices(3, -1)
SUPPORTS = {
    "real": (lambda: dist.Normal(0.0, 1.0), 1, None),
    "positive": (lambda: dist.Gamma(2.0, 2.0), 1, None),
    "unit": (lambda: dist.Beta(2.0, 3.0), 1, None),
    "interval": (lambda: dist.Uniform(-1.0, 2.0), 1, None),
    "above": (lambda: dist.Pareto(2.0, 3.0), 1, None),
    "below": (lambda: dist.TruncatedNormal(0.0, 1.0, high=2.0), 1, None),
    "circular": (lambda: dist.VonMises(0.0, 1.0), 1, None),
    "log-uniform": (lambda: dist.LogUniform(1.0, 4.0), 1, None),
    "vector": (lambda: dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)), 2, None),
    "simplex": (lambda: dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])), 2, lambda x: x[:-1]),
    "ordered": (improper(constraints.ordered_vector, (3,)), 3, None),
    "positive ordered": (improper(constraints.positive_ordered_vector, (3,)), 3, None),
    "lkj cholesky": (lambda: dist.LKJCholesky(3, 2.0), 3, lambda x: x[strict3]),
    "lkj": (lambda: dist.LKJ(3, 2.0), 3, lambda x: x[strict3]),
    "positive definite": (lambda: dist.Wishart(5.0, jnp.eye(3)), 6, lambda x: x[lower3]),
    "lower cholesky": (improper(constraints.lower_cholesky, (3, 3)), 6, lambda x: x[lower3]),
    "zero sum": (lambda: dist.ZeroSumNormal(1.0, (4,)), 3, "isometry"),
}


@pytest.mark.parametrize("name", SUPPORTS)
def test_supports(name):
    make, size, entries = SUPPORTS[name]
    program = ppl.model(lambda: ppl.sample("x", make()))()
    space = ppl.unconstrain(program)
    assert space.size == size == len(space.names)
    z = jnp.linspace(-0.9, 1.1, size)

    @jax.jit
    def everything(z):
        def value(z):
            return space.unflatten(z)["x"]

        x, point = value(z), space.at(z)
        if entries == "isometry":  # a plane in R^4: its volume is that of the columns
            jacobian = jax.jacfwd(lambda z: jnp.ravel(value(z)))(z)
            volume = 0.5 * jnp.linalg.slogdet(jacobian.T @ jacobian)[1]
        else:
            pick = entries or jnp.ravel
            volume = jnp.linalg.slogdet(jax.jacfwd(lambda z: pick(value(z)))(z))[1]
        density = ppl.log_density(program, {"x": x})
        return x, space.flatten({"x": x}), volume, point, density

    x, back, volume, point, density = everything(z)
    assert np.all(make().support(x))
    np.testing.assert_allclose(back, z, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(point.log_jacobian, volume, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(point.log_density, density + volume, rtol=1e-10, atol=1e-10)


def test_bounds_that_depend_on_draws():
    space = ppl.unconstrain(nested_intervals())
    assert space.names == ("u", "v", "w")

    @jax.jit
    def everything(z):
        choices = space.unflatten(z)
        jacobian = jax.jacfwd(lambda z: jnp.stack([*space.unflatten(z).values()]))(z)
        density = ppl.log_density(nested_intervals(), choices)
        return (
            choices,
            space.flatten(choices),
            jnp.linalg.slogdet(jacobian)[1],
            space.at(z),
            density,
        )

    for seed in range(3):
        z = jax.random.normal(jax.random.key(seed), (3,))
        choices, back, volume, point, density = everything(z)
        u, v, w = (float(choices[a]) for a in "uvw")
        assert 0 < v < w < u < 2
        np.testing.assert_allclose(back, z, rtol=1e-9, atol=1e-9)
        expected = nested_intervals_log_density(u, v, w)
        np.testing.assert_allclose(point.log_jacobian, volume, rtol=1e-10)
        np.testing.assert_allclose(point.log_density, expected + volume, rtol=1e-10)
        np.testing.assert_allclose(density, expected, rtol=1e-10)


@ppl.model
def looping(widths):
    def step(low, width):
        x = ppl.sample("x", dist.Uniform(low, low + width))
        s = ppl.sample("s", dist.Dirichlet(jnp.array([1.0, 2.0, 1.5])))
        return x, s[0]

    return jax.vmap(lambda start: jax.lax.scan(step, start, widths)[1])(jnp.arange(2.0))


def test_sites_in_loops():
    space = ppl.unconstrain(looping(np.array([1.0, 2.0, 3.0])))
    assert space.size == 6 + 12
    assert space.names[:2] == ("x[0, 0]", "x[0, 1]")
    z = jnp.linspace(-1.0, 1.0, space.size)

    @jax.jit
    def everything(z):
        def free(z):
            c = space.unflatten(z)
            return jnp.concatenate([jnp.ravel(c["x"]), jnp.ravel(c["s"][..., :2])])

        choices = space.unflatten(z)
        volume = jnp.linalg.slogdet(jax.jacfwd(free)(z))[1]
        density = ppl.log_density(space.program, choices)
        return choices, space.flatten(choices), volume, space.at(z), density

    choices, back, volume, point, density = everything(z)
    assert choices["x"].shape == (2, 3)
    assert choices["s"].shape == (2, 3, 3)
    np.testing.assert_allclose(back, z, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(point.log_jacobian, volume, rtol=1e-10)
    np.testing.assert_allclose(point.log_density, density + volume, rtol=1e-10)


def test_branches_have_a_proper_density():
    space = ppl.unconstrain(branching())
    assert set(space.names) == {"w", "x", "y"}
    order = [space.names.index(a) for a in ("w", "x", "y")]

    evaluate = jax.jit(space.at)

    def at(w, x, y):
        z = np.zeros(3)
        z[order] = [w, x, y]
        return evaluate(jnp.asarray(z))

    # Taken left: w normal, x = exp(z) Gamma(2, 2) with tilt and Jacobian, y standard normal.
    point = at(0.5, 0.2, -0.7)
    x = math.exp(0.2)
    left = stats.norm.logpdf(0.5) + stats.gamma(2, scale=0.5).logpdf(x) - x + 0.2
    np.testing.assert_allclose(point.log_density, left + stats.norm.logpdf(-0.7), rtol=1e-12)
    np.testing.assert_allclose(point.choices["x"], x)
    # Taken right: y = 3 sigmoid(z), x standard normal.
    point = at(-0.5, 0.2, -0.7)
    s = 1 / (1 + math.exp(0.7))
    right = stats.norm.logpdf(-0.5) - math.log(3) + math.log(3 * s * (1 - s))
    np.testing.assert_allclose(point.log_density, right + stats.norm.logpdf(0.2), rtol=1e-12)
    # The whole mass is the evidence, whichever way it is cut: by quadrature over z.
    density = jax.jit(jax.vmap(lambda x, y: jnp.exp(at_w(x, y))))

    def at_w(x, y):
        z = jnp.zeros(3).at[jnp.array(order)].set(jnp.stack([jnp.asarray(0.5), x, y]))
        return space.log_density(z)

    grid = np.linspace(-9, 9, 361)
    xs, ys = (g.ravel() for g in np.meshgrid(grid, grid, indexing="ij"))
    mass = integrate.trapezoid(
        integrate.trapezoid(np.reshape(density(xs, ys), (361, 361)), grid), grid
    )
    # E exp(-x) under Gamma(2, 2) is 4/9; trapezoids of smooth decaying functions are exact.
    np.testing.assert_allclose(mass, stats.norm.pdf(0.5) * 4 / 9, rtol=1e-6)


def test_gradients_are_finite_in_branches_not_taken():
    @ppl.model
    def m():
        w = ppl.sample("w", dist.Normal(0.0, 1.0))
        return jax.lax.cond(
            w > 0, lambda: ppl.sample("x", dist.Uniform(0.0, jnp.sqrt(w))), lambda: 0.0
        )

    space = ppl.unconstrain(m())
    gradient = jax.jit(jax.grad(space.log_density))(jnp.array([-1.0, 0.3]))
    np.testing.assert_allclose(gradient, [1.0, -0.3], rtol=1e-12)
    lanes = jax.jit(jax.vmap(jax.grad(space.log_density)))(jnp.array([[-1.0, 0.3], [1.0, 0.3]]))
    np.testing.assert_allclose(lanes[0], [1.0, -0.3], rtol=1e-12)
    assert np.all(np.isfinite(lanes[1]))


def test_deterministics_and_value():
    @ppl.model
    def m():
        s = ppl.sample("s", dist.HalfNormal(1.0))
        return ppl.deterministic("double", 2 * s) + 1

    point = ppl.unconstrain(m()).at(jnp.array([0.5]))
    assert point.deterministics.keys() == {"double"}
    np.testing.assert_allclose(point.deterministics["double"], 2 * math.exp(0.5))
    np.testing.assert_allclose(point.value, 2 * math.exp(0.5) + 1)


def test_vectors_of_wrong_length_are_refused():
    space = ppl.unconstrain(looping(np.array([1.0])))
    for size in (0, space.size - 1, space.size + 1):
        with pytest.raises(ppl.PPLError, match=str(space.size)):
            space.at(jnp.zeros(size))


def test_choices_outside_the_support_are_refused():
    space = ppl.unconstrain(ppl.model(lambda: ppl.sample("x", dist.Gamma(2.0, 2.0)))())
    with pytest.raises(ppl.PPLError, match='"x"'):
        space.flatten({"x": -1.0})


def test_discrete_latents_are_refused_and_no_latents_are_fine():
    with pytest.raises(ppl.PPLError, match=r'"k" \(test_unconstrained.py'):
        ppl.unconstrain(ppl.model(lambda: ppl.sample("k", dist.Poisson(1.0)))())
    space = ppl.unconstrain(ppl.model(lambda: ppl.factor("f", 1.5))())
    assert space.size == 0
    assert space.log_density(jnp.zeros(0)) == 1.5
