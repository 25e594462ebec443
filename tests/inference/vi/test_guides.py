"""Guides: exact densities, draws inside the support, exact posteriors, gradients, named errors."""

from __future__ import annotations

import re
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ppl
import ppl.distributions as dist
from ppl.distributions import constraints
from ppl.errors import (
    AddressError,
    ArgumentError,
    ObservationError,
    UnsupportedError,
)
from ppl.inference.vi import guides
from tests.compiling import compilations

pytestmark = pytest.mark.usefixtures("x64")

#: Standard errors that a mean of many draws stays within, but for one in a million.
Z = stats.norm.isf(0.5e-6)


@ppl.model
def constrained(y):
    """Supports of every kind; bounds from earlier draws; a plate, a vmap and a scan."""
    tau = ppl.sample("tau", dist.HalfCauchy(1.0))
    w = ppl.sample("w", dist.Dirichlet(jnp.ones(3)))
    u = ppl.sample("u", dist.Uniform(-tau, 2 * tau))
    corr = ppl.sample("corr", dist.LKJCholesky(3, 2.0))
    ppl.sample("o", dist.ImproperUniform(constraints.ordered_vector, (), (3,)))
    with ppl.plate("n", 2):
        q = ppl.sample("q", dist.Uniform(u, u + w[0]))
    v = jax.vmap(lambda a: ppl.sample("v", dist.Uniform(0.0, a)))(1 + q**2)

    def step(x, y):
        x = ppl.sample("x", dist.Normal(x, tau))
        s = ppl.sample("s", dist.Dirichlet(jnp.ones(2)))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)
        return x, s

    x, _ = jax.lax.scan(step, jnp.sum(v), y)
    ppl.factor("f", corr[2, 0] * x)
    return x


@ppl.model
def linear(y):
    """A linear-Gaussian model: its evidence and posterior are known."""
    mu = ppl.sample("mu", dist.Normal(1.0, 2.0))
    twice = ppl.deterministic("twice", 2 * mu)
    with ppl.plate("n", y.shape[0]):
        theta = ppl.sample("theta", dist.Normal(twice, 1.0))
        ppl.sample("y", dist.Normal(theta, 0.5), obs=y)


Y = np.array([1.0, 2.5])


def exact_linear(y):
    """Mean and covariance of (mu, theta) given y, and the log evidence."""
    n = len(y)
    # z = mean + root e, and y = z[1:] + noise
    mean = np.r_[1.0, np.full(n, 2.0)]
    root = np.block([[np.array([[2.0]]), np.zeros((1, n))], [np.full((n, 1), 4.0), np.eye(n)]])
    prior, pick = root @ root.T, np.eye(n + 1)[1:]
    joint = pick @ prior @ pick.T + 0.25 * np.eye(n)
    gain = prior @ pick.T @ np.linalg.inv(joint)
    evidence = stats.multivariate_normal(mean[1:], joint).logpdf(y)
    return mean + gain @ (y - mean[1:]), prior - gain @ pick @ prior, evidence


def low_rank(program, **settings):
    return guides.low_rank(program, rank=2, **settings)


NORMALS = [guides.mean_field, guides.full_rank, low_rank, guides.structured]


def moved(params, seed=0, size=0.3):
    """Parameters away from where they start."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + size * jnp.asarray(rng.normal(size=x.shape)), params)


def wide(params):
    """Parameters of a normal wide enough to be a good proposal."""
    if "scale_tril" in params:
        return params | {"scale_tril": 20 * moved(params["scale_tril"], size=0.01)}
    return params | {"log_scale": params["log_scale"] + 3.0}


def normal(guide, params):
    """Mean and covariance of the unconstrained vector, from the parameters' definition."""
    p = jax.tree.map(np.asarray, params)
    if "scale_tril" in p:
        root = np.tril(p["scale_tril"])
        return p["loc"], root @ root.T
    diagonal = np.diag(np.exp(2 * p["log_scale"]))
    if "factor" in p:
        return p["loc"], diagonal + p["factor"] @ p["factor"].T
    if "weights" not in p:
        return p["loc"], diagonal
    # z = loc + weights z + noise
    weights, places, offset = np.zeros(diagonal.shape), {}, 0
    for address, shape in guide.space.shapes:
        places[address] = slice(offset, offset := offset + int(np.prod(shape)))
    for address, parents in p["weights"].items():
        for parent, w in parents.items():
            weights[places[address], places[parent]] = w
    inverse = np.linalg.inv(np.eye(len(diagonal)) - weights)
    return inverse @ p["loc"], inverse @ diagonal @ inverse.T


