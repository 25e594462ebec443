"""Values that are the same for all members: computed for one of them.

The candidates of a site are the same for each of its members, and so is much that is computed from
them: the means of a mixture's components, the logarithms of its weights. Such a value has a `core`,
with one element along the axes where all elements are the same. An operation whose operands have
cores is computed on these, and its result repeated, which XLA leaves to those who read it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from ppl import _jax
from ppl.semantics.sums.lane_rules import ELEMENTWISE, REDUCTIONS
from ppl.semantics.sums.lanes import Value

#: The operands cut to one element where that is right, and the operation on them.
Thin = tuple[list[Value], Callable[..., list[Any]]]


def thin(eqn: Any, values: Sequence[Value]) -> Thin | None:
    """Give a smaller computation with the same result up to repetition, if there is one."""
    name = eqn.primitive.name
    if name == "broadcast_in_dim":
        return _broadcast(eqn, values[0])
    if all(v.core is None for v in values):
        return None
    if name in ELEMENTWISE:
        return _elementwise(eqn, values)
    if name in REDUCTIONS:
        return _reduction(eqn, values[0])
    if name in ("transpose", "squeeze"):
        return [_cut(values[0])], lambda *xs: _jax.bind_equation(eqn, xs)
    if name == "reshape":
        return _reshape(eqn, values[0])
    if name == "gather":
        return _gather(eqn, values)
    return None


def _cut(v: Value) -> Value:
    return v if v.core is None else v._replace(array=v.core, core=None)


def _own(v: Value) -> tuple[int, ...]:
    """The sizes of a value's own axes, one where its elements are the same."""
    return np.shape(v.array if v.core is None else v.core)[len(v.dims) :]


def _resized(v: Value, shape: Sequence[int]) -> Value:
    """Repeat a core as far as a shape asks for."""
    core = _cut(v).array
    wanted = (*(d.size for d in v.dims), *shape)
    array = core if np.shape(core) == wanted else jnp.broadcast_to(core, wanted)
    return v._replace(array=array, core=None)


def _elementwise(eqn: Any, values: Sequence[Value]) -> Thin | None:
    shape = eqn.outvars[0].aval.shape
    full = [_own(v) for v in values if len(_own(v)) == len(shape)]
    target = tuple(max(sizes) for sizes in zip(*full, strict=True))
    if target == shape:
        return None
    operands = [_resized(v, target) if len(_own(v)) == len(shape) else v for v in values]
    return operands, lambda *xs: _jax.bind_equation(eqn, xs)


def _broadcast(eqn: Any, v: Value) -> Thin | None:
    shape, places = eqn.params["shape"], eqn.params["broadcast_dimensions"]
    target = [1] * len(shape)
    for size, j in zip(_own(v), places, strict=True):
        target[j] = size
    if tuple(target) == tuple(shape):
        return None
    return [_cut(v)], lambda x: [lax.broadcast_in_dim(x, target, places)]


def _reduction(eqn: Any, v: Value) -> Thin | None:
    shape = eqn.invars[0].aval.shape
    if any(_own(v)[i] != shape[i] for i in eqn.params["axes"]):
        return None
    return [_cut(v)], lambda x: _jax.bind_equation(eqn, [x])


def _reshape(eqn: Any, v: Value) -> Thin | None:
    """Only axes of size one may come and go."""
    old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    if [n for n in old if n != 1] != [n for n in new if n != 1] or math.prod(new) == 0:
        return None
    sizes = iter([own for own, n in zip(_own(v), old, strict=True) if n != 1])
    target = [next(sizes) if n != 1 else 1 for n in new]
    return [_cut(v)], lambda x: [lax.reshape(x, target)]


def _gather(eqn: Any, values: Sequence[Value]) -> Thin | None:
    """Indices that are the same for all members are looked up once, in a table that is too."""
    table, index = values
    numbers = eqn.params["dimension_numbers"]
    pairs = dict(
        zip(numbers.start_indices_batching_dims, numbers.operand_batching_dims, strict=True)
    )
    tables, indices = list(eqn.invars[0].aval.shape), list(eqn.invars[1].aval.shape)
    for i, size in enumerate(_own(index)[:-1]):
        j = pairs.get(i)
        if size == 1 and (j is None or _own(table)[j] == 1):
            indices[i] = 1
            if j is not None:
                tables[j] = 1
    if tuple(indices) == eqn.invars[1].aval.shape:
        return None
    operands = [_resized(table, tables), _resized(index, indices)]
    return operands, lambda *xs: _jax.bind_equation(eqn, xs)
