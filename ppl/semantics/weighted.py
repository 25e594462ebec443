"""The representations `Weighted` and `Trace`: a run with its weight, and with its choices."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ppl import _jax
from ppl._types import ArrayLike, Choices, Key, PyTree, Scalar, pytree
from ppl.context import current_context
from ppl.errors import ArgumentError, message
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
    `program` is what was run, where it is known: in the traces of `ppl.trace` and `ppl.trace_of`,
    and in those that kernels are given.
    """

    value: PyTree
    choices: Choices
    log_weight: Scalar
    deterministics: dict[str, Array]
    present: dict[str, Array]
    program: Program | None = None
    _log_density: Scalar | None = None

    @property
    def log_density(self) -> Scalar:
        """The log joint density of choices and scores, in nats."""
        if self._log_density is not None:
            return self._log_density
        return trace_of(self._known_program("log_density"), self.choices).log_density

    def _known_program(self, operation: str) -> Program:
        if self.program is None:
            raise ArgumentError(
                message(
                    f"{operation} got a trace that does not know its program",
                    needs="a trace made by ppl.trace or ppl.trace_of, or given to a kernel",
                    fix="ppl.trace_of(program, trace.choices)",
                )
            )
        return self.program

    def with_choices(self, choices: Mapping[str, ArrayLike]) -> Trace:
        """Run the program again with some choices changed and the others as they are.

        **Meaning.** Nothing is drawn: value, weight and density are those of the new choices; the
        density is -inf where they are impossible. Sites of branches that are newly taken hold a
        placeholder, zero, so a kernel that changes a branch should give their values too.

        Args:
            choices: a value of the site's full shape for each address to change.

        Raises:
            AddressError: an address is unknown.
            ObservationError: a value has another shape or dtype than its site.
            ArgumentError: the trace does not know its program.
        """
        from ppl.semantics.density import match_choices

        program = self._known_program("with_choices")
        match_choices("with_choices", program, choices, complete=False)
        return trace_of(program, {**self.choices, **choices})

    @property
    def canonical(self) -> tuple[Choices, dict[str, Array]]:
        """The choices, zero where there are none, and where there are: equal for equal runs."""

        def known(address: str, x: Any) -> Any:
            flag = self.present.get(address)
            if flag is None:
                return x
            return jnp.where(flag.reshape(flag.shape + (1,) * (x.ndim - flag.ndim)), x, 0)

        return {a: known(a, x) for a, x in self.choices.items()}, self.present


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


class Replaying(Recording):
    """Take every choice from what is given; weigh by scores, and beside it by the density."""

    name = "trace_of"
    rebinds = False

    def zero(self) -> Any:
        nothing = super().zero()
        return nothing, nothing

    def _count(self, frame: Frame, log_weight: Any, log_density: Any) -> None:
        frame.add((jnp.sum(log_weight), jnp.sum(log_density)))

    def latent(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        value = frame.given[site.address]
        density, excess = log_prob(site, leaves, value), jnp.zeros(())
        if site.operands(leaves).scale is not None:
            plain, bare = with_operand(site, leaves, "scale", None, mapped=False)
            drawn = log_prob(plain, bare, value)
            excess = jnp.where(drawn == -jnp.inf, 0.0, density - drawn)
        self._count(frame, excess, density)
        frame.record(site, leaves, value)
        return value

    def observed(self, frame: Frame, site: Site, leaves: list[Any], value: Any) -> None:
        density = log_prob(site, leaves, value)
        self._count(frame, density, density)

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        weight = factor(site, leaves)
        self._count(frame, weight, weight)


def _weighted(program: Program) -> Weighted:
    s = program.structure
    outs, weight, _ = evaluate(Separating(), s.jaxpr, program.consts, program.args)
    return Weighted(s.rebuild(outs), weight)


def _traced(program: Program) -> Trace:
    s = program.structure
    outs, weight, records = evaluate(Recording(), s.jaxpr, program.consts, program.args)
    return _as_trace(program, s.rebuild(outs), weight, records)


def _as_trace(program: Program, value: Any, weight: Any, records: Any, **known: Any) -> Trace:
    kinds = {site.address: site.kind for site in program.sites}
    pick = lambda kind: {a: r.value for a, r in records.items() if kinds[a] == kind}  # noqa: E731
    present = {a: r.present for a, r in records.items() if r.present is not None}
    return Trace(value, pick("latent"), weight, pick("deterministic"), present, **known)


def _trace_of(program: Program, choices: Choices) -> Trace:
    s = program.structure
    outs, (weight, density), records = evaluate(
        Replaying(), s.jaxpr, program.consts, program.args, given=choices
    )
    return _as_trace(program, s.rebuild(outs), weight, records, _log_density=density)


_compiled = jax.jit(_trace_of)


def trace_of(program: Program, choices: Mapping[str, ArrayLike]) -> Trace:
    """Give the trace of a program at given choices: what kernels start from.

    **Meaning.** The run that makes these choices, whatever their probability; `log_density` is the
    log joint density there, in nats.

    Args:
        program: any program whose latent sites are bounded in number.
        choices: a value of the site's full shape for every latent address; those of branches that
            are not taken are placeholders.

    Raises:
        AddressError: an address is missing or unknown.
        ObservationError: a choice has another shape or dtype than its site.
    """
    from ppl.semantics.density import match_choices

    given = match_choices("trace_of", program, choices)
    # On its own the trace is compiled; in a kernel it is part of what is being traced.
    run = _compiled if concrete(program, given) and not current_context().inside else _trace_of
    return dataclasses.replace(run(program, given), program=program)


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
    round the last bit of what is computed from them in another way). On its own, not under `jit` or
    `vmap`, the trace also knows its program.
    """
    made = run(traced(program), key)
    # Under `vmap` each trace would carry the data along.
    return dataclasses.replace(made, program=program) if concrete(program, key) else made


def sample_traces(program: Program, key: Key, num: int) -> Trace:
    """Draw `num` independent traces; every leaf gets a leading axis."""
    program = traced(program)
    keys = jax.random.split(as_key(key), num)
    return program.structure.rebuild(_many(program, keys))


@jax.jit
def _many(program: Program, keys: Any) -> Any:
    return jax.vmap(draw_flat, in_axes=(None, 0))(program, keys)


def concrete(*trees: Any) -> bool:
    """Tell whether no array of the trees is traced."""
    return not any(map(_jax.is_tracer, jax.tree.leaves(trees)))
