"""`gibbs`: exact draws of discrete latents, one address at a time, given all other choices.

The conditional distribution of an address comes from the terms of the density that depend on it. It
is drawn in one of two ways.

*At once.* Where the program's operations show that members are independent given the rest, each
member has a table of its own: K evaluations serve all of them. In a `scan`, the forward algorithm
sums over the past and the draw goes back: the iterations are one exact joint draw. This is what
`ppl.marginalize` and `ppl.recover` derive.

*In turn.* Where members meet (neighbours in a lattice), or a held site could come into being or go,
the members are drawn one after the other, each given the others. A value for which other held sites
would exist is impossible then: those would have no values, or lose them. So the move is exact in
the set of states with the same sites.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import CategoricalLogits

from ppl import distributions as dist
from ppl._types import pytree, static
from ppl.errors import UnsupportedError, at, check_addresses, message, named_keywords
from ppl.finite import MOST_VALUES, bare, finite_values
from ppl.inference.trace_kernel import TraceKernel, as_addresses
from ppl.semantics.marginal import finite_latents, sum_out
from ppl.semantics.slices import SlicedDensity, sliced_density
from ppl.semantics.sums.backward import Draws, go_back, values_of
from ppl.semantics.sums.elimination import Elimination, laid_out
from ppl.semantics.sums.flat import Roles
from ppl.semantics.sums.lanes import Meeting
from ppl.semantics.weighted import Trace
from ppl.sites import Check, SiteInfo
from ppl.statements import sample


@named_keywords
def gibbs(*, addresses: Sequence[str] | str | None = None) -> Gibbs:
    """Make the kernel that draws finite latents from their exact conditional distributions.

    **Meaning.** Leaves the program's measure on choices invariant, exactly. Addresses are drawn one
    after the other, each given all else. Members of a plate, `vmap` or `scan` that are found to be
    independent, or to form a chain in a `scan`, are drawn at once; others in turn, in their order.
    Of one address that is drawn at once, or has one member, the move is reversible; a sweep is not.
    A site that does not exist in a run, because its branch is not taken, stays so; so does every
    held site that exists.

    Args:
        addresses: the latents to draw, in this order; None for all of finite support. All others
            are held.

    Returns:
        A `Kernel`.

    Raises:
        AddressError: (when called) an address is not a latent site of the program.
        UnsupportedError: (when called) a support is not finite, or not known when the program is
            staged; or no latent is finite.

    Source: Geman and Geman (1984); Chib (1996) for chains; the tables as in Obermeyer et al.
    (2019).
    """
    return Gibbs(as_addresses("gibbs", addresses))


@pytree
class Gibbs(TraceKernel):
    """The kernel of `gibbs`."""

    addresses: tuple[str, ...] | None = static()

    operation: ClassVar[str] = "gibbs"

    def move(self, trace: Trace) -> Trace:
        """Draw the addresses one after the other."""
        program = trace._known_program("gibbs")
        names = finite_latents(program) if self.addresses is None else self.addresses
        check_addresses("gibbs", names, program.latents)
        if not names:
            raise UnsupportedError(
                message(
                    f"gibbs got {program.name}, which has no latent site of finite support",
                    needs="a discrete latent site with finitely many values",
                    why=f"its latent sites are {', '.join(program.latents) or 'none'}",
                    fix="ppl.kernels.hmc(0.1, 10), or ppl.kernels.single_site()",
                )
            )
        choices = dict(trace.choices)
        for address in names:
            checks = [c for c in program.sites.checks if c.placed.site.address == address]
            density = sliced_density(program, address)
            drawn = _at_once(density, choices, address, checks)
            if drawn is None:
                values = candidates(program.sites[address], checks)
                drawn = _in_turn(density, choices, address, values)
            choices[address] = drawn
        return trace.with_choices(choices)


def _at_once(
    density: SlicedDensity, choices: Mapping[str, Any], address: str, checks: Sequence[Check]
) -> Any:
    """Draw all members from tables of their own; None where there are none."""
    roles = Roles(frozenset([address]), density.terms - {address})
    if len(checks) > 1:  # a site in each of several branches, which have tables of their own
        return None
    if bare(checks[0].distribution).event_dim != checks[0].placed.site.event_dim:
        return None  # an event of elements that choose separately
    try:
        _, _, region = sum_out(density.given(choices), roles, choices, (), taped=True)
    except (Meeting, UnsupportedError):
        return None
    draws, tape = Draws(), region.tape or []
    if len(tape) == 1 and isinstance(tape[0], Elimination):  # no loop: nothing else was summed
        dim, table = tape[0]
        logits = jnp.moveaxis(laid_out(table, [dim], dim.groups), 0, -1)
        draws.indices[dim] = sample(f"{address}/draw", ByInversion(logits))
    else:
        go_back(tape, draws)
    return values_of(region.found, draws)[address]


def _in_turn(density: SlicedDensity, choices: Mapping[str, Any], address: str, values: Any) -> Any:
    """Draw the members one after the other, each given the others."""
    shape = jnp.shape(choices[address])
    event = np.shape(values)[1:]
    values = jnp.asarray(values, choices[address].dtype)

    def step(members: Any, i: Any) -> Any:
        def with_value(value: Any) -> Any:
            return density.at({**choices, address: members.at[i].set(value).reshape(shape)})

        new, old = jax.vmap(with_value)(values), with_value(members[i])
        weights = jnp.where(jnp.isnan(new.log_density), -jnp.inf, new.log_density)
        for a, flag in old.present.items():
            axes = tuple(range(1, jnp.ndim(flag) + 1))
            weights = jnp.where(jnp.all(new.present[a] == flag, axes), weights, -jnp.inf)
        possible = jnp.any(weights > -jnp.inf)  # staying is right where nothing is
        logits = jnp.where(possible, weights, 0.0)
        index = sample(f"{address}/draw", ByInversion(logits))
        return members.at[i].set(jnp.where(possible, values[index], members[i])), None

    members = choices[address].reshape(-1, *event)
    members, _ = jax.lax.scan(step, members, jnp.arange(len(members)))
    return members.reshape(shape)


class ByInversion(CategoricalLogits):
    """A categorical distribution that takes one uniform number a draw, not one for each value.

    The law is the same, up to the spacing of the uniform numbers. A value of probability zero is
    never drawn; where all have, the index means nothing.
    """

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Draw an index: the first whose cumulative weight exceeds a uniform part of the total."""
        logits: Any = self.logits
        weights = jnp.exp(logits - jnp.max(logits, -1, keepdims=True))
        # However the sums are rounded, an index without weight is never the first.
        sums = jnp.where(weights > 0, jnp.cumsum(weights, -1), 0.0)
        shape = (*sample_shape, *self.batch_shape)
        part = jax.random.uniform(key, shape, sums.dtype) * jnp.max(sums, -1)
        last = sums.shape[-1] - 1
        return jnp.min(jnp.where(part[..., None] < sums, jnp.arange(last + 1), last), -1)


