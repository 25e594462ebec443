"""Metropolis-Hastings that redraws one site of a program and replays the rest.

One of the sites that exist is chosen uniformly and drawn again from its distribution. Every other
site keeps its value as long as it exists; sites that come into being are drawn from theirs. Where a
value that was kept has become impossible, the density of the new run is zero and the move is
rejected. An element of a plate, a lane of a `vmap` and an iteration of a `scan` are sites of their
own.

Write x for the old run and y for the new, n and m for their numbers of sites, and D for the density
of what a move draws: D(x, y) of the redrawn site and of those only y has, in y; D(y, x) of the same
site and of those only x has, in x. Then the move from x to y has density D(x, y) / n, that back has
D(y, x) / m, and the ratio is

    p(y) / D(x, y)   n
    -------------- * -  =  q n / (p m),     p = p(x) / D(y, x),  q = p(y) / D(x, y).
    p(x) / D(y, x)   m

p and q are the "weights" of the two runs, once the draws of the move are divided out.

Source: Wingate, Stuhlmueller and Goodman (2011), with the ratio of Hastings and Green as in Ścibior
et al. (POPL 2018).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp

import ppl
import ppl.distributions as dist
from ppl.context import current_context
from ppl.interpreter import Frame, Interpreter, evaluate
from ppl.primitives import Site, log_prob, sample_p, value_of, with_operand
from ppl.semantics.kernel import started
from ppl.staging import stage


class Element(NamedTuple):
    """At one address: the value, and elementwise the log density of drawing it."""

    value: Any
    log_density: Any


class Kept(NamedTuple):
    """At one address: the old value, and elementwise whether it is kept."""

    value: Any
    keep: Any


class _Redrawing(Interpreter):
    """Keep given elements, draw the others; note values and the density that drawing has."""

    name = "single_site"
    unbounded = False

    def __init__(self, prefix: str = ""):
        self.prefix = prefix

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        if site.kind != "latent":
            return value_of(site, leaves)
        old, keep = frame.given[site.address]
        plain, bare = with_operand(site, leaves, "scale", None, mapped=False)
        renamed = dataclasses.replace(plain, address=self.prefix + plain.address)
        drawn = sample_p.bind(*bare, site=renamed)[0]
        value = jnp.where(_over(keep, drawn), old, drawn)
        frame.record(site, leaves, Element(value, log_prob(plain, bare, value)))
        return value

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        """The density is that of the new trace, which is computed from its choices."""


class _Reading(_Redrawing):
    """Note what drawing the given values would have had for density."""

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        if site.kind != "latent":
            return value_of(site, leaves)
        plain, bare = with_operand(site, leaves, "scale", None, mapped=False)
        value = frame.given[site.address]
        frame.record(site, leaves, Element(value, log_prob(plain, bare, value)))
        return value


def _over(flag: Any, x: Any) -> Any:
    """Give a flag of elements the event axes of their values."""
    return flag.reshape(flag.shape + (1,) * (jnp.ndim(x) - flag.ndim))


class Run(NamedTuple):
    """The elements of a run by address: values, densities of drawing them, which exist."""

    choices: dict[str, Any]
    log_density: dict[str, Any]
    exists: dict[str, Any]

    @property
    def size(self) -> Any:
        """The number of elements that exist."""
        return sum(jnp.sum(x) for x in self.exists.values())

    def total(self, flags: dict[str, Any]) -> Any:
        """The log density of drawing the elements where the flags hold."""
        parts = (jnp.where(f, self.log_density[a], 0.0) for a, f in flags.items())
        return sum(jnp.sum(x) for x in parts)


def _run(interpreter: Interpreter, program: ppl.Program, given: dict[str, Any]) -> Run:
    s = program.structure
    records = evaluate(interpreter, s.jaxpr, program.consts, program.args, given=given).records
    choices, density, exists = {}, {}, {}
    for address, (element, present) in records.items():
        density[address] = element.log_density
        flag = jnp.ones((), bool) if present is None else present
        flag = flag.reshape(flag.shape + (1,) * (element.log_density.ndim - flag.ndim))
        exists[address] = jnp.broadcast_to(flag, element.log_density.shape)
        there = _over(exists[address], element.value)
        choices[address] = jnp.where(there, element.value, 0).astype(element.value.dtype)
    return Run(choices, density, exists)


def _chosen(run: Run) -> dict[str, Any]:
    """Choose one of the elements that exist, uniformly; none if there is none."""
    flat = jnp.concatenate([x.reshape(-1) for x in run.exists.values()])
    probs = jnp.where(jnp.any(flat), flat / jnp.maximum(jnp.sum(flat), 1), 1 / flat.size)
    index = ppl.sample("site", dist.Categorical(probs=probs))
    chosen, start = {}, 0
    for address, flags in run.exists.items():
        here = start + jnp.arange(flags.size).reshape(flags.shape)
        chosen[address] = flags & (here == index)
        start += flags.size
    return chosen


class Move(NamedTuple):
    """A proposed trace, what its acceptance depends on, and whether other sites exist in it."""

    trace: ppl.Trace
    log_p: Any
    log_q: Any
    n: Any
    m: Any
    branched: Any


def propose(trace: ppl.Trace) -> Move:
    """Redraw one site and replay; `log_p` and `log_q` are the log weights of old and new."""
    program = trace.program
    with ppl.scope("propose"):
        old = _run(_Reading(), program, trace.choices)
        chosen = _chosen(old)
        keep = {a: old.exists[a] & ~chosen[a] for a in chosen}
        given = {a: Kept(trace.choices[a], keep[a]) for a in keep}
        new = _run(_Redrawing(current_context().prefix), program, given)
    forth = {a: new.exists[a] & ~keep[a] for a in keep}
    back = {a: old.exists[a] & ~(keep[a] & new.exists[a]) for a in keep}
    moved = trace.with_choices(new.choices)
    branched = jnp.array([jnp.any(old.exists[a] != new.exists[a]) for a in keep])
    return Move(
        moved,
        trace.log_density - old.total(back),
        moved.log_density - new.total(forth),
        jnp.maximum(old.size, 1),  # without any site nothing is drawn, and n / m is 1
        jnp.maximum(new.size, 1),
        jnp.any(branched),
    )


def accept(move: Move, trace: ppl.Trace, ratio: Any) -> ppl.Trace:
    """Move with probability min(1, ratio)."""
    accepted = ppl.sample("accept", dist.Bernoulli(jnp.minimum(1.0, ratio)))
    return ppl.choose(accepted == 1, move.trace, trace)


@ppl.kernel
def single_site(trace):
    if not trace.choices:
        return trace
    move = propose(trace)
    return accept(move, trace, jnp.exp(move.log_q - move.log_p) * move.n / move.m)


# --- Mutants ------------------------------------------------------------------------------------


@ppl.kernel
def precedence(trace):
    """monad-bayes' artifact: (q m / p) n, where the brackets of q n / (p m) were left out."""
    if not trace.choices:
        return trace
    move = propose(trace)
    return accept(move, trace, jnp.exp(move.log_q - move.log_p) * move.m * move.n)


