"""`enumerate`: the exact measure of a program whose sites have finite supports.

The program runs once for all of its worlds. A world is what the draws so far have come to: at a
site every world splits into one for each value, and before the next site worlds that agree on all
values still needed are joined, their weights added. So a hidden Markov model costs a step what it
costs the forward algorithm. Loops and branches run from the host, each world taking its own way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ppl import _jax
from ppl._host import named_errors
from ppl.errors import ArgumentError, UnsupportedError, at, check_addresses, message, named_keywords
from ppl.program import Program, require_program
from ppl.semantics import semirings
from ppl.semantics.measure import FiniteMeasure
from ppl.semantics.worlds.arrays import lifted
from ppl.semantics.worlds.evaluator import Evaluator, ImpossibleError, State


@named_keywords
def enumerate(
    program: Program,
    *,
    quadrature: Mapping[str, int] | None = None,
    semiring: Any = "sum",
    tolerance: float | None = None,
    max_worlds: int = 1_000_000,
    max_iterations: int = 1000,
) -> FiniteMeasure:
    """Evaluate a program exactly.

    **Meaning.** The program's unnormalised measure on its return value. Every site must have a
    finite support given the past (it may depend on earlier draws). Values are equal if their
    integers are, and their floats up to `tolerance`; worlds are joined by the same rule.

    Args:
        program: any program with finite sites; inference algorithms too.
        quadrature: by address, a number of nodes (32 to 128) for continuous sites of one number
            each. The measure's `quadrature_error(f)` estimates the error of `expect(f)`. Floats
            near zero then count as equal by the relative `tolerance` alone.
        semiring: "sum" for the measure; "max" for the mass of the best run to each value, with its
            `choices`; "count" for numbers of runs; `ppl.expectation(...)` for expected statistics.
        tolerance: of floats, absolute and relative; None for 1e-9 in double and 1e-5 in single
            precision.
        max_worlds: how many worlds there may be at a time.
        max_iterations: how many rounds of a while_loop any world may need.

    Raises:
        UnsupportedError: a site is not finite, a loop does not end, or worlds are too many.
        DistributionError: a site's masses are NaN, or do not sum to one.
        AddressError: `quadrature` names an unknown address.

    Source: exact inference as in the enumerator of Ścibior et al. (POPL 2018); joining worlds is
        variable elimination along the program (Koller & Friedman 2009, ch. 9).
    """
    require_program("enumerate", program)
    rules = _checked(program, quadrature)
    ring = semirings.semiring(semiring, bool(rules))
    if isinstance(ring, semirings.Expectation):
        check_addresses("expectation", ring.statistics, program.latents)
    run = Evaluator(ring, rules, tolerance, int(max_worlds), int(max_iterations))
    s = program.structure
    wanted = [True] * len(s.jaxpr.outvars)
    args = [lifted(x) for x in program.args]
    state = State(ring.start())
    try:
        with np.errstate(all="ignore"), named_errors():
            state, outs = run.region(state, s.jaxpr, program.consts, args, wanted)
            run.split = True
            state, outs = run.join(state, outs)
    except ImpossibleError:
        nothing = [np.zeros((0, *v.aval.shape), v.aval.dtype) for v in s.jaxpr.outvars]
        return FiniteMeasure(s.rebuild(nothing), np.zeros(0), tolerance=tolerance)
    outs = [np.broadcast_to(x, (state.worlds, *x.shape[1:])) for x in outs]
    results = {"log_masses": state.weights[0], **ring.results(state.weights)}
    if isinstance(ring, semirings.Max):
        results["choices"] = _best(program, ring, state)
    return FiniteMeasure(s.rebuild(outs), tolerance=tolerance, **results)


def _checked(program: Program, quadrature: Mapping[str, int] | None) -> Mapping[str, int]:
    rules = dict(quadrature or {})
    check_addresses("enumerate(quadrature=)", rules, program.latents)
    for address, count in rules.items():
        site = program.sites[address]
        if site.discrete or isinstance(count, bool) or not isinstance(count, int) or count < 5:
            raise ArgumentError(
                message(
                    f"enumerate(quadrature=) got {count!r} for {at(address, site.source)}, a "
                    f"{'discrete' if site.discrete else 'continuous'} site",
                    needs="a number of nodes of at least 5, for a continuous site",
                    fix=f'quadrature={{"{address}": 64}}, and finite sites left out',
                )
            )
    if any(map(_jax.is_tracer, jax.tree.leaves(program))):
        raise UnsupportedError(
            message(
                f"enumerate got {program.name} with traced arrays",
                needs="a program of concrete arrays",
                why="which worlds there are depends on values",
                fix="call ppl.enumerate outside of jax.jit and jax.vmap; ppl.marginalize works "
                "inside",
            )
        )
    return rules


def _best(program: Program, ring: semirings.Max, state: State) -> dict[str, np.ndarray]:
    """Lay out the best choices of every point."""
    places = {}
    for p in (site.placed for site in program.sites if site.kind == "latent"):
        if p.whiles:
            raise UnsupportedError(
                message(
                    "enumerate(semiring='max') got a program with "
                    f"{at(p.site.address, p.site.source)} in a while_loop",
                    needs="sites that occur a known number of times",
                    why="the best choices have one array for each address",
                    fix="use jax.lax.scan",
                )
            )
        axes = [p.axis(len(p.scans) - k) + k for k in range(len(p.scans))]
        places[p.site.address] = (p.shape, p.site.dtype, axes)
    rows = [
        semirings.as_choices(ring.history(state.weights, w), places) for w in range(state.worlds)
    ]
    empty = {a: np.zeros(shape, dtype) for a, (shape, dtype, _) in places.items()}
    return {a: np.stack([r.get(a, empty[a]) for r in rows]) for a in places}