# --- What values there are ----------------------------------------------------------------------


def candidates(site: SiteInfo, checks: Sequence[Check]) -> np.ndarray:
    """List the values that one member of a site may take, in any of its branches.

    Raises:
        UnsupportedError: they are not finitely many, or not known when the program is staged.
    """
    found = [_values(site, c) for c in checks]
    return np.unique(np.concatenate(found), axis=0)


def _values(site: SiteInfo, check: Check) -> np.ndarray:
    where, d = at(site.address, site.source), check.distribution
    if not site.discrete:
        raise UnsupportedError(
            message(
                f"gibbs got the continuous site {where} ({site.distribution}) among its addresses",
                needs="discrete latent sites of finite support",
                why="its conditional distribution is no table",
                fix=f'ppl.kernels.hmc(0.1, 10, addresses=["{site.address}"]), or any kernel of '
                f'yours under ppl.kernels.on(["{site.address}"], kernel)',
            )
        )
    domain, own = check.placed.site.domain, hasattr(bare(d), "finite_values")
    known = domain is not None and not any(b is None or isinstance(b, int) for b in domain.bounds)
    if not own and known:
        event = site.shape[len(site.shape) - check.placed.site.event_dim :]
        d = dist.ImproperUniform(jax.tree.unflatten(domain.tree, domain.bounds), (), event)  # pyright: ignore
    try:
        if own or known:
            return finite_values(d, operation="gibbs", address=site.address, source=site.source)
        fault = "is not known when the program is staged"
    except UnsupportedError:
        fault = f"has more than {MOST_VALUES} values"
    raise UnsupportedError(
        message(
            f"gibbs got {site.distribution} at {where}, whose support {fault}",
            needs="finitely many values, the same in every run",
            why="all of them are to be listed",
            fix=f'ppl.kernels.single_site(addresses=["{site.address}"])',
        )
    )
