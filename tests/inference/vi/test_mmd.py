"""Weighted KL divergences and the MMD: values and gradients against sums over all choices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import ppl
import ppl.distributions as dist
from ppl.errors import AddressError, ArgumentError, UnsupportedError
from ppl.inference.vi import mmd
from tests.compiling import compilations
from tests.inference.vi.finite_sums import mean

pytestmark = pytest.mark.usefixtures("x64")
vi, sample, B = ppl.vi, ppl.sample, dist.Bernoulli
sigmoid = jax.nn.sigmoid
Y = np.array([0.7, -0.4])
PARAMS = {"th": np.array(0.3), "ph": np.array([0.9, -1.1])}
PAIRS = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]])


@ppl.model
def rows(th, y):
    with ppl.plate("row", 2):
        z = sample("z", B(sigmoid(th)))
        sample("y", dist.Normal(z + th, 1.0), obs=y)


@ppl.model
def apart(ph):
    with ppl.plate("row", 2):
        sample("z", B(sigmoid(ph)))


@ppl.model
def chained(ph):
    """The second row's draw depends on the first's."""

    def step(before, logit):
        z = sample("z", B(sigmoid(logit * (1 + before))))
        return z, None

    jax.lax.scan(step, 0, ph)


GUIDES = {"apart": apart, "chained": chained}


def rbf(x, y):
    return jnp.exp(-0.5 * (x - y) ** 2)


def product(x, y):
    return (1 + x * y) ** 2


KERNELS = {"rbf": ("rbf", rbf), "function": (lambda x, y: (1 + x @ y) ** 2, product)}


def parts(params, guide):
    """The mean log likelihood, the KL divergence from the prior and the law of one element."""
    th = params["th"]
    p, q = (
        jax.vmap(lambda z, x=x: ppl.log_density(x, {"z": z}))(PAIRS)
        for x in (rows(th, Y), guide(params["ph"]))
    )
    prior = jnp.sum(jnp.where(PAIRS == 1, jnp.log(sigmoid(th)), jnp.log(sigmoid(-th))), 1)
    chance = jnp.exp(q)
    element = jnp.mean(chance @ PAIRS)
    return chance @ (p - prior), chance @ (q - prior), jnp.stack([1 - element, element])


def squared_mmd(params, law, kernel):
    ends = jnp.arange(2.0)
    prior = jnp.stack([sigmoid(-params["th"]), sigmoid(params["th"])])
    return (law - prior) @ kernel(ends[:, None], ends) @ (law - prior)


def same(objective, exact):
    """Assert that value and gradient have the exact means."""
    np.testing.assert_allclose(mean(objective, PARAMS)(PARAMS), exact(PARAMS), rtol=0, atol=1e-10)
    found = jax.grad(mean(lambda p: vi.expectation(objective(p)), PARAMS))(PARAMS)
    right = jax.grad(exact)(PARAMS)
    np.testing.assert_allclose(ravel_pytree(found)[0], ravel_pytree(right)[0], rtol=0, atol=1e-10)


def functions(guide):
    return lambda p: rows(p["th"], Y), lambda p: guide(p["ph"])


@pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)
@pytest.mark.parametrize("beta", [0, 3.0])
def test_beta_elbo(guide, beta):
    objective = vi.beta_elbo(*functions(guide), beta=beta)
    assert objective.maximize

    def exact(params):
        likelihood, kl, _ = parts(params, guide)
        return likelihood - beta * kl

    same(objective, exact)


def test_with_beta_one_it_is_the_elbo():
    one, elbo = vi.beta_elbo(*functions(chained), beta=1), vi.elbo(*functions(chained))
    assert abs(mean(one, PARAMS)(PARAMS) - mean(elbo, PARAMS)(PARAMS)) < 1e-12


@pytest.mark.parametrize("guide", GUIDES.values(), ids=GUIDES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_infovae(guide, kernel):
    given, plain = KERNELS[kernel]
    objective = vi.infovae(
        *functions(guide), address="z", mmd_weight=3.0, kl_weight=0.4, kernel=given
    )

    def exact(params):
        likelihood, kl, law = parts(params, guide)
        return likelihood - 0.4 * kl - 3.0 * squared_mmd(params, law, plain)

    same(objective, exact)


def test_three_runs_have_the_same_mean():
    settings = {"address": "z", "mmd_weight": 2.0}
    both = [vi.infovae(*functions(apart), **settings, num_particles=n) for n in (2, 3)]
    values = [mean(x, PARAMS)(PARAMS) for x in both]
    np.testing.assert_allclose(*values, rtol=0, atol=1e-10)


def diagonal(x, y, kernel):
    """The V-statistic: a run is compared with itself."""
    x, y = (z.reshape(-1, z.shape[-1]) for z in (x, y))
    over = jax.vmap(jax.vmap(kernel, (None, 0)), (0, None))
    return jnp.mean(over(x, x) + over(y, y) - 2 * over(x, y))


def pooled(x, y, kernel):
    """The U-statistic over elements, as if those of one run were independent and alike."""
    x, y = (z.reshape(-1, 1) for z in (x, y))
    over = jax.vmap(jax.vmap(kernel, (None, 0)), (0, None))
    others = 1 - jnp.eye(len(x))
    within = jnp.sum(others * (over(x, x) + over(y, y))) / jnp.sum(others)
    return within - 2 * jnp.mean(over(x, y))


@pytest.mark.parametrize("wrong", [diagonal, pooled])
def test_known_mistakes_are_seen(wrong, monkeypatch):
    """Both are biased where the rows of a run differ."""
    monkeypatch.setattr(mmd, "_squared_mmd", wrong)
    objective = vi.infovae(  # the kernel is new, so that nothing staged before is used
        *functions(apart), address="z", mmd_weight=3.0, kernel=lambda x, y: mmd._rbf(x, y)
    )
    bound, kl, law = parts(PARAMS, apart)
    right = bound - kl - 3.0 * squared_mmd(PARAMS, law, rbf)
    assert abs(mean(objective, PARAMS)(PARAMS) - right) > 1e-2


def test_events_are_points():
    """Against normal integrals. |z| > 5.5 has a probability below one in ten million."""
    loc, sd, number = jnp.array([0.5, -1.0]), 0.6, 40_000

    @ppl.model
    def model():
        sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))

    @ppl.model
    def guide():
        sample("z", dist.Normal(loc, sd).to_event(1))

    program = vi.infovae(model(), guide(), address="z", mmd_weight=1.0, kl_weight=0.0)
    run = jax.vmap(lambda key: ppl.run(program, key))
    values = np.asarray(run(jax.random.split(jax.random.key(0), number)))

    def integral(shift, variance):  # of the kernel exp(-|x - y|^2 / 4): a normal of variance 2
        return np.prod(np.sqrt(2 / (2 + variance)) * np.exp(-(shift**2) / (2 * (2 + variance))))

    zero, shift = np.zeros(2), np.asarray(loc)
    right = integral(zero, 2 * sd**2) + integral(zero, 2.0) - 2 * integral(shift, 1 + sd**2)
    error = values.std(ddof=1) / math.sqrt(number)
    assert right > 30 * error
    assert abs(values.mean() + right) < 5.5 * error


def test_minibatches_are_unbiased():
    data = np.array([0.3, -1.0, 0.8])

    @ppl.model
    def minibatch(th, data):
        with ppl.plate("n", 3, subsample_size=2) as index:
            z = sample("z", B(sigmoid(th)))
            sample("y", dist.Normal(z + th, 1.0), obs=data[index])

    @ppl.model
    def local(ph):
        with ppl.plate("n", 3, subsample_size=2):
            sample("z", B(sigmoid(ph)))

    def whole(params):
        p, q = sigmoid(params["th"]), sigmoid(params["ph"])
        p, q = jnp.stack([1 - p, p]), jnp.stack([1 - q, q])
        z = jnp.array([0.0, 1.0])
        likelihood = jax.scipy.stats.norm.logpdf(data[:, None], z + params["th"], 1.0)
        return jnp.sum(likelihood @ q) - 3 * 0.3 * q @ jnp.log(q / p)

    at = {"th": np.array(0.2), "ph": np.array(-0.5)}
    estimate = vi.grad_estimate(
        lambda p: vi.beta_elbo(minibatch(p["th"], data), local(p["ph"]), beta=0.3)
    )(at)
    report = ppl.check.unbiased(estimate, jax.grad(whole)(at))
    assert report.passed, report
    assert report.false_alarm == 0


def test_a_fit_brings_the_draws_to_the_prior():
    """Without KL the spread of the guide's draws is that of the prior only if MMD weighs.

    The two fits are of fixed seeds; 20,000 draws put the error of a standard deviation at 0.005.
    """
    data = jnp.asarray(np.linspace(-1.0, 1.0, 8))

    @ppl.model
    def decoder(params, y):
        with ppl.plate("row", 8):
            z = sample("z", dist.Normal(0.0, 1.0))
            sample("y", dist.Normal(params["out"] * z, 1.0), obs=y)

    @ppl.model
    def encoder(params, y):
        with ppl.plate("row", 8):
            sample("z", dist.Normal(params["read"] * y, jnp.exp(params["log_scale"])))

    start = {"out": jnp.array(0.5), "read": jnp.array(0.1), "log_scale": jnp.array(-2.0)}

    def spread(weight):
        objective = vi.infovae(
            lambda p: decoder(p, data),
            lambda p: encoder(p, data),
            address="z",
            mmd_weight=weight,
            kl_weight=0.0,
        )
        fit = vi.fit(objective, start, optimizer=optax.adam(0.02), num_steps=800, average=0.3)
        found = ppl.run(fit, 0)
        return float(np.std(found.draws(1, 2500)["z"]))

    assert abs(spread(300.0) - 1.0) < 0.15
    assert abs(spread(0.0) - 1.0) > 0.3


def test_new_data_and_parameters_compile_nothing():
    def slope(params, y):
        objective = vi.infovae(
            rows(params["th"], y), apart(params["ph"]), address="z", mmd_weight=1.0
        )
        return ppl.run(vi.expectation(objective), 0)

    slope(PARAMS, Y)
    with compilations() as found:
        slope(jax.tree.map(lambda x: x + 1, PARAMS), Y + 1)
    assert found.count == 0


def test_refusals():
    pair = rows(0.3, Y), apart(PARAMS["ph"])
    right = {"address": "z", "mmd_weight": 1.0}
    for name, wrong in [
        ("kernel", "laplace"),
        ("mmd_weight", -1.0),
        ("kl_weight", np.nan),
        ("num_particles", 1),
    ]:
        with pytest.raises(ArgumentError, match=f"infovae got {name}="):
            vi.infovae(*pair, **{**right, name: wrong})
    with pytest.raises(ArgumentError, match="beta_elbo got beta=-1"):
        vi.beta_elbo(*pair, beta=-1)
    with pytest.raises(AddressError, match="address"):
        vi.infovae(*pair, address="y", mmd_weight=1.0)
    with pytest.raises(ArgumentError, match="kl_weight"):
        vi.infovae(*pair, **right, kl=1.0)

    @ppl.model
    def branch(y):
        a = sample("a", B(0.5))
        z = jax.lax.cond(a == 1, lambda: sample("z", B(0.5)), lambda: 0)
        sample("y", dist.Normal(z, 1.0), obs=y)

    @ppl.model
    def ahead():
        sample("z", B(0.4))

    with pytest.raises(UnsupportedError, match="branch"):
        vi.infovae(branch(0.3), ahead(), **right)
