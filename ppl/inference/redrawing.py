"""Runs of a program in which some elements of the choices are given, and the others drawn.

An element of a plate, a lane of a `vmap` and an iteration of a `scan` are elements of a site. What
is noted by element: the value, the density that drawing it has, and whether it exists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from ppl.context import current_context
from ppl.errors import OpenObservationsError, at, message
from ppl.inference.trace_kernel import over
from ppl.interpreter import Frame, Interpreter, evaluate
from ppl.primitives import Site, log_prob, sample_p, value_of, with_operand
from ppl.program import Program
from ppl.semantics.weighted import Trace


class Given(NamedTuple):
    """At one address: values, and which elements have them; None for all."""

    value: Any
    keep: Any = None


class Elements(NamedTuple):
    """The elements of a run by address: values, densities of drawing them, which exist."""

    choices: dict[str, Any]
    log_density: dict[str, Any]
    exists: dict[str, Any]

    def total(self, flags: Mapping[str, Any]) -> Any:
        """Give the log density of drawing the elements where the flags hold."""
        parts = (jnp.where(f, self.log_density[a], 0.0) for a, f in flags.items())
        return sum((jnp.sum(x) for x in parts), jnp.zeros((), jnp.result_type(float)))

    def size(self, addresses: Iterable[str]) -> Any:
        """Give the number of elements that exist."""
        return sum(jnp.sum(self.exists[a]) for a in addresses)


def rerun(operation: str, program: Program, given: Mapping[str, Given]) -> Elements:
    """Run a program as a part of the model being traced, with some elements given.

    **Meaning.** What is not given is drawn from its distribution, without a scale; nothing is
    scored. The value of an element that does not exist is zero.

    Args:
        operation: what error messages say was called.
        program: the program; its latent sites are bounded in number.
        given: by address, values of the site's full shape; all of an absent address is drawn.
    """
    s, redrawing = program.structure, _Redrawing(operation, current_context().prefix)
    records = evaluate(redrawing, s.jaxpr, program.consts, program.args, given=given).records
    choices, density, exists = {}, {}, {}
    for address, ((value, log_density), present) in records.items():
        flag = jnp.ones((), bool) if present is None else present
        density[address] = log_density
        exists[address] = like(flag, log_density)
        choices[address] = jnp.where(over(flag, value), value, 0).astype(value.dtype)
    return Elements(choices, density, exists)


def like(flag: Any, elements: Any) -> Any:
    """Give a flag of elements the shape of other elements of the same values.

    Both lie along the leading axes of the values; behind those that both have, the flag is constant
    or the elements are one.
    """
    flag = jnp.any(flag, tuple(range(jnp.ndim(elements), jnp.ndim(flag))))
    return jnp.broadcast_to(over(flag, elements), jnp.shape(elements))


def canonical(trace: Trace) -> Trace:
    """Put zeros where choices do not exist, so that what reads the trace sees only the run."""
    return dataclasses.replace(trace, choices=trace.canonical[0])


def refuse_scores(subject: str, program: Program) -> None:
    """Raise `OpenObservationsError` unless a program of draws, such as a proposal, only draws."""
    for site in program.structure.open_scores:
        raise OpenObservationsError(
            message(
                f"{subject} that scores at {at(site.address, site.source)}",
                needs="a model function without observations, factors or scaled sites",
                why="the density of its draws would have to be normalised",
                fix="draw only, with ppl.sample(address, distribution)",
            )
        )


class _Redrawing(Interpreter):
    """Keep given elements, draw the others; note values and the density that drawing has."""

    unbounded = False

    def __init__(self, operation: str, prefix: str):
        self.name, self.prefix = operation, prefix

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        if site.kind != "latent":
            return value_of(site, leaves)
        plain, bare = with_operand(site, leaves, "scale", None, mapped=False)
        value = self._value(frame.given.get(site.address), plain, bare)
        frame.record(site, leaves, (value, log_prob(plain, bare, value)))
        return value

    def _value(self, given: Given | None, site: Site, leaves: list[Any]) -> Any:
        if given is not None and given.keep is None:
            return given.value
        renamed = dataclasses.replace(site, address=self.prefix + site.address)
        drawn = sample_p.bind(*leaves, site=renamed)[0]
        return drawn if given is None else jnp.where(over(given.keep, drawn), given.value, drawn)

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        """Nothing is scored: densities are those of traces, computed from their choices."""
