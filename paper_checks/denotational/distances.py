"""Distances between what an operation means and what it should mean, for every claim."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

import ppl
import ppl.distributions as dist
from paper_checks.denotational import blocks
from paper_checks.denotational.programs import Programs


def exact(report: ppl.check.Report) -> float:
    """Read the distance off a report; a check by draws or of nothing is no exact check."""
    if report.false_alarm or report.verdict == "undecided":
        raise AssertionError(f"not exact:\n{report}")
    return float(report.statistic)


def kept(transformer: Callable[[ppl.Program], ppl.Program], ps: Iterable[ppl.Program]):
    """Give the distance between each program and the transformed one."""
    return (exact(ppl.check.preserves(transformer, p)) for p in ps)


# --- Sam: return, bind, sample ------------------------------------------------------------------


@ppl.model
def returned(value, shift):
    return jax.tree.map(lambda x: x + shift, value)


def point_masses(shift: int = 0) -> Iterable[float]:
    for value in (jnp.array(3), {"a": jnp.array([0, 1]), "b": jnp.array(0.5)}):
        point = ppl.FiniteMeasure.of([value], [1.0])
        yield point.total_variation(ppl.enumerate(returned(value, shift)))


@ppl.model
def followed(program, again):
    value = program()
    with ppl.scope("again"):
        seen = program() if again else value
    with ppl.scope("next"):
        return value, blocks.noisy(blocks.digest(seen))


def binding(ps: Programs, again: bool = False) -> Iterable[float]:
    for p in ps.any:
        left = ppl.enumerate(followed(p, again))
        right = ppl.enumerate(p).bind(
            lambda x: ppl.enumerate(blocks.noisy_program(blocks.digest(x))).pushforward(
                lambda y, x=x: (x, y)
            )
        )
        yield left.total_variation(right) / max(left.total_mass, right.total_mass)


@ppl.model
def uniform():
    return ppl.sample("u", dist.Uniform())


def moments(power: float = 1.0) -> Iterable[float]:
    measure = ppl.enumerate(uniform(), quadrature={"u": 32})
    for k in range(1, 6):
        yield abs(measure.expect(lambda u, k=k: u ** (power * k)) - 1 / (k + 1))


# --- Weighted -----------------------------------------------------------------------------------


@ppl.model
def twice(program):
    """Run twice and keep one of the runs: a valid transformation of samplers."""
    one = program()
    with ppl.scope("other"):
        other = program()
    return ppl.choose(ppl.sample("second", dist.Bernoulli(0.5)) == 1, other, one)


@ppl.model
def mixed(program):
    """Take the value of one run and the weight of another: not valid under a weight."""
    one = program()
    with ppl.scope("other"):
        other = program()
    return ppl.Weighted(one.value, other.log_weight)


# --- Population ---------------------------------------------------------------------------------


def resampled(scheme, n, drop=False):
    return lambda p: blocks.resample(blocks.spawn(p, n), scheme, drop=drop)


def weights(n: int, count: int) -> Iterable[jax.Array]:
    """Weight vectors of total one, some with zeros."""
    rng = np.random.default_rng(n)
    for _ in range(count):
        w = rng.gamma(0.7, size=n) * (rng.random(n) < 0.8)
        w = w if w.sum() else np.ones(n)
        yield jnp.asarray(w / w.sum())


@ppl.model
def offspring(scheme, w):
    return jnp.bincount(scheme(w), length=w.shape[0])


def offspring_means(schemes) -> Iterable[float]:
    for scheme in schemes:
        for n in (2, 3, 4):
            for w in weights(n, 4):
                yield exact(ppl.check.unbiased(offspring(scheme, w), n * np.asarray(w)))


def middle(w):
    """Systematic resampling at the middle of every stratum: nothing is drawn."""
    n = w.shape[0]
    return jnp.searchsorted(jnp.cumsum(w), (jnp.arange(n) + 0.5) / n)


# --- Suspension and SMC -------------------------------------------------------------------------


def suspending(ps: Programs) -> Iterable[float]:
    return kept(lambda p: ppl.suspend(p).finish(), ps.scoring)


def advancing(ps: Programs, advance=ppl.Suspended.advance) -> Iterable[float]:
    for p in ps.scoring:
        s = ppl.suspend(p)
        while s.steps:
            s = advance(s)
            yield from kept(lambda _, s=s: s.finish(), [p])


def collapsed(program: ppl.Program) -> ppl.Program:
    return ppl.extract(blocks.spawn(program, 2))


def hoisting(ps: Programs, transformer=collapsed) -> Iterable[float]:
    return kept(lambda p: ppl.suspend(p).advance().hoist_first(transformer).finish(), ps.scoring)


def particles(n: int, scheme, drop: bool = False) -> Callable[[ppl.Program], ppl.Program]:
    return lambda p: blocks.smc(ppl.suspend(p), n, scheme, drop=drop)


def smc(ps: Programs) -> Iterable[float]:
    for n in (1, 2):
        for scheme in blocks.SCHEMES:
            yield from kept(particles(n, scheme), ps.scoring)
    yield from kept(particles(3, blocks.multinomial), ps.scoring[:1])


def smc_without_evidence(ps: Programs) -> Iterable[float]:
    return kept(particles(2, blocks.multinomial, drop=True), ps.scoring[:2])


# --- Trace --------------------------------------------------------------------------------------


@ppl.model
def canonical(program):
    """Give a program's choices, zero where a site does not exist."""
    trace = ppl.traced(program)()
    return ppl.Weighted(trace.canonical, trace.log_weight)


@ppl.model
def unweighted(program):
    """Give the value of a trace, and forget its weight."""
    return ppl.traced(program)().value


def densities(ps: Programs, weight_only: bool = False) -> Iterable[float]:
    for p in ps.any:
        measure = ppl.enumerate(ppl.extract(canonical(p)))
        total = measure.total_mass
        for (choices, _), mass in measure:
            trace = ppl.trace_of(p, choices)
            log = trace.log_weight if weight_only else trace.log_density
            yield abs(float(jnp.exp(log)) - mass) / total
