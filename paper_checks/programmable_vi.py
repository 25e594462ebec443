"""Becker, Lew et al., *Probabilistic programming with programmable variational inference* (2024).

`python -m paper_checks.programmable_vi [--fast | --all]`

The paper (PLDI 2024) writes variational objectives as programs over models and guides, and derives
unbiased gradients for them. Checked here, in our own words (the evaluation, recalled; numbers from
the paper and from its artifact run again; settings read in the authors' code):

- on a model of a noisy cone, five bounds, each a line or two, come to the values of the paper;
- each value is that of the same bound written by hand, and below the evidence;
- the gradient estimate of a variational autoencoder takes at most 1.1 times as long as hand-written
  JAX, and has the same mean;
- trained on scenes of up to two digits (attend, infer, repeat), ENUM and MVD at the presence of a
  digit come to a count accuracy of 0.98, and REINFORCE without a baseline does not.

The cone: x, y ~ Normal(0, 10), z ~ Normal(s, 0.1 + s / 100) with s = x^2 + y^2, z = 5. Guides: two
normal draws, or an angle and normal draws about the circle (HVI and its kin, where the angle's law
backwards is uniform). The authors' code trains by plain gradient ascent of step size 1e-3, 5,000
steps of 64 estimates (not by Adam, which is far from done after as many; `--all` shows it), and
evaluates with 5,000. IWELBO is trained there with 20,000 steps of one estimate, which is noisy:
their own numbers differ by 0.1. With 64 it becomes better than published; that row is reported.

We train from ten seeds. A number from elsewhere, of one seed, has to lie within four standard
deviations (of values over seeds, each with its own 5,000 evaluations) of our mean, plus its
rounding. Mistakes that have to be seen are bounds with other numbers of particles.

Times are of CPU runs by turns, the paper's of a GPU whose timing did not wait for results: its
ratios stand beside ours for orientation.

The scenes are smaller than the paper's: 28 by 28 pixels, with the 8 by 8 digits of scikit-learn
(`python -m pip install scikit-learn`) in one size. The guide looks twice with one small network,
the second time with the first place covered, so that the known trap of two faint halves for one
digit is not met. "Comes to" is at most four standard errors of the held-out count below 0.98. Each
estimator trains once, for 30 epochs (IWAE + ENUM, which is slow, for 10); counts are drawn from the
guide. REINFORCE without a baseline weighs scores by log weights of 50 to 220 nats, of which a digit
changes a part: with a constant of 140 taken off we saw 0.84 for 0.62, with a learned baseline 0.97.
Two particles do not help, we think because they add noise and the constant stays. What has to be
seen as a mistake is a presence through which no derivative passes.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import optax

from benchmarks.timing import human
from paper_checks.vi import cone, scenes, scenes_numpyro, vae

CEILING = -5.3232
DEVIATIONS, SCORE, SLOWEST, EVALUATIONS = 4, 5.5, 1.1, 5000
#: Milliseconds by batch: theirs and by hand.
PAPER = {64: (0.11, 0.09), 128: (0.22, 0.16), 256: (0.31, 0.29), 512: (0.56, 0.54)}
PAPER[1024] = (1.58, 1.07)
FAST_ROWS = ("ELBO", "HVI")
COUNTED = 0.98
FAST_METHODS = ("MVD", "nothing")


def evidence() -> tuple[bool, str]:
    """Check that the setup is the right one: its evidence is known."""
    value, wrong = cone.log_evidence(), cone.log_evidence(math.sqrt(10.0))
    fine, caught = (abs(x - CEILING) < 5e-5 for x in (value, wrong))
    return fine and not caught, "\n".join(
        [
            "evidence of the cone  [setup]",
            "  claim    The log evidence at z = 5, above all bounds, is -5.3232.",
            f"  value    {value:.6f} by quadrature over the squared radius",
            f"  mistake  {wrong:.4f}: prior of variance 10 instead of scale 10",
            f"  verdict  {_said(fine)}{', MISTAKE UNSEEN' if caught else ''}",
        ]
    )


def near(values: np.ndarray, known: float, rounding: float = 0.005) -> bool:
    """Say whether a number from elsewhere could be one of ours, of shape (seed, evaluation).

    What seeds differ by holds the noise of evaluations; few seeds do not show it reliably.
    """
    means = values.mean(1)
    spread = max(means.std(ddof=1), values.std() / math.sqrt(values.shape[1]))
    allowed = DEVIATIONS * spread * math.sqrt(1 + 1 / len(means)) + rounding
    return bool(abs(known - means.mean()) <= allowed)


def objective(row: cone.Row, seeds: int, adam: bool = False) -> tuple[bool, str]:
    """Train one bound and check what comes out."""
    params = cone.train(row, seeds)
    values = cone.evaluate(row.sizes, params, EVALUATIONS)
    means = values.mean(1)
    one = cone.evaluate(row.sizes, params[:1], 10 * EVALUATIONS)[0]
    hand, wrong = (cone.by_hand(s, params[0], 10 * EVALUATIONS) for s in (row.sizes, row.mistake))
    score, far = (_score(one, x) for x in (hand, wrong))
    fine, caught = abs(score) <= SCORE, abs(far) > SCORE
    fine &= float(means.max()) < CEILING
    error = values[0].std(ddof=1) / math.sqrt(EVALUATIONS)
    known = {"paper": row.published, **row.others} if row.published is not None else {}
    if known:
        fine &= all(near(values, x) for x in known.values())
        mistaken = cone.evaluate(row.mistake, params, EVALUATIONS)
        caught &= not near(mistaken, known["paper"])
    lines = [
        f"{row.name}  [table of objective values]",
        f"  setup    {row.steps} steps of {row.batch}, gradient ascent at 1e-3 from {row.start}",
        f"  value    {means[0]:.3f} ± {error:.3f}; mean of {seeds} seeds {means.mean():.3f}, "
        f"standard deviation {means.std(ddof=1):.3f}",
        "  theirs   " + (", ".join(f"{k} {v}" for k, v in known.items()) or "-"),
        f"  by hand  {hand.mean():.3f} at the first seed: z-score {score:+.2f} (at most {SCORE})",
        f"  ceiling  {CEILING}",
        f"  mistake  {row.mistake} instead of {row.sizes}: z-score {far:+.0f}",
    ]
    if adam:
        other = cone.evaluate(row.sizes, cone.train(row, 1, optax.adam(1e-3)), EVALUATIONS)
        lines.append(f"  Adam     {other.mean():.3f} after as many steps (reported)")
    lines.append(f"  verdict  {_said(fine)}{'' if caught else ', MISTAKE UNSEEN'}")
    return bool(fine and caught), "\n".join(lines)


def _score(a: np.ndarray, b: np.ndarray) -> float:
    error = math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    return float(a.mean() - b.mean()) / error


def gradient() -> tuple[bool, str]:
    """Check value and gradient of the autoencoder's bound."""
    right, wrong = (abs(vae.scores(x)).max() for x in (vae.by_hand, vae.without_entropy))
    fine, caught = right <= SCORE, wrong > SCORE
    return bool(fine and caught), "\n".join(
        [
            "VAE, gradient estimate  [overhead of the library]",
            "  claim    Value and gradient have the means of the hand-written ones.",
            f"  value    largest z-score {right:.2f} of 4 (at most {SCORE})",
            f"  mistake  {wrong:.0f}: the guide's density is forgotten",
            f"  verdict  {_said(fine)}{'' if caught else ', MISTAKE UNSEEN'}",
        ]
    )


