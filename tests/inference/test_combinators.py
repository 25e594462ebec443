"""Kernels made of kernels: exact, with statistics and memories that are the parts' own."""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ppl
import ppl.distributions as dist
from ppl._types import pytree
from ppl.errors import AddressError, ArgumentError, UnsupportedError
from ppl.inference.blockwise import on
from ppl.inference.combinators import cycle, mixture, repeat
from ppl.inference.gibbs import gibbs
from ppl.inference.trace_kernel import Step, Time, TraceKernel
from ppl.staging import stage
from tests.mutants.single_site import moved, states

B, sample = dist.Bernoulli, ppl.sample
single_site = ppl.kernels.single_site


def exactly(check, kernel, program):
    report = check(kernel, program)
    assert report.false_alarm == 0, report
    return report


def flipping(address):
    """A user's kernel: flip a site, and accept or not. No other site may come or go with it."""

    @ppl.kernel
    def flip(trace):
        new = trace.with_choices({address: 1 - trace.choices[address]})
        ratio = jnp.exp(jnp.minimum(0.0, new.log_density - trace.log_density))
        return ppl.choose(sample("accept", B(ratio)) == 1, new, trace)

    return flip


flip, flip_flag = flipping("z"), flipping("a")


@ppl.model
def branching():
    """Both a flag and a site in its branch are read later."""
    a = sample("a", B(0.3))
    c = lax.cond(a == 1, lambda: sample("c", B(0.6)), lambda: 0)
    with ppl.plate("n", 2):
        z = sample("z", B(0.2 + 0.5 * c))
    sample("y", B(0.3 + 0.3 * z[0]), obs=1)
    return z


COMBINED = {
    "cycle": cycle(single_site("a"), gibbs(), flip),
    "mixture": mixture(single_site("z"), gibbs(), flip, weights=[0.2, 0.5, 0.3]),
    "repeat": repeat(single_site(), 2),
    "on a branch": on("c", single_site()),
    "on a flag": on(["a"], flip_flag),
    "on both": on(["a", "c"], single_site()),
    "on a plate": on("z", gibbs()),
    "nested": mixture(cycle(on("c", gibbs()), flip), repeat(on("a", flip_flag), 2)),
}


@pytest.mark.parametrize("name", COMBINED)
def test_combinators_keep_the_measure(x64, name):
    kernel = COMBINED[name]
    assert exactly(ppl.check.invariant, kernel, branching()).passed


@pytest.mark.parametrize("name", ["mixture", "repeat", "on a flag", "on both"])
def test_of_reversible_kernels_they_are_reversible(x64, name):
    kernel = COMBINED[name]
    if name == "mixture":  # all of whose parts have one member each
        kernel = mixture(single_site("z"), gibbs(addresses="z"), flip, weights=[0.2, 0.5, 0.3])
    assert exactly(ppl.check.reversible, kernel, branching()).passed


def test_a_cycle_is_not_reversible(x64):
    kernel = cycle(gibbs(addresses="c"), gibbs(addresses="z"))
    assert exactly(ppl.check.reversible, kernel, branching()).verdict == "failed"


@pytest.mark.slow
def test_combinators_on_random_programs(x64):
    @hypothesis.settings(max_examples=15, database=None)
    @hypothesis.given(ppl.check.programs(size=5, max_worlds=6, latents=(2, 4)))
    def run(program):
        half = program.latents[::2]
        parts = on(half, single_site()), on(program.latents[-1], single_site())
        for kernel in (cycle(*parts), mixture(*parts, weights=[1, 3]), repeat(parts[0], 2)):
            exactly(ppl.check.invariant, kernel, program).require()

    run()


# --- What each of them does ---------------------------------------------------------------------


def weighed(kernels, weights):
    """What a mixture should do: the moves of its parts, weighed."""

    def apply(program, state):
        of = [ppl.enumerate(moved(k, program, state)) for k in kernels]
        points = [x for m in of for x in m.points]
        masses = [w * x for w, m in zip(weights, of, strict=True) for x in m.masses]
        return ppl.FiniteMeasure.of(points, masses)

    return apply


def test_a_mixture_draws_its_parts_by_their_weights(x64):
    """With the weights ignored it would keep the measure all the same."""
    program, parts = branching(), (flip, on("a", flip_flag))
    state = ppl.enumerate(states(program)).points[-1]
    after = ppl.enumerate(moved(mixture(*parts, weights=[1.0, 3.0]), program, state))
    assert after.total_variation(weighed(parts, [0.25, 0.75])(program, state)) < 1e-10
    assert after.total_variation(weighed(parts, [0.5, 0.5])(program, state)) > 0.01


