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

from ppl._types import Choices, PyTree, Scalar, pytree, static
from ppl.context import context, current_context
from ppl.counts import count
from ppl.errors import AddressError, ArgumentError, message, named_keywords
from ppl.inference.importance import importance
from ppl.inference.vi.meta import Method, require_method
from ppl.inference.vi.objective import at_params
from ppl.interpreter import Frame, Interpreter, evaluate
from ppl.primitives import Site, bind, value_of
from ppl.program import Program, require_program
from ppl.semantics.density import log_density
from ppl.semantics.extract import collapse
from ppl.semantics.guided import guided
from ppl.semantics.handlers import condition, do
from ppl.semantics.population import Population
from ppl.semantics.weighted import trace_of
from ppl.staging import stage
from ppl.statements import factor, scope

Reverse = Callable[..., Program]


@named_keywords
def marginal(
    program: Any,
    guide: Any,
    reverse: Reverse | None = None,
    num_particles: int = 1,
    method: Method | None = None,
) -> tuple[Any, Any]:
    """Let a guide draw auxiliaries that the program has not.

    **Meaning.** With x the program's latents and a the guide's other ones, the guide's density of x
    is a marginal, q(x) = sum over a of q(x, a). It is estimated around the guide's own a, so that
    1 / estimate is unbiased for 1 / q(x). The new program draws x as before and what the estimate
    needs beside it, weighed so that its measure on x and on the value is that of `program`; the
    weight of the pair is program's density over the estimate.

    By itself the estimate is importance sampling of a from `reverse`. With `elbo` this is
    hierarchical variational inference with one particle (Ranganath et al. 2016) and IWHVI with more
    (Sobolev & Vetrov 2019), with `iwelbo` DIWHVI; with a guide that runs a Markov chain and the
    chain backwards for `reverse`, it is variational inference with MCMC steps (Salimans et al.
    2015). `method=ppl.kernels.conditional_smc(n)` estimates by particles, which a guide with a loop
    of auxiliaries needs; `method=ppl.vi.annealing(kernel, temperatures)` by a Markov chain of any
    kernel, whose moves need no density.

    Args:
        program: any program, or a function of parameters that makes one.
        guide: a program without scores that draws latents of `program`, and others, or a function
            of parameters that makes one.
        reverse: gives, for a dict of the guide's draws of x, a program without scores that draws
            the guide's other latents; it must be able to draw whatever the guide can. Where program
            or guide are functions of parameters, it is called with these too: reverse(x, params).
            None draws them from the guide itself, with x held fixed. With a method, what particles
            propose, or where the chain ends.
        num_particles: auxiliaries under the average, if there is no method.
        method: `ppl.kernels.conditional_smc` or `ppl.vi.annealing`; None for importance sampling.

    Returns:
        The new program, and its guide; functions of parameters if one of the two was, for an
        objective.

    Raises:
        AddressError: the guide draws nothing of the program's, or `reverse` other addresses than
            the guide's others.
        ArgumentError: the method is none, or there are both a method and `num_particles`.
        UnsupportedError: the method is told to redraw some auxiliaries only, or their ancestors.
    """
    number = count("marginal", "num_particles", num_particles)
    if method is not None:
        require_method(method)
        if number != 1:
            raise ArgumentError(
                message(
                    f"vi.marginal got num_particles={number} and a method",
                    needs="one of them",
                    why="the method has a number of particles of its own",
                    fix=f"method=ppl.kernels.conditional_smc({max(number, 2)})",
                )
            )
    made = [isinstance(x, Program) for x in (program, guide)]
    if not all(made) and all(m or callable(x) for m, x in zip(made, (program, guide), strict=True)):
        one, two = (MarginalPart(program, guide, method, reverse, number, i) for i in (0, 1))
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
    estimate = (guide, reverse, tuple(own), number, method)
    drawn = stage(_draw_guide, estimate, name=f"marginal({guide.name})")
    target = stage(_draw_program, (program, *estimate), name=program.name)
    return target, drawn


@pytree
class MarginalPart:
    """One of the two programs of `marginal`, as a function of parameters."""

    program: Any
    guide: Any
    method: Method | None
    reverse: Reverse | None = static()
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
            assert self.reverse is not None
            return self.reverse(own, params)

        given = reverse if self.reverse else None
        return marginal(program, guide, given, self.num_particles, self.method)[self.which]


@named_keywords
def normalize(
    program: Program,
    target: Program,
    num_particles: int | None = None,
    guide: Program | None = None,
) -> Program:
    """Draw from the posterior of another program, approximately, and weigh for this one.

    **Meaning.** The measure of `program`. Particles of `target` are weighed, one of them is drawn
    by its weight (sampling importance resampling), and the run is weighed by `program`'s density
    over `target`'s there, times the mean weight: `program`'s density over an estimate of that of
    the normalised target. With the same program for both it is importance sampling.

    The particles can be any: `normalize(program, ppl.smc(target, 20))` takes one of a particle
    filter, `normalize(program, ppl.tempered_smc(target, 1, kernel, temperatures))` the end of an
    annealed Markov chain.

    Args:
        program: any program.
        target: a program with the same latent addresses, whose posterior is drawn from, its density
            not zero where that of `program` is not; or a program of a `Population` of such a one,
            whose evidence and weighted sums are unbiased.
        num_particles: particles of `target`, if it is no population.
        guide: what they are drawn from; None for `target` itself. Not for a population.

    Returns:
        A program on the value of `program`, for `ppl.vi.evidence_bound` and all else.

    Raises:
        AddressError: the target has other latents.
        ArgumentError: `num_particles` is missing, or given for a population; or this one does not
            keep its choices and its program.
    """
    require_program("vi.normalize", program)
    require_program("vi.normalize", target)
    population = target
    if not isinstance(target.structure.shapes, Population):
        population = importance(target, count("normalize", "num_particles", num_particles), guide)
    elif num_particles is not None or guide is not None:
        raise ArgumentError(
            message(
                f"vi.normalize got {target.name} and num_particles={num_particles!r}",
                needs="no num_particles and no guide beside a population",
                why="it has particles already",
                fix="ppl.vi.normalize(program, population)",
            )
        )
    _check_choices(program, population)
    return stage(_normalized, (program, population), name=program.name)


