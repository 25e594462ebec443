"""The compiled calls that a long loop is made of: its start, what is drawn ahead, blocks of steps.

Staged parts of a loop are programs whose last arrays are data, so that they share compiled code
wherever they come from; a block's number of steps is data too.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import _jax
from ppl.interpreter import loop_key_of
from ppl.program import Loop, Program, Structure
from ppl.semantics.costs import cost
from ppl.staging import stage

#: The most steps of one compiled call, and the numbers drawn ahead in one for each lane.
BLOCK, NUMBERS = 128, 2**14
#: The bytes that the rows of one compiled call may take.
ROOM = 2**24
#: The nanoseconds of a step, as `cost` guesses them, below which it is compiled as a small one.
SMALL = 2e5
#: The rows that are brought into their final form at once.
CHUNK = 128


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


class Pieces:
    """A loop's parts, staged for a state of certain shapes, and the calls that run them.

    `whole` tells to run a step in one thread, as others run in the others, however long it takes.
    Numbers are drawn ahead for `length` steps, of which one call makes at most `room`.
    """

    def __init__(
        self,
        loop: Loop,
        state: Any,
        args: tuple[Any, ...],
        key: Any,
        interpret: Callable[..., Any],
        place: Callable[..., Any],
    ):
        self.loop, self.key, self.interpret, self.whole = loop, key, interpret, False
        self.like = like = _like(state)
        self.length = block_length(loop, like, args)
        if loop.ahead is None:
            self._ahead = None
            step, (_, row) = _open(loop.step, (like,), args)
        else:
            self._ahead, drawn = _open(_Ahead(loop.ahead, self.length), (_COUNT, like), args)
            one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), drawn)
            step, (_, row) = _open(loop.step, (like, one), args)
            self._ahead = place(self._ahead)
        emit = None if loop.emit is None else _open(loop.emit, (row,), args)[0]
        self._step, self._emit = place((step, emit))
        self.row = row
        size = sum(x.dtype.itemsize * math.prod(x.shape) for x in jax.tree.leaves(row))
        self.room = int(np.clip(ROOM // max(size, 1), 1, self.length))

    @property
    def draws_ahead(self) -> bool:
        """Whether steps are handed what they need of random numbers."""
        return self._ahead is not None

    @property
    def step(self) -> Any:
        """The jaxpr of a step."""
        return self._step.structure.jaxpr

    def ahead(self, state: Any, number: int) -> Any:
        """Begin to draw what a block needs."""
        make = _ahead if self.loop.done else _ahead_of_steps
        return make(self.interpret, self._ahead, state, number)

    def steps(self, drawn: Any, state: Any, start: int, count: int) -> tuple[Any, Any]:
        """Begin some steps of one block: the state after them, and a buffer with their rows."""
        return _block(
            self.whole,
            self.interpret,
            self._step,
            (self.length, self.room),
            drawn,
            state,
            self.key,
            start,
            count,
        )

    def emitted(self, rows: Any, gather: Callable[..., Any]) -> Any:
        """Bring rows into their final form, always as many at a time."""
        if self._emit is None:
            return rows
        length = len(jax.tree.leaves(rows)[0])

        def chunk(start: int) -> Any:
            some = jax.tree.map(lambda x: _padded(x[start : start + CHUNK]), rows)
            outs = gather(_emit(self.interpret, self._emit, some))
            return jax.tree.map(lambda x: np.asarray(x)[: length - start], outs)

        return jax.tree.map(lambda *xs: np.concatenate(xs), *map(chunk, range(0, length, CHUNK)))


def _padded(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([rows, np.repeat(rows[-1:], CHUNK - len(rows), 0)])


# --- Staging ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Ahead:
    """What a block of steps needs; equal ones share compiled code."""

    ahead: Callable[..., Any]
    count: int

    def __call__(self, number: Any, state: Any, *args: Any) -> Any:
        return self.ahead(number, self.count, state, *args)


_COUNT = jax.ShapeDtypeStruct((), np.dtype("int32"))


def _open(fun: Callable[..., Any], first: tuple[Any, ...], args: tuple[Any, ...]) -> Any:
    """Stage `fun(*first, *args)` with `first` left open: a program short of its first arrays."""
    whole = stage(fun, (*first, *args))
    count = len(jax.tree.leaves(first))
    return (
        Program(whole.structure, whole.consts, whole.args[count:]),
        whole.structure.shapes,
    )


def _like(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), tree)


def _apply(interpret: Any, program: Program, first: Any, key: Any) -> Any:
    s = program.structure
    return s.rebuild(
        interpret(s.jaxpr, program.consts, [*jax.tree.leaves(first), *program.args], key)
    )


# --- Compiled calls -----------------------------------------------------------------------------


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
initial = _compiled(_initial_impl, (0,), xla_backend_optimization_level=0, **_jax.SOON)


def _ahead_impl(interpret: Any, ahead: Program, state: Any, number: Any) -> Any:
    return _apply(interpret, ahead, (jnp.asarray(number, _COUNT.dtype), state), None)


_ahead = _compiled(_ahead_impl, (0,))
# Where a step is one update, drawing is a small part of the work, and compiling it a large one.
_ahead_of_steps = _compiled(_ahead_impl, (0,), xla_backend_optimization_level=1, **_jax.SOON)


def _block_impl(
    interpret: Any,
    step: Program,
    sizes: tuple[int, int],
    drawn: Any,
    state: Any,
    key: Any,
    start: Any,
    count: Any,
) -> Any:
    shapes = step.structure.shapes[1]
    block, room = sizes
    buffer = jax.tree.map(lambda s: jnp.zeros((room, *s.shape), s.dtype), shapes)
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
# Where other blocks run beside it, an operation has no threads to divide its work among.
_block_of_whole = _compiled(_block_impl, (0, 2), **_SMALL_OPERATIONS, **_jax.WHOLE_LOOPS)
_block_of_small = _compiled(
    _block_impl, (0, 2), **_SMALL_OPERATIONS, **_jax.SOON, **_jax.WHOLE_LOOPS
)


@functools.lru_cache(maxsize=256)
def _is_small(structure: Structure) -> bool:
    return cost(structure.jaxpr) < SMALL


def _block(whole: bool, interpret: Any, step: Program, *rest: Any) -> Any:
    """Make some steps; what takes long to run is compiled better, and longer."""
    if _is_small(step.structure):
        return _block_of_small(interpret, step, *rest)
    return (_block_of_whole if whole else _block_of_large)(interpret, step, *rest)


def _emit_impl(interpret: Any, emit: Program, rows: Any) -> Any:
    return jax.vmap(lambda row: _apply(interpret, emit, row, None))(rows)


_emit = _compiled(_emit_impl, (0,), xla_backend_optimization_level=1, **_jax.SOON)
