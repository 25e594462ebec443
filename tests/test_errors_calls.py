"""Named errors of wrong calls: arguments, keys, plates, kernels, starting points; and leaks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl import errors
from tests.test_errors import draw, normal, refused

# --- Traced values that escape ------------------------------------------------------------------

LEAKED = None


class Holder:
    value = None


def _leaks():
    items, table, holder = [], {}, Holder()
    nested = {"a": [{"b": items}]}

    def to_global(x):
        global LEAKED
        LEAKED = x

    return {
        "list": lambda x: items.append(x),
        "derived": lambda x: items.append(jnp.exp(x)),
        "dict": lambda x: table.update(a=x),
        "attribute": lambda x: setattr(holder, "value", x),
        "global": to_global,
        "nested": lambda x: nested["a"][0]["b"].append((x,)),
        "scan": lambda x: jax.lax.scan(lambda c, i: (c, items.append(c)), x, jnp.arange(2)),
        "vmap": lambda x: jax.vmap(lambda i: items.append(i * x) or i)(jnp.arange(2.0)),
        "jit": lambda x: jax.jit(lambda i: items.append(i) or i)(x),
    }


@pytest.mark.parametrize("where", _leaks())
def test_leak(where):
    global LEAKED
    escape = _leaks()[where]

    @ppl.model
    def leaking():
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        escape(x)
        return x

    with refused(errors.TracerLeakError, "leaking", "variable", "return the value", line=False):
        leaking()
    LEAKED = None


def test_leak_into_self_default_and_argument():
    class Owner:
        @ppl.model
        def method(self):
            self.x = ppl.sample("x", dist.Normal(0.0, 1.0))

    @ppl.model
    def default(kept=[]):  # noqa: B006
        kept.append(ppl.sample("x", dist.Normal(0.0, 1.0)))

    @ppl.model
    def argument(keep):
        keep(ppl.sample("x", dist.Normal(0.0, 1.0)))

    for call in (Owner().method, default, lambda: argument([].append)):
        with refused(errors.TracerLeakError, line=False):
            call()


def test_custom_derivatives_are_not_leaks():
    @jax.custom_jvp
    def square(x):
        return x * x

    square.defjvp(lambda p, t: (square(*p), 2 * p[0] * t[0]))
    m = ppl.model(lambda: square(ppl.sample("x", dist.Normal(0.0, 1.0))))
    assert m().latents == ("x",)


# --- Arguments ----------------------------------------------------------------------------------


def test_wrong_arguments_of_a_model():
    with refused(errors.ArgumentError, "'x'", "normal(y)", line=False):
        normal(y=1.0, x=2.0)
    with refused(errors.ArgumentError, "missing", "normal(y)", line=False):
        normal()

    @ppl.model
    def outer():
        return normal(yy=1.0)

    with refused(errors.ArgumentError, "'yy'", "normal(y)", line=False):
        outer()


UNKNOWN_KEYWORDS = {
    "mcmc": (lambda: ppl.mcmc(normal(1.0), ppl.kernels.nuts(), num_sample=3), "num_samples"),
    "nuts": (lambda: ppl.kernels.nuts(target_acept=0.9), "target_accept"),
    "importance": (lambda: ppl.importance(normal(1.0), 3, propsal=None), "proposal"),
    "run": (lambda: ppl.run(normal(1.0), 0, progres=None), "progress"),
}


@pytest.mark.parametrize("case", UNKNOWN_KEYWORDS)
def test_unknown_keyword(case):
    # A TypeError either way (ArgumentError is one), that names the keyword and the close one.
    call, close = UNKNOWN_KEYWORDS[case]
    with pytest.raises(TypeError, match=f"{close[:6]}") as info:
        call()
    assert isinstance(info.value, errors.ArgumentError), "a raw TypeError: no fix is named"


def test_unhashable_and_object_arguments():
    with refused(errors.ArgumentError, "normal", "set", "hashable", line=False):
        normal({"a": {1, 2}})
    for bad, shown in (
        (np.array([1, None], object), "object"),
        (np.array(["a"]), "<U1"),
        (np.array(["2020-01-01"], "datetime64[D]"), "datetime64"),
    ):
        with refused(errors.ArgumentError, "normal", shown, line=False):
            normal(bad)
    with refused(errors.ObservationError, "object", '"site"'):
        draw(lambda: dist.Normal(0.0, 1.0), np.array(None, object))()


BAD_SIZES = [0, -1, 2.5, "3", None, float("inf"), float("nan"), [3]]


@pytest.mark.parametrize("size", BAD_SIZES)
def test_bad_plate_size(size):
    @ppl.model
    def m():
        with ppl.plate("rows", size):
            ppl.sample("x", dist.Normal(0.0, 1.0))

    with refused(errors.ArgumentError, '"rows"', str(size), "integer", line=False):
        m()


def test_whole_numbers_are_plate_sizes():
    for size in (3, 3.0, np.int64(3), jnp.array(3)):

        @ppl.model
        def m(size=size):
            with ppl.plate("rows", size) as index:
                assert index.dtype == jnp.int32
                ppl.sample("x", dist.Normal(0.0, 1.0))

        try:
            assert m().sites["x"].shape == (3,)
        except errors.ArgumentError:
            assert not isinstance(size, (int, np.integer))


def test_bad_plates():
    @ppl.model
    def traced(n):
        with ppl.plate("rows", n):
            ppl.sample("x", dist.Normal(0.0, 1.0))

    with refused(errors.ArgumentError, '"rows"', "static", line=False):
        traced(jnp.array(3))
    with refused(errors.ArgumentError, '"rows"', "subsample_size=4", "size=3", line=False):
        ppl.model(lambda: ppl.plate("rows", 3, 4))()
    with refused(errors.ArgumentError, '"rows"', "dim=0", "negative", line=False):
        ppl.model(lambda: ppl.plate("rows", 3, dim=0))()
    for name, dim in (("rows", None), ("other", -1)):

        @ppl.model
        def clash(name=name, dim=dim):
            with ppl.plate("rows", 3), ppl.plate(name, 3, dim=dim):
                ppl.sample("x", dist.Normal(0.0, 1.0))

        with refused(errors.ArgumentError, f'"{name}"', "rows", line=False):
            clash()

    @ppl.model
    def misfit(statement):
        with ppl.plate("rows", 3):
            statement()

    for statement in (
        lambda: ppl.sample("x", dist.Normal(jnp.zeros(4), 1.0)),
        lambda: ppl.factor("x", jnp.zeros(4)),
    ):
        with refused(errors.ObservationError, '"x"', "(4,)", "rows"):
            misfit(statement)


PROGRAM_TAKERS = {
    "run": lambda m: ppl.run(m, 0),
    "trace": lambda m: ppl.trace(m, 0),
    "log_density": lambda m: ppl.log_density(m, {}),
    "importance": lambda m: ppl.importance(m, 3),
    "proposal": lambda m: ppl.importance(normal(1.0), 3, proposal=m),
    "mcmc": lambda m: ppl.mcmc(m, ppl.kernels.nuts()),
    "condition": lambda m: ppl.condition(m, {}),
    "do": lambda m: ppl.do(m, {}),
    "replay": lambda m: ppl.replay(m, {}),
    "scale": lambda m: ppl.scale(m, 0.5),
    "mask": lambda m: ppl.mask(m, False),
    "unobserve": ppl.unobserve,
    "unconstrain": ppl.unconstrain,
    "reparam": lambda m: ppl.reparam(m, {}),
    "weighted": ppl.weighted,
    "traced": ppl.traced,
    "prior_predictive": lambda m: ppl.prior_predictive(m, 0),
    "posterior_predictive": lambda m: ppl.posterior_predictive(m, {"mu": jnp.zeros(2)}, 0),
}


@pytest.mark.parametrize("taker", PROGRAM_TAKERS)
def test_a_model_where_a_program_is_needed(taker):
    with refused(errors.ArgumentError, "Model", "Program", line=False):
        PROGRAM_TAKERS[taker](normal)


BAD_KEYS = [None, 1.5, "a", jnp.zeros(3), jax.random.split(jax.random.key(0), 3), 2**70]


@pytest.mark.parametrize("index", range(len(BAD_KEYS)))
def test_wrong_key(index):
    with refused(errors.ArgumentError, "key", line=False):
        ppl.run(draw(lambda: dist.Normal(0.0, 1.0))(), BAD_KEYS[index])


def test_keys_of_every_kind_agree():
    p = draw(lambda: dist.Normal(0.0, 1.0))()
    keys = [5, np.int64(5), jnp.array(5), jax.random.key(5), jax.random.PRNGKey(5)]
    assert len({float(ppl.run(p, key)) for key in keys}) == 1
    assert ppl.run(p, 6) != ppl.run(p, 5)


def test_running_what_scores():
    for program, where in (
        (normal(1.0), '"y"'),
        (ppl.model(lambda: ppl.factor("f", 1.0))(), '"f"'),
        (ppl.scale(draw(lambda: dist.Normal(0.0, 1.0))(), 0.5), '"site"'),
    ):
        with refused(errors.OpenObservationsError, where, "ppl.mcmc", "ppl.importance"):
            ppl.run(program, 0)
    with refused(errors.OpenObservationsError, '"f"'):
        ppl.prior_predictive(ppl.model(lambda: ppl.factor("f", 1.0))(), 0)
    scaled = ppl.scale(draw(lambda: dist.Normal(0.0, 1.0))(), 4.0)
    with refused(errors.OpenObservationsError, '"site"'):
        ppl.prior_predictive(scaled, 0)
    improper = draw(lambda: dist.ImproperUniform(dist.constraints.real, (), ()))()
    for call in (ppl.run, ppl.trace, ppl.prior_predictive):
        with refused(errors.UnsupportedError, '"site"', "improper"):
            call(improper, 0)


# --- Inference ----------------------------------------------------------------------------------


def test_wrong_settings():
    p = normal(1.0)
    for count in (0, -1, 2.5, None):
        with refused(errors.ArgumentError, f"num_particles={count}", line=False):
            ppl.importance(p, count)
        with refused(errors.ArgumentError, f"num_samples={count}", line=False):
            ppl.mcmc(p, ppl.kernels.nuts(), num_samples=count)
    with refused(errors.ArgumentError, "kernel", "nuts()", line=False):
        ppl.mcmc(p, ppl.kernels.nuts)
    for settings in ({"target_accept": 1.0}, {"max_tree_depth": 0}, {"step_size": -1.5}):
        with refused(errors.ArgumentError, str(next(iter(settings.values()))), line=False):
            ppl.kernels.nuts(**settings)
    with refused(errors.ArgumentError, "-1", line=False):
        ppl.scale(p, -1.0)
    with refused(errors.ObservationError, '"y"', "(3,)"):
        ppl.mask(p, jnp.ones(3, bool))
    for strategy in (3, ppl.NonCentred):
        with refused(errors.ArgumentError, '"mu"', "strategy"):
            ppl.reparam(p, {"mu": strategy})
    with refused(errors.DistributionError, "Gamma", '"site"'):
        ppl.reparam(draw(lambda: dist.Gamma(1.0, 1.0))(), {"site": ppl.NonCentred()})
    with refused(errors.UnsupportedError, '"site"', "Poisson", "discrete"):
        ppl.mcmc(draw(lambda: dist.Poisson(1.0))(), ppl.kernels.nuts())
    with refused(errors.UnsupportedError, "no latent", line=False):
        ppl.mcmc(ppl.model(lambda: ppl.factor("f", 1.0))(), ppl.kernels.nuts())
    with refused(errors.UnsupportedError, '"site"'):
        ppl.unconstrain(draw(lambda: dist.ProjectedNormal(jnp.ones(3)))())


def test_wrong_proposals():
    @ppl.model
    def q(d):
        return ppl.sample("mu", d)

    p = normal(1.0)
    with refused(errors.AddressError, '"site"', '"mu"', line=False):
        ppl.importance(p, 3, proposal=draw(lambda: dist.Normal(0.0, 1.0))())
    with refused(errors.AddressError, '"mu"', "(2,)", "shape ()"):
        ppl.importance(p, 3, proposal=q(dist.Normal(jnp.zeros(2), 1.0)))
    with refused(errors.AddressError, '"mu"', "discrete"):
        ppl.importance(p, 3, proposal=q(dist.Poisson(1.0)))
    with refused(errors.OpenObservationsError, '"y"', "scores"):
        ppl.importance(p, 3, proposal=normal(2.0))
    branch = ppl.model(
        lambda b: jax.lax.cond(b, lambda: ppl.sample("mu", dist.Normal(0.0, 1.0)), lambda: 0.0)
    )
    with refused(errors.UnsupportedError, '"mu"', "branch"):
        ppl.importance(p, 3, proposal=branch(jnp.array(True)))


def _start(program, init=None):
    kernel = ppl.kernels.nuts(max_tree_depth=1)
    return ppl.run(ppl.mcmc(program, kernel, 1, 1, 1, init=init), 0)


def test_no_finite_start_names_site_and_value():
    @ppl.model
    def m(y, f):
        s = ppl.sample("s", dist.HalfNormal(1.0))
        ppl.sample("y", dist.Uniform(0.0, s), obs=y)
        ppl.factor("tilt", f * s)

    with refused(errors.InitializationError, '"y"', "1000", "-inf", "depends on s"):
        _start(m(jnp.array(1000.0), 0.0))
    for value, shown in ((-jnp.inf, "-inf"), (jnp.nan, "nan")):
        with refused(errors.InitializationError, '"tilt"', shown):
            _start(m(jnp.array(1e-3), value))
    with refused(errors.PPLError, '"s"', "-1"):
        _start(m(jnp.array(1e-3), 0.0), {"s": -1.0})
