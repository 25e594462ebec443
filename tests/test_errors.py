"""Every mistake a user can make in a model is a named error that says what, where, and the fix."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl import errors

NAN = float("nan")
NEGATIVE = -2.0


@ppl.model
def normal(y):
    mu = ppl.sample("mu", dist.Normal(0.0, 1.0))
    ppl.sample("y", dist.Normal(mu, 1.0), obs=y)
    return mu


def draw(distribution: Callable[..., Any], obs: Any = None) -> ppl.Model:
    """A model of one site; `distribution` is called with the model's arguments."""

    def m(*args, y=obs):
        return ppl.sample("site", distribution(*args), obs=y)

    return ppl.model(m)


@contextlib.contextmanager
def refused(kind: type[Exception], *parts: str, line: bool = True) -> Iterator[None]:
    """Expect `kind` with all `parts`, a fix, and (with `line`) the line of these files."""
    assert issubclass(kind, errors.PPLError)
    with pytest.raises(kind) as info:
        yield
    text = str(info.value)
    for part in (*parts, "Fix: ", "needs "):
        assert part in text, f"{part!r} not in: {text}"
    if line:
        assert re.search(r"\(test_errors\w*\.py:\d+\)", text), text


# --- Addresses ----------------------------------------------------------------------------------


def test_duplicate_address_shows_both_lines():
    @ppl.model
    def m():
        ppl.sample("x", dist.Normal(0.0, 1.0))
        ppl.sample("x", dist.Normal(0.0, 1.0))

    first = inspect.getsourcelines(m.__wrapped_model__)[1] + 2
    name = __file__.rsplit("/", 1)[-1]
    with refused(errors.AddressError, '"x"', f"{name}:{first}", f"{name}:{first + 1}"):
        m()


@pytest.mark.parametrize("second", ["scan", "factor", "deterministic", "plate", "jit"])
def test_duplicate_address_of_other_kinds(second):
    @ppl.model
    def m():
        ppl.sample("x", dist.Normal(0.0, 1.0))
        again = lambda: ppl.sample("x", dist.Normal(0.0, 1.0))  # noqa: E731
        match second:
            case "scan":
                jax.lax.scan(lambda c, i: (c, again()), 0.0, jnp.arange(3))
            case "factor":
                ppl.factor("x", 1.0)
            case "deterministic":
                ppl.deterministic("x", 1.0)
            case "plate":
                ppl.plate("x", 4, 2).__enter__()
            case "jit":
                jax.jit(again)()

    with refused(errors.AddressError, '"x"', "already used"):
        m()


@pytest.mark.parametrize("address", [3, "", None, b"x"])
def test_address_that_is_no_name(address):
    with refused(errors.ArgumentError, repr(address), line=False):
        ppl.model(lambda: ppl.sample(address, dist.Normal(0.0, 1.0)))()


