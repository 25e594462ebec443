"""Distributions: all of `numpyro.distributions`, and what this library adds to them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from numpyro.distributions import *  # noqa: F403 # pyright: ignore[reportWildcardImportFromLibrary]
from numpyro.distributions import Distribution, biject_to, constraints, transforms

from ppl import _jax
from ppl.errors import DistributionError, at, message
from ppl.resampling import (
    MultinomialResampling,
    Resampling,
    ResidualMultinomialResampling,
    ResidualSystematicResampling,
    SSPResampling,
    StratifiedResampling,
    SystematicResampling,
)

__all__ = [
    "MultinomialResampling",
    "Resampling",
    "ResidualMultinomialResampling",
    "ResidualSystematicResampling",
    "SSPResampling",
    "Seed",
    "StratifiedResampling",
    "Subsample",
    "SystematicResampling",
    "biject_to",
    "constraints",
    "transforms",
]


class Subsample(Distribution):
    """Draw `subsample_size` different members of `range(size)`, in random order.

    **Meaning.** The uniform probability on ordered subsets: every one has mass
    (size - subsample_size)! / size!.
    """

    pytree_aux_fields = ("size", "subsample_size")

    @property
    def support(self) -> Any:
        """The constraint that draws satisfy."""
        return constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, size: int, subsample_size: int, *, validate_args: bool | None = None):
        self.size, self.subsample_size = size, subsample_size
        super().__init__((), (subsample_size,), validate_args=validate_args)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Draw independent values.

        Args:
            key: PRNG key.
            sample_shape: leading axes.
        """
        keys = jax.random.split(key, sample_shape)
        draw = lambda k: jax.random.permutation(k, self.size)[: self.subsample_size]  # noqa: E731
        for _ in sample_shape:
            draw = jax.vmap(draw)
        return draw(keys)

    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        """Evaluate the log mass.

        Args:
            value: values with the event axis last.
            intermediates: unused; part of NumPyro's interface.
        """
        ordered = jnp.sort(value, axis=-1)
        distinct = jnp.all(ordered[..., 1:] != ordered[..., :-1], axis=-1)
        inside = jnp.all((value >= 0) & (value < self.size), axis=-1)
        log_mass = gammaln(self.size - self.subsample_size + 1.0) - gammaln(self.size + 1.0)
        return jnp.where(distinct & inside, log_mass, -jnp.inf)


def is_unbounded(support: Any) -> bool:
    """Tell whether a support is all of the reals, so that membership needs no test."""
    if isinstance(support, type(constraints.independent(constraints.real, 1))):
        return is_unbounded(support.base_constraint)
    return isinstance(support, type(constraints.real))


def _wraps(d: Distribution, name: str) -> bool:
    """Tell whether a distribution is, or wraps, one of the class of that name."""
    inner = getattr(d, "base_dist", None)
    return type(d).__name__ == name or (isinstance(inner, Distribution) and _wraps(inner, name))


def is_improper(d: Distribution) -> bool:
    """Tell whether a distribution is, or wraps, a flat improper prior."""
    return _wraps(d, "ImproperUniform")


def is_masked(d: Distribution) -> bool:
    """Tell whether a distribution leaves out the log density of some elements."""
    return _wraps(d, "MaskedDistribution")


def is_discrete(d: Distribution) -> bool:
    """Tell whether a distribution lives on a countable set."""
    return bool(support_of(d).is_discrete)


def without_mask(d: Distribution) -> tuple[Distribution, Any]:
    """Split a masked distribution into the bare one and the mask over its batch shape.

    A mask that was turned into event axes cannot be split off; it stays where it is.
    """
    if type(d).__name__ == "MaskedDistribution":
        return d.base_dist, d._mask  # pyright: ignore[reportAttributeAccessIssue]
    if type(d).__name__ == "ExpandedDistribution":
        base, mask = without_mask(d.base_dist)  # pyright: ignore[reportAttributeAccessIssue]
        if mask is not None:
            return base.expand(d.batch_shape), jnp.broadcast_to(mask, d.batch_shape)
    return d, None


