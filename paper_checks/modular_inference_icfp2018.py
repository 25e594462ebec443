"""Ścibior et al., *Functional programming for modular Bayesian inference* (ICFP 2018).

`python -m paper_checks.modular_inference_icfp2018 [--fast | --all]`

The paper builds MH, SMC and resample-move SMC (RMSMC) from the same few blocks, and times them on
logistic regression, a hidden Markov model and LDA: for growing data, and for growing numbers of
samples. It compares with other systems by figures; there is no table of numbers to meet. Checked
here are, in our own words (the evaluation, recalled; settings and models from the authors' code):

- the methods are right on these models: each run against exact answers, and what a mistaken method
  would give;
- time grows in proportion to the length of the data, or slower: a log-log slope of at most 1.15,
  within two of its standard errors;
- the same for the number of samples: steps of MH, particles of SMC, moves of RMSMC.

RMSMC comes in two kinds. The authors' benchmark runs the local one, which moves only what was
chosen since the last resampling; that is `move_last=True`, but that we never move what was chosen
before the first step. Moves of all choices so far cost as much as all steps so far: the square of
the length in all, by nature. That one is reported without a bound.

As in the authors' code, particles are resampled at every step. Times are of a warm run, the
shortest of some; compiling, once for each size, stands apart. What others measured was measured on
other machines, sometimes with other models, and compares orders of magnitude at best.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence

from paper_checks.icfp2018 import correctness, timing
from paper_checks.icfp2018.models import MODELS
from paper_checks.icfp2018.timing import Times

STEEPEST = 1.15
LENGTHS, SAMPLES, RUNS = (100, 200, 500, 1000), (100, 300, 1000), 2000
ALL_LENGTHS, ALL_SAMPLES = (10, *range(100, 1001, 100)), tuple(range(100, 1001, 100))
FAST_LENGTHS, FAST_SAMPLES = (100, 400), (100, 400)
#: Seconds at length 500. monad-bayes (2022), by its authors; and by others, with other models.
OTHERS = {
    ("LR", "MH100"): "monad-bayes (2022) 0.274",
    ("LR", "SMC100"): "monad-bayes (2022) 0.116",
    ("HMM", "MH100"): "monad-bayes (2022) 0.418",
    (
        "HMM",
        "SMC100",
    ): "monad-bayes (2022) 0.093; by others: monad-bayes 2.94, ProbFX 0.097, Gen 33",
    ("HMM", "RMSMC10-1, all steps"): "by others: monad-bayes 23.8, ProbFX 7.64, Gen 4.74",
}


def right(check: correctness.Check, runs: int) -> tuple[bool, str]:
    """Check one method on the models against the exact answers."""
    scores = {model: check.scores(model, runs) for model in check.models}
    worst = max(float(abs(z).max()) for z in scores.values())
    wrong = float(abs(check.mistaken("HMM", runs)).max())
    fine, caught = worst <= correctness.BOUND, wrong > correctness.BOUND
    values = "; ".join(f"{m} {' '.join(f'{x:+.2f}' for x in z)}" for m, z in scores.items())
    return fine and caught, "\n".join(
        [
            f"{check.name} is right  [evaluation: models and methods]",
            f"  value    z-scores {values} (at most {correctness.BOUND})",
            f"  mistake  {wrong:.1f} on the HMM: {check.mistake}",
            f"  verdict  {_said(fine)}{'' if caught else ', MISTAKE UNSEEN'}",
        ]
    )


def grows(times: Times, by: str) -> tuple[bool, str]:
    """Check how the time of one method on one model grows."""
    slope, error = timing.exponent(times.sizes, times.warm)
    bounded = "all steps" not in times.method
    margin = 0.0 if math.isnan(error) else 2 * error
    fine = not bounded or slope - margin <= STEEPEST
    bound = f"at most {STEEPEST}, within two errors" if bounded else "2 by nature; no bound"
    spread = "" if math.isnan(error) else f" ± {error:.2f}"
    warm = "  ".join(f"{n}: {s:.3g}" for n, s in zip(times.sizes, times.warm, strict=True))
    lines = [
        f"{times.model} {times.method} by {by}  [evaluation: figures of run times]",
        f"  value    exponent {slope:.2f}{spread} ({bound})",
        f"  seconds  {warm}; compiling {min(times.compiling):.1f} to {max(times.compiling):.1f}",
    ]
    if by != "samples" and (said := OTHERS.get((times.model, times.method))):
        lines.append(f"  others   at 500, other machines: {said}")
    lines.append(f"  verdict  {_said(fine) if bounded else 'reported'}")
    return fine, "\n".join(lines)


def _said(fine: bool) -> str:
    return "holds" if fine else "FAILS"


def outcomes(
    models: Sequence[str], lengths: Sequence[int], samples: Sequence[int]
) -> Iterable[tuple[bool, str]]:
    """Check everything, one by one."""
    for check in correctness.checks():
        known = tuple(model for model in check.models if model in models)
        yield right(check._replace(models=known), RUNS)
    for times in timing.by_length(models, lengths):
        yield grows(times, "words in each of 5 documents" if times.model == "LDA" else "length")
    for times in timing.by_samples(models, samples):
        yield grows(times, "samples")


def main(arguments: Sequence[str] | None = None) -> int:
    """Check every claim, print what came out and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fast", action="store_true", help="the HMM only, at two sizes")
    parser.add_argument("--all", action="store_true", help="every size of the paper")
    options = parser.parse_args(arguments)
    settings = tuple(MODELS), LENGTHS, SAMPLES
    if options.fast:
        settings = ("HMM",), FAST_LENGTHS, FAST_SAMPLES
    elif options.all:
        settings = tuple(MODELS), ALL_LENGTHS, ALL_SAMPLES
    good = []
    for fine, text in outcomes(*settings):
        good.append(fine)
        print(text, end="\n\n", flush=True)
    print(f"{sum(good)} of {len(good)} claims hold")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
