"""Long loops, driven in blocks from the host.

A program made with a `Loop` runs here: each block is one compiled call of up to a fixed number of
steps, whatever the loop's length, so that more steps never recompile. Between blocks the host shows
progress, keeps what is there, writes it to disk, and can be interrupted. The draws of a step depend
on its number alone, so that blocks, progress bars and interruptions change no draw. Inside another
program the same loop is one `scan`, or `while_loop`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import _jax
from ppl._host import named_errors, undivided
from ppl.interpreter import loop_key_of
from ppl.program import Loop, Program, Structure
from ppl.results.progress import progress as progress_bar
from ppl.semantics.checkpoint import SAVE_EVERY, Checkpoint
from ppl.semantics.costs import cost
from ppl.semantics.rows import Rows
from ppl.semantics.sharding import Sharing
from ppl.staging import stage

#: The most steps of one compiled call, the numbers drawn ahead in one for each lane, the seconds it
#: should take.
BLOCK, NUMBERS, SECONDS = 128, 2**14, 0.25
#: A block this much shorter than `SECONDS` is made while rows of the one before are put away.
SHORT = 5
#: The nanoseconds of a step, as `cost` guesses them, below which it is compiled as a small one.
SMALL = 2e5
#: The rows that are brought into their final form at once.
CHUNK = 128


def loop_program(name: str, loop: Loop, *args: Any) -> Program:
    """Make the program of a loop; staged as a whole only when another program needs it."""
    return stage(_whole, (loop, *args), name=name, loop=loop)


def _whole(loop: Loop, *args: Any) -> Any:
    """The loop as one program; under one key it draws what `drive` draws."""
    state = loop.init(*args)
    if loop.ahead is None:
        state, outs = jax.lax.scan(lambda s, _: loop.step(s, *args), state, length=loop.length)
    elif loop.done is None:
        state, outs = _in_blocks(loop, state, args)
    else:
        state, outs = _flat(loop, state, args)
    kept = jax.tree.map(lambda x: x[loop.skip :][loop.thin - 1 :: loop.thin], outs)
    if (emit := loop.emit) is not None:
        kept = jax.vmap(lambda out: emit(out, *args))(kept)
    return loop.finish(state, kept, *args)


def _in_blocks(loop: Loop, state: Any, args: tuple[Any, ...]) -> Any:
    """Run a loop without lanes: whole blocks, and of a last one no more than is needed."""
    assert loop.ahead is not None
    ahead, count = loop.ahead, block_length(loop, state, args)

    def block(state: Any, number: Any, steps: int = count) -> Any:
        drawn = jax.tree.map(lambda x: x[:steps], ahead(number, count, state, *args))
        return jax.lax.scan(lambda s, row: loop.step(s, row, *args), state, drawn)

    whole, rest = divmod(loop.length, count)
    state, outs = jax.lax.scan(block, state, jnp.arange(whole))
    outs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outs)
    if rest:
        state, last = block(state, jnp.asarray(whole), rest)
        outs = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), outs, last)
    return state, outs


def _flat(loop: Loop, state: Any, args: tuple[Any, ...]) -> Any:
    """Run a flat loop until every lane has its outputs, which lie where they belong."""
    assert loop.ahead is not None
    assert loop.done is not None
    ahead, finished, count = loop.ahead, loop.done, block_length(loop, state, args)

    def step(carry: Any, drawn: Any) -> Any:
        state, made, outs = carry
        state, out = loop.step(state, drawn, *args)
        done = finished(out)
        place = jnp.where(done, made, loop.length), jnp.arange(done.shape[0])
        outs = jax.tree.map(lambda xs, x: xs.at[place].set(x, mode="drop"), outs, out)
        return (state, made + done, outs), None

    def block(carry: Any) -> Any:
        number, *carry = carry
        carry, _ = jax.lax.scan(step, tuple(carry), ahead(number, count, carry[0], *args))
        return number + 1, *carry

    drawn = jax.eval_shape(
        lambda s, *a: jax.tree.map(lambda x: x[0], ahead(0, 1, s, *a)), state, *args
    )
    out = jax.eval_shape(lambda s, x, *a: loop.step(s, x, *a)[1], state, drawn, *args)
    lanes = jax.eval_shape(finished, out).shape
    outs = jax.tree.map(lambda s: jnp.zeros((loop.length, *s.shape), s.dtype), out)
    start = jnp.zeros((), int), state, jnp.zeros(lanes, int), outs
    end = jax.lax.while_loop(lambda c: jnp.any(c[2] < loop.length), block, start)
    return end[1], end[3]


def block_length(loop: Loop, state: Any, args: tuple[Any, ...]) -> int:
    """Give the number of steps of one compiled call; it depends on shapes alone."""
    if loop.ahead is None:
        return BLOCK
    ahead = loop.ahead
    drawn = jax.eval_shape(lambda s: ahead(0, 1, s, *args), state)
    # Of one lane, whose draws do not depend on how many there are. Without lanes, where a step is
    # short, blocks may be longer.
    lead, most = (1, 4 * NUMBERS) if loop.done is None else (2, NUMBERS)
    numbers = sum(math.prod(x.shape[lead:]) for x in jax.tree.leaves(drawn))
    return int(2 ** np.clip(math.floor(math.log2(most / max(numbers, 1))), 4, 11))


def drive(
    program: Program,
    key: Any,
    *,
    progress: bool | None,
    interpret: Callable[..., Any],
    sharing: Sharing | None = None,
    checkpoint: str | None = None,
) -> Any:
    """Run a loop in blocks. `interpret(jaxpr, consts, args, key)` gives flat outputs.

    Where devices share the work, `interpret` says how, and the program's arrays are there.
    """
    found = Underway(program, key, interpret, sharing, checkpoint)
    return found.reach(found.length, progress)


class Underway:
    """A loop under way: all that is needed to go on, bit for bit, and its rows so far.

    Any two are equal, so that a result that holds one has the structure of every other.
    """

    def __init__(
        self,
        program: Program,
        key: Any,
        interpret: Callable[..., Any],
        sharing: Sharing | None,
        checkpoint: str | None,
    ):
        loop = program.structure.loop
        assert loop is not None
        self.loop, self.sharing, self.args = loop, sharing, _arguments(program)
        self.length = (loop.length - loop.skip) // loop.thin
        place, gather = (sharing.place, sharing.gather) if sharing else (_same, _same)
        start = place(stage(loop.init, self.args, name="init"))
        flat, loop_key = _initial(interpret, start, key)
        state = start.structure.rebuild(flat)
        loop.check(gather(state), *self.args)
        saved: list[Any] = []
        self.checkpoint = None
        if checkpoint is not None:
            self.checkpoint = Checkpoint(checkpoint, program, key, interpret)
            saved = self.checkpoint.load()
        args, in_step = loop.lean(*self.args), bool(sharing and sharing.many_processes)
        self.lanes = _Lanes(loop, state, args, loop_key, interpret, place, gather, in_step)
        if saved:
            self.lanes.restore(saved)
        self.written = self.lanes.steps if saved else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Underway)

    def __hash__(self) -> int:
        return hash(Underway)

    @property
    def ready(self) -> int:
        """The number of rows that every lane has."""
        return self.lanes.rows.ready

    def reach(self, length: int, progress: bool | None) -> Any:
        """Go on until every lane has so many rows, and give the value of the first of them.

        Interrupted, it gives the value of those that are there, if there are any.
        """
        total = self.loop.skip + length * self.loop.thin
        rows = self.lanes.rows
        done, saved, first = rows.least, time.monotonic(), True
        with progress_bar(progress, total, self.loop.label) as bar:
            bar.advance(min(done, total))
            try:
                while self.ready < length:
                    with named_errors():  # an interrupt of a callback is one of the run
                        self.lanes.advance(total)
                    if first:
                        self.loop.check(self.lanes.gathered, *self.args)
                        first = False
                    bar.advance(min(rows.least, total) - min(done, total))
                    done = rows.least
                    if self.checkpoint is not None and time.monotonic() - saved > SAVE_EVERY:
                        self.save()
                        saved = time.monotonic()
            except KeyboardInterrupt:
                if not self.ready:
                    raise
        if self.checkpoint is not None:
            self.save()
        return self.value(min(length, self.ready))

    def save(self) -> None:
        """Write what is new, if anything is, to the checkpoint."""
        assert self.checkpoint is not None
        if self.lanes.steps == self.written:
            return
        with undivided():
            self.checkpoint.add(self.lanes.unsaved())
            self.lanes.rows.written()
            self.written = self.lanes.steps

    def value(self, length: int) -> Any:
        """Give the value after a number of rows."""
        found = self.loop.finish(self.lanes.gathered, self.lanes.emitted(length), *self.args)
        return self.loop.hand(found, self, *self.args) if self.loop.hand else found


class _Lanes:
    """A loop's state, its compiled pieces, and its rows."""

    def __init__(
        self,
        loop: Loop,
        state: Any,
        args: tuple[Any, ...],
        key: Any,
        interpret: Callable[..., Any],
        place: Callable[..., Any],
        gather: Callable[..., Any],
        in_step: bool,
    ):
        self.loop, self.state, self.key, self.interpret = loop, state, key, interpret
        self.gather, self.in_step = gather, in_step
        self.rows, self.steps = Rows(loop.skip, loop.thin), 0
        self.drawn: tuple[int, Any] | None = None  # of one block, by its number
        like = _like(state)
        self.block = block_length(loop, like, args)
        self.pace = self.block if in_step else 8
        self.overlaps, self.next = False, None  # a block that has begun
        if loop.ahead is None:
            self.ahead = None
            step, (_, row) = _open(loop.step, (like,), args)
        else:
            self.ahead, drawn = _open(_Ahead(loop.ahead, self.block), (_COUNT, like), args)
            one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), drawn)
            step, (_, row) = _open(loop.step, (like, one), args)
            self.ahead = place(self.ahead)
        emit = None if loop.emit is None else _open(loop.emit, (row,), args)[0]
        self.step, self.emit = place((step, emit))
        self.like, self.row = like, row

    @property
    def gathered(self) -> Any:
        """The state, readable here."""
        return self.gather(self.state)

    def advance(self, total: int) -> None:
        """Make one block of steps, of a length that suits the clock; no draw depends on it.

        Where blocks are short, the next one runs while the rows of this one are put away.
        """
        if self.rows.least >= total:
            return
        needed, began = self._needed(total), time.perf_counter()
        present, self.next = self.next, None
        count, state, outs = present or self._begin(self.state, self.steps, needed)
        following, error = None, None
        if self.overlaps and count < needed:
            try:
                following = self._begin(state, self.steps + count, needed - count)
            except BaseException as found:  # of the next block: this one is kept first
                error = found
        outs = jax.tree.map(lambda x: np.asarray(x)[:count], self.gather(outs))
        with undivided():
            self.state, self.steps, self.next = state, self.steps + count, following
            self.rows.add(None if self.loop.done is None else self.loop.done(outs), outs)
        if not self.in_step:  # with other processes, whose clocks differ
            # Short blocks for slow models, long ones for fast.
            pace = SECONDS / max(time.perf_counter() - began, 1e-6)
            self.pace = int(min(max(1, count * min(pace, 8.0)), self.block))
            self.overlaps = pace > SHORT
        if error is not None:
            raise error

    def _begin(self, state: Any, steps: int, needed: int) -> tuple[int, Any, Any]:
        """Begin a block: its number of steps, the state after it and its rows, not waited for."""
        first = steps % self.block if self.ahead is not None else 0
        count = min(self.pace, self.block - first, needed)
        state, outs = _block(
            self.interpret, self.step, self.block, self._ahead(state, steps), state, self.key,
            steps, count,
        )  # fmt: skip
        return count, state, outs

    def _ahead(self, state: Any, steps: int) -> Any:
        """Give what the block of a step needs, which several calls may take to make."""
        if self.ahead is None:
            return None
        number = steps // self.block
        if self.drawn is None or self.drawn[0] != number:
            self.drawn = None  # of two blocks only one is held
            make = _ahead if self.loop.done else _ahead_of_steps
            self.drawn = number, make(self.interpret, self.ahead, state, number)
        return self.drawn[1]

    def _needed(self, total: int) -> int:
        """Guess how many steps are left, so that the last block is not much too long."""
        left = total - self.rows.least
        if self.loop.done is None:
            return left
        return max(16, int(1.05 * left * self.steps / max(self.rows.least, 1)) + 1)

    def emitted(self, length: int) -> Any:
        """Bring the first rows into their final form, always as many at a time."""
        rows = self.rows.take(length)
        if self.emit is None:
            return rows

        def chunk(start: int) -> Any:
            some = jax.tree.map(lambda x: _padded(x[start : start + CHUNK]), rows)
            outs = self.gather(_emit(self.interpret, self.emit, some))
            return jax.tree.map(lambda x: np.asarray(x)[: length - start], outs)

        return jax.tree.map(lambda *xs: np.concatenate(xs), *map(chunk, range(0, length, CHUNK)))

    def unsaved(self) -> dict[str, Any]:
        """Give the state, and the rows that are not on disk."""
        leaves = {str(i): np.asarray(x) for i, x in enumerate(jax.tree.leaves(self.gathered))}
        return {"state": leaves, "rows": self.rows.unsaved(), "steps": np.asarray(self.steps)}

    def restore(self, saved: list[dict[str, Any]]) -> None:
        """Take up where the last of these left off."""
        leaves, tree = jax.tree.flatten(self.like)
        given = [saved[-1]["state"][str(i)] for i in range(len(leaves))]
        given = [jnp.asarray(x, s.dtype) for x, s in zip(given, leaves, strict=True)]
        self.state = jax.tree.unflatten(tree, given)
        self.steps = int(saved[-1]["steps"])
        for piece in saved:
            self.rows.restore(piece["rows"], jax.tree.structure(self.row))