@ppl.kernel
def swapped(trace):
    """The product and quotient of q n / (p m) exchanged: q n p / m."""
    if not trace.choices:
        return trace
    move = propose(trace)
    return accept(move, trace, jnp.exp(move.log_q + move.log_p) * move.n / move.m)


@ppl.kernel
def no_lengths(trace):
    """The numbers of sites forgotten: q / p."""
    if not trace.choices:
        return trace
    move = propose(trace)
    return accept(move, trace, jnp.exp(move.log_q - move.log_p))


@ppl.kernel
def no_branch_ratio(trace):
    """GenJAX's update of a branch: where another branch is taken the densities are not compared."""
    if not trace.choices:
        return trace
    move = propose(trace)
    ratio = jnp.exp(move.log_q - move.log_p) * move.n / move.m
    possible = move.trace.log_density > -jnp.inf
    return accept(move, trace, jnp.where(move.branched & possible, 1.0, ratio))


@ppl.kernel
def two_moves(trace):
    """Two moves, one after the other."""
    with ppl.scope("one"):
        trace = single_site(trace)
    with ppl.scope("two"):
        return single_site(trace)


@ppl.kernel
def two_moves_of_stale_density(trace):
    """The second move compares with the density that the first one started from."""
    with ppl.scope("one"):
        moved = single_site(trace)
    with ppl.scope("two"):
        moved = single_site(dataclasses.replace(moved, _log_density=trace.log_density))
    return moved.with_choices({})


@ppl.kernel
def stale(trace):
    """The trace that is returned carries the density it had before the move."""
    return dataclasses.replace(single_site(trace), _log_density=trace.log_density)


# --- What a kernel does, as programs ------------------------------------------------------------


def states(program: ppl.Program) -> ppl.Program:
    """The choices of a program's runs, and which exist."""
    return stage(lambda p: started(p).canonical, (program,), name="states")


def moved(kernel: Any, program: ppl.Program, state: Any) -> ppl.Program:
    """Where one move from a state leads."""

    def run(program: ppl.Program, choices: Any) -> Any:
        return kernel(ppl.trace_of(program, choices)).canonical

    choices = {a: jnp.asarray(x) for a, x in state[0].items()}
    return stage(run, (program, choices), name="moved")
