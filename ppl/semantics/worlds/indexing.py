"""JAX's operations that move elements, in NumPy, over many worlds at once: see `arrays`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def spread(x: np.ndarray, ndim: int) -> np.ndarray:
    """Put axes of size one behind the axis of worlds of a scalar, to broadcast."""
    return x.reshape(x.shape + (1,) * (ndim - x.ndim)) if x.ndim == 1 else x


def _together(arrays: Sequence[Any]) -> list[Any]:
    """Give all arrays as many worlds as the most have."""
    most = max(x.shape[0] for x in arrays)
    return [np.broadcast_to(x, (most, *x.shape[1:])) for x in arrays]


def _broadcast_in_dim(params: Any, out: Any, x: Any, *dynamic: Any) -> Any:
    shape, dims = params["shape"], params["broadcast_dimensions"]
    kept = [1] * len(shape)
    for axis, d in enumerate(dims):
        kept[d] = x.shape[axis + 1]
    return np.broadcast_to(x.reshape(x.shape[0], *kept), (x.shape[0], *shape))


def _reshape(params: Any, out: Any, x: Any, *dynamic: Any) -> Any:
    if params.get("dimensions") is not None:
        return NotImplemented
    return x.reshape(x.shape[0], *out.shape)


def _squeeze(params: Any, out: Any, x: Any) -> Any:
    return x.reshape(x.shape[0], *out.shape)


def _transpose(params: Any, out: Any, x: Any) -> Any:
    return np.transpose(x, (0, *(a + 1 for a in params["permutation"])))


def _rev(params: Any, out: Any, x: Any) -> Any:
    return np.flip(x, tuple(a + 1 for a in params["dimensions"]))


def _concatenate(params: Any, out: Any, *xs: Any) -> Any:
    return np.concatenate(_together(xs), axis=params["dimension"] + 1)


def _split(params: Any, out: Any, x: Any) -> Any:
    edges = np.cumsum(params["sizes"])[:-1]
    return list(np.split(x, edges, axis=params["axis"] + 1))


def _iota(params: Any, out: Any, *dynamic: Any) -> Any:
    shape, d = params["shape"], params["dimension"]
    line = np.arange(shape[d]).reshape([-1 if i == d else 1 for i in range(len(shape))])
    return np.broadcast_to(line, shape)[None]


def _pad(params: Any, out: Any, x: Any, value: Any) -> Any:
    x, value = _together([x, value])
    result = np.empty((x.shape[0], *out.shape), x.dtype)
    result[...] = spread(value, result.ndim)
    place: list[Any] = [slice(None)]
    for axis, (low, high, inner) in enumerate(params["padding_config"]):
        if low < 0 or high < 0:
            return NotImplemented
        place.append(slice(low, low + (x.shape[axis + 1] - 1) * (inner + 1) + 1, inner + 1))
    if math.prod(x.shape):
        result[tuple(place)] = x
    return result


def _slice(params: Any, out: Any, x: Any) -> Any:
    strides = params["strides"] or (1,) * (x.ndim - 1)
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return x[(slice(None), *(slice(*b) for b in bounds))]


def _starts(x: Any, starts: Sequence[Any], sizes: Sequence[int]) -> Any:
    """Move a window's corner, given for every world, so that it lies inside the array."""
    pairs = zip(starts, x.shape[1:], sizes, strict=True)
    return [np.clip(s.astype(np.int64), 0, n - k) for s, n, k in pairs]


def _window(x: np.ndarray, starts: Sequence[np.ndarray], sizes: Sequence[int]) -> tuple[Any, ...]:
    """Index the same window size at a corner of its own in every world."""
    ndim = 1 + len(sizes)
    parts: list[Any] = [np.arange(x.shape[0]).reshape(-1, *[1] * len(sizes))]
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True), start=1):
        line = np.arange(size).reshape([-1 if i == axis else 1 for i in range(ndim)])
        parts.append(spread(start, ndim) + line)
    return tuple(parts)


