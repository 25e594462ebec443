"""`mh`: any proposal that is a program keeps the measure, checked exactly; and what is refused."""

import hypothesis
import jax
import jax.numpy as jnp
import pytest
from jax import lax

import ppl
import ppl.distributions as dist
from ppl.errors import AddressError, ArgumentError, OpenObservationsError, UnsupportedError
from ppl.inference import mh as module
from ppl.inference.mh import MH, mh, propose
from ppl.inference.trace_kernel import Time, accepted
from ppl.semantics.weighted import traced
from ppl.staging import stage
from tests.inference.stationary import lane, stays_dead, stays_gaussian
from tests.inference.test_kernels import branching, chain, exactly, plates
from tests.inference.test_unconstrained_kernels import gate, ten_times
from tests.laws import digest

B, sample = dist.Bernoulli, ppl.sample


# --- Proposals ----------------------------------------------------------------------------------


def leaf_a():
    return sample("a", dist.Categorical(probs=jnp.array([0.3, 0.3, 0.4])))


def flag_only(trace):
    """What a flag brings into being is drawn from the program."""
    sample("flag", B(jnp.where(trace.choices["flag"] == 1, 0.3, 0.6)))


def everything(trace):
    """One of the leaves does not exist in the new run, and one not in the old run."""
    a = leaf_a()
    sample("flag", B(0.3 + 0.2 * (a > 0)))
    sample("b", B(0.25 + 0.5 * (trace.value > 0)))


def in_branches(trace):
    """The proposal branches on what it draws."""
    flag = sample("flag", B(0.6))
    lax.cond(flag == 1, leaf_a, lambda: sample("b", B(0.25)))


def sometimes(trace):
    """What is drawn depends on the trace: some moves have no way back."""
    lax.cond(trace.value > 0, lambda: sample("flag", B(0.6)), lambda: sample("b", B(0.3)))


def in_a_scan(trace):
    def step(last, x):
        sample("x", B(jnp.where(x == 1, 0.3, 0.8)))
        lax.cond(x == 1, lambda: sample("e", B(jnp.where(last == 1, 0.2, 0.5))), lambda: 0)
        return x, None

    lax.scan(step, 0, trace.choices["x"])


def in_a_plate(trace):
    with ppl.plate("n", 2):
        sample("x", B(jnp.where(trace.choices["x"] == 1, 0.3, 0.6)))


CASES = [
    (branching, flag_only),
    (branching, everything),
    (branching, in_branches),
    (branching, sometimes),
    (chain, in_a_scan),
    (plates, in_a_plate),
]


@pytest.mark.parametrize(("model", "proposal"), CASES)
def test_the_measure_is_kept(x64, model, proposal):
    exactly(ppl.check.invariant, mh(proposal), model()).require()
    if proposal is everything:
        exactly(ppl.check.reversible, mh(proposal), model()).require()


def test_models_are_proposals_too(x64):
    kernel = mh(ppl.model(flag_only), addresses="flag")
    exactly(ppl.check.invariant, kernel, branching()).require()


def test_what_does_not_exist_tells_nothing(x64):
    """A proposal that reads the leaves, where a kernel before left something in the absent one."""

    def reading(trace):
        leaves = trace.choices["a"] + 2 * trace.choices["b"]
        sample("flag", B(jnp.array([0.2, 0.4, 0.6, 0.8, 0.9])[leaves]))

    @ppl.kernel
    def two(trace):
        junk = sample("junk", B(jnp.where(trace.value > 0, 0.9, 0.1)))
        choices = {a: jnp.where(trace.present[a], trace.choices[a], junk) for a in ("a", "b")}
        return mh(reading)(trace.with_choices(choices))

    exactly(ppl.check.invariant, two, lane()).require()


def the_program(trace):
    """All anew, from the program without its scores."""
    traced(trace.program)()


def half_of_it(trace):
    """Every other site, given the rest."""
    program = trace.program
    traced(ppl.do(program, {a: trace.choices[a] for a in program.latents[1::2]}))()


