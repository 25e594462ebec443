"""Resampling by weight times a potential: the auxiliary and the twisted particle filter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ppl.errors import ArgumentError, message
from ppl.inference.particles.bootstrap import too_uneven
from ppl.inference.particles.cloud import Cloud, choose_cloud, resample
from ppl.inference.particles.run import Place, Run, Strategy, is_held
from ppl.interpreter import Interpreter
from ppl.resampling import Resampling
from ppl.semantics.weighted import Recording

_AHEAD = "ahead"
_SPREAD = 50.0  # nats: potentials that are smaller yet, beside the largest, are raised


class Lookahead(Strategy):
    """Resample before draws by weight times potential, and divide by the potential afterwards.

    The potential is one of the choices of the last piece that scored. What it promises for later
    is thus taken back when the particles have been chosen.
    """

    records = True
    carries = (_AHEAD,)

    def __init__(
        self, scheme: type[Resampling], ess_threshold: float, potential: Callable[..., Any]
    ):
        self.scheme, self.ess_threshold, self.potential = scheme, ess_threshold, potential

    def before(self, run: Run, place: Place, cloud: Cloud) -> Cloud:
        ahead = cloud.values[_AHEAD]
        with run.scope():
            uneven = too_uneven(cloud.weights.times(ahead), self.ess_threshold)
            return choose_cloud(uneven, lambda c: resample(c, self.scheme, ahead), cloud)

    def after(self, run: Run, place: Place, cloud: Cloud) -> Cloud:
        choices = {k[1:]: x.value for k, x in cloud.values.items() if is_held(k)}
        step = jnp.zeros((), int) if place.around is None else place.around.iteration
        ahead = jax.vmap(self._checked, in_axes=(0, None), axis_size=run.count)(choices, step)
        # A potential of zero would lose particles that later weights may allow.
        best = jnp.max(jnp.where(jnp.isfinite(ahead), ahead, -jnp.inf))
        ahead = jnp.maximum(ahead, jnp.where(jnp.isfinite(best), best, 0.0) - _SPREAD)
        return cloud._replace(values={**cloud.values, _AHEAD: ahead})

    def interpreter(self, lane: Any) -> Interpreter:
        return Recording()

    def _checked(self, choices: dict[str, Any], step: Any) -> Any:
        ahead = jnp.asarray(self.potential(choices, step))
        if ahead.shape or not jnp.issubdtype(ahead.dtype, jnp.floating):
            raise ArgumentError(
                message(
                    f"smc got a lookahead that gives {ahead.dtype}{list(ahead.shape)}",
                    needs="one number, a log potential",
                    why="each particle is chosen by its weight times one potential",
                    fix="sum over the plates: lambda choices, step: jnp.sum(...)",
                )
            )
        return ahead
