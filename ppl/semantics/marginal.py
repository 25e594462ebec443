"""`marginalize`: sum finite sites out of a program."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import _jax
from ppl.distributions import constraints, support_of  # pyright: ignore
from ppl.errors import UnsupportedError, at, check_addresses, message, named_keywords
from ppl.finite import bare
from ppl.interpreter import Frame, Interpreter, evaluate
from ppl.primitives import Operands, Site, facts, lanes, sample_p, value_of
from ppl.program import Program, inline, require_program
from ppl.semantics.handlers import lifted
from ppl.semantics.stepwise import in_scans, sum_in_steps
from ppl.semantics.sums.elimination import eliminate
from ppl.semantics.sums.flat import Roles, flatten
from ppl.semantics.sums.lanes import Meeting, Value
from ppl.semantics.sums.region import Region, Run
from ppl.staging import stage
from ppl.statements import factor

#: Members that meet are summed jointly, if they have no more than so many combinations.
MOST_COMBINATIONS = 1024

#: Structures that `marginalize` made: their first argument is the program, the second the sites.
MADE: weakref.WeakSet[Any] = weakref.WeakSet()


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class SummedOut:
    """Stands where a return value depends on sites that were summed out; `ppl.recover` has it."""

    addresses: tuple[str, ...]


class _Keeping(Interpreter):
    """Keep the sites that stay; leave out what is scored together with the summed ones.

    A summed site becomes a constant here: nothing that reads it is used.
    """

    name = "marginalize"
    unbounded = False
    weighs = True  # in the sense that a rule of the user cannot know what it does

    def __init__(self, roles: Roles):
        self.roles = roles

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        if site.address in self.roles.summed:
            return lanes(site, _some_value(site))(leaves)
        if site.kind == "deterministic":
            if site.address in self.roles.scored:
                return value_of(site, leaves)
            return super().sample(frame, site, leaves)
        scored = site.address in self.roles.scored
        if site.kind == "observed":
            return value_of(site, leaves) if scored else super().sample(frame, site, leaves)
        if scored:
            site, leaves = _flat_prior(site, leaves)
        value = sample_p.bind(*leaves, site=site)[0]
        frame.record(site, leaves, value)
        return value

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        if site.address not in self.roles.scored:
            super().score(frame, site, leaves)


def _some_value(site: Site) -> Any:
    def one(operands: Operands) -> Any:
        assert operands.distribution is not None
        support = support_of(operands.distribution)
        return support.feasible_like(jnp.zeros(site.shape)).astype(site.dtype)

    return one


def _flat_prior(site: Site, leaves: list[Any]) -> tuple[Site, list[Any]]:
    """Keep a site's place and support; its density is part of the sum."""
    from numpyro.distributions import ImproperUniform

    def one(operands: Operands) -> Operands:
        d = operands.distribution
        assert d is not None
        flat = ImproperUniform(d.support, d.batch_shape, d.event_shape)  # pyright: ignore
        return operands._replace(distribution=flat, scale=None)

    new, flat = lifted(site, leaves, one)
    known = new.operands(flat).distribution
    assert known is not None
    changed = {**facts(known), "discrete": site.discrete, "event_dim": site.event_dim}
    return dataclasses.replace(new, **changed), flat


@named_keywords
def marginalize(
    program: Program, addresses: Sequence[str] | None = None, in_steps: bool = False
) -> Program:
    """Sum finite latent sites out.

    **Meaning.** The same measure on the other choices: the log density of the result at `rest` is
    the logarithm of the sum, over all values z of the summed sites, of the program's density at
    `{**rest, **z}`. Sums are taken member by member over plates and `vmap`s, and by the forward
    algorithm over `scan`. The derivative with respect to a probability that is exactly 0 is given
    as 0.

    The sums are one factor. A latent site whose distribution depends on a summed one keeps its
    address and support; its density is in that factor, so that it has a flat prior and cannot be
    drawn. Parts of the return value that depend on summed sites are `SummedOut`, deterministics
    that do are left out; `ppl.recover` gives both back.

    Args:
        program: any program.
        addresses: the sites to sum out; None for every latent site of finite support.
        in_steps: sum sites in a `scan` within their iteration, so that the loop goes on scoring
            step by step and `ppl.smc` can resample between them (Rao-Blackwellised filters).
            Nothing outside of the iteration may read such a site.

    Raises:
        AddressError: an address is unknown or not latent.
        UnsupportedError: a site's support is not finite or not known when the program is staged;
            members of a site meet in an operation, and have too many combinations; a carry or a
            score depends on all iterations of a loop; a site stands in a while_loop.

    Source: Obermeyer et al. 2019, *Tensor variable elimination for plated factor graphs*; Rabiner
    1989, section III (the forward algorithm).
    """
    require_program("marginalize", program)
    if isinstance(addresses, str):
        addresses = [addresses]
    if addresses is None:
        chosen = finite_latents(program)
    else:
        check_addresses("marginalize", addresses, program.latents)
        chosen = tuple(a for a in program.latents if a in set(addresses))
    if not chosen:
        return program
    program = as_written("marginalize", program)
    name = f"marginalize({program.name})"
    if in_steps and in_scans(program, chosen):
        out = stage(_in_steps, (program, chosen, ()), name=name)
        MADE.add(out.structure)
        return out
    out = without_meetings(
        "marginalize", lambda joint: stage(_marginal, (program, chosen, joint), name=name)
    )
    MADE.add(out.structure)
    return out


