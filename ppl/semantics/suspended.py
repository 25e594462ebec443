"""Long loops, driven in blocks from the host.

A program made with a `Loop` runs here: each block is one compiled call of up to a fixed number of
steps, whatever the loop's length, so that more steps never recompile. Between blocks the host shows
progress, keeps what is there, writes it to disk, and can be interrupted. The draws of a step depend
on its number alone, so that blocks, progress bars and interruptions change no draw. Inside another
program the same loop is one `scan`, or `while_loop`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ppl._host import named_errors, undivided
from ppl.program import Loop, Program
from ppl.results.progress import progress as progress_bar
from ppl.semantics.blocks import Pieces, block_length, initial
from ppl.semantics.checkpoint import SAVE_EVERY, Checkpoint
from ppl.semantics.lanes import Groups, Lanes
from ppl.semantics.sharding import Sharing
from ppl.staging import stage


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
        flat, loop_key = initial(interpret, start, key)
        state = start.structure.rebuild(flat)
        loop.check(gather(state), *self.args)
        args, in_step = loop.lean(*self.args), bool(sharing and sharing.many_processes)

        def pieces(state: Any) -> Pieces:
            return Pieces(loop, state, args, loop_key, interpret, place)

        if loop.alone and sharing is None:
            self.lanes = Groups.of(pieces, state, gather)
        else:
            self.lanes = Groups([Lanes(pieces(state), state, gather, in_step)])
        saved: list[Any] = []
        self.checkpoint = None
        if checkpoint is not None:
            groups = len(self.lanes.groups)
            self.checkpoint = Checkpoint(checkpoint, program, key, interpret, groups)
            saved = self.checkpoint.load()
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
        return self.lanes.ready

    def reach(self, length: int, progress: bool | None) -> Any:
        """Go on until every lane has so many rows, and give the value of the first of them.

        Interrupted, it gives the value of those that are there, if there are any.
        """
        total = self.loop.skip + length * self.loop.thin
        lanes = self.lanes
        done, saved, first = lanes.least, time.monotonic(), True
        with progress_bar(progress, total, self.loop.label) as bar, lanes.running():
            bar.advance(min(done, total))
            try:
                while self.ready < length:
                    with named_errors():  # an interrupt of a callback is one of the run
                        self.lanes.advance(total)
                    if first:
                        self.loop.check(self.lanes.gathered, *self.args)
                        first = False
                    bar.advance(min(lanes.least, total) - min(done, total))
                    done = lanes.least
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
            self.lanes.written()
            self.written = self.lanes.steps

    def value(self, length: int) -> Any:
        """Give the value after a number of rows."""
        found = self.loop.finish(self.lanes.gathered, self.lanes.emitted(length), *self.args)
        return self.loop.hand(found, self, *self.args) if self.loop.hand else found


def _same(tree: Any) -> Any:
    return tree


def _arguments(program: Program) -> tuple[Any, ...]:
    """The arguments a loop program was made with, the loop itself left out."""
    (_, *args), _ = program.structure.arguments(program.args)
    return tuple(args)
