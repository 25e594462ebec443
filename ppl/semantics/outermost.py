"""Any program whose outermost loops are long, run from the host loop by loop.

What stands between two long loops is one compiled call; a loop is as many calls as the clock asks
for, each of a number of iterations that is data. Between two calls the host shows progress, writes
to disk, and can be interrupted. An iteration's draws depend on its number alone, so that it makes
no difference where the blocks end.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ppl import _jax
from ppl._host import named_errors, undivided
from ppl._types import PyTree
from ppl.errors import Interrupted
from ppl.interpreter import Ring, loop_key_of
from ppl.program import Program, Structure
from ppl.results.progress import progress as progress_bar
from ppl.semantics.checkpoint import SAVE_EVERY, Snapshot
from ppl.semantics.costs import cost, cost_of
from ppl.semantics.sharding import Sharing

#: What a program must cost to be run loop by loop, in nanoseconds as `cost` guesses them, and what
#: a loop must cost to be one of those.
LONG, SOME = 3e8, 3e7
#: The most loops that a program is cut at unasked: XLA compiles equal ones faster together.
FEW = 2
#: The seconds that a call should take.
SECONDS = 0.25
#: Seconds after which a bar shows that nobody asked for.
PATIENCE = 1.0
#: Times that the work between two snapshots takes longer than writing one.
WORTH = 20


class Interpret(Protocol):
    """How regions are run; equal ones share compiled code."""

    @property
    def sharing(self) -> Sharing | None:
        """How devices share the work, if they do."""
        ...

    def __call__(self, jaxpr: Any, consts: Any, args: Any, key: Any) -> list[Any]:
        """Give the flat outputs of a region."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A loop, or the equations between two loops: what they read and what is needed of them."""

    eqns: tuple[Any, ...]
    reads: tuple[Any, ...]
    makes: tuple[Any, ...]
    jaxpr: Any = None

    @property
    def loop(self) -> Any:
        """The equation of the loop; None if this is none."""
        return None if self.jaxpr is not None else self.eqns[0]

    @property
    def length(self) -> int | None:
        """The number of iterations, if it is known."""
        return None if self.loop is None else self.loop.params.get("length")

    @property
    def first_carried(self) -> int:
        """Where among a loop's operands the carried values begin."""
        params = self.loop.params
        if self.length is None:
            return params["cond_nconsts"] + params["body_nconsts"]
        return _jax.scan_sizes(self.loop)[0]

    @property
    def num_carried(self) -> int:
        """The number of values a loop carries."""
        return len(self.loop.outvars) if self.length is None else _jax.scan_sizes(self.loop)[1]

    @functools.cached_property
    def kept_rows(self) -> tuple[int, ...]:
        """Which of the arrays that a `scan` stacks are needed."""
        rows = self.loop.outvars[self.num_carried :]
        return tuple(i for i, v in enumerate(rows) if v in self.makes)

    @property
    def written(self) -> tuple[Any, ...]:
        """The variables for what a loop carries and for the rows that are needed."""
        outs, m = self.loop.outvars, self.num_carried
        return (*outs[:m], *(outs[m + i] for i in self.kept_rows))

    @functools.cached_property
    def calls_host(self) -> bool:
        """Whether the loop calls Python: then what goes in must outlive a call that fails."""
        return any(map(_calls_host, _jax.subjaxprs(self.loop)))


