"""Handlers: `condition`, `do`, `replay`, `scale`, `mask`. Each maps a program to a program."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from ppl import _jax
from ppl.distributions import Delta
from ppl.errors import ArgumentError, ObservationError, at, check_addresses, message, named_keywords
from ppl.interpreter import Frame, Interpreter, evaluate
from ppl.primitives import Operands, Site, bind, facts, lanes, with_operand
from ppl.program import Program, require_program
from ppl.semantics.density import match_choices
from ppl.semantics.weighted import Trace
from ppl.sites import SiteInfo
from ppl.staging import stage


class Rewriting(Interpreter):
    """Rebind every site; those with a given value are changed by `rewrite` first."""

    name = "a handler"

    def rewrite(self, site: Site, leaves: list[Any], value: Any) -> tuple[Site, list[Any]]:
        raise NotImplementedError

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        return self._bind(frame, site, leaves)[0]

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        self._bind(frame, site, leaves)

    def _bind(self, frame: Frame, site: Site, leaves: list[Any]) -> list[Any]:
        if site.address in frame.given:
            site, leaves = self.rewrite(site, leaves, frame.given[site.address])
        return bind(site, leaves)


def lifted(site: Site, leaves: Sequence[Any], fun: Any, *extras: Any) -> tuple[Site, list[Any]]:
    """Change a site's operands lane by lane with `fun(operands, *extras)`."""
    operands = lanes(site, fun)(leaves, *extras)
    flat, tree = jax.tree.flatten(operands)
    batch = tuple(level._replace(mapped=(True,) * len(flat)) for level in site.batch)
    return dataclasses.replace(site, tree=tree, batch=batch), flat


class _Condition(Rewriting):
    name = "condition"

    def rewrite(self, site: Site, leaves: list[Any], value: Any) -> tuple[Site, list[Any]]:
        site, leaves = with_operand(site, leaves, "value", value, mapped=True)
        return dataclasses.replace(site, kind="observed", dtype=value.dtype), leaves


class _Do(Rewriting):
    name = "do"

    def rewrite(self, site: Site, leaves: list[Any], value: Any) -> tuple[Site, list[Any]]:
        return fixed(site, leaves, value)


class Pointing(Rewriting):
    """Make a site's distribution a point mass at the given value."""

    name = "replay"

    def rewrite(self, site: Site, leaves: list[Any], value: Any) -> tuple[Site, list[Any]]:
        def one(operands: Operands, value: Any) -> Operands:
            point = Delta(value, event_dim=site.event_dim)
            return operands._replace(distribution=point)

        changed = facts(Delta(jnp.zeros(site.shape), event_dim=site.event_dim))
        site, leaves = lifted(site, leaves, one, value)
        return dataclasses.replace(site, **{**changed, "discrete": site.discrete}), leaves


class _Unobserve(Rewriting):
    name = "unobserve"

    def rewrite(self, site: Site, leaves: list[Any], value: Any) -> tuple[Site, list[Any]]:
        site, leaves = with_operand(site, leaves, "value", None, mapped=False)
        return dataclasses.replace(site, kind="latent"), leaves


class _Scale(Rewriting):
    name = "scale"
    fixes = False

    def rewrite(self, site: Site, leaves: list[Any], value: Any) -> tuple[Site, list[Any]]:
        if site.operands(leaves).scale is None:
            return with_operand(site, leaves, "scale", value, mapped=True)

        def one(operands: Operands, value: Any) -> Operands:
            return operands._replace(scale=operands.scale * value)

        return lifted(site, leaves, one, value)


class _Mask(Rewriting):
    name = "mask"
    fixes = False

    def rewrite(self, site: Site, leaves: list[Any], value: Any) -> tuple[Site, list[Any]]:
        def one(operands: Operands, keep: Any) -> Operands:
            if operands.distribution is None:
                return operands._replace(value=jnp.where(keep, operands.value, 0.0))
            return operands._replace(distribution=operands.distribution.mask(keep))

        return lifted(site, leaves, one, value)


def fixed(site: Site, leaves: list[Any], value: Any) -> tuple[Site, list[Any]]:
    """Make a site a recorded constant."""
    for name in ("distribution", "scale"):
        site, leaves = with_operand(site, leaves, name, None, mapped=False)
    site, leaves = with_operand(site, leaves, "value", value, mapped=True)
    return dataclasses.replace(site, kind="deterministic", dtype=value.dtype), leaves


def _rewrite(kind: type[Rewriting], program: Program, given: dict[str, Any]) -> Any:
    s = program.structure
    outs = evaluate(kind(), s.jaxpr, program.consts, program.args, given=given).outs
    return s.rebuild(outs)


def _apply(kind: type[Rewriting], program: Program, given: Mapping[str, Any]) -> Program:
    return stage(_rewrite, (kind, program, dict(given)), name=program.name, operation=kind.name)


