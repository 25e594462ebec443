"""Backward simulation: keep what particles held, and draw trajectories from the last to the first.

Source: Godsill, Doucet and West (2004); for programs that are not Markov, Lindsten and Schön
    (2013), section 4: the weight of a past is the density of the future that was chosen given it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ppl._types import pytree, static
from ppl.inference.particles.cloud import Cloud, moved
from ppl.inference.particles.future import (
    Held,
    Level,
    Outside,
    choose_particle,
    inputs_at,
    log_future,
    outside_of,
    times,
)
from ppl.inference.particles.onward import Rest, onward_of, rest_of
from ppl.inference.particles.run import Around, Place, Run, Strategy
from ppl.interpreter import Interpreter, Record, placed_sites
from ppl.semantics.cuts import Loop, Region


@pytree
class Point:
    """A place in front of draws: what the particles held, their weights and records."""

    held: Held
    log_weights: Any
    records: dict[str, Record]
    rest: Rest = static()


@pytree
class Passage:
    """A loop: what the particles had recorded before it, and each iteration's history in order."""

    records: dict[str, Record]
    rounds: Any
    outside: Outside
    part: Loop = static()


@pytree
class Past:
    """What happened in a region, in order, and the particles' records when it was over."""

    events: tuple[Any, ...]
    records: dict[str, Record]


class History(Run):
    """A run that keeps what is needed to draw the choices at some addresses backwards."""

    def __init__(self, operation: str, strategy: Strategy, count: int, addresses: Sequence[str]):
        super().__init__(_Remembering(strategy), count)
        self.operation, self._addresses = operation, tuple(addresses)
        self._events: list[Any] = []

    def remember(self, place: Place, cloud: Cloud) -> None:
        """Keep what the particles hold at a place."""
        rest = rest_of(self.operation, place)
        held = inputs_at(rest.jaxpr, place.env, cloud.values)
        self._events.append(Point(held, cloud.weights.log_weights, self._records(cloud), rest))

    def region(
        self,
        region: Region,
        env: dict[Any, Any],
        cloud: Cloud,
        given: Mapping[str, Any],
        again: Sequence[Any] = (),
        around: Around | None = None,
    ) -> tuple[list[Any], Cloud, dict[str, Any]]:
        """Run all parts; the history of a loop's iteration leaves it among the statistics."""
        before, self._events = self._events, []
        outs, cloud, stats = super().region(region, env, cloud, given, again, around)
        self.past, self._around = Past(tuple(self._events), self._records(cloud)), around
        self._events = before
        kept = {f"kept {i}": x for i, x in enumerate(jax.tree.leaves(self.past))}
        return outs, cloud, stats | kept

    def loop(self, part: Loop, place: Place, later: set[Any]) -> tuple[Cloud, dict[str, Any]]:
        """Run a loop, and keep the histories of its iterations."""
        cloud, stats = super().loop(part, place, later)
        kept, tree = jax.tree.flatten(self.past)  # of one iteration: only its shapes are read here
        rows = [stats.pop(f"kept {i}") for i in range(len(kept))]
        rows = [x.reshape(part.length, *jnp.shape(k)) for x, k in zip(rows, kept, strict=True)]
        assert self._around is not None
        outside = outside_of(onward_of(part, place), self._around)
        rounds, before = jax.tree.unflatten(tree, rows), self._records(place.entry)
        self._events.append(Passage(before, rounds, outside, part))
        return cloud, stats

    def _records(self, cloud: Cloud) -> dict[str, Record]:
        return {a: cloud.values["@" + a] for a in self._addresses if "@" + a in cloud.values}

    def draw_back(self, last: Any) -> dict[str, Record]:
        """Draw a trajectory backwards, from the particle in which it ends."""
        return self._back(self.past, last, [])[0]

    def _back(self, past: Past, index: Any, levels: Sequence[Level]) -> tuple[Any, Any]:
        """Go back through a region: give its choices, and the index of the particle before it."""
        given = _taken(past.records, index)
        for event in reversed(past.events):
            if isinstance(event, Passage):
                given, index = self._back_through(event, given, index, levels)
                continue
            with self.scope():
                log_weights = self.log_weights(event, given, levels)
                index = choose_particle("ancestor", log_weights)
            given = {**given, **_taken(event.records, index)}
        return given, index

    def log_weights(self, point: Point, given: Any, levels: Sequence[Level]) -> Any:
        """Weigh the particles at a place by how well what follows goes with them."""
        lanes = jnp.arange(self.count)
        one = lambda lane: log_future(point.rest, point.held, lane, given, levels)  # noqa: E731
        return times(point.log_weights, jax.vmap(one)(lanes))

    def _back_through(
        self, passage: Passage, given: Any, index: Any, levels: Sequence[Level]
    ) -> tuple[Any, Any]:
        """Go back through a loop."""
        part = passage.part
        placed = [p for p in placed_sites(part.body.jaxpr) if p.site.address in given]
        axes = {p.site.address: p.axis(len(p.scans) + 1) for p in placed}
        rows = {a: jax.tree.map(moved(axis, 0), given[a]) for a, axis in axes.items()}

        def step(state: Any, now: Any) -> Any:
            (index, rows), (i, past) = state, now
            level = Level(i, rows, passage.outside, given)
            mine, index = self._back(past, index, [level, *levels])
            return (index, jax.tree.map(lambda row, x: row.at[i].set(x), rows, mine)), None

        order = jnp.arange(part.length)
        order = jnp.flip(order) if part.reverse else order
        state, now = (jnp.asarray(index), rows), (order, passage.rounds)
        (index, rows), _ = jax.lax.scan(step, state, now, reverse=True)
        back = {a: jax.tree.map(moved(0, axis), rows[a]) for a, axis in axes.items()}
        return {**given, **_taken(passage.records, index), **back}, index


class _Remembering(Strategy):
    """A strategy, whose run keeps what the particles hold wherever they may be resampled."""

    def __init__(self, strategy: Strategy):
        self.strategy = strategy
        self.records, self.carries = strategy.records, strategy.carries

    def before(self, run: Run, place: Place, cloud: Cloud) -> Cloud:
        assert isinstance(run, History)
        run.remember(place, cloud)
        return self.strategy.before(run, place, cloud)

    def after(self, run: Run, place: Place, cloud: Cloud) -> Cloud:
        return self.strategy.after(run, place, cloud)

    def interpreter(self, lane: Any) -> Interpreter:
        return self.strategy.interpreter(lane)


def _taken(records: Mapping[str, Record], index: Any) -> dict[str, Record]:
    return {a: jax.tree.map(lambda x: x[index], r) for a, r in records.items()}
