"""A vector of reals mapped onto the support of a whole site: all lanes, iterations and members."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution
from numpyro.distributions.constraints import Constraint
from numpyro.distributions.transforms import Transform

from ppl import distributions as dist
from ppl.distributions import biject_to, constraints, is_unbounded


def _each(fun: Callable[..., Any], lanes: int, varying: bool, batch: int) -> Callable[..., Any]:
    """Lift `fun(support, *arrays)` over lanes, and over batch axes in front of them."""
    for i in range(lanes + batch):
        support = 0 if varying and i < lanes else None
        fun = _mapped(fun, support)
    return fun


def _mapped(fun: Callable[..., Any], support: int | None) -> Callable[..., Any]:
    def over(s: Any, *arrays: Any) -> Any:
        return jax.vmap(fun, in_axes=(support, *[0] * len(arrays)))(s, *arrays)

    return over


class Varying(Constraint):
    """One support for each lane of a site: the leaves of `base` have the lanes' axes in front."""

    def __init__(self, base: Constraint, lanes: int, event_dim: int):
        self.base, self.lanes, self.event_dim = base, lanes, event_dim
        super().__init__()

    def tree_flatten(self) -> Any:
        """Split into data and structure, for JAX."""
        return (self.base,), (("base",), {"lanes": self.lanes, "event_dim": self.event_dim})

    def __call__(self, x: Any) -> Any:
        """Tell whether every element lies in its support."""

        def all_in(support: Any, x: Any) -> Any:
            return jnp.all(support(x))

        flags = _each(all_in, self.lanes, True, x.ndim - self.event_dim)(self.base, x)
        return jnp.all(flags, axis=tuple(range(flags.ndim - self.lanes, flags.ndim)))


class Onto(Transform):
    """The bijection from a vector onto a site of several lanes, each with members of a support.

    `lanes` are the axes of `vmap`s and scans, `shape` is that of one lane's value and `real` that
    of its unconstrained coordinates. The leaves of `support` have the lanes' axes in front if they
    are `varying`.
    """

    def __init__(
        self,
        support: Any,
        lanes: tuple[int, ...],
        shape: tuple[int, ...],
        real: tuple[int, ...],
        varying: bool,
    ):
        self.support = support
        self.lanes, self.shape, self.real, self.varying = lanes, shape, real, varying

    def tree_flatten(self) -> Any:
        """Split into data and structure, for JAX."""
        names = ("lanes", "shape", "real", "varying")
        return (self.support,), (("support",), {n: getattr(self, n) for n in names})

    @property
    def domain(self) -> Constraint:
        """Vectors of reals."""
        return constraints.real_vector

    @property
    def codomain(self) -> Constraint:
        """The supports, of all lanes and members together."""
        rank = len(self.lanes) + len(self.shape)
        if self.varying:
            return Varying(self.support, len(self.lanes), rank)
        around = rank - self.support.event_dim
        return constraints.independent(self.support, around) if around else self.support

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Give the shape of values, from that of vectors."""
        return (*shape[:-1], *self.lanes, *self.shape)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Give the shape of vectors, from that of values."""
        cut = len(shape) - len(self.lanes) - len(self.shape)
        return (*shape[:cut], math.prod(self.lanes) * math.prod(self.real))

    def __call__(self, x: Any) -> Any:
        """Map vectors to values."""
        z = x.reshape(*x.shape[:-1], *self.lanes, *self.real)
        return self._each(lambda s, z: biject_to(s)(z), x.ndim - 1)(self.support, z)

    def _inverse(self, y: Any) -> Any:
        batch = y.ndim - len(self.lanes) - len(self.shape)
        z = self._each(lambda s, y: biject_to(s).inv(y), batch)(self.support, y)
        return z.reshape(self.inverse_shape(y.shape))

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Any:
        """Give the log of the volume that vectors' surroundings have, mapped."""

        def one(support: Any, z: Any, y: Any) -> Any:
            return jnp.sum(biject_to(support).log_abs_det_jacobian(z, y))

        z = x.reshape(*x.shape[:-1], *self.lanes, *self.real)
        each = self._each(one, x.ndim - 1)(self.support, z, y)
        return jnp.sum(each, axis=tuple(range(x.ndim - 1, each.ndim)))

    def _each(self, fun: Callable[..., Any], batch: int) -> Callable[..., Any]:
        return _each(fun, len(self.lanes), self.varying, batch)


def onto(
    base: Distribution,
    support: Any,
    lanes: tuple[int, ...],
    shape: tuple[int, ...],
    real: tuple[int, ...],
    varying: bool,
) -> tuple[Distribution, Callable[[Any], Any]]:
    """Map a distribution of vectors onto a site's support; also give the inverse map."""
    if is_unbounded(support) and not lanes and len(shape) == 1:
        return base, lambda x: x
    through = Onto(support, lanes, shape, real, varying)
    return dist.TransformedDistribution(base, through), through._inverse