@named_keywords
def condition(program: Program, values: Mapping[str, ArrayLike]) -> Program:
    """Observe latent sites.

    **Meaning.** The measure restricted to runs with these values, each weighted by its density: the
    sites become observations.

    Args:
        program: any program.
        values: a value of the site's full shape for each address to observe.

    Raises:
        AddressError: an address is unknown, or not latent.
        ObservationError: a value has another shape or dtype, or lies outside the support.
    """
    return _apply(_Condition, program, match_choices("condition", program, values, complete=False))


@named_keywords
def do(program: Program, values: Mapping[str, ArrayLike]) -> Program:
    """Intervene: set sites to values, whatever would have produced them.

    **Meaning.** The measure of the program in which the statements are replaced by the values;
    nothing is scored for them. It differs from `condition` where the sites have causes that are
    shared with others.
    """
    kinds = ("latent", "observed", "deterministic")
    given = match_choices("do", program, values, complete=False, kinds=kinds)
    return _apply(_Do, program, given)


@named_keywords
def replay(program: Program, choices: Mapping[str, ArrayLike] | Trace) -> Program:
    """Let latent sites return given values with probability one; the others draw as before.

    **Meaning.** The measure in which each named site's distribution is a point mass. Nothing is
    scored for the values (`condition` does that) and the sites stay choices (with `do` they do
    not).
    """
    values = choices.choices if isinstance(choices, Trace) else choices
    return _apply(Pointing, program, match_choices("replay", program, values, complete=False))


@named_keywords
def unobserve(program: Program, addresses: Sequence[str] | None = None) -> Program:
    """Draw observed sites instead of scoring them; what uses their values uses the draws.

    Args:
        program: any program.
        addresses: the observations to free; None for all.
    """
    require_program("unobserve", program)
    chosen = program.observed if addresses is None else tuple(addresses)
    check_addresses("unobserve", chosen, program.observed)
    return _apply(_Unobserve, program, {a: _marker(program.sites[a]) for a in chosen})


def _marker(site: SiteInfo) -> Any:
    return jnp.zeros(site.placed.prefix, bool)


@named_keywords
def scale(program: Program, factor: ArrayLike, addresses: Sequence[str] | None = None) -> Program:
    """Raise the densities of sites to a power.

    **Meaning.** Each named site contributes its density to the power `factor`: an observation
    counts `factor` times; a latent site is still drawn from its distribution and the run weighted
    by its density to the power `factor - 1`.

    Args:
        program: any program.
        factor: a non-negative number.
        addresses: the sites; None for every latent, observed and factor site.
    """
    kinds = ("latent", "observed", "factor")
    chosen = _chosen("scale", program, addresses, kinds)
    value = jnp.asarray(factor, jnp.result_type(float))
    if value.ndim or (not _jax.is_tracer(value) and not value >= 0):
        raise ArgumentError(
            message(
                f"scale got the factor {factor}",
                needs="one non-negative number",
                why="a negative power of a density is not a measure's density",
                fix="ppl.scale(program, 0.5)",
            )
        )
    shapes = {a: program.sites[a].placed.prefix for a in chosen}
    given = {a: jnp.broadcast_to(value, s) for a, s in shapes.items()}
    return _apply(_Scale, program, given)


@named_keywords
def mask(program: Program, keep: ArrayLike, addresses: Sequence[str] | None = None) -> Program:
    """Leave out part of the scores.

    **Meaning.** Elements of observations and factors where `keep` is false weigh nothing.

    Args:
        program: any program.
        keep: a bool, or an array of bools of the sites' batch shape (plates, vmaps and scans).
        addresses: observed or factor sites; None for all of them.
    """
    chosen = _chosen("mask", program, addresses, ("observed", "factor"))
    given = {}
    for address in chosen:
        site = program.sites[address]
        shape = site.shape[: len(site.shape) - site.placed.site.event_dim]
        flags = jnp.asarray(keep)
        if flags.dtype != bool or flags.shape not in ((), shape):
            raise ObservationError(
                message(
                    f"mask got {flags.dtype} of shape {flags.shape} for {at(address, site.source)}",
                    needs=f"bool of shape () or {shape}",
                    why="every element of the site is kept or left out",
                    fix="ppl.mask(program, keep, addresses=[...]) for sites of one shape",
                )
            )
        given[address] = jnp.broadcast_to(flags, shape)
    return _apply(_Mask, program, given)


def _chosen(
    operation: str, program: Program, addresses: Sequence[str] | None, kinds: tuple[str, ...]
) -> tuple[str, ...]:
    require_program(operation, program)
    known = [s.address for s in program.sites if s.kind in kinds]
    if addresses is None:
        return tuple(known)
    if isinstance(addresses, str):
        addresses = [addresses]
    check_addresses(operation, addresses, known)
    return tuple(addresses)