@pytest.mark.parametrize("make", NORMALS)
def test_the_density_is_the_normal_less_the_jacobian(make):
    program = constrained(jnp.arange(2.0))
    guide = make(program, init_scale=1.0)
    params, key = moved(guide.params), jax.random.key(1)

    @jax.jit
    def everything(params, key):
        q = guide(params)
        choices = ppl.run(q, key)
        z = guide.space.flatten(choices)
        gradient = jax.grad(lambda p: sum(jnp.sum(x) for x in ppl.run(guide(p), key).values()))
        return (
            choices,
            z,
            ppl.log_density(q, choices),
            guide.space.log_jacobian(z),
            ppl.log_density(program, choices),
            gradient(params),
        )

    choices, z, density, jacobian, model, gradient = everything(params, key)
    assert set(choices) == set(program.latents)
    assert guide(params).latents == program.latents
    mean, covariance = normal(guide, params)
    # Not by `multivariate_normal`, which takes an eigenvalue of 1e-8 for zero.
    root = np.linalg.cholesky(covariance)
    expected = stats.norm.logpdf(np.linalg.solve(root, z - mean)).sum()
    expected -= np.log(np.diagonal(root)).sum()
    np.testing.assert_allclose(density, expected - jacobian, rtol=1e-10, atol=1e-10)
    assert np.isfinite(model)  # all choices lie in their supports
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(gradient))
    assert not guide(params).structure.open_scores


@pytest.mark.parametrize("make", NORMALS)
def test_draws_follow_the_normal(make):
    guide = make(linear(Y))
    params = moved(guide.params)

    @jax.jit
    def draws(keys):
        return jax.vmap(lambda k: guide.space.flatten(ppl.run(guide(params), k)))(keys)

    n = 4000
    z = np.asarray(draws(jax.random.split(jax.random.key(0), n)))
    mean, covariance = normal(guide, params)
    white = np.linalg.solve(np.linalg.cholesky(covariance), (z - mean).T)
    # Of the 3 means and 6 products none should be off.
    assert np.all(np.abs(white.mean(1)) * np.sqrt(n) < Z)
    second = white @ white.T / n - np.eye(len(mean))
    deviation = np.sqrt((1 + np.eye(len(mean))) / n)
    assert np.all(np.abs(second) < Z * deviation)


@pytest.mark.parametrize("make", NORMALS)
def test_evidence_with_a_guide_as_proposal(make):
    program = linear(Y)
    guide = make(program)
    proposal = guide(wide(guide.params))
    weights = ppl.run(ppl.importance(program, 4000, proposal=proposal), 0).log_weights
    relative = np.exp(np.asarray(weights) - exact_linear(Y)[2])
    assert abs(relative.mean() - 1) < Z * relative.std() / np.sqrt(len(relative))


def test_smc_with_a_guide_in_a_scan():
    @ppl.model
    def chain(y):
        def step(x, y):
            x = ppl.sample("x", dist.Normal(x, 1.0))
            ppl.sample("y", dist.Normal(x, 1.0), obs=y)
            return x, None

        jax.lax.scan(step, 0.0, y)

    y = jnp.array([0.5, -1.0, 1.0])
    guide = guides.mean_field(chain(y), init={"x": 0.5 * y}, init_scale=1.5)
    smc = ppl.smc(chain(y), 50, proposal=guide(guide.params))
    keys = jax.random.split(jax.random.key(0), 200)
    log_evidence = jax.jit(jax.vmap(lambda k: ppl.run(smc, k).log_evidence))(keys)
    times = np.arange(1, 4)
    covariance = np.minimum.outer(times, times) + np.eye(3)
    exact = stats.multivariate_normal(np.zeros(3), covariance).logpdf(y)
    relative = np.exp(np.asarray(log_evidence) - exact)
    assert abs(relative.mean() - 1) < Z * relative.std() / np.sqrt(len(relative))