OPERATIONS = {
    "condition": lambda p, c: ppl.condition(p, c),
    "do": lambda p, c: ppl.do(p, c),
    "replay": lambda p, c: ppl.replay(p, c),
    "log_density": lambda p, c: ppl.log_density(p, c),
    "init": lambda p, c: ppl.mcmc(p, ppl.kernels.nuts(), init=c),
    "predictive": lambda p, c: ppl.posterior_predictive(
        p, {a: jnp.zeros(3) for a in c} if isinstance(c, dict) else c, 0
    ),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_unknown_address_suggests_the_closest(operation):
    m = draw(lambda: dist.Normal(0.0, 1.0))
    with refused(errors.AddressError, '"sitee"', 'id you mean "site"', line=False):
        OPERATIONS[operation](m(), {"sitee": 0.0})


def test_missing_address():
    with refused(errors.AddressError, '"mu"', "every latent", line=False):
        ppl.log_density(normal(1.0), {})


def test_address_of_another_kind():
    with refused(errors.AddressError, '"y"', "observed", line=False):
        ppl.condition(normal(1.0), {"y": 1.0})
    with refused(errors.AddressError, '"mew"', '"mu"', line=False):
        _ = normal(1.0).sites["mew"]
    for operation in (ppl.scale, ppl.mask):
        with refused(errors.AddressError, '"z"', line=False):
            operation(normal(1.0), False, ["z"])
    with refused(errors.AddressError, '"z"', line=False):
        ppl.unobserve(normal(1.0), ["z"])
    with refused(errors.AddressError, '"m"', 'id you mean "mu"', line=False):
        ppl.reparam(normal(1.0), {"m": ppl.NonCentred()})


@pytest.mark.parametrize("operation", ["log_density", "condition", "init"])
@pytest.mark.parametrize("choices", [3.0, [1.0], "mu"])
def test_choices_that_are_no_mapping(operation, choices):
    with refused(errors.PPLError, "mapping", line=False):
        OPERATIONS[operation](normal(1.0), choices)


# --- Values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["log_density", "condition", "do", "replay", "init"])
def test_choice_of_wrong_shape_or_type(operation):
    with refused(errors.ObservationError, "(3,)", '"mu"', "shape ()"):
        OPERATIONS[operation](normal(1.0), {"mu": np.zeros(3)})
    with refused(errors.ObservationError, "<U1", '"mu"'):
        OPERATIONS[operation](normal(1.0), {"mu": "a"})


def test_choice_of_fractions_for_counts():
    with refused(errors.ObservationError, "float", '"site"', "int32"):
        ppl.condition(draw(lambda: dist.Poisson(1.0))(), {"site": 1.5})


def test_predictive_rows_of_wrong_shape():
    with refused(errors.PPLError, '"mu"', "(5, 2)", line=False):
        ppl.posterior_predictive(normal(1.0), {"mu": jnp.zeros((5, 2))}, 0)


BAD_OBSERVATIONS = {
    "shape": (lambda: dist.Normal(0.0, 1.0), np.ones(3), ("(3,)", "shape ()", "ppl.plate")),
    "float for int": (lambda: dist.Poisson(1.0), np.ones(()), ("float", "integers")),
    "complex": (lambda: dist.Normal(0.0, 1.0), np.ones((), complex), ("complex", "real")),
    "text": (lambda: dist.Normal(0.0, 1.0), "abc", ("<U3", "real")),
    "positive": (lambda: dist.HalfNormal(1.0), np.float32(-1.0), ("-1.", "positive")),
    "nan": (lambda: dist.Normal(0.0, 1.0), np.float32(NAN), ("nan", "real")),
    "literal": (lambda: dist.HalfNormal(1.0), -1.0, ("-1.", "positive")),
    "literal nan": (lambda: dist.Normal(0.0, 1.0), NAN, ("nan", "real")),
    "above": (lambda: dist.Binomial(3, 0.5), np.array(4), ("4", "interval(0, 3)")),
    "simplex": (lambda: dist.Dirichlet(jnp.ones(2)), np.array([0.5, 0.6]), ("0.6", "simplex")),
    "total": (lambda: dist.Multinomial(3, jnp.ones(2) / 2), np.array([1, 1]), ("[1 1]",)),
}


@pytest.mark.parametrize("case", BAD_OBSERVATIONS)
@pytest.mark.parametrize("way", ["argument", "closure", "literal in model", "jitted"])
def test_observation_that_cannot_be(case, way):
    distribution, value, parts = BAD_OBSERVATIONS[case]
    with refused(errors.ObservationError, '"site"', *parts):
        match way:
            case "argument":
                draw(distribution)(y=value)
            case "closure":
                draw(distribution, value)()
            case "literal in model":
                ppl.model(lambda: ppl.sample("site", distribution(), obs=value))()
            case "jitted":
                ppl.model(lambda y: jax.jit(lambda: ppl.sample("site", distribution(), obs=y))())(
                    value
                )


@pytest.mark.parametrize("bad", [-2.0, NAN])
@pytest.mark.parametrize("loop", ["scan", "vmap", "scan of vmap", "plate", "reverse scan"])
def test_observation_that_cannot_be_in_a_loop(loop, bad):
    def one(y):
        return ppl.sample("site", dist.HalfNormal(1.0), obs=y)

    @ppl.model
    def m(ys):
        match loop:
            case "scan":
                jax.lax.scan(lambda c, y: (c, one(y)), 0.0, ys)
            case "reverse scan":
                jax.lax.scan(lambda c, y: (c, one(y)), 0.0, ys, reverse=True)
            case "vmap":
                jax.vmap(one)(ys)
            case "scan of vmap":
                jax.lax.scan(lambda c, y: (c, jax.vmap(one)(y)), 0.0, ys)
            case "plate":
                with ppl.plate("n", 3):
                    one(ys)

    ys = np.array([1.0, bad, 3.0], np.float32)
    ys = np.stack([ys, np.ones_like(ys)]) if loop == "scan of vmap" else ys
    with refused(errors.ObservationError, '"site"', "index", "1 such"):
        m(ys)


@pytest.mark.parametrize("y", [NAN, -1.0])
def test_observation_below_the_known_bound_of_a_random_interval(y):
    @ppl.model
    def m(y):
        top = ppl.sample("top", dist.HalfNormal(1.0))
        ppl.sample("site", dist.Uniform(0.0, top), obs=y)

    with refused(errors.ObservationError, '"site"'):
        m(np.float32(y))


def test_condition_outside_the_support():
    with refused(errors.ObservationError, "condition got", "-1.", '"site"', "positive"):
        ppl.condition(draw(lambda: dist.HalfNormal(1.0))(), {"site": -1.0})


# --- Distributions ------------------------------------------------------------------------------

BAD_PARAMETERS = {
    "scale": (lambda s: dist.Normal(0.0, s), -1.0, ("scale", "-1", "positive")),
    "nan": (lambda s: dist.Normal(s, 1.0), NAN, ("loc", "nan", "real")),
    "array": (lambda s: dist.Normal(0.0, s).to_event(1), [1.0, -3.0], ("scale", "-3", "positive")),
    "wrapped": (lambda s: dist.LogNormal(0.0, s), -1.0, ("scale", "-1", "positive")),
    "probability": (lambda p: dist.Bernoulli(p), 1.5, ("probs", "1.5", "unit interval")),
    "simplex": (lambda p: dist.Categorical(p), [0.5, 0.7], ("probs", "0.7", "simplex")),
    "bounds": (lambda a: dist.Uniform(a, 1.0), 2.0, ("2",)),
    "matrix": (
        lambda s: dist.MultivariateNormal(jnp.zeros(2), scale_tril=s),
        [[-1.0, 0.0], [0.0, 1.0]],
        ("scale_tril", "-1", "lower cholesky"),
    ),
}


@pytest.mark.parametrize("case", BAD_PARAMETERS)
@pytest.mark.parametrize("way", ["argument", "closure", "literal"])
def test_parameters_outside_their_domain(case, way):
    distribution, value, parts = BAD_PARAMETERS[case]
    array = jnp.asarray(value, jnp.float32)
    literal = value if isinstance(value, float) else array
    with refused(errors.DistributionError, '"site"', *parts):
        match way:
            case "argument":
                draw(distribution)(array)
            case "closure":
                draw(lambda: distribution(array))()
            case "literal":
                draw(lambda: distribution(literal))()


@pytest.mark.parametrize("loop", ["scan", "vmap"])
def test_parameters_outside_their_domain_in_a_loop(loop):
    def one(s):
        return ppl.sample("site", dist.Normal(0.0, s))

    fun = (lambda s: jax.lax.scan(lambda c, x: (c, one(x)), 0.0, s)) if loop == "scan" else None
    with refused(errors.DistributionError, '"site"', "-2", "positive"):
        ppl.model(fun or jax.vmap(one))(jnp.array([1.0, NEGATIVE]))


def test_no_distribution_and_masked_latent():
    with refused(errors.DistributionError, '"site"', "DistributionMeta"):
        draw(lambda: dist.Normal)()
    with refused(errors.DistributionError, '"site"', "Normal", "masked"):
        draw(lambda: dist.Normal(0.0, 1.0).mask(False))()


def test_ordinary_distributions_with_constant_parameters_are_accepted():
    @ppl.model
    def m(y):
        w = ppl.sample("w", dist.Dirichlet(jnp.ones(3)))
        v = ppl.sample("v", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))
        c = ppl.sample("c", dist.Categorical(jnp.full(4, 0.25)), obs=2)
        t = ppl.sample("t", dist.HalfNormal(1.0))
        ppl.sample("u", dist.Uniform(0.0, t), obs=y)
        return w, v, c

    p = m(1.0)
    choices = {"w": np.full(3, 1 / 3), "v": np.zeros(2), "t": 2.0}
    assert np.isfinite(ppl.log_density(p, choices))
