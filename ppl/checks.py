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
    refuse_parameters,
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

    for check in table.checks:
        site = check.placed.site
        bad = violations(check.distribution, concrete)
        refuse_parameters(site.address, site.source, check.distribution, bad)
        value = None if check.value is None else concrete(check.value)
        if value is not None and site.kind == "observed":
            check_support(site.address, site.source, check.distribution, value, concrete)


def check_support(address: str, source: str, d: Any, value: np.ndarray, concrete: Any) -> None:
    """Raise `ObservationError` if a concrete value lies outside the distribution's support."""
    support = d.support
    leaves, tree = jax.tree.flatten(support)
    known = [concrete(x) for x in leaves]
    if any(k is None or (k.ndim and k.shape != value.shape) for k in known):
        return
    support = jax.tree.unflatten(tree, known)
    if constraints.is_dependent(support):
        return
    inside = np.asarray(support(value)) & ~np.any(
        np.isnan(value.astype(float)), axis=tuple(range(value.ndim - support.event_dim, value.ndim))
    )
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


def observed_values(table: Table, inputs: Sequence[Any]) -> dict[str, np.ndarray]:
    """The observations that are inputs or constants, in the shape of their sites."""
    found = {}
    for check in table.checks:
        site, value = check.placed.site, check.value
        if site.kind != "observed":
            continue
        if isinstance(value, Input):
            value = inputs[value.index]
        if isinstance(value, Unknown) or _jax.is_tracer(value):
            continue
        value = np.asarray(value)
        if value.shape == check.placed.shape:
            found[site.address] = value
    return found
