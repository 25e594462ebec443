"""Objectives: programs of one number whose expectation is to be climbed or descended.

Each is a few lines over `weighted(guided(program, guide))`, whose weight w has E[w] = evidence.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from ppl.counts import count
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference.vi import bounds
from ppl.inference.vi.objective import Objective, lift
from ppl.program import Program

#: A program, or a function of parameters that makes one.
Made = Any


@named_keywords
def elbo(program: Made, guide: Made) -> Program | Objective:
    """Bound the log evidence from below by E[log w]: the evidence lower bound.

    **Meaning.** The mean of the value is log evidence - KL(guide || posterior), in nats. Latent
    sites that the guide does not draw are drawn from the program. With a plate of
    `subsample_size=` in both, the terms of a minibatch count for all members: the mean is the bound
    of the whole data.

    Args:
        program: a program, or a function of parameters that makes one.
        guide: a program without scores that draws latent addresses of `program`, or a function of
            parameters that makes one, such as `ppl.vi.mean_field(program)`.

    Returns:
        A program of the number, for `ppl.vi.expectation`; an `Objective` if parameters are missing,
        for `ppl.vi.fit`.
    """
    return lift(bounds.elbo_program, program, guide, maximize=True)


@named_keywords
def iwelbo(program: Made, guide: Made, num_particles: int) -> Program | Objective:
    """Bound the log evidence by E[log mean w]: importance-weighted (Burda et al. 2016).

    **Meaning.** Between the ELBO (one particle) and the log evidence, closer with more particles;
    the signal of the guide's gradient drowns as they grow (Rainforth et al. 2018).

    Args:
        program: as for `elbo`.
        guide: as for `elbo`.
        num_particles: weights that are averaged under the logarithm.
    """
    number = count("iwelbo", "num_particles", num_particles)
    return lift(bounds.iwelbo_program, program, guide, maximize=True, num_particles=number)


@named_keywords
def miwae(program: Made, guide: Made, num_particles: int, num_bounds: int) -> Program | Objective:
    """Average several importance-weighted bounds (Rainforth et al. 2018).

    Args:
        program: as for `elbo`.
        guide: as for `elbo`.
        num_particles: weights in each bound.
        num_bounds: bounds that are averaged.
    """
    settings = {
        "num_particles": count("miwae", "num_particles", num_particles),
        "num_bounds": count("miwae", "num_bounds", num_bounds),
    }
    return lift(bounds.miwae_program, program, guide, maximize=True, **settings)


@named_keywords
def ciwae(program: Made, guide: Made, num_particles: int, beta: float) -> Program | Objective:
    """Mix the two bounds: beta ELBO + (1 - beta) IWELBO, of the same particles.

    Args:
        program: as for `elbo`.
        guide: as for `elbo`.
        num_particles: weights in the importance-weighted bound.
        beta: the share of the ELBO, between 0 and 1.
    """
    number = count("ciwae", "num_particles", num_particles)
    if not 0 <= beta <= 1:
        _refuse("ciwae", f"beta={beta!r}", "a share between 0 and 1", "beta=0.5")
    return lift(
        bounds.ciwae_program, program, guide, maximize=True, num_particles=number, beta=float(beta)
    )


@named_keywords
def piwae(program: Made, guide: Made, num_particles: int, num_bounds: int) -> Program | Objective:
    """Climb the tightest bound with the model, an average of looser ones with the guide.

    **Meaning.** The value is that of `miwae`, and so is its gradient in what `guide` is made from;
    the gradient in what `program` is made from is that of `iwelbo` with all
    `num_particles * num_bounds` particles (Rainforth et al. 2018): the gradient of no one function.

    Args:
        program: as for `elbo`.
        guide: as for `elbo`.
        num_particles: weights in each bound of the guide.
        num_bounds: bounds of the guide.
    """
    settings = {
        "num_particles": count("piwae", "num_particles", num_particles),
        "num_bounds": count("piwae", "num_bounds", num_bounds),
    }
    return lift(bounds.piwae_program, program, guide, maximize=True, **settings)


@named_keywords
def renyi(program: Made, guide: Made, alpha: float, num_particles: int) -> Program | Objective:
    """Estimate the variational Renyi bound, log E[w^(1 - alpha)] / (1 - alpha) (Li & Turner 2016).

    **Meaning.** With finitely many particles the estimate is **biased** towards the ELBO, except
    for alpha = 0, where it is `iwelbo`. As alpha goes to 1 it is the ELBO, which is used there.

    Args:
        program: as for `elbo`.
        guide: as for `elbo`.
        alpha: the order; below 0 the bound lies above the log evidence.
        num_particles: weights that are averaged.
    """
    number = count("renyi", "num_particles", num_particles)
    alpha = float(alpha)
    if not math.isfinite(alpha):
        _refuse("renyi", f"alpha={alpha!r}", "a finite order", "alpha=0.5")
    return lift(
        bounds.renyi_program, program, guide, maximize=True, alpha=alpha, num_particles=number
    )


@named_keywords
def forward_kl(program: Made, guide: Made, num_particles: int) -> Program | Objective:
    """Fit the guide to draws of the posterior: -E_posterior[log guide], by weighted particles.

    **Meaning.** KL(posterior || guide) up to what the guide does not change. The particles come
    from the guide itself, with normalised weights and without a derivative, so that value and
    gradient are **biased** by O(1 / num_particles). Wake-phase update of the guide (Bornschein &
    Bengio 2015).

    Args:
        program: as for `elbo`; the guide must draw all of its latents.
        guide: as for `elbo`.
        num_particles: weighted draws.
    """
    number = count("forward_kl", "num_particles", num_particles)
    return lift(bounds.forward_kl_program, program, guide, maximize=False, num_particles=number)


@named_keywords
def wake_sleep(program: Made, guide: Made, num_particles: int) -> Program | Objective:
    """Reweighted wake-sleep: the model climbs `iwelbo`, the guide descends `forward_kl`.

    **Meaning.** The value is that of `iwelbo`. Its gradient is that of no one function, and biased
    by O(1 / num_particles) in what the guide is made from (Bornschein & Bengio 2015; Le et al.
    2019). No derivative passes a draw, so that discrete latents need no estimator.

    Args:
        program: as for `elbo`; the guide must draw all of its latents.
        guide: as for `elbo`.
        num_particles: weighted draws.
    """
    number = count("wake_sleep", "num_particles", num_particles)
    return lift(bounds.wake_sleep_program, program, guide, maximize=True, num_particles=number)


@named_keywords
def f_divergence(
    program: Made,
    guide: Made,
    divergence: Literal[
        "reverse_kl", "forward_kl", "jensen_shannon", "total_variation", "chi_square"
    ],
) -> Program | Objective:
    """Estimate a divergence between two programs without scores, without bias.

    **Meaning.** With the densities p and q of program and guide at choices drawn from the guide,
    the mean of the value is E_q[f(p / q)]: KL(q || p), KL(p || q), Jensen-Shannon, total variation
    or chi-square, in nats where there is a logarithm. If the guide cannot draw what the program
    can, the part of the divergence that lies there is missing.

    Args:
        program: a program without scores, or a function of parameters that makes one.
        guide: likewise, with the same latent addresses.
        divergence: which one.

    Raises:
        OpenObservationsError: the program scores; what is known then are bounds, such as `elbo`,
            `renyi` and `forward_kl`.
    """
    if divergence not in bounds.DIVERGENCES:
        known, fix = ", ".join(bounds.DIVERGENCES), 'divergence="total_variation"'
        _refuse("f_divergence", f"divergence={divergence!r}", f"one of {known}", fix)
    return lift(bounds.f_divergence_program, program, guide, maximize=False, divergence=divergence)


def evidence_bound(population: Made) -> Program | Objective:
    """Bound the log evidence by E[log evidence estimate] of any program or population method.

    **Meaning.** Of a program that is no population the estimate is the weight of one run. With
    `ppl.smc(program, N, proposal=guide)` this is the filtering variational objective (FIVO;
    Maddison et al. 2017; Naesseth et al. 2018; Le et al. 2018). Its resampling draws are sites of
    their own, to which `ppl.vi.estimators` can give `ppl.vi.ignore()` (biased, the usual choice) or
    `ppl.vi.reinforce()`, which is what they have by default.

    Args:
        population: a program of a `Population` with an unbiased evidence, or any other program, or
            a function of parameters that makes one.
    """
    if isinstance(population, Program):
        return bounds.evidence_bound_program(population, None)
    return Objective(population, None, bounds.evidence_bound_program, (), True)


def _refuse(operation: str, got: str, needs: str, fix: str) -> None:
    raise ArgumentError(message(f"{operation} got {got}", needs=needs, fix=fix))