def _dynamic_slice(params: Any, out: Any, x: Any, *corner: Any) -> Any:
    sizes = params["slice_sizes"]
    starts = _starts(x, corner, sizes)
    if all(s.shape[0] == 1 for s in starts):
        places = (slice(int(s[0]), int(s[0]) + k) for s, k in zip(starts, sizes, strict=True))
        return x[(slice(None), *places)]
    x, *starts = _together([x, *starts])
    return x[_window(x, starts, sizes)]


def _dynamic_update_slice(params: Any, out: Any, x: Any, update: Any, *corner: Any) -> Any:
    sizes = update.shape[1:]
    x, update, *starts = _together([x, update, *_starts(x, corner, sizes)])
    result = x.copy()
    result[_window(x, starts, sizes)] = update
    return result


def _sort(params: Any, out: Any, *xs: Any) -> Any:
    axis = params["dimension"] + 1
    if len(xs) == 1:
        return [np.sort(xs[0], axis=axis, kind="stable")]
    if params["num_keys"] != 1:
        return NotImplemented
    columns = _together(xs)
    order = np.argsort(columns[0], axis=axis, kind="stable")
    return [np.take_along_axis(x, order, axis=axis) for x in columns]


def _dot_general(params: Any, out: Any, x: Any, y: Any) -> Any:
    (cx, cy), (bx, by) = params["dimension_numbers"]

    def laid(a: Any, contracted: Any, batched: Any, last: bool) -> tuple[Any, Any]:
        """Lay the axes out as worlds, batch, and two of free and contracted elements."""
        free = [i for i in range(a.ndim - 1) if i not in contracted and i not in batched]
        sizes = [math.prod(a.shape[i + 1] for i in group) for group in (free, contracted)]
        order = [*batched, *free, *contracted] if last else [*batched, *contracted, *free]
        moved = np.transpose(a, (0, *(i + 1 for i in order)))
        batch = [a.shape[i + 1] for i in batched]
        two = sizes if last else sizes[::-1]
        return moved.reshape(a.shape[0], *batch, *two), [a.shape[i + 1] for i in free]

    left, free_x = laid(x, cx, bx, True)
    right, free_y = laid(y, cy, by, False)
    kind = out.dtype if out.dtype.kind == "f" else None
    product = np.matmul(left.astype(kind or left.dtype), right.astype(kind or right.dtype))
    return product.reshape(product.shape[0], *[x.shape[i + 1] for i in bx], *free_x, *free_y)


# --- Gather and scatter -------------------------------------------------------------------------


def _places(
    shape: Sequence[int],
    indices: np.ndarray,
    index_map: Sequence[int],
    sizes: Sequence[int],
    flat: Sequence[int],
    batch: Sequence[int],
    index_batch: Sequence[int],
    mode: str,
) -> tuple[list[np.ndarray], np.ndarray | None]:
    """Index an operand's axes over (worlds, index batch, window), with what lies inside.

    `flat` are operand axes whose window has size one and no axis; `batch` those that go along with
    the axes `index_batch` of the indices.
    """
    rank = indices.ndim - 2
    window = [d for d in range(len(shape)) if d not in flat and d not in batch]
    ndim = 1 + rank + len(window)
    inside = None
    places = []
    for d, size in enumerate(shape):
        if d in batch:
            axis = 1 + list(index_batch)[list(batch).index(d)]
            line = np.arange(size).reshape([-1 if i == axis else 1 for i in range(ndim)])
            places.append(line)
            continue
        start: Any = np.zeros((1,) * ndim, np.int64)
        if d in index_map:
            raw = indices[..., list(index_map).index(d)].astype(np.int64)
            raw = raw.reshape(raw.shape + (1,) * len(window))
            start = np.clip(raw, 0, size - sizes[d])
            if mode == "FILL_OR_DROP":
                fits = raw == start
                inside = fits if inside is None else inside & fits
        if d in window:
            axis = 1 + rank + window.index(d)
            start = start + np.arange(sizes[d]).reshape(
                [-1 if i == axis else 1 for i in range(ndim)]
            )
        places.append(start)
    return places, inside