# --- Exact posteriors ---------------------------------------------------------------------------


def exact_full_rank():
    mean, covariance, _ = exact_linear(Y)
    guide = guides.full_rank(linear(Y))
    factor = np.linalg.cholesky(covariance)
    factor[:, 1] *= -1  # the sign of a column does not matter
    return guide, {"loc": jnp.asarray(mean), "scale_tril": jnp.asarray(factor)}


def exact_structured():
    mean, covariance, _ = exact_linear(Y)
    guide = guides.structured(linear(Y))
    slope = covariance[1:, :1] / covariance[0, 0]
    rest = np.diagonal(covariance)[1:] - slope[:, 0] ** 2 * covariance[0, 0]
    loc = np.r_[mean[0], mean[1:] - slope[:, 0] * mean[0]]
    log_scale = 0.5 * np.log(np.r_[covariance[0, 0], rest])
    weights = {"mu": {}, "theta": {"mu": jnp.asarray(slope)}}
    params = {"loc": jnp.asarray(loc), "log_scale": jnp.asarray(log_scale), "weights": weights}
    return guide, params


def exact_laplace():
    guide = guides.laplace(linear(Y), init={"mu": 5.0})
    return guide, guide.params


@pytest.mark.parametrize("make", [exact_full_rank, exact_structured, exact_laplace])
def test_the_exact_posterior_gives_constant_weights(make):
    guide, params = make()
    assert jax.tree.structure(params) == jax.tree.structure(guide.params)
    population = ppl.run(ppl.importance(linear(Y), 50, proposal=guide(params)), 0)
    assert np.std(population.log_weights) < 1e-8
    np.testing.assert_allclose(population.log_evidence, exact_linear(Y)[2], atol=1e-8)


def test_laplace_is_the_normal_at_the_mode():
    @ppl.model
    def gamma():
        ppl.sample("rate", dist.Gamma(3.0, 2.0))

    # In z = log(rate) the log density is 3 z - 2 exp(z): mode log(3 / 2), curvature 3.
    guide = guides.laplace(gamma(), init={"rate": 40.0})
    np.testing.assert_allclose(guide.params["loc"], [np.log(1.5)], rtol=1e-10)
    np.testing.assert_allclose(guide.params["scale_tril"], [[3**-0.5]], rtol=1e-10)
    assert guide.space.names == ("rate",)
    assert guide(guide.params).name == "laplace(gamma)"


def test_laplace_in_single_precision():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 3))
    y = (X[:, 0] + rng.normal(size=400) > 0).astype(int)

    @ppl.model
    def logistic(X, y):
        scale = ppl.sample("scale", dist.HalfNormal(1.0))
        b = ppl.sample("b", dist.Normal(0.0, scale).expand([3]).to_event(1))
        with ppl.plate("n", X.shape[0]):
            ppl.sample("y", dist.Bernoulli(logits=X @ b), obs=y)

    double = guides.laplace(logistic(X, y)).params
    with jax.enable_x64(False):
        single = guides.laplace(logistic(X.astype(np.float32), y.astype(np.int32))).params
    assert single["loc"].dtype == np.float32
    deviation = np.sqrt(np.diagonal(double["scale_tril"] @ double["scale_tril"].T))
    assert np.all(np.abs(single["loc"] - double["loc"]) < 1e-3 * deviation)
    np.testing.assert_allclose(single["scale_tril"], double["scale_tril"], rtol=1e-2, atol=1e-5)


# --- Gradients, points, starts ------------------------------------------------------------------


@pytest.mark.parametrize("make", [*NORMALS, guides.delta])
def test_draws_move_with_their_location(make):
    guide = make(linear(Y))

    def theta(params):
        return ppl.run(guide(params), 3)["theta"]

    slope = jax.jacobian(theta)(guide.params)["loc"]
    np.testing.assert_allclose(slope, [[0, 1, 0], [0, 0, 1]], atol=1e-12)


