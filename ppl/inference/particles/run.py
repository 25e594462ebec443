"""The passage of particles through a cut program, part by part."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl._types import PyTree
from ppl.inference.particles.cloud import (
    ITERATION,
    START,
    Cloud,
    Weights,
    among,
    moved,
    read,
    relative_error,
)
from ppl.inference.particles.operands import Operands
from ppl.interpreter import Interpreter, Record, evaluate, merge_records, placed_sites
from ppl.primitives import sample_p
from ppl.program import Program
from ppl.semantics.cuts import Loop, Piece, Region, cut, stage_equation
from ppl.semantics.population import Population
from ppl.semantics.weighted import trace_of
from ppl.statements import scope


class Memory(NamedTuple):
    """Where a loop's particles keep what they hold outside of it, and earlier iterations' choices.

    `name` and `choices` are names of values; `keys` says what the values outside are of.
    """

    name: str
    choices: str
    keys: tuple[Any, ...]

    def outside(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """Give what particles hold outside of the loop."""
        return dict(zip(self.keys, values[self.name], strict=True))


class Around(NamedTuple):
    """The loop that a region is the body of: which iteration it is, and what is outside.

    `rows` and `given` are those of all iterations; `cloud` is what the particles held when they
    came to the loop and will need after it; `place` is where the loop stands; `axes` tells by
    address which axis of a site is the loop's. `memory` is a `Memory` if all choices are carried.
    """

    loop: Loop
    operands: Operands
    iteration: Any
    rows: list[Any]
    given: Mapping[str, Any]
    cloud: Cloud
    place: Place
    axes: Mapping[str, int]
    memory: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """A part of a region, as the particles come to it or have gone through it."""

    region: Region
    index: int
    env: dict[Any, Any]
    given: Mapping[str, Any]
    around: Around | None
    entry: Cloud

    @property
    def part(self) -> Piece | Loop:
        """The part itself."""
        return self.region.parts[self.index]


class Strategy(abc.ABC):
    """What happens between the parts of a program, and to a draw within one."""

    #: Whether choices are needed while the particles run, and not only at the end.
    records = False
    #: Names of what each particle carries for the strategy, one number that starts at zero.
    carries: tuple[str, ...] = ()

    @abc.abstractmethod
    def before(self, run: Run, place: Place, cloud: Cloud) -> Cloud:
        """Act before a part that draws, if anything has been scored before it."""

    @abc.abstractmethod
    def after(self, run: Run, place: Place, cloud: Cloud) -> Cloud:
        """Act after a piece that scores; `place.entry` is the cloud in front of it."""

    @abc.abstractmethod
    def interpreter(self, lane: Any) -> Interpreter:
        """Say what a site means in the particle of an index; records are Recording's."""


