"""`laplace`: the normal at the mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jaxtyping import ArrayLike

from ppl import _jax
from ppl.counts import count
from ppl.errors import ArgumentError, InitializationError, message, named_keywords
from ppl.inference.vi.guides.base import Guide, centre, real_space
from ppl.inference.vi.guides.normal import FullRank
from ppl.program import Program
from ppl.semantics.unconstrained import Unconstrained

#: How far from the mode, in standard deviations of the normal, the search may end.
_CLOSE = 1e-3


class _Place(NamedTuple):
    """Minus the log density at a point, with its derivatives.

    `distance` is the length of Newton's step from it in standard deviations of the normal, infinite
    where the density is not finite or the Hessian not positive definite.
    """

    z: np.ndarray
    value: float
    gradient: np.ndarray
    hessian: np.ndarray
    distance: float


@jax.jit
def _evaluate(space: Unconstrained, z: Any) -> Any:
    def potential(z: Any) -> Any:
        return -space.log_density(z)

    value, gradient = jax.value_and_grad(potential)(z)
    return value, gradient, jax.hessian(potential)(z)


@named_keywords
def laplace(
    program: Program,
    *,
    init: Mapping[str, ArrayLike] | None = None,
    max_steps: int = 200,
) -> Guide:
    """Guide by the normal at the mode of the density in unconstrained space.

    **Meaning.** The mean `loc` is the mode of `ppl.unconstrain(program).log_density` that the
    search finds, and the covariance `scale_tril @ scale_tril.T` minus the inverse of the Hessian
    there. `guide(guide.params)` is that normal, mapped onto the supports and drawn address by
    address as by `full_rank`, of which these parameters are a member: a fit may go on from them.
    Exact where the unconstrained posterior is normal. The search is Newton's, with the full
    Hessian: for up to a few hundred coordinates.

    Args:
        program: the model; its latents are continuous, and its arrays are known numbers.
        init: constrained values by address, where the search starts; 0 in unconstrained space for
            the others.
        max_steps: how many steps the search may take.

    Raises:
        InitializationError: the density at the start is not finite, the search did not arrive at a
            mode, or the Hessian there is not negative definite.
        UnsupportedError: as `full_rank` does; or the program has a subsampled plate.
        ArgumentError: the program's arrays are traced, or `max_steps` is not a positive integer.

    Source: Dauphin et al. 2014, Identifying and attacking the saddle point problem, section 4
    (steps by absolute curvature; here with Levenberg's damping for a trust region).
    """
    steps = count("laplace", "max_steps", max_steps)
    space = real_space("laplace", program, subsample=False)
    if any(map(_jax.is_tracer, jax.tree.leaves((program, dict(init or {}))))):
        raise ArgumentError(
            message(
                "laplace got a program with traced arrays",
                needs="known numbers",
                why="the search for the mode stops when it has arrived, which has to be seen",
                fix="call it outside of jax.jit, jax.vmap and jax.grad",
            )
        )
    start = np.asarray(centre(space, init))
    z, hessian = _mode(program, space, start, steps)
    flipped = np.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1].T  # lower; its inverse is, too
    tril = scipy.linalg.solve_triangular(flipped, np.eye(len(z)), lower=True)
    params = {"loc": jnp.asarray(z, start.dtype), "scale_tril": jnp.asarray(tril, start.dtype)}
    return Guide(params, program, FullRank("laplace"))


def _mode(
    program: Program, space: Unconstrained, start: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Search for the mode; give it with the Hessian of minus the log density."""
    place = _at(space, start.astype(np.float64), start.dtype)
    if not np.isfinite(place.value):
        raise InitializationError(
            message(
                f"laplace got {program.name}, whose density or Hessian is not finite at the start",
                needs="a finite log density to climb from",
                fix="ppl.vi.laplace(program, init={address: value}) near plausible values",
            )
        )
    damping, taken = 0.0, 0
    while taken < steps and not place.distance < _CLOSE:
        taken += 1
        values, vectors = np.linalg.eigh(place.hessian)
        widest = max(np.max(np.abs(values)), 1e-12)
        # By absolute curvature a step is downhill, and saddle points repel.
        curvature = np.maximum(np.abs(values), 1e-8 * widest) + damping
        step = vectors @ ((vectors.T @ place.gradient) / curvature)
        trial = _at(space, place.z - step, start.dtype)
        if trial.value < place.value or trial.distance < place.distance:
            place, damping = trial, damping / 10 if damping > 1e-4 * widest else 0.0
        else:
            damping = max(10 * damping, 1e-3 * widest)
        if damping > 1e12 * widest:
            break
    for _ in range(2):  # Newton's steps square the distance, until rounding is all there is
        if np.isfinite(place.distance):
            trial = _at(space, place.z - _newton(place.hessian, place.gradient), start.dtype)
            place = min(place, trial, key=lambda p: p.distance)
    worst = space.names[int(np.argmax(np.abs(place.gradient)))]
    if not np.isfinite(place.distance):
        flat = np.linalg.eigh(place.hessian)
        worst = space.names[int(np.argmax(np.abs(flat.eigenvectors[:, 0])))]
        raise InitializationError(
            message(
                f"laplace found no curvature in the direction of {worst}, where the search ended "
                f"after {taken} steps: the smallest eigenvalue of minus the Hessian is "
                f"{flat.eigenvalues[0]:.3g}",
                needs="a mode with a positive definite matrix there",
                why="a density that rises for ever or is flat has no normal beside it",
                fix="give the site a proper prior, ppl.vi.full_rank, or other init= values",
            )
        )
    if not place.distance < _CLOSE:
        raise InitializationError(
            message(
                f"laplace did not arrive at a mode in {taken} steps: the gradient at {worst} "
                f"is {np.max(np.abs(place.gradient)):.3g}",
                needs="a point within 0.001 standard deviations of the mode",
                why="a density that rises for ever has no mode, and single precision may be too "
                "coarse to see one",
                fix=f"ppl.vi.laplace(program, max_steps={2 * steps}), init= values nearer to the "
                "mode, or jax.config.update('jax_enable_x64', True)",
            )
        )
    return place.z.astype(np.float64), place.hessian


def _at(space: Unconstrained, z: np.ndarray, dtype: Any) -> _Place:
    z = z.astype(dtype)
    value, gradient, hessian = (np.asarray(x, np.float64) for x in _evaluate(space, z))
    if not all(np.all(np.isfinite(x)) for x in (value, gradient, hessian)):
        return _Place(z, np.inf, gradient, hessian, np.inf)
    if not _definite(hessian, dtype):
        return _Place(z, float(value), gradient, hessian, np.inf)
    distance = float(np.sqrt(max(gradient @ _newton(hessian, gradient), 0.0)))
    return _Place(z, float(value), gradient, hessian, distance)


def _definite(hessian: np.ndarray, dtype: Any) -> bool:
    """Tell whether a matrix is positive definite by more than rounding, in any units."""
    diagonal = np.diagonal(hessian)
    if not np.all(diagonal > 0):
        return False
    scaled = hessian / np.sqrt(np.outer(diagonal, diagonal))
    return bool(np.linalg.eigvalsh(scaled)[0] > 4 * len(scaled) * np.finfo(dtype).eps)


def _newton(hessian: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Give Newton's step, where the Hessian is positive definite."""
    return scipy.linalg.cho_solve(scipy.linalg.cho_factor(hessian), gradient)
