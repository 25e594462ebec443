"""The two primitives, `sample` and `score`: what an equation says, and how `vmap` acts on it.

An equation's operands are the leaves of `Operands`; all that is static sits in its `Site`.
`jax.vmap` of a site is again one site, with one more `Level`: every lane draws for itself, whether
or not its parameters are mapped.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import (
    BernoulliLogits,
    Distribution,
    ExpandedDistribution,
    Normal,
)

from ppl import _jax
from ppl._types import Array, Key, PyTree
from ppl.context import TOP, Context, Plate, scans_crossed
from ppl.distributions import (
    describe_support,
    is_discrete,
    is_improper,
    is_unbounded,
    support_of,
    without_mask,
)
from ppl.errors import OutsideModelError, UnsupportedError, at, message
from ppl.finite import impossible
from ppl.stacking import stacked

Kind = Literal["latent", "observed", "deterministic", "factor"]


class GradientEstimator:
    """How the derivative of an expectation passes a site; `ppl.vi` has the kinds.

    It has no part in the measure: only `ppl.vi.expectation` asks for it. Subclasses are pytrees,
    whose arrays (a baseline) may be computed by the model. Where one `relaxes`, the draws of a
    discrete site are floating numbers, so that a derivative can pass them.
    """

    relaxes: ClassVar[bool] = False


class Operands(NamedTuple):
    """The data of a site. `present` is false where an untaken branch holds the site."""

    distribution: Distribution | None
    value: PyTree = None
    present: Any = None
    scale: Any = None
    grad: GradientEstimator | None = None


class Domain(NamedTuple):
    """A support without its data: each bound is a number, a parameter's position, or unknown."""

    tree: Any
    bounds: tuple[Any, ...]


class Level(NamedTuple):
    """One `vmap` around a site: its size, which operands it maps, how many scans it encloses."""

    size: int
    mapped: tuple[bool, ...]
    crossed: int


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """All that is static about a `sample` or `score` equation."""

    address: str
    kind: Kind
    tree: Any
    shape: tuple[int, ...]
    dtype: Any
    source: str = ""
    context: Context = TOP
    event_dim: int = 0
    support: str = ""
    domain: Domain | None = None
    discrete: bool = False
    improper: bool = False
    plates: tuple[Plate, ...] = ()
    batch: tuple[Level, ...] = ()
    branches: tuple[tuple[int, int], ...] = ()
    tags: tuple[Any, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """The axes that `vmap` put in front of one lane's value."""
        return tuple(level.size for level in self.batch)

    def operands(self, leaves: Sequence[Any]) -> Operands:
        """Put an equation's flat operands back together."""
        return jax.tree.unflatten(self.tree, leaves)


def _batch(size: int, args: Sequence[Any], dims: Sequence[int | None], *, site: Site) -> list[Any]:
    mapped = tuple(d is not None for d in dims)
    args = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims, strict=True)]
    level = Level(size, mapped, scans_crossed.value or 0)
    return bind(dataclasses.replace(site, batch=(level, *site.batch)), args)


def _sample_shapes(*, site: Site) -> list[tuple[tuple[int, ...], Any]]:
    return [((*site.sizes, *site.shape), site.dtype)]


def _refuse(*, site: Site) -> Exception:
    return OutsideModelError(
        message(
            f"JAX tried to execute the {site.kind} site {at(site.address, site.source)}",
            needs="an interpreter that says what drawing and scoring mean here",
            why="a model's statements are staged, never executed on their own",
            fix="call the function through @ppl.model and pass the program to ppl.run, ppl.trace "
            "or ppl.log_density",
        )
    )


def _refuse_derivative(*, site: Site) -> Exception:
    return UnsupportedError(
        message(
            f"JAX tried to differentiate through the {site.kind} site "
            f"{at(site.address, site.source)} while the model was being staged",
            needs="jax.grad and its kin around an interpreter, not around the statement",
            why="what the derivative of a draw is depends on how the program is interpreted",
            fix="jax.grad of ppl.log_density(program, choices), with respect to choices or data",
        )
    )


