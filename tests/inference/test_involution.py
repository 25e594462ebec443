"""`involution`: discrete maps exactly; changes of dimension against closed forms; refusals."""

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import stats

import ppl
import ppl.distributions as dist
from ppl.errors import (
    AddressError,
    ArgumentError,
    ModelError,
    ObservationError,
    OpenObservationsError,
    UnsupportedError,
)
from ppl.inference.involution import Involution, involution
from ppl.inference.trace_kernel import accepted
from ppl.semantics.weighted import traced
from tests.inference.stationary import agrees, lane, move, stays_dead, stays_gaussian
from tests.inference.test_kernels import branching, exactly

B, sample = dist.Bernoulli, ppl.sample


def nothing(trace):
    """No auxiliary variables."""


def the_program(trace):
    """All of it, drawn anew."""
    traced(trace.program)()


def swap(x, u):
    return u, x


# --- Discrete maps, exactly ---------------------------------------------------------------------


def flag_and_leaf(trace):
    sample("flag", B(jnp.where(trace.choices["flag"] == 1, 0.3, 0.6)))
    sample("leaf", dist.Categorical(probs=jnp.array([0.3, 0.3, 0.4])))


def into_the_branch(x, u):
    """The leaf goes where the new flag says; in the branch of two values, two is impossible."""
    leaf = jnp.where(x["flag"] == 1, x["a"], x["b"])
    return {"flag": u["flag"], "a": u["leaf"], "b": u["leaf"]}, {"flag": x["flag"], "leaf": leaf}


def flip(x, u):
    return {"flag": 1 - x["flag"]}, {}


def shift(x, u):
    """No involution: it leads back after three moves."""
    return {"a": (x["a"] + 1) % 3}, {}


@pytest.mark.parametrize(
    ("auxiliary", "transform"),
    [
        (flag_and_leaf, into_the_branch),
        (the_program, swap),
        (nothing, flip),
        (nothing, shift),
        (nothing, lambda x, u: ({}, {})),
    ],
)
def test_the_measure_is_kept(x64, auxiliary, transform):
    kernel = involution(auxiliary, transform)
    exactly(ppl.check.invariant, kernel, branching()).require()


def reading(trace):
    """What the transform leaves in the branch not taken is not to be seen here."""
    leaves = trace.choices["a"] + 2 * trace.choices["b"]
    sample("flag", B(jnp.array([0.2, 0.4, 0.6, 0.8, 0.9])[leaves]))
    sample("leaf", dist.Categorical(probs=jnp.array([0.3, 0.3, 0.4])).expand([1]))


def test_what_does_not_exist_tells_nothing(x64):
    exactly(ppl.check.invariant, involution(reading, into_the_branch), lane()).require()


def test_involutions_are_reversible(x64):
    exactly(ppl.check.reversible, involution(flag_and_leaf, into_the_branch), branching()).require()


def test_random_programs(x64):
    """Independent Metropolis-Hastings, of sites that come and go on both sides."""
    kernel, seen = involution(ppl.model(the_program), swap), []

    @hypothesis.settings(max_examples=6, database=None)
    @hypothesis.given(ppl.check.programs(size=5, max_worlds=8, latents=(2, 4)))
    def run(program):
        exactly(ppl.check.invariant, kernel, program).require()
        seen.append(program)

    run()
    assert len(seen) == 6


def mutant(auxiliary, transform, log_ratio):
    kernel = involution(auxiliary, transform)

    @ppl.kernel
    def moved(trace):
        found = kernel._attempt(trace)
        return ppl.choose(accepted(log_ratio(found, trace)), found.trace, trace)

    return moved


@pytest.mark.parametrize(
    ("auxiliary", "transform", "log_ratio"),
    [
        # The densities of the auxiliary variables are left out.
        (
            flag_and_leaf,
            into_the_branch,
            lambda found, trace: found.trace.log_density - trace.log_density,
        ),
        # That the transform leads back is not looked at.
        (nothing, shift, lambda found, trace: found.log_ratio),
    ],
)
def test_wrong_ratios_are_rejected(x64, auxiliary, transform, log_ratio):
    kernel = mutant(auxiliary, transform, log_ratio)
    assert exactly(ppl.check.invariant, kernel, branching()).verdict == "failed"


# --- Continuous maps ----------------------------------------------------------------------------
#
# One rate r ~ Gamma(2, 1), or two of Exponential(1) whose sum is the rate: the sum of the two is
# Gamma(2, 1), independent of the share of the first, which is uniform. So the datum, exponential
# with that rate, says nothing of the number of components: P(two | y) = P(two), the sum is
# Gamma(3, 1 + y) and the share uniform.