@functools.lru_cache(maxsize=256)
def parts_of(structure: Structure, asked: bool) -> tuple[Part, ...] | None:
    """Cut a program at its long loops; None if it has none, or many.

    Then, if somebody asked for it, at all loops that draw, however short and many.
    """
    jaxpr = structure.jaxpr
    # The same pieces either way, so that they are compiled once.
    if asked and (found := parts_of(structure, False)) is not None:
        return found
    if not asked and cost(jaxpr) < LONG:
        return None
    groups: list[tuple[bool, list[Any]]] = []
    for eqn in jaxpr.eqns:
        loop = _drivable(eqn) and (asked or cost_of(eqn) >= SOME)
        if loop or not groups or groups[-1][0]:
            groups.append((loop, []))
        groups[-1][1].append(eqn)
    if not 0 < sum(loop for loop, _ in groups) <= (len(groups) if asked else FEW):
        return None
    parts: list[Part] = []
    later = set(_jax.variables(jaxpr.outvars))
    for loop, eqns in reversed(groups):
        made = [v for eqn in eqns for v in eqn.outvars]
        makes = tuple(v for v in dict.fromkeys(made) if v in later)
        read = dict.fromkeys(v for eqn in eqns for v in _jax.variables(eqn.invars))
        reads = tuple(v for v in read if v not in set(made))
        inner = None if loop else _jax.part_of_jaxpr(jaxpr, eqns, reads, makes)
        parts.append(Part(tuple(eqns), reads, makes, inner))
        later.update(reads)
    handed = (v for part in parts for v in part.makes)
    return tuple(reversed(parts)) if all(_plain(v.aval.dtype) for v in handed) else None


def _drivable(eqn: Any) -> bool:
    """Tell whether an equation is a loop that draws, and can be stopped between iterations."""
    name = eqn.primitive.name
    if not _jax.contains_effect(eqn):
        return False
    if name == "while":
        return not _jax.has_effect(eqn.params["cond_jaxpr"])
    return name == "scan" and all(_plain(v.aval.dtype) for v in eqn.outvars)


def _plain(dtype: Any) -> bool:
    return not jnp.issubdtype(dtype, jax.dtypes.extended)


def _calls_host(jaxpr: Any) -> bool:
    return any(
        "callback" in eqn.primitive.name or any(map(_calls_host, _jax.subjaxprs(eqn)))
        for eqn in jaxpr.eqns
    )


# --- Running ------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Loop:
    """A loop under way: how many iterations are over, what is carried, and the rows so far."""

    step: int
    carry: list[Any]
    rows: list[Any]
    rings: Any
    over: bool = False