def _batch_sample(size: int, args: Any, dims: Any, *, site: Site) -> Any:
    return _batch(size, args, dims, site=site)


def _batch_score(size: int, args: Any, dims: Any, *, site: Site) -> Any:
    _batch(size, args, dims, site=site)
    return []


sample_p = _jax.define_primitive(
    "sample",
    multiple_results=True,
    shapes=_sample_shapes,
    batch=_batch_sample,
    refuse=_refuse,
    refuse_derivative=_refuse_derivative,
)
score_p = _jax.define_primitive(
    "score",
    multiple_results=True,
    shapes=lambda *, site: [],
    batch=_batch_score,
    refuse=_refuse,
    refuse_derivative=_refuse_derivative,
)


def bind(site: Site, leaves: Sequence[Any]) -> list[Any]:
    """Stage a site: a list of its one value, or of nothing for a factor."""
    primitive = score_p if site.kind == "factor" else sample_p
    return primitive.bind(*leaves, site=site)


def facts(d: Distribution) -> dict[str, Any]:
    """List what a site keeps of its distribution beside the parameters."""
    support = support_of(d)
    leaves, tree = jax.tree.flatten(support)
    parameters = {id(x): i for i, x in enumerate(jax.tree.leaves(d))}
    bounds = tuple(parameters.get(id(x)) if _jax.is_tracer(x) else np.asarray(x) for x in leaves)
    return {
        "event_dim": d.event_dim,
        "support": describe_support(support),
        "domain": Domain(tree, bounds),
        "discrete": is_discrete(d),
        "improper": is_improper(d),
    }


def with_operand(
    site: Site, leaves: Sequence[Any], name: str, value: Any, *, mapped: bool
) -> tuple[Site, list[Any]]:
    """Set one operand (None removes it), mapped at every level of the site or at none."""
    flat, tree = jax.tree.flatten(site.operands(leaves)._replace(**{name: value}))
    flags = jax.tree.map(lambda _: mapped, value)
    batch = tuple(
        level._replace(
            mapped=tuple(jax.tree.leaves(site.operands(level.mapped)._replace(**{name: flags})))
        )
        for level in site.batch
    )
    return dataclasses.replace(site, tree=tree, batch=batch), flat


# --- What one site means ------------------------------------------------------------------------


def lanes(site: Site, fun: Callable[..., Any]) -> Callable[..., Any]:
    """Lift `fun(operands, *extras)` over the site's levels; every extra is mapped at each."""

    def lifted(leaves: Sequence[Any], *extras: Any) -> Any:
        def call(leaves: Sequence[Any], *extras: Any) -> Any:
            return fun(site.operands(leaves), *extras)

        for level in reversed(site.batch):
            axes = [0 if m else None for m in level.mapped]
            call = jax.vmap(call, in_axes=(axes, *[0] * len(extras)), axis_size=level.size)
        return call(list(leaves), *extras)

    return lifted


def draw(site: Site, leaves: Sequence[Any], key: Key) -> Array:
    """Draw the site's value. Levels that map no operand become sample axes of one call."""
    if site.improper:
        raise UnsupportedError(
            message(
                f"run got an improper flat prior at {at(site.address, site.source)}",
                needs="a distribution that can be drawn from",
                why="a flat prior on an unbounded set has no total mass to normalise by",
                fix=f'give "{site.address}" a proper prior, or fit the program with '
                "ppl.mcmc(program, ppl.kernels.nuts())",
            )
        )
    mapped = [i for i, level in enumerate(site.batch) if any(level.mapped)]
    free = [i for i in range(len(site.batch)) if i not in mapped]
    shape = tuple(site.batch[i].size for i in free)

    def one(key: Any, leaves: Sequence[Any]) -> Any:
        d = site.operands(leaves).distribution
        assert d is not None
        return jnp.asarray(d.sample(key, shape), site.dtype)

    levels = [site.batch[i] for i in mapped]
    sizes, flags = [level.size for level in levels], [level.mapped for level in levels]
    value = stacked(one, sizes, key, leaves, flags) if mapped else one(key, leaves)
    order = np.argsort(mapped + free)  # axes come out as (mapped..., free..., own...)
    rest = range(len(order), value.ndim)
    return jnp.transpose(value, (*order.tolist(), *rest))


