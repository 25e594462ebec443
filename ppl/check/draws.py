"""Many independent draws of a program, as a matrix with one column for each test function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ppl._types import PyTree
from ppl.errors import ArgumentError, ResultError, message
from ppl.program import Program
from ppl.semantics.run import draw_flat

_BLOCK = 1024  # every call draws whole blocks, so that one compilation serves all numbers
_LEAST, _GREATEST, _PAIRED = 8, 4, 4  # components of least and greatest variance, directions
_FAR = 10.0  # a standardised coordinate beyond this counts as this far in a combination
_ROUNDING = 1e-9  # variance, relative to the greatest, that rounding of single precision explains


def draw_many(program: Program, key: Array, num: int, block: int = _BLOCK) -> PyTree:
    """Draw `num` independent values; every array of the value gets a leading axis, on the host."""
    count = -(-num // block)
    parts = [_blocks(program, k, block) for k in jax.random.split(key, count)]
    flat = [np.concatenate([_host(x) for x in column])[:num] for column in zip(*parts, strict=True)]
    return program.structure.rebuild(flat)


def _host(x: Array) -> Any:
    """Bring an array to the host; a PRNG key as its bits."""
    keys = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if keys else x)


def _block(program: Program, key: Array, size: int) -> list[Array]:
    return jax.vmap(draw_flat, in_axes=(None, 0))(program, jax.random.split(key, size))


_blocks = jax.jit(_block, static_argnums=2)


class Columns(NamedTuple):
    """Numbers by draw and coordinate, and the coordinates' names."""

    names: tuple[str, ...]
    matrix: Float[Any, "draws columns"]


class Sample(NamedTuple):
    """Draws by column, and their log weights (None: all equal, and the mass one)."""

    columns: Columns
    log_weights: Float[Any, " draws"] | None = None
    rounding: float = 0.0


def columns(operation: str, value: PyTree) -> Columns:
    """Lay every array of a value with a leading axis of draws out in columns."""
    names, parts = [], []
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        if not hasattr(leaf, "dtype"):
            continue  # a static value is part of the structure
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            leaf = np.stack([np.real(leaf), np.imag(leaf)], axis=-1)
        flat = np.asarray(leaf).reshape(len(leaf), -1).astype(np.float64)
        names += [_label(path, i) for i in np.ndindex(leaf.shape[1:])]
        parts.append(flat)
    if not parts or not names:
        raise ArgumentError(
            message(
                f"{operation} got a program whose value holds no array",
                needs="at least one number to look at",
                fix="return the variables of interest, or give statistics=",
            )
        )
    return Columns(tuple(names), np.concatenate(parts, axis=1))


def _label(path: Sequence[Any], index: tuple[int, ...] = ()) -> str:
    keys = [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
    name = ".".join(keys) or "value"
    return f"{name}[{','.join(map(str, index))}]" if index else name


def log_weights(operation: str, log_weight: Any) -> Float[Any, " draws"]:
    """Check log weights, and give them in double precision."""
    out = np.asarray(log_weight, np.float64)
    if np.any(np.isnan(out) | (out == np.inf)):
        raise ResultError(
            message(
                f"{operation} got a run of log weight {out[np.isnan(out) | (out == np.inf)][0]}",
                needs="weights that are finite numbers",
                why="a measure gives every run a finite weight",
                fix="ppl.trace(program, key) shows the choices of such a run",
            )
        )
    return out


Features = Callable[[Float[Any, "draws columns"]], Float[Any, "draws features"]]


def features(
    names: Sequence[str], pilot: Float[Any, "draws columns"], rng: np.random.Generator
) -> tuple[tuple[str, ...], Features]:
    """Choose test functions: every coordinate, and combinations that see several at once.

    The combinations are principal components of the pilot draws, above all those of least variance
    (they tell how a choice sits among its data, which no single coordinate does), and random
    directions, in which all components weigh the same.
    """
    finite = np.where(np.isfinite(pilot), pilot, np.nan)
    finite = np.where(np.isnan(finite).all(axis=0), 0.0, finite)
    low, centre, high = np.nanquantile(finite, [0.16, 0.5, 0.84], axis=0)
    rare = np.nanmean(np.abs(finite - centre), axis=0)  # for values that nearly always agree
    spread = np.where(high > low, (high - low) / 2, rare)
    varies = np.flatnonzero(spread > 0)

    def standardised(matrix: Any) -> Any:
        x = (matrix[:, varies] - centre[varies]) / spread[varies]
        return np.clip(np.nan_to_num(x, nan=_FAR), -_FAR, _FAR)

    components = _components(standardised(pilot)) if len(varies) > 1 else np.zeros((len(varies), 0))
    paired = _PAIRED if components.shape[1] > 1 else 0
    random = components @ rng.normal(size=(components.shape[1], paired))
    kept = _outer(components)
    directions = np.concatenate([kept, random], axis=1)
    labels = [f"component {i + 1}" for i in range(kept.shape[1])]
    labels += [f"direction {i + 1}" for i in range(paired)]

    def apply(matrix: Float[Any, "draws columns"]) -> Float[Any, "draws features"]:
        matrix = np.where(np.isnan(matrix), np.inf, matrix)
        return np.concatenate([matrix, standardised(matrix) @ directions], axis=1)

    return (*names, *labels), apply


def _components(standard: Float[Any, "draws columns"]) -> Float[Any, "columns components"]:
    """Principal components, of rising variance, scaled to variance one; without those of none."""
    variances, vectors = np.linalg.eigh(np.atleast_2d(np.cov(standard, rowvar=False)))
    real = variances > _ROUNDING * variances[-1]
    return vectors[:, real] / np.sqrt(variances[real])


def _outer(components: Float[Any, "columns components"]) -> Float[Any, "columns kept"]:
    count = components.shape[1]
    if count <= _LEAST + _GREATEST:
        return components
    return np.concatenate([components[:, :_LEAST], components[:, -_GREATEST:]], axis=1)
