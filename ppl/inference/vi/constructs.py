"""`marginal` and `normalize`: guides whose density is only estimated, as programs with draws more.

Both change the program, not the density of the guide: what is estimated becomes extra draws with a
law that leaves the program's measure as it is. So the pairs they give can be used wherever a
program and its guide can.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ppl import distributions as dist
from ppl._types import PyTree, pytree, static
from ppl.context import context, current_context
from ppl.counts import count
from ppl.errors import AddressError, ArgumentError, message, named_keywords
from ppl.inference.vi.objective import at_params
from ppl.interpreter import Frame, Interpreter, evaluate
from ppl.primitives import Site, bind
from ppl.program import Program, require_program
from ppl.semantics.density import log_density
from ppl.semantics.guided import guided
from ppl.semantics.weighted import trace_of, traced
from ppl.staging import stage
from ppl.statements import factor, sample, scope

Reverse = Callable[..., Program]


@named_keywords
def marginal(program: Any, guide: Any, reverse: Reverse, num_particles: int = 1) -> tuple[Any, Any]:
    """Let a guide draw auxiliaries that the program has not.

    **Meaning.** With x the program's latents and a the guide's other ones, the guide's density of x
    is a marginal, q(x) = sum over a of q(x, a). It is estimated by importance sampling of a from
    `reverse`, among the guide's own a: 1 / estimate is unbiased for 1 / q(x). The new program draws
    x as before and the auxiliaries from `reverse`, weighed so that its measure on x and on the
    value is that of `program`; the weight of the pair is program's density over the estimate.

    With `elbo` this is hierarchical variational inference with one particle (Ranganath et al. 2016)
    and IWHVI with more (Sobolev & Vetrov 2019), with `iwelbo` DIWHVI; with a guide that runs a
    Markov chain and the chain backwards for `reverse`, it is variational inference with MCMC steps
    (Salimans et al. 2015).

    Args:
        program: any program, or a function of parameters that makes one.
        guide: a program without scores that draws latents of `program`, and others, or a function
            of parameters that makes one.
        reverse: gives, for a dict of the guide's draws of x, a program without scores that draws
            the guide's other latents; it must be able to draw whatever the guide can. Where program
            or guide are functions of parameters, it is called with these too: reverse(x, params).
        num_particles: auxiliaries under the average.

    Returns:
        The new program, and its guide; functions of parameters if one of the two was, for an
        objective.

    Raises:
        AddressError: the guide draws nothing of the program's, or `reverse` other addresses than
            the guide's others.
    """
    number = count("marginal", "num_particles", num_particles)
    made = [isinstance(x, Program) for x in (program, guide)]
    if not all(made) and all(m or callable(x) for m, x in zip(made, (program, guide), strict=True)):
        one, two = (MarginalPart(program, guide, reverse, number, i) for i in (0, 1))
        return one, two
    require_program("vi.marginal", program)
    require_program("vi.marginal", guide)
    own = [a for a in guide.latents if a in program.latents]
    if not own:
        raise AddressError(
            message(
                f"vi.marginal got a guide of {', '.join(guide.latents) or 'no latents'}",
                needs=f"one that draws some of {', '.join(program.latents)}",
                why="else there is nothing to guide",
                fix="use the program's addresses in the guide",
            )
        )
    drawn = stage(_draw_guide, (guide, reverse, tuple(own), number), name=f"marginal({guide.name})")
    target = stage(_draw_program, (program, guide, reverse, tuple(own), number), name=program.name)
    return target, drawn


@pytree
class MarginalPart:
    """One of the two programs of `marginal`, as a function of parameters."""

    program: Any
    guide: Any
    reverse: Reverse = static()
    num_particles: int = static()
    which: int = static()

    @property
    def params(self) -> PyTree:
        """The parameters that the guide brings along to start from; None if it brings none."""
        return getattr(self.guide, "params", None)

    def __call__(self, params: PyTree) -> Program:
        """Give the program at these parameters."""
        program, guide = (at_params(x, params) for x in (self.program, self.guide))

        def reverse(own: dict[str, Any]) -> Program:
            return self.reverse(own, params)

        return marginal(program, guide, reverse, self.num_particles)[self.which]


@named_keywords
def normalize(
    program: Program, target: Program, num_particles: int, guide: Program | None = None
) -> Program:
    """Draw from the posterior of another program, approximately, and weigh for this one.

    **Meaning.** The measure of `program`. Particles of `target` are weighed, one of them is drawn
    by its weight (sampling importance resampling), and the run is weighed by `program`'s density
    over `target`'s there, times the mean weight: `program`'s density over an estimate of that of
    the normalised target. With the same program for both it is importance sampling.

    Args:
        program: any program.
        target: a program with the same latent addresses, whose posterior is drawn from; its
            density must not be zero where that of `program` is not.
        num_particles: particles of `target`.
        guide: what they are drawn from; None for `target` itself.

    Returns:
        A program on the value of `program`, for `ppl.vi.evidence_bound` and all else.
    """
    require_program("vi.normalize", program)
    require_program("vi.normalize", target)
    number = count("normalize", "num_particles", num_particles)
    if set(program.latents) != set(target.latents):
        raise AddressError(
            message(
                f"vi.normalize got a target of {', '.join(target.latents) or 'no latents'}",
                needs=f"the latents of {program.name}: {', '.join(program.latents)}",
                why="its draws are to be weighed by the program's density",
                fix="use the same addresses in both",
            )
        )
    return stage(_normalized, (program, target, guide, number), name=program.name)


def _normalized(program: Program, target: Program, guide: Program | None, number: int) -> PyTree:
    drawn = target if guide is None else guided(target, guide, operation="vi")

    def particle(_: Any) -> Any:
        trace = traced(drawn)()
        return {a: trace.choices[a] for a in target.latents}, trace.log_weight

    with scope("particles"):
        choices, log_weights = jax.vmap(particle)(jnp.arange(number))
    evidence = jax.nn.logsumexp(log_weights)
    even = jnp.zeros_like(log_weights)  # if all weigh nothing, so does the run
    index = sample(
        "particle", dist.CategoricalLogits(jnp.where(evidence == -jnp.inf, even, log_weights))
    )
    choices = jax.tree.map(lambda x: x[index], choices)
    trace = trace_of(program, choices)
    excess = trace.log_density - log_density(target, choices)
    weight = jnp.where(evidence == -jnp.inf, -jnp.inf, excess + evidence - math.log(number))
    factor("weight", weight)
    return trace.value


def _reversed(reverse: Reverse, own: Mapping[str, Any], guide: Program) -> Program:
    with context(None):  # a function that makes a program, and no part of this one
        found = reverse(dict(own))
    others = [a for a in guide.latents if a not in own]
    if not isinstance(found, Program):
        raise ArgumentError(
            message(
                f"vi.marginal got a reverse that gives {type(found).__name__}",
                needs="a function of a dict of choices that makes a program",
                fix='reverse=lambda choices: model(choices["x"])',
            )
        )
    if set(found.latents) != set(others):
        raise AddressError(
            message(
                f"vi.marginal got a reverse of {', '.join(found.latents) or 'no latents'}",
                needs=f"the guide's other latents: {', '.join(others) or 'none'}",
                why="it stands for their law given the rest",
                fix="use the guide's addresses in it",
            )
        )
    return found


def _more(reverse: Program, number: int) -> Any:
    """Draw the auxiliaries beside the guide's own."""

    def one(_: Any) -> Any:
        return _inlined(reverse)[1]

    with scope("others"):
        return jax.vmap(one)(jnp.arange(number - 1))