TWO, DATUM = 0.3, 2.0


@ppl.model
def components(y):
    two = sample("two", B(TWO))

    def pair():
        return sample("r1", dist.Exponential(1.0)) + sample("r2", dist.Exponential(1.0))

    rate = lax.cond(two == 1, pair, lambda: sample("r", dist.Gamma(2.0, 1.0)))
    sample("y", dist.Exponential(rate), obs=y)


#: On (0, 1), of a density that is no constant.
LOPSIDED = dist.TruncatedNormal(0.2, 0.5, low=0.0, high=1.0)


def share(trace):
    """Split by a share, if there is one component."""
    lax.cond(trace.choices["two"] == 0, lambda: sample("share", LOPSIDED), lambda: 0.0)


def split_or_merge(x, u):
    total = jnp.where(x["two"] == 0, x["r"], x["r1"] + x["r2"])
    part = jnp.where(x["two"] == 0, u["share"], x["r1"] / jnp.where(x["two"] == 0, 1.0, total))
    choices = {"two": 1 - x["two"], "r": total, "r1": total * part, "r2": total * (1 - part)}
    return choices, {"share": part}


def stays_as_it_is(kernel, num=4000):
    """Whether number, sum and share keep their laws; and how many states changed."""
    rng = np.random.default_rng(0)
    two, total = rng.random(num) < TWO, rng.gamma(3, 1 / (1 + DATUM), num)
    part = rng.random(num)
    start = {
        "two": two.astype(int),
        "r": np.where(two, 0.0, total),
        "r1": np.where(two, total * part, 0.0),
        "r2": np.where(two, total * (1 - part), 0.0),
    }
    end = move(kernel, components(DATUM), start, num_moves=3)
    assert not any(np.isnan(x).any() for x in end.values())
    now = end["two"] == 1
    rate = end["r"] + end["r1"] + end["r2"]
    kept = agrees(rate, stats.gamma(3, scale=1 / (1 + DATUM)))
    kept &= agrees(end["r1"][now] / rate[now], stats.uniform)
    kept &= stats.binomtest(int(now.sum()), num, TWO).pvalue > 1e-6
    return kept, np.mean(now != two)


def test_components_are_split_and_merged():
    kernel = involution(share, split_or_merge)
    kept, changed = stays_as_it_is(kernel)
    assert kept
    assert changed > 0.2


def test_the_jacobian_is_needed():
    """It is the rate, which is no constant."""
    kernel = mutant(share, split_or_merge, lambda found, trace: found.log_ratio - found.log_det)
    assert not stays_as_it_is(kernel)[0]


@pytest.mark.slow
def test_the_jacobian_is_that_of_the_coordinates_that_exist(x64):
    kernel, program = involution(share, split_or_merge), components(DATUM)

    @ppl.model
    def ratio(kernel, trace):
        found = kernel._attempt(trace)
        densities = found.trace.log_density - trace.log_density
        return found.log_ratio - densities, found.after[1]["share"], found.before[1]["share"]

    for two, sign in ((0, 1), (1, -1)):
        trace = ppl.trace_of(program, {"two": two, "r": 2.5, "r1": 0.5, "r2": 2.0})
        rest, after, before = ppl.run(ratio(kernel, trace), 3)
        law = stats.truncnorm(-0.4, 1.6, loc=0.2, scale=0.5)
        proposed = law.logpdf(float(after if two else before))
        assert float(rest) == pytest.approx(sign * (np.log(2.5) - proposed), rel=1e-10)


def scaled(trace):
    sample("s", dist.LogNormal(0.0, 0.3))
    sample("v", dist.Normal(0.0, 1.0).expand([3]).to_event(1))


def rescale(x, u):
    """Scale by a factor, and shear by the other variables; `v` goes back with the other sign."""
    return (
        {"a": x["a"] + u["v"][0], "x": x["x"] * u["s"]},
        {"s": 1 / u["s"], "v": u["v"] * jnp.array([-1.0, 1.0, 1.0])},
    )


@pytest.mark.slow
def test_vectors_and_scalars_together():
    kept, changed = stays_gaussian(involution(scaled, rescale))
    assert kept
    assert changed > 0.5


def test_sites_that_are_not_moved_need_no_full_dimension():
    """A simplex may stay, and may be permuted in no way that a determinant can see."""

    @ppl.model
    def shares():
        sample("w", dist.Dirichlet(jnp.ones(3)))
        sample("x", dist.Normal(0.0, 1.0))

    trace = ppl.trace(shares(), 0)
    moved = ppl.run(involution(nothing, lambda x, u: ({"x": -x["x"]}, {}))(trace), 0)
    assert float(moved.choices["x"]) == -float(trace.choices["x"])
    with pytest.raises(UnsupportedError, match=r'transform of "w" \(.*simplex; needs .*dimensions'):
        involution(nothing, lambda x, u: ({"w": x["w"][::-1]}, {}))(trace)