def _in_steps(program: Program, addresses: tuple[str, ...], _: Any) -> Any:
    rest = tuple(a for a in addresses if a not in in_scans(program, addresses))
    looped = tuple(a for a in addresses if a not in rest)
    stepping = stage(sum_in_steps, (program, looped, marginalize), name=program.name)
    return inline(marginalize(stepping, rest) if rest else stepping)


def as_written(operation: str, program: Program) -> Program:
    """Raise unless the program's constants are those of its text, which tell sizes of supports."""
    for mine, text in zip(program.consts, program.structure.consts, strict=True):
        known = not _jax.is_tracer(mine) and not _jax.is_tracer(text)
        if known and mine is not text and not np.array_equal(mine, text, equal_nan=True):
            raise UnsupportedError(
                message(
                    f"{operation} got the program {program.name} with a constant that was changed "
                    "after staging",
                    needs="a program whose constants are those the model was written with",
                    why="the values that a site can take are listed from the model's text",
                    fix="make what changes an argument of the model",
                )
            )
    return program


def finite_latents(program: Program) -> tuple[str, ...]:
    """List the latent sites of finite support."""
    found = set()
    for check in program.sites.checks:
        site = check.placed.site
        if site.kind == "latent" and (
            hasattr(bare(check.distribution), "finite_values") or _is_finite(site)
        ):
            found.add(site.address)
    return tuple(a for a in program.latents if a in found)


def _is_finite(site: Site) -> bool:
    if site.domain is None:
        return False
    support = jax.tree.unflatten(site.domain.tree, site.domain.bounds)
    while isinstance(support, type(constraints.independent(constraints.real, 1))):
        support = support.base_constraint
    kinds = (type(constraints.integer_interval(0, 1)), type(constraints.multinomial(1)))
    return support is constraints.boolean or isinstance(support, kinds)


def without_meetings(operation: str, attempt: Any) -> Any:
    """Call `attempt(joint)`, summing sites jointly whose members turn out to meet."""
    joint: tuple[str, ...] = ()
    while True:
        try:
            return attempt(joint)
        except Meeting as meeting:
            sizes = {d: d.size ** math.prod(g.size for g in d.groups) for d in meeting.dims}
            more = {d.address for d, n in sizes.items() if d.groups and n <= MOST_COMBINATIONS}
            if not more - set(joint):
                raise _meeting_error(operation, meeting, sizes) from None
            joint = tuple(sorted({*joint, *more}))


def _meeting_error(operation: str, meeting: Meeting, sizes: Mapping[Any, int]) -> Exception:
    dims = sorted(sizes, key=lambda d: d.number)
    names = ", ".join(dict.fromkeys(at(d.address, d.source) for d in dims)) or "a summed site"
    counts = ", ".join(dict.fromkeys(f"{n:.3g}" for n in sizes.values())) or "too many"
    return UnsupportedError(
        message(
            f"{operation} got {names}, whose members meet in {meeting.operation}",
            needs=f"members that stay apart, or at most {MOST_COMBINATIONS} combinations of them",
            why=f"members that meet have to be summed jointly: {counts} combinations",
            fix="compute with the members along their own axis, or sum fewer of them",
        )
    )


def roles_of(program: Program, summed: Sequence[str]) -> Roles:
    """Find the sites whose scores belong to the sum: those that read a summed site."""
    reading = set(summed)
    while True:
        more = {
            s.address
            for s in program.sites
            if s.kind in ("deterministic", "observed") and reading & set(s.depends_on)
        }
        if more <= reading:
            break
        reading |= more
    scored = {s.address for s in program.sites if reading & {*s.depends_on, s.address}}
    return Roles(frozenset(summed), frozenset(scored - set(summed)))


def sum_out(
    program: Program, roles: Roles, given: Mapping[str, Any], joint: Sequence[str], taped: bool
) -> tuple[Any, list[Value], Region]:
    """Give the log of the sum, the program's flat outputs, and the region, at given choices."""
    s = program.structure
    flat = flatten(s.jaxpr, roles, whole=True)
    results, flat = flat.outs, flat._replace(outs=())  # a result keeps no dimension alive
    region = Region(Run(frozenset(joint), taped), flat, given)
    arrays = [*program.consts, *program.args]
    region.env.update({slot: Value(x) for slot, x in zip(flat.ins, arrays, strict=True)})
    # Constants of the program's text, such as the count of a binomial, tell the size of a support.
    if not any(map(_jax.is_tracer, s.consts)):
        region.facts.update(zip(flat.ins, map(np.asarray, s.consts), strict=False))
    region.execute()
    factors = eliminate(region.factors, lambda d: False, region.tape)
    zero = jnp.zeros((), jnp.result_type(float))
    weight = sum([*region.weights, *(f.array for f in factors)], zero)
    outs = [region.read(a) for a in results]
    return weight, outs, region


def _marginal(program: Program, addresses: tuple[str, ...], joint: tuple[str, ...]) -> Any:
    s = program.structure
    roles = roles_of(program, addresses)
    outs, _, records = evaluate(_Keeping(roles), s.jaxpr, program.consts, program.args)
    given = {a: r.value for a, r in records.items()}
    weight, values, _ = sum_out(program, roles, given, joint, taped=False)
    factor(f"marginal({', '.join(addresses)})", weight)
    mark = SummedOut(addresses)
    return s.rebuild([mark if v.dims or v.gone else x for v, x in zip(values, outs, strict=True)])
