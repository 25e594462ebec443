"""Checks of a program's inputs: data in their supports, parameters in their domains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ppl import _jax
from ppl.distributions import (
    constraints,
    describe,
    is_masked,
    refuse_parameters,
    violations,
)
from ppl.errors import ObservationError, at, message
from ppl.sites import Check, Input, Table, Unknown


def check_inputs(
    table: Table, consts: Sequence[Any], args: Sequence[Any], operation: str = "sample"
) -> None:
    """Raise if an input that is an observation or a parameter lies outside its domain.

    Only what is known now is checked; what depends on a draw is -inf where it matters.
    """
    values = [*consts, *args]

    def concrete(x: Any) -> Any:
        if isinstance(x, Input):
            x = values[x.index]
        if isinstance(x, (Unknown, jax.ShapeDtypeStruct)) or _jax.is_tracer(x):
            return None
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return None
        return np.asarray(x)

    def in_place(x: Any) -> Any:
        return None if isinstance(x, Input) and x.moved else concrete(x)

    for check in table.checks:
        site, d = check.placed.site, check.distribution
        if check.placed.branches:  # whether the statement is reached, only a run can tell
            continue
        refuse_parameters(site.address, site.source, d, violations(d, in_place))
        value = None if check.value is None else concrete(check.value)
        if value is not None and site.kind == "observed" and not is_masked(d):
            refuse_value(operation, check, value, concrete)


def refuse_value(operation: str, check: Check, value: np.ndarray, concrete: Any) -> None:
    """Raise `ObservationError` if a concrete value is NaN or outside its distribution's support."""
    site = check.placed.site
    nan = np.isnan(value) if value.dtype.kind == "f" else np.zeros(value.shape, bool)
    inside = _inside(check, value, concrete) & ~nan
    if np.all(inside):
        return
    event_dim = min(site.event_dim, value.ndim)
    members = np.all(inside, axis=tuple(range(value.ndim - event_dim, value.ndim)))
    where = tuple(int(i) for i in np.argwhere(~members)[0]) if members.ndim else ()
    index = f" at index {where}" if where else ""
    shown = np.array2string(np.asarray(value[where]), threshold=8, edgeitems=3, precision=6)
    raise ObservationError(
        message(
            f"{operation} got the observation {shown}{index} "
            f"({int(np.sum(~members))} such) at {at(site.address, site.source)}",
            needs=f"values in the support of {describe(check.distribution)}: {site.support}",
            why="its log density is -inf there, so the model says the data are impossible",
            fix="drop or mend the values, or choose a distribution that can produce them",
        )
    )


def _inside(check: Check, value: np.ndarray, concrete: Any) -> np.ndarray:
    """Tell, for each element, whether it lies in the support, as far as the bounds are known.

    The result has the shape of `value`; it is all true where bounds depend on a draw.
    """
    domain = check.placed.site.domain
    moved = isinstance(check.value, Input) and check.value.moved
    everything = np.ones(value.shape, bool)
    if domain is None or not value.size:
        return everything
    known = []
    for bound in domain.bounds:
        source = check.parameters[bound] if isinstance(bound, int) else bound
        number = None if source is None else concrete(source)
        rearranged = moved or (isinstance(source, Input) and source.moved)
        if number is None and len(domain.bounds) == 2 and not moved:  # an interval: one end may do
            number = np.asarray((-np.inf, np.inf)[len(known)])
        if number is None or (number.ndim and (number.shape != value.shape or rearranged)):
            return everything
        known.append(number)
    support = jax.tree.unflatten(domain.tree, known)
    if constraints.is_dependent(support) or (moved and support.event_dim):
        return everything
    inside = np.asarray(support(value))
    return np.broadcast_to(inside.reshape(inside.shape + (1,) * support.event_dim), value.shape)


def observed_values(table: Table, inputs: Sequence[Any]) -> dict[str, np.ndarray]:
    """Give the observations that are inputs or constants, in the shape of their sites."""
    found = {}
    for check in table.checks:
        site, value = check.placed.site, check.value
        if site.kind != "observed":
            continue
        if isinstance(value, Input) and not value.moved:
            value = inputs[value.index]
        if isinstance(value, (Unknown, Input)) or _jax.is_tracer(value):
            continue
        value = np.asarray(value)
        if value.shape == check.placed.shape:
            found[site.address] = value
    return found