# --- Refusals -----------------------------------------------------------------------------------


@ppl.model
def one_or_two():
    """One normal number, or two."""

    def two():
        return sample("m1", dist.Normal(0.0, 1.0)) + sample("m2", dist.Normal(0.0, 1.0))

    lax.cond(sample("k", B(0.5)) == 0, lambda: sample("m", dist.Normal(0.0, 1.0)), two)


def lost(x, u):
    """A component comes and goes, and nothing says where from."""
    return {"k": 1 - x["k"], "m": 1.0, "m1": 0.5, "m2": 0.5}, {}


@pytest.mark.parametrize(
    ("model", "transform", "words"),
    [
        (branching, shift, r"maps \(a = 0, .*\) to \(a = 1, .*, and that to .*; needs .* inverse"),
        (one_or_two, lost, r"\(k = 0, .*\) to \(k = 1, m = 0., m1 = 0.5.*Of 100 states drawn, 100"),
    ],
)
def test_transforms_that_do_not_lead_back_are_named(model, transform, words):
    with pytest.raises(ModelError, match=words):
        involution(nothing, transform).verify(model())


def test_coordinates_are_counted():
    """With y or without: it is put at zero, which a coordinate is not by chance."""

    @ppl.model
    def none_or_one():
        b = sample("b", B(1.0))
        lax.cond(b == 1, lambda: 0.0, lambda: sample("y", dist.Normal(0.0, 1.0)))

    kernel = involution(nothing, lambda x, u: ({"b": 1 - x["b"], "y": 0.0}, {}))
    start = ppl.trace_of(none_or_one(), {"b": 1, "y": 0.0})
    assert int(ppl.run(kernel(start), 0).choices["b"]) == 1

    @ppl.model
    def attempt(trace):
        found = kernel._attempt(trace)
        return found.returns, found.matched

    assert [bool(x) for x in ppl.run(attempt(start), 0)] == [True, False]


def scoring(trace):
    ppl.factor("f", 0.0)


@pytest.mark.parametrize(
    ("auxiliary", "transform", "kind", "words"),
    [
        (nothing, lambda x, u: {"flag": 1}, ArgumentError, r"returned dict; needs a pair of mapp"),
        (
            nothing,
            lambda x, u: ({"flags": 1}, {}),
            AddressError,
            r'involution .*unknown .* "flags"',
        ),
        (nothing, lambda x, u: ({}, {"v": 1}), AddressError, 'unknown address "v"'),
        (nothing, lambda x, u: ({"flag": 0.5}, {}), ObservationError, "of dtype float"),
        (
            nothing,
            lambda x, u: ({"flag": jnp.zeros(2, int)}, {}),
            ObservationError,
            r"shape \(2,\)",
        ),
        (
            scoring,
            lambda x, u: ({}, {}),
            OpenObservationsError,
            'model of auxiliary .* scores at "f"',
        ),
    ],
)
def test_bad_functions_are_refused(auxiliary, transform, kind, words):
    trace = ppl.trace_of(branching(), {"flag": 1, "a": 1, "b": 0})
    with pytest.raises(kind, match=words):
        involution(auxiliary, transform)(trace)


def test_bad_settings_are_refused():
    with pytest.raises(ArgumentError, match="involution got auxiliary=None; needs a function"):
        involution(None, swap)
    with pytest.raises(ArgumentError, match="involution got transform=3"):
        involution(nothing, 3)
    with pytest.raises(ArgumentError, match="unknown keyword transfrom"):
        involution(nothing, transfrom=swap)
    with pytest.raises(ArgumentError, match="verify got num_draws=0"):
        involution(nothing, flip).verify(branching(), num_draws=0)
    assert isinstance(involution(nothing, swap), Involution)


def test_impossible_states_give_no_nan():
    assert stays_dead(involution(nothing, lambda x, u: ({"x": 1 - x["x"]}, {})))


def test_the_model_of_the_docstring():
    """As written there."""

    def auxiliary(trace):
        lax.cond(trace.choices["k"] == 0, lambda: sample("u", dist.Normal(0.0, 1.0)), lambda: 0.0)

    def transform(x, u):
        m = (x["m1"] + x["m2"]) / 2
        choices = {"k": 1 - x["k"], "m": m, "m1": x["m"] - u["u"], "m2": x["m"] + u["u"]}
        return choices, {"u": (x["m2"] - x["m1"]) / 2}

    involution(auxiliary, transform).verify(one_or_two())
