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
from ppl.distributions import describe
from ppl.errors import DistributionError, UnsupportedError, at, message
from ppl.finite import bare, finite_values, is_point
from ppl.primitives import Site, factor, lanes, log_prob, presence, value_of, with_operand
from ppl.semantics.worlds import arrays, quadrature

# Masses of all values must add up to one within this: else a value is missing.
_SLACK = 1e-3


class Candidates(NamedTuple):
    """Values and log masses of a site's elements, by world.

    `values` is (1 or worlds, value, 1 or element, *event); `log_mass` and `coarse` (under the
    coarser half of a quadrature rule) are (1 or worlds, value, element), -inf for what cannot be.
    """

    values: np.ndarray
    log_mass: np.ndarray
    coarse: np.ndarray | None = None


def candidates(site: Site, leaves: Sequence[np.ndarray], worlds: int, nodes: int) -> Candidates:
    """List the values that a latent site can take in each world.

    Args:
        site: the site.
        leaves: its operands, with an axis of worlds.
        worlds: the number of worlds.
        nodes: the number of quadrature nodes of a continuous site; 0 for a finite one.
    """
    coarse = None
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
        plain, log_mass = _run(site, _table, [*leaves, listed[None]], worlds)
        plain, log_mass = (x.reshape(*x.shape[:2], -1) for x in (plain, log_mass))
        _refuse_incomplete(site, d, plain)
        log_mass = np.where(_possible(plain), log_mass, -np.inf)
        values = listed[None, :, None]
    if np.any(np.isnan(log_mass)):
        _refuse_nan(site, leaves)
    if site.operands(leaves).present is not None:
        (there,) = _run(site, _present, leaves, worlds)
        there = there.reshape(there.shape[0], 1, -1)
        # Where the site is not, there is one placeholder, and nothing to choose.
        absent = np.where(np.arange(log_mass.shape[1]) == 0, 0.0, -np.inf)[None, :, None]
        log_mass = np.where(there, log_mass, absent)
        coarse = coarse if coarse is None else np.where(there, coarse, absent)
    return Candidates(values, log_mass, coarse)


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
            _refuse_many(site, len(here), most)
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
    shape = (len(parents), *site.sizes, *site.shape)
    return parents, values.reshape(shape).astype(site.dtype, copy=False), log_mass, coarse


def score(site: Site, leaves: Sequence[np.ndarray], worlds: int) -> np.ndarray:
    """Give what an observation or factor adds to each world's log mass."""
    (log_weight,) = _run(site, _observed if site.kind == "observed" else _factor, leaves, worlds)
    if np.any(np.isnan(log_weight)) or np.any(log_weight == np.inf):
        _refuse_nan(site, leaves)
    return log_weight.astype(np.float64)


def observed_value(site: Site, leaves: Sequence[np.ndarray], worlds: int) -> np.ndarray:
    """Give the value of an observed or deterministic site."""
    (value,) = _run(site, _value, leaves, worlds)
    return value


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
        *[jax.ShapeDtypeStruct(s, d) for s, d in avals]
    )


def _table(site: Site, leaves: Any) -> Any:
    """Tabulate log masses of listed values: plain, and as the site scales them."""
    *leaves, listed = leaves

    def one(value: Any) -> Any:
        full = jnp.broadcast_to(value, (*site.sizes, *site.shape))
        return _both(site, leaves, full)

    return jax.vmap(one)(listed)


def _both(site: Site, leaves: Any, value: Any) -> Any:
    scaled = log_prob(site, leaves, value)
    if site.operands(leaves).scale is None:
        return scaled, scaled
    plain, bare_leaves = with_operand(site, leaves, "scale", None, mapped=False)
    return log_prob(plain, bare_leaves, value), scaled


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
    return jnp.sum(log_prob(site, leaves, value_of(site, leaves)))


def _factor(site: Site, leaves: Any) -> Any:
    return jnp.sum(factor(site, leaves))


def _value(site: Site, leaves: Any) -> Any:
    return value_of(site, leaves)


def _elements(site: Site, values: np.ndarray) -> np.ndarray:
    """Lay values of shape (world, value, *sizes, *batch, *event) out by element."""
    event = site.shape[len(site.shape) - site.event_dim :]
    return values.reshape(*values.shape[:2], -1, *event) if math.prod(values.shape) else values


def _possible(log_mass: np.ndarray) -> np.ndarray:
    """Tell which values have positive probability.

    NumPyro moves a probability of zero up to the smallest normal number; zero is what was said.
    """
    least = np.log(np.finfo(log_mass.dtype).tiny)
    return (log_mass > -np.inf) & (np.abs(log_mass - least) > 1e-6 * np.abs(least))


# --- Refusals -----------------------------------------------------------------------------------


def _refuse_incomplete(site: Site, d: Any, plain: np.ndarray) -> None:
    """Raise unless the listed values carry all the mass of the distribution."""
    mass = np.sum(np.exp(plain), axis=1)
    here = np.abs(mass - 1) > _SLACK
    if site.operands([None] * site.tree.num_leaves).present is None and np.any(here):
        raise DistributionError(
            message(
                f"enumerate got {describe(d)} at {at(site.address, site.source)} whose values have "
                f"total probability {float(mass[here].flat[0]):.6g}",
                needs="probabilities that sum to one",
                why="the measure would not be that of the program",
                fix="normalise the parameters, for example probs / probs.sum(-1, keepdims=True)",
            )
        )


def _refuse_nan(site: Site, leaves: Sequence[np.ndarray]) -> None:
    operands = dataclasses.replace(site, batch=()).operands(leaves)
    d = operands.distribution
    shown = [np.array2string(np.asarray(x[0]), threshold=6, precision=4) for x in leaves[:4]]
    what = "a factor" if d is None else describe(d)
    raise DistributionError(
        message(
            f"enumerate got {what} at {at(site.address, site.source)} whose log weight is NaN or "
            f"+inf; operands in one world: {'; '.join(shown)}",
            needs="parameters inside their domain in every world of positive mass",
            why="no measure has such a mass",
            fix="guard the parameters with jnp.where, or rule the world out with a factor of -inf",
        )
    )


def _refuse_many(site: Site, count: int, most: int) -> None:
    raise UnsupportedError(
        message(
            f"enumerate came to {count} worlds at {at(site.address, site.source)}",
            needs=f"at most max_worlds={most} at a time",
            why="each combination of values that later statements can tell apart is a world",
            fix=f"ppl.enumerate(program, max_worlds={4 * most}), return less of the history, or "
            "ppl.marginalize for plates of independent members",
        )
    )
