"""The values a site can take in each world, with their masses; and what a site scores."""

from __future__ import annotations

import dataclasses
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl import _jax
from ppl.finite import apart, bare, finite_values, invalid, is_point
from ppl.primitives import Operands, Site, factor, lanes, log_prob, presence, value_of, with_operand
from ppl.semantics.worlds import arrays, quadrature, refusals


class Candidates(NamedTuple):
    """Values and log masses of a site's elements, by world.

    `values` is (1 or worlds, value, 1 or element, *event); `log_mass` and `coarse` (under the
    coarser half of a quadrature rule) are (1 or worlds, value, element), -inf for what cannot be.
    `there` tells of each (1 or worlds, element) whether the branch it stands in was taken.
    """

    values: np.ndarray
    log_mass: np.ndarray
    coarse: np.ndarray | None = None
    there: np.ndarray | None = None


def candidates(site: Site, leaves: Sequence[np.ndarray], worlds: int, nodes: int) -> Candidates:
    """List the values that a latent site can take in each world.

    Args:
        site: the site.
        leaves: its operands, with an axis of worlds.
        worlds: the number of worlds.
        nodes: the number of quadrature nodes of a continuous site; 0 for a finite one.
    """
    coarse, site = None, _apart(site)
    there = None
    if site.operands(leaves).present is not None:
        (there,) = _run(site, _present, leaves, worlds)
        there = there.reshape(there.shape[0], 1, -1)
    if nodes:
        values, log_mass, coarse = _run(site, _quadrature(site, nodes), leaves, worlds)
        values = values.reshape(*values.shape[:2], -1)
        log_mass, coarse = (x.reshape(*x.shape[:2], -1) for x in (log_mass, coarse))
    elif is_point(site.operands(leaves).distribution):  # pyright: ignore[reportArgumentType]
        values, log_mass = _run(site, _point, leaves, worlds)
        values, log_mass = _elements(site, values[:, None]), log_mass[:, None]
        log_mass = log_mass.reshape(*log_mass.shape[:2], -1)
    else:
        d: Any = site.operands(leaves).distribution
        where = {"operation": "enumerate", "address": site.address, "source": site.source}
        listed = finite_values(d, **where).astype(site.dtype)
        plain, log_mass = _run(site, _tabled(listed), leaves, worlds)
        plain, log_mass = (x.reshape(*x.shape[:2], -1) for x in (plain, log_mass))
        if np.any(np.isnan(plain)):
            refusals.refuse_nan(site, leaves, np.isnan(plain))
        refusals.refuse_incomplete(site, d, plain, there)
        log_mass = np.where(plain > -np.inf, log_mass, -np.inf)
        values = listed[None, :, None]
    if np.any(np.isnan(log_mass)):
        refusals.refuse_nan(site, leaves, np.isnan(log_mass))
    if there is not None:
        # Where the site is not, there is one placeholder, a zero, and nothing to choose.
        absent = np.where(np.arange(log_mass.shape[1]) == 0, 0.0, -np.inf)[None, :, None]
        log_mass = np.where(there, log_mass, absent)
        coarse = coarse if coarse is None else np.where(there, coarse, absent)
        there = there[:, 0]
    return Candidates(values, log_mass, coarse, there)


