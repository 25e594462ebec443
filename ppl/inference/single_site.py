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

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp

from ppl import distributions as dist
from ppl._types import pytree, static
from ppl.errors import UnsupportedError, at, check_addresses, message, named_keywords
from ppl.inference.redrawing import Elements, Given, rerun
from ppl.inference.trace_kernel import TraceKernel, accepted, as_addresses
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
    old = rerun("single_site", program, {a: Given(x) for a, x in trace.choices.items()})
    chosen = _chosen(old, names)
    keep = {a: x & ~chosen[a] if a in chosen else x for a, x in old.exists.items()}
    given = {a: Given(trace.choices[a], x if a in drawn else None) for a, x in keep.items()}
    with scope("redraw"):
        new = rerun("single_site", program, given)
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


def _chosen(run: Elements, names: tuple[str, ...]) -> dict[str, Any]:
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
