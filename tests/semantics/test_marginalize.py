"""marginalize: against brute force over all values of the summed sites, value and gradient."""

from __future__ import annotations

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import ppl
import ppl.distributions as dist
from ppl.check.programs import programs
from ppl.errors import AddressError, UnsupportedError
from ppl.semantics.marginal import SummedOut, marginalize
from tests.compiling import compilations
from tests.semantics.marginal_loops import CHAIN, LOOPS, NESTING, hmm
from tests.semantics.marginal_models import (
    MEETING,
    PLATES,
    SIMPLEX,
    Y4,
    arrays,
    chained,
    continuous,
    log_densities,
    mixture,
    nested,
)

pytestmark = pytest.mark.usefixtures("x64")


def check(program, summed, rest, addresses=None):
    """Compare value and gradient with brute force."""
    marginal = marginalize(program, addresses)
    assert set(marginal.latents) == set(rest)

    def exact(rest):
        return jax.nn.logsumexp(log_densities(program, summed, rest))

    one, grad = jax.jit(jax.value_and_grad(lambda r: ppl.log_density(marginal, r)))(rest)
    two, exact_grad = jax.jit(jax.value_and_grad(exact))(rest)
    assert np.isfinite(two)
    np.testing.assert_allclose(one, two, rtol=1e-10, atol=1e-10)
    for a in rest:
        np.testing.assert_allclose(grad[a], exact_grad[a], rtol=1e-9, atol=1e-9)
    return marginal


CASES = {**PLATES, **LOOPS, **NESTING, **MEETING}


@pytest.mark.parametrize("name", CASES)
def test_the_sum_over_all_values(name):
    model, y, summed, rest = CASES[name]
    check(model(y), summed, arrays(**rest))


def test_a_plate_costs_n_times_k():
    """Over 2000 members there is no other way to get an answer."""
    y = np.linspace(-1, 1, 2000)
    rest = arrays(**PLATES["mixture"][3])
    ours = ppl.log_density(marginalize(mixture(y)), rest)
    inner = jnp.log(rest["w"]) + dist.Normal(rest["mu"], 0.5).log_prob(y[:, None])
    prior = jnp.sum(dist.Normal(0.0, 1.0).log_prob(rest["mu"]))
    prior += dist.Dirichlet(jnp.ones(3)).log_prob(rest["w"])
    np.testing.assert_allclose(ours, prior + jnp.sum(jax.nn.logsumexp(inner, -1)), rtol=1e-12)


def test_a_loop_is_the_forward_algorithm():
    """Over 300 steps; written by hand, with value and gradient."""
    y = jnp.sin(jnp.arange(300.0))

    def by_hand(rest):
        table, mu = jnp.log(rest["A"]), rest["mu"]
        emit = dist.Normal(mu, 0.7).log_prob(y[:, None])
        prior = jnp.sum(dist.Normal(0.0, 1.0).log_prob(mu))
        prior += jnp.sum(dist.Dirichlet(jnp.ones((3, 3))).log_prob(rest["A"]))

        def step(alpha, emit):
            return jax.nn.logsumexp(alpha[:, None] + table, 0) + emit, None

        return prior + jax.nn.logsumexp(jax.lax.scan(step, table[0] + emit[0], emit[1:])[0])

    marginal, rest = marginalize(hmm(y)), arrays(**CHAIN)
    ours, grad = jax.jit(jax.value_and_grad(lambda r: ppl.log_density(marginal, r)))(rest)
    exact, exact_grad = jax.jit(jax.value_and_grad(by_hand))(rest)
    np.testing.assert_allclose(ours, exact, rtol=1e-12)
    for a in rest:
        np.testing.assert_allclose(grad[a], exact_grad[a], rtol=1e-9)


def test_second_derivatives():
    program, rest = hmm(Y4), arrays(**CHAIN)
    marginal = marginalize(program)

    def along(density):
        return jax.jit(jax.hessian(lambda mu: density({**rest, "mu": mu})))(rest["mu"])

    exact = along(lambda r: jax.nn.logsumexp(log_densities(program, {"z": range(3)}, r)))
    ours = along(lambda r: ppl.log_density(marginal, r))
    np.testing.assert_allclose(ours, exact, rtol=1e-9, atol=1e-9)


def test_vmap_over_choices_and_data():
    rest = arrays(**PLATES["mixture"][3])
    ys = jnp.stack([Y4, Y4 + 1])
    out = jax.vmap(lambda y: ppl.log_density(marginalize(mixture(y)), rest))(ys)
    one = [ppl.log_density(marginalize(mixture(y)), rest) for y in ys]
    np.testing.assert_allclose(out, one, rtol=1e-12)


