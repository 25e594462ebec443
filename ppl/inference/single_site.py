"""`single_site`: Metropolis-Hastings that redraws one site of a program and replays the rest.

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
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp

from ppl import distributions as dist
from ppl._types import pytree, static
from ppl.context import current_context
from ppl.errors import UnsupportedError, at, check_addresses, message, named_keywords
from ppl.inference.trace_kernel import TraceKernel, accepted, as_addresses, over
from ppl.interpreter import Frame, Interpreter, evaluate
from ppl.primitives import Site, log_prob, sample_p, value_of, with_operand
from ppl.program import Program
from ppl.semantics.kernel import choose
from ppl.semantics.weighted import Trace
from ppl.statements import sample, scope


@named_keywords
def single_site(addresses: Sequence[str] | None = None) -> SingleSite:
    """Make the kernel that redraws one site from its distribution, given the others.

    **Meaning.** Leaves the program's measure on choices invariant, exactly, and is reversible.
    Sites may be discrete or continuous and may come and go with branches. The site is drawn from
    its own distribution, whatever depends on it: where that is far from the posterior, moves are
    rejected.

    Args:
        addresses: the sites that may be chosen; None for all. Others keep their values as long as
            they exist, and are drawn where a move brings them into being.

    Returns:
        A `Kernel`. (A run in which none of the addresses exists stays as it is.)

    Raises:
        AddressError: (when called) an address is not a latent site of the program.
        UnsupportedError: (when called) a site that may be drawn has an improper flat prior.

    Source: Wingate, Stuhlmueller and Goodman (2011), with the ratio of Hastings and Green as in
    Ścibior et al. (POPL 2018).
    """
    return SingleSite(as_addresses("single_site", addresses))


@pytree
class SingleSite(TraceKernel):
    """The kernel of `single_site`."""

    addresses: tuple[str, ...] | None = static()

    operation: ClassVar[str] = "single_site"

    def move(self, trace: Trace) -> Trace:
        """Redraw one site, and accept by q n / (p m)."""
        if not trace.choices:
            return trace
        found = propose(trace, self.addresses)
        ratio = found.log_q - found.log_p + jnp.log(found.n) - jnp.log(found.m)
        return choose(accepted(ratio), found.trace, trace)


class Proposal(NamedTuple):
    """A proposed trace, what its acceptance depends on, and whether other sites exist in it."""

    trace: Trace
    log_p: Any
    log_q: Any
    n: Any
    m: Any
    branched: Any


def propose(trace: Trace, addresses: Sequence[str] | None = None) -> Proposal:
    """Redraw one site and replay; `log_p` and `log_q` are the log weights of old and new."""
    program = trace._known_program("single_site")
    names = tuple(trace.choices) if addresses is None else tuple(addresses)
    drawn = _drawn(program, names)
    old = _run(_Reading(), program, trace.choices)
    chosen = _chosen(old, names)
    keep = {a: x & ~chosen[a] if a in chosen else x for a, x in old.exists.items()}
    given = {a: _Kept(trace.choices[a], keep[a]) for a in keep}
    with scope("redraw"):
        new = _run(_Redrawing(current_context().prefix, drawn), program, given)
    forth = {a: new.exists[a] & ~keep[a] for a in drawn}
    back = {a: old.exists[a] & ~(keep[a] & new.exists[a]) for a in drawn}
    moved = trace.with_choices(new.choices)
    branched = jnp.array([jnp.any(old.exists[a] != new.exists[a]) for a in keep])
    return Proposal(
        moved,
        _divided(trace.log_density, old.total(back)),
        _divided(moved.log_density, new.total(forth)),
        jnp.maximum(old.size(names), 1),  # without any site nothing is drawn, and n / m is 1
        jnp.maximum(new.size(names), 1),
        jnp.any(branched),
    )


def _divided(log_density: Any, log_drawn: Any) -> Any:
    """Divide the draws of the move out; an impossible run has weight zero, whatever was drawn."""
    possible = log_density > -jnp.inf
    return jnp.where(possible, log_density - jnp.where(possible, log_drawn, 0.0), -jnp.inf)


def _drawn(program: Program, names: tuple[str, ...]) -> tuple[str, ...]:
    """List the sites that a move may draw: those to choose from, and those that come and go."""
    check_addresses("single_site", names, program.latents)
    sites = [s for s in program.sites if s.address in names or s.conditional]
    for site in sites:
        if site.kind == "latent" and site.improper:
            raise UnsupportedError(
                message(
                    f"single_site got the improper flat prior at {at(site.address, site.source)}",
                    needs="sites that can be drawn from their distributions",
                    why="a flat prior on an unbounded set has no total mass to normalise by",
                    fix="ppl.kernels.single_site(addresses=[...]) for the others, and "
                    f'ppl.kernels.random_walk(scale, addresses=["{site.address}"]) for this one',
                )
            )
    return tuple(s.address for s in sites if s.kind == "latent")


def _chosen(run: _Run, names: tuple[str, ...]) -> dict[str, Any]:
    """Choose one of the elements that exist, uniformly; none if there is none."""
    flat = jnp.concatenate([run.exists[a].reshape(-1) for a in names])
    probs = jnp.where(jnp.any(flat), flat / jnp.maximum(jnp.sum(flat), 1), 1 / flat.size)
    index = sample("site", dist.CategoricalProbs(probs))
    chosen, start = {}, 0
    for address in names:
        flags = run.exists[address]
        here = start + jnp.arange(flags.size).reshape(flags.shape)
        chosen[address] = flags & (here == index)
        start += flags.size
    return chosen


# --- Runs, element by element -------------------------------------------------------------------


class _Element(NamedTuple):
    """At one address: the value, and elementwise the log density of drawing it."""

    value: Any
    log_density: Any


class _Kept(NamedTuple):
    """At one address: the old value, and elementwise whether it is kept."""

    value: Any
    keep: Any


class _Reading(Interpreter):
    """Note what drawing the given values would have had for density."""

    name = "single_site"
    unbounded = False

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        if site.kind != "latent":
            return value_of(site, leaves)
        plain, bare = with_operand(site, leaves, "scale", None, mapped=False)
        value = self.latent(frame, plain, bare)
        frame.record(site, leaves, _Element(value, log_prob(plain, bare, value)))
        return value

    def latent(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        return frame.given[site.address]

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        """The density is that of the new trace, which is computed from its choices."""


class _Redrawing(_Reading):
    """Keep given elements, draw the others; note values and the density that drawing has."""

    def __init__(self, prefix: str, drawn: tuple[str, ...]):
        self.prefix, self.drawn = prefix, drawn

    def latent(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        old, keep = frame.given[site.address]
        if site.address not in self.drawn:
            return old
        renamed = dataclasses.replace(site, address=self.prefix + site.address)
        drawn = sample_p.bind(*leaves, site=renamed)[0]
        return jnp.where(over(keep, drawn), old, drawn)


class _Run(NamedTuple):
    """The elements of a run by address: values, densities of drawing them, which exist."""

    choices: dict[str, Any]
    log_density: dict[str, Any]
    exists: dict[str, Any]

    def size(self, names: tuple[str, ...]) -> Any:
        """The number of elements that exist."""
        return sum(jnp.sum(self.exists[a]) for a in names)

    def total(self, flags: dict[str, Any]) -> Any:
        """The log density of drawing the elements where the flags hold."""
        parts = (jnp.where(f, self.log_density[a], 0.0) for a, f in flags.items())
        return sum(jnp.sum(x) for x in parts)


def _run(interpreter: Interpreter, program: Program, given: dict[str, Any]) -> _Run:
    s = program.structure
    records = evaluate(interpreter, s.jaxpr, program.consts, program.args, given=given).records
    choices, density, exists = {}, {}, {}
    for address, (element, present) in records.items():
        density[address] = element.log_density
        flag = jnp.ones((), bool) if present is None else present
        shape = element.log_density.shape
        exists[address] = jnp.broadcast_to(over(flag, element.log_density), shape)
        there = over(exists[address], element.value)
        choices[address] = jnp.where(there, element.value, 0).astype(element.value.dtype)
    return _Run(choices, density, exists)
