"""What resampling schemes share: sorted vectors of ancestors, drawn and weighed."""

from __future__ import annotations

import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution, constraints

from ppl import _jax
from ppl.errors import DistributionError, UnsupportedError, message
from ppl.resampling.sums import ancestors as from_sums

#: More ancestor vectors than this are not listed.
MOST_VALUES = 100_000


class _SortedIntegers(constraints.Constraint):
    """Vectors of integers, never decreasing, from 0 to a bound."""

    is_discrete, event_dim = True, 1

    def __init__(self, upper_bound: int):
        self.upper_bound = upper_bound

    def __call__(self, x: Any) -> Any:
        inside = (x >= 0) & (x <= self.upper_bound) & (x == jnp.floor(x))
        return jnp.all(inside, -1) & jnp.all(x[..., 1:] >= x[..., :-1], -1)

    def feasible_like(self, prototype: Any) -> Any:
        return jnp.zeros_like(prototype)

    def tree_flatten(self) -> Any:
        return (), ((), {"upper_bound": self.upper_bound})

    def eq(self, other: object, static: bool = False) -> Any:
        return isinstance(other, _SortedIntegers) and other.upper_bound == self.upper_bound


class LessThanInfinity(constraints.Constraint):
    """Log weights: -inf is one, NaN and +inf are not."""

    event_dim = 1

    def __call__(self, x: Any) -> Any:
        return jnp.all(x < jnp.inf, -1)

    def feasible_like(self, prototype: Any) -> Any:
        return jnp.zeros_like(prototype)

    def tree_flatten(self) -> Any:
        return (), ((), {})

    def eq(self, other: object, static: bool = False) -> Any:
        return isinstance(other, LessThanInfinity)


def offspring(ancestors: Any, size: int) -> Any:
    """Count how often each of `range(size)` is an ancestor.

    Args:
        ancestors: integers; the last axis is counted over, axes before it stay.
        size: the number of particles.
    """
    count = lambda a: jnp.zeros(size, int).at[a].add(1)  # noqa: E731
    return jnp.vectorize(count, signature="(m)->(n)")(jnp.asarray(ancestors))


class Resampling(Distribution):
    """Draw sorted ancestors: the abstract base of the schemes.

    **Meaning.** A probability on vectors a[0] <= a[1] <= ... of indices of particles, under which
    particle i is expected num * W_i times, where W are the normalised weights. If all weights are
    zero, they count as equal. A NaN or +inf among them, which a model refuses where it can see it,
    makes the log mass NaN, and the ancestors drawn all zero.

    Args:
        log_weights: not normalised, -inf for zero; the last axis is particles, others are batch.
        num: how many ancestors to draw; as many as there are particles by default.
        validate_args: NumPyro's switch for checks of parameters and values.

    Raises:
        DistributionError: there is no axis of particles, or `num` is no positive Python integer.
    """

    arg_constraints = {"log_weights": LessThanInfinity()}  # noqa: RUF012
    pytree_aux_fields = ("size", "num")

    def __init__(self, log_weights: Any, num: int | None = None, *, validate_args=None):
        log_weights = jnp.asarray(log_weights)
        name, shape = type(self).__name__, log_weights.shape
        if not shape or not shape[-1]:
            raise DistributionError(
                message(
                    f"{name} got log_weights of shape {shape}",
                    needs="a last axis of at least one particle",
                    fix=f"{name}(jnp.zeros(8))",
                )
            )
        num = shape[-1] if num is None else num
        if not isinstance(num, int | np.integer) or isinstance(num, bool) or num < 1:
            shown = "a traced value" if _jax.is_tracer(num) else repr(num)
            raise DistributionError(
                message(
                    f"{name} got num = {shown}",
                    needs="a positive Python integer",
                    why="the number of ancestors is the size of an array axis",
                    fix=f"{name}(log_weights, num={shape[-1]})",
                )
            )
        self.log_weights = log_weights.astype(jnp.promote_types(log_weights.dtype, jnp.float32))
        self.size, self.num = shape[-1], int(num)
        super().__init__(shape[:-1], (self.num,), validate_args=validate_args)

    @property
    def support(self) -> Any:
        """The constraint that draws satisfy."""
        return _SortedIntegers(self.size - 1)

    @property
    def _meant(self) -> Any:
        """The log weights, equal ones where all are zero."""
        nothing = jnp.all(self.log_weights == -jnp.inf, -1, keepdims=True)
        return jnp.where(nothing, 0.0, self.log_weights)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Draw independent vectors of ancestors.

        Args:
            key: PRNG key.
            sample_shape: leading axes.
        """
        noise = self._noise(key, (*sample_shape, *self.batch_shape))
        weights = jax.nn.softmax(jax.lax.stop_gradient(self._meant))
        weights = jnp.where(jnp.isnan(weights), 0.0, weights)  # no index may come of a NaN
        one = lambda noise, w: from_sums(self._below(noise, w), self.num)  # noqa: E731
        ancestors = jnp.vectorize(one, signature="(k),(n)->(m)")(noise, weights)
        return ancestors.astype(jnp.result_type(int))

    def log_prob(self, value: Any, intermediates: Any = None) -> Any:
        """Evaluate the log mass: -inf for what is not sorted or not possible.

        Args:
            value: ancestors, on the last axis.
            intermediates: unused; part of NumPyro's interface.
        """

        def one(log_weights: Any, value: Any) -> Any:
            ancestors = jnp.clip(value, 0, self.size - 1).astype(int)
            never = ~self.support(value) | jnp.any(log_weights[ancestors] == -jnp.inf)
            log_mass = jnp.where(never, -jnp.inf, self._log_mass(log_weights, ancestors))
            return jnp.where(self.arg_constraints["log_weights"](log_weights), log_mass, jnp.nan)

        return jnp.vectorize(one, signature="(n),(m)->()")(self._meant, jnp.asarray(value))

    def finite_values(self) -> np.ndarray:
        """List all sorted vectors, of shape (value, num).

        Raises:
            UnsupportedError: there are too many.
        """
        count = math.comb(self.size + self.num - 1, self.num)
        if count > MOST_VALUES:
            raise UnsupportedError(
                message(
                    f"{type(self).__name__} got {self.size} particles and {self.num} ancestors, "
                    f"which makes {count} values",
                    needs=f"at most {MOST_VALUES} values to list them",
                    why="every value is a world of its own",
                    fix="fewer particles, or ppl.run in place of ppl.enumerate",
                )
            )
        rows = itertools.combinations_with_replacement(range(self.size), self.num)
        return np.asarray(list(rows), int)

    # What a scheme says of one vector of weights.

    def _noise(self, key: Any, shape: tuple[int, ...]) -> Any:
        """Draw what `_below` is a function of, on one last axis."""
        raise NotImplementedError

    def _below(self, noise: Any, weights: Any) -> Any:
        """Give cumulated numbers of offspring for normalised weights."""
        raise NotImplementedError

    def _log_mass(self, log_weights: Any, ancestors: Any) -> Any:
        """Give the log mass of sorted ancestors of positive weight; log weights as they came."""
        raise NotImplementedError
