"""Resampling by a power of the weights, which leaves the rest of them on the particles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ppl.errors import ArgumentError, message
from ppl.inference.particles.bootstrap import Bootstrap, too_uneven
from ppl.inference.particles.cloud import Cloud, choose_cloud, resample
from ppl.inference.particles.run import Place, Run
from ppl.resampling import Resampling

Power = Callable[[Any, Any], Any]


class Softened(Bootstrap):
    """Resample before draws by the weights to a power between 0 and 1, and keep the rest."""

    def __init__(self, scheme: type[Resampling], ess_threshold: float, power: Power):
        super().__init__(scheme, ess_threshold)
        self.power = power

    def before(self, run: Run, place: Place, cloud: Cloud) -> Cloud:
        weights, around = cloud.weights, place.around
        progress = jnp.zeros_like(weights.ess)
        if around is not None:
            done = around.iteration
            if around.loop.reverse:
                done = around.loop.length - 1 - done
            progress = done / around.loop.length
        power = jnp.asarray(self.power(weights.ess / run.count, progress))
        if power.shape:
            raise ArgumentError(
                message(
                    f"smc got a resample_power of shape {power.shape}",
                    needs="one number from 0 to 1 for all particles",
                    fix="resample_power=lambda ess_share, progress: 0.5",
                )
            )
        power = jnp.clip(power, 0.0, 1.0)
        lost = weights.log_weights == -jnp.inf
        tilt = (power - 1.0) * jnp.where(lost, 0.0, weights.log_weights)
        with run.scope():
            uneven = too_uneven(weights, self.ess_threshold)
            return choose_cloud(uneven, lambda c: resample(c, self.scheme, tilt), cloud)
