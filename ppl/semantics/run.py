"""`run`: the only place where randomness becomes real."""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import _jax
from ppl._types import Key, PyTree
from ppl.errors import ArgumentError, OpenObservationsError, at, message, named_keywords
from ppl.interpreter import Frame, Interpreter, evaluate
from ppl.primitives import Site, draw, value_of
from ppl.program import Program, require_program
from ppl.semantics.suspended import drive


class Drawing(Interpreter):
    """Draw every latent site."""

    name = "run"
    rebinds = False

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        if site.kind != "latent":
            return value_of(site, leaves)
        return draw(site, leaves, frame.key_for(site))

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        raise AssertionError("refuse_scores was not called")


@named_keywords
def run(
    program: Program,
    key: Key,
    *,
    progress: bool | None = None,
    checkpoint: str | None = None,
) -> PyTree:
    """Draw once from a program.

    **Meaning.** One draw of the return value from the program's probability. A program whose
    outermost structure is a long loop (`ppl.mcmc`) runs in blocks from the host: with a progress
    bar, and Ctrl-C returns what is there. Draws do not depend on `progress`.

    Args:
        program: a program without open scores.
        key: a JAX PRNG key, or an int as a seed.
        progress: show a progress bar; None shows one in terminals and notebooks.
        checkpoint: not supported yet for any program; must be None.

    Returns:
        What the model returned.

    Raises:
        OpenObservationsError: the program observes or weighs; it has to be fitted, not drawn from.
    """
    require_program("run", program)
    if checkpoint is not None:
        raise ArgumentError(
            message(
                f"run got checkpoint={checkpoint!r}",
                needs="checkpoint=None",
                why="checkpoints are not implemented in this version",
                fix="chains.save(path) keeps a finished run",
            )
        )
    key = as_key(key)
    traced = any(map(_jax.is_tracer, jax.tree.leaves((program, key))))
    if program.structure.loop is not None and not traced:
        return drive(program, key, progress=progress, interpret=_draw)
    refuse_scores(program)
    if traced:
        return program.structure.rebuild(draw_flat(program, key))
    return program.structure.rebuild(_execute(program, key))


def _draw(jaxpr: Any, consts: Any, args: Any, key: Any) -> list[Any]:
    outs = evaluate(Drawing(), jaxpr, consts, args, key=key).outs
    return [jnp.asarray(x) for x in outs]


def draw_flat(program: Program, key: Key) -> list[Any]:
    """Draw a program's value as flat arrays, without compiling it on its own."""
    return _draw(program.structure.jaxpr, program.consts, program.args, key)


_execute = jax.jit(draw_flat)


def refuse_scores(program: Program) -> None:
    """Raise `OpenObservationsError` if a program scores."""
    if program.structure.open_scores:
        site = program.structure.open_scores[0]
        raise OpenObservationsError(
            message(
                f"run got the program {program.name}, which scores at "
                f"{at(site.address, site.source)}",
                needs="a program without observations or factors",
                why="a weighted run is not a draw from the posterior",
                fix="ppl.run(ppl.mcmc(program, ppl.kernels.nuts()), key) or "
                "ppl.run(ppl.importance(program, num_particles=1000), key) for the posterior, "
                "ppl.trace(program, key) for one weighted run",
            )
        )


def as_key(key: Any) -> Any:
    """Make a typed PRNG key of an int, a key, or the older raw uint32 key."""
    try:
        if isinstance(key, (jax.Array, np.ndarray)) or _jax.is_tracer(key):
            if jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.shape == ():
                return key
            if key.dtype == np.uint32 and key.shape == (2,):
                return jax.random.wrap_key_data(jnp.asarray(key))
        return jax.random.key(operator.index(key))
    except (TypeError, OverflowError, ValueError):
        raise ArgumentError(
            message(
                f"got the key {key!r}",
                needs="an int of at most 64 bits, or one JAX PRNG key",
                why="several keys draw several times only under jax.vmap",
                fix="key=0, or key=jax.random.key(0); for several keys "
                "jax.vmap(lambda k: ppl.run(program, k))(keys)",
            )
        ) from None
