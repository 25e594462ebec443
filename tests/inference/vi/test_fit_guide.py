"""Fits of objectives that are plain functions know the model and the guide they are given."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ppl
import ppl.distributions as dist
from ppl.errors import ArgumentError, ResultError

vi = ppl.vi


@ppl.model
def model(y):
    z = ppl.sample("z", dist.Normal(0.0, 1.0))
    ppl.sample("y", dist.Normal(z, 0.5), obs=y)


PROGRAM = model(1.0)
GUIDE = vi.mean_field(PROGRAM)


def bound(params):
    return vi.elbo(PROGRAM, GUIDE(params))


def fit(objective=bound, num_steps=50, **settings):
    settings = {"maximize": True, "optimizer": optax.adam(0.05)} | settings
    return ppl.run(vi.fit(objective, num_steps=num_steps, **settings), 0)


def test_it_is_the_fit_of_the_same_objective():
    """Start, draws and weights are those of `ppl.vi.elbo(program, guide)`, bit for bit."""
    found = fit(program=PROGRAM, guide=GUIDE)
    right = fit(vi.elbo(PROGRAM, GUIDE))
    for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(right.params), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(found.draws(1, 10)["z"], right.draws(1, 10)["z"])
    one, two = found.psis(2, 100), right.psis(2, 100)
    assert one.pareto_k == two.pareto_k
    np.testing.assert_array_equal(one.log_weights, two.log_weights)
    assert found.program.name == "model"
    assert "bound" in repr(found)
    more = found.extend(5)
    assert len(more.values) == 55
    assert set(more.guide.latents) == {"z"}


def test_what_was_not_given_is_missing():
    start = GUIDE.params
    assert fit(params=start, program=PROGRAM).program.name == "model"
    for given, name in [({}, "guide"), ({}, "program"), ({"program": PROGRAM}, "guide")]:
        with pytest.raises(ResultError, match=f"{name}={name}"):
            getattr(fit(params=start, **given), name)


def test_parameters_of_both():
    def functions(params):
        return vi.elbo(model(params["y"]), GUIDE(params["guide"]))

    start = {"y": jnp.array(1.0), "guide": GUIDE.params}
    found = fit(
        functions,
        params=start,
        program=lambda params: model(params["y"]),
        guide=lambda params: GUIDE(params["guide"]),
    )
    assert found.psis(0, 100).draws["z"].shape == (100,)


def test_an_objective_that_is_a_model():
    @ppl.model
    def pull(params):
        z = ppl.sample("z", dist.Normal(params["loc"], jnp.exp(params["log_scale"])))
        return z**2

    @ppl.model
    def drawn(params):
        ppl.sample("z", dist.Normal(params["loc"], jnp.exp(params["log_scale"])))

    start = {"loc": jnp.array(1.0), "log_scale": jnp.array(0.0)}
    found = fit(pull, params=start, maximize=False, program=PROGRAM, guide=drawn)
    assert found.draws(0, 10)["z"].shape == (10,)


def test_refusals():
    for name, given in {"program": PROGRAM, "guide": GUIDE}.items():
        with pytest.raises(ArgumentError, match=f"an objective with a {name} of its own"):
            vi.fit(vi.elbo(PROGRAM, GUIDE), **{name: given})
        with pytest.raises(ArgumentError, match=f"a {name} of type int"):
            vi.fit(bound, GUIDE.params, maximize=True, **{name: 3})
