"""`recover`: draw what `marginalize` summed out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from ppl.errors import (
    AddressError,
    ObservationError,
    at,
    check_addresses,
    message,
    named_keywords,
)
from ppl.program import Program, require_program
from ppl.semantics.density import joint as evaluate_joint
from ppl.semantics.marginal import MADE, as_written, roles_of, sum_out, without_meetings
from ppl.semantics.sums.backward import Draws, go_back, values_of
from ppl.sites import SiteInfo
from ppl.staging import stage


@named_keywords
def recover(program: Program, choices: Mapping[str, ArrayLike]) -> Program:
    """Draw what was summed out, given the other choices.

    **Meaning.** The exact conditional distribution of the latent sites that `choices` lacks, given
    `choices` and the data: a program without scores. Where the choices have density 0 there is
    none, and what is drawn means nothing.

    Args:
        program: what `marginalize` gave, or the program itself.
        choices: values of the other latent sites, all with the same axes in front, if any:
            `chains.draws` will do. Deterministics among them are ignored.

    Returns:
        A program of a dict, by address: the sites drawn, and the deterministics that depend on
        them; each with the axes in front that the choices have.

    Raises:
        AddressError: an address is unknown.
        ObservationError: a value has another shape than its site.
        UnsupportedError: as `marginalize`; or a site stands in several branches.

    Source: Rabiner 1989, section III; Chib 1996 (backward sampling).
    """
    require_program("recover", program)
    summed: tuple[str, ...] | None = None
    if program.structure in MADE:
        (program, summed, _), _ = program.structure.arguments(program.args)
    as_written("recover", program)
    latents = [s for s in program.sites if s.kind == "latent"]
    known = {a: x for a, x in choices.items() if a not in program.sites or _is_latent(program, a)}
    check_addresses("recover", known, program.latents)
    if summed is None:
        summed = tuple(a for a in program.latents if a not in known)
    lead, given = _leading(latents, summed, known)
    name = f"recover({program.name})"
    return without_meetings(
        "recover",
        lambda joint: stage(_recover, (program, given, summed, joint, lead), name=name),
    )


def _is_latent(program: Program, address: str) -> bool:
    return program.sites[address].kind != "deterministic"


def _leading(
    latents: Sequence[SiteInfo], summed: Sequence[str], choices: Mapping[str, Any]
) -> tuple[int, dict[str, Any]]:
    """Find how many axes the choices have in front of those of their sites."""
    given, lead = {}, None
    for site in latents:
        if site.address in summed:
            continue
        if site.address not in choices:
            raise AddressError(
                message(
                    f'recover got no value for "{site.address}"',
                    needs="a value for every latent site that was not summed out",
                    fix="pass chains.draws, or trace.choices",
                )
            )
        value = jnp.asarray(choices[site.address])
        count = value.ndim - len(site.shape)
        front = value.shape[: max(count, 0)]
        if value.shape[max(count, 0) :] != site.shape or lead not in (None, front):
            raise ObservationError(
                message(
                    f"recover got a value of shape {value.shape} at "
                    f"{at(site.address, site.source)}",
                    needs=f"shape (..., {', '.join(map(str, site.shape))}), with the same axes in "
                    "front for all addresses",
                    why="the axes in front count draws",
                    fix="pass chains.draws, or trace.choices",
                )
            )
        given[site.address], lead = value.astype(site.dtype), front
    return len(lead or ()), given


def _recover(
    program: Program,
    choices: dict[str, Any],
    summed: tuple[str, ...],
    joint: tuple[str, ...],
    lead: int,
) -> Any:
    roles = roles_of(program, summed)
    moved = [a for a in program.sites.addresses("deterministic") if a in roles.scored]

    def one(choices: dict[str, Any]) -> dict[str, Any]:
        _, _, region = sum_out(program, roles, choices, joint, taped=True)
        draws = Draws()
        go_back(region.tape or [], draws)
        values = values_of(region.found, draws)
        if moved:
            records = evaluate_joint(program, {**choices, **values}).sites
            values |= {a: records[a].value.value for a in moved}
        return values

    for _ in range(lead):
        one = jax.vmap(one)
    return one(choices)