def _mode(params: Any) -> str:
    return str(getattr(params["mode"], "name", params["mode"])).rpartition(".")[2]


def _gather(params: Any, out: Any, x: Any, indices: Any) -> Any:
    numbers, mode = params["dimension_numbers"], _mode(params)
    flat, batch = numbers.collapsed_slice_dims, numbers.operand_batching_dims
    places, inside = _places(
        x.shape[1:],
        indices,
        numbers.start_index_map,
        params["slice_sizes"],
        flat,
        batch,
        numbers.start_indices_batching_dims,
        mode,
    )
    rank = indices.ndim - 2
    ndim = 1 + rank + len(numbers.offset_dims)
    worlds = np.arange(x.shape[0]).reshape(-1, *[1] * (ndim - 1))
    found = x[(worlds, *places)]
    if inside is not None and not np.all(inside):
        fill = params["fill_value"]
        if fill is None:
            fill = np.nan if x.dtype.kind == "f" else _extreme(x.dtype)
        found = np.where(inside, found, np.asarray(fill, x.dtype))
    most = max(x.shape[0], indices.shape[0])
    batch_sizes = indices.shape[1:-1]
    kept = [k for d, k in enumerate(params["slice_sizes"]) if d not in flat and d not in batch]
    found = np.broadcast_to(found, (most, *batch_sizes, *kept))
    offset = [d + 1 for d in numbers.offset_dims]
    others = [a for a in range(1, ndim) if a not in offset]
    return np.moveaxis(found, range(1, ndim), [*others, *offset])


def _extreme(dtype: Any) -> Any:
    """What JAX fills with where an index lies outside of an integer array."""
    if dtype.kind == "b":
        return True
    info = np.iinfo(dtype)
    return info.min if dtype.kind == "i" else info.max


def _scatter(ufunc: Any) -> Any:
    def rule(params: Any, out: Any, x: Any, indices: Any, updates: Any) -> Any:
        numbers, mode = params["dimension_numbers"], _mode(params)
        flat, batch = numbers.inserted_window_dims, numbers.operand_batching_dims
        rank = indices.ndim - 2
        window = [a + 1 for a in numbers.update_window_dims]
        others = [a for a in range(1, updates.ndim) if a not in window]
        updates = np.transpose(updates, (0, *others, *window))
        kept = [d for d in range(x.ndim - 1) if d not in flat and d not in batch]
        sizes = [1] * (x.ndim - 1)
        for d, size in zip(kept, updates.shape[1 + rank :], strict=True):
            sizes[d] = size
        places, inside = _places(
            x.shape[1:],
            indices,
            numbers.scatter_dims_to_operand_dims,
            sizes,
            flat,
            batch,
            numbers.scatter_indices_batching_dims,
            # A window that does not fit is left out, unless clipping was asked for.
            "CLIP" if mode == "CLIP" else "FILL_OR_DROP",
        )
        x, indices, updates = _together([x, indices, updates])
        worlds = np.arange(x.shape[0]).reshape(-1, *[1] * (updates.ndim - 1))
        full = [np.broadcast_to(p, updates.shape) for p in (worlds, *places)]
        keep = np.broadcast_to(True if inside is None else inside, updates.shape)
        index = tuple(p[keep] for p in full)
        result = x.copy()
        if ufunc is None:
            result[index] = updates[keep]
        else:
            ufunc.at(result, index, updates[keep])
        return result

    return rule


RULES = {
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "rev": _rev,
    "concatenate": _concatenate,
    "split": _split,
    "iota": _iota,
    "pad": _pad,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "sort": _sort,
    "dot_general": _dot_general,
    "gather": _gather,
    "scatter": _scatter(None),
    "scatter-add": _scatter(np.add),
    "scatter_add": _scatter(np.add),
    "scatter-mul": _scatter(np.multiply),
    "scatter_mul": _scatter(np.multiply),
    "scatter-max": _scatter(np.maximum),
    "scatter_max": _scatter(np.maximum),
    "scatter-min": _scatter(np.minimum),
    "scatter_min": _scatter(np.minimum),
}