def one_half_or_the_other(trace):
    """Which half depends on the state."""
    program = trace.program

    def half(n):
        held = {a: trace.choices[a] for a in program.latents[n::2]}
        return lambda: traced(ppl.do(program, held))().log_weight

    lax.cond(digest(trace.value) == 0, half(0), half(1))


@pytest.mark.parametrize("proposal", [the_program, one_half_or_the_other])
def test_random_programs(x64, proposal):
    keeps_random_programs(proposal, 6)


@pytest.mark.slow
@pytest.mark.parametrize("proposal", [the_program, half_of_it, one_half_or_the_other])
def test_more_random_programs(x64, proposal):
    keeps_random_programs(proposal, 25)


def keeps_random_programs(proposal, count):
    kernel, seen = mh(proposal), []

    @hypothesis.settings(max_examples=count, database=None)
    @hypothesis.given(ppl.check.programs(size=5, max_worlds=8, latents=(2, 4)))
    def run(program):
        exactly(ppl.check.invariant, kernel, program).require()
        seen.append(program)

    run()
    assert len(seen) == count


# --- Mutants ------------------------------------------------------------------------------------


def mutant(proposal, log_ratio):
    kernel = mh(proposal)

    @ppl.kernel
    def move(trace):
        found = propose(trace, kernel)
        return ppl.choose(accepted(log_ratio(found, trace)), found.trace, trace)

    return move


def without_q(found, trace):
    return jnp.where(found.returns, found.trace.log_density - trace.log_density, -jnp.inf)


def without_return(found, trace):
    return found.log_q - found.log_p


def upside_down(found, trace):
    ratio = found.trace.log_density - trace.log_density
    return jnp.where(found.returns, 2 * ratio - (found.log_q - found.log_p), -jnp.inf)


@pytest.mark.parametrize(
    ("model", "proposal", "log_ratio"),
    [
        (branching, flag_only, without_q),
        (branching, everything, without_q),
        (plates, in_a_plate, without_q),
        (branching, in_branches, upside_down),
        (branching, sometimes, without_return),
    ],
)
def test_wrong_ratios_are_rejected(x64, model, proposal, log_ratio):
    assert exactly(ppl.check.invariant, mutant(proposal, log_ratio), model()).verdict == "failed"


def test_what_does_not_exist_must_not_count(x64, monkeypatch):
    """Proposed leaves that the new run does not have, and completed ones."""

    def all_that_is_drawn(proposal, proposed, one, two):
        return proposal.total(proposal.exists)

    monkeypatch.setattr(module, "_drawn", all_that_is_drawn)
    for proposal in (everything, flag_only):
        kernel = mutant(proposal, lambda found, trace: found.log_q - found.log_p)
        assert exactly(ppl.check.invariant, kernel, branching()).verdict == "failed"


# --- Continuous sites, statistics ---------------------------------------------------------------


def drift(trace):
    """Steps that depend on the place, in proposals across sites."""
    a = sample("a", dist.Normal(trace.choices["a"], 0.3 + 0.5 * (trace.choices["a"] > 2)))
    with ppl.plate("n", 2):
        sample("x", dist.Normal(a, 0.5))


def test_continuous_proposals():
    kept, changed = stays_gaussian(mh(drift))
    assert kept
    assert changed > 0.8


@pytest.mark.slow
def test_sites_that_do_not_exist_are_proposed():
    """Here u is proposed around zero where there is none, and comes into being where x does."""

    def both(trace):
        sample("x", dist.Normal(trace.choices["x"], 1.0))
        sample("u", dist.Normal(trace.choices["u"], 0.5 + 0.3 * (trace.choices["x"] > 0)))

    assert ppl.check.invariant(ten_times(mh(both)), gate(), key=3).passed


