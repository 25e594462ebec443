"""Values that depend on summed sites: their dimensions, and where their members are laid.

The elements of one site (the members of its plates and `vmap`s) share one dimension: candidate c
for all of them at once. That is right as long as element i of whatever is computed depends on
member i alone, so every value says along which of its axes the members of which group lie.
Operations that would let members meet raise `Meeting`; see `_lane_rules`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl import _jax
from ppl.primitives import Site

_numbers = itertools.count()


class Group:
    """Members that go together, along one axis; groups that are found to be one are joined."""

    def __init__(self, size: int):
        self.size, self.number = size, next(_numbers)
        self._joined: Group | None = None

    @property
    def root(self) -> Group:
        """The group that stands for all that were joined with this one."""
        return self if self._joined is None else self._joined.root

    def join(self, other: Group) -> Group:
        """Declare two groups one."""
        one, two = self.root, other.root
        if one is not two:
            two._joined = one
        return one


class Dim:
    """One dimension of enumeration: the candidates of a site, the same for all its members."""

    def __init__(self, address: str, size: int, own: Sequence[Group], source: str = ""):
        self.address, self.size, self.source = address, size, source
        self.number, self._groups = next(_numbers), tuple(own)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups whose members choose separately, in the order of the site's axes."""
        return tuple(g.root for g in self._groups)

    def copy(self) -> Dim:
        """Give a dimension of the same candidates and members."""
        return Dim(self.address, self.size, self._groups, self.source)


Labels = tuple[Group | None, ...]


class Meeting(Exception):  # noqa: N818 - caught by `marginalize`, never seen by a user
    """Members of a site meet in an operation."""

    def __init__(self, operation: str, dims: Sequence[Dim] = (), groups: Sequence[Group] = ()):
        super().__init__(operation)
        self.operation, self.dims, self.groups = operation, tuple(dims), tuple(groups)


class Value(NamedTuple):
    """An array with its dimensions in front, and the groups along its own axes.

    `gone` tells why a value cannot be had: it depends on sites that were summed in a loop. `core`
    is the array with one element along axes where all elements are the same; see `_uniform`.
    """

    array: Any
    dims: tuple[Dim, ...] = ()
    labels: Labels = ()
    gone: str = ""
    core: Any = None

    def holding(self, array: Any, core: Any = None) -> Value:
        """Give a value of the same dimensions and members with another array."""
        return self._replace(array=array, core=core)

    @property
    def axes(self) -> Labels:
        """The group of each axis; every group stands at one axis only."""
        if not self.dims:
            return (None,) * np.ndim(self.array)
        labels = tuple(None if g is None else g.root for g in self.labels)
        _refuse_twice(labels, self.dims)
        return labels


def _refuse_twice(labels: Labels, dims: Sequence[Dim]) -> None:
    known = [g for g in labels if g is not None]
    if len(set(known)) < len(known):
        raise Meeting("an operation that pairs members with one another", dims, known)


def union(values: Sequence[Value]) -> tuple[Dim, ...]:
    """The dimensions of several values, in order of creation."""
    dims = {d for v in values for d in v.dims}
    return tuple(sorted(dims, key=lambda d: d.number))


def lift(fun: Any, values: Sequence[Value]) -> tuple[tuple[Dim, ...], list[Any]]:
    """Apply a function of the bare arrays, once for every combination of candidates."""
    dims = union(values)
    for d in reversed(dims):
        fun = jax.vmap(fun, in_axes=tuple(0 if d in v.dims else None for v in values))
    return dims, fun(*[v.array for v in values])


def member_axes(site: Site) -> tuple[int, ...]:
    """The sizes of the axes along which a site has members: of `vmap`s and its batch shape."""
    own = site.shape[: len(site.shape) - site.event_dim]
    return (*site.sizes, *own)


def candidates(site: Site, values: np.ndarray, joint: bool) -> Value:
    """The candidate values of a site as a value with a new dimension.

    With `joint`, every combination over the members is a candidate of its own.
    """
    sizes = member_axes(site)
    event = values.shape[1:]
    values = values.astype(site.dtype)
    if joint:
        count = math.prod(sizes)
        index = np.indices((len(values),) * count).reshape(count, -1).T
        array = values[index].reshape(-1, *sizes, *event)
        dim = Dim(site.address, len(array), (), site.source)
        return Value(array, (dim,), (None,) * (array.ndim - 1))
    labels = tuple(Group(n) if n > 1 else None for n in sizes)
    dim = Dim(site.address, len(values), [g for g in labels if g is not None], site.source)
    one = values.reshape(len(values), *(1,) * len(sizes), *event)
    array = np.broadcast_to(one, (len(values), *sizes, *event))
    return Value(array, (dim,), (*labels, *(None,) * len(event)), core=one)


def pinned(log_weight: Value, present: Value, dim: Dim) -> Value:
    """Weigh a site that may be absent: an absent one counts once, as its first candidate."""

    def pin(weight: Any, present: Any, first: Any) -> Any:
        flag = jnp.reshape(present, jnp.shape(present) + (1,) * (weight.ndim - jnp.ndim(present)))
        return jnp.where(flag, weight, jnp.where(first, 0.0, -jnp.inf))

    first = Value(np.arange(dim.size) == 0, (dim,), ())
    values = [log_weight, present, first]
    dims, array = lift(pin, values)
    flags = present.axes + (None,) * (len(log_weight.axes) - len(present.axes))
    return Value(array, dims, merge(log_weight.axes, flags))


def merge(*labels: Labels) -> Labels:
    """Merge the labels of operands that an operation pairs element by element."""
    out = []
    for axis in zip(*labels, strict=True):
        known = [g.root for g in axis if g is not None]
        first = known[0] if known else None
        for other in known[1:]:
            first = first.join(other) if first is not None else other
        out.append(first)
    return tuple(out)


def is_literal(atom: Any) -> bool:
    """Tell whether an operand is a literal of the jaxpr."""
    return isinstance(atom, _jax.Literal)
