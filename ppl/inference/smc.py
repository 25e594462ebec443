"""`smc`: sequential Monte Carlo on any program that scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ppl.counts import count
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference.moving import require_kernel
from ppl.inference.particles import Run, Strategy
from ppl.inference.particles.bootstrap import Bootstrap, bootstrap_settings
from ppl.inference.particles.lookahead import Lookahead
from ppl.inference.particles.rejuvenation import Moves, Moving
from ppl.inference.particles.softened import Softened
from ppl.program import Program, require_program
from ppl.resampling import Resampling
from ppl.semantics.guided import guided
from ppl.semantics.kernel import Kernel
from ppl.semantics.population import Population
from ppl.staging import stage


@named_keywords
def smc(
    program: Program,
    num_particles: int,
    resample: str | type[Resampling] = "systematic",
    ess_threshold: float = 0.5,
    proposal: Program | None = None,
    kernel: Kernel | Callable[[Population], Kernel] | None = None,
    num_moves: int | None = None,
    move_last: bool | None = None,
    move_always: bool | None = None,
    lookahead: Callable[..., Any] | None = None,
    resample_power: Callable[[Any, Any], Any] | None = None,
    trajectories: bool = True,
) -> Program:
    """Run particles side by side, and resample them on the way.

    **Meaning.** A population for the program's measure: evidence and weighted sums are unbiased,
    whatever the scheme, the threshold, the proposal, the potential and the kernel, unless particles
    are moved only after resampling; normalised weights make estimates consistent with bias
    O(1 / N).

    The program is cut where a draw follows a score: between observations of a straight program,
    and in every iteration of a `scan` that scores, nested ones too. Scores inside another operation
    (a branch, a `while_loop`) stay together, and a `scan` without scores is one step.

    Args:
        program: any program.
        num_particles: number of particles N.
        resample: name or class of a scheme of `ppl.resampling`.
        ess_threshold: resample where the effective sample size falls below this part of N; with 1,
            wherever weights differ; with 0, never.
        proposal: draws some of the latent addresses instead of the program, as in `ppl.guided`; its
            scans run in step with the program's.
        kernel: moves every particle after each step that scores (resample-move). It acts on the
            trace of the program so far, and must leave any program invariant
            (`ppl.check.invariant` tells). Or a function that gives such a kernel for the weighted
            population so far; the evidence then has a bias that vanishes as N grows.
        num_moves: how often the kernel is applied at each step; None for once.
        move_last: if True, move the choices of the last step only, given what came before: a step
            then costs the same however many there were. Moves of all choices, the default, cost as
            much as all steps so far.
        move_always: move at every step, as None does; if False, only after resampling. That is
            cheaper, and biased for finite N: whether particles move then depends on where they are.
        lookahead: a log potential `lookahead(choices, step)` of the last step's choices by address
            and of the number of the iteration (auxiliary and twisted filters). Particles are
            resampled by weight times potential, and divided by it. Potentials more than 50 nats
            below the largest are raised to that.
        resample_power: draw ancestors by the weights to a power, and let them keep the rest of
            their weight: milder than resampling where early weights mislead. A function of the
            effective share of the particles, ess / N, and of how far the loop is, from 0 to 1; it
            gives a number from 0 to 1, other ones are clipped.
        trajectories: keep all choices, in O(N T) numbers; if False, `choices` is empty, and no
            array has an axis of particles and one of iterations, unless the program returns what a
            loop stacks, or a kernel moves all choices so far.

    Returns:
        A program of `Population`. Its `steps` has, for each step that scores, "ess" and
        "log_evidence" after it, and "resampled", whether particles were resampled before it (with a
        kernel they may be after the last one too). `log_evidence_se` estimates the standard error
        of the log evidence from the genealogy; it is NaN where all particles have one ancestor.

    Raises:
        ArgumentError: a setting is out of range, or two exclude one another.
        AddressError: the proposal draws an address the program does not have, or of another shape.
        UnsupportedError: a latent site stands in a `while_loop`, where choices are to be kept.

    Source: Gordon, Salmond and Smith (1993); Gilks and Berzuini (2001), moves; Pitt and Shephard
        (1999), potentials; Lee and Whiteley (2018), standard error; Ścibior et al. (POPL 2018).
    """
    require_program("smc", program)
    size, chosen, threshold = bootstrap_settings("smc", num_particles, resample, ess_threshold)
    if kernel is not None:
        require_kernel("smc", kernel, callable(kernel) and not (move_last and _fits(kernel)))
    special = {"kernel": kernel, "lookahead": lookahead, "resample_power": resample_power}
    chosen_ones = [name for name, x in special.items() if x is not None]
    if len(chosen_ones) > 1:
        raise ArgumentError(
            message(
                f"smc got both a {' and a '.join(chosen_ones)}",
                needs="one of them",
                why="a kernel moves particles after their weights are level, the others leave them "
                "uneven, each in its own way",
                fix=f"ppl.smc(program, num_particles, {chosen_ones[0]}={chosen_ones[0]})",
            )
        )
    settings = {"num_moves": num_moves, "move_last": move_last, "move_always": move_always}
    given = {name: x for name, x in settings.items() if x is not None}
    if kernel is None and given:
        raise ArgumentError(
            message(
                f"smc got {', '.join(f'{k}={x!r}' for k, x in given.items())} and no kernel",
                needs="a kernel for these to be settings of",
                fix="ppl.smc(program, num_particles, kernel=ppl.kernels.single_site())",
            )
        )
    times = count("smc", "num_moves", 1 if num_moves is None else num_moves)
    moves = Moves(kernel, times, bool(move_last), move_always is not False) if kernel else None
    source = program if proposal is None else guided(program, proposal, "smc")
    return stage(
        _smc,
        (
            *(program, source, size, chosen, threshold, moves, lookahead),
            *(resample_power, bool(trajectories)),
        ),
        name=f"smc({program.name})",
    )


def _fits(kernel: Any) -> bool:
    return not isinstance(kernel, Kernel)


def _smc(
    program: Program,
    source: Program,
    num_particles: int,
    scheme: type[Resampling],
    ess_threshold: float,
    moves: Moves | None,
    lookahead: Callable[..., Any] | None,
    power: Callable[[Any, Any], Any] | None,
    trajectories: bool,
) -> Population:
    strategy: Strategy = Bootstrap(scheme, ess_threshold)
    if moves is not None:
        strategy = Moving(scheme, ess_threshold, moves)
    elif lookahead is not None:
        strategy = Lookahead(scheme, ess_threshold, lookahead)
    elif power is not None:
        strategy = Softened(scheme, ess_threshold, power)
    remembers = moves is not None and not moves.last_only
    run = Run(strategy, num_particles, trajectories, remembers=remembers)
    return run.program(source, shown=program)
