"""`sbc`: simulation-based calibration of an inference algorithm."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from ppl._types import Key
from ppl.check.bands import Uniformity, band, simultaneous, uniformity
from ppl.check.report import Report, number
from ppl.check.sequential import require_between, require_count
from ppl.check.simulation import Infer, Simulations, flat, simulate
from ppl.errors import ResultError, message, named_keywords
from ppl.program import Program
from ppl.semantics.run import as_key


@named_keywords
def sbc(
    infer: Infer,
    program: Program,
    *,
    key: Key,
    num_simulations: int = 500,
    num_draws: int = 99,
    false_alarm: float = 1e-6,
    resolution: float = 0.15,
) -> Report:
    """Check an algorithm's posteriors against the truths that produced the data.

    **Meaning.** Choices and data are drawn from the program with its observations left open, and
    the choices inferred from the data. Under exact inference, a true value and `num_draws`
    independent posterior draws are exchangeable, so the rank of the truth is uniform. "failed" has
    then probability at most `false_alarm`, exactly. Ranks are those of every coordinate and of the
    log likelihood, which sees what ranks of choices alone cannot: a posterior that ignores the
    data. Ties are broken at random. An algorithm that is only approximate (self-normalised weights,
    correlated draws, short chains) fails once there are enough simulations to show it.

    Args:
        infer: a function from the program with simulated data to a program of `Chains` (evenly
            spaced draws are taken: give chains long enough for them to be independent), of a
            `Population` (which is resampled) or of a mapping from addresses to (draw, *site). With
            a second positional argument it is given the data too, by address.
        program: the program; the data in it serve as an example of their shape.
        key: a JAX key or a seed.
        num_simulations: number of simulated data sets.
        num_draws: posterior draws taken for each.
        false_alarm: the probability of failing wrongly.
        resolution: the check passes only if a deviation of this size of a rank's distribution
            function would have failed.

    Returns:
        A report, with a plot of the ECDFs. Its p-value is that of the worst quantity, times their
        number.

    Raises:
        OpenObservationsError: the program has a factor, so that data cannot be simulated.
        UnsupportedError: a latent site stands in a branch.
        ArgumentError: a setting is out of range, or `infer` gives something else.
        ResultError: a draw is not a number.

    Source: Talts et al. (2018), algorithm 1; Modrák et al. (2025) for the log likelihood;
    Säilynoja, Bürkner and Vehtari (2022) for the bands.
    """
    for name, count in (("num_simulations", num_simulations), ("num_draws", num_draws)):
        require_count("sbc", name, count, 1, "500" if name == "num_simulations" else "99")
    require_between("sbc", "false_alarm", false_alarm, 0.0, 0.5, "1e-6")
    require_between("sbc", "resolution", resolution, 0.0, 1.0, "0.15")
    base, ties = jax.random.split(as_key(key))
    found = simulate("sbc", infer, program, num_draws, num_simulations, base)
    names, truth, draws = _quantities(found)
    rng = np.random.default_rng(np.asarray(jax.random.bits(ties, (4,))))
    ranks = _ranks(truth, draws, rng)
    tests = [uniformity(r, num_draws) for r in ranks.T]
    worst = min(tests, key=lambda t: t.level)
    p_value = min(1.0, len(names) * simultaneous(worst.level, num_simulations, num_draws))
    # The limit of the distance alone, by the inequality of Dvoretzky, Kiefer and Wolfowitz.
    missed = math.sqrt(math.log(2 * len(names) / false_alarm) / (2 * num_simulations))
    verdict = "failed" if p_value <= false_alarm else "passed"
    notes = [_note(names, ranks, tests, num_draws)] if verdict == "failed" else []
    if verdict == "passed" and missed > resolution:
        verdict = "undecided"
        needed = math.ceil(num_simulations * (missed / resolution) ** 2)
        notes.append(
            f"Only a deviation of {number(missed)} would have failed, and the check asks for "
            f"{number(resolution)}: set num_simulations={needed} or raise resolution."
        )
    elif verdict == "passed":
        notes.append(f"A deviation of {number(missed)} in any rank's ECDF would have failed.")
    if found.log_likelihood is None:
        notes.append("Draws lack some choices, so the log likelihood was not ranked.")
    return Report(
        "sbc",
        verdict,
        p_value,
        f"p-value, adjusted for {len(names)} quantities",
        false_alarm,
        false_alarm,
        {"simulations": num_simulations, "draws of each": num_draws},
        repr(program),
        ("quantity", "mean rank", "sd of ranks", "greatest deviation", "pointwise p-value"),
        _rows(names, ranks, tests, num_draws),
        tuple(notes),
        functools.partial(_plot, names, ranks, num_draws, false_alarm / len(names)),
    )


def _quantities(found: Simulations) -> tuple[tuple[str, ...], Any, Any]:
    names, truth = flat(found.truth, 1)
    draws = flat(found.draws, 2)[1]
    if found.log_likelihood is not None:
        one, many = (np.asarray(x, np.float64) for x in found.log_likelihood)
        names = (*names, "log likelihood")
        truth = np.concatenate([truth, one[:, None]], axis=-1)
        draws = np.concatenate([draws, many[..., None]], axis=-1)
    bad = np.isnan(truth).any(axis=0) | np.isnan(draws).any(axis=(0, 1))
    if bad.any():
        raise ResultError(
            message(
                f"sbc got NaN among the draws of {names[int(np.argmax(bad))]}",
                needs="draws that are numbers",
                why="NaN has no rank",
                fix="let the algorithm start, and stay, where the density is finite",
            )
        )
    return names, truth, draws


def _ranks(
    truth: Float[Any, "simulations quantities"],
    draws: Float[Any, "simulations draws quantities"],
    rng: np.random.Generator,
) -> Int[Any, "simulations quantities"]:
    below = (draws < truth[:, None]).sum(axis=1)
    return below + rng.integers(0, (draws == truth[:, None]).sum(axis=1) + 1)


def _rows(names: Any, ranks: Any, tests: list[Uniformity], num_draws: int) -> list[tuple[str, ...]]:
    scaled = (ranks + 0.5) / (num_draws + 1)
    cells = zip(names, scaled.mean(axis=0), scaled.std(axis=0), tests, strict=True)
    ordered = sorted(cells, key=lambda row: row[3].level)[:8]
    return [
        (name, f"{mean:.3f}", f"{sd:.3f}", f"{test.distance:.3f}", number(test.level))
        for name, mean, sd, test in ordered
    ]


def _note(names: Any, ranks: Any, tests: list[Uniformity], num_draws: int) -> str:
    """Say in words how the worst ranks deviate; uniform ones have mean 1/2 and sd 0.289."""
    worst = min(range(len(tests)), key=lambda i: tests[i].level)
    scaled = (ranks[:, worst] + 0.5) / (num_draws + 1)
    mean, sd = float(scaled.mean()), float(scaled.std())
    if abs(mean - 0.5) > abs(sd - math.sqrt(1 / 12)):
        how = f"posterior draws are too {'high' if mean < 0.5 else 'low'}"
    elif sd > math.sqrt(1 / 12):
        how = "truths lie too often in the tails: posterior draws are too narrow, or correlated"
    else:
        how = "truths lie too often in the middle: posterior draws are too wide"
    return f"{names[worst]}: {how} (mean rank {mean:.3f} for 0.5, sd {sd:.3f} for 0.289)."


def _plot(names: Any, ranks: Any, num_draws: int, level: float, ax: Any) -> None:
    """Draw the ECDFs minus the uniform, and the band they leave with the check's false alarm."""
    limits = band(1 - level, len(ranks), num_draws)
    z = limits.points
    ax.fill_between(z, limits.low - z, limits.high - z, color="0.5", alpha=0.25, linewidth=0)
    points = np.round(z * (num_draws + 1))
    for name, column in zip(names, ranks.T, strict=True):
        ecdf = np.searchsorted(np.sort(column), points) / len(column)
        ax.plot(z, ecdf - z, linewidth=1, label=name)
    ax.set(xlabel="rank of the truth, scaled", ylabel="ECDF minus uniform")
    if len(names) <= 8:
        ax.legend(frameon=False, fontsize="small")
