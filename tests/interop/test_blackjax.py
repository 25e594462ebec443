"""`from_blackjax`: any algorithm of BlackJAX's interface as a kernel. BlackJAX is not needed."""

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ppl
import ppl.distributions as dist
from ppl._types import pytree
from ppl.errors import AddressError, ArgumentError, UnsupportedError
from ppl.inference.trace_kernel import Time
from ppl.interop.blackjax import FromBlackJAX, from_blackjax
from tests.inference.stationary import (
    DATUM,
    gaussian,
    gaussian_answer,
    stays_dead,
    stays_gamma,
)
from tests.inference.test_kernels import branching


class State(NamedTuple):
    position: Any
    logdensity: Any
    momentum: Any
    count: Any


class Info(NamedTuple):
    acceptance_rate: Any
    is_divergent: Any
    proposal: Any


def persistent(log_density, step=0.6):
    """A guided random walk: on an axis that stays, in a direction that turns at a rejection."""

    def init(position, key):
        momentum = jax.random.rademacher(key, position.shape).astype(position.dtype)
        return State(position, log_density(position), momentum, jnp.zeros((), jnp.int32))

    def advance(key, state):
        length, level, *coins = jax.random.uniform(key, (2 + state.position.size,))
        there = state.position + step * length * state.momentum
        density = log_density(there)
        rate = jnp.exp(jnp.minimum(0.0, density - state.logdensity))
        accept = level < rate
        # Every other time the direction is drawn anew.
        drawn = jnp.where(jnp.stack(coins) < 0.5, -1.0, 1.0).astype(there.dtype)
        turned = jnp.where(accept, 1, -1) * state.momentum
        new = State(
            jnp.where(accept, there, state.position),
            jnp.where(accept, density, state.logdensity),
            jnp.where(state.count % 2 == 1, drawn, turned),
            state.count + 1,
        )
        return new, Info(rate, jnp.zeros((), bool), there)

    return SimpleNamespace(init=init, step=advance)


KERNEL, ON_X = from_blackjax(persistent), from_blackjax(persistent, addresses=["x"])


@ppl.model
def chains(kernel, between, program, start, length=6):
    """Many chains, in which another kernel may move between the moves."""

    def one(choices):
        trace = ppl.trace_of(program, choices)
        with ppl.scope("start"):
            memory = kernel.start(trace)

        def step(state, index):
            trace, memory = state
            trace, memory, stats = kernel.step(trace, memory, Time(index, 0))
            stale = jnp.abs(memory.state.logdensity - trace.log_density)
            with ppl.scope("between"):
                trace = trace if between is None else between(trace)
            return (trace, memory), (memory.state.count, stale, stats)

        (trace, memory), out = lax.scan(step, (trace, memory), jnp.arange(length))
        return trace, memory, out

    return jax.vmap(one)(start)


def run_chains(kernel, between):
    """Whether the posterior is kept, and the state that of the trace; counts and reports."""
    answer = gaussian_answer()
    start = jnp.asarray(answer.draw(2000), jnp.float32)
    start = {"a": start[:, 0], "x": start[:, 1:]}
    trace, _, (counts, stale, stats) = ppl.run(chains(kernel, between, gaussian(DATUM), start), 0)
    kept = answer.agrees(np.column_stack([trace.choices["a"], trace.choices["x"]]))
    return kept and float(jnp.max(stale)) < 1e-4, np.asarray(counts), stats


def test_the_algorithm_keeps_its_state():
    right, counts, stats = run_chains(KERNEL, None)
    assert right
    assert (counts == np.arange(1, 7)).all()
    assert set(stats) == {"acceptance_rate", "diverging"}
    assert stats["acceptance_rate"].shape == (2000, 6)


@ppl.kernel
def held_moves(trace):
    """Draw a given x, exactly."""
    mean = (2.0 + 4 * jnp.sum(trace.choices["x"])) / 9
    return trace.with_choices({"a": ppl.sample("new", dist.Normal(mean, 1 / 3))})


def test_where_another_kernel_moved_the_state_is_made_anew():
    """Here it moved a held site. Each state counts one step."""
    right, counts, _ = run_chains(ON_X, held_moves)
    assert right
    assert (counts == 1).all()


@pytree
class Deaf(FromBlackJAX):
    """It goes on with the state it has, whatever the trace."""

    def step(self, trace, memory, time):
        return super().step(trace, memory._replace(choices=trace.choices), time)


@pytest.mark.slow
def test_a_stale_state_is_seen():
    right, counts, _ = run_chains(Deaf(persistent, ("x",)), held_moves)
    assert (counts == np.arange(1, 7)).all()
    assert not right


@pytest.mark.slow
def test_a_bounded_site_is_moved_with_its_jacobian():
    assert stays_gamma(KERNEL)


def test_impossible_states_give_no_nan():
    assert stays_dead(KERNEL)


# --- Refusals -----------------------------------------------------------------------------------


def test_bad_algorithms_are_refused():
    trace = ppl.trace_of(gaussian(DATUM), {"a": 0.0, "x": jnp.ones(2)})
    with pytest.raises(ArgumentError, match=r"from_blackjax got namespace.*needs a function from"):
        from_blackjax(persistent(lambda z: 0.0))
    with pytest.raises(ArgumentError, match=r"built float; needs an algorithm with init"):
        from_blackjax(lambda f: 0.5)(trace)
    for state, words in (
        ((jnp.zeros(3),), "state tuple has no position"),
        (SimpleNamespace(position=jnp.zeros(2)), r"a position of shape \(2,\); needs .*\(3,\)"),
    ):
        algorithm = SimpleNamespace(init=lambda z, key, s=state: s, step=lambda key, s: (s, None))
        with pytest.raises(ArgumentError, match=words):
            from_blackjax(lambda f, a=algorithm: a)(trace)
    with pytest.raises(ArgumentError, match="unknown keyword address="):
        from_blackjax(persistent, address="a")


def test_programs_that_do_not_fit_are_refused():
    trace = ppl.trace_of(gaussian(DATUM), {"a": 0.0, "x": jnp.ones(2)})
    with pytest.raises(AddressError, match='unknown address "y"'):
        from_blackjax(persistent, addresses="y")(trace)
    trace = ppl.trace_of(branching(), {"flag": 1, "a": 1, "b": 0})
    with pytest.raises(UnsupportedError, match="from_blackjax got branching, which has no contin"):
        KERNEL(trace)
