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
    describe_support,
    is_masked,
    refuse_parameters,
    support_of,
    violations,
)
from ppl.errors import ObservationError, at, message
from ppl.sites import Input, Table, Unknown


def check_inputs(table: Table, consts: Sequence[Any], args: Sequence[Any]) -> None:
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
            moved = isinstance(check.value, Input) and check.value.moved
            check_support(site.address, site.source, d, value, concrete, moved=moved)


def check_support(
    address: str, source: str, d: Any, value: np.ndarray, concrete: Any, *, moved: bool
) -> None:
    """Raise `ObservationError` if a concrete value lies outside the distribution's support."""
    support = support_of(d)
    nan = np.isnan(value) if value.dtype.kind == "f" else np.zeros(value.shape, bool)
    inside = _inside(support, value, concrete, moved) & ~nan
    if np.all(inside):
        return
    where = tuple(int(i) for i in np.argwhere(~np.atleast_1d(inside))[0])
    worst = np.atleast_1d(value)[where] if value.ndim else value
    index = f" at index {where}" if np.ndim(inside) else ""
    raise ObservationError(
        message(
            f"sample got the observation {np.array2string(np.asarray(worst))}{index} "
            f"({int(np.sum(~inside))} such) at {at(address, source)}",
            needs=f"values in the support of {describe(d)}: {describe_support(support)}",
            why="its log density is -inf there, so the model says the data are impossible",
            fix="drop or mend the values, or choose a distribution that can produce them",
        )
    )


def _inside(support: Any, value: np.ndarray, concrete: Any, moved: bool) -> np.ndarray:
    """Tell, for each element, whether it lies in the support, as far as the bounds are known.

    The result has the shape of `value`; it is all true where bounds depend on a draw.
    """
    leaves, tree = jax.tree.flatten(support)
    known = [concrete(x) for x in leaves]
    fits = [
        k is not None and (k.ndim == 0 or (k.shape == value.shape and not moved)) for k in known
    ]
    unsure = moved and support.event_dim > 0
    if not all(fits) or unsure or constraints.is_dependent(support):
        return np.ones(value.shape, bool)
    inside = np.asarray(jax.tree.unflatten(tree, known)(value))
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
