"""`elliptical_slice`: normal posteriors are kept; what counts as likelihood; what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ppl
import ppl.distributions as dist
from ppl.errors import AddressError, ArgumentError, UnsupportedError
from ppl.inference import elliptical_slice as module
from ppl.inference.elliptical_slice import elliptical_slice
from tests.inference.stationary import move, posterior
from tests.inference.test_unconstrained_kernels import doors, ten_times

sample = ppl.sample

# --- A linear model -----------------------------------------------------------------------------
#
# x0, x1 ~ N(1, s^2), w ~ N(m, C), and h ~ N(x0 + w0, 1) is held; y ~ N(x1 + w1, 0.5). The prior of
# x is raised to the power 1/2, which makes it N(1, 2 s^2).

MEAN = np.array([1.0, -1.0])
COVARIANCE = np.array([[1.0, 0.5], [0.5, 2.0]])
SCALE, DATUM = 0.6, -2.0


@ppl.model
def linear(y):
    with ppl.plate("n", 2):
        x = sample("x", dist.Normal(1.0, SCALE))
    w = sample("w", dist.MultivariateNormal(MEAN, COVARIANCE))
    sample("h", dist.Normal(x[0] + w[0], 1.0))
    sample("y", dist.Normal(x[1] + w[1], 0.5), obs=y)


def linear_answer():
    """Of (x0, x1, w0, w1, h)."""
    mean = np.array([1.0, 1.0, *MEAN])
    covariance = np.zeros((4, 4))
    covariance[:2, :2] = 2 * SCALE**2 * np.eye(2)
    covariance[2:, 2:] = COVARIANCE
    row = np.array([[1.0, 0.0, 1.0, 0.0]])
    rows = np.vstack([np.eye(4), row])
    noise = np.diag([0.0, 0.0, 0.0, 0.0, 1.0])
    return posterior(
        rows @ mean,
        rows @ covariance @ rows.T + noise,
        [0.0, 1.0, 0.0, 1.0, 0.0],
        np.array([DATUM]),
        0.5,
    )


def stays_linear(kernel, num=2000):
    answer, program = linear_answer(), ppl.scale(linear(DATUM), 0.5, ["x"])
    start = answer.draw(num)
    start = {"x": start[:, :2], "w": start[:, 2:4], "h": start[:, 4]}
    end = move(kernel, program, start, num_moves=5)
    assert (end["h"] == np.float32(start["h"])).all()
    assert np.mean(end["x"] != np.float32(start["x"])) > 0.99
    return answer.agrees(np.column_stack([end["x"], end["w"], end["h"]]))


KERNEL = elliptical_slice(addresses=["x", "w"])


def test_a_normal_posterior_is_kept():
    """Sites with means, in a plate, with events, with a scale; held latents are likelihood."""
    assert stays_linear(KERNEL)


@pytest.mark.parametrize("part", ["_mean", pytest.param("_Likelihood", marks=pytest.mark.slow)])
def test_wrong_parts_are_seen(monkeypatch, part):
    """The mean of the prior forgotten; the prior counted as likelihood once more."""

    class AllOfIt(module.Density):
        name = "elliptical_slice"

        def __init__(self, names):
            super().__init__(record=True)

    wrong = {"_mean": lambda site, leaves: 0.0, "_Likelihood": AllOfIt}

    @ppl.kernel
    def mutant(trace):
        monkeypatch.setattr(module, part, wrong[part])
        return KERNEL.move(trace)

    assert not stays_linear(mutant)


# --- Loops and branches -------------------------------------------------------------------------


@ppl.model
def innovations(y):
    """Noise of a random walk, drawn in its loop and independent of it."""

    def step(level, y):
        level = level + 0.5 * sample("e", dist.Normal(0.0, 1.0))
        sample("y", dist.Normal(level, 0.7), obs=y)
        return level, None

    lax.scan(step, 1.0, y)


@pytest.mark.slow
def test_sites_in_loops():
    y = np.array([0.5, 2.0, 1.0])
    rows = 0.5 * np.tril(np.ones((3, 3)))
    answer = posterior(np.zeros(3), np.eye(3), rows, y - 1.0, 0.7)
    start = answer.draw(2000)
    end = move(elliptical_slice(), innovations(jnp.asarray(y)), {"e": start}, num_moves=4)
    assert answer.agrees(end["e"])
    assert np.mean(end["e"] != np.float32(start)) > 0.99


@pytest.mark.slow
def test_held_sites_stay():
    """A discrete one, in a branch that would go with x."""
    kernel = elliptical_slice(addresses="x")
    assert ppl.check.invariant(ten_times(kernel), doors(), key=7).passed
    trace = ppl.trace_of(doors(), {"x": 0.5, "b": 2, "u": 0.0})
    moved = ppl.run(ten_times(kernel)(trace), 0)
    assert float(moved.choices["x"]) > 0
    assert int(moved.choices["b"]) == 2


def test_impossible_states_end():
    @ppl.model
    def dead():
        x = sample("x", dist.Normal(0.0, 1.0))
        ppl.factor("f", jnp.where(x < 1e9, -jnp.inf, 0.0))

    moved = ppl.run(elliptical_slice()(ppl.trace_of(dead(), {"x": 0.5})), 0)
    assert float(moved.log_density) == -np.inf
    assert np.isfinite(moved.choices["x"])


# --- Refusals -----------------------------------------------------------------------------------


@ppl.model
def dependent():
    a = sample("a", dist.Normal(0.0, 1.0))
    b = ppl.deterministic("b", 2 * a)
    s = sample("s", dist.Gamma(1.0, 1.0))
    sample("x", dist.Normal(b, s))
    lax.scan(lambda z, _: (sample("z", dist.Normal(z, 1.0)), None), 0.0, None, length=2)


def kernel_on(*addresses):
    choices = {"a": 0.0, "s": 1.0, "x": 0.0, "z": jnp.zeros(2)}
    return elliptical_slice(addresses=addresses or None)(ppl.trace_of(dependent(), choices))


@pytest.mark.parametrize(
    ("addresses", "kind", "words"),
    [
        ((), UnsupportedError, r'got "s" \(test_elliptical.*a Gamma; needs sites that are Normal'),
        (("a", "x"), UnsupportedError, r'got "x" \(.*\), which depends on "a"; needs .*alone'),
        (("z",), UnsupportedError, r'got "z" \(.*\), which depends on "z"'),
        (("y",), AddressError, 'unknown address "y"'),
    ],
)
def test_sites_that_do_not_fit_are_refused(addresses, kind, words):
    with pytest.raises(kind, match=words):
        kernel_on(*addresses)


def test_what_depends_on_held_sites_is_moved():
    moved = ppl.run(kernel_on("x"), 0)
    assert float(moved.choices["x"]) != 0.0
    assert float(moved.choices["a"]) == 0.0


def test_bad_settings_are_refused():
    with pytest.raises(ArgumentError, match="unknown keyword address="):
        elliptical_slice(address="x")
    nothing = ppl.trace_of(ppl.model(lambda: ppl.factor("f", 0.5))(), {})
    with pytest.raises(UnsupportedError, match="which has no latent site"):
        elliptical_slice()(nothing)