def test_a_cycle_and_a_repetition_move_as_often_as_they_say(x64):
    program = branching()
    state = ppl.enumerate(states(program)).points[0]

    def twice(program, choices):
        trace = ppl.trace_of(program, choices)
        for name in ("one", "two"):
            with ppl.scope(name):
                trace = single_site()(trace)
        return trace.canonical

    choices = {a: jnp.asarray(x) for a, x in state[0].items()}
    wanted = ppl.enumerate(stage(twice, (program, choices), name="twice"))
    for kernel in (cycle(single_site(), single_site()), repeat(single_site(), 2)):
        assert ppl.enumerate(moved(kernel, program, state)).total_variation(wanted) < 1e-10


@ppl.kernel
def letting_sites_vanish(trace):
    """`on("a", flip_flag)` without a thought of the held "c", which comes and goes with "a"."""
    rest = {a: x for a, x in trace.choices.items() if a != "a"}
    inner = ppl.trace_of(ppl.condition(trace.program, rest), {"a": trace.choices["a"]})
    return trace.with_choices(flip_flag(inner).choices)


@ppl.kernel
def rejecting_afterwards(trace):
    """Two moves in the conditioned program, and the old trace where "c" came or went."""
    rest = {a: x for a, x in trace.choices.items() if a not in ("a", "z")}
    own = {a: trace.choices[a] for a in ("a", "z")}
    inner = ppl.trace_of(ppl.condition(trace.program, rest), own)
    new = trace.with_choices(cycle(gibbs(addresses="a"), gibbs(addresses="z"))(inner).choices)
    return ppl.choose(new.present["c"] == trace.present["c"], new, trace)


@ppl.model
def coming_and_going():
    a = sample("a", B(0.3))
    lax.cond(a == 1, lambda: sample("c", B(0.6)), lambda: 0)
    z = sample("z", B(0.2 + 0.5 * a))
    ppl.factor("f", 0.7 * z)


@pytest.mark.parametrize("mutant", [letting_sites_vanish, rejecting_afterwards])
def test_mutants_that_let_held_sites_vanish_are_rejected(x64, mutant):
    assert exactly(ppl.check.invariant, mutant, coming_and_going()).verdict == "failed"


def test_the_same_done_right(x64):
    inner = cycle(gibbs(addresses="a"), gibbs(addresses="z"))
    assert exactly(ppl.check.invariant, on("a", flip_flag), coming_and_going()).passed
    assert exactly(ppl.check.invariant, on(["a", "z"], inner), coming_and_going()).passed


def test_on_shows_the_kernel_the_named_latents_only():
    seen = []

    @ppl.kernel
    def looking(trace):
        seen.append((sorted(trace.choices), trace.program.latents))
        return trace

    trace = ppl.trace_of(branching(), {"a": 1, "c": 1, "z": jnp.array([0, 1])})
    moved = ppl.run(on(["c", "a"], looking)(trace), 0)
    assert seen == [(["a", "c"], ("a", "c"))]
    assert float(moved.log_density) == pytest.approx(float(trace.log_density), rel=1e-6)


# --- Memories and statistics --------------------------------------------------------------------


@pytree
class Counting(TraceKernel):
    """Stays, and counts; adapts a setting in warmup."""

    scale: jax.Array
    operation = "counting"

    def move(self, trace):
        return trace

    def start(self, trace):
        return jnp.zeros(()), jnp.zeros((), int)

    def step(self, trace, memory, time: Time):
        scale, steps = memory
        scale = jnp.where(time.index < time.warmup, time.index + self.scale, scale)
        stats = {"scale": scale, "n_steps": steps + 1, "diverging": steps == 1}
        return Step(trace, (scale, steps + 1), stats)

    def tuned(self, memory):
        return dataclasses.replace(self, scale=memory[0])


@pytree
class Other(Counting):
    """Has statistics of another name too."""

    operation = "other"

    def step(self, trace, memory, time: Time):
        new = super().step(trace, memory, time)
        return new._replace(stats={"scale": new.stats["scale"], "energy": -new.stats["scale"]})


def steps(kernel, num=4, warmup=3, key=0):
    """The statistics of a chain, and the kernel that it adapted."""
    trace = ppl.trace_of(branching(), {"a": 1, "c": 1, "z": jnp.array([0, 1])})

    def chain(kernel, trace):
        def step(state, i):
            new = kernel.step(*state, Time(i, warmup))
            return (new.trace, new.memory), new.stats

        (_, memory), stats = lax.scan(step, (trace, kernel.start(trace)), jnp.arange(num))
        tuned = kernel.tuned(memory)
        return stats, [x for x in jax.tree.leaves(tuned) if isinstance(x, jax.Array)]

    return jax.tree.map(np.asarray, ppl.run(stage(chain, (kernel, trace), name="chain"), key))


