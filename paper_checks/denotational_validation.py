"""Ścibior et al., *Denotational validation of higher-order Bayesian inference* (POPL 2018).

`python -m paper_checks.denotational_validation [--programs N]`

The paper builds inference algorithms from representations of programs (samplers, weighted samplers,
populations, suspended programs, traces), gives each a meaning as a measure, and proves that every
step keeps the meaning. Here each statement is put in our own words and checked by enumeration: both
measures are computed, with all draws of the algorithm, on programs drawn by `ppl.check.programs`
and on a hidden Markov model. The value is the largest distance found (total variation relative to
the total mass), which should be that of rounding. Beside it stands the distance of a variant that
has a known mistake: the check must reject it. The exit code is 1 if any verdict is not as it should
be.

Statements are recalled and named after the paper's constructs; we do not give section numbers.
The library has `weighted`, `traced`, `suspend`, `extract` and kernels. It has no operations on
populations yet: spawning, resampling (multinomial, stratified, systematic), pushing evidence, and
SMC from them are written out in `paper_checks.denotational.blocks`, and single-site MH on traces in
`paper_checks.denotational.metropolis`, as functions on programs, with the public interface alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax

import ppl
from paper_checks.denotational import blocks, distances, metropolis
from paper_checks.denotational.distances import kept
from paper_checks.denotational.programs import Programs, programs

ROUNDING, MISTAKE = 1e-10, 1e-3


class Claim(NamedTuple):
    """A statement, the distances that should be zero, and one that should not."""

    name: str
    where: str
    statement: str
    distances: Callable[[Programs], Iterable[float]]
    mistake: str
    mistaken: Callable[[Programs], Iterable[float]]


def claims() -> list[Claim]:
    """List the statements."""
    sus, pop = "Suspension (Sus)", "Population (Pop)"
    any_size = (1, 2, 3)
    return [
        Claim(
            "return",
            "Representations: return",
            "A program that only returns means the point mass at its value.",
            lambda ps: distances.point_masses(),
            "another value is returned",
            lambda ps: distances.point_masses(shift=1),
        ),
        Claim(
            "bind",
            "Representations: bind",
            "To run a program and go on with a program of its value means to integrate the second "
            "measure against the first.",
            distances.binding,
            "the second program sees a value drawn anew",
            lambda ps: distances.binding(ps, again=True),
        ),
        Claim(
            "sample",
            "Sampler (Sam)",
            "`sample` means the uniform distribution: its moments are 1/2, 1/3, ... (by "
            "quadrature with 32 nodes).",
            lambda ps: distances.moments(),
            "the square root of a uniform draw",
            lambda ps: distances.moments(0.5),
        ),
        Claim(
            "weighted",
            "Weighted sampler (W)",
            "A program without scores that carries the product of the scores as a weight means "
            "f -> E[w f(x)], and this is the measure of the program.",
            lambda ps: kept(ppl.weighted, ps.any),
            "every score counts twice",
            lambda ps: kept(lambda p: ppl.scale(p, 2.0, p.observed or None), ps.any),
        ),
        Claim(
            "hoist",
            "Weighted sampler (W), hoisting",
            "What is valid on samplers stays valid under the weight: run twice, keep one of two.",
            lambda ps: kept(lambda p: distances.twice(ppl.weighted(p)), ps.any),
            "value of one run, weight of another",
            lambda ps: kept(lambda p: distances.mixed(ppl.weighted(p)), ps.any),
        ),
        Claim(
            "spawn",
            pop,
            "n copies of weight 1/n, each going its own way, mean what one means.",
            lambda ps: (d for n in any_size for d in kept(spawned(n), ps.any)),
            "copies of weight 1",
            lambda ps: kept(lambda p: blocks.spawn(p, 2, normalised=False), ps.any),
        ),
        Claim(
            "offspring",
            pop + ", resampling",
            "Multinomial, stratified and systematic resampling give particle i N w_i / z children "
            "in the mean.",
            lambda ps: distances.offspring_means(blocks.SCHEMES),
            "the middle of every stratum instead of a drawn point",
            lambda ps: distances.offspring_means([distances.middle]),
        ),
        Claim(
            "resample",
            pop + ", resampling",
            "Resampled particles of weight z/N mean what the weighted ones mean.",
            lambda ps: (
                d
                for s in blocks.SCHEMES
                for n in any_size
                for d in kept(distances.resampled(s, n), ps.any)
            ),
            "the evidence z is dropped",
            lambda ps: kept(distances.resampled(blocks.multinomial, 2, drop=True), ps.any),
        ),
        Claim(
            "push evidence",
            pop + ", pushing evidence",
            "The evidence estimate may leave the population and become a score.",
            lambda ps: kept(lambda p: blocks.push_evidence(blocks.spawn(p, 2)), ps.any),
            "it becomes a score and stays",
            lambda ps: kept(lambda p: blocks.push_evidence(blocks.spawn(p, 2), stay=True), ps.any),
        ),
        Claim(
            "suspend",
            sus,
            "A program that stops after every score, run to its end, is the program.",
            distances.suspending,
            "the scores before the first stop are forgotten",
            lambda ps: kept(lambda p: blocks.forgetful(ppl.suspend(p)).finish(), ps.scoring),
        ),
        Claim(
            "advance",
            sus,
            "Running on to the next score and then to the end is running to the end.",
            distances.advancing,
            "the scores are forgotten on the way",
            lambda ps: distances.advancing(ps, blocks.forgetful),
        ),
        Claim(
            "hoist first",
            sus + ", hoisting",
            "A valid transformation of what has run so far keeps the meaning of the whole.",
            distances.hoisting,
            "run twice and keep one, which is valid for samplers only: here it scores twice",
            lambda ps: distances.hoisting(ps, distances.twice),
        ),
        Claim(
            "SMC",
            "Sequential Monte Carlo",
            "finish . (advance . hoist resample)^k . hoist (spawn n) keeps the meaning, for every "
            "scheme and number of particles.",
            distances.smc,
            "resampling drops the evidence",
            distances.smc_without_evidence,
        ),
        Claim(
            "trace",
            "Traces (Tr), marginal",
            "Forgetting the choices of a trace gives the program back.",
            lambda ps: kept(ppl.traced, ps.any),
            "the weight is forgotten too",
            lambda ps: kept(distances.unweighted, ps.any),
        ),
        Claim(
            "density",
            "Traces (Tr), density",
            "The measure on choices has the density that traces carry.",
            distances.densities,
            "the weight instead of the density",
            lambda ps: distances.densities(ps, weight_only=True),
        ),
        *metropolis_claims(),
    ]


def metropolis_claims() -> list[Claim]:
    """List the statements about Metropolis-Hastings-Green."""
    theorem = "The Metropolis-Hastings-Green theorem"
    return [
        Claim(
            "MHG, finite",
            theorem,
            "Where moves can be undone, accept with min(1, rho); elsewhere stay. The measure is "
            "invariant, even reversible, whatever the supports of measure and proposal.",
            lambda ps: metropolis.finite_spaces(),
            "moves that cannot be undone are accepted by the ratio of masses",
            lambda ps: metropolis.finite_spaces(one_way=True),
        ),
        Claim(
            "MHG, mixed",
            theorem,
            "The same on a point and an interval, jumps between them included; some jumps cannot "
            "be undone. (The interval by quadrature: exact on the nodes.)",
            lambda ps: metropolis.point_and_interval(),
            "jumps that cannot be undone are accepted",
            lambda ps: metropolis.point_and_interval(one_way=True),
        ),
        Claim(
            "trace MH",
            "Trace Markov chain Monte Carlo",
            "Redraw one choice, picked uniformly, and what newly exists; accept with "
            "min(1, q n / (p m)). The measure on traces is invariant and reversible, branches that "
            "come and go included.",
            lambda ps: metropolis.single_sites(ps.branching),
            "the numbers of choices n and m are left out",
            lambda ps: metropolis.single_sites(ps.branching, metropolis.without_numbers),
        ),
        Claim(
            "trace MH, precedence",
            "Trace Markov chain Monte Carlo, the authors' code",
            "The kernel with q n / (p m) has P(x) = 1/6 on fair bits x, y of weight 1/5 if x; with "
            "q m n / p it has 4/9.",
            lambda ps: [
                *metropolis.long_run(metropolis.right, 1 / 6),
                *metropolis.long_run(metropolis.precedence, 4 / 9),
            ],
            "q m n / p against 1/6",
            lambda ps: metropolis.long_run(metropolis.precedence, 1 / 6),
        ),
    ]


def spawned(n: int) -> Callable[[ppl.Program], ppl.Program]:
    return lambda p: blocks.spawn(p, n)


def verdict(claim: Claim, ps: Programs) -> tuple[bool, str]:
    """Check one claim and say what came out."""
    values = [*claim.distances(ps)]
    wrong = [*claim.mistaken(ps)]
    worst = max(values, default=float("inf"))  # where nothing was compared nothing is shown
    fine = worst <= ROUNDING
    caught = max(wrong) > MISTAKE
    lines = [
        f"{claim.name}  [{claim.where}]",
        f"  claim    {claim.statement}",
        f"  value    {worst:.1e} over {len(values)} comparisons (exact; at most {ROUNDING})",
        f"  mistake  {max(wrong):.1e} over {len(wrong)}: {claim.mistake}",
    ]
    lines.append(f"  verdict  {'holds' if fine else 'FAILS'}{'' if caught else ', MISTAKE UNSEEN'}")
    return fine and caught, "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check every claim, print what came out and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--programs", type=int, default=6, help="random programs of each kind")
    options = parser.parse_args(arguments)
    with jax.enable_x64(True):
        ps = programs(options.programs)
        outcomes = []
        for claim in claims():
            good, text = verdict(claim, ps)
            outcomes.append(good)
            print(text, end="\n\n", flush=True)
    print(f"{sum(outcomes)} of {len(outcomes)} claims hold, with their mistakes seen")
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