def _check_choices(program: Program, population: Program) -> None:
    shape = population.structure.shapes
    if shape.program is None or set(shape.choices) != set(program.latents):
        raise AddressError(
            message(
                f"vi.normalize got {population.name} with choices of "
                f"{', '.join(shape.choices) or 'no latents'}",
                needs=f"the latents of {program.name}: {', '.join(program.latents)}",
                why="its particles are to be weighed by the program's density",
                fix="use the same addresses in both, outside of while_loops, and keep trajectories",
            )
        )


def _normalized(program: Program, population: Program) -> PyTree:
    with scope("particles"):
        found: Population = population()
    choices = collapse(dataclasses.replace(found, values=found.choices))
    trace = trace_of(program, choices)
    assert found.program is not None
    drawn = log_density(found.program, choices)
    # Without density it is drawn only if no particle has any, and then there is no evidence.
    factor("weight", jnp.where(drawn == -jnp.inf, 0.0, trace.log_density - drawn))
    return trace.value


# --- What `marginal` draws ------------------------------------------------------------------------


def _draw_guide(guide: Program, *how: Any) -> None:
    _, choices = _inlined(guide)
    _Estimate(guide, choices, *how).log_mass(choices)


def _draw_program(program: Program, guide: Program, *how: Any) -> PyTree:
    value, mine = _inlined(program)
    estimate = _Estimate(guide, mine, *how)
    _, first = _inlined(estimate.backwards, latents_only=True)
    if estimate.trivial:
        return value
    # Given x, the mean of this over all that is drawn is one, whatever the law of the first.
    ratio, found = estimate.ratio(first), estimate.log_mass(first)
    factor("marginal", jnp.where(ratio == -jnp.inf, -jnp.inf, ratio - found))
    return value


class _Estimate:
    """What is known of the guide's density of some choices."""

    def __init__(
        self,
        guide: Program,
        choices: Choices,
        reverse: Reverse | None,
        own: tuple[str, ...],
        number: int,
        method: Method | None,
    ):
        self.guide, self.number, self.method = guide, number, method
        self.own, self.proposed = {a: choices[a] for a in own}, reverse is not None
        self.backwards = _reversed(reverse, self.own, guide) if reverse else do(guide, self.own)

    @property
    def trivial(self) -> bool:
        """Whether the estimate is a ratio of the guide's own auxiliaries alone."""
        alone = self.method is None and self.number == 1
        return alone or not self.backwards.latents

    def ratio(self, others: Choices) -> Scalar:
        """Weigh auxiliaries by the guide's density over that of the reverse."""
        others = {a: others[a] for a in self.backwards.latents}
        forth = log_density(self.guide, {**self.own, **others})
        return forth - log_density(self.backwards, others)

    def log_mass(self, others: Choices) -> Any:
        """Estimate the log density, around these auxiliaries of the guide."""
        others = {a: others[a] for a in self.backwards.latents}
        if self.trivial:
            return None  # nothing more is drawn
        if self.method is not None:
            posterior = condition(self.guide, self.own)
            if self.proposed:
                posterior = guided(posterior, self.backwards, operation="vi.marginal")
            with scope("others"):
                return self.method.log_mass(posterior, others)

        def one(_: Any) -> Any:
            return _inlined(self.backwards, latents_only=True)[1]

        with scope("others"):
            more = jax.vmap(one)(jnp.arange(self.number - 1))
        ratios = jnp.concatenate([self.ratio(others)[None], jax.vmap(self.ratio)(more)])
        return jax.nn.logsumexp(ratios) - math.log(self.number)


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


class _Inlining(Interpreter):
    """Stage every site again, in the scope around it, and keep the latent values."""

    name, unbounded = "vi.marginal", False

    def __init__(self, latents_only: bool):
        self.latents_only = latents_only

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        if self.latents_only and site.kind != "latent":
            return value_of(site, leaves)
        (value,) = bind(_scoped(site), leaves)
        if site.kind == "latent":
            frame.record(site, leaves, value)
        return value

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        bind(_scoped(site), leaves)


def _scoped(site: Site) -> Site:
    return dataclasses.replace(site, address=current_context().prefix + site.address)


def _inlined(program: Program, latents_only: bool = False) -> tuple[PyTree, dict[str, Any]]:
    s = program.structure
    outs, _, records = evaluate(_Inlining(latents_only), s.jaxpr, program.consts, program.args)
    return s.rebuild(outs), {a: r.value for a, r in records.items()}
