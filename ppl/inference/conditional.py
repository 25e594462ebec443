"""`conditional_smc`: a particle filter in which one particle follows the present trace."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ppl._types import Choices, Scalar, pytree, static
from ppl.context import current_context
from ppl.errors import ArgumentError, UnsupportedError, at, check_addresses, message, named_keywords
from ppl.inference.particles import Cloud, Place, Run, Strategy, choose_cloud, select_cloud
from ppl.inference.particles.backward import History
from ppl.inference.particles.bootstrap import bootstrap_settings, too_uneven
from ppl.inference.particles.future import (
    choose_particle,
    inputs_at,
    levels_at,
    log_future,
    times,
)
from ppl.inference.particles.onward import rest_of
from ppl.inference.trace_kernel import TraceKernel, as_addresses
from ppl.interpreter import Frame, Interpreter, Record
from ppl.primitives import Site, log_prob, sample_p, with_operand
from ppl.program import Program
from ppl.resampling import MultinomialResampling, Resampling
from ppl.semantics.handlers import condition
from ppl.semantics.weighted import Recording, Trace, trace_of
from ppl.statements import sample, scope


@named_keywords
def conditional_smc(
    num_particles: int,
    *,
    addresses: Sequence[str] | None = None,
    ess_threshold: float = 1.0,
    ancestor_sampling: bool = False,
    backward_sampling: bool = False,
    resample: str | type[Resampling] = "multinomial",
) -> ConditionalSMC:
    """Make the kernel that runs a particle filter around the present trace, and takes a new one.

    **Meaning.** Leaves the program's measure on choices invariant, exactly, for any number of
    particles from two on. One particle makes the choices of the present trace and survives every
    resampling; the others are drawn as in `smc`. At the end one particle is drawn by weight. With
    few particles its early choices are mostly the old ones: all ancestors are the same. Ancestor
    sampling draws at each resampling which particle the rest of the present trace goes on from;
    backward sampling puts the new trace together from the last choice to the first. Both weigh
    particles by the density of what follows. In state-space models that is one step; where a
    program never forgets its past it is all that follows, at a cost that is quadratic in time.

    Args:
        num_particles: number of particles, the one that follows the trace among them.
        addresses: the sites that are drawn anew; None for all. Others keep their values.
        ess_threshold: resample where the effective sample size falls below this share of the
            particles; 1 resamples wherever weights differ.
        ancestor_sampling: draw the ancestor of the present trace, too.
        backward_sampling: draw the new trace backwards.
        resample: the scheme; "multinomial" is the only one whose law given a survivor is known
            here.

    Returns:
        A `Kernel`.

    Raises:
        ArgumentError: a setting is out of range, or both ways to draw ancestors are asked for.
        AddressError: (when called) an address is not a latent site of the program.
        UnsupportedError: the scheme is another one; or (when called) a latent site stands in a
            `while_loop`, a site that is kept comes and goes with the others, or a later draw or
            score reads what a loop stacked.

    Source: Andrieu, Doucet and Holenstein (2010), section 4.3; ancestor sampling of Lindsten,
        Jordan and Schön (2014); backward sampling of Whiteley (2010) and Lindsten and Schön
        (2013). Resampling at some steps only is allowed, as the weights alone decide on it.
    """
    count, found, threshold = bootstrap_settings(
        "conditional_smc", num_particles, resample, ess_threshold
    )
    if count < 2:
        raise ArgumentError(
            message(
                f"conditional_smc got num_particles={num_particles!r}",
                needs="at least two particles",
                why="one of them follows the present trace, which would stay as it is",
                fix="num_particles=20",
            )
        )
    if found is not MultinomialResampling:
        raise UnsupportedError(
            message(
                f"conditional_smc got the scheme {found.__name__}",
                needs="multinomial resampling",
                why="the law of the other ancestors, given one that survives, depends on the "
                "scheme",
                fix='resample="multinomial"',
            )
        )
    if ancestor_sampling and backward_sampling:
        raise ArgumentError(
            message(
                "conditional_smc got ancestor_sampling=True and backward_sampling=True",
                needs="one of them",
                why="each lets the new trace leave the old one everywhere",
                fix="ancestor_sampling=True",
            )
        )
    names = as_addresses("conditional_smc", addresses)
    return ConditionalSMC(count, names, threshold, bool(ancestor_sampling), bool(backward_sampling))


@pytree
class ConditionalSMC(TraceKernel):
    """The kernel of `conditional_smc`."""

    num_particles: int = static()
    addresses: tuple[str, ...] | None = static(default=None)
    ess_threshold: float = static(default=1.0)
    ancestor_sampling: bool = static(default=False)
    backward_sampling: bool = static(default=False)

    operation: ClassVar[str] = "conditional_smc"

    def move(self, trace: Trace) -> Trace:
        """Run the particles, and take one."""
        program = self.conditioned(trace)
        if not program.latents:
            return trace
        given = _given(program, trace.choices, trace.present)
        with scope("particles"):
            strategy = self.strategy(current_context().prefix)
            if self.backward_sampling:
                run = History(self.operation, strategy, self.num_particles, program.latents)
                population = run.program(program, given)
                last = choose_particle("last", population.log_weights)
                choices = {a: r.value for a, r in run.draw_back(last).items()}
            else:
                population = Run(strategy, self.num_particles).program(program, given)
                last = choose_particle("last", population.log_weights)
                choices = {a: x[last] for a, x in population.choices.items()}
        return trace.with_choices(choices)

    def log_mass(self, program: Program, choices: Choices) -> Scalar:
        """Estimate the log mass of a program by particles around given choices of all its latents.

        Where these are drawn from its normalised measure, the reciprocal of the estimated mass is
        unbiased. No draw stands in a branch: ancestors are drawn whether or not they are needed.
        """
        given = _given(program, choices, trace_of(program, choices).present)
        with scope("particles"):
            strategy = self.strategy(current_context().prefix)
            strategy.always_drawn = True
            return Run(strategy, self.num_particles).program(program, given).log_evidence

    def strategy(self, prefix: str) -> Conditional:
        """Say how the particles are resampled, and what they draw."""
        return Conditional(self.ess_threshold, self.ancestor_sampling, prefix)

    def conditioned(self, trace: Trace) -> Program:
        """Give the program in which the sites that keep their values are observed."""
        program = trace._known_program(self.operation)
        if self.addresses is None:
            return program
        check_addresses(self.operation, self.addresses, program.latents)
        kept = [a for a in program.latents if a not in self.addresses]
        for address in kept:
            site = program.sites[address]
            changing = [a for a in _parents(program, address) if a in self.addresses]
            if site.conditional and changing:
                raise UnsupportedError(
                    message(
                        f"conditional_smc got addresses without {at(address, site.source)}, which "
                        f'stands in a branch and depends on "{changing[0]}"',
                        needs="sites that come and go to be drawn with those they depend on",
                        why="a site that is kept has no value where it did not exist",
                        fix=f"addresses={[*self.addresses, address]}",
                    )
                )
        return condition(program, {a: trace.choices[a] for a in kept})


def _given(program: Program, choices: Choices, present: Choices) -> dict[str, Record]:
    """Give what the first particle follows."""
    return {
        a: Record(jnp.asarray(choices[a], program.sites[a].dtype), present.get(a))
        for a in program.latents
    }


def _parents(program: Program, address: str) -> list[str]:
    """List the sites whose draws a site depends on, directly or through recorded values."""
    found: list[str] = []
    for parent in program.sites[address].depends_on:
        recorded = program.sites[parent].kind == "deterministic"
        found += _parents(program, parent) if recorded else [parent]
    return found


class Conditional(Strategy):
    """Resample all particles but the first, which follows what is given."""

    def __init__(self, ess_threshold: float, ancestor_sampling: bool, prefix: str):
        self.ess_threshold, self.ancestor_sampling = ess_threshold, ancestor_sampling
        self.prefix, self.always_drawn = prefix, False

    def before(self, run: Run, place: Place, cloud: Cloud) -> Cloud:
        with run.scope():
            uneven = too_uneven(cloud.weights, self.ess_threshold)
            if self.always_drawn:
                return select_cloud(uneven, self.resampled(run, place, cloud), cloud)
            return choose_cloud(uneven, lambda c: self.resampled(run, place, c), cloud)

    def resampled(self, run: Run, place: Place, cloud: Cloud) -> Cloud:
        """Draw the ancestors of the others, which are exchangeable; the first one's stays."""
        weights = cloud.weights
        first = jnp.zeros((), jnp.result_type(int))
        if self.ancestor_sampling:
            first = choose_particle("ancestor", self.joined(run, place, cloud))
        scheme = MultinomialResampling(weights.log_weights, num=run.count - 1)
        ancestors = jnp.concatenate([first[None], sample("ancestors", scheme)])
        equal = jnp.zeros_like(weights.log_weights)
        moved = cloud.take(ancestors)
        return moved._replace(weights=weights.resampled_to(equal, weights.log_mean, 0.0))

    def joined(self, run: Run, place: Place, cloud: Cloud) -> Any:
        """Weigh every particle as the past of the rest of the given choices."""
        rest = rest_of("conditional_smc", place)
        held, levels = inputs_at(rest.jaxpr, place.env, cloud.values), levels_at(rest.onward, place)
        one = lambda lane: log_future(rest, held, lane, place.given, levels)  # noqa: E731
        return times(cloud.weights.log_weights, jax.vmap(one)(jnp.arange(run.count)))

    def after(self, run: Run, place: Place, cloud: Cloud) -> Cloud:
        return cloud

    def interpreter(self, lane: Any) -> Interpreter:
        return _Following(self.prefix, lane)


class _Following(Recording):
    """Draw and record; the first particle takes what is given in place of what is drawn."""

    name = "conditional_smc"

    def __init__(self, prefix: str, lane: Any):
        self.prefix, self.lane = prefix, lane

    def latent(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        plain, bare = with_operand(site, leaves, "scale", None, mapped=False)
        renamed = dataclasses.replace(plain, address=self.prefix + plain.address)
        drawn = sample_p.bind(*bare, site=renamed)[0]
        value = jnp.where(self.lane == 0, frame.given[site.address].value, drawn)
        if site.operands(leaves).scale is not None:
            density = log_prob(plain, bare, value)
            excess = jnp.where(density == -jnp.inf, 0.0, log_prob(site, leaves, value) - density)
            frame.add(jnp.sum(excess))
        frame.record(site, leaves, value)
        return value