def overhead(batch: int, found: Any) -> tuple[bool, str]:
    """Check a ratio of times."""
    ratios = found.ratios()
    low, high = np.quantile(ratios, [0.25, 0.75])
    error = 1.2533 * (high - low) / 1.349 / math.sqrt(len(ratios))  # of a median
    fine = found.ratio() - 2 * error <= SLOWEST
    theirs, hand = PAPER[batch]
    return bool(fine), "\n".join(
        [
            f"VAE, batch {batch}  [overhead of the library]",
            f"  value    {found.ratio():.3f} ± {error:.3f} times hand-written "
            f"(at most {SLOWEST}, within two errors); {found.spread()}",
            f"  times    {human(found.median(0))}, by hand {human(found.median(1))}",
            f"  theirs   {theirs / hand:.2f}: {theirs} ms, by hand {hand} ms, without waiting",
            f"  verdict  {_said(fine)}",
        ]
    )


def beside(method: scenes.Method, epochs: int) -> list[str]:
    """Train the same in NumPyro, where it has the estimator."""
    if method != scenes.METHODS[0]:
        return []
    theirs = scenes_numpyro.train(epochs)
    last = ", ".join(f"{x:.2f} of {n}" for n, x in enumerate(theirs.by_count))
    return [
        f"  NumPyro  TraceGraph_ELBO: count accuracy {theirs.last:.3f}, {last}; "
        f"bound {theirs.bound:.1f}; {theirs.seconds:.2f} s an epoch"
    ]