class Passage:
    """A program under way: which part it is in, and what this and later parts read."""

    def __init__(
        self,
        program: Program,
        parts: tuple[Part, ...],
        key: Any,
        interpret: Interpret,
        checkpoint: str | None,
    ):
        self.program, self.parts, self.key, self.interpret = program, parts, key, interpret
        self.jaxpr = jaxpr = program.structure.jaxpr
        self.env: dict[Any, Any] = dict(zip(jaxpr.constvars, program.consts, strict=True))
        self.env.update(zip(jaxpr.invars, program.args, strict=True))
        self.index, self.pace, self._before = 0, 1, 0
        self.current: _Loop | None = None
        self.place = interpret.sharing.place if interpret.sharing else _same
        self.snapshot = None
        if checkpoint is not None:
            snapshot = Snapshot(checkpoint, program, key, interpret)
            self._restore(snapshot)
            self.snapshot = snapshot

    @property
    def total(self) -> int | None:
        """The number of iterations, if it is known."""
        loops = [part for part in self.parts if part.loop is not None]
        known = [part.length for part in loops if part.length is not None]
        return sum(known) if len(known) == len(loops) else None

    @property
    def done(self) -> int:
        """The number of iterations that are over."""
        return self._before + (self.current.step if self.current else 0)

    def finish(self, progress: bool | None) -> PyTree:
        """Go on to the end, and give the program's value.

        Raises:
            Interrupted: by Ctrl-C; it can go on from there.
        """
        saved, writing, shown = time.monotonic(), 0.0, self.done
        patience = PATIENCE if progress is None else 0.0
        try:
            with progress_bar(progress, self.total, self.program.name, patience) as bar:
                bar.advance(shown)
                while self.index < len(self.parts):
                    with named_errors() as wait:
                        self._advance(wait)
                    bar.advance(max(self.done - shown, 0))
                    shown = self.done
                    if self.snapshot and time.monotonic() - saved > max(
                        SAVE_EVERY, WORTH * writing
                    ):
                        writing, saved = self._save(), time.monotonic()
            if self.snapshot:
                self._save()
        except KeyboardInterrupt:
            if self.snapshot:
                self._save()
            raise Interrupted(self._so_far(), self) from None
        outs = [self._read(v) for v in self.jaxpr.outvars]
        return self.program.structure.rebuild([jnp.asarray(x) for x in outs])

    def _so_far(self) -> str:
        total = "" if self.total is None else f" of {self.total}"
        return f"run of {self.program.name} was interrupted after {self.done}{total} iterations"

    def _read(self, atom: Any) -> Any:
        return atom.val if isinstance(atom, _jax.Literal) else self.env[atom]

    def _advance(self, wait: Callable[[Any], Any]) -> None:
        """Run a part without loop, or a block of iterations; `wait` raises what Python raised."""
        part = self.parts[self.index]
        if part.loop is None:
            values = [self.env[v] for v in part.reads]
            self._leave(wait(_between(self.interpret, part, values, self.key)))
            return
        if self.current is None:
            self.current = self._enter(part)
        self._block(part, self.current)
        if self.current.over:
            outs = dict(zip(part.written, [*self.current.carry, *self.current.rows], strict=True))
            self._leave([outs[v] for v in part.makes])

    def _leave(self, outs: Sequence[Any]) -> None:
        """Go to the next part; forget what none of those to come reads."""
        later = {v for part in self.parts[self.index + 1 :] for v in part.reads}
        later.update(_jax.variables(self.jaxpr.outvars))
        env = {**self.env, **dict(zip(self.parts[self.index].makes, outs, strict=True))}
        steps = self.current.step if self.current else self.parts[self.index].length or 0
        with undivided():
            self._before += steps
            self.env = {v: x for v, x in env.items() if v in later}
            self.index, self.current = self.index + 1, None
            if self.snapshot:
                self.snapshot.left(outs)

    def _enter(self, part: Part) -> _Loop:
        values = [self._read(v) for v in part.loop.invars]
        first = part.first_carried
        # Blocks write over what they are given, which may be a user's array.
        carry = [
            jnp.array(x, v.aval.dtype, copy=True)
            for x, v in zip(values[first:], part.written[: part.num_carried], strict=False)
        ]
        rings = None if part.length is None else _rings(part, self.key)
        each = cost_of(part.loop) / (part.length or 10)
        self.pace = max(1, int(1e9 * SECONDS / max(each, 1.0)))
        return _Loop(0, self.place(carry), _no_rows(self.interpret, part), rings)

    def _block(self, part: Part, loop: _Loop) -> None:
        """Make iterations, as many as suit the clock."""
        values = [self._read(v) for v in part.loop.invars]
        stop = loop.step + self.pace
        stop = stop if part.length is None else min(stop, part.length)
        run = _iterate if part.calls_host else _iterate_in_place
        state = loop.step, loop.carry, loop.rows
        began = time.perf_counter()
        with undivided(not part.calls_host):  # what was given is gone, what comes is not here yet
            step, carry, rows, go = run(
                self.interpret, part, values, state, loop.rings, self.key, stop
            )
            loop.step, loop.carry, loop.rows, loop.over = int(step), carry, rows, not bool(go)
        pace = SECONDS / max(time.perf_counter() - began, 1e-6)
        self.pace = int(max(1, self.pace * min(max(pace, 0.25), 32.0)))

    def _save(self) -> float:
        """Write what is new. Give the seconds it took."""
        assert self.snapshot is not None
        began, loop = time.monotonic(), self.current
        with undivided():
            if loop is None:
                self.snapshot.save(self.index, 0, [], [], 0)
            else:
                part, first, last = self.parts[self.index], self.snapshot.rows_saved, loop.step
                if part.length is not None and part.loop.params["reverse"]:
                    first, last = part.length - last, part.length - first
                rows = [np.asarray(x)[first:last] for x in loop.rows]
                self.snapshot.save(self.index, loop.step, loop.carry, rows, first)
        return time.monotonic() - began

    def _restore(self, snapshot: Snapshot) -> None:
        """Take up where the last run with this checkpoint stood."""
        index, left, state = snapshot.load()
        if len(left) != index:
            snapshot.refuse_pieces()
        for outs in left:
            self._leave(self.place([jnp.asarray(x) for x in outs]))
        if state is None:
            return
        step, carry, pieces = state
        self.current = loop = self._enter(self.parts[index])
        loop.step, loop.carry = step, self.place([jnp.asarray(x) for x in carry])
        if loop.rows:
            seen = np.zeros(self.parts[index].length or 0, int)
            for where, rows in pieces:
                seen[where] += 1
                held = zip(loop.rows, rows, strict=True)
                loop.rows = [y.at[where].set(x) for y, x in held]
            if seen.max() > 1 or seen.sum() != step:
                snapshot.refuse_pieces()


