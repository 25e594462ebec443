"""Slices of densities: what they leave out makes no difference, and is not computed."""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ppl
import ppl.distributions as dist
from ppl.errors import AddressError
from ppl.semantics.slices import sliced_density
from ppl.staging import stage

pytestmark = pytest.mark.usefixtures("x64")
B, sample = dist.Bernoulli, ppl.sample


def differences(program, density):
    """In all pairs of runs: what changing the addresses changes, of everything and of the slice."""

    def compare(program):
        with ppl.scope("one"):
            old = ppl.traced(program)().choices
        with ppl.scope("two"):
            other = ppl.traced(program)().choices
        new = {**old, **{a: other[a] for a in density.addresses}}
        whole = [ppl.log_density(program, c) for c in (old, new)]
        return [*whole, *(dataclasses.replace(density, program=program)(c) for c in (old, new))]

    found = np.array(ppl.enumerate(stage(compare, (program,), name="compare")).points)
    old, new, one, two = found[found[:, 0] > -np.inf].T
    gone = new == -np.inf
    assert (gone == (two == -np.inf)).all()
    return (new - old)[~gone], (two - one)[~gone]


@hypothesis.settings(max_examples=20, database=None)
@hypothesis.given(ppl.check.programs(size=6, max_worlds=8), hypothesis.strategies.data())
def test_differences_on_random_programs(program, data):
    hypothesis.assume(program.latents)
    addresses = data.draw(hypothesis.strategies.sampled_from(program.latents))
    whole, part = differences(program, sliced_density(program, addresses))
    np.testing.assert_allclose(part, whole, rtol=1e-12, atol=1e-12)


@ppl.model
def branching():
    a = sample("a", B(0.3))
    b = sample("b", B(0.2 + 0.5 * a))

    def there():
        c = sample("c", B(0.6))
        sample("d", B(0.2 + 0.6 * c), obs=1)
        return c

    c = lax.cond(b == 1, there, lambda: 0)

    def step(x, _):
        x = sample("x", B(jnp.where(x == 1, 0.8, 0.3)))
        sample("y", B(0.1 + 0.7 * x * b), obs=1)
        return x, x

    lax.scan(step, c, None, length=2)
    ppl.factor("e", -0.5 * a)


TERMS = {"a": "a b e", "b": "b c d x y", "c": "c d x", "x": "x y"}


@pytest.mark.parametrize("address", TERMS)
def test_terms(address):
    program = branching()
    density = sliced_density(program, address)
    # What a branch gives depends on its flag, and so do a site in it and what comes after it.
    assert density.terms == set(TERMS[address].split())
    whole, part = differences(program, density)
    np.testing.assert_allclose(part, whole, rtol=1e-12, atol=1e-12)
    for term in density.terms:
        less = dataclasses.replace(density, terms=density.terms - {term})
        whole, part = differences(program, less)
        assert np.abs(part - whole).max() > 0.1, f"without {term} nothing is wrong"


def test_several_addresses():
    whole, part = differences(branching(), sliced_density(branching(), ["a", "x"]))
    np.testing.assert_allclose(part, whole, rtol=1e-12, atol=1e-12)


# --- What is left out ---------------------------------------------------------------------------


@ppl.model
def many(y, z):
    """Two plates that share a mean; each latent has a plate of its own."""
    m = sample("m", dist.Normal(0.0, 1.0))
    with ppl.plate("rows", y.shape[0]):
        a = sample("a", dist.Normal(jnp.sinh(m), 1.0))
        sample("y", dist.Normal(jnp.cosh(a), 1.0), obs=y)
    with ppl.plate("columns", z.shape[0]):
        b = sample("b", dist.Normal(m, 1.0))
        sample("z", dist.Normal(jnp.tan(b), 1.0), obs=z)
    return jnp.sum(a) + jnp.sum(b)


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for param in eqn.params.values():
            if hasattr(param, "jaxpr"):
                yield from equations(param.jaxpr)


def staged(sizes, address):
    """The equations of a slice, and the sizes of what they read and give."""
    program = many(*map(jnp.zeros, sizes))
    density = sliced_density(program, address)
    choices = {s.address: jnp.zeros(s.shape) for s in program.sites if s.kind == "latent"}
    made = list(equations(jax.make_jaxpr(density)(choices).jaxpr))
    shapes = {n for e in made for v in (*e.invars, *e.outvars) for n in v.aval.shape}
    return [e.primitive.name for e in made], shapes


def test_untouched_plates_cost_nothing():
    few, _ = staged((3, 5), "a")
    names, sizes = staged((3, 1000), "a")
    assert names == few
    assert 1000 not in sizes
    assert {"cosh", "sinh"} <= set(names)
    assert "tan" not in names
    names, sizes = staged((1000, 5), "b")
    assert 1000 not in sizes
    assert "tan" in names
    assert not {"cosh", "sinh"} & set(names)
    names, sizes = staged((7, 1000), "m")  # the latents depend on it, the data only through them
    assert {7, 1000} <= sizes
    assert not {"cosh", "tan"} & set(names)


def test_held_latents_are_inputs():
    density = sliced_density(many(jnp.zeros(2), jnp.zeros(3)), "a")
    assert density.held == ("m",)
    given = density.given({"m": 0.5})
    assert set(given.sites.addresses()) == {"a", "y"}


def test_refusals():
    program = branching()
    with pytest.raises(AddressError, match=r'sliced_density got unknown address "y"'):
        sliced_density(program, ["y"])
    with pytest.raises(AddressError, match=r'sliced_density got no value for "x"'):
        sliced_density(program, "a")({"a": 0, "b": 0, "c": 0})
