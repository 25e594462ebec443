"""Metropolis-Hastings-Green on finite and mixed spaces, and on traces."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ppl
import ppl.distributions as dist


def stays(kernel: Callable[[Any], Any], program: ppl.Program, **options: Any) -> Iterable[float]:
    """Give the distances from invariance and from reversibility."""
    for check in (ppl.check.invariant, ppl.check.reversible):
        report = check(kernel, program, **options)
        if report.false_alarm or report.verdict == "undecided":
            raise AssertionError(f"not exact:\n{report}")
        yield float(report.statistic)


def accepted(log_ratio: Any, new: ppl.Trace, old: ppl.Trace) -> ppl.Trace:
    """Move with probability min(1, ratio)."""
    chance = jnp.exp(jnp.minimum(0.0, log_ratio))
    return ppl.choose(ppl.sample("accept", dist.Bernoulli(chance)) == 1, new, old)


# --- Finite spaces ------------------------------------------------------------------------------


@ppl.model
def finite(a):
    x = ppl.sample("x", dist.Categorical(probs=jnp.full(a.shape, 1 / a.shape[0])))
    ppl.factor("mass", jnp.log(a[x] * a.shape[0]))
    return x


@ppl.kernel
def green(trace, a, psi, one_way):
    """Propose by psi, and accept with rho where both directions are possible."""
    x = trace.choices["x"]
    y = ppl.sample("y", dist.Categorical(probs=psi[x]))
    forth, back = a[x] * psi[x, y], a[y] * psi[y, x]
    rho = jnp.where((forth > 0) & (back > 0), back / forth, 0.0)
    if one_way:
        rho = jnp.where((forth > 0) & (psi[y, x] == 0), a[y] / a[x], rho)
    return accepted(jnp.log(rho), trace.with_choices({"x": y}), trace)


def finite_spaces(one_way: bool = False) -> Iterable[float]:
    """Measures and proposals at random, zeros in both."""
    rng = np.random.default_rng(1)
    for size in (2, 3, 4):
        for _ in range(2):
            a = rng.gamma(1.0, size=size) * (rng.random(size) < 0.8)
            a[rng.integers(size)] += 1.0
            psi = rng.gamma(1.0, size=(size, size)) * (rng.random((size, size)) < 0.6)
            psi[np.arange(size), rng.integers(0, size, size)] += 0.3
            psi /= psi.sum(1, keepdims=True)
            a, psi = jnp.asarray(a), jnp.asarray(psi)
            yield from stays(lambda t, a=a, psi=psi: green(t, a, psi, one_way), finite(a))


# --- A point and an interval --------------------------------------------------------------------


@ppl.model
def mixed():
    inside = ppl.sample("inside", dist.Bernoulli(0.3))

    def interval():
        u = ppl.sample("u", dist.Uniform())
        ppl.factor("tilt", -2.0 * u)
        return u

    return inside, jax.lax.cond(inside == 1, interval, lambda: jnp.zeros(()))


@ppl.kernel
def jump(trace, one_way):
    """Jump between the point and the interval; from its first quarter there is no way back."""
    inside, u = trace.choices["inside"], trace.choices["u"]
    fresh = ppl.sample("fresh", dist.Uniform())
    place = jnp.where(inside == 1, u, fresh)
    new = trace.with_choices({"inside": 1 - inside, "u": place})
    # The density of `fresh` is the prior's, so what is left are the weights and the coin's odds.
    odds = jnp.where(inside == 1, jnp.log(0.7 / 0.3), jnp.log(0.3 / 0.7))
    log_ratio = new.log_weight - trace.log_weight + odds
    stuck = place < 0.25
    never = (inside == 1) & stuck if one_way else stuck
    return accepted(jnp.where(never, -jnp.inf, log_ratio), new, trace)


def point_and_interval(one_way: bool = False) -> Iterable[float]:
    """Check the jumps, on the nodes of a quadrature."""
    nodes = {"u": 32, "kernel/fresh": 32}
    yield from stays(lambda t: jump(t, one_way), mixed(), quadrature=nodes)


# --- Traces -------------------------------------------------------------------------------------


def existing(trace: ppl.Trace) -> Any:
    """Tell which latent sites exist, in order."""
    sites = trace.program.latents
    return jnp.stack([jnp.asarray(trace.present.get(a, True), bool) for a in sites])


def _kept(program: ppl.Program, certain: frozenset[str], chosen: str) -> list[tuple[str, ...]]:
    """List which sites can be kept when one is redrawn: all that are certain, any of the others."""
    unsure = [a for a in program.latents if a not in certain | {chosen}]
    return [
        tuple(a for a in program.latents if a != chosen and (a in certain or a in some))
        for some in (
            [a for a, flag in zip(unsure, flags, strict=True) if flag]
            for flags in itertools.product([False, True], repeat=len(unsure))
        )
    ]


def _by_case(trace: ppl.Trace, chosen: Any, exists: Any, one: Callable[..., Any]) -> Any:
    """Call one(kept), where the kept sites are all that exist but the chosen one."""
    latents = trace.program.latents
    certain = frozenset(latents) - frozenset(trace.present)
    numbers, branches = [], []
    for site in latents:
        number = jnp.zeros((), int)
        for a, flag in zip(latents, exists, strict=True):
            if a not in certain | {site}:
                number = 2 * number + flag
        numbers.append(len(branches) + number)
        kept = _kept(trace.program, certain, site)
        branches += [functools.partial(one, k) for k in kept]
    return jax.lax.switch(jnp.stack(numbers)[chosen], branches)


def _given(trace: ppl.Trace, kept: tuple[str, ...]) -> ppl.Program:
    return ppl.condition(trace.program, {a: trace.choices[a] for a in kept})


def _redraw(trace: ppl.Trace, kept: tuple[str, ...]) -> tuple[Any, Any]:
    """Draw all but the kept sites; the weight is that of what is kept and observed."""
    fresh = ppl.traced(_given(trace, kept))()
    return {**trace.choices, **fresh.choices}, fresh.log_weight


def _weight(trace: ppl.Trace, kept: tuple[str, ...]) -> Any:
    """Give the weight that `_redraw` gives where it draws the choices of this trace."""
    rest = {a: x for a, x in trace.choices.items() if a not in kept}
    return ppl.trace_of(_given(trace, kept), rest).log_weight


def right(q: Any, p: Any, n: Any, m: Any) -> Any:
    """q n / (p m), as a logarithm; n sites before, m after."""
    return q - p + jnp.log(n) - jnp.log(m)


def without_numbers(q: Any, p: Any, n: Any, m: Any) -> Any:
    """q / p."""
    return q - p


def precedence(q: Any, p: Any, n: Any, m: Any) -> Any:
    """q m n / p, which is q * m * n / p read from the left."""
    return q - p + jnp.log(n) + jnp.log(m)


@ppl.kernel
def single_site(trace, ratio=right):
    """Redraw one site, picked uniformly among those that exist, and what newly exists."""
    before = existing(trace)
    n = jnp.sum(before)
    chosen = ppl.sample("chosen", dist.Categorical(probs=before / n))
    choices, q = _by_case(trace, chosen, before, functools.partial(_redraw, trace))
    new = trace.with_choices(choices)
    after = existing(new)
    p = _by_case(trace, chosen, after, functools.partial(_weight, trace))
    return accepted(ratio(q, p, n, jnp.sum(after)), new, trace)


def single_sites(
    programs: Sequence[ppl.Program], ratio: Callable[..., Any] = right
) -> Iterable[float]:
    """Check the kernel on programs whose sites are single numbers."""
    for p in programs:
        yield from stays(lambda t: single_site(t, ratio), p)


@ppl.model
def bits():
    x = ppl.sample("x", dist.Bernoulli(0.5))
    y = ppl.sample("y", dist.Bernoulli(0.5))
    ppl.factor("weight", jnp.where(x == 1, jnp.log(0.2), 0.0))
    return x, y


@ppl.model
def _moved(choices, ratio):
    return single_site(ppl.trace_of(bits.program(), choices), ratio).choices


def long_run(ratio: Callable[..., Any], truth: float) -> Iterable[float]:
    """Iterate the kernel exactly, and compare the law of x with the truth."""
    states = [{"x": x, "y": y} for x in (0, 1) for y in (0, 1)]
    rows = np.array([[ppl.enumerate(_moved(s, ratio)).mass(t) for t in states] for s in states])
    law = np.linalg.matrix_power(rows, 4096)[0]
    yield abs(float(law[2] + law[3]) - truth)
