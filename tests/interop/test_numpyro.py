"""`from_numpyro` against NumPyro: the same density, gradients and latent sites, model by model."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.contrib.control_flow import scan
from numpyro.contrib.module import eqx_module
from numpyro.infer.util import log_density

import ppl
from ppl.errors import ObservationError, OpenObservationsError, UnsupportedError
from tests.interop.numpyro_models import CASES, Case, drawn_shapes, minibatch_drawn

DRAWS = 3
pytestmark = pytest.mark.usefixtures("x64")


def program_of(case: Case) -> ppl.Program:
    return ppl.from_numpyro(case.model)(*case.args, **case.kwargs)


def on_device(case: Case) -> Case:
    """The case with JAX's arrays for NumPy's, which NumPyro needs where it indexes by a tracer."""

    def convert(x: Any) -> Any:
        return jnp.asarray(x) if isinstance(x, np.ndarray) else x

    args = tuple(map(convert, case.args))
    return Case(case.model, args, {k: convert(v) for k, v in case.kwargs.items()})


def reference(case: Case, choices: dict[str, Any]) -> Any:
    """NumPyro's own joint density, with NumPyro's own handlers.

    A key for what NumPyro draws beside its latents (it asks for one in `scan`).
    """
    case = on_device(case)
    model = handlers.seed(case.model, jax.random.key(0))
    return log_density(model, case.args, case.kwargs, choices)[0]


def prior_draws(case: Case, program: ppl.Program) -> list[dict[str, Any]]:
    """Choices with a density to compare: from the prior, flat sites from a normal."""
    flat = [s.address for s in program.sites if s.improper]
    draws = []
    for seed in range(DRAWS):
        key = jax.random.key(seed)
        given = {a: 0.5 + seed + jnp.zeros(program.sites[a].shape) for a in flat}
        proper = ppl.condition(program, given) if flat else program
        draws.append({**ppl.trace(proper, key).choices, **given})
    return draws


@pytest.fixture(params=[n for n in CASES if n not in ("minibatch_drawn", "scan_backwards")])
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def test_latent_sites_are_numpyros(case: Case) -> None:
    program = program_of(case)
    seeded = handlers.seed(case.model, jax.random.key(0))
    flat = {s.address: jnp.zeros(s.shape) for s in program.sites if s.improper}
    substituted = handlers.substitute(seeded, flat)  # NumPyro cannot draw these
    given = on_device(case)
    kinds = {}

    def sites() -> dict[str, Any]:
        trace = handlers.trace(substituted).get_trace(*given.args, **given.kwargs)
        kept = {name: m for name, m in trace.items() if m["type"] in ("sample", "deterministic")}
        kinds.update({name: (m["type"], m.get("is_observed")) for name, m in kept.items()})
        return {name: m["value"] for name, m in kept.items()}

    values = jax.eval_shape(sites)  # op by op this would take ten seconds a model
    theirs = {
        name: (value.shape, np.dtype(value.dtype).kind)
        for name, value in values.items()
        if kinds[name] == ("sample", False)
    }
    ours = {
        s.address: (s.shape, np.dtype(s.dtype).kind) for s in program.sites if s.kind == "latent"
    }
    assert ours == theirs
    recorded = {n: v.shape for n, v in values.items() if kinds[n][0] == "deterministic"}
    assert {s.address: s.shape for s in program.sites if s.kind == "deterministic"} == recorded


def test_density_and_gradients_are_numpyros(case: Case) -> None:
    program = program_of(case)
    continuous = [s.address for s in program.sites if s.kind == "latent" and not s.discrete]

    def ours(x: dict[str, Any], rest: dict[str, Any]) -> Any:
        return ppl.log_density(program, {**rest, **x})

    def theirs(x: dict[str, Any], rest: dict[str, Any]) -> Any:
        return reference(case, {**rest, **x})

    mine = jax.jit(jax.value_and_grad(ours))
    other = jax.jit(jax.value_and_grad(theirs))
    for choices in prior_draws(case, program):
        x = {a: choices[a] for a in continuous}
        rest = {a: v for a, v in choices.items() if a not in x}
        got, gradient = mine(x, rest)
        want, expected = other(x, rest)
        assert math.isfinite(float(want))
        np.testing.assert_allclose(got, want, rtol=1e-9)
        for address in continuous:
            scale = np.max(np.abs(expected[address]), initial=1e-300)
            np.testing.assert_allclose(
                gradient[address],
                expected[address],
                rtol=1e-8,
                atol=1e-9 * scale,
                err_msg=address,
            )


def test_a_drawn_minibatch_counts_its_own_probability() -> None:
    """The indices are a site of the program; NumPyro leaves their mass out of its density."""
    case = CASES["minibatch_drawn"]
    program = program_of(case)
    n, k = case.args[0].shape[0], case.args[2]
    log_mass = math.lgamma(n - k + 1) - math.lgamma(n + 1)
    for choices in prior_draws(case, program):
        want = reference(case, choices)
        np.testing.assert_allclose(ppl.log_density(program, choices), want + log_mass, rtol=1e-9)


def test_minibatches_are_unbiased_for_the_full_log_likelihood() -> None:
    """Averaged over all minibatches, the scaled log likelihood is that of all data."""
    x, y, _ = CASES["minibatch_drawn"].args
    x, y = x[:4], y[:4]
    size = 2
    program = ppl.from_numpyro(minibatch_drawn)(x, y, size)
    prior = float(dist.Normal(0, 1).log_prob(0.7))
    pairs = [[i, j] for i in range(4) for j in range(4) if i != j]
    values = [ppl.log_density(program, {"a": 0.7, "N": np.array(p)}) for p in pairs]
    full = float(jnp.sum(dist.Normal(0.7 * x, 1).log_prob(y)))
    np.testing.assert_allclose(np.mean(values) + math.log(len(pairs)) - prior, full, rtol=1e-9)


def test_a_scan_backwards_pairs_choices_with_data_by_position() -> None:
    """As `lax.scan` stacks them. NumPyro's `log_density` pairs them by order of execution, so that
    it gives another density to its own trace; this is written out instead."""
    case = CASES["scan_backwards"]
    program = program_of(case)
    (y,) = case.args
    for choices in prior_draws(case, program):
        a, x = choices["a"], choices["x"]
        later = jnp.append(x[1:], 0.0)
        want = dist.Normal(0.0, 1.0).log_prob(a) + jnp.sum(dist.Normal(a * later, 1.0).log_prob(x))
        want += jnp.sum(dist.Normal(x, 1.0).log_prob(y))
        np.testing.assert_allclose(ppl.log_density(program, choices), want, rtol=1e-12)
        turned = {"a": a, "x": x[::-1]}
        np.testing.assert_allclose(reference(case, turned), want, rtol=1e-12)


def test_data_that_shapes_the_model_may_be_closed_over() -> None:
    """What the Python code of a model reads as numbers is not an input of its program."""
    case = CASES["dawid_skene"]
    model = ppl.from_numpyro(lambda: case.model(*case.args))
    program = model()
    assert program.sites["beta"].shape == (3, 3, 3)
    for choices in prior_draws(case, program):
        want = reference(case, choices)
        np.testing.assert_allclose(ppl.log_density(program, choices), want, rtol=1e-9)


# --- More of the language around a NumPyro model --------------------------------------------------


def test_numpyro_models_are_models_like_any_other() -> None:
    case = CASES["eight_schools"]

    @ppl.model
    def around(sigma, y):
        shift = ppl.sample("shift", dist.Normal(0.0, 1.0))
        ppl.from_numpyro(case.model)(8, sigma, y=y + shift)
        return shift

    sigma, y = case.args[1], case.kwargs["y"]
    program = around(jnp.asarray(sigma), jnp.asarray(y))
    assert program.latents == ("shift", "mu", "tau", "theta")
    choices = {"mu": 1.0, "tau": 2.0, "theta": jnp.arange(8.0)}
    got = ppl.log_density(program, {"shift": 0.5, **choices})
    shifted = Case(case.model, case.args, {"y": y + 0.5})
    want = reference(shifted, choices) + dist.Normal(0.0, 1.0).log_prob(0.5)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_scope_prefixes_the_sites_of_a_numpyro_model() -> None:
    case = CASES["funnel"]

    @ppl.model
    def twice():
        with ppl.scope("a"):
            ppl.from_numpyro(case.model)()
        with ppl.scope("b"):
            ppl.from_numpyro(case.model)(3)

    program = twice()
    assert program.latents == ("a/y", "a/x", "b/y", "b/x")
    assert program.sites["b/x"].shape == (2,)


def test_new_data_of_the_same_shape_gives_new_densities() -> None:
    case = CASES["logistic_regression"]
    model = ppl.from_numpyro(case.model)
    data, labels = case.args
    coefs = {"coefs": jnp.array([0.3, -0.2, 0.1])}
    for flip in (labels, 1 - labels):
        want = reference(Case(case.model, (data, flip)), coefs)
        np.testing.assert_allclose(ppl.log_density(model(data, flip), coefs), want, rtol=1e-12)


def test_plates_name_the_axes() -> None:
    program = program_of(CASES["latent_dirichlet_allocation"])
    assert program.sites["z"].axes == ("documents", "words")
    assert program.sites["theta"].axes[0] == "documents"
    assert program.sites["topic_words"].axes[0] == "topic"


def test_return_value_is_the_models() -> None:
    case = CASES["gaussian_hmm_prior"]
    trace = ppl.trace(program_of(case), jax.random.key(3))
    x, y = trace.value
    np.testing.assert_array_equal(x, trace.choices["x"])
    np.testing.assert_array_equal(y, trace.choices["y"])


def test_importance_weights_of_a_scan_model_are_its_likelihood() -> None:
    case = CASES["gaussian_hmm"]
    program = program_of(case)
    trace = ppl.trace(program, jax.random.key(0))
    likelihood = dist.Normal(trace.choices["x"], 1).log_prob(case.args[0]).sum()
    np.testing.assert_allclose(trace.log_weight, likelihood, rtol=1e-12)


def test_a_handler_around_from_numpyros_argument_is_part_of_the_model() -> None:
    case = CASES["eight_schools"]
    fixed = handlers.condition(case.model, data={"mu": 4.0})
    program = ppl.from_numpyro(fixed)(*case.args, **case.kwargs)
    assert program.latents == ("tau", "theta")
    choices = {"tau": 2.0, "theta": jnp.arange(8.0)}
    want = reference(case, {"mu": 4.0, **choices})
    np.testing.assert_allclose(ppl.log_density(program, choices), want, rtol=1e-12)


def test_condition_around_a_whole_scan_model() -> None:
    case = CASES["gaussian_hmm_prior"]
    y = jnp.array([0.1, -0.4, 0.9, 1.5])
    program = ppl.from_numpyro(handlers.condition(case.model, data={"y": y}))(**case.kwargs)
    assert program.latents == ("scale", "x_0", "x")
    choices = {"scale": 0.8, "x_0": 0.2, "x": jnp.array([0.0, 0.3, 0.6, 1.0])}
    want = reference(case, {**choices, "y": y})
    np.testing.assert_allclose(ppl.log_density(program, choices), want, rtol=1e-12)


def test_mask_and_scale_around_a_scan_reach_its_sites() -> None:
    case = CASES["gaussian_hmm"]
    choices = {"scale": 0.8, "x_0": 0.2, "x": jnp.linspace(-1.0, 1.0, 10)}
    scaled = Case(handlers.scale(case.model, scale=0.25), case.args)
    want = 0.25 * reference(case, choices)
    np.testing.assert_allclose(reference(scaled, choices), want, rtol=1e-12)
    np.testing.assert_allclose(ppl.log_density(program_of(scaled), choices), want, rtol=1e-12)


def normal_pair():
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(x, 1.0), obs=1.0)


def test_substituted_values_are_taken() -> None:
    case = Case(handlers.substitute(normal_pair, data={"x": 3.0}))
    want = reference(case, {})
    np.testing.assert_allclose(ppl.log_density(program_of(case), {}), want, rtol=1e-12)


def test_uncondition_frees_the_observations() -> None:
    program = ppl.from_numpyro(handlers.uncondition(normal_pair))()
    assert program.latents == ("x", "y")


def test_lifted_parameters_are_latents() -> None:
    def scale_parameter():
        scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
        numpyro.sample("y", dist.Normal(0.0, scale), obs=2.0)

    case = Case(handlers.lift(scale_parameter, prior={"scale": dist.Gamma(2.0, 2.0)}))
    choices = {"scale": jnp.asarray(1.5)}
    want = reference(case, choices)
    np.testing.assert_allclose(ppl.log_density(program_of(case), choices), want, rtol=1e-12)


def test_get_mask_tells_of_no_mask() -> None:
    def model():
        if numpyro.primitives.get_mask() is not False:
            numpyro.factor("costly", -1.0)

    assert float(ppl.log_density(ppl.from_numpyro(model)(), {})) == -1.0


def test_lists_are_observations() -> None:
    def model(y):
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        numpyro.sample("y", dist.Poisson(rate), obs=y)

    choices = {"rate": jnp.asarray(1.2)}
    want = reference(Case(model, (np.array([1, 2]),)), choices)
    got = ppl.log_density(ppl.from_numpyro(model)([1, 2]), choices)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_a_plate_around_a_numpyro_model_is_not_lost() -> None:
    """Every site inside is expanded and scaled, or the combination is refused by name."""

    @ppl.model
    def around():
        with ppl.plate("n", 30, subsample_size=3):
            ppl.from_numpyro(normal_pair)()

    try:
        program = around()
    except ppl.PPLError as error:
        assert '"n"' in str(error) or '"x"' in str(error)  # noqa: PT017
        return
    assert program.sites["x"].shape == (3,)
    assert program.sites["x"].weighted


def test_a_bridged_model_inside_another_is_inlined_once() -> None:
    def composed():
        ppl.from_numpyro(normal_pair)()
        numpyro.sample("z", dist.Normal(0.0, 1.0))

    program = ppl.from_numpyro(composed)()
    assert program.sites.addresses() == ("x", "y", "z")


def test_numpyro_statements_in_a_model_work_or_say_what_to_write() -> None:
    @ppl.model
    def mixed():
        numpyro.sample("x", dist.Normal(0.0, 1.0))

    try:
        program = mixed()
    except ppl.PPLError as error:
        assert "from_numpyro" in str(error)  # noqa: PT017
        return
    assert program.latents == ("x",)


# --- Named errors ---------------------------------------------------------------------------------


def param_model(y):
    scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
    numpyro.sample("y", dist.Normal(0.0, scale), obs=y)


def module_model(x):
    net = eqx_module("net", eqx.nn.Linear(1, 1, key=jax.random.key(0)))
    numpyro.sample("y", dist.Normal(net(x[:1]), 1.0))


def mutable_model(x):
    numpyro.primitives.mutable("state", {"mean": 0.0})
    numpyro.sample("y", dist.Normal(x, 1.0))


def prng_key_model():
    noise = jax.random.normal(numpyro.prng_key())
    numpyro.sample("y", dist.Normal(noise, 1.0))


def masked_latent(x):
    with handlers.mask(mask=x > 0), numpyro.plate("n", x.shape[0]):
        numpyro.sample("z", dist.Normal(0.0, 1.0))


def imputation(y, seen):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(mu, 1.0).expand([3]), obs=y, obs_mask=seen)


def long_history(y):
    def transition(carry, y_t):
        before, last = carry
        x = numpyro.sample("x", dist.Normal(before + last, 1.0))
        return (last, x), None

    scan(transition, (0.0, 0.0), y, history=2)


X = np.array([-1.0, 0.5, 2.0])
ERRORS = {
    "param": (param_model, (X,), UnsupportedError, ("param", '"scale"', "argument")),
    "module": (module_model, (X,), UnsupportedError, ("param", '"net$params"', "argument")),
    "mutable": (mutable_model, (X,), UnsupportedError, ("mutable", '"state"')),
    "prng_key": (prng_key_model, (), UnsupportedError, ("prng_key", "Fix: ")),
    "masked latent": (masked_latent, (X,), ppl.PPLError, ("masked", '"z"', "log density 0")),
    "obs_mask": (
        imputation,
        (X, X > 0),
        ppl.PPLError,
        ("masked", '"y_unobserved"', "log density 0"),
    ),
    "history": (long_history, (X,), UnsupportedError, ("history=2", "needs history=1")),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_statement_without_meaning_is_a_named_error(name: str) -> None:
    model, args, kind, words = ERRORS[name]
    with pytest.raises(kind) as caught:
        ppl.from_numpyro(model)(*args)
    text = str(caught.value)
    for word in (*words, "; needs ", "Fix: "):
        assert word in text, text


def test_a_site_of_a_numpyro_model_is_named_by_its_line() -> None:
    program = program_of(CASES["drawn_shapes"])
    assert program.sites["u"].source.startswith("numpyro_models.py:")
    assert ppl.from_numpyro(drawn_shapes).__name__ == "drawn_shapes"


def test_an_observation_that_cannot_broadcast_is_refused() -> None:
    def model(y):
        with numpyro.plate("n", 3):
            numpyro.sample("y", dist.Normal(0.0, 1.0), obs=y)

    with pytest.raises(ObservationError) as caught:
        ppl.from_numpyro(model)(np.zeros(4))
    for word in ('"y"', "(4,)", "(3,)", "Fix: "):
        assert word in str(caught.value)


def test_the_same_address_twice_is_refused() -> None:
    def model():
        numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("a", dist.Normal(0.0, 1.0))

    with pytest.raises(ppl.PPLError, match='"a"'):
        ppl.from_numpyro(model)()


def test_what_is_not_a_function_is_refused() -> None:
    with pytest.raises(ppl.PPLError, match="int"):
        ppl.from_numpyro(3)  # type: ignore[arg-type]


def test_run_refuses_an_observing_numpyro_model() -> None:
    with pytest.raises(OpenObservationsError, match='"obs"'):
        ppl.run(program_of(CASES["eight_schools"]), 0)


def test_a_flat_prior_cannot_be_drawn() -> None:
    with pytest.raises(UnsupportedError, match='"flat"'):
        ppl.trace(program_of(CASES["drawn_shapes"]), 0)