def support_of(d: Distribution) -> Any:
    """Give the constraint that a distribution's values satisfy."""
    support = d.support
    if support is None:
        raise DistributionError(
            message(
                f"got {type(d).__name__}, which declares no support",
                needs="a distribution with a support",
                fix="set `support` on the distribution",
            )
        )
    return support


def describe(d: Distribution) -> str:
    """Name a distribution as a reader would: `Normal`, not `ExpandedDistribution`."""
    wrappers = ("ExpandedDistribution", "Independent", "MaskedDistribution")
    while type(d).__name__ in wrappers:
        d = d.base_dist  # pyright: ignore[reportAttributeAccessIssue]
    name = type(d).__name__
    if name == "TransformedDistribution":
        inner = describe(d.base_dist)  # pyright: ignore[reportAttributeAccessIssue]
        return f"Transformed({inner})"
    for suffix in ("Probs", "Logits"):
        name = name.removesuffix(suffix)
    return name


def describe_support(support: Any) -> str:
    """Name a support in a word or two, with its bounds where they are known."""
    if isinstance(support, type(constraints.independent(constraints.real, 1))):
        return describe_support(support.base_constraint)
    name = type(support).__name__.strip("_")
    snake = "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()
    named = ("Positive", "Nonnegative", "Unit", "Boolean", "SoftplusPositive")
    bounds = (
        []
        if name.startswith(named)
        else [
            str(np.asarray(v)) if not _jax.is_tracer(v) else "·"
            for k in ("lower_bound", "upper_bound")
            if (v := getattr(support, k, None)) is not None and np.ndim(v) == 0
        ]
    )
    return f"{snake}({', '.join(bounds)})" if bounds else snake


def violations(d: Distribution, concrete: Any) -> list[tuple[str, Any, Any]]:
    """List `(parameter, value, constraint)` for each concrete parameter outside its domain.

    `concrete(x)` gives a NumPy array if `x` is known now, else None.
    """
    found = []
    if type(d).__name__ == "Uniform":
        low, high = concrete(d.low), concrete(d.high)  # pyright: ignore[reportAttributeAccessIssue]
        if low is not None and high is not None and not bool(np.all(low < high)):
            found.append(("high", high, constraints.greater_than(low)))
    inner = d.__dict__.get("base_dist")
    if isinstance(inner, Distribution):
        found += violations(inner, concrete)
    for name, constraint in d.arg_constraints.items():
        value = d.__dict__.get(name)
        if value is None or constraints.is_dependent(constraint):
            continue
        known = concrete(value)
        if known is not None and not bool(np.all(np.asarray(constraint(known)))):
            found.append((name, known, constraint))
    return found


def refuse_parameters(address: str, source: str, d: Distribution, bad: list[Any]) -> None:
    """Raise `DistributionError` for the first violation, naming site, parameter and value."""
    for name, value, constraint in bad:
        shown = np.array2string(np.asarray(value), threshold=6, edgeitems=2, precision=4)
        raise DistributionError(
            message(
                f"sample got {describe(d)} with {name} = {shown} at {at(address, source)}",
                needs=f"{name} in {describe_support(constraint)}",
                why=f"outside it {describe(d)} is not a probability distribution",
                fix=f"pass a valid {name}, for example through jnp.exp or an absolute value",
            )
        )


class Seed(Distribution):
    """Two uniform 32-bit words: the raw material of a PRNG key."""

    @property
    def support(self) -> Any:
        """The constraint that draws satisfy."""
        return constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, *, validate_args: bool | None = None):
        super().__init__((), (2,), validate_args=validate_args)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Draw independent values.

        Args:
            key: PRNG key.
            sample_shape: leading axes.
        """
        return jax.random.bits(key, (*sample_shape, 2), jnp.uint32)

    @staticmethod
    def key(words: Any) -> Any:
        """Make a draw a PRNG key.

        Args:
            words: a draw, of shape (2,).
        """
        return jax.random.wrap_key_data(jnp.asarray(words, jnp.uint32), impl="threefry2x32")

    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        """Evaluate the log mass.

        Args:
            value: values with the event axis last.
            intermediates: unused; part of NumPyro's interface.
        """
        return jnp.full(jnp.shape(value)[:-1], -64.0 * jnp.log(2.0))
