"""The paper's three inference methods, as programs of what the benchmark's models return."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

import ppl


@ppl.model
def _chain(program, kernel, steps):
    with ppl.scope("first"):
        run = ppl.traced(program)()
        trace = ppl.trace_of(program, run.choices)

    def step(trace: Any, _: None) -> Any:
        trace = kernel(trace)
        return trace, trace.value

    return run.log_weight, jax.lax.scan(step, trace, length=steps)[1]


@ppl.kernel
def from_prior(trace):
    """Run anew and forget the data: no kernel of the posterior, to see what the checks see."""
    return trace.with_choices(ppl.traced(trace.program)().choices)


def metropolis(program: ppl.Program, steps: int, kernel: Any = None) -> ppl.Program:
    """Start from the prior and redraw one site at a time.

    Returns:
        The log weight of the first run, and the value after every step.
    """
    return _chain(program, kernel or ppl.kernels.single_site(), steps)


def smc(program: ppl.Program, particles: int) -> ppl.Program:
    """Resample systematically before every step."""
    return ppl.smc(program, particles, ess_threshold=1.0)


def resample_move(
    program: ppl.Program, particles: int, moves: int = 1, last: bool = True, kernel: Any = None
) -> ppl.Program:
    """Resample after every step and move what the step chose, or else all that was chosen."""
    return ppl.smc(
        program,
        particles,
        ess_threshold=1.0,
        kernel=kernel or ppl.kernels.single_site(),
        num_moves=moves,
        move_last=last,
    )


class Method(NamedTuple):
    """A method with the paper's settings.

    `at` makes it of a program; `with_samples` spends a number of samples in the way that the
    authors' benchmark does: steps of MH, particles of SMC, moves of ten particles of RMSMC.
    `linear` says whether the cost should grow with the length and no faster.
    """

    family: str
    settings: str
    at: Callable[[ppl.Program], ppl.Program]
    with_samples: Callable[[ppl.Program, int], ppl.Program]
    linear: bool = True

    @property
    def name(self) -> str:
        """The family and the settings."""
        return self.family + self.settings


METHODS = (
    Method("MH", "100", lambda p: metropolis(p, 100), metropolis),
    Method("SMC", "100", lambda p: smc(p, 100), smc),
    Method(
        "RMSMC",
        "10-1, last step",
        lambda p: resample_move(p, 10),
        lambda p, n: resample_move(p, 10, n // 10),
    ),
    Method(
        "RMSMC",
        "10-1, all steps",
        lambda p: resample_move(p, 10, last=False),
        lambda p, n: resample_move(p, 10, n // 10, last=False),
        linear=False,
    ),
)
