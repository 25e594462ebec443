"""Objectives that weigh the KL divergence, and that match the guide's draws to the prior's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ppl._types import Scalar
from ppl.counts import count
from ppl.errors import (
    ArgumentError,
    UnsupportedError,
    at,
    check_addresses,
    message,
    named_keywords,
)
from ppl.inference.vi.objective import Objective, lift
from ppl.program import Program
from ppl.semantics.guided import guided
from ppl.semantics.handlers import scale
from ppl.semantics.weighted import traced, weighted
from ppl.staging import stage
from ppl.statements import scope

#: A function of two points, each a vector, to a real number.
Kernel = Callable[[Any, Any], Any]


@named_keywords
def beta_elbo(program: Any, guide: Any, beta: float) -> Program | Objective:
    """Weigh the KL divergence from the prior in the ELBO by beta (Higgins et al. 2017).

    **Meaning.** The mean of the value is E_guide[log likelihood] - beta KL(guide || prior), in
    nats, where the likelihood is all that the program scores. At 1 it is the ELBO, and above 1 it
    is still below the log evidence; below 1 it need not be.

    Args:
        program: as for `ppl.vi.elbo`.
        guide: as for `ppl.vi.elbo`.
        beta: the weight, at least 0; with 0, draws that the prior cannot make cost nothing.
    """
    beta = _weight("beta_elbo", "beta", beta)
    return lift(beta_elbo_program, program, guide, maximize=True, beta=beta)


@named_keywords
def infovae(
    program: Any,
    guide: Any,
    *,
    address: str,
    mmd_weight: float,
    kl_weight: float = 1.0,
    kernel: Literal["rbf"] | Kernel = "rbf",
    num_particles: int = 2,
) -> Program | Objective:
    """Match the guide's draws, over all data, to the prior's: InfoVAE with the MMD.

    **Meaning.** The mean of the value is E_guide[log likelihood] - kl_weight KL(guide || prior) -
    mmd_weight MMD^2, the last between the law of the guide's draws at `address` and that of the
    program's before any observation. Every element of the site is one draw: with a plate, or a
    `vmap`, over rows of data the guide's law is the mixture of its rows (the aggregate posterior).
    The estimate of MMD^2 compares elements of different runs only, and so is unbiased however the
    elements of one run depend on one another; it can be negative.

    Args:
        program: as for `ppl.vi.elbo`.
        guide: as for `ppl.vi.elbo`.
        address: a latent site that the guide draws, outside of branches.
        mmd_weight: the weight of MMD^2, at least 0; alpha + lambda - 1 in the paper. A sum over
            rows, as the likelihood is, wants a weight that grows with their number.
        kl_weight: the weight of the KL divergence, at least 0; 1 - alpha in the paper. With 0 the
            objective is the MMD-VAE.
        kernel: "rbf" for exp(-|x - y|^2 / (2 d)) with d the size of an event, whose width suits a
            prior of unit scale; or a function of two vectors, the events laid flat, to a number.
        num_particles: independent runs, 2 at least.

    Raises:
        ArgumentError: an argument is not what it should be; the message says what.
        AddressError: the guide does not draw the address.
        UnsupportedError: the site stands in a branch of the program.

    Source: Zhao, Song & Ermon (2019), InfoVAE, section 3; Gretton et al. (2012), eq. 3, with runs
    for the independent points of its U-statistic.
    """
    if kernel != "rbf" and not callable(kernel):
        _refuse(
            "infovae", f"kernel={kernel!r}", '"rbf", or a function of two vectors', 'kernel="rbf"'
        )
    return lift(
        infovae_program,
        program,
        guide,
        maximize=True,
        address=address,
        mmd_weight=_weight("infovae", "mmd_weight", mmd_weight),
        kl_weight=_weight("infovae", "kl_weight", kl_weight),
        kernel=kernel,
        num_particles=count("infovae", "num_particles", num_particles, least=2),
    )


# --- Programs -----------------------------------------------------------------------------------


def beta_elbo_program(program: Program, guide: Program, beta: float) -> Program:
    """Give the program of the weighted bound; see `ppl.vi.beta_elbo`."""
    pair = _tempered("beta_elbo", program, guide, beta)
    return stage(_beta_elbo_value, (pair,), name=f"beta_elbo({program.name}, {guide.name})")


def infovae_program(
    program: Program,
    guide: Program,
    address: str,
    mmd_weight: float,
    kl_weight: float,
    kernel: Literal["rbf"] | Kernel,
    num_particles: int,
) -> Program:
    """Give the program of the objective with an MMD; see `ppl.vi.infovae`."""
    check_addresses("infovae(address=)", [address], guide.latents)
    pair = _tempered("infovae", program, guide, kl_weight)
    site = program.sites[address]
    if site.conditional:
        raise UnsupportedError(
            message(
                f"infovae got {at(address, site.source)} in a branch",
                needs="a site that every run draws",
                why="what is not drawn cannot be compared",
                fix="draw the site before the branch",
            )
        )
    points = _rbf if kernel == "rbf" else kernel
    given = pair, program, address, mmd_weight, points, num_particles
    return stage(_infovae_value, given, name=f"infovae({program.name}, {guide.name})")


def _tempered(operation: str, program: Program, guide: Program, power: float) -> Program:
    """Draw from the guide, with the ratios of prior to guide to a power."""
    pair = guided(program, guide, operation=operation, subsampled=True)
    ratios = [s.address for s in pair.sites if s.address not in program.sites]
    ratios = [a for a in ratios if pair.sites[a].kind == "factor"]
    return scale(pair, power, ratios) if ratios and power != 1 else pair


def _beta_elbo_value(pair: Program) -> Scalar:
    return weighted(pair)().log_weight


def _infovae_value(
    pair: Program, program: Program, address: str, weight: float, kernel: Kernel, number: int
) -> Scalar:
    site = program.sites[address]
    rank = len(site.shape) - site.placed.site.event_dim
    size = math.prod(site.shape[rank:])

    def points(value: Any) -> Any:
        return jnp.asarray(value, jnp.result_type(float)).reshape(-1, size)

    def of_guide(_: Any) -> Any:
        trace = traced(pair)()
        return trace.log_weight, points(trace.choices[address])

    def of_prior(_: Any) -> Any:
        return points(traced(program)().choices[address])

    bounds, drawn = jax.vmap(of_guide)(jnp.arange(number))
    with scope("prior"):
        prior = jax.vmap(of_prior)(jnp.arange(number))
    return jnp.mean(bounds) - weight * _squared_mmd(drawn, prior, kernel)


def _squared_mmd(x: Float[Array, "run n d"], y: Float[Array, "run n d"], kernel: Kernel) -> Scalar:
    """Estimate the squared maximum mean discrepancy of the laws of the elements, unbiased.

    Pairs within x and within y are of different runs; a run of x and one of y are independent.
    """

    def means(a: Any, b: Any) -> Any:
        """Average the kernel over elements, by pair of runs."""
        over = jax.vmap(jax.vmap(kernel, (None, 0)), (0, None))
        table = over(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]))
        return table.reshape(*a.shape[:2], *b.shape[:2]).mean((1, 3))

    others = 1.0 - jnp.eye(len(x))
    within = jnp.sum(others * (means(x, x) + means(y, y))) / jnp.sum(others)
    return within - 2.0 * jnp.mean(means(x, y))


def _rbf(x: Any, y: Any) -> Any:
    return jnp.exp(-jnp.sum((x - y) ** 2) / (2 * x.size))


def _weight(operation: str, name: str, value: Any) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        _refuse(operation, f"{name}={value!r}", "a finite number of at least 0", f"{name}=1.0")
    return float(value)


def _refuse(operation: str, got: str, needs: str, fix: str) -> None:
    raise ArgumentError(message(f"{operation} got {got}", needs=needs, fix=fix))
