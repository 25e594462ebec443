"""`tarp`: coverage of an algorithm's posteriors, with random reference points."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float
from scipy import stats

from ppl._types import Key
from ppl.check.report import Report, number
from ppl.check.sequential import require_between, require_count
from ppl.check.simulation import Infer, flat, prior, simulate
from ppl.errors import ArgumentError, ResultError, message, named_keywords
from ppl.program import Program
from ppl.semantics.run import as_key

_NOISE, _PILOT = 0.25, 1024


@named_keywords
def tarp(
    infer: Infer,
    program: Program,
    *,
    key: Key,
    num_simulations: int = 500,
    num_draws: int = 99,
    references: Callable[[dict[str, Array], Array], Any] | None = None,
    false_alarm: float = 1e-6,
    resolution: float = 0.15,
) -> Report:
    """Check the coverage of an algorithm's posteriors by balls around reference points.

    **Meaning.** For each simulation of choices and data, a reference point is chosen, and the share
    of posterior draws nearer to it than the truth is found (in prior standard deviations). Under
    exact inference that share is uniform, whatever function of the data the point is, and "failed"
    has probability at most `false_alarm`, exactly. Points that depend on the data tell a posterior
    that ignores them; points that do not cannot: the prior in place of the posterior would pass.

    Args:
        infer: as for `sbc`.
        program: the program; the data in it serve as an example of their shape.
        key: a JAX key or a seed.
        num_simulations: number of simulated data sets.
        num_draws: posterior draws taken for each.
        references: `references(data, key)` gives the reference point of one simulation: one number
            for each coordinate of the choices, in the order of `program.latents`. None takes a
            random rotation of the standardised data, fixed for the whole check, and some noise.
        false_alarm: the probability of failing wrongly.
        resolution: the check passes only if a Kolmogorov-Smirnov distance of this size would have
            failed.

    Returns:
        A report, with a plot of the coverage.

    Raises:
        OpenObservationsError, UnsupportedError, ArgumentError, ResultError: as for `sbc`.

    Source: Lemos et al. (2023), algorithm 2. Deviations: ties are broken at random, the distance is
    tested with the exact law of Kolmogorov, and the default points depend on the data.
    """
    for name, count in (("num_simulations", num_simulations), ("num_draws", num_draws)):
        require_count("tarp", name, count, 1, "500" if name == "num_simulations" else "99")
    require_between("tarp", "false_alarm", false_alarm, 0.0, 0.5, "1e-6")
    require_between("tarp", "resolution", resolution, 0.0, 1.0, "0.15")
    base, points, ties, pilot = jax.random.split(as_key(key), 4)
    found = simulate("tarp", infer, program, num_draws, num_simulations, base)
    truth, draws, data = flat(found.truth, 1)[1], flat(found.draws, 2)[1], flat(found.data, 1)[1]
    # Scales come from draws of their own, so that the truths stay exchangeable with the draws.
    free_choices, free_data = prior("tarp", program, _PILOT, pilot)
    usual = flat({a: free_choices[a] for a in found.truth}, 1)[1]
    scale = _spread(usual)
    if references is None:
        standard = _standard(data, flat(free_data, 1)[1])
        where = usual.mean(axis=0) + scale * _rotated(standard, len(scale), _generator(points))
    else:
        keys = jax.random.split(points, num_simulations)
        where = _given(jax.vmap(references)(found.data, keys), truth)
    shares = _shares(truth / scale, draws / scale, where / scale, _generator(ties))
    distance = float(stats.kstest(shares, "uniform").statistic)
    limit = float(stats.kstwo.isf(false_alarm, num_simulations))
    verdict = "failed" if distance >= limit else "passed"
    notes = [_note(shares)] if verdict == "failed" else []
    if verdict == "passed" and limit > resolution:
        verdict = "undecided"
        needed = math.ceil(num_simulations * (limit / resolution) ** 2)
        notes.append(
            f"Only a distance of {number(limit)} would have failed, and the check asks for "
            f"{number(resolution)}: set num_simulations={needed} or raise resolution."
        )
    return Report(
        "tarp",
        verdict,
        distance,
        "Kolmogorov-Smirnov distance of coverage",
        limit,
        false_alarm,
        {"simulations": num_simulations, "draws of each": num_draws},
        repr(program),
        ("credibility", "coverage", "difference"),
        _rows(shares),
        tuple(notes),
        functools.partial(_plot, shares, limit),
    )


def _generator(key: Array) -> np.random.Generator:
    return np.random.default_rng(np.asarray(jax.random.bits(key, (4,))))


def _standard(data: Any, usual: Any) -> Float[Any, "simulations numbers"]:
    return (data - np.median(usual, axis=0)) / _spread(usual)


def _rotated(
    standard: Float[Any, "simulations numbers"], dims: int, rng: np.random.Generator
) -> Float[Any, "simulations dims"]:
    """Map the data to the space of the choices by a random rotation, with some noise."""
    left, _, right = np.linalg.svd(rng.normal(size=(standard.shape[1], dims)), full_matrices=False)
    return standard @ left @ right + _NOISE * rng.normal(size=(len(standard), dims))


def _spread(x: Any) -> Any:
    """A scale that great values do not move: half the distance of the outer quartiles."""
    low, high = np.quantile(x, [0.16, 0.84], axis=0)
    return np.where(high > low, (high - low) / 2, 1.0)


def _given(where: Any, truth: Any) -> Float[Any, "simulations dims"]:
    out = np.asarray(where, np.float64)
    if out.shape != truth.shape:
        raise ArgumentError(
            message(
                f"tarp got reference points of shape {out.shape[1:]}",
                needs=f"shape {truth.shape[1:]}",
                why="a point has one coordinate for each number among the choices",
                fix=f"references=lambda data, key: jax.random.normal(key, {truth.shape[1:]})",
            )
        )
    return out


def _shares(
    truth: Any, draws: Any, where: Any, rng: np.random.Generator
) -> Float[Any, " simulations"]:
    """The share of draws nearer to the point than the truth: uniform under exact inference."""
    mine = np.sqrt(((truth - where) ** 2).sum(axis=-1))
    theirs = np.sqrt(((draws - where[:, None]) ** 2).sum(axis=-1))
    if np.isnan(mine).any() or np.isnan(theirs).any():
        raise ResultError(
            message(
                "tarp got a distance that is NaN",
                needs="choices, draws and reference points that are finite numbers",
                fix="let the algorithm start, and stay, where the density is finite",
            )
        )
    below, ties = (theirs < mine[:, None]).sum(axis=1), (theirs == mine[:, None]).sum(axis=1)
    # A rank, uniform on 0, ..., L, made continuous.
    rank = below + rng.integers(0, ties + 1) + rng.uniform(size=len(mine))
    return rank / (draws.shape[1] + 1)


def _rows(shares: Any) -> list[tuple[str, ...]]:
    levels = np.arange(1, 10) / 10
    covered = np.searchsorted(np.sort(shares), levels) / len(shares)
    return [(f"{z:.1f}", f"{c:.3f}", f"{c - z:+.3f}") for z, c in zip(levels, covered, strict=True)]


def _note(shares: Any) -> str:
    mean, sd = float(shares.mean()), float(shares.std())
    return (
        f"Coverage is not credibility: shares have mean {mean:.3f} for 0.5 and sd {sd:.3f} for "
        "0.289. An sd that is too great tells of posteriors that are too narrow; a mean, of "
        "posteriors too near to the reference points or too far from them: biased, or ignoring "
        "the data."
    )


def _plot(shares: Any, limit: float, ax: Any) -> None:
    """Draw coverage against credibility, and the band it leaves with the check's false alarm."""
    z = np.linspace(0, 1, 101)
    ax.fill_between(
        z, np.maximum(z - limit, 0), np.minimum(z + limit, 1), color="0.5", alpha=0.25, linewidth=0
    )
    ax.plot(z, np.searchsorted(np.sort(shares), z) / len(shares), linewidth=1.2)
    ax.set(xlabel="credibility", ylabel="coverage", xlim=(0, 1), ylim=(0, 1))
