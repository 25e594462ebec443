"""Particles that run a cut program side by side: what all sequential Monte Carlo methods share.

The particles go through the parts of a program one after the other; between parts a `Strategy` may
resample them, move them, or do nothing. A loop of the program is one `scan` over populations. Only
live values are carried. Where trajectories are wanted each iteration keeps its choices and its
ancestors, and they are put together once, after the loop.
"""

from ppl.inference.particles.cloud import (
    Cloud,
    Weights,
    choose_cloud,
    mean_and_ess,
    relative_error,
    resample,
    select_cloud,
)
from ppl.inference.particles.run import Around, Place, Run, Strategy

__all__ = [
    "Around",
    "Cloud",
    "Place",
    "Run",
    "Strategy",
    "Weights",
    "choose_cloud",
    "mean_and_ess",
    "relative_error",
    "resample",
    "select_cloud",
]
