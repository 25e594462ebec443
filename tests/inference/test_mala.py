"""`mala`: its rate is that of Metropolis and Hastings; posteriors are kept; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ppl
import ppl.distributions as dist
from ppl.errors import AddressError, ArgumentError, UnsupportedError
from ppl.inference.coordinates import coordinates
from ppl.inference.mala import mala
from ppl.inference.trace_kernel import Time, accepted
from tests.inference.stationary import DATUM, gaussian, stays_dead, stays_gamma, stays_gaussian
from tests.inference.test_kernels import branching
from tests.inference.test_unconstrained_kernels import gate, pair

# --- Detailed balance, as an identity -----------------------------------------------------------


@ppl.model
def bounded():
    """A curved density of three coordinates."""
    a = ppl.sample("a", dist.Exponential(1.0))
    with ppl.plate("n", 2):
        ppl.sample("x", dist.Normal(a, 0.5))
    ppl.factor("f", -(a**2))


MASSES = {
    "none": None,
    "vector": np.array([0.5, 1.0, 2.0]),
    "matrix": np.array([[1.0, 0.3, 0.0], [0.3, 0.8, -0.2], [0.0, -0.2, 0.5]]),
}


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "name",
    [pytest.param("none", marks=SLOW), pytest.param("vector", marks=SLOW), "matrix"],
)
def test_the_rate_is_that_of_metropolis_and_hastings(x64, name):
    """Against the densities of the two proposals, written down: normal, with all coordinates'
    noise independent under the metric."""
    step, mass = 0.1, MASSES[name]
    covariance = np.eye(3) if mass is None else np.eye(3) * mass if np.ndim(mass) < 2 else mass
    space, num = ppl.unconstrain(bounded()), 20
    start = jnp.asarray(np.random.default_rng(0).normal(size=(num, 3)))

    @ppl.model
    def steps(kernel, program, start):
        def one(z):
            trace = ppl.trace_of(program, ppl.unconstrain(program).unflatten(z))
            out = kernel.step(trace, (), Time(0, 0))
            return out.trace.choices, out.stats["acceptance_rate"]

        return jax.vmap(one)(start)

    run = ppl.trace(steps(mala(step, inverse_mass=mass), bounded(), start), 1)
    end, rate = run.value
    value, gradient = jax.vmap(jax.value_and_grad(space.log_density))(start)
    root = np.linalg.cholesky(covariance)
    noise = np.asarray(run.choices["noise"]) @ root.T
    there = np.asarray(start + step * gradient @ covariance + np.sqrt(2 * step) * noise)
    value_there, gradient_there = jax.vmap(jax.value_and_grad(space.log_density))(there)

    def log_q(one, gradient, other):
        mean = np.asarray(one + step * gradient @ covariance)
        law = stats.multivariate_normal(np.zeros(3), 2 * step * covariance)
        return law.logpdf(other - mean)

    ratio = value_there + log_q(there, gradient_there, start)
    ratio -= value + log_q(start, gradient, there)
    np.testing.assert_allclose(rate, np.exp(np.minimum(0, ratio)), rtol=1e-9)
    accept = np.asarray(run.choices["accept"]) == 1
    assert 0 < accept.sum() < num
    wanted = jax.vmap(space.unflatten)(np.where(accept[:, None], there, start))
    for address, x in end.items():
        np.testing.assert_allclose(x, wanted[address], rtol=1e-9)


# --- Laws ---------------------------------------------------------------------------------------


def test_a_gaussian_posterior_is_kept():
    kept, changed = stays_gaussian(mala(0.1, inverse_mass=[0.5, 1.0, 1.0]))
    assert kept
    assert changed > 0.8


@ppl.kernel
def one_noise_per_leaf(trace):
    """GenJAX's: each site moves by one number, the same for all of its elements."""
    space, step = coordinates("mala", trace, None), 0.1
    start = space.start()
    noise = ppl.sample("noise", dist.Normal(0.0, 1.0).expand([2]))[jnp.array([0, 1, 1])]
    value, gradient = jax.value_and_grad(space.log_density)(start)
    there = start + step * gradient + jnp.sqrt(2 * step) * noise
    value_there, gradient_there = jax.value_and_grad(space.log_density)(there)
    back = (start - there - step * gradient_there) / jnp.sqrt(2 * step)
    ratio = value_there - jnp.sum(back**2) / 2 - value + jnp.sum(noise**2) / 2
    return space.moved(there, accepted(ratio))


@ppl.kernel
def unadjusted(trace):
    """The ratio of Metropolis, without the densities of the proposals."""
    space, step = coordinates("mala", trace, None), 0.1
    start = space.start()
    noise = ppl.sample("noise", dist.Normal(0.0, 1.0).expand([3]))
    value, gradient = jax.value_and_grad(space.log_density)(start)
    there = start + step * gradient + jnp.sqrt(2 * step) * noise
    return space.moved(there, accepted(space.log_density(there) - value))


@pytest.mark.parametrize("kernel", [one_noise_per_leaf, pytest.param(unadjusted, marks=SLOW)])
def test_wrong_kernels_are_rejected(kernel):
    assert not stays_gaussian(kernel)[0]


@pytest.mark.slow
def test_a_bounded_site_is_moved_with_its_jacobian():
    assert stays_gamma(mala(0.2))


@pytest.mark.slow
def test_branches_are_entered():
    assert ppl.check.invariant(mala(0.3), gate(), key=7).passed


def test_impossible_states_give_no_nan():
    assert stays_dead(mala(0.1))


def test_settings_are_data():
    trace = ppl.trace_of(gaussian(DATUM), {"a": 0.0, "x": jnp.ones(2)})
    assert mala(0.1)(trace).structure is mala(0.2)(trace).structure


# --- Refusals -----------------------------------------------------------------------------------


def test_settings_out_of_range_are_refused():
    for bad in (0.0, -1.0, np.nan, "a"):
        with pytest.raises(ArgumentError, match=r"mala got step_size=.*needs a positive number"):
            mala(bad)
        with pytest.raises(ArgumentError, match=r"mala got inverse_mass=.*needs a positive number"):
            mala(0.1, inverse_mass=bad)
    with pytest.raises(ArgumentError, match=r"mala got step_size of shape \(2,\)"):
        mala([0.1, 0.2])
    with pytest.raises(ArgumentError, match=r"(?s)mala got the inverse_mass .*positive definite"):
        mala(0.1, inverse_mass=[[1.0, 2.0], [2.0, 1.0]])
    with pytest.raises(ArgumentError, match="unknown keyword mass"):
        mala(0.1, mass=1.0)


def test_programs_that_do_not_fit_are_refused():
    trace = ppl.trace_of(pair(), {"x": jnp.ones(2)})
    with pytest.raises(ArgumentError, match=r"mala got inverse_mass of shape \(3,\)"):
        mala(0.1, inverse_mass=np.ones(3))(trace)
    with pytest.raises(AddressError, match='unknown address "y"'):
        mala(0.1, addresses="y")(trace)
    trace = ppl.trace_of(branching(), {"flag": 1, "a": 1, "b": 0})
    with pytest.raises(UnsupportedError, match="mala got branching, which has no continuous"):
        mala(0.1)(trace)
