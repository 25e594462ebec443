"""A cut program whose data come row by row, as three model functions.

`start` runs what comes before the loop, `step` one iteration, `finish` what comes after. A `scan`
of `step` denotes what the loop does. All that a filter has to remember is its `State`, whose size
does not depend on how many rows there have been.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from ppl import _jax
from ppl.inference.particles.bootstrap import Bootstrap
from ppl.inference.particles.cloud import START, Cloud, Weights, among, relative_error
from ppl.inference.particles.rows import Rows, without
from ppl.inference.particles.run import Run
from ppl.interpreter import Record
from ppl.program import Structure
from ppl.resampling import Resampling
from ppl.semantics.cuts import Loop, Piece, Region
from ppl.semantics.population import Population

Records = dict[str, Record]
Stats = dict[str, Any]


class State(NamedTuple):
    """What a filter remembers between two rows.

    `own` holds arrays whose first axis is the particle: indices at the start, choices made before
    the loop, what the loop carries, and what is read after it; `common` what is one for all.
    `evidence` is what resampling took out of the weights, as a sum and its rounding error, so that
    a stream of any length adds it up exactly enough.
    """

    steps: Any
    own: dict[str, Any]
    common: dict[str, Any]
    weights: Weights
    evidence: tuple[Any, Any]

    @property
    def log_evidence(self) -> Any:
        """The log of the evidence estimate."""
        high, low = self.evidence
        return high + (low + self.weights.log_mean)


class Moment(NamedTuple):
    """What a stream is at a moment: replaced as a whole, so that nothing can come in between."""

    state: State
    latest: Records | None
    steps: dict[str, Any]
    key: Any


class Online:
    """A program that is fed, with the settings of its filter."""

    def __init__(
        self,
        structure: Structure,
        region: Region,
        rows: Rows,
        count: int,
        scheme: type[Resampling],
        ess_threshold: float,
    ):
        self.structure, self.sources, self.count = structure, rows.sources, count
        self.strategy = Bootstrap(scheme, ess_threshold)
        loop = region.parts[rows.part]
        assert isinstance(loop, Loop)
        self.loop = loop
        first = [without(part, rows.lost) for part in region.parts[: rows.part]]
        last = [without(part, rows.lost) for part in region.parts[rows.part + 1 :]]
        #: Whether the program's value can be known without all rows.
        self.complete = not any(v in rows.lost for v in _jax.variables(region.jaxpr.outvars))
        self.last = _part(region, last, region.jaxpr.outvars)
        made = {v for part in last for v in _made(part)} | set(loop.eqn.outvars)
        late = [v for v in dict.fromkeys(_read(self.last)) if v not in made]
        self.late = late if self.complete else []
        self.first = _part(region, first, [*loop.eqn.invars[: sum(loop.sizes)], *self.late])
        self.inputs = [v for v in region.inputs if v not in rows.lost]
        n, m = loop.sizes
        names = [f"constant {i}" for i in range(n)] + [f"carry {i}" for i in range(m)]
        self.names = names
        self.variables = dict(zip(names, loop.body.jaxpr.invars, strict=False))

    def run(self, *before: Sequence[Any]) -> Run:
        """Begin in the middle: with the names of sites that the whole run would give."""
        run = Run(self.strategy, self.count)
        for parts in before:
            run.fresh = False
            for _ in range(_scopes(parts)):
                run.scope()
        return run

    def start(self, inputs: Sequence[Any]) -> State:
        """Run what comes before the loop, given all inputs but the rows."""
        run, env = self.run(), dict(zip(self.inputs, inputs, strict=True))
        cloud = Cloud({START: jnp.arange(self.count)}, Weights.equal(self.count))
        outs, cloud, _ = run.region(self.first, env, cloud, {})
        own = {k: x for k, x in cloud.values.items() if isinstance(k, str)}
        common = {}
        names = self.names + [f"late {i}" for i in range(len(self.late))]
        for name, out, atom in zip(names, outs, self.first.jaxpr.outvars, strict=True):
            out = jnp.asarray(out, atom.aval.dtype)
            wide = among(cloud.values, atom)
            if wide or self.variables.get(name) in self.loop.body.random:
                own[name] = out if wide else self._wide(out)
            else:
                common[name] = out
        zero = jnp.zeros_like(cloud.weights.log_mean)
        state = State(jnp.zeros((), int), own, common, cloud.weights, (zero, zero))
        return _settled(state)

    def step(self, state: State, row: Sequence[Any]) -> tuple[State, Records, Stats]:
        """Take all particles through one iteration, given what is scanned."""
        body = self.loop.body
        run = self.run(self.first.parts)
        inner = dict(zip(body.jaxpr.constvars, self.loop.consts, strict=True))
        inner.update((self.variables[k], x) for k, x in state.common.items() if k in self.variables)
        values = {self.variables.get(k, k): x for k, x in state.own.items()}
        fed = iter(row)
        for v, source in zip(body.jaxpr.invars[len(self.names) :], self.sources, strict=True):
            inner[v] = state.steps.astype(v.aval.dtype) if source is None else next(fed)
        constants = list(body.jaxpr.invars[: self.loop.sizes[0]])
        outs, cloud, stats = run.region(body, inner, Cloud(values, state.weights), {}, constants)
        carried = zip(self.names[len(constants) :], outs, body.jaxpr.outvars, strict=False)
        own, common = {}, dict(state.common)
        for name, out, atom in carried:
            out = jnp.asarray(out, atom.aval.dtype)
            if name in common:
                common[name] = out
            else:
                own[name] = out if among(cloud.values, atom) else self._wide(out)
        rest = [k for k in state.own if k not in own]
        own.update((k, cloud.values[self.variables.get(k, k)]) for k in rest)
        latest = {k: x for k, x in cloud.values.items() if _is_record(k) and k not in own}
        stats = {**stats, "log_evidence": sum(state.evidence) + stats["log_evidence"]}
        state = state._replace(steps=state.steps + 1, own=own, common=common, weights=cloud.weights)
        return _settled(state), latest, stats

    def finish(self, state: State, latest: Records | None) -> Population:
        """Run what comes after the loop, if it can be known, and give the particles."""
        cloud = Cloud(
            {k: x for k, x in state.own.items() if k not in self.variables}, state.weights
        )
        cloud.values.update(latest or {})
        outs, env = None, {}
        if self.complete:
            loop = self.loop
            held = dict(zip(loop.eqn.outvars, self.names[loop.sizes[0] :], strict=False))
            held.update((v, f"late {i}") for i, v in enumerate(self.late))
            cloud.values.update((v, state.own[k]) for v, k in held.items() if k in state.own)
            env.update((v, state.common[k]) for v, k in held.items() if k in state.common)
            run = self.run(self.first.parts, [loop])
            outs, cloud, _ = run.region(self.last, env, cloud, {})
            atoms = self.last.jaxpr.outvars
            wide = [
                x if among(cloud.values, v) else self._wide(x)
                for x, v in zip(outs, atoms, strict=True)
            ]
            outs = self.structure.rebuild(wide)
        weights = cloud.weights
        records = {k[1:]: x for k, x in cloud.values.items() if _is_record(k)}
        latents = [s.address for s in self.structure.sites if s.address in records]
        records = {a: records[a] for a in latents if self.structure.sites[a].kind == "latent"}
        return Population(
            outs,
            weights.log_weights,
            sum(state.evidence) + (weights.log_evidence + weights.log_mean),
            {a: r.value for a, r in records.items()},
            None,
            relative_error(weights, cloud.values[START]),
            {a: r.present for a, r in records.items() if r.present is not None},
            families=cloud.values[START],
        )

    def _wide(self, x: Any) -> Any:
        return jnp.broadcast_to(x, (self.count, *jnp.shape(x)))


@functools.lru_cache(maxsize=64)
def online(*settings: Any) -> Online:
    """Give the programs of a structure and settings, the same ones whenever asked."""
    return Online(*settings)


def _settled(state: State) -> State:
    """Move what resampling took out of the weights into the evidence, with the rounding error."""
    (high, low), more = state.evidence, state.weights.log_evidence
    total = high + more
    back = total - high  # Knuth's exact sum of two: total + error == high + more
    error = (high - (total - back)) + (more - back)
    weights = state.weights._replace(log_evidence=jnp.zeros_like(more))
    return state._replace(
        weights=weights,
        evidence=(total, low + error),
    )


# --- Parts of a region --------------------------------------------------------------------------


def _part(region: Region, parts: Sequence[Any], outputs: Sequence[Any]) -> Region:
    jaxpr = _jax.part_of_jaxpr(region.jaxpr, [], region.inputs, list(outputs))
    return Region(jaxpr, tuple(parts), region.random)


def _read(region: Region) -> list[Any]:
    """List what a region without loops reads."""
    pieces = [p for p in region.parts if isinstance(p, Piece)]
    read = [v for p in pieces for e in p.shared for v in e.invars]
    return _jax.variables([*read, *(v for p in pieces for v in p.inputs), *region.jaxpr.outvars])


def _made(piece: Any) -> list[Any]:
    return [*(v for e in piece.shared for v in e.outvars), *piece.outputs]


def _scopes(parts: Sequence[Any], fresh: bool = True) -> int:
    """Count the places at which a strategy acts before draws."""
    total = 0
    for part in parts:
        if isinstance(part, Loop):
            fresh, total = False, total + _scopes(part.body.parts, False)
        else:
            total += part.draws and not fresh
            fresh = fresh and not part.scores
    return total


def _is_record(key: Any) -> bool:
    return isinstance(key, str) and key.startswith("@")
