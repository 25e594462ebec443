"""Long loops, driven in blocks from the host.

A program made with a `Loop` runs here: each block is one compiled call of up to a fixed number of
steps, whatever the loop's length, so that more steps never recompile. Between blocks the host shows
progress, keeps what is there, and can be interrupted. Step i always uses the same key, so that
blocks, progress bars and interruptions change no draw. Inside another program the same loop is one
`scan`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl.interpreter import loop_key_of
from ppl.program import Loop, Program
from ppl.results.progress import progress as progress_bar
from ppl.semantics.sharding import Sharing
from ppl.staging import stage

#: The most steps of one compiled call, and the seconds a call should take.
BLOCK, SECONDS = 128, 0.25


def loop_program(name: str, loop: Loop, *args: Any) -> Program:
    """Make the program of a loop; staged as a whole only when another program needs it."""
    return stage(_whole, (loop, *args), name=name, loop=loop)


def _whole(loop: Loop, *args: Any) -> Any:
    """The loop as one program; under one key it draws what `drive` draws."""
    state, outs = jax.lax.scan(
        lambda state, _: loop.step(state, *args), loop.init(*args), length=loop.length
    )
    kept = jax.tree.map(lambda x: x[loop.skip :], outs)
    return loop.finish(state, jax.vmap(lambda out: loop.emit(out, *args))(kept), *args)


def drive(
    program: Program,
    key: Any,
    *,
    progress: bool | None,
    interpret: Callable[..., Any],
    sharing: Sharing | None = None,
) -> Any:
    """Run a loop in blocks. `interpret(jaxpr, consts, args, key)` gives flat outputs.

    Where devices share the work, `interpret` says how, and the program's arrays are there.
    """
    loop = program.structure.loop
    assert loop is not None
    args = _arguments(program)
    place, gather = (sharing.place, sharing.gather) if sharing else (_same, _same)
    start = place(stage(loop.init, args, name="init"))
    state = start.structure.rebuild(_initial(interpret, start, key))
    loop.check(gather(state), *args)
    step, out = _open(loop.step, _like(state), args)
    emit, _ = _open(loop.emit, out[1], args)
    step, emit = place((step, emit))
    kept: list[Any] = []
    done, count = 0, 8
    with progress_bar(progress, loop.length, loop.label) as bar:
        try:
            while done < loop.length:
                # A block never mixes steps that are kept with steps that are not.
                edge = loop.skip if done < loop.skip else loop.length
                count, keep = min(count, BLOCK, edge - done), done >= loop.skip
                began = time.perf_counter()
                state, outs = _block(
                    interpret, step, emit, state, loop_key_of(key), done, count, keep
                )
                outs = jax.tree.map(lambda x, n=count: np.asarray(x)[:n], gather(outs))
                if keep:
                    kept.append(outs)
                bar.advance(count)
                done += count
                # Short blocks for slow models, long ones for fast: no draw depends on it.
                pace = SECONDS / max(time.perf_counter() - began, 1e-6)
                count = int(min(max(1, count * min(pace, 8.0)), BLOCK))
                if sharing and sharing.many_processes:
                    count = BLOCK  # clocks differ, and all processes have to run the same blocks
        except KeyboardInterrupt:
            if not kept:
                raise
    joined = jax.tree.map(lambda *xs: np.concatenate(xs), *kept)
    return loop.finish(state, joined, *args)


def _same(tree: Any) -> Any:
    return tree


def _open(fun: Callable[..., Any], first: Any, args: tuple[Any, ...]) -> tuple[Program, Any]:
    """Stage `fun(first, *args)` with `first` left open: a program short of its first arrays."""
    whole = stage(fun, (first, *args))
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
    return interpret(program.structure.jaxpr, program.consts, program.args, key)


_initial = jax.jit(_initial_impl, static_argnums=0)


def _block_impl(
    interpret: Any,
    step: Program,
    emit: Program,
    state: Any,
    key: Any,
    start: Any,
    count: Any,
    keep: Any,
) -> Any:
    shapes = step.structure.shapes[1]
    buffer = jax.tree.map(lambda s: jnp.zeros((BLOCK, *s.shape), s.dtype), shapes)

    def body(i: Any, carry: Any) -> Any:
        state, buffer = carry
        state, out = _apply(interpret, step, state, jax.random.fold_in(key, start + i))
        return state, jax.tree.map(lambda b, o: b.at[i].set(o), buffer, out)

    state, outs = jax.lax.fori_loop(0, count, body, (state, buffer))

    def kept(outs: Any) -> Any:
        return jax.vmap(lambda out: _apply(interpret, emit, out, None))(outs)

    like = jax.eval_shape(kept, outs)
    zeros = lambda _: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like)  # noqa: E731
    return state, jax.lax.cond(keep, kept, zeros, outs)


_block = jax.jit(_block_impl, static_argnums=0)
