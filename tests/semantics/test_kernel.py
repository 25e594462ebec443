"""Kernels and traces with changed choices, exactly: what is invariant, what is refused."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ppl
import ppl.distributions as dist
from ppl.errors import AddressError, ArgumentError, ModelError, ObservationError, UnsupportedError
from ppl.program import inline
from ppl.semantics.kernel import choices_of, started
from ppl.staging import stage
from tests import zoo

B, sample = dist.Bernoulli, ppl.sample

pytestmark = pytest.mark.usefixtures("x64")


def metropolis(new, old):
    ratio = jnp.exp(jnp.minimum(0.0, new.log_density - old.log_density))
    accept = sample("accept", B(ratio))
    return ppl.choose(accept == 1, new, old)


@ppl.kernel
def flip(trace):
    return metropolis(trace.with_choices({"a": 1 - trace.choices["a"]}), trace)


@ppl.kernel
def careless(trace):
    """Accepts what it should not."""
    return trace.with_choices({"a": sample("new", B(0.5))})


def moved(kernel, program, times=1):
    """The measure on choices after starting from the program's own and moving."""

    def run(program):
        trace = started(program)
        with ppl.scope("move"):
            if times == 1:
                trace = kernel(trace)
            else:
                step = lambda t, _: (kernel(t), None)  # noqa: E731
                trace = lax.scan(step, trace, None, length=times)[0]
        return trace.choices

    return ppl.enumerate(stage(run, (program,), name="moved"))


def test_a_metropolis_kernel_keeps_the_measure_on_choices():
    program = zoo.two_coins()
    start = ppl.enumerate(choices_of(program))
    assert start.total_mass == pytest.approx(zoo.TWO_COINS_EVIDENCE, rel=1e-12)
    assert moved(flip, program).total_variation(start) < 1e-12
    assert moved(flip, program, times=3).total_variation(start) < 1e-12


def test_a_careless_kernel_does_not():
    """It leaves a uniform: half of the mass of a = 0, 0.28, is to go to 0.3775 / 2."""
    program = zoo.two_coins()
    found = moved(careless, program).marginal("a")
    assert found.mass(0) == pytest.approx(zoo.TWO_COINS_EVIDENCE / 2, rel=1e-12)
    assert found.total_variation(ppl.enumerate(choices_of(program)).marginal("a")) > 0.09


def test_a_kernel_inside_a_model_is_part_of_it():
    program = zoo.two_coins()

    @ppl.model
    def model():
        return flip(ppl.trace_of(program, {"a": jnp.array(1), "b": jnp.array(0)})).value

    # From (1, 0) of mass 0.03 to (0, 0) of mass 0.14: always accepted.
    assert ppl.enumerate(model()).mass((0, 0)) == pytest.approx(1.0, abs=1e-12)


def test_a_kernel_outside_of_a_model_is_a_program_of_a_trace():
    trace = ppl.trace_of(zoo.two_coins(), {"a": jnp.array(0), "b": jnp.array(0)})
    program = flip(trace)
    assert program.latents == ("accept",)
    measure = ppl.enumerate(program).marginal("value")
    assert measure.mass((1, 0)) == pytest.approx(0.03 / 0.14, rel=1e-12)
    assert "ppl.kernel" in repr(flip)


# --- Traces -------------------------------------------------------------------------------------


@ppl.model
def branching(p):
    b = sample("b", B(p))
    ppl.factor("w", 0.5 * b)

    def yes():
        return sample("z", dist.Categorical(probs=jnp.array([0.2, 0.3, 0.5])))

    value = lax.cond(b == 1, yes, lambda: 7)
    ppl.deterministic("twice", 2 * value)
    return value


def test_with_choices_recomputes_value_weight_density_and_records():
    trace = ppl.trace_of(branching(0.4), {"b": jnp.array(0), "z": jnp.array(2)})
    assert int(trace.value) == 7
    assert float(trace.log_density) == pytest.approx(math.log(0.6), rel=1e-12)
    assert not bool(trace.present["z"])
    new = trace.with_choices({"b": jnp.array(1)})  # "z" was not reached: its placeholder is zero
    assert int(new.value) == 0
    assert float(new.log_density) == pytest.approx(math.log(0.4 * 0.2) + 0.5, rel=1e-12)
    new = trace.with_choices({"b": jnp.array(1), "z": jnp.array(2)})
    assert int(new.value) == 2
    assert float(new.log_weight) == pytest.approx(0.5, rel=1e-12)
    assert float(new.log_density) == pytest.approx(math.log(0.4 * 0.5) + 0.5, rel=1e-12)
    assert int(new.deterministics["twice"]) == 4
    assert bool(new.present["z"])
    assert new.program is trace.program
    back = new.with_choices({"b": jnp.array(0), "z": jnp.array(1)})
    assert int(back.value) == 7
    assert float(back.log_density) == pytest.approx(math.log(0.6), rel=1e-12)
    choices, present = back.canonical
    assert int(choices["z"]) == 0
    assert not bool(present["z"])


