"""Resample-move: after resampling, a kernel moves the particles apart."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from ppl.inference.moving import fitted, moved_trace
from ppl.inference.particles.bootstrap import too_uneven
from ppl.inference.particles.cloud import Cloud, choose_cloud, read, resample
from ppl.inference.particles.history import choices_at, program_up_to, record_of, with_choices
from ppl.inference.particles.run import Place, Run, Strategy, held_at
from ppl.interpreter import Interpreter
from ppl.resampling import Resampling
from ppl.semantics.cuts import Piece, stage_equation
from ppl.semantics.population import Population
from ppl.semantics.weighted import Recording, Trace
from ppl.staging import stage


class Moves(NamedTuple):
    """How particles are moved: by which kernel, how often, how far back, and when."""

    kernel: Any
    num_moves: int
    last_only: bool
    always: bool


class Moving(Strategy):
    """After scores, resample if the weights have become uneven, and move every particle.

    The kernel acts on the trace of the program so far, or of the last piece given what the particle
    held before it. Either way it leaves the measure so far invariant, whatever the weights.
    """

    records = True

    def __init__(self, scheme: type[Resampling], ess_threshold: float, moves: Moves):
        self.scheme, self.ess_threshold, self.moves = scheme, ess_threshold, moves

    def before(self, run: Run, place: Place, cloud: Cloud) -> Cloud:
        return cloud

    def interpreter(self, lane: Any) -> Interpreter:
        return Recording()

    def after(self, run: Run, place: Place, cloud: Cloud) -> Cloud:
        held = {}
        assert isinstance(place.part, Piece)
        if self.moves.last_only:  # what the particles held before the piece goes along with them
            own = [v for v in place.part.inputs if v in place.entry.values]
            held = {f"entry{i}": place.entry.values[v] for i, v in enumerate(own)}
        cloud = cloud._replace(values={**cloud.values, **held})

        def moved(cloud: Cloud) -> Cloud:
            return (
                self._last(place, cloud) if self.moves.last_only else self._all(run, place, cloud)
            )

        def renewed(cloud: Cloud) -> Cloud:
            cloud = resample(cloud, self.scheme)
            return cloud if self.moves.always else moved(cloud)

        with run.scope():
            uneven = too_uneven(cloud.weights, self.ess_threshold)
            cloud = choose_cloud(uneven, renewed, cloud)
            if self.moves.always:
                cloud = moved(cloud)
        return cloud._replace(values={k: x for k, x in cloud.values.items() if k not in held})

    def _all(self, run: Run, place: Place, cloud: Cloud) -> Cloud:
        """Move all choices so far."""
        program = program_up_to(run.flat, place, cloud.values)
        choices, weights = choices_at(place, cloud.values), cloud.weights
        if not choices:
            return cloud
        particles = Population(None, weights.log_weights, weights.log_mean, choices, program)
        kernel = fitted("smc", self.moves.kernel, particles)
        count = self.moves.num_moves
        traces = jax.vmap(lambda c: moved_trace(kernel, program, c, count))(choices)
        values = with_choices(place, cloud.values, traces, traces.value)
        return cloud._replace(values=values)

    def _last(self, place: Place, cloud: Cloud) -> Cloud:
        """Move the choices of the last piece."""
        part, values = place.part, cloud.values
        assert isinstance(part, Piece)
        own = [v for v in part.inputs if v in place.entry.values]
        here = sorted(part.latents)
        if not here:
            return cloud

        def one(mine: list[Any], choices: dict[str, Any]) -> Trace:
            given = {**place.env, **dict(zip(own, mine, strict=True))}
            program = stage(_piece, (part, [given[v] for v in part.inputs]), name="the last piece")
            return moved_trace(self.moves.kernel, program, choices, self.moves.num_moves)

        choices = {a: values[held_at(a)].value for a in here}
        mine = [values[f"entry{i}"] for i in range(len(own))]
        traces = jax.vmap(one)(mine, choices)
        new = dict(zip(part.outputs, traces.value, strict=True))
        new |= {held_at(a): record_of(traces, a, values[held_at(a)]) for a in here}
        return cloud._replace(values={**values, **new})


def _piece(part: Piece, given: list[Any]) -> list[Any]:
    """One piece for one particle: what it hands on."""
    env = dict(zip(part.inputs, given, strict=True))
    for eqn in part.jaxpr.eqns:
        env.update(
            zip(
                eqn.outvars,
                stage_equation(eqn, [read(env, {}, v) for v in eqn.invars]),
                strict=True,
            )
        )
    return [env[v] for v in part.outputs]