def value_of(site: Site, leaves: Sequence[Any]) -> Array:
    """Give the value of an observed or deterministic site, one for every lane."""
    return lanes(site, lambda operands: jnp.asarray(operands.value))(leaves)


def log_prob(site: Site, leaves: Sequence[Any], value: Any, *, guard: bool = True) -> Array:
    """Give the elementwise log density of `value`, scaled, and 0 where the site is absent.

    With `guard`, values outside the support have log density -inf, whatever formula the
    distribution would evaluate there.
    """

    def one(operands: Operands, value: Any) -> Any:
        d = operands.distribution
        assert d is not None
        if operands.present is not None:  # no gradient from where the site is absent
            value = jnp.where(operands.present, value, jax.lax.stop_gradient(value))
        return weigh(operands, _guarded(d, value) if guard else density(d, value))

    return lanes(site, one)(leaves, value)


def factor(site: Site, leaves: Sequence[Any]) -> Array:
    """Give a factor's log weight, elementwise."""
    return lanes(site, lambda operands: weigh(operands, operands.value))(leaves)


def density(d: Distribution, value: Any) -> Any:
    """Give log densities elementwise, whether or not the value lies in the support.

    The normal's own formula needs one logarithm and, in a loop, one stored residual less than
    NumPyro's, which takes the logarithm of sqrt(2 pi) * scale. A square has one derivative to
    compute, where -0.5 * z * z has two. That of the Bernoulli distribution with logits needs one
    pass over the data, as accurate, where NumPyro's needs several.
    """
    core = d.base_dist if type(d) is ExpandedDistribution else d
    if type(core) is Normal:
        scale = jnp.asarray(core.scale)
        z = (value - core.loc) / scale
        lp = -0.5 * z**2 - jnp.log(scale) - 0.5 * math.log(2 * math.pi)
        return jnp.broadcast_to(lp, d.batch_shape)
    if type(core) is BernoulliLogits:
        lp = -jnp.logaddexp((1 - 2 * value) * jnp.asarray(core.logits), 0.0)
        return jnp.broadcast_to(lp, d.batch_shape)
    return d.log_prob(value)


def _guarded(d: Distribution, value: Any) -> Any:
    d, mask = without_mask(d)
    if mask is not None:
        return jnp.where(mask, _guarded(d, value), 0.0)
    support = support_of(d)
    if is_unbounded(support):
        return density(d, value)
    inside = support(value)
    if support.event_dim == 0 and not support.is_discrete:
        # Evaluate at a point of the support, so that no NaN leaks into gradients.
        value = jnp.where(inside, value, jax.lax.stop_gradient(support.feasible_like(value)))
    never = impossible(d, value)
    inside = inside if never is None else inside & ~never
    return jnp.where(inside, density(d, value), -jnp.inf)


def weigh(operands: Operands, log_weight: Any) -> Any:
    """Scale a log weight, and drop it where the site is absent."""
    if operands.scale is not None:
        scale = operands.scale
        log_weight = jnp.where(scale == 0, 0.0, scale * jnp.where(scale == 0, 0.0, log_weight))
    if operands.present is not None:
        log_weight = jnp.where(operands.present, log_weight, 0.0)
    return log_weight


def presence(site: Site, leaves: Sequence[Any]) -> Array | None:
    """Give, per lane, whether the site exists there; None if it always does."""
    if site.operands(leaves).present is None:
        return None
    return lanes(site, lambda operands: jnp.asarray(operands.present, bool))(leaves)
