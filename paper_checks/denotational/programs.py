"""Programs that the claims are tried on: by hand and at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp

import ppl
import ppl.distributions as dist


class Programs(NamedTuple):
    """What the statements are tried on."""

    any: Sequence[ppl.Program]
    scoring: Sequence[ppl.Program]
    branching: Sequence[ppl.Program]


def drawn(
    count: int, wanted: Callable[[ppl.Program], bool] = lambda p: True, **options: object
) -> list[ppl.Program]:
    """Draw random programs with a property, the same in every run."""
    found: list[ppl.Program] = []
    if not count:
        return found

    @hypothesis.settings(
        max_examples=count,
        phases=[hypothesis.Phase.generate],
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(ppl.check.programs(**options))
    def collect(program: ppl.Program) -> None:
        hypothesis.assume(wanted(program))
        found.append(program)

    collect()
    return found


def may_lack_sites(program: ppl.Program) -> bool:
    """Tell whether some run lacks a latent site."""
    return any(site.conditional for site in program.sites if site.kind == "latent")


def scores_again(program: ppl.Program) -> bool:
    """Tell whether there is a score after the first."""
    return len(ppl.suspend(program).steps) > 0


@ppl.model
def coins():
    a = ppl.sample("a", dist.Bernoulli(0.3))
    b = ppl.sample("b", dist.Bernoulli(jnp.array([0.2, 0.9])[a]))
    ppl.factor("equal", jnp.where(a == b, jnp.log(0.25), 0.0))
    return a, b


@ppl.model
def impossible():
    """Weigh some runs with zero."""
    x = ppl.sample("x", dist.Categorical(probs=jnp.array([0.5, 0.2, 0.3])))
    ppl.sample("y", dist.Categorical(probs=jnp.array([[1.0, 0.0], [0.4, 0.6], [0.5, 0.5]])[x]), 1)
    ppl.factor("tilt", -0.3 * x)
    return x


@ppl.model
def branches():
    """Have other sites in each branch, and more of them in one."""
    flag = ppl.sample("flag", dist.Bernoulli(0.4))

    def one():
        x = ppl.sample("x", dist.Categorical(probs=jnp.array([0.2, 0.5, 0.3])))
        y = ppl.sample("y", dist.Bernoulli(jnp.array([0.1, 0.5, 0.8])[x]))
        ppl.factor("tilt", -0.7 * x * y)
        return x + y

    return flag, jax.lax.cond(flag == 1, one, lambda: ppl.sample("z", dist.Bernoulli(0.25)))


@ppl.model
def hidden_markov(seen):
    move = jnp.array([[0.7, 0.3], [0.1, 0.9]])
    emit = jnp.array([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]])

    def step(state, y):
        state = ppl.sample("state", dist.Categorical(probs=move[state]))
        ppl.sample("seen", dist.Categorical(probs=emit[state]), obs=y)
        return state, None

    return jax.lax.scan(step, 0, seen)[0]


@ppl.model
def sometimes():
    """Have a site that need not exist."""
    flag = ppl.sample("flag", dist.Bernoulli(0.4))

    def one():
        x = ppl.sample("x", dist.Categorical(probs=jnp.array([0.2, 0.5, 0.3])))
        ppl.factor("tilt", -0.7 * x)
        return x

    return flag, jax.lax.cond(flag == 1, one, lambda: 0)


def programs(count: int) -> Programs:
    """Give some programs written by hand, and a number of random ones."""
    some = drawn(count, size=3, max_worlds=8)
    scoring = drawn(count, scores_again, size=5, max_worlds=4, observations=True)
    scalar = {"control_flow": ("cond", "switch"), "latents": (2, 2), "max_worlds": 8, "size": 4}
    return Programs(
        [coins(), impossible(), branches(), *some],
        [hidden_markov(jnp.array([1, 0, 2])), impossible(), *scoring],
        [sometimes(), coins(), *drawn(count, may_lack_sites, **scalar)],
    )
