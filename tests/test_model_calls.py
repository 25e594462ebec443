"""Calls of models: arguments, methods, observations, return values."""

from __future__ import annotations

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from tests.zoo import normal_log_density

pytestmark = pytest.mark.usefixtures("x64")


def close(a, b):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-12, atol=1e-12)


# --- Calls --------------------------------------------------------------------------------------


class Regression(eqx.Module):
    weights: jax.Array
    sd: float = 2.0

    @ppl.model
    def simulate(self, x, offset=0.0, *, obs=None):
        return ppl.sample("y", dist.Normal(x @ self.weights + offset, self.sd), obs=obs)


def test_methods_are_models():
    module = Regression(jnp.array([1.0, 2.0]))
    p = module.simulate(jnp.array([3.0, 4.0]), obs=np.float64(10.0))
    close(ppl.log_density(p, {}), normal_log_density(10.0, 11.0, 2.0))
    q = module.simulate(jnp.array([3.0, 4.0]), 1.0, obs=np.float64(10.0))
    close(ppl.log_density(q, {}), normal_log_density(10.0, 12.0, 2.0))
    assert isinstance(Regression.simulate, ppl.Model)


@dataclasses.dataclass(frozen=True)
class Settings:
    width: int
    name: str = "x"


def test_static_and_array_arguments():
    @ppl.model
    def m(tree, settings, flag=True, *, scale):
        assert isinstance(flag, bool)
        with ppl.plate("n", settings.width):
            return ppl.sample(settings.name, dist.Normal(tree["a"][0] + tree["b"], scale))

    tree = {"a": (np.float64(1.0), None), "b": jnp.array(2.0)}
    p = m(tree, Settings(3), scale=2.0)
    assert len(p.args) == 2  # the arrays; the rest is structure
    q = m({"a": (np.float64(5.0), None), "b": jnp.array(2.0)}, Settings(3), scale=2.0)
    assert p.structure is q.structure
    for other in (
        m(tree, Settings(4), scale=2.0),
        m(tree, Settings(3, "z"), scale=2.0),
        m(tree, Settings(3), scale=2),
        m(tree, Settings(3), False, scale=2.0),
    ):
        assert other.structure is not p.structure
    x = np.zeros(3)
    close(ppl.log_density(q, {"x": x}), normal_log_density(x, 7.0, 2.0))


THREE = np.float64(3.0)


def test_default_arguments_and_partials():
    @ppl.model
    def m(a, b=2.0, *, c=THREE):
        return a + b + c

    assert ppl.run(m(1.0), 0) == 6
    assert ppl.run(m(1.0, c=0.0), 0) == 3
    assert ppl.run(m(b=1.0, a=1.0), 0) == 5
    assert ppl.run(ppl.model(functools.partial(m, 1.0))(b=0.0), 0) == 4


@pytest.mark.parametrize("y", [3, True, 3.0, np.int8(3), np.float16(3), np.array(3), jnp.array(3)])
def test_numbers_as_observations_of_a_real_variable(y):
    @ppl.model
    def m(y):
        ppl.sample("y", dist.Normal(1.0, 2.0), obs=y)

    got, expected = ppl.log_density(m(y), {}), normal_log_density(float(y), 1.0, 2.0)
    # Half-precision data are not computed with in half precision.
    half = isinstance(y, np.float16)
    np.testing.assert_allclose(got, expected, rtol=1e-6 if half else 1e-12)


@pytest.mark.parametrize("y", [True, 1, np.bool_(True), np.uint8(1), np.array(1)])
def test_integers_as_observations_of_a_discrete_variable(y):
    @ppl.model
    def m(y):
        ppl.sample("y", dist.Bernoulli(0.3), obs=y)

    close(ppl.log_density(m(y), {}), np.log(0.3))


def test_observed_value_is_what_sample_returns():
    @ppl.model
    def m(y):
        return ppl.sample("y", dist.Normal(0.0, 1.0), obs=y)

    assert ppl.trace(m(np.float64(0.25)), 0).value == 0.25
    latent = m(None)
    assert latent.latents == ("y",)
    assert ppl.run(latent, 0) != 0.25


def test_return_values_keep_their_structure():
    @ppl.model
    def m():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        return {"x": x, "name": "normal", "pair": (x, 2, None, [True])}

    value = ppl.run(m(), 0)
    assert value["name"] == "normal"
    assert value["pair"][0] == value["x"]
    assert value["pair"][1] == 2
    assert value["pair"][2] is None
    assert bool(value["pair"][3][0]) is True


def test_converted_observations_are_checked_after_the_conversion():
    @ppl.model
    def m(y):
        ppl.sample("k", dist.Poisson(2.0), obs=y.astype(int))
        ppl.sample("b", dist.Bernoulli(0.25), obs=y.astype(bool))

    close(ppl.log_density(m(np.float64(1.5)), {}), np.log(2.0) - 2.0 + np.log(0.25))


def test_transposed_observations_meet_the_right_bounds():
    @ppl.model
    def m(y, low):
        with ppl.plate("a", 2), ppl.plate("b", 2):
            ppl.sample("y", dist.Uniform(low, 10.0), obs=y.T)

    y, low = np.array([[1.0, 5.0], [3.0, 1.0]]), np.array([[0.0, 2.0], [4.0, 0.0]])
    close(ppl.log_density(m(y, low), {}), -np.sum(np.log(10 - low)))


def test_masked_out_observations_weigh_nothing():
    @ppl.model
    def m(y):
        with ppl.plate("n", 2):
            ppl.sample("y", dist.HalfNormal(1.0).mask(y > 0), obs=y * 2)

    close(ppl.log_density(m(np.array([-1.0, 0.5])), {}), np.log(2) + normal_log_density(1.0))


def test_observation_in_a_branch_not_taken_is_no_error():
    @ppl.model
    def m(y):
        jax.lax.cond(
            y > 0,
            lambda: ppl.sample("a", dist.LogNormal(0.0, 1.0), obs=y),
            lambda: ppl.sample("b", dist.Normal(0.0, 1.0), obs=y),
        )

    close(ppl.log_density(m(np.float64(-1.0)), {}), normal_log_density(-1.0))