def test_new_data_compile_nothing():
    rest = arrays(**CHAIN)
    gradient = jax.jit(jax.value_and_grad(lambda r, m: ppl.log_density(m, r)))

    def run(y):
        marginal = marginalize(hmm(y))
        return gradient(rest, marginal), ppl.log_density(marginal, rest)

    run(np.arange(5.0))
    with compilations() as found:
        run(np.ones(5))
    assert found.count == 0


# --- Some sites only, and other handlers --------------------------------------------------------


def test_some_sites_only():
    rest = {"out": np.array([[0, 1, 0], [1, 1, 0]]), **arrays(mu=[0.1, -0.4, 1.0], p=0.3)}
    program = nested(PLATES["nested"][1])
    marginal = marginalize(program, ["kind"])
    exact = jax.nn.logsumexp(log_densities(program, {"kind": range(3)}, rest))
    np.testing.assert_allclose(ppl.log_density(marginal, rest), exact, rtol=1e-12)
    # One after the other is all at once.
    twice = marginalize(marginal, ["out"])
    del rest["out"]
    np.testing.assert_allclose(
        ppl.log_density(twice, rest), ppl.log_density(marginalize(program), rest), rtol=1e-12
    )


@pytest.mark.parametrize(
    "handler",
    [
        lambda p: ppl.scale(p, 0.5, ["z", "y"]),
        lambda p: ppl.mask(p, np.array([True, False, True])),
        lambda p: ppl.condition(p, {"w": np.array([0.2, 0.3, 0.5])}),
    ],
    ids=["scale", "mask", "condition"],
)
def test_after_a_handler(handler):
    program = handler(mixture(Y4[:3]))
    rest = {a: x for a, x in arrays(**PLATES["mixture"][3]).items() if a in program.latents}
    check(program, {"z": range(3)}, rest)


def test_nothing_to_sum():
    program = continuous(Y4)
    assert marginalize(ppl.condition(program, {"z": np.zeros(4, int)})).latents == ("x", "t")


# --- Branches: a site that is absent counts once ------------------------------------------------


@ppl.model
def branches(y):
    mu = ppl.sample("mu", dist.Normal(0.0, 1.0).expand([2]))
    z = ppl.sample("z", dist.Bernoulli(0.3))

    def yes(x):
        u = ppl.sample("u", dist.Bernoulli(0.2))
        ppl.sample("y1", dist.Normal(x + u, 1.0), obs=y[0])
        return mu[1] + u

    def no(x):
        ppl.sample("y2", dist.Normal(x, 2.0), obs=y[1])
        return mu[0]

    mean = jax.lax.cond(z == 1, yes, no, mu[0])
    ppl.sample("y", dist.Normal(mean, 1.0), obs=y[2])


@ppl.model
def branch_on_latent(y):
    mu = ppl.sample("mu", dist.Normal(0.0, 1.0).expand([2]))

    def one(p):
        return lambda x: ppl.sample("z", dist.Bernoulli(p)) + ppl.sample(f"u{p}", dist.Bernoulli(p))

    z = jax.lax.cond(mu[0] > 0, one(0.2), one(0.7), 0)
    ppl.sample("y", dist.Normal(mu[z], 1.0), obs=y[2])


@ppl.model
def branch_in_vmap(y):
    mu = ppl.sample("mu", dist.Normal(0.0, 1.0).expand([2]))

    def lane(y):
        z = ppl.sample("z", dist.Bernoulli(0.3))

        def yes(x):
            u = ppl.sample("u", dist.Bernoulli(0.2))
            ppl.sample("y1", dist.Normal(x + u, 1.0), obs=y)
            return mu[1] + u

        mean = jax.lax.cond(z == 1, yes, lambda x: x * 2, mu[0])
        ppl.sample("y", dist.Normal(mean, 1.0), obs=y)

    jax.vmap(lane)(y[:3])


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("model", [branches, branch_on_latent, branch_in_vmap])
def test_branches(model, sign):
    rest = arrays(mu=[0.3 * sign, -0.4])
    program = model(Y4)
    mass = ppl.enumerate(ppl.condition(program, rest)).total_mass
    ours = ppl.log_density(marginalize(program), rest)
    np.testing.assert_allclose(ours, np.log(mass), rtol=1e-10)


# --- Probability zero ---------------------------------------------------------------------------


