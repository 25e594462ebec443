"""`slice`: it keeps posteriors, whatever its settings; a line, step by step; what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ppl
from ppl.errors import AddressError, ArgumentError, UnsupportedError
from ppl.inference.slice import _moved, slice
from tests.inference.stationary import agrees, stays_dead, stays_gamma, stays_gaussian
from tests.inference.test_kernels import branching
from tests.inference.test_unconstrained_kernels import doors, gate, pair


def test_a_gaussian_posterior_is_kept():
    kept, changed = stays_gaussian(slice(width=0.8))
    assert kept
    assert changed == 1.0


# --- One coordinate -----------------------------------------------------------------------------
#
# A density with two bumps, of which the interval may reach one or both.


@ppl.model
def along_a_line(start, width, max_steps, wrong=False):
    def log_density(x):
        return jnp.logaddexp(-0.5 * ((x + 2) / 0.5) ** 2, -0.5 * ((x - 2) / 0.5) ** 2)

    def one(x):
        for i in range(2):
            with ppl.scope(str(i)):
                density = log_density(x)
                # A height that lies below another density.
                x, _ = _moved(log_density, x, 3 * density if wrong else density, width, max_steps)
        return x

    return jax.vmap(one)(start)


class TwoBumps:
    @staticmethod
    def cdf(x):
        return (stats.norm.cdf(x, -2, 0.5) + stats.norm.cdf(x, 2, 0.5)) / 2


def bumps(num):
    rng = np.random.default_rng(0)
    return rng.choice([-2.0, 2.0], num) + 0.5 * rng.normal(size=num)


@pytest.mark.parametrize("max_steps", [pytest.param(1, marks=pytest.mark.slow), 100])
def test_any_width_and_any_number_of_steps(max_steps):
    """Narrow, right and wide intervals; of one width, of a few, and as wide as the slice."""
    start = bumps(4000)
    for width in (0.1, 1.0, 30.0):
        end = ppl.run(along_a_line(start, jnp.float32(width), max_steps), 1)
        assert agrees(end, TwoBumps)
        crossed = np.mean(np.sign(end) != np.sign(start))
        assert (crossed > 0.1) == (width == 30.0)


def test_a_wrong_height_is_seen():
    start = bumps(4000)
    assert not agrees(ppl.run(along_a_line(start, jnp.float32(1.0), 100, wrong=True), 1), TwoBumps)


# --- Programs -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_bounded_site_is_moved_with_its_jacobian():
    assert stays_gamma(slice(width=2.0, max_steps=2))


@pytest.mark.slow
def test_branches_are_entered():
    assert ppl.check.invariant(slice(width=1.5, max_steps=3), gate(), key=7).passed


@pytest.mark.slow
def test_held_sites_stay():
    """A discrete one, in a branch that would go with x."""
    trace = ppl.trace_of(doors(), {"x": 0.5, "b": 2, "u": 0.0})
    many = ppl.model(lambda k, t: jax.vmap(lambda _: k(t))(jnp.arange(20)))
    end = ppl.run(many(slice(), trace), 0)
    assert (np.asarray(end.choices["b"]) == 2).all()
    assert (np.asarray(end.choices["x"]) > 0).all()
    assert (np.asarray(end.choices["x"]) != 0.5).all()


def test_impossible_states_end():
    """Nothing is inside or outside of the slice; the loops stop, and no NaN comes out."""
    assert stays_dead(slice())


def test_widths_are_data():
    trace = ppl.trace_of(pair(), {"x": jnp.ones(2)})
    assert slice(width=0.1)(trace).structure is slice(width=0.2)(trace).structure


# --- Refusals -----------------------------------------------------------------------------------


def test_settings_out_of_range_are_refused():
    for bad in (0.0, -1.0, np.nan, [1.0, 0.0], "a"):
        with pytest.raises(ArgumentError, match=r"(?s)slice got width=.*needs a positive number"):
            slice(width=bad)
    with pytest.raises(ArgumentError, match=r"slice got width of shape \(2, 2\).*one for each"):
        slice(width=np.eye(2) + 1)
    with pytest.raises(ArgumentError, match="slice got max_steps=0"):
        slice(max_steps=0)
    with pytest.raises(ArgumentError, match="unknown keyword widths"):
        slice(widths=1.0)


def test_programs_that_do_not_fit_are_refused():
    trace = ppl.trace_of(pair(), {"x": jnp.ones(2)})
    with pytest.raises(ArgumentError, match=r"slice got width of shape \(3,\)"):
        slice(width=np.ones(3))(trace)
    with pytest.raises(AddressError, match='unknown address "y"'):
        slice(addresses="y")(trace)
    trace = ppl.trace_of(branching(), {"flag": 1, "a": 1, "b": 0})
    with pytest.raises(UnsupportedError, match="slice got branching, which has no continuous"):
        slice()(trace)