def _same(tree: Any) -> Any:
    return tree


# --- Compiled pieces ----------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(0, 1))
def _between(interpret: Interpret, part: Part, values: list[Any], key: Any) -> list[Any]:
    return interpret(part.jaxpr, (), values, key)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _no_rows(interpret: Interpret, part: Part) -> list[Any]:
    rows = [jnp.zeros(v.aval.shape, v.aval.dtype) for v in part.written[part.num_carried :]]
    return _laid(interpret, rows)


def _laid(interpret: Interpret, rows: list[Any]) -> list[Any]:
    return rows if interpret.sharing is None else interpret.sharing.lay_rows(rows)


@functools.partial(jax.jit, static_argnums=0)
def _rings(part: Part, key: Any) -> Ring:
    """Make the keys of all iterations, as the rule for `scan` does."""
    jaxpr, steps = _jax.open_jaxpr(part.loop.params["jaxpr"])[0], jnp.arange(part.length)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(loop_key_of(key), steps)
    return jax.vmap(lambda k: Ring.of(k, jaxpr))(keys)


def _iterate_impl(
    interpret: Interpret, part: Part, values: list[Any], state: Any, rings: Any, key: Any, stop: Any
) -> Any:
    """Make iterations up to a number. Give the state, and whether the loop goes on."""
    if part.length is None:
        return _while(interpret, part, values, state, key, stop)
    return _scan(interpret, part, values, state, rings, stop)


def _scan(
    interpret: Interpret, part: Part, values: list[Any], state: Any, rings: Any, stop: Any
) -> Any:
    params, length = part.loop.params, part.length
    jaxpr, held = _jax.open_jaxpr(params["jaxpr"])
    n, m = _jax.scan_sizes(part.loop)
    consts, xs = values[:n], values[n + m :]
    assert length is not None

    def body(i: Any, state: Any) -> Any:
        carry, rows = state
        t = length - 1 - i if params["reverse"] else i
        ring, row = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, t, keepdims=False), (rings, xs)
        )
        outs = interpret(jaxpr, held, [*consts, *carry, *row], ring)
        stacked = zip(rows, part.kept_rows, strict=True)
        return outs[:m], _laid(interpret, [y.at[t].set(outs[m + k]) for y, k in stacked])

    step, carry, rows = state
    carry, rows = jax.lax.fori_loop(step, stop, body, (carry, rows))
    return stop, carry, rows, stop < length


def _while(
    interpret: Interpret, part: Part, values: list[Any], state: Any, key: Any, stop: Any
) -> Any:
    params = part.loop.params
    n, m = params["cond_nconsts"], params["body_nconsts"]
    test, test_held = _jax.open_jaxpr(params["cond_jaxpr"])
    jaxpr, held = _jax.open_jaxpr(params["body_jaxpr"])
    loop_key = loop_key_of(key)

    def go(carry: Any) -> Any:
        return interpret(test, test_held, [*values[:n], *carry], None)[0]

    def body(state: Any) -> Any:
        i, carry = state
        own = jax.random.fold_in(loop_key, i)
        return i + 1, interpret(jaxpr, held, [*values[n : n + m], *carry], own)

    step, carry, rows = state
    step, carry = jax.lax.while_loop(lambda s: (s[0] < stop) & go(s[1]), body, (step, carry))
    return step, carry, rows, go(carry)


_iterate = jax.jit(_iterate_impl, static_argnums=(0, 1))
_iterate_in_place = jax.jit(_iterate_impl, static_argnums=(0, 1), donate_argnums=3)