@ppl.model
def zeros(y, start, A):
    b = ppl.sample("b", dist.Normal(0.0, 1.0))

    def step(z, y):
        z = ppl.sample("z", dist.Categorical(A[z]))
        ppl.sample("y", dist.Normal(b * z, 0.7), obs=y)
        return z, None

    jax.lax.scan(step, ppl.sample("z0", dist.Categorical(start)), y)


def test_probability_zero():
    start, A = jnp.array([0.5, 0.5, 0.0]), jnp.array([[0.5, 0.5, 0], [0, 1.0, 0], [0.2, 0, 0.8]])
    rest, summed = arrays(b=0.4), {"z0": range(3), "z": range(3)}
    check(zeros(Y4, start, A), summed, rest)

    def density(b, start, A):
        return ppl.log_density(marginalize(zeros(Y4, start, A)), {"b": b})

    for grad in jax.jit(jax.grad(density, (0, 1, 2)))(rest["b"], start, A):
        assert np.all(np.isfinite(grad))


@ppl.model
def impossible(x):
    z = ppl.sample("z", dist.Bernoulli(0.5))
    ppl.factor("f", x * z + jnp.where(z < 2, -jnp.inf, 0.0))


def test_nothing_possible():
    value, grad = jax.value_and_grad(lambda x: ppl.log_density(marginalize(impossible(x)), {}))(1.0)
    assert value == -np.inf
    assert grad == 0


# --- Random programs ----------------------------------------------------------------------------


@pytest.mark.slow
@hypothesis.settings(max_examples=12)
@hypothesis.given(programs("finite", max_worlds=60), st.randoms(use_true_random=False))
def test_random_programs(program, random):
    """Against the total mass of the program conditioned on the sites that stay."""
    summed = [a for a in program.latents if random.random() < 0.6]
    choices = ppl.trace(program, 0).choices
    rest = {a: x for a, x in choices.items() if a not in summed}
    try:
        marginal = marginalize(program, summed)
    except UnsupportedError:
        return
    mass = ppl.enumerate(ppl.condition(program, rest)).total_mass
    ours = ppl.log_density(marginal, rest)
    # NumPyro's log densities move probabilities of 0 and 1 inwards by a rounding error.
    np.testing.assert_allclose(np.exp(ours), mass, rtol=1e-10, atol=1e-13)


# --- What it returns, and what it refuses -------------------------------------------------------


def test_values_that_depend_on_summed_sites_are_marked():
    marginal = marginalize(hmm(Y4))
    mu, states = marginal.structure.shapes
    assert mu.shape == (3,)
    assert states == SummedOut(("z",))
    point = ppl.unconstrain(marginalize(mixture(Y4))).at(jnp.zeros(5))
    assert point.value[1] == SummedOut(("z",))


@pytest.mark.slow
def test_mcmc_runs_on_a_marginal_program():
    kernel = ppl.kernels.nuts()
    marginal = marginalize(continuous(Y4))
    mcmc = ppl.mcmc(marginal, kernel, num_samples=5, num_warmup=5, num_chains=1)
    draws = ppl.run(mcmc, key=0).draws
    assert {a: x.shape for a, x in draws.items()} == {"x": (1, 5, 4), "t": (1, 5, 4)}
    assert all(np.all(np.isfinite(x)) for x in draws.values())


def refused(fun, *args, addresses=None, **kwargs):
    with pytest.raises(UnsupportedError) as caught:
        marginalize(ppl.model(fun)(*args, **kwargs), addresses)
    return str(caught.value)


def test_unknown_and_infinite_sites():
    with pytest.raises(AddressError, match='unknown address "x"'):
        marginalize(mixture(Y4), ["x"])

    def poisson():
        ppl.sample("k", dist.Poisson(2.0))

    assert 'got Poisson at "k"' in refused(poisson, addresses=["k"])
    assert 'got Normal at "mu"' in refused(mixture.__wrapped_model__, Y4, addresses=["mu"])

    def traced(n):
        ppl.sample("k", dist.Binomial(n, 0.5))

    assert "depends on a traced value" in refused(traced, np.int64(3))


def test_members_that_meet_and_are_too_many():
    def ising():
        with ppl.plate("n", 20):
            z = ppl.sample("z", dist.Bernoulli(0.3))
        ppl.factor("f", 0.5 * jnp.sum(z[1:] * z[:-1]))

    text = refused(ising)
    assert 'got "z" (test_marginalize.py:' in text
    assert "whose members meet in the operation 'slice'" in text
    assert "1.05e+06 combinations" in text


def test_crossed_plates():
    def crossed():
        with ppl.plate("r", 12, dim=-2):
            a = ppl.sample("a", dist.Bernoulli(0.3))
        with ppl.plate("c", 12):
            b = ppl.sample("b", dist.Bernoulli(0.6))
        ppl.factor("f", -1.0 * a * b)

    assert "couple members of different plates" in refused(crossed)


