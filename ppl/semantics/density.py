"""`log_density`: the joint density of choices and scores, as a plain differentiable function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike

from ppl import _jax
from ppl._types import PyTree, Scalar
from ppl.errors import (
    AddressError,
    ObservationError,
    UnsupportedError,
    at,
    check_addresses,
    message,
    suggest,
)
from ppl.interpreter import Frame, Record, evaluate
from ppl.primitives import Site, factor, log_prob
from ppl.program import Program, require_program
from ppl.semantics.weighted import Weighing, concrete
from ppl.sites import SiteInfo


class Density(Weighing):
    """Take latent values from the given choices and add their log densities."""

    name = "log_density"
    unbounded, settled = False, True

    def __init__(self, *, record: bool = False):
        self.keep = record

    def latent(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        value = frame.given[site.address]
        self.observed(frame, site, leaves, value)
        return value

    def observed(self, frame: Frame, site: Site, leaves: list[Any], value: Any) -> None:
        elementwise = log_prob(site, leaves, value)
        frame.add(jnp.sum(elementwise))
        if self.keep:
            frame.record(site, leaves, Sitewise(value, elementwise))

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        elementwise = factor(site, leaves)
        frame.add(jnp.sum(elementwise))
        if self.keep:
            frame.record(site, leaves, Sitewise(elementwise, elementwise))

    def deterministic(self, frame: Frame, site: Site, leaves: list[Any], value: Any) -> None:
        if self.keep:
            frame.record(site, leaves, Sitewise(value, jnp.zeros(site.sizes)))


class Sitewise(NamedTuple):
    """A site's value and its elementwise log density."""

    value: Array
    log_density: Array


class Joint(NamedTuple):
    """A program's value at given choices, its log density, and every site's share of it."""

    value: PyTree
    log_density: Scalar
    sites: dict[str, Record]


def log_density(program: Program, choices: Mapping[str, ArrayLike]) -> Scalar:
    """Evaluate the log joint density at given choices.

    **Meaning.** The sum, in nats, of the log densities of all latent sites at `choices`, of the
    observations, and of the factors: the density of the program's measure on choices. It is -inf
    outside the support. Differentiable in the choices and in the program's arrays, and vmappable.

    Args:
        program: any program whose latent sites are bounded in number.
        choices: a value of the site's full shape for every latent address; those of branches that
            are not taken are ignored, but must be there.

    Raises:
        AddressError: an address is missing or unknown.
        ObservationError: a choice has another shape or dtype than its site.
        UnsupportedError: a latent site stands in a `while_loop`.
    """
    given = match_choices("log_density", program, choices)
    if concrete(program, given):
        return _compiled(program, given)
    return _log_density(program, given)


def _log_density(program: Program, given: dict[str, Any]) -> Any:
    s = program.structure
    return evaluate(Density(), s.jaxpr, program.consts, program.args, given=given).weight


_compiled = jax.jit(_log_density)


def joint(program: Program, choices: Mapping[str, Any]) -> Joint:
    """Evaluate value, log density and every site's elementwise share at given choices."""
    s = program.structure
    outs, weight, records = evaluate(
        Density(record=True), s.jaxpr, program.consts, program.args, given=choices
    )
    return Joint(s.rebuild(outs), weight, records)


def match_choices(
    operation: str,
    program: Program,
    choices: Mapping[str, Any],
    *,
    complete: bool = True,
    kinds: tuple[str, ...] = ("latent",),
) -> dict[str, Any]:
    """Check that values fit the sites they are for, and make them arrays of the sites' dtypes."""
    require_program(operation, program)
    if not isinstance(choices, Mapping):
        raise AddressError(
            message(
                f"{operation} got choices of type {type(choices).__name__}",
                needs="a mapping from addresses to values",
                fix="pass trace.choices, or {'address': value}",
            )
        )
    known = [s for s in program.sites if s.kind in kinds]
    addresses = [s.address for s in known]
    for address in choices:
        if address not in addresses and address in program.sites:
            kind = program.sites[address].kind
            raise AddressError(
                message(
                    f'{operation} got a value for "{address}", which is {kind}',
                    needs=f"addresses of {' or '.join(kinds)} sites",
                    why=suggest(address, addresses),
                    fix=f'leave "{address}" out',
                )
            )
    check_addresses(operation, choices, addresses)
    for site in known:
        if site.address in choices and site.placed.whiles:
            raise UnsupportedError(
                message(
                    f"{operation} got a value for {at(site.address, site.source)}, which stands in "
                    "a while_loop",
                    needs="a site that occurs a known number of times",
                    why="the loop may draw it any number of times",
                    fix="use jax.lax.scan, where the value has one row per iteration",
                )
            )
    missing = [a for a in addresses if a not in choices]
    if complete and missing:
        raise AddressError(
            message(
                f"{operation} got no value for " + ", ".join(f'"{a}"' for a in missing),
                needs="a value for every latent site",
                why="the density is that of all choices together",
                fix="add the values, or sum the sites out first",
            )
        )
    return {
        s.address: _fit(operation, s, choices[s.address]) for s in known if s.address in choices
    }


def _fit(operation: str, site: SiteInfo, value: Any) -> Any:
    where = at(site.address, site.source)
    array = value if _jax.is_tracer(value) or isinstance(value, jax.Array) else np.asarray(value)
    if tuple(array.shape) != site.shape:
        raise ObservationError(
            message(
                f"{operation} got a value of shape {tuple(array.shape)} at {where}",
                needs=f"shape {site.shape}",
                why="the value stands for every plate, vmap and scan axis of the site",
                fix=f"jnp.broadcast_to(value, {site.shape}) if one value is meant for all",
            )
        )
    kind = array.dtype.kind if array.dtype.name != "bfloat16" else "f"
    if kind not in "biuf" or (kind == "f" and not jnp.issubdtype(site.dtype, jnp.floating)):
        raise ObservationError(
            message(
                f"{operation} got a value of dtype {array.dtype} at {where}",
                needs=f"a value that {np.dtype(site.dtype).name} can hold exactly",
                fix=f"value.astype({np.dtype(site.dtype).name!r}) if that is meant",
            )
        )
    if kind != "f":
        return jnp.asarray(array, site.dtype)
    return jnp.asarray(array)
