"""Normals in unconstrained space whose coordinates depend on one another."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, ArrayLike
from numpyro.distributions import Distribution

from ppl import distributions as dist
from ppl._types import PyTree
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference.vi.guides.base import Guide, blocks, centre, positive, real_space
from ppl.inference.vi.guides.joint import draw_jointly
from ppl.program import Program


@dataclasses.dataclass(frozen=True)
class FullRank:
    """A normal with any covariance."""

    name: str = "full_rank"

    def draw(self, program: Program, params: PyTree) -> dict[str, Array]:
        """Draw the model's latents."""
        factor = jnp.tril(params["scale_tril"])
        # The signs of columns do not change the covariance; a Cholesky factor has positive ones.
        factor = factor * jnp.where(jnp.diagonal(factor) < 0, -1.0, 1.0)
        return draw_jointly(self, program, {"loc": params["loc"], "scale_tril": factor})

    def conditional(
        self, params: PyTree, address: str, block: slice, earlier: dict[str, Array]
    ) -> Distribution:
        """Give the distribution of a block given all before it."""
        loc, factor = params["loc"], params["scale_tril"]
        before = slice(block.start)
        noise = solve_triangular(factor[before, before], _residual(earlier, loc), lower=True)
        here = loc[block] + factor[block, before] @ noise
        return dist.MultivariateNormal(here, scale_tril=factor[block, block])


@dataclasses.dataclass(frozen=True)
class LowRank:
    """A normal whose covariance is a diagonal and a matrix of low rank."""

    rank: int
    name: str = "low_rank"

    def draw(self, program: Program, params: PyTree) -> dict[str, Array]:
        """Draw the model's latents."""
        return draw_jointly(self, program, params)

    def conditional(
        self, params: PyTree, address: str, block: slice, earlier: dict[str, Array]
    ) -> Distribution:
        """Give the distribution of a block given all before it.

        The coordinates are independent given `rank` standard normal factors, and the factors are
        normal given the coordinates before the block.
        """
        loc, factor = params["loc"], params["factor"]
        variance, before = jnp.exp(2 * params["log_scale"]), slice(block.start)
        weighted = factor[before] / variance[before, None]
        precision = jnp.eye(self.rank, dtype=loc.dtype) + factor[before].T @ weighted
        root = jnp.linalg.cholesky(precision)
        residual = solve_triangular(root, weighted.T @ (_residual(earlier, loc)), lower=True)
        spread = solve_triangular(root, factor[block].T, lower=True).T
        here = loc[block] + spread @ residual
        return dist.LowRankMultivariateNormal(here, spread, variance[block])


@dataclasses.dataclass(frozen=True)
class Structured:
    """Normals whose locations are linear in the coordinates they depend on.

    `parents` has, by address, the latents that it depends on.
    """

    parents: tuple[tuple[str, tuple[str, ...]], ...]
    name: str = "structured"

    def draw(self, program: Program, params: PyTree) -> dict[str, Array]:
        """Draw the model's latents."""
        return draw_jointly(self, program, params)

    def conditional(
        self, params: PyTree, address: str, block: slice, earlier: dict[str, Array]
    ) -> Distribution:
        """Give the distribution of a block given all before it."""
        here = params["loc"][block]
        for parent in dict(self.parents)[address]:
            here = here + params["weights"][address][parent] @ earlier[parent]
        return dist.Normal(here, jnp.exp(params["log_scale"][block])).to_event(1)


@named_keywords
def full_rank(
    program: Program,
    *,
    init_scale: ArrayLike = 0.1,
    init: Mapping[str, ArrayLike] | None = None,
) -> Guide:
    """Guide by a normal with any covariance in unconstrained space.

    **Meaning.** The vector of all unconstrained coordinates is normal, with mean `loc` and
    covariance `scale_tril @ scale_tril.T`, and is mapped onto the supports. Every address is a site
    of its own, drawn given the coordinates of those before it, so the density of each is exact. An
    address is drawn whole: sites inside scans are drawn before the scan, and must have a support
    that does not change with what the scan computes. Of `scale_tril` the part above the diagonal is
    not read, and the signs of the diagonal do not matter.

    Args:
        program: the model; its latents are continuous. Flat improper priors are welcome.
        init_scale: the standard deviation in unconstrained space that parameters start from.
        init: constrained values by address, where `loc` starts; 0 for the others.

    Raises:
        UnsupportedError: a latent is discrete, stands in a branch or a `while_loop`, or is a member
            of a subsampled plate; a site of a loop has a computed support.
        ArgumentError: `init_scale` is not positive.
        AddressError: `init` names an address that is not latent.
        ObservationError: a value of `init` has another shape than its site, or is outside its
            support.

    Source: Kucukelbir et al. 2017, Automatic differentiation variational inference, section 2.4.
    """
    _, loc, scale = _start("full_rank", program, init_scale, init)
    return Guide({"loc": loc, "scale_tril": jnp.diag(scale)}, program, FullRank())