def test_delta_is_a_point():
    program = constrained(jnp.arange(2.0))
    guide = guides.delta(program)
    params = moved(guide.params)

    @jax.jit
    def everything(params):
        q = guide(params)
        choices = ppl.run(q, 0)
        population = ppl.run(ppl.importance(program, 1, proposal=q), 0)
        joint = ppl.log_density(program, choices)
        return choices, population.log_weights[0], joint, ppl.log_density(q, choices)

    choices, weight, joint, density = everything(params)
    expected = jax.jit(guide.space.unflatten)(params["loc"])
    for address in program.latents:
        np.testing.assert_allclose(choices[address], expected[address], rtol=1e-12)
    assert density == 0
    np.testing.assert_allclose(weight, joint, rtol=1e-12)  # no Jacobian: the constrained density


@pytest.mark.parametrize("make", [*NORMALS, guides.delta])
def test_init(make):
    @ppl.model
    def nested():
        u = ppl.sample("u", dist.Gamma(2.0, 1.0))
        v = ppl.sample("v", dist.Uniform(0.0, u))
        ppl.sample("w", dist.Uniform(v, u + 1))

    guide = make(nested(), init={"u": 3.0, "w": 2.5})
    loc = guide.params["loc"]
    found = guide.space.unflatten(loc)
    np.testing.assert_allclose([found["u"], found["w"]], [3.0, 2.5], rtol=1e-12)
    assert loc[1] == 0  # not given
    np.testing.assert_array_equal(make(nested()).params["loc"], np.zeros(3))
    with pytest.raises(AddressError, match="Did you mean"):
        make(nested(), init={"uu": 3.0})
    with pytest.raises(ObservationError, match="support"):
        make(nested(), init={"u": 3.0, "w": 7.0})


def test_subsampled_plates_are_drawn_as_in_the_model():
    @ppl.model
    def model(y):
        m = ppl.sample("m", dist.Normal(0.0, 1.0))
        with ppl.plate("n", 6, subsample_size=2) as i:
            ppl.sample("y", dist.Normal(m, 1.0), obs=y[i])

    y = jnp.arange(6.0)
    for make in [guides.mean_field, guides.full_rank]:
        guide = make(model(y), init={"m": 0.5})
        q = guide(guide.params)
        choices = ppl.run(q, 0)
        assert q.sites["n"].distribution == "Subsample"
        expected = stats.norm(0.5, 0.1).logpdf(choices["m"]) - np.log(6 * 5)
        np.testing.assert_allclose(ppl.log_density(q, choices), expected, rtol=1e-12)


def test_a_scaled_latent_is_drawn_once():
    program = ppl.scale(linear(Y), 0.5, ["mu"])
    guide = guides.mean_field(program)
    q = guide(guide.params)
    assert not q.structure.open_scores
    expected = stats.norm(0, 0.1).logpdf(np.zeros(3)).sum()
    zero = {"mu": 0.0, "theta": np.zeros(2)}
    np.testing.assert_allclose(ppl.log_density(q, zero), expected, rtol=1e-12)


# --- Guides of the user -------------------------------------------------------------------------


def test_an_amortised_guide():
    @ppl.model
    def pair(y):
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(x, 1.0), obs=y)

    @ppl.model
    def amortised(network, y):
        loc, log_scale = network(y[None])
        ppl.sample("x", dist.Normal(loc, jnp.exp(log_scale)))

    network = eqx.nn.Linear(1, 2, key=jax.random.key(0))
    exact = np.array([[0.5], [0.0]]), np.array([0.0, 0.5 * np.log(0.5)])
    network = eqx.tree_at(lambda n: (n.weight, n.bias), network, exact)
    params, rest = eqx.partition(network, eqx.is_inexact_array)
    y = jnp.asarray(1.7)
    guide = guides.guide(lambda p: amortised(eqx.combine(p, rest), y), params)
    assert isinstance(guide, guides.Guide)
    population = ppl.run(ppl.importance(pair(y), 20, proposal=guide(guide.params)), 0)
    assert np.std(population.log_weights) < 1e-12
    gradient = jax.grad(lambda p: ppl.log_density(guide(p), {"x": 1.0}))(guide.params)
    assert np.all(np.isfinite(gradient.weight))
    with pytest.raises(ArgumentError, match=re.escape("eqx.partition")):
        guides.guide(lambda n: amortised(n, y), eqx.nn.MLP(1, 2, 3, 1, key=jax.random.key(0)))
    with pytest.raises(ArgumentError, match="needs a function from parameters"):
        guides.Guide.of(amortised(network, y), params)
    with pytest.raises(ArgumentError, match="from parameters to a program"):
        guides.guide(lambda p: p, 1.0)(1.0)
    with pytest.raises(ArgumentError, match="made of a function"):
        _ = guide.space


