"""The continuous latents of a trace as one vector of reals, while its other choices are held.

Two things are more than `unconstrain(condition(program, rest))`. Where a site stands in a branch
that is not taken, its coordinates are auxiliary: they have a standard normal density, are drawn
from it when a move starts and forgotten when it ends, so that a move may enter the branch. And a
held site has no value to enter its branch with, so that the density is zero where a held site would
come into being, or go: a chain in the set of states with the same held sites.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ppl import _jax
from ppl import distributions as dist
from ppl._types import Scalar
from ppl.errors import ArgumentError, UnsupportedError, at, check_addresses, message
from ppl.inference.trace_kernel import over
from ppl.semantics.handlers import condition
from ppl.semantics.kernel import choose
from ppl.semantics.unconstrained import Unconstrained, unconstrain
from ppl.semantics.weighted import Trace
from ppl.statements import sample


@dataclasses.dataclass(frozen=True)
class Coordinates:
    """A trace whose continuous latents move; made by `coordinates`.

    `fixed` are the held sites that stand in branches.
    """

    trace: Trace
    space: Unconstrained
    fixed: tuple[str, ...]

    @property
    def size(self) -> int:
        """The dimension."""
        return self.space.size

    @property
    def exists(self) -> Array | None:
        """Which coordinates are those of sites that exist; None if all always are."""
        flags, present = [], self.trace.present
        if not any(a in present for a, _ in self.space.shapes):
            return None
        for address, shape in self.space.shapes:
            flag = present.get(address, jnp.ones((), bool))
            flags.append(jnp.broadcast_to(over(flag, jnp.zeros(shape)), shape).reshape(-1))
        return jnp.concatenate(flags)

    def vector(self) -> Float[Array, " size"]:
        """Give the coordinates; zero where a site does not exist."""
        z = self.space.flatten({a: self.trace.choices[a] for a, _ in self.space.shapes})
        return z if self.exists is None else jnp.where(self.exists, z, 0.0)

    def start(self) -> Float[Array, " size"]:
        """Give the coordinates, with those of absent sites drawn."""
        z = self.vector()
        if self.exists is None:
            return z
        normal = dist.Normal(0.0, 1.0).expand([self.size]).to_event(1)
        return jnp.where(self.exists, z, sample("absent", normal).astype(z.dtype))

    def log_density(self, vector: Float[Array, " size"]) -> Scalar:
        """Give the log density of the coordinates, log-Jacobian included."""
        point = self.space.at(vector)
        if not self.fixed:
            return point.log_density
        present = self.trace.with_choices(point.choices).present
        same = [jnp.all(present[a] == self.trace.present[a]) for a in self.fixed]
        return jnp.where(jnp.all(jnp.array(same)), point.log_density, -jnp.inf)

    def moved(self, vector: Float[Array, " size"], flag: Any) -> Trace:
        """Give the trace at other coordinates where the flag holds, and the old one elsewhere.

        A point that rounding puts outside of the support is no place to go to.
        """
        new = self.trace.with_choices(self.space.unflatten(vector))
        return choose(flag & (new.log_density > -jnp.inf), new, self.trace)


def coordinates(operation: str, trace: Trace, addresses: tuple[str, ...] | None) -> Coordinates:
    """Give coordinates to the continuous latents of a trace, or to those named.

    Raises:
        AddressError: an address is not a latent site.
        UnsupportedError: an address is discrete, or there is no continuous latent site.
    """
    program = trace._known_program(operation)
    latents = [s for s in program.sites if s.kind == "latent"]
    moving = {s.address for s in latents if not s.discrete}
    if addresses is not None:
        check_addresses(operation, addresses, program.latents)
        for site in latents:
            if site.address in addresses and site.discrete:
                raise UnsupportedError(
                    message(
                        f"{operation} got the discrete site {at(site.address, site.source)} "
                        f"({site.distribution}) among its addresses",
                        needs="continuous latent sites",
                        why="a discrete choice has no real coordinates",
                        fix=f'ppl.kernels.single_site(addresses=["{site.address}"])',
                    )
                )
        moving = set(addresses)
    if not moving:
        raise UnsupportedError(
            message(
                f"{operation} got {program.name}, which has no continuous latent site",
                needs="at least one continuous latent site",
                why=f"its latent sites are {', '.join(program.latents) or 'none'}",
                fix="ppl.kernels.single_site()",
            )
        )
    held = [s for s in latents if s.address not in moving]
    rest = {s.address: trace.choices[s.address] for s in held}
    space = unconstrain(condition(program, rest) if rest else program)
    return Coordinates(trace, space, tuple(s.address for s in held if s.conditional))


def fit(operation: str, name: str, setting: Any, space: Coordinates | Unconstrained) -> Array:
    """Give a setting as an array: one number, or one for each coordinate or pair of them."""
    size = space.size
    if jnp.shape(setting) not in ((), (size,), (size, size)):
        names = (space.space if isinstance(space, Coordinates) else space).names
        raise ArgumentError(
            message(
                f"{operation} got {name} of shape {jnp.shape(setting)}",
                needs=f"shape (), ({size},) or ({size}, {size})",
                why=f"the program has {size} coordinates: {', '.join(names[:6])}"
                + (", ..." if size > 6 else ""),
                fix=f"{name}=1.0, or one number for each coordinate",
            )
        )
    return jnp.asarray(setting, jnp.result_type(float))


def numbers(operation: str, name: str, setting: Any, fix: str) -> Array:
    """Check what can be seen of a setting before there is a trace.

    Raises:
        ArgumentError: it is no number, vector or square matrix, is not finite, or not positive.
    """
    array = setting if _jax.is_tracer(setting) else np.asarray(setting)
    square = array.ndim < 2 or (array.ndim == 2 and array.shape[0] == array.shape[1])
    good = array.dtype.kind in "iuf" and square
    if good and not _jax.is_tracer(array):
        # Of a matrix only the diagonal: the rest of a factor or an inverse mass has any sign.
        positive = np.diagonal(array) if array.ndim == 2 else array
        good = bool(np.all(np.isfinite(array)) and np.all(positive > 0))
    if not good:
        shown = array if _jax.is_tracer(array) else np.array2string(array, threshold=6)
        raise ArgumentError(
            message(
                f"{operation} got {name}={shown} of shape {array.shape}",
                needs="a positive number, a vector of them, or a square matrix of positive "
                "diagonal, all finite",
                fix=fix,
            )
        )
    return jnp.asarray(array, jnp.result_type(float))


def one_number(operation: str, name: str, setting: Any, fix: str, instead: str) -> Array:
    """Check a setting that is the same for all coordinates.

    Args:
        operation: for messages.
        name: of the setting.
        setting: what was given.
        fix: a call that is right.
        instead: the setting that what differs between coordinates belongs to, of those step sizes.

    Raises:
        ArgumentError: it is no positive number.
    """
    array = numbers(operation, name, setting, fix)
    if array.ndim:
        raise ArgumentError(
            message(
                f"{operation} got {name} of shape {array.shape}",
                needs="one number",
                why="what differs between coordinates belongs to the mass",
                fix=f"{instead}, and {name}=1.0",
            )
        )
    return array


def definite(operation: str, name: str, setting: Any, fix: str) -> Array:
    """Check a setting that is a covariance.

    Raises:
        ArgumentError: as `numbers` does; or it is a matrix that is not positive definite.
    """
    array = numbers(operation, name, setting, fix)
    if array.ndim == 2 and not _jax.is_tracer(array):
        matrix = np.asarray(array, np.float64)
        if not np.allclose(matrix, matrix.T) or np.min(np.linalg.eigvalsh(matrix)) <= 0:
            raise ArgumentError(
                message(
                    f"{operation} got the {name} {np.array2string(matrix, threshold=9)}",
                    needs="a symmetric positive definite matrix",
                    why="it is a covariance",
                    fix=f"{name}=factor @ factor.T, or a vector for a diagonal one",
                )
            )
    return array


def variances(operation: str, name: str, setting: Any, fix: str) -> Array:
    """Check a setting that is one number, or one for each coordinate.

    Raises:
        ArgumentError: as `numbers` does; or it is a matrix.
    """
    array = numbers(operation, name, setting, fix)
    if array.ndim > 1:
        raise ArgumentError(
            message(
                f"{operation} got {name} of shape {array.shape}",
                needs="one number, or one for each coordinate",
                fix=fix,
            )
        )
    return array
