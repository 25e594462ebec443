"""The bootstrap strategy: draw from the model, resample where weights have become uneven."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from ppl.counts import count
from ppl.errors import ArgumentError, message
from ppl.inference.particles.cloud import Cloud, Weights, choose_cloud, resample
from ppl.inference.particles.run import Place, Run, Strategy
from ppl.interpreter import Interpreter
from ppl.resampling import Resampling, scheme
from ppl.semantics.weighted import Recording


class Bootstrap(Strategy):
    """Resample before draws, if the weights have become uneven."""

    def __init__(self, scheme: type[Resampling], ess_threshold: float):
        self.scheme, self.ess_threshold = scheme, ess_threshold

    def before(self, run: Run, place: Place, cloud: Cloud) -> Cloud:
        with run.scope():
            uneven = too_uneven(cloud.weights, self.ess_threshold)
            return choose_cloud(uneven, lambda c: resample(c, self.scheme), cloud)

    def after(self, run: Run, place: Place, cloud: Cloud) -> Cloud:
        return cloud

    def interpreter(self, lane: Any) -> Interpreter:
        return Recording()


def too_uneven(weights: Weights, ess_threshold: float) -> Any:
    """Tell whether to resample; with a threshold of one, whenever the weights differ at all.

    Weights that are not numbers are uneven: resampling makes all of them so, for all to see.
    """
    w = weights.log_weights
    if ess_threshold >= 1:
        return ~(jnp.max(w) <= jnp.min(w))
    return ~(weights.ess >= ess_threshold * w.shape[0])


def bootstrap_settings(
    operation: str, num_particles: Any, resample: Any, ess_threshold: Any
) -> tuple[int, type[Resampling], float]:
    """Check the settings that bootstrap filters have in common."""
    number = count(operation, "num_particles", num_particles)
    try:
        threshold = float(ess_threshold)
    except (TypeError, ValueError):
        threshold = -1.0
    if not 0 <= threshold <= 1:
        raise ArgumentError(
            message(
                f"{operation} got ess_threshold={ess_threshold!r}",
                needs="a share of the particles, from 0 (never resample) to 1 (always)",
                fix="ess_threshold=0.5",
            )
        )
    return number, scheme(resample), threshold