class Run:
    """One passage of particles through a region, as a part of the model being traced."""

    def __init__(
        self,
        strategy: Strategy,
        count: int,
        trajectories: bool = True,
        shared_addresses: tuple[str, ...] = (),
        name: str = "resample",
        remembers: bool = False,
    ):
        self.strategy, self.count, self.name = strategy, count, name
        self.remembers = remembers
        self.trajectories, self.shared_addresses = trajectories, shared_addresses
        self.fresh = True
        self.shared: dict[str, Any] = {}
        self._places = 0

    def scope(self) -> Any:
        """Give the scope of the sites at a place of their own."""
        self._places += 1
        return scope(f"{self.name}{self._places}")

    def program(
        self,
        program: Program,
        given: Mapping[str, Any] | None = None,
        shown: Program | None = None,
    ) -> Population:
        """Take all particles through a whole program.

        `given` is for the interpreter's frames; `shown` is the program that the population is of,
        if this one is another way to draw from it.
        """
        flat, region = cut(program, self.shared_addresses)
        self.flat = flat
        while any(site.address.startswith(self.name) for site in program.sites):
            self.name += "'"  # a run inside has sites of its own
        env = dict(zip(region.inputs, [*flat.consts, *flat.args], strict=True))
        weights = Weights.equal(self.count)
        extra = {name: jnp.zeros_like(weights.log_weights) for name in self.strategy.carries}
        cloud = Cloud({START: jnp.arange(self.count), **extra}, weights)
        outs, cloud, stats = self.region(region, env, cloud, given or {})
        wide = [
            x if among(cloud.values, v) else jnp.broadcast_to(x, (self.count, *jnp.shape(x)))
            for x, v in zip(outs, region.jaxpr.outvars, strict=True)
        ]
        return finished(program, shown or program, self, wide, cloud, stats)

    def region(
        self,
        region: Region,
        env: dict[Any, Any],
        cloud: Cloud,
        given: Mapping[str, Any],
        again: Sequence[Any] = (),
        around: Around | None = None,
    ) -> tuple[list[Any], Cloud, dict[str, Any]]:
        """Run all parts. Give the outputs, what the particles hold then, and statistics.

        `env` has the values that are one for all particles; `again` names the variables that are
        needed after the region.
        """
        stats = []
        for k, part in enumerate(region.parts):
            cloud = cloud.keep({*again, *region.needed_from(k)})
            place = Place(region, k, env, given, around, cloud)
            if isinstance(part, Loop):
                cloud, more = self.loop(part, place, {*again, *region.needed_after(k)})
                stats.append(more)
                continue
            if part.draws and not self.fresh:
                cloud = self.strategy.before(self, place, cloud)
                place = dataclasses.replace(place, entry=cloud)
            cloud = self.piece(part, env, cloud, given)
            if part.scores:
                self.fresh = False
                stats.append(_statistics(cloud.weights))
                cloud = cloud._replace(weights=cloud.weights.counted())
                cloud = self.strategy.after(self, place, cloud)
        outs = [read(env, cloud.values, v) for v in region.jaxpr.outvars]
        return outs, cloud, _concatenated(stats)

    def piece(
        self, part: Piece, env: dict[Any, Any], cloud: Cloud, given: Mapping[str, Any]
    ) -> Cloud:
        """Run equations: the shared ones once, the others in every particle."""
        for eqn in part.shared:
            outs = stage_equation(eqn, [read(env, {}, v) for v in eqn.invars])
            env.update(zip(eqn.outvars, outs, strict=True))
            if eqn.primitive is sample_p:
                self.shared[eqn.params["site"].address] = outs[0]
        if not part.jaxpr.eqns:
            return cloud
        own = [v in cloud.values for v in part.inputs]
        common = [None if o else env[v] for v, o in zip(part.inputs, own, strict=True)]
        mine = [cloud.values[v] if o else None for v, o in zip(part.inputs, own, strict=True)]

        def one(lane: Any, mine: list[Any]) -> Any:
            args = [m if o else c for m, c, o in zip(mine, common, own, strict=True)]
            outs, weight, records = evaluate(
                self.strategy.interpreter(lane), part.jaxpr, [], args, given=given
            )
            return outs, weight, records

        outs, log_factor, records = jax.vmap(one)(jnp.arange(self.count), mine)
        values = {**cloud.values, **dict(zip(part.outputs, outs, strict=True))}
        if self.trajectories or self.strategy.records:
            for address, record in records.items():
                if address not in part.latents:  # a deterministic is no choice
                    continue
                old = values.get(held_at(address))
                values[held_at(address)] = record if old is None else merge_records(old, record)
        weights = cloud.weights.times(log_factor) if part.scores else cloud.weights
        return Cloud(values, weights)

    def loop(self, part: Loop, place: Place, later: set[Any]) -> tuple[Cloud, dict[str, Any]]:
        """Run a loop: one `scan` whose iterations take all particles one step further."""
        self.fresh = False
        env, cloud = place.env, place.entry
        axes = {p.site.address: p.axis(len(p.scans) + 1) for p in placed_sites(part.body.jaxpr)}
        given = {a: jax.tree.map(moved(axes[a], 0), x) for a, x in place.given.items() if a in axes}
        outside = cloud.keep(later)
        memory, extra = self._memory(part, cloud, later) if self.remembers else (None, {})
        extra |= {name: cloud.values[name] for name in self.strategy.carries}
        ins = Operands(part, env, cloud, self.count, extra)
        rows = bool(part.outputs)
        storied = rows or (self.trajectories and memory is None)

        def step(state: Any, x: Any) -> Any:
            (held, common, weights), (i, row, here) = state, x
            inner, values = ins.enter(held, common, row)
            if storied:
                values[ITERATION] = jnp.arange(self.count)
            around = Around(part, ins, i, ins.rows, given, outside, place, axes, memory)
            outs, cloud, stats = self.region(
                part.body, inner, Cloud(values, weights), here, ins.again, around
            )
            records = {k: v for k, v in cloud.values.items() if is_held(k)}
            if memory is not None:
                buffers = cloud.values[memory.choices]
                now = {a: b.at[:, i].set(records[held_at(a)].value) for a, b in buffers.items()}
                cloud.values[memory.choices] = now
                records = {}
            held, common, common_rows, own_rows = ins.leave(outs, cloud)
            if not self.trajectories:
                records = {}
            story = (own_rows, records, cloud.values[ITERATION]) if storied else None
            return (held, common, cloud.weights), (story, common_rows, stats)

        (held, common, weights), (story, common_rows, stats) = jax.lax.scan(
            step,
            (ins.held, ins.common, cloud.weights),
            (jnp.arange(part.length), ins.rows, given),
            length=part.length,
            reverse=part.reverse,
            unroll=part.eqn.params["unroll"],
        )
        last = dict(zip(ins.names, held, strict=True))
        if memory is None:
            cloud = Cloud(outside.values, weights).take(last[START])
        else:
            cloud = Cloud(memory.outside(last), weights).keep(later)
            for a, buffer in last[memory.choices].items():
                cloud.values[held_at(a)] = Record(moved(1, 1 + axes[a])(buffer))
        cloud.values.update((name, last[name]) for name in self.strategy.carries)
        ins.done(env, cloud, held, common, common_rows)
        if story is not None:
            own_rows, records = _retraced(story[:2], story[2], part.reverse)
            cloud.values.update(zip(part.outputs, map(moved(0, 1), own_rows), strict=True))
            for name, record in records.items():
                cloud.values[name] = jax.tree.map(moved(0, 1 + axes[name[1:]]), record)
        stats = {k: jnp.flip(x, 0) if part.reverse else x for k, x in stats.items()}
        return cloud, {k: jnp.reshape(x, (-1,)) for k, x in stats.items()}

    def _memory(self, part: Loop, cloud: Cloud, later: set[Any]) -> tuple[Memory, dict[str, Any]]:
        """Carry through a loop what is outside of it, and room for the choices made inside."""
        outside = cloud.keep(later).values
        depth = sum(isinstance(k, str) and k.startswith(_OUTSIDE) for k in outside)
        memory = Memory(f"{_OUTSIDE}{depth}", f"{_CHOICES}{depth}", tuple(outside))
        room = {
            p.site.address: jnp.zeros((self.count, part.length, *p.shape), p.site.dtype)
            for p in placed_sites(part.body.jaxpr)
            if p.site.kind == "latent"
        }
        return memory, {memory.name: list(outside.values()), memory.choices: room}


