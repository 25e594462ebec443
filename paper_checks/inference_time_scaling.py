"""Puri et al., *Inference-time scaling of LLMs using particle-based Monte Carlo* (2025).

`python -m paper_checks.inference_time_scaling [--fast] [--out FOLDER] [--problems K]`

The paper (section 5, table 1 and figure 1, in our own words): at the same number of runs, a
particle filter over reasoning steps, weighed by a process reward model, answers more problems right
than best-of-n, weighted votes or diverse verifier tree search; it needs 4 to 16 times fewer runs
for the same accuracy. Theirs are MATH500 and AIME24 with models of 1B to 72B parameters and a
trained reward model of 7B. None of these can be had here.

Ours: running sums of five digits, a line a step, by SmolLM2-135M-Instruct at temperature 0.6 after
six worked examples. The verifier is exact but for stated noise: its logit is +-2 for a prefix whose
lines are all right or not, plus a normal number that belongs to the text. So the noise can be
swept, which a trained reward model does not allow. All methods answer the same problems with
the same number of runs N; those that resample or search draw anew, the others share their texts.

- *particle filter*: `ppl.smc` on the declared target, model times the product of the scores; votes
  by weight. *as published*: always resampled, by the softmax of the logit of the last score, which
  is another target; answers by the largest last score.
- *beam*, *DVTS*: a quarter of the runs kept, each continued four times, by the last score.
- *best-of-n*, *weighted vote*: by the last score; *importance*: by the product of all scores.

An interrupted run goes on from what it has written to the folder, and runs at other noises, or of
other numbers, are added there. What 200 problems gave is in `paper_checks/scaling/results`: noise 1
by `--numbers 1 4 16 --noises 1` (77 minutes on two busy cores) and by `--numbers 32 --noises 1`
(two hours beside other work), noise 3 by `--numbers 4 16 --noises 3` (80 minutes) and by
`--numbers 32 --noises 3` (86 minutes, a part of them beside other work) and `--numbers 1` (two
minutes). Runs of another largest N draw their own texts: a single one is right in 0.06 of the
problems where that was 16, in 0.10 where it was 32, in 0.095 where it was 1 (noise 3).

At noise 1, where the sign of a score is right for 98 % of texts, searches that follow the last
score alone (beam, as published) are above the filter. At noise 3, where it is right for 75 %, the
filter as published is first at N = 4. From N = 16 on what adds up all scores is above all that
follows the last one: the filter at N = 16; importance and the filter alike at N = 32 (0.34 and
0.315), where the filter has gained nothing on N = 16 and is above beam and DVTS only at p = 0.05.

What best-of-n answers at N = 32 the filter does with 3.5 times fewer runs at noise 1; at noise 3
with 8.0 times fewer, but so does best-of-n itself, which gains nothing from more runs there.

What is checked: that the particle filter is above best-of-n at the largest N by a paired test
(one-sided sign test at 1e-3). Where beams win, and where noise breaks them, is reported.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.stats import binomtest

import ppl
from benchmarks.timing import human
from paper_checks.scaling.methods import (
    Bench,
    Verifier,
    alone,
    answer_of,
    others,
    without_resampling,
)
from paper_checks.scaling.problems import LINES, problems

MARGIN = 2.0
METHODS = (
    *("single", "self-consistency", "best-of-n", "weighted vote", "importance"),
    *("beam", "DVTS", "particle filter", "as published"),
)
#: Whose answers are counted: all methods answer the same problems.
_ONE = "particle filter"
Right = dict[tuple[str, int, float], list[bool]]


def study(
    model: Any,
    count: int,
    numbers: Sequence[int],
    noises: Sequence[float],
    report: Any = None,
    together: int = 4,
    begun: Right | None = None,
) -> Right:
    """Answer all problems by all methods: whether each answer was right, by method, N and noise.

    What has begun goes on as if it had not been interrupted.
    """
    bench, right = Bench(model), {k: list(flags) for k, flags in (begun or {}).items()}
    every = problems(count, seed=0)
    done = min((len(flags) for flags in right.values()), default=0)
    for first in range(done, count, together):
        some = every[first : first + together]
        key = jax.random.fold_in(jax.random.key(0), first)
        own = bench.draw(some, Verifier(0.0, 0.0), alone(max(numbers)), key)
        for noise in noises:
            verifier = Verifier(MARGIN, noise)
            for number in numbers:
                found = [without_resampling(d.texts[:number], verifier) for d in own]
                methods = others(number) if number > 1 else []
                for j, method in enumerate(methods):
                    keyed = jax.random.fold_in(jax.random.fold_in(key, 1 + j), number)
                    for f, d in zip(found, bench.draw(some, verifier, method, keyed), strict=True):
                        f[method.name] = answer_of(method, d)
                for f, problem in zip(found, some, strict=True):
                    for name in METHODS:
                        # With one run there is nothing to choose; with one group DVTS is a beam.
                        said = f.get(name, f["beam" if number > 1 else "single"])
                        right.setdefault((name, number, noise), []).append(said == problem.answer)
        if report is not None:
            report(first + len(some), right)
    return right


def interval(flags: Sequence[bool]) -> tuple[float, float, float]:
    """Give the share that is right, and Wilson's interval of 95 %."""
    n, k, z = len(flags), sum(flags), 1.96
    middle, half = (k + z * z / 2) / (n + z * z), z * math.sqrt(k * (n - k) / n + z * z / 4)
    return k / n, middle - half / (n + z * z), middle + half / (n + z * z)


