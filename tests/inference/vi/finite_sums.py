"""Means of finite programs as plain differentiable functions, summed over all choices."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

import ppl
import ppl.distributions as dist
from ppl.finite import finite_values

MOST = 20_000


def combinations(program):
    """How many combinations of values the latent sites have."""
    return math.prod(
        len(_values(s)) ** math.prod(s.shape) for s in program.sites if s.kind == "latent"
    )


def mean(make, like):
    """The mean value of `make(params)`, a program without scores, as a function of params.

    Draws of a surrogate come from densities without a derivative, so what is differentiated in
    its mean is its value: the mean of the derivative.
    """
    program = make(like)
    latents = [s for s in program.sites if s.kind == "latent"]
    assert combinations(program) <= MOST, f"{combinations(program)} combinations"
    columns, sizes = [], []
    for site in latents:
        values = _values(site)
        rows = list(itertools.product(range(len(values)), repeat=math.prod(site.shape)))
        columns.append(np.array([[values[i] for i in row] for row in rows]))
        sizes.append(len(rows))
    total = combinations(program)
    index = np.indices(sizes).reshape(len(sizes), total)
    given = {
        s.address: jnp.asarray(c[i].reshape(total, *s.shape), s.dtype)
        for s, c, i in zip(latents, columns, index, strict=True)
    }
    masses = jax.vmap(lambda c: ppl.log_density(program, c))(given)
    possible = np.flatnonzero(np.asarray(masses) > -np.inf)  # elsewhere there may be no derivative
    given = {a: x[possible] for a, x in given.items()}
    # How many combinations stand for one placeholder, by site.
    hidden = {
        s.address: len(_values(s)) ** (math.prod(s.shape) // math.prod(s.placed.prefix))
        for s in latents
    }

    def terms(params):
        def one(choices):
            trace = ppl.trace_of(make(params), choices)
            absent = {a: jnp.sum(~x) * math.log(hidden[a]) for a, x in trace.present.items()}
            log_mass = trace.log_density - sum(absent.values())  # placeholders are listed too
            return jnp.exp(log_mass), trace.value

        return jax.vmap(one)(given)

    np.testing.assert_allclose(jnp.sum(jax.jit(terms)(like)[0]), 1.0, rtol=0, atol=1e-9)
    return jax.jit(lambda params: jnp.vdot(*terms(params)))


def refuse_bias(cost, at):
    """Assert that the gradient is unbiased to 1e-10; return the exact one.

    By the derivative of the surrogate, summed over all draws it may make; where these are too many
    to sum one by one, by enumeration of the gradient estimate as a program.
    """
    exact = jax.grad(mean(cost, at))(at)
    if combinations(ppl.vi.expectation(cost(at))) <= MOST:
        found = jax.grad(mean(lambda p: ppl.vi.expectation(cost(p)), at))(at)
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-10)
    else:
        estimate = ppl.vi.grad_estimate(cost)(at)
        report = ppl.check.unbiased(estimate, exact, max_worlds=3_000_000)
        assert report.passed, report
        assert report.false_alarm == 0
    return exact


def _values(site):
    d = {"Bernoulli": dist.Bernoulli(0.5)}.get(site.distribution)
    if d is None:
        d = dist.Categorical(jnp.ones(3) / 3)
    return finite_values(d, operation="test", address=site.address)