def test_loops_that_remember_too_much():
    def counting():
        def step(n, _):
            return n + ppl.sample("z", dist.Bernoulli(0.3)), None

        n, _ = jax.lax.scan(step, 0, length=30)
        ppl.factor("f", -0.1 * n)

    text = refused(counting)
    assert 'carry depends on "z" (test_marginalize.py:' in text
    assert "ppl.enumerate" in text

    def stacked():
        def step(_, x):
            return _, ppl.sample("z", dist.Bernoulli(0.3))

        _, zs = jax.lax.scan(step, 0, length=30)
        ppl.factor("f", -0.1 * jnp.sum(zs) ** 2)

    assert 'got "f" (test_marginalize.py:' in refused(stacked)
    assert "in all iterations of a loop" in refused(stacked)


def test_sites_in_a_while_loop():
    def looping():
        def body(n):
            z = ppl.sample("z", dist.Bernoulli(0.3))
            ppl.factor("f", -1.0 * z)
            return n + 1

        jax.lax.while_loop(lambda n: n < 3, body, 0)

    assert 'latent site "z"' in refused(looping)
    assert "inside a while_loop" in refused(looping)

    def observing():
        z = ppl.sample("z", dist.Bernoulli(0.3))

        def body(n):
            ppl.sample("y", dist.Normal(z, 1.0), obs=0.0)
            return n + 1

        jax.lax.while_loop(lambda n: n < 3, body, 0)

    assert "inside a 'while'" in refused(observing)

    @jax.custom_jvp
    def special(x):
        ppl.factor("f", x)
        return x

    special.defjvp(lambda xs, dots: (xs[0], dots[0]))

    def customised():
        special(1.0 * ppl.sample("z", dist.Bernoulli(0.3)))

    assert "inside a 'custom_jvp_call'" in refused(customised)


def test_sites_that_stay_must_not_move():
    def support():
        z = ppl.sample("z", dist.Bernoulli(0.3))
        ppl.sample("x", dist.Uniform(0.0, 1.0 + z))

    assert 'got "x"' in refused(support)
    assert "whose support depends on a summed site" in refused(support)

    def existence():
        z = ppl.sample("z", dist.Bernoulli(0.3))
        jax.lax.cond(z == 1, lambda: ppl.sample("x", dist.Normal(0.0, 1.0)), lambda: 0.0)

    assert "which exists only for some values of a summed site" in refused(existence)


def test_constants_that_were_changed():
    @ppl.model
    def counts():
        ppl.sample("k", dist.Binomial(2, jnp.array([0.3, 0.6, 0.9])))

    program = counts()
    assert marginalize(program).latents == ()
    assert program.consts
    changed = jax.tree.map(lambda x: x + 1, program)
    with pytest.raises(UnsupportedError, match="a constant that was changed after staging"):
        marginalize(changed)


def test_the_chain_of_sites_stays_small():
    """A long chain of sites without a loop: every table has two dimensions."""

    @ppl.model
    def straight():
        z = 0
        A = jnp.asarray(SIMPLEX)
        for i in range(20):
            z = ppl.sample(f"z{i}", dist.Categorical(A[z]))
        ppl.sample("y", dist.Normal(z, 1.0), obs=0.5)

    p = np.linalg.matrix_power(np.asarray(SIMPLEX), 20)[0]
    exact = np.log(np.sum(p * np.exp(dist.Normal(np.arange(3.0), 1.0).log_prob(0.5))))
    np.testing.assert_allclose(ppl.log_density(marginalize(straight()), {}), exact, rtol=1e-10)
    assert marginalize(chained(Y4[:3])).latents == ("w",)


def test_elements_of_one_event_are_summed_together(x64):
    @ppl.model
    def program(p, y):
        z = ppl.sample("z", dist.Bernoulli(p).to_event(1))
        ppl.sample("y", dist.Normal(z @ jnp.array([1.0, 2.0]), 1.0), obs=y)

    q = program(jnp.array([0.3, 0.6]), 1.0)
    exact = np.log(ppl.enumerate(q).total_mass)
    np.testing.assert_allclose(ppl.log_density(ppl.marginalize(q, ["z"]), {}), exact, atol=1e-10)
    with pytest.raises(UnsupportedError, match=r"2\^30 values.*a plate"):
        ppl.marginalize(program30(), ["z"])


@ppl.model
def program30():
    ppl.sample("z", dist.Bernoulli(0.5 * jnp.ones(30)).to_event(1))
