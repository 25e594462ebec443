"""Objectives: their values and gradients against sums over all choices, and their order."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import ppl
import ppl.distributions as dist
from ppl.errors import AddressError, ArgumentError, OpenObservationsError
from tests.compiling import compilations
from tests.inference.vi.finite_sums import mean, refuse_bias

pytestmark = pytest.mark.usefixtures("x64")
vi, sample, B = ppl.vi, ppl.sample, dist.Bernoulli
sigmoid = jax.nn.sigmoid
Y = np.array(0.7)
PARAMS = {"th": np.array(0.3), "ph": np.array([0.2, -0.4])}


@ppl.model
def joint(th):
    a = sample("a", B(sigmoid(th)))
    return a + th * sample("b", B(sigmoid(0.4 - a)))


@ppl.model
def model(th, y):
    sample("y", dist.Normal(joint(th), 1.0), obs=y)


@ppl.model
def guide(ph, grad=None):
    a = sample("a", B(sigmoid(ph[0])), grad=grad)
    sample("b", B(sigmoid(ph[1] * (1 + a))), grad=grad)


def program_of(params):
    return model(params["th"], Y)


def joint_of(params):
    return joint.program(params["th"])


def guide_of(params):
    return guide(params["ph"])


PAIRS = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]])


def tables(params, program=program_of):
    """The log densities of program and guide at the four choices."""
    choices = {"a": PAIRS[:, 0], "b": PAIRS[:, 1]}
    p, q = program(params), guide_of(params)
    return tuple(jax.vmap(lambda c, x=x: ppl.log_density(x, c))(choices) for x in (p, q))


def under_pairs(params, bound):
    """The mean of a function of two independent log weights."""
    p, q = tables(params)
    w = p - q
    chance = jnp.exp(q[:, None] + q[None, :])
    return jnp.sum(chance * bound(w[:, None], w[None, :]))


def log_mean(v, w):
    return jnp.logaddexp(v, w) - jnp.log(2.0)


BOUNDS = {
    "elbo": (lambda: vi.elbo(program_of, guide_of), lambda v, w: v),
    "iwelbo": (lambda: vi.iwelbo(program_of, guide_of, num_particles=2), log_mean),
    "miwae": (
        lambda: vi.miwae(program_of, guide_of, num_particles=1, num_bounds=2),
        lambda v, w: v,
    ),
    "ciwae": (
        lambda: vi.ciwae(program_of, guide_of, num_particles=2, beta=0.3),
        lambda v, w: 0.3 * v + 0.7 * log_mean(v, w),
    ),
    "renyi": (
        lambda: vi.renyi(program_of, guide_of, alpha=0.5, num_particles=2),
        lambda v, w: 2.0 * log_mean(0.5 * v, 0.5 * w),
    ),
    "renyi(1)": (
        lambda: vi.renyi(program_of, guide_of, alpha=1, num_particles=2),
        lambda v, w: v,
    ),
}


@pytest.mark.parametrize("name", BOUNDS)
def test_bound(name):
    make, formula = BOUNDS[name]
    objective = make()
    assert objective.maximize

    def exact(params):
        return under_pairs(params, formula)

    np.testing.assert_allclose(mean(objective, PARAMS)(PARAMS), exact(PARAMS), atol=1e-10)
    surrogate = mean(lambda p: vi.expectation(objective(p)), PARAMS)
    found, right = jax.grad(surrogate)(PARAMS), jax.grad(exact)(PARAMS)
    np.testing.assert_allclose(ravel_pytree(found)[0], ravel_pytree(right)[0], atol=1e-10)


DIVERGENCES = {
    "reverse_kl": lambda p, q: q * jnp.log(q / p),
    "forward_kl": lambda p, q: p * jnp.log(p / q),
    "total_variation": lambda p, q: 0.5 * jnp.abs(p - q),
    "chi_square": lambda p, q: (p - q) ** 2 / q,
    "jensen_shannon": lambda p, q: (
        0.5 * (p * jnp.log(2 * p / (p + q)) + q * jnp.log(2 * q / (p + q)))
    ),
}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_divergence(name):
    objective = vi.f_divergence(joint_of, guide_of, divergence=name)
    assert not objective.maximize

    def exact(params):
        p, q = map(jnp.exp, tables(params, joint_of))
        return jnp.sum(DIVERGENCES[name](p, q))

    np.testing.assert_allclose(mean(objective, PARAMS)(PARAMS), exact(PARAMS), atol=1e-10)
    found = jax.grad(mean(lambda p: vi.expectation(objective(p)), PARAMS))(PARAMS)
    right = jax.grad(exact)(PARAMS)
    np.testing.assert_allclose(ravel_pytree(found)[0], ravel_pytree(right)[0], atol=1e-10)


def test_wake_sleep():
    """Self-normalised: the mean gradient is that of weights held fixed, over pairs of draws."""
    frozen = PARAMS

    def surrogate(params):
        p, q = tables(params)
        p0, q0 = tables(frozen)
        w = jax.nn.softmax(jnp.stack(jnp.broadcast_arrays((p0 - q0)[:, None], p0 - q0)), axis=0)
        chance = jnp.exp(q0[:, None] + q0)
        at = {"guide": q, "model": p}
        return {k: jnp.sum(chance * (w[0] * x[:, None] + w[1] * x[None, :])) for k, x in at.items()}

    right = jax.grad(lambda p: surrogate(p)["guide"] + surrogate(p)["model"])(PARAMS)
    both = vi.wake_sleep(program_of, guide_of, num_particles=2)
    found = jax.grad(mean(lambda p: vi.expectation(both(p)), PARAMS))(PARAMS)
    np.testing.assert_allclose(ravel_pytree(found)[0], ravel_pytree(right)[0], atol=1e-10)
    value = mean(both, PARAMS)(PARAMS)
    np.testing.assert_allclose(value, under_pairs(PARAMS, log_mean), atol=1e-10)

    alone = vi.forward_kl(program_of, guide_of, num_particles=2)
    assert not alone.maximize
    np.testing.assert_allclose(mean(alone, PARAMS)(PARAMS), -surrogate(PARAMS)["guide"], atol=1e-10)
    found = jax.grad(mean(lambda p: vi.expectation(alone(p)), PARAMS))(PARAMS)
    np.testing.assert_allclose(found["ph"], -right["ph"], atol=1e-10)


def test_piwae_gives_each_its_own_bound():
    objective = vi.piwae(program_of, guide_of, num_particles=1, num_bounds=2)
    elbo = under_pairs(PARAMS, lambda v, w: v)
    np.testing.assert_allclose(mean(objective, PARAMS)(PARAMS), elbo, atol=1e-10)
    found = jax.grad(mean(lambda p: vi.expectation(objective(p)), PARAMS))(PARAMS)
    tight = jax.grad(lambda p: under_pairs(p, log_mean))(PARAMS)
    loose = jax.grad(lambda p: under_pairs(p, lambda v, w: v))(PARAMS)
    np.testing.assert_allclose(found["th"], tight["th"], atol=1e-10)
    np.testing.assert_allclose(found["ph"], loose["ph"], atol=1e-10)


def test_bounds_are_ordered():
    evidence = ppl.enumerate(program_of(PARAMS)).total_mass

    def value(objective):
        return float(ppl.enumerate(objective(PARAMS)).expect(lambda v: v))

    found = [value(vi.elbo(program_of, guide_of))]
    found += [value(vi.iwelbo(program_of, guide_of, num_particles=n)) for n in (2, 3)]
    assert found == sorted(found)
    assert found[-1] < np.log(evidence)
    assert found[-1] - found[0] > 1e-3


def test_latents_without_a_guide_come_from_the_program():
    @ppl.model
    def part(ph):
        sample("a", B(sigmoid(ph[0])))

    found = mean(lambda p: vi.elbo(program_of(p), part(p["ph"])), PARAMS)(PARAMS)

    @ppl.model
    def whole(ph):
        a = sample("a", B(sigmoid(ph[0])))
        sample("b", B(sigmoid(0.4 - a)))

    right = mean(lambda p: vi.elbo(program_of(p), whole(p["ph"])), PARAMS)(PARAMS)
    np.testing.assert_allclose(found, right, atol=1e-10)


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
        def one(y):
            p, q = sigmoid(params["th"]), sigmoid(params["ph"])
            z = jnp.array([0.0, 1.0])
            lp = jnp.log(jnp.array([1 - p, p])) + jax.scipy.stats.norm.logpdf(
                y, z + params["th"], 1.0
            )
            q = jnp.array([1 - q, q])
            return jnp.sum(q * (lp - jnp.log(q)))

        return jnp.sum(jax.vmap(one)(data))

    at = {"th": np.array(0.2), "ph": np.array(-0.5)}
    right = jax.grad(whole)(at)

    def objective(p):
        return vi.elbo(minibatch(p["th"], data), local(p["ph"]))

    estimate = vi.grad_estimate(objective)(at)
    report = ppl.check.unbiased(estimate, right)
    assert report.passed, report
    assert report.false_alarm == 0


# --- Programs of an estimated density ------------------------------------------------------------


@ppl.model
def reverse(x):
    sample("aux", B(sigmoid(0.3 - x)))


@ppl.model
def with_auxiliary(ph):
    aux = sample("aux", B(sigmoid(ph[1])))
    a = sample("a", B(sigmoid(ph[0] + aux)))
    sample("b", B(sigmoid(ph[1] * (1 + a))))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_marginal_preserves_the_program_and_estimates_the_density(number):
    ph = PARAMS["ph"]
    program = program_of(PARAMS)
    target, drawn = vi.marginal(
        program, with_auxiliary(ph), lambda c: reverse(c["a"]), num_particles=number
    )
    assert ppl.check.equal(target, program).passed
    assert ppl.check.equal(ppl.guided(target, drawn), program).passed
    found = ppl.enumerate(vi.elbo(target, drawn)).expect(lambda v: v)
    assert found < np.log(ppl.enumerate(program).total_mass)
    if number == 1:
        triples = np.array(list(itertools.product([0, 1], repeat=3)))
        choices = {"a": triples[:, 0], "b": triples[:, 1], "aux": triples[:, 2]}

        def term(c):
            q = ppl.log_density(with_auxiliary(ph), c)
            p = ppl.log_density(program, {"a": c["a"], "b": c["b"]})
            return jnp.exp(q) * (p + ppl.log_density(reverse(c["a"]), {"aux": c["aux"]}) - q)

        np.testing.assert_allclose(found, jnp.sum(jax.vmap(term)(choices)), atol=1e-10)


def test_marginal_bounds_tighten():
    def bound(number):
        pair = vi.marginal(
            program_of(PARAMS),
            with_auxiliary(PARAMS["ph"]),
            lambda c: reverse(c["a"]),
            num_particles=number,
        )
        return float(ppl.enumerate(vi.elbo(*pair)).expect(lambda v: v))

    found = [bound(n) for n in (1, 2, 3)]
    assert found == sorted(found)
    assert found[2] - found[0] > 1e-3


def test_marginal_of_functions_of_parameters():
    """The pair goes into an objective, and the reverse is learned along."""

    @ppl.model
    def learned(x, ph):
        sample("aux", B(sigmoid(ph[0] - x)))

    def pair(params):
        return vi.marginal(
            program_of(params),
            with_auxiliary(params["ph"]),
            lambda c: learned(c["a"], params["ph"]),
            num_particles=2,
        )

    parts = vi.marginal(
        program_of,
        vi.guide(lambda params: with_auxiliary(params["ph"]), PARAMS),
        lambda c, params: learned(c["a"], params["ph"]),
        num_particles=2,
    )
    objective = vi.elbo(*parts)
    assert set(objective.params) == set(PARAMS)
    found = jax.grad(mean(lambda p: vi.expectation(objective(p)), PARAMS))(PARAMS)
    right = jax.grad(mean(lambda p: vi.elbo(*pair(p)), PARAMS))(PARAMS)
    np.testing.assert_allclose(ravel_pytree(found)[0], ravel_pytree(right)[0], atol=1e-10)
    fit = ppl.run(vi.fit(objective, num_steps=3), 0)
    assert set(fit.guide.latents) >= {"a", "b", "aux"}


@pytest.mark.parametrize("number", [1, 2, 3])
def test_normalize_preserves_the_program(number):
    program, target = program_of(PARAMS), model(0.9, -1.0)
    found = vi.normalize(program, target, num_particles=number)
    assert ppl.check.equal(found, program).passed
    guided = vi.normalize(program, target, num_particles=number, guide=guide(PARAMS["ph"]))
    assert ppl.check.equal(guided, program).passed


def test_evidence_bound_of_particles():
    @ppl.model
    def chain(th):
        def step(x, y):
            x = sample("x", B(sigmoid(th * x)))
            sample("y", dist.Normal(x * 1.0, 1.0), obs=y)
            return x, None

        jax.lax.scan(step, 1, jnp.array([0.3, 1.2]))

    at = np.array(0.4)

    def objective(th):
        return vi.evidence_bound(ppl.smc(chain(th), num_particles=2, ess_threshold=1.0))

    exact = jax.grad(mean(objective, at))(at)
    found = jax.grad(mean(lambda th: vi.expectation(objective(th)), at))(at)
    np.testing.assert_allclose(found, exact, atol=1e-10)
    log_evidence = np.log(ppl.enumerate(chain(at)).total_mass)
    assert mean(objective, at)(at) < log_evidence


# --- What users see -------------------------------------------------------------------------------


def test_programs_give_programs_and_functions_objectives():
    assert isinstance(vi.elbo(program_of(PARAMS), guide_of(PARAMS)), ppl.Program)
    objective = vi.elbo(program_of(PARAMS), guide_of)
    assert isinstance(objective, vi.Objective)
    assert objective.params is None
    assert isinstance(objective(PARAMS), ppl.Program)
    assert "elbo" in repr(objective)
    refuse_bias(lambda p: objective({"ph": p}), PARAMS["ph"])


def test_new_data_and_parameters_compile_nothing():
    def slope(params, y):
        objective = vi.elbo(model(params["th"], y), guide(params["ph"]))
        return ppl.run(vi.expectation(objective), 0)

    slope(PARAMS, Y)
    with compilations() as found:
        slope(jax.tree.map(lambda x: x + 1, PARAMS), Y + 1)
    assert found.count == 0


def test_refusals():
    program = program_of(PARAMS)
    with pytest.raises(ArgumentError, match="mean_field"):
        vi.elbo(program, None)
    with pytest.raises(ArgumentError, match="num_particles"):
        vi.iwelbo(program, guide_of, num_particles=0)
    with pytest.raises(ArgumentError, match="beta"):
        vi.ciwae(program, guide_of, num_particles=2, beta=1.5)
    with pytest.raises(ArgumentError, match="alpha"):
        vi.renyi(program, guide_of, num_particles=2, alpha=np.inf)
    with pytest.raises(ArgumentError, match="total_variation"):
        vi.f_divergence(joint_of, guide_of, divergence="kl")
    with pytest.raises(OpenObservationsError):
        vi.f_divergence(program, guide_of(PARAMS), divergence="reverse_kl")

    @ppl.model
    def part():
        sample("a", B(0.5))

    with pytest.raises(ArgumentError, match="does not draw b"):
        vi.forward_kl(program, part(), num_particles=2)
    with pytest.raises(AddressError, match="other latents"):
        vi.marginal(program, with_auxiliary(PARAMS["ph"]), lambda c: part())
    with pytest.raises(ArgumentError, match="makes a program"):
        vi.marginal(program, with_auxiliary(PARAMS["ph"]), lambda c: c["a"])
    with pytest.raises(AddressError, match="same addresses"):
        vi.normalize(program, part(), num_particles=2)


# --- What cannot be ------------------------------------------------------------------------------


@ppl.model
def chained(y):
    """A second thing only where there is a first: a probability of exactly zero."""
    a = sample("a", B(0.6))
    b = sample("b", B(0.4 * a))
    sample("y", dist.Normal(a + b, 1.0), obs=y)


@ppl.model
def chained_guide(ph, grad=None):
    a = sample("a", B(sigmoid(ph[0])), grad=grad)
    sample("b", B(sigmoid(ph[1]) * a), grad=grad)


def bound_by_hand(ph, number):
    """The bound of `number` particles as a sum over what is possible."""
    pairs = jnp.array([[0, 0], [1, 0], [1, 1]])
    a, b = pairs.T
    p = jnp.log(jnp.where(a == 1, 0.6, 0.4)) + jnp.where(a == 1, jnp.log(jnp.where(b, 0.4, 0.6)), 0)
    p = p - 0.5 * (Y - a - b) ** 2 - 0.5 * jnp.log(2 * jnp.pi)
    one, two = sigmoid(ph[0]), sigmoid(ph[1])
    q = jnp.array([1 - one, one * (1 - two), one * two])
    total = 0.0
    for rows in itertools.product(range(3), repeat=number):
        index = jnp.array(rows)
        weights = p[index] - jnp.log(q[index])
        bound = jax.nn.logsumexp(weights) - np.log(number)
        total = total + jnp.prod(q[index]) * bound
    return total


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("grad", [vi.enum(), vi.mvd()], ids=["enum", "mvd"])
def test_what_the_guide_cannot_draw_spoils_no_gradient(grad, number):
    def objective(ph):
        program, guide = chained(Y), chained_guide(ph, grad)
        if number == 1:
            return vi.elbo(program, guide)
        return vi.iwelbo(program, guide, num_particles=number)

    ph = np.array([0.3, -0.2])
    value, gradient = jax.value_and_grad(bound_by_hand)(ph, number)
    for program, wanted in (
        (vi.expectation(objective(ph)), value),
        (vi.grad_estimate(objective)(ph), gradient),
    ):
        report = ppl.check.unbiased(program, wanted)
        assert report.passed, report