def test_a_trace_does_not_keep_an_old_density():
    """The density belongs to the choices that were given, not to those of an earlier trace."""
    trace = ppl.trace_of(branching(0.4), {"b": jnp.array(1), "z": jnp.array(0)})
    dense = [float(trace.with_choices({"z": jnp.array(k)}).log_density) - 0.5 for k in range(3)]
    assert np.exp(dense) == pytest.approx([0.08, 0.12, 0.2], rel=1e-12)
    impossible = trace.with_choices({"z": jnp.array(3)})
    assert float(impossible.log_density) == -math.inf
    assert float(impossible.with_choices({"z": jnp.array(0)}).log_density) == pytest.approx(
        math.log(0.08) + 0.5, rel=1e-12
    )


def test_the_density_of_a_trace_of_a_run_is_that_of_its_choices():
    program = branching(0.4)
    trace = ppl.trace(program, 3)
    wanted = ppl.log_density(program, trace.choices)
    assert float(trace.log_density) == pytest.approx(float(wanted), rel=1e-12)


def test_scaled_latents_weigh_by_the_excess_and_count_whole_in_the_density():
    program = ppl.scale(branching(0.4), 2.0, ["b"])
    trace = ppl.trace_of(program, {"b": jnp.array(1), "z": jnp.array(0)})
    assert float(trace.log_weight) == pytest.approx(0.5 + math.log(0.4), rel=1e-12)
    wanted = 2 * math.log(0.4) + 0.5 + math.log(0.2)
    assert float(trace.log_density) == pytest.approx(wanted, rel=1e-12)


def test_bad_choices_are_refused():
    trace = ppl.trace_of(branching(0.4), {"b": jnp.array(1), "z": jnp.array(0)})
    with pytest.raises(AddressError, match='with_choices got unknown address "nowhere"'):
        trace.with_choices({"nowhere": jnp.array(1)})
    with pytest.raises(ObservationError, match=r"with_choices .*\(2,\)"):
        trace.with_choices({"b": jnp.zeros(2, int)})
    with pytest.raises(AddressError, match=r'trace_of .*"z"'):
        ppl.trace_of(branching(0.4), {"b": jnp.array(1)})


def test_traces_that_do_not_know_their_program_are_refused():
    trace = ppl.run(ppl.traced(branching(0.4)), 0)
    with pytest.raises(
        ArgumentError, match=r"with_choices got a trace that does not know.*trace_of"
    ):
        trace.with_choices({})
    with pytest.raises(ArgumentError, match=r"log_density got a trace that does not know"):
        _ = trace.log_density
    with pytest.raises(ArgumentError, match=r"the kernel flip got Trace that does not know"):
        flip(trace)
    with pytest.raises(ArgumentError, match=r"the kernel flip got dict; needs a trace"):
        flip({"a": 1})


def test_kernels_must_return_a_trace():
    trace = ppl.trace_of(zoo.two_coins(), {"a": jnp.array(0), "b": jnp.array(0)})

    @ppl.kernel
    def forgetful(trace):
        return trace.choices

    with pytest.raises(ModelError, match=r"the kernel forgetful returned dict; needs a Trace"):
        forgetful(trace)


def test_programs_with_latent_while_loops_have_no_traces():
    def model():
        return lax.while_loop(lambda c: sample("go", B(0.5)) == 1, lambda c: c + 1, 0)

    with pytest.raises(UnsupportedError, match=r'"go".*while_loop'):
        choices_of(ppl.model(model)())


def test_choices_of_names_every_latent_and_keeps_scores():
    measure = ppl.enumerate(choices_of(branching(0.4)))
    assert measure.total_mass == pytest.approx(0.6 + 0.4 * math.exp(0.5), rel=1e-12)
    assert measure.mass({"b": 1, "z": 2}) == pytest.approx(0.4 * math.exp(0.5) * 0.5, rel=1e-12)
    assert measure.mass({"b": 0, "z": 0}) == pytest.approx(0.6, rel=1e-12)
    program = stage(lambda p: inline(choices_of(p)), (branching(0.4),), name="again")
    assert ppl.enumerate(program).total_variation(measure) < 1e-12


# --- Choosing -----------------------------------------------------------------------------------


def test_choose_takes_one_of_two_whole_values():
    one, other = {"a": jnp.zeros(2), "b": 1}, {"a": jnp.ones(2), "b": 2}
    assert int(ppl.choose(True, one, other)["b"]) == 1
    assert ppl.choose(jnp.array(False), one, other)["a"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("flag", "other"),
    [
        (True, {"b": jnp.zeros(2)}),
        (True, {"a": jnp.zeros(())}),
        (jnp.array([True, False]), {"a": jnp.ones(2)}),
    ],
)
def test_choose_refuses_what_would_mix_or_broadcast(flag, other):
    with pytest.raises(ArgumentError, match=r"choose got a flag of shape .*of one structure and"):
        ppl.choose(flag, {"a": jnp.zeros(2)}, other)


def test_traces_can_be_rebuilt_and_mapped_like_other_trees():
    trace = ppl.trace_of(zoo.two_coins(), {"a": jnp.array(0), "b": jnp.array(1)})
    again = jax.tree.map(lambda x: x, trace)
    assert float(again.log_density) == float(trace.log_density)
    fresh = dataclasses.replace(trace, _log_density=None)
    assert float(fresh.log_density) == pytest.approx(math.log(0.14), rel=1e-10)