def test_a_guide_is_a_pytree():
    guide = guides.structured(linear(Y))
    leaves, tree = jax.tree.flatten(guide)
    again = jax.tree.unflatten(tree, leaves)
    assert jax.tree.structure(again) == tree == jax.tree.structure(guides.structured(linear(Y + 1)))

    @jax.jit
    def draw(guide, params):
        return ppl.run(guide(params), 0)["theta"]

    one = draw(guide, guide.params)
    with compilations() as more:
        two = draw(guides.structured(linear(Y + 1)), guide.params)
    assert more.count == 0
    np.testing.assert_array_equal(one, two)  # the guide does not read the data


@pytest.mark.parametrize("make", [*NORMALS, guides.delta])
def test_new_parameters_compile_nothing(make):
    guide = make(linear(Y))
    params = [moved(guide.params, seed) for seed in range(3)]

    def fun(params, key):
        q = guide(params)
        return ppl.log_density(q, ppl.run(q, key))

    with compilations() as first:
        fun(params[0], 0)
    assert first.count > 0
    fun(params[1], 1)
    with compilations() as again:
        fun(params[2], 2)
    assert again.count == 0


def test_a_guide_of_a_function_is_called_inside_a_model():
    @ppl.model
    def belief(params):
        ppl.sample("x", dist.Normal(params["loc"], 1.0))

    guide = guides.guide(belief, {"loc": jnp.array(0.5)})

    @ppl.model
    def outer():
        return ppl.log_density(guide(guide.params), {"x": jnp.array(0.0)})

    np.testing.assert_allclose(ppl.run(outer(), 0), stats.norm.logpdf(0.5), atol=1e-10)
    with pytest.raises(ArgumentError, match="gave float"):
        guides.guide(lambda params: 1.0, {"loc": jnp.array(0.5)})(guide.params)


@pytest.mark.parametrize("make", [guides.full_rank, guides.structured])
def test_several_samples_of_a_guide_of_scalars(make):
    """The noise is a vector where the draw is a scalar."""

    @ppl.model
    def pair():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("y", dist.Normal(x, 1.0))

    guide = make(pair())

    def slope(params):
        bound = ppl.vi.elbo(pair(), guide(params))
        return ppl.run(ppl.vi.expectation(bound, num_samples=3), 0)

    for gradient in jax.tree.leaves(jax.grad(slope)(guide.params)):
        assert np.all(np.isfinite(gradient))


# --- Flows --------------------------------------------------------------------------------------


def test_flow():
    pytest.importorskip("flowjax")

    @ppl.model
    def model(y):
        scale = ppl.sample("scale", dist.Gamma(2.0, 2.0))
        with ppl.plate("n", 3):
            ppl.sample("x", dist.Uniform(0.0, scale))

    program = model(0.0)
    guide = guides.flow(program, init_scale=1.0)
    q = guide(moved(guide.params, size=0.1))
    # The program is a probability: its evidence is 1, if the flow's draws have the flow's density.
    weights = np.exp(ppl.run(ppl.importance(program, 4000, proposal=q), 0).log_weights)
    assert abs(weights.mean() - 1) < Z * weights.std() / np.sqrt(len(weights))
    assert q.sites["x"].depends_on == ("scale",)
    same = guides.flow(program, init_scale=1.0)
    assert jax.tree.structure(same) == jax.tree.structure(guide)


def test_flow_without_flowjax(monkeypatch):
    monkeypatch.setitem(sys.modules, "flowjax", None)
    monkeypatch.setitem(sys.modules, "flowjax.flows", None)
    with pytest.raises(UnsupportedError, match="flowjax, which is not installed"):
        guides.flow(linear(Y))