def noises_of(right: Right) -> list[float]:
    """List the noises that were studied."""
    return sorted({s for *_, s in right})


def numbers_of(right: Right, noise: float) -> list[int]:
    """List the numbers of runs that were studied at a noise."""
    return sorted({n for _, n, s in right if s == noise})


def finished(right: Right, noise: float) -> list[int]:
    """List the numbers of runs that all problems were answered by, at a noise."""
    whole = max(len(flags) for flags in right.values())
    return [n for n in numbers_of(right, noise) if len(right[_ONE, n, noise]) == whole]


def table(right: Right) -> str:
    """Write accuracies by method and N, a block for each noise; and which are not all there yet."""
    lines, whole = [], max(len(flags) for flags in right.values())
    for noise in noises_of(right):
        numbers = numbers_of(right, noise)
        counts = [len(right[_ONE, n, noise]) for n in numbers]
        parts = ["" if k == whole else f" ({k} of {whole})" for k in counts]
        heads = [f"N = {n}{part}" for n, part in zip(numbers, parts, strict=True)]
        lines.append(f"noise {noise:g} on the verifier's logit (+-{MARGIN:g})")
        lines.append(f"  {'method':<18}" + "".join(f"{head:>20}" for head in heads))
        for name in METHODS:
            cells = [interval(right[name, n, noise]) for n in numbers]
            shown = [f"{p:.3f} ({low:.2f}-{high:.2f})" for p, low, high in cells]
            lines.append(f"  {name:<18}" + "".join(f"{s:>20}" for s in shown))
    return "\n".join(lines)


def compared(right: Right, one: str, two: str, number: int, noise: float) -> tuple[int, int, float]:
    """Count the problems that only one method answers; and a one-sided sign test of the first."""
    a, b = (np.asarray(right[name, number, noise]) for name in (one, two))
    wins, losses = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    value = binomtest(wins, wins + losses, alternative="greater").pvalue if wins + losses else 1.0
    return wins, losses, float(value)


def runs_needed(right: Right, method: str, accuracy: float, noise: float) -> float:
    """Give the number of runs at which a method comes to an accuracy, in between by logarithms."""
    before = None
    for n in finished(right, noise):
        share = float(np.mean(right[method, n, noise]))
        if share >= accuracy:
            if before is None or share == before[1]:
                return n
            part = (accuracy - before[1]) / (share - before[1])
            return before[0] * (n / before[0]) ** part
        before = n, share
    return math.inf


def verdict(right: Right) -> tuple[bool, str]:
    """Say what came out."""
    lines, good = [], True
    for noise in noises_of(right):
        numbers = finished(right, noise)
        if left := sorted({*numbers_of(right, noise)} - {*numbers}):
            named = ", ".join(map(str, left))
            lines.append(f"noise {noise:g}: N = {named} not finished, and left out of what follows")
        if not numbers:
            continue
        most = numbers[-1]
        wins, losses, p = compared(right, "particle filter", "best-of-n", most, noise)
        target = float(np.mean(right["best-of-n", most, noise]))
        needed = runs_needed(right, "particle filter", target, noise)
        times = f"{most / needed:.1f}" if needed < math.inf else "under 1"
        good = good and p < 1e-3
        lines += [
            f"noise {noise:g}: particle filter against best-of-n at N = {most}: {wins} problems "
            f"won, {losses} lost, p = {p:.1e}",
            f"  best-of-n's accuracy {target:.3f} at N = {most} is reached with {times} times "
            "fewer runs (paper: 4 to 16 times, on other problems)",
        ]
        for other in ("beam", "DVTS", "as published", "importance"):
            wins, losses, p = compared(right, "particle filter", other, most, noise)
            lines.append(f"  against {other}: {wins} won, {losses} lost, p = {p:.1e}")
    lines.append("verdict  holds" if good else "verdict  FAILS")
    return good, "\n".join(lines)