def _draw_guide(guide: Program, reverse: Reverse, own: tuple[str, ...], number: int) -> None:
    _, choices = _inlined(guide)
    program = _reversed(reverse, {a: choices[a] for a in own}, guide)
    if number > 1:
        _more(program, number)


def _draw_program(
    program: Program, guide: Program, reverse: Reverse, own: tuple[str, ...], number: int
) -> PyTree:
    value, choices = _inlined(program)
    mine = {a: choices[a] for a in own}
    backwards = _reversed(reverse, mine, guide)
    _, first = _inlined(backwards)
    if number == 1:
        return value

    def ratio(others: Any) -> Any:
        return log_density(guide, {**mine, **others}) - log_density(backwards, others)

    rest = jax.vmap(ratio)(_more(backwards, number))
    ratios = jnp.concatenate([ratio(first)[None], rest])
    # Given x, the mean of this over the auxiliaries is one: all of them have the same law.
    factor("marginal", ratios[0] - (jax.nn.logsumexp(ratios) - math.log(number)))
    return value


class _Inlining(Interpreter):
    """Stage every site again, in the scope around it, and keep the latent values."""

    name, unbounded = "vi.marginal", False

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        (value,) = bind(_scoped(site), leaves)
        if site.kind == "latent":
            frame.record(site, leaves, value)
        return value

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        bind(_scoped(site), leaves)


def _scoped(site: Site) -> Site:
    return dataclasses.replace(site, address=current_context().prefix + site.address)


def _inlined(program: Program) -> tuple[PyTree, dict[str, Any]]:
    s = program.structure
    outs, _, records = evaluate(_Inlining(), s.jaxpr, program.consts, program.args)
    return s.rebuild(outs), {a: r.value for a, r in records.items()}