def choose(
    found: Candidates, site: Site, worlds: int, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """Make a world for every combination of values that the elements can take.

    Returns:
        The new worlds' parents, the site's values in them, and the log masses of the choices, plain
        and coarse.
    """
    parents, log_mass = np.arange(worlds), np.zeros(worlds)
    coarse = None if found.coarse is None else np.zeros(worlds)
    count = found.log_mass.shape[2]
    picks = np.empty((worlds, count), np.int64)
    possible = found.log_mass > -np.inf
    if found.coarse is not None:
        possible |= found.coarse > -np.inf
    shared = found.log_mass.shape[0] == 1
    for e in range(count):
        rows = np.zeros_like(parents) if shared else parents
        here, value = np.nonzero(possible[rows, :, e])
        if len(here) > most:
            refusals.refuse_many(site, len(here), most)
        rows = rows[here]
        parents, picks = parents[here], picks[here]
        picks[:, e] = value
        log_mass = log_mass[here] + found.log_mass[rows, value, e]
        if coarse is not None and found.coarse is not None:
            coarse = coarse[here] + found.coarse[rows, value, e]
    table = found.values
    rows = np.zeros((len(parents), 1), int) if table.shape[0] == 1 else parents[:, None]
    element = np.zeros(count, int) if table.shape[2] == 1 else np.arange(count)
    values = table[rows, picks, element[None, :]]
    if found.there is not None:
        flags = found.there[parents if len(found.there) > 1 else np.zeros_like(parents)]
        values = np.where(flags.reshape(*flags.shape, *[1] * (values.ndim - 2)), values, 0)
    shape = (len(parents), *site.sizes, *site.shape)
    return parents, values.reshape(shape).astype(site.dtype, copy=False), log_mass, coarse


def score(site: Site, leaves: Sequence[np.ndarray], worlds: int) -> np.ndarray:
    """Give what an observation or factor adds to each world's log mass."""
    (log_weight,) = _run(site, _observed if site.kind == "observed" else _factor, leaves, worlds)
    bad = np.isnan(log_weight) | (log_weight == np.inf)
    if np.any(bad):
        refusals.refuse_nan(site, leaves, bad)
    return log_weight.astype(np.float64)


def observed_value(site: Site, leaves: Sequence[np.ndarray], worlds: int) -> np.ndarray:
    """Give the value of an observed or deterministic site."""
    (value,) = _run(site, _value, leaves, worlds)
    return value


_separate: weakref.WeakKeyDictionary[Site, Site | None] = weakref.WeakKeyDictionary()


def _apart(site: Site) -> Site:
    """Make event axes that only join independent elements batch axes again."""
    if site not in _separate:
        flat = list(range(site.tree.num_leaves))
        operands = site.operands(flat)
        assert operands.distribution is not None
        d = apart(operands.distribution)
        tree = jax.tree.structure(operands._replace(distribution=d))
        depth = site.event_dim - operands.distribution.event_dim + d.event_dim
        joined = d is not operands.distribution
        _separate[site] = dataclasses.replace(site, tree=tree, event_dim=depth) if joined else None
    return _separate[site] or site


# --- What is traced, once for a site ------------------------------------------------------------

_jaxprs: weakref.WeakKeyDictionary[Site, dict[Any, Any]] = weakref.WeakKeyDictionary()
_alike: dict[Any, Any] = {}


def _run(
    site: Site, fun: Callable[..., Any], leaves: Sequence[np.ndarray], worlds: int
) -> list[np.ndarray]:
    """Evaluate `fun(site, leaves)` in all worlds."""
    avals = tuple((x.shape[1:], x.dtype) for x in leaves)
    known = _jaxprs.setdefault(site, {})
    key = (fun, avals)
    if key not in known:
        known[key] = _shared(site, fun, avals)
    jaxpr, consts = _jax.open_jaxpr(known[key])
    return arrays.evaluate_jaxpr(jaxpr, consts, leaves, worlds)


def _shared(site: Site, fun: Callable[..., Any], avals: Any) -> Any:
    """Trace a function of a site, or find what was traced for one that differs in name only."""
    shape = (site.kind, site.tree, site.shape, str(site.dtype), site.event_dim, site.batch)
    try:
        key = (fun, avals, shape, jnp.result_type(float))
        hash(key)
    except TypeError:
        return _traced(site, fun, avals)
    if key not in _alike:
        if len(_alike) > 4096:
            _alike.clear()
        _alike[key] = _traced(site, fun, avals)
    return _alike[key]


def _traced(site: Site, fun: Callable[..., Any], avals: Any) -> Any:
    return jax.make_jaxpr(lambda *leaves: fun(site, leaves))(
        *[jax.ShapeDtypeStruct(s, jax.dtypes.canonicalize_dtype(d)) for s, d in avals]
    )


@dataclasses.dataclass(frozen=True)
class _Table:
    """A function of a site, compared by the values it lists."""

    shape: tuple[int, ...]
    dtype: Any
    content: bytes

    def __call__(self, site: Site, leaves: Any) -> Any:
        """Tabulate log masses of the values: plain, and as the site scales them."""
        listed = np.frombuffer(self.content, self.dtype).reshape(self.shape)

        def one(value: Any) -> Any:
            full = jnp.broadcast_to(value, (*site.sizes, *site.shape))
            return _both(site, leaves, full)

        return jax.vmap(one)(listed)


def _tabled(listed: np.ndarray) -> _Table:
    return _Table(listed.shape, listed.dtype, listed.tobytes())


def _both(site: Site, leaves: Any, value: Any) -> Any:
    if site.operands(leaves).scale is None:
        log_mass = _weigh(site, leaves, value)
        return log_mass, log_mass
    scaled = log_prob(site, leaves, value)
    plain, bare_leaves = with_operand(site, leaves, "scale", None, mapped=False)
    return _weigh(plain, bare_leaves, value), scaled


def _weigh(site: Site, leaves: Any, value: Any) -> Any:
    """Give log masses, NaN also where the distribution's own formula hides it."""

    def one(operands: Operands, value: Any) -> Any:
        d: Any = operands.distribution
        wrong = invalid(d)
        if wrong is None:
            return jnp.zeros(d.batch_shape, bool)
        counts = True if operands.scale is None else operands.scale != 0
        return wrong & counts & (True if operands.present is None else operands.present)

    wrong = lanes(site, one)(leaves, value)
    return jnp.where(wrong, jnp.nan, log_prob(site, leaves, value))


def _point(site: Site, leaves: Any) -> Any:
    """The one value of a point mass, and its mass."""

    def one(operands: Any) -> Any:
        return jnp.broadcast_to(bare(operands.distribution).v, site.shape)  # pyright: ignore

    value = jnp.asarray(lanes(site, one)(leaves), site.dtype)
    return value, log_prob(site, leaves, value)


def _quadrature(site: Site, count: int) -> Callable[..., Any]:
    key = (site, count)
    if key not in _rules:
        _rules[key] = lambda site, leaves: _nodes(site, leaves, count)
    return _rules[key]


_rules: dict[Any, Callable[..., Any]] = {}


def _nodes(site: Site, leaves: Any, count: int) -> Any:
    """Nodes of a continuous site, and their log masses under the rule and its coarser half."""

    def one(operands: Any) -> Any:
        values, fine, coarse = quadrature.nodes(operands.distribution, count, site)
        shape = (count, *site.shape)
        fine, coarse = (
            jnp.broadcast_to(x.reshape(-1, *[1] * len(site.shape)), shape) for x in (fine, coarse)
        )
        return values, fine, coarse

    plain, stripped = with_operand(site, leaves, "scale", None, mapped=False)
    values, fine, coarse = lanes(plain, one)(stripped)
    # Nodes come first, as candidates do.
    values, fine, coarse = (jnp.moveaxis(x, len(site.sizes), 0) for x in (values, fine, coarse))
    if site.operands(leaves).scale is not None:
        base, more = jax.vmap(lambda v: _both(site, leaves, v))(values)
        fine, coarse = fine + (more - base), coarse + (more - base)
    return values, fine, coarse


def _present(site: Site, leaves: Any) -> Any:
    there = presence(site, leaves)
    rank = len(site.shape) - site.event_dim
    there = jnp.asarray(there).reshape(*site.sizes, *[1] * rank)
    return jnp.broadcast_to(there, (*site.sizes, *site.shape[:rank]))


def _observed(site: Site, leaves: Any) -> Any:
    return jnp.sum(_weigh(site, leaves, value_of(site, leaves)))


def _factor(site: Site, leaves: Any) -> Any:
    return jnp.sum(factor(site, leaves))


def _value(site: Site, leaves: Any) -> Any:
    return value_of(site, leaves)


def _elements(site: Site, values: np.ndarray) -> np.ndarray:
    """Lay values of shape (world, value, *sizes, *batch, *event) out by element."""
    event = site.shape[len(site.shape) - site.event_dim :]
    return values.reshape(*values.shape[:2], -1, *event) if math.prod(values.shape) else values