def _padded(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([rows, np.repeat(rows[-1:], CHUNK - len(rows), 0)])


@dataclasses.dataclass(frozen=True)
class _Ahead:
    """What a block of steps needs; equal ones share compiled code."""

    ahead: Callable[..., Any]
    count: int

    def __call__(self, number: Any, state: Any, *args: Any) -> Any:
        return self.ahead(number, self.count, state, *args)


_COUNT = jax.ShapeDtypeStruct((), np.dtype("int32"))


def _same(tree: Any) -> Any:
    return tree


def _open(fun: Callable[..., Any], first: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
    """Stage `fun(*first, *args)` with `first` left open: a program short of its first arrays."""
    whole = stage(fun, (*first, *args))
    count = len(jax.tree.leaves(first))
    return (
        Program(whole.structure, whole.consts, whole.args[count:]),
        whole.structure.shapes,
    )


def _arguments(program: Program) -> tuple[Any, ...]:
    """The arguments a loop program was made with, the loop itself left out."""
    (_, *args), _ = program.structure.arguments(program.args)
    return tuple(args)


def _like(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), tree)


def _apply(interpret: Any, program: Program, first: Any, key: Any) -> Any:
    s = program.structure
    return s.rebuild(
        interpret(s.jaxpr, program.consts, [*jax.tree.leaves(first), *program.args], key)
    )


def _initial_impl(interpret: Any, program: Program, key: Any) -> Any:
    flat = interpret(program.structure.jaxpr, program.consts, program.args, key)
    return flat, loop_key_of(key)


def _compiled(fun: Callable[..., Any], static: tuple[int, ...], **options: Any) -> Any:
    """Compile on first use: which options there are depends on the devices."""

    @functools.cache
    def jitted() -> Any:
        known = options if jax.default_backend() == "cpu" else {}
        return jax.jit(fun, static_argnums=static, compiler_options=known)

    return lambda *args: jitted()(*args)


# What runs once is not worth the compiler's best.
_initial = _compiled(_initial_impl, (0,), xla_backend_optimization_level=0, **_jax.SOON)


def _ahead_impl(interpret: Any, ahead: Program, state: Any, number: Any) -> Any:
    return _apply(interpret, ahead, (jnp.asarray(number, _COUNT.dtype), state), None)


_ahead = _compiled(_ahead_impl, (0,))
# Where a step is one update, drawing is a small part of the work, and compiling it a large one.
_ahead_of_steps = _compiled(_ahead_impl, (0,), xla_backend_optimization_level=1, **_jax.SOON)


def _block_impl(
    interpret: Any,
    step: Program,
    block: int,
    drawn: Any,
    state: Any,
    key: Any,
    start: Any,
    count: Any,
) -> Any:
    shapes = step.structure.shapes[1]
    buffer = jax.tree.map(lambda s: jnp.zeros((block, *s.shape), s.dtype), shapes)
    first = start % block

    def body(i: Any, carry: Any) -> Any:
        state, buffer = carry
        if drawn is None:
            given, own = state, jax.random.fold_in(key, start + i)
        else:
            row = functools.partial(jax.lax.dynamic_index_in_dim, index=first + i, keepdims=False)
            given, own = (state, jax.tree.map(row, drawn)), None
        state, out = _apply(interpret, step, given, own)
        put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=i, axis=0)
        return state, jax.tree.map(put, buffer, out)

    return jax.lax.fori_loop(0, count, body, (state, buffer))


# In a loop of small operations a scheduler that looks for concurrency costs as much as they do.
_SMALL_OPERATIONS = {"xla_cpu_enable_concurrency_optimized_scheduler": False}
_block_of_large = _compiled(_block_impl, (0, 2), **_SMALL_OPERATIONS)
_block_of_small = _compiled(
    _block_impl, (0, 2), **_SMALL_OPERATIONS, **_jax.SOON, **_jax.WHOLE_LOOPS
)


@functools.lru_cache(maxsize=256)
def _is_small(structure: Structure) -> bool:
    return cost(structure.jaxpr) < SMALL


def _block(interpret: Any, step: Program, *rest: Any) -> Any:
    """Make some steps; what takes long to run is compiled better, and longer."""
    run = _block_of_small if _is_small(step.structure) else _block_of_large
    return run(interpret, step, *rest)


def _emit_impl(interpret: Any, emit: Program, rows: Any) -> Any:
    return jax.vmap(lambda row: _apply(interpret, emit, row, None))(rows)


_emit = _compiled(_emit_impl, (0,), xla_backend_optimization_level=1, **_jax.SOON)