def plot(right: Right, folder: Path) -> None:
    """Draw accuracy against the number of runs, a panel for each noise."""
    from matplotlib.figure import Figure

    noises = [s for s in noises_of(right) if finished(right, s)]
    figure = Figure(figsize=(5.2 * len(noises), 4.2), layout="constrained")
    for axis, noise in zip(figure.subplots(1, len(noises), squeeze=False)[0], noises, strict=True):
        numbers = finished(right, noise)
        for k, name in enumerate(METHODS):
            cells = np.array([interval(right[name, n, noise]) for n in numbers])
            axis.plot(numbers, cells[:, 0], "o-", label=name, color=f"C{k}")
            axis.fill_between(numbers, cells[:, 1], cells[:, 2], alpha=0.08, color=f"C{k}")
        axis.set(xscale="log", xticks=numbers, xlabel="runs of the model, N", ylim=(0, None))
        axis.set_xticklabels(map(str, numbers))
        axis.minorticks_off()
        axis.set_title(f"verifier noise {noise:g}")
    figure.axes[0].set_ylabel("accuracy")
    figure.axes[0].legend(fontsize=7)
    figure.savefig(folder / "accuracy.png", dpi=130)


def save(right: Right, folder: Path) -> None:
    """Keep every answer's fate, the tables and the plot."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"method": m, "runs": n, "noise": s, "right": [int(f) for f in flags]}
        for (m, n, s), flags in right.items()
    ]
    (folder / "answers.json").write_text(json.dumps(rows))
    (folder / "results.txt").write_text(f"{table(right)}\n\n{verdict(right)[1]}\n")
    plot(right, folder)


def saved(folder: Path, numbers: Sequence[int], noises: Sequence[float]) -> tuple[Right, Right]:
    """Read what an interrupted run of the same settings has kept; and what others have."""
    file = folder / "answers.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    right = {(r["method"], r["runs"], r["noise"]): [bool(f) for f in r["right"]] for r in rows}
    mine = {k: flags for k, flags in right.items() if k[1] in numbers and k[2] in noises}
    whole = len(METHODS) * len(set(numbers)) * len(set(noises))
    if mine and (len(mine) != whole or len({len(flags) for flags in mine.values()}) > 1):
        raise SystemExit(
            f"{file} has some of these numbers of runs and noises, and not all of them as far as "
            "one another; ask for those alone that it lacks, or give another --out"
        )
    return mine, {k: flags for k, flags in right.items() if k not in mine}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study; the exit code says whether the claim holds."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--fast", action="store_true", help="8 problems, N = 1 and 8: no verdict")
    parser.add_argument("--out", type=Path, default=Path("inference_time_scaling"))
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--numbers", type=int, nargs="+", default=[1, 4, 16], help="1, or 4 m")
    parser.add_argument("--noises", type=float, nargs="+", default=[0.5, 1.5])
    options = parser.parse_args(arguments)
    count, numbers, noises = options.problems, options.numbers, options.noises
    if options.fast:
        count, numbers, noises = 8, [1, 8], [1.0]
    began = time.perf_counter()
    model = ppl.lm.Llama.load(ppl.lm.smollm2())

    def report(done: int, right: Right) -> None:
        seconds = time.perf_counter() - began
        print(f"\r{done} of {count} problems, {human(seconds)}", end="", file=sys.stderr)
        if not options.fast:
            save({**kept, **right}, options.out)

    begun, kept = ({}, {}) if options.fast else saved(options.out, numbers, noises)
    right = {**kept, **study(model, count, numbers, noises, report, begun=begun)}
    print(file=sys.stderr)
    print(f"{count} problems of {LINES} lines, {human(time.perf_counter() - began)}")
    print(table(right))
    good, text = verdict(right)
    print(text if not options.fast else text.rsplit("\n", 1)[0])
    if not options.fast:
        save(right, options.out)
        print(f"answers, tables and plot: {options.out}")
    return 0 if good or options.fast else 1


if __name__ == "__main__":
    sys.exit(main())