def counting(method: scenes.Method, epochs: int) -> tuple[bool, str]:
    """Check how well digits are counted after training with an estimator."""
    claim = {True: f"comes to {COUNTED}", False: f"stays below {COUNTED}", None: "none; reported"}
    lines = [
        f"{method}  [training on scenes]",
        f"  claim    {claim[method.reaches]}",
    ]
    try:
        found = scenes.train(method, min(method.epochs, epochs))
    except ModuleNotFoundError as error:
        return False, "\n".join([*lines, f"  verdict  NOT CHECKED: {error}"])
    allowed = DEVIATIONS * math.sqrt(COUNTED * (1 - COUNTED) / scenes.HELD_OUT)
    reached = found.last >= COUNTED - allowed
    fine = method.reaches in (None, reached)
    lines += [
        "  value    count accuracy "
        + ", ".join(f"{x:.3f} after {n}" for n, x in found.accuracy.items())
        + " epochs; at last "
        + ", ".join(f"{x:.2f} of {n}" for n, x in enumerate(found.by_count)),
        f"  bound    {found.bound:.1f} nats a scene, by its own objective",
        f"  time     {found.seconds:.2f} s an epoch, median",
        *beside(method, min(method.epochs, epochs)),
        f"  verdict  {'reported' if method.reaches is None else _said(fine)}",
    ]
    return fine, "\n".join(lines)


def _said(fine: bool) -> str:
    return "holds" if fine else "FAILS"


def outcomes(
    rows: Sequence[cone.Row],
    seeds: int,
    batches: Sequence[int],
    rounds: int,
    methods: Sequence[scenes.Method],
    epochs: int,
    adam: bool,
) -> Iterable[tuple[bool, str]]:
    """Check everything, one by one."""
    yield evidence()
    yield from (objective(row, seeds, adam) for row in rows)
    yield gradient()
    yield from (overhead(batch, vae.race(batch, rounds)) for batch in batches)
    yield from (counting(method, epochs) for method in methods)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check every claim, print what came out and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--fast", action="store_true", help="two bounds, one batch size, one estimator"
    )
    parser.add_argument("--all", action="store_true", help="Adam beside gradient ascent")
    options = parser.parse_args(arguments)
    settings: tuple[Any, ...] = cone.ROWS, 10, tuple(PAPER), 30, scenes.METHODS, 30
    if options.fast:
        rows = [r for r in cone.ROWS if r.name in FAST_ROWS]
        methods = [m for m in scenes.METHODS if m.first == m.second in FAST_METHODS]
        methods = [m for m in methods if m.particles == 1]
        settings = rows, 5, (64,), 10, methods, 18
    good = []
    for fine, text in outcomes(*settings, adam=options.all):
        good.append(fine)
        print(text, end="\n\n", flush=True)
    print(f"{sum(good)} of {len(good)} claims hold")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