@named_keywords
def low_rank(
    program: Program,
    *,
    rank: int = 1,
    init_scale: ArrayLike = 0.1,
    init: Mapping[str, ArrayLike] | None = None,
) -> Guide:
    """Guide by a normal whose covariance is a diagonal and a matrix of low rank.

    **Meaning.** As `full_rank`, with mean `loc` and covariance
    `factor @ factor.T + diag(exp(2 log_scale))`, for a `factor` of `rank` columns. Work and memory
    grow with the number of coordinates times `rank` squared.

    Args:
        program: the model; its latents are continuous. Flat improper priors are welcome.
        rank: number of columns.
        init_scale: the standard deviation that the diagonal starts from; the factor starts from
            smaller fixed random numbers, since at zero it would have no gradient.
        init: constrained values by address, where `loc` starts; 0 for the others.

    Raises:
        UnsupportedError: as `full_rank` does.
        ArgumentError: `rank` is no positive integer, or `init_scale` is not positive.
        AddressError: `init` names an address that is not latent.
        ObservationError: a value of `init` has another shape than its site, or is outside its
            support.

    Source: Ong, Nott & Smith 2018, Gaussian variational approximation with a factor covariance
    structure.
    """
    try:
        columns = 0 if isinstance(rank, bool) else operator.index(rank)
    except TypeError:
        columns = 0
    if columns < 1:
        raise ArgumentError(
            message(
                f"low_rank got rank={rank!r}",
                needs="a positive integer",
                why="without columns it would be ppl.vi.mean_field",
                fix="ppl.vi.low_rank(program, rank=2)",
            )
        )
    _, loc, scale = _start("low_rank", program, init_scale, init)
    noise = jax.random.normal(jax.random.key(0), (*loc.shape, columns), loc.dtype)
    params = {"loc": loc, "log_scale": jnp.log(scale), "factor": 0.1 * scale[:, None] * noise}
    return Guide(params, program, LowRank(columns))


@named_keywords
def structured(
    program: Program,
    *,
    init_scale: ArrayLike = 0.1,
    init: Mapping[str, ArrayLike] | None = None,
) -> Guide:
    """Guide by normals that depend on one another as the model's latents do.

    **Meaning.** In unconstrained space each latent is normal, with independent coordinates given
    the latents that it depends on in the model (`program.sites[address].depends_on`), and with a
    mean that is linear in theirs: `loc + weights[address][parent] @ parent + ...`, and the standard
    deviation `exp(log_scale)`. Iterations of one address do not depend on one another, nor do
    latents that only share observations; `full_rank` has both. An address is drawn whole, as by
    `full_rank`.

    Args:
        program: the model; its latents are continuous. Flat improper priors are welcome.
        init_scale: the standard deviation in unconstrained space that parameters start from.
        init: constrained values by address, where the mean starts while the weights are 0, as they
            are at first; 0 for the others.

    Raises:
        UnsupportedError: as `full_rank` does.
        ArgumentError: `init_scale` is not positive.
        AddressError: `init` names an address that is not latent.
        ObservationError: a value of `init` has another shape than its site, or is outside its
            support.
    """
    space, loc, scale = _start("structured", program, init_scale, init)
    places = blocks(space)
    parents: dict[str, list[str]] = {}
    for address in places:
        causes = _causes(program, address)
        # Only those drawn before: in a scan a site may also depend on later ones.
        parents[address] = [a for a in parents if a in causes]
    weights = {
        address: {p: jnp.zeros((_count(places[address]), _count(places[p])), loc.dtype) for p in of}
        for address, of in parents.items()
    }
    params = {"loc": loc, "log_scale": jnp.log(scale), "weights": weights}
    rows = tuple((address, tuple(of)) for address, of in parents.items())
    return Guide(params, program, Structured(rows))


def _start(operation: str, program: Program, init_scale: Any, init: Any) -> Any:
    space = real_space(operation, program)
    scale = positive(operation, "init_scale", init_scale)
    loc = centre(space, init)
    return space, loc, jnp.broadcast_to(jnp.asarray(scale, loc.dtype), loc.shape)


def _residual(earlier: dict[str, Array], loc: Array) -> Array:
    """Give the coordinates drawn so far, less their mean."""
    drawn = jnp.concatenate([*earlier.values()]) if earlier else loc[:0]
    return drawn - loc[: drawn.size]


def _count(block: slice) -> int:
    return block.stop - block.start


def _causes(program: Program, address: str) -> set[str]:
    """Give the latents that a site depends on, also by way of deterministic sites."""
    found, waiting = set(), [address]
    while waiting:
        for parent in program.sites[waiting.pop()].depends_on:
            if parent not in found:
                found.add(parent)
                if program.sites[parent].kind == "deterministic":
                    waiting.append(parent)
    return found & set(program.latents)