def test_statistics_of_a_cycle():
    one, two = Counting(jnp.array(10.0)), Other(jnp.array(20.0))
    stats, tuned = steps(cycle(one, flip, two))
    assert set(stats) == {"counting.scale", "n_steps", "diverging", "other.scale", "energy"}
    assert stats["counting.scale"].tolist() == [10, 11, 12, 12]
    assert stats["energy"].tolist() == [-20, -21, -22, -22]
    assert stats["n_steps"].tolist() == [1, 2, 3, 4]
    assert [float(x) for x in tuned] == [12, 22]
    stats, _ = steps(cycle(one, one))
    assert {"counting_0.scale", "counting_1.scale"} <= set(stats)


def test_statistics_of_a_mixture():
    one, two = Counting(jnp.array(10.0)), Other(jnp.array(20.0))
    stats, _ = steps(mixture(one, two), num=12)
    assert set(stats["kernel"]) == {0, 1}
    first = stats["kernel"] == 0
    assert (np.isnan(stats["energy"]) == first).all()
    assert (np.isnan(stats["counting.scale"]) == ~first).all()
    assert stats["n_steps"][~first].tolist() == [0] * (~first).sum()
    assert stats["n_steps"][first].tolist() == list(range(1, first.sum() + 1))  # its own memory
    assert not stats["diverging"][~first].any()


def test_statistics_of_a_repetition():
    stats, tuned = steps(repeat(Counting(jnp.array(10.0)), 2))
    assert stats["scale"].tolist() == [10.5, 12.5, 14.5, 15]  # moves 0 to 5 are warmup
    assert stats["n_steps"].tolist() == [3, 7, 11, 15]
    assert stats["diverging"].tolist() == [True, False, False, False]
    assert [float(x) for x in tuned] == [15]


def test_memories_of_a_kernel_on_some_latents():
    stats, tuned = steps(on("z", cycle(Counting(jnp.array(10.0)), single_site())))
    assert stats["scale"].tolist() == [10, 11, 12, 12]
    assert [float(x) for x in tuned] == [12]


def test_settings_are_data():
    trace = ppl.trace_of(branching(), {"a": 1, "c": 1, "z": jnp.array([0, 1])})

    def structure(scale, weights):
        return mixture(Counting(jnp.array(scale)), flip, weights=weights)(trace).structure

    assert structure(1.0, [1, 2]) is structure(2.0, [5, 1])
    assert repeat(flip, 2)(trace).structure is not repeat(flip, 3)(trace).structure


# --- Refusals -----------------------------------------------------------------------------------


def test_refusals():
    for make in (cycle, mixture):
        with pytest.raises(ArgumentError, match=f"{make.__name__} got nothing; needs kernels"):
            make()
    for make in (cycle, mixture, lambda k: repeat(k, 2), lambda k: on("a", k)):
        with pytest.raises(ArgumentError, match=r"got the kernel <function .*>; needs kernels"):
            make(lambda trace: trace)
    for bad in ([1.0], [1.0, 2.0, 3.0], 1.0, [[1.0, 0.0], [0.0, 1.0]]):
        with pytest.raises(ArgumentError, match=r"mixture got weights .*needs one positive number"):
            mixture(flip, flip, weights=bad)
    for bad in ([1.0, -1.0], [1.0, 0.0], [1.0, np.nan], [1.0, np.inf]):
        with pytest.raises(ArgumentError, match="mixture got weights"):
            mixture(flip, flip, weights=bad)
    with pytest.raises(ArgumentError, match="repeat got num=0"):
        repeat(flip, 0)
    with pytest.raises(ArgumentError, match="mixture got the unknown keyword weigths"):
        mixture(flip, weigths=[1.0])
    trace = ppl.trace_of(branching(), {"a": 1, "c": 1, "z": jnp.array([0, 1])})
    with pytest.raises(AddressError, match=r'on got unknown address "y"'):
        on("y", flip)(trace)
    for bad in ([], None, ["a", "a"]):
        with pytest.raises(AddressError, match="on got addresses="):
            on(bad, flip)
    with pytest.raises(UnsupportedError, match='hmc got the discrete site "a"'):
        on("a", ppl.kernels.hmc(0.1, 2, addresses="a"))(trace)
