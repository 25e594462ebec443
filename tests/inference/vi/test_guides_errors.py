"""Guides: what they refuse, and what the errors name."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.distributions import constraints
from ppl.errors import (
    ArgumentError,
    InitializationError,
    UnsupportedError,
)
from ppl.inference.vi import guides
from tests.inference.vi.test_guides import NORMALS, Y, linear

pytestmark = pytest.mark.usefixtures("x64")


@ppl.model
def discrete():
    k = ppl.sample("k", dist.Bernoulli(0.5))
    ppl.sample("x", dist.Normal(k * 1.0, 1.0))


@ppl.model
def branch():
    x = ppl.sample("x", dist.Normal(0.0, 1.0))
    jax.lax.cond(x > 0, lambda: ppl.sample("b", dist.Normal(0.0, 1.0)), lambda: 0.0 * x)


@ppl.model
def endless():
    jax.lax.while_loop(lambda x: x < 1, lambda x: x + ppl.sample("x", dist.Normal(0.0, 1.0)), 0.0)


@ppl.model
def members():
    with ppl.plate("n", 4, subsample_size=2):
        ppl.sample("x", dist.Normal(0.0, 1.0))


@ppl.model
def observed():
    ppl.sample("x", dist.Normal(0.0, 1.0), obs=1.0)


@ppl.model
def walk():
    def step(x, _):
        x = ppl.sample("x", dist.Uniform(x, x + 1))
        return x, None

    jax.lax.scan(step, 0.0, None, length=3)


REFUSED = [
    (discrete, r'discrete latent site "k".*ppl\.marginalize'),
    (branch, '"b".*stands in a branch'),
    (endless, '"x".*stands in a while_loop'),
    (members, '"x".*member of the subsampled plate "n"|laplace.*Subsample'),
    (observed, "no continuous latent site"),
]


@pytest.mark.parametrize("make", [*NORMALS, guides.delta, guides.laplace])
def test_programs_that_are_refused(make):
    for model, text in REFUSED:
        with pytest.raises(UnsupportedError, match=text):
            make(model())
    with pytest.raises(ArgumentError, match="needs a Program"):
        make(linear)


def test_computed_bounds_in_a_scan():
    guide = guides.mean_field(walk())
    x = ppl.run(guide(guide.params), 0)["x"]
    assert np.all((np.diff(np.r_[0, x]) > 0) & (np.diff(np.r_[0, x]) < 1))
    guide = guides.full_rank(walk())
    with pytest.raises(UnsupportedError, match=r'full_rank got "x".*computed.*mean_field'):
        guide(guide.params)


def test_settings_that_are_refused():
    program = linear(Y)
    for make in [guides.mean_field, guides.full_rank]:
        with pytest.raises(ArgumentError, match="init_scale=0"):
            make(program, init_scale=0.0)
        with pytest.raises(ArgumentError, match="unknown keyword scale"):
            make(program, scale=1.0)
    with pytest.raises(ArgumentError, match="rank=0"):
        guides.low_rank(program, rank=0)
    guide = guides.mean_field(program)
    with pytest.raises(ArgumentError, match="mean_field got params of the form"):
        guide({"loc": jnp.zeros(3)})
    with pytest.raises(ArgumentError, match="mean_field got params of the form"):
        guide({"loc": jnp.zeros(4), "log_scale": jnp.zeros(4)})


def test_laplace_says_why_it_fails():
    @ppl.model
    def flat():
        ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("t", dist.ImproperUniform(constraints.real, (), ()))

    @ppl.model
    def rising():
        t = ppl.sample("t", dist.ImproperUniform(constraints.real, (), ()))
        ppl.factor("f", t - jnp.exp(-t))

    @ppl.model
    def nowhere():
        t = ppl.sample("t", dist.Normal(0.0, 1.0))
        ppl.factor("f", jnp.log(t))

    @ppl.model
    def unidentified():
        a, b = (ppl.sample(x, dist.ImproperUniform(constraints.real, (), ())) for x in ("a", "b"))
        ppl.sample("y", dist.Normal(a + 0.7 * b, 0.3), obs=1.0)

    with pytest.raises(InitializationError, match="no curvature in the direction of t"):
        guides.laplace(flat())
    with pytest.raises(InitializationError, match="no curvature in the direction of b"):
        guides.laplace(unidentified())
    with pytest.raises(InitializationError, match=r"did not arrive|no curvature"):
        guides.laplace(rising())
    with pytest.raises(InitializationError, match="not finite at the start"):
        guides.laplace(nowhere())
    with pytest.raises(InitializationError, match="did not arrive at a mode in 1 steps"):
        guides.laplace(ppl.model(lambda: ppl.sample("r", dist.Gamma(300.0, 2.0)))(), max_steps=1)
    with pytest.raises(ArgumentError, match="traced"):
        jax.jit(lambda y: guides.laplace(linear(y)).params)(Y)
    with pytest.raises(UnsupportedError, match="Subsample"):
        guides.laplace(subsampled())


@ppl.model
def subsampled():
    m = ppl.sample("m", dist.Normal(0.0, 1.0))
    with ppl.plate("n", 4, subsample_size=2) as i:
        ppl.sample("y", dist.Normal(m, 1.0), obs=i * 1.0)