_OUTSIDE, _CHOICES = "outside", "choices"


def held_at(address: str) -> str:
    """Name the record of a site among what a particle holds."""
    return "@" + address


def is_held(key: Any) -> bool:
    """Tell whether what a particle holds is the record of a site."""
    return isinstance(key, str) and key.startswith("@")


def _retraced(kept: PyTree, lineages: Any, reverse: bool) -> PyTree:
    """Put together what the last particles' ancestors kept, going back through the loop."""

    def back(index: Any, x: Any) -> Any:
        kept, lineage = x
        return lineage[index], jax.tree.map(lambda v: v[index], kept)

    last = jnp.arange(lineages.shape[1])
    return jax.lax.scan(back, last, (kept, lineages), reverse=not reverse)[1]


def finished(
    program: Program, shown: Program, run: Run, outs: list[Any], cloud: Cloud, stats: Any
) -> Population:
    """Make the particles that have gone through a program a population."""
    weights, count = cloud.weights, run.count

    def all_of(x: Any) -> Any:
        return jnp.broadcast_to(x, (count, *jnp.shape(x)))

    records = {a: Record(all_of(x)) for a, x in run.shared.items()}
    records |= {k[1:]: x for k, x in cloud.values.items() if is_held(k)}
    records = {a: records[a] for a in program.latents if a in records}
    choices = {a: r.value for a, r in records.items()}
    present = {a: r.present for a, r in records.items() if r.present is not None}
    values = program.structure.rebuild(outs)
    if run.remembers:  # a move may have changed what was computed long ago
        traces = jax.vmap(lambda c: trace_of(program, c), axis_size=count)(choices)
        present = {a: x for a, x in traces.present.items() if a in choices}
        values = traces.value
    kept = shown.latents if run.trajectories else ()
    return Population(
        values,
        weights.log_weights,
        weights.log_evidence + weights.log_mean,
        {a: x for a, x in choices.items() if a in kept},
        shown,
        relative_error(weights, cloud.values[START]),
        {a: x for a, x in present.items() if a in kept},
        stats,
        cloud.values[START],
    )


def _statistics(weights: Weights) -> dict[str, Any]:
    evidence = weights.log_evidence + weights.log_mean
    return {
        "ess": weights.ess[None],
        "log_evidence": evidence[None],
        "resampled": weights.resampled[None],
    }


def _concatenated(stats: list[dict[str, Any]]) -> dict[str, Any]:
    if len(stats) == 1:  # as in most loops, where joining would cost something at each step
        return stats[0]
    nothing = jnp.zeros(0, jnp.result_type(float))
    empty = {"ess": nothing, "log_evidence": nothing, "resampled": jnp.zeros(0, bool)}
    return {k: jnp.concatenate([empty[k], *(s[k] for s in stats)]) for k in empty}
