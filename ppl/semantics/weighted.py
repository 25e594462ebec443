"""The representations `Weighted` and `Trace`: a run with its weight, and with its choices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ppl import _jax
from ppl._types import Choices, Key, PyTree, Scalar, pytree
from ppl.interpreter import Frame, Interpreter, evaluate
from ppl.primitives import Site, factor, log_prob, sample_p, value_of, with_operand
from ppl.program import Program, require_program
from ppl.semantics.run import as_key, draw_flat, run
from ppl.staging import stage


@pytree
class Weighted:
    """A value and its log weight (nats). **Meaning.** f -> E[exp(log_weight) f(value)]."""

    value: PyTree
    log_weight: Scalar


@pytree
class Trace:
    """One run of a program. **Meaning.** That of `Weighted`, after forgetting the choices.

    `choices` holds every latent site by address, with the site's full shape; `deterministics` the
    recorded values. Sites that stand in branches are in `present`, which tells (per lane and
    iteration) whether they were reached; where they were not, the choice is a placeholder.
    """

    value: PyTree
    choices: Choices
    log_weight: Scalar
    deterministics: dict[str, Array]
    present: dict[str, Array]


class Weighing(Interpreter):
    """Add up log weights of observations and factors; subclasses say what a latent site is."""

    rebinds, weighs = False, True

    def zero(self) -> Any:
        return jnp.zeros((), jnp.result_type(float))

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        if site.kind == "latent":
            return self.latent(frame, site, leaves)
        value = value_of(site, leaves)
        if site.kind == "observed":
            self.observed(frame, site, leaves, value)
        else:
            self.deterministic(frame, site, leaves, value)
        return value

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        frame.add(jnp.sum(factor(site, leaves)))

    def observed(self, frame: Frame, site: Site, leaves: list[Any], value: Any) -> None:
        frame.add(jnp.sum(log_prob(site, leaves, value)))

    def deterministic(self, frame: Frame, site: Site, leaves: list[Any], value: Any) -> None:
        """Nothing is scored; tracing interpreters record."""

    def latent(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        raise NotImplementedError


class Separating(Weighing):
    """Keep the draws, take the scores out into the weight."""

    name = "weighted"
    rebinds = True

    def latent(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        scale = site.operands(leaves).scale
        plain, bare = with_operand(site, leaves, "scale", None, mapped=False)
        value = sample_p.bind(*bare, site=plain)[0]
        if scale is not None:  # the density to the power `scale`, drawn from the density itself
            excess = log_prob(site, leaves, value) - log_prob(plain, bare, value)
            frame.add(jnp.sum(excess))
        return value


class Recording(Separating):
    """Keep the draws and record them."""

    name = "traced"
    unbounded = False

    def latent(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        value = super().latent(frame, site, leaves)
        frame.record(site, leaves, value)
        return value

    def deterministic(self, frame: Frame, site: Site, leaves: list[Any], value: Any) -> None:
        frame.record(site, leaves, value)


def _weighted(program: Program) -> Weighted:
    s = program.structure
    outs, weight, _ = evaluate(Separating(), s.jaxpr, program.consts, program.args)
    return Weighted(s.rebuild(outs), weight)


def _traced(program: Program) -> Trace:
    s = program.structure
    outs, weight, records = evaluate(Recording(), s.jaxpr, program.consts, program.args)
    kinds = {site.address: site.kind for site in program.sites}
    pick = lambda kind: {a: r.value for a, r in records.items() if kinds[a] == kind}  # noqa: E731
    present = {a: r.present for a, r in records.items() if r.present is not None}
    return Trace(s.rebuild(outs), pick("latent"), weight, pick("deterministic"), present)


def weighted(program: Program) -> Program:
    """Make the weight part of the value: a program without scores.

    **Meaning.** m(weighted(p)), with f(Weighted(x, w)) = exp(w) g(x), is m(p)(g).

    Returns:
        A program of `Weighted(value, log_weight)`.
    """
    require_program("weighted", program)
    return stage(_weighted, (program,), name=f"weighted({program.name})")


def traced(program: Program) -> Program:
    """Make weight and choices part of the value: a program without scores.

    Returns:
        A program of `Trace(value, choices, log_weight, ...)`.

    Raises:
        UnsupportedError: a latent site stands in a `while_loop`.
    """
    require_program("trace", program)
    return stage(_traced, (program,), name=f"traced({program.name})")


def trace(program: Program, key: Key) -> Trace:
    """Run a program once, keeping its choices and its weight.

    **Meaning.** A draw from `traced(program)`. Under one key `run` makes the same draws (XLA may
    round the last bit of what is computed from them in another way).
    """
    return run(traced(program), key)


def sample_traces(program: Program, key: Key, num: int) -> Trace:
    """Draw `num` independent traces; every leaf gets a leading axis."""
    program = traced(program)
    keys = jax.random.split(as_key(key), num)
    return program.structure.rebuild(_many(program, keys))


@jax.jit
def _many(program: Program, keys: Any) -> Any:
    return jax.vmap(draw_flat, in_axes=(None, 0))(program, keys)


def concrete(*trees: Mapping[str, Any] | Program) -> bool:
    """Tell whether no array of the trees is traced."""
    return not any(map(_jax.is_tracer, jax.tree.leaves(trees)))
