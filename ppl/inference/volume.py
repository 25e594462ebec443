"""The change of volume by a map of choices, on the continuous coordinates that exist."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl._types import Choices
from ppl.distributions import biject_to
from ppl.errors import UnsupportedError, at, message
from ppl.inference.trace_kernel import over
from ppl.semantics.weighted import Trace
from ppl.sites import SiteInfo

#: Choices by address, of several programs.
State = tuple[Choices, ...]


def log_volume(
    transform: Callable[[State], State],
    state: State,
    names: Sequence[tuple[int, str]],
    before: Sequence[Trace],
    after: Sequence[Trace],
) -> tuple[Any, Any]:
    """Give log |det| of a map, and whether as many coordinates exist after as before.

    Args:
        transform: the map, from choices of all sites to choices of all sites.
        state: where the derivative is taken.
        names: the sites whose coordinates it depends on, by program and address: continuous ones.
        before: the runs that say which coordinates of the state exist.
        after: those that say which of the transformed state do.
    """
    if not names:
        return jnp.zeros(()), jnp.ones((), bool)
    shapes = [state[i][a].shape for i, a in names]
    ends = np.cumsum([np.prod(s, dtype=int) for s in shapes])

    def vector(state: State) -> Any:
        return jnp.concatenate([jnp.ravel(state[i][a]) for i, a in names])

    def transformed(z: Any) -> Any:
        moved = tuple(dict(x) for x in state)
        for (i, a), part, shape in zip(names, jnp.split(z, ends[:-1]), shapes, strict=True):
            moved[i][a] = part.reshape(shape).astype(state[i][a].dtype)
        return vector(transform(moved))

    def exist(traces: Sequence[Trace]) -> Any:
        flags = [traces[i].present.get(a, jnp.ones((), bool)) for i, a in names]
        likes = [state[i][a] for i, a in names]
        pairs = zip(flags, likes, strict=True)
        return jnp.concatenate([jnp.ravel(jnp.broadcast_to(over(f, x), x.shape)) for f, x in pairs])

    rows, columns = exist(after), exist(before)
    matched = jnp.sum(rows) == jnp.sum(columns)
    # Those that exist in front, whatever their order: only the sign depends on it.
    matrix = jax.jacfwd(transformed)(vector(state))
    matrix = matrix[jnp.argsort(~rows)][:, jnp.argsort(~columns)]
    rank = jnp.arange(rows.size)
    inside = rank < jnp.sum(rows)
    matrix = jnp.where(inside[:, None] & inside, matrix, rank[:, None] == rank)
    return jnp.linalg.slogdet(matrix)[1], matched


def require_full(operation: str, site: SiteInfo) -> None:
    """Raise `UnsupportedError` unless values have as many dimensions as coordinates."""
    one = site.placed.site
    assert one.domain is not None
    # Bounds that only a run will tell say nothing of the shape.
    bounds = [x if isinstance(x, np.ndarray) else np.zeros(()) for x in one.domain.bounds]
    try:
        free = biject_to(jax.tree.unflatten(one.domain.tree, bounds)).inverse_shape(one.shape)
    except NotImplementedError:
        free = None
    if free != tuple(one.shape):
        raise UnsupportedError(
            message(
                f"{operation} got a transform of {at(site.address, site.source)}, with support "
                f"{site.support}",
                needs="values with as many dimensions as coordinates",
                why="on a surface a determinant of all coordinates is not the change of volume",
                fix="write the site as a transformed distribution of real sites",
            )
        )