def test_a_chain_is_told_the_probability_of_acceptance(x64):
    trace = ppl.trace_of(branching(), {"flag": 0, "a": 0, "b": 0})
    kernel: MH = mh(flag_only)
    step = ppl.enumerate(
        stage(lambda k, t: k.step(t, (), Time(0, 0)).stats, (kernel, trace), name="step")
    )
    accepts = ppl.enumerate(stage(lambda k, t: k(t).choices["flag"] * 1.0, (kernel, trace)))
    # The flag is proposed to change with probability 0.6, and stays if it is not accepted.
    rate = step.expect(lambda stats: stats["acceptance_rate"])
    assert accepts.expect(lambda x: x) == pytest.approx(rate - 0.4, rel=1e-10)


def test_impossible_states_give_no_nan():
    assert stays_dead(mh(lambda t: sample("x", dist.Normal(t.choices["x"], 1.0))))


# --- Refusals -----------------------------------------------------------------------------------


def scoring(trace):
    sample("flag", B(0.5))
    ppl.factor("f", 0.5)


@ppl.model
def joint_branch():
    def one(flag):
        return lax.cond(flag == 1, lambda: sample("x", dist.Normal(0.0, 1.0)), lambda: 0.0)

    return jax.vmap(one)(sample("flags", B(0.5).expand([2])))


def jointly(trace):
    sample("x", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))


@ppl.model
def flat_branch():
    flag = sample("flag", B(0.5))
    flat = dist.ImproperUniform(dist.constraints.real, (), ())
    lax.cond(flag == 1, lambda: sample("x", flat), lambda: 0.0)
    ppl.factor("f", -0.5)


def only_the_flag(trace):
    sample("flag", B(0.5))


@pytest.mark.parametrize(
    ("model", "proposal", "kind", "words"),
    [
        (branching, lambda t: None, AddressError, r"draws nothing; needs draws .* flag, b, a"),
        (branching, lambda t: sample("flags", B(0.5)), AddressError, r'unknown .* "flags".*"flag"'),
        (branching, lambda t: sample("y", B(0.5)), AddressError, 'unknown address "y"'),
        (branching, scoring, OpenObservationsError, r'scores at "f" \(test_mh.py:\d+\)'),
        (
            branching,
            lambda t: sample("a", dist.Normal(0.0, 1.0)),
            AddressError,
            r'of continuous values of shape \(\) at "a" \(test_mh.*needs discrete values',
        ),
        (
            plates,
            lambda t: sample("x", B(0.5)),
            AddressError,
            r'values of shape \(\) at "x".*needs discrete values of shape \(2,\)',
        ),
        (joint_branch, jointly, UnsupportedError, r'at "x" .* lie across'),
        (flat_branch, only_the_flag, UnsupportedError, r'flat prior at "x".*always draws it'),
    ],
)
def test_bad_proposals_are_refused(model, proposal, kind, words):
    program = model()
    choices = {s.address: jnp.zeros(s.shape, s.dtype) for s in program.sites if s.kind == "latent"}
    with pytest.raises(kind, match=words):
        mh(proposal)(ppl.trace_of(program, choices))


def test_bad_settings_are_refused():
    with pytest.raises(ArgumentError, match=r"mh got the proposal 0\.5; needs a model function"):
        mh(0.5)
    with pytest.raises(ArgumentError, match="unknown keyword address="):
        mh(flag_only, address="flag")
    trace = ppl.trace_of(branching(), {"flag": 1, "a": 1, "b": 0})
    with pytest.raises(AddressError, match=r"proposal that draws a, b; needs .* among flag"):
        mh(everything, addresses=["flag"])(trace)
    with pytest.raises(AddressError, match='unknown address "flags"'):
        mh(flag_only, addresses=["flags"])(trace)


def test_an_improper_site_may_always_be_proposed():
    def both(trace):
        sample("flag", B(0.5))
        sample("x", dist.Normal(0.0, 1.0))

    trace = ppl.trace_of(flat_branch(), {"flag": 0, "x": 0.0})
    ends = [float(ppl.run(mh(both)(trace), k).choices["x"]) for k in range(20)]
    assert any(ends)


def test_equal_kernels_share_their_structure():
    trace = ppl.trace_of(branching(), {"flag": 1, "a": 1, "b": 0})
    assert mh(flag_only)(trace).structure is mh(flag_only)(trace).structure
