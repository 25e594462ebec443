"""`run`: the only place where randomness becomes real."""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from ppl import _jax
from ppl._host import named_errors
from ppl._threefry import faster
from ppl._types import Key, PyTree
from ppl.distributions import describe
from ppl.errors import ArgumentError, OpenObservationsError, at, message, named_keywords
from ppl.interpreter import Frame, Interpreter, evaluate
from ppl.primitives import Site, draw, value_of
from ppl.program import Program, require_program
from ppl.semantics.outermost import Passage, parts_of
from ppl.semantics.sharding import Sharing, share
from ppl.semantics.suspended import drive

#: Distributions that draw with one call for random bits; some of the others insist on JAX's keys.
_BY_BITS = frozenset(
    [
        "Normal",
        "Uniform",
        "Exponential",
        "Laplace",
        "Cauchy",
        "HalfNormal",
        "HalfCauchy",
        "Logistic",
        "Gumbel",
        "LogNormal",
        "Bernoulli",
        "Categorical",
        "MultivariateNormal",
    ]
)


class Drawing(Interpreter):
    """Draw every latent site, and lay the draws over the devices that share them."""

    name = "run"
    rebinds = False

    def __init__(self, sharing: Sharing | None = None):
        self.sharing = sharing

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        if site.kind != "latent":
            return value_of(site, leaves)
        key = frame.key_for(site)
        d = site.operands(leaves).distribution
        by_bits = d is not None and describe(d) in _BY_BITS
        value = draw(site, leaves, faster(key) if by_bits else key)
        return value if self.sharing is None else self.sharing.spread(site, value)

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        raise AssertionError("refuse_scores was not called")


@named_keywords
def run(
    program: Program,
    key: Key,
    *,
    progress: bool | None = None,
    checkpoint: str | None = None,
    mesh: Mesh | None = None,
) -> PyTree:
    """Draw once from a program.

    **Meaning.** One draw of the return value from the program's probability.

    Long loops run in blocks from the host, with a progress bar. Ctrl-C returns the draws that are
    there of chains (`ppl.mcmc`) and of optimisation (`ppl.vi.fit`); other programs with long loops
    outermost, such as particle filters and steps of language models, stop with an exception that
    can go on. Loops that are short, or more than two, run in one compiled call, unless
    `progress=True` or a checkpoint asks for more. Neither `progress` nor `checkpoint` nor `mesh`
    changes a draw but by rounding: code that is compiled in other pieces and devices that share
    work may sum in another order, which in single precision can move an ancestor, and all that
    follows from it, to a neighbour.

    Args:
        program: a program without open scores.
        key: a JAX PRNG key, or an int as a seed.
        progress: show a progress bar; None shows one in terminals and notebooks.
        checkpoint: a folder in which a long run keeps what it has, every few seconds and at the
            end; the same call takes up again where it left off, even if the process was killed,
            and gives the same draws, bit for bit.
        mesh: devices that share the work: each takes an equal part of the outermost `vmap` or plate
            of a draw, such as particles or chains, where the number is a multiple of theirs; the
            rest, and data, each of them has in whole. None uses one device. With several
            processes, each makes the same call.

    Returns:
        What the model returned. On a mesh its arrays lie over the devices; those of other processes
        `jax.experimental.multihost_utils.process_allgather` brings together.

    Raises:
        ArgumentError: `mesh` is not one, or its devices divide no draw of the program; `checkpoint`
            belongs to another run, or the program has no loop outermost that draws.
        Interrupted: by Ctrl-C; its `resume()` goes on, bit for bit.
        OpenObservationsError: the program observes or weighs; it has to be fitted, not drawn from.
    """
    require_program("run", program)
    key = as_key(key)
    traced = any(map(_jax.is_tracer, jax.tree.leaves((program, key))))
    long = program.structure.loop is not None and not traced
    parts = None
    if not long:
        refuse_scores(program)
        asked = bool(progress) or checkpoint is not None
        parts = None if traced else parts_of(program.structure, asked)
    sharing = None
    if checkpoint is not None and not long and parts is None:
        raise ArgumentError(
            message(
                f"run got checkpoint={checkpoint!r} for {program.name}",
                needs="a program with an outermost loop that draws, run outside of jax.jit",
                why="there is nothing between its start and its end that could be kept",
                fix="ppl.run(ppl.mcmc(...), key, checkpoint=path)",
            )
        )
    if mesh is not None and checkpoint is not None and not long and _several(mesh):
        raise ArgumentError(
            message(
                f"run got checkpoint={checkpoint!r} for {program.name} on a mesh of several "
                "processes",
                needs="one process, or chains",
                why="a process cannot write what lies with another",
                fix="ppl.run(program, key, mesh=mesh)",
            )
        )
    if mesh is not None:
        sharing = share(mesh, program.name, program.structure.jaxpr)
        if not traced:
            program, key = sharing.place((program, key))
    if traced:
        return program.structure.rebuild(draw_flat(program, key, sharing))
    with named_errors() as wait:
        if long:
            return drive(
                program,
                key,
                progress=progress,
                interpret=_Draw(sharing),
                sharing=sharing,
                checkpoint=checkpoint,
            )
        if parts is not None and not (sharing and sharing.many_processes):
            passage = Passage(program, parts, key, _Draw(sharing), checkpoint)
            return passage.finish(progress)
        return program.structure.rebuild(wait(_execute(program, key, sharing)))


def _several(mesh: Any) -> bool:
    return isinstance(mesh, Mesh) and mesh.is_multi_process


@dataclasses.dataclass(frozen=True)
class _Draw:
    """Draw from flat programs; equal ones share compiled code."""

    sharing: Sharing | None = None

    def __call__(self, jaxpr: Any, consts: Any, args: Any, key: Any) -> list[Any]:
        outs = evaluate(Drawing(self.sharing), jaxpr, consts, args, key=key).outs
        outs = [jnp.asarray(x) for x in outs]
        return outs if self.sharing is None else self.sharing.lay(outs)


def draw_flat(program: Program, key: Key, sharing: Sharing | None = None) -> list[Any]:
    """Draw a program's value as flat arrays, without compiling it on its own."""
    return _Draw(sharing)(program.structure.jaxpr, program.consts, program.args, key)


_execute = jax.jit(draw_flat, static_argnums=2)


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
