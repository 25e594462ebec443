"""`pseudo_marginal`: a program that scores the evidence as it goes, given its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl import _jax
from ppl._types import Choices
from ppl.distributions import Categorical
from ppl.errors import (
    ArgumentError,
    UnsupportedError,
    at,
    check_addresses,
    message,
    named_keywords,
)
from ppl.inference.particles import Cloud, Place, Run
from ppl.inference.particles.bootstrap import Bootstrap, bootstrap_settings
from ppl.inference.particles.cloud import read
from ppl.primitives import sample_p
from ppl.program import Program, require_program
from ppl.resampling import Resampling
from ppl.semantics.cuts import cut, stage_equation
from ppl.semantics.population import Population
from ppl.sites import SiteInfo
from ppl.staging import stage
from ppl.statements import factor, sample, scope


class Particle(NamedTuple):
    """One run of a program: its value, its choices, and which of those exist."""

    value: Any
    choices: Choices
    present: Choices


@named_keywords
def pseudo_marginal(
    program: Program,
    parameters: Sequence[str],
    num_particles: int,
    resample: str | type[Resampling] = "systematic",
    ess_threshold: float = 0.5,
    collapse: bool = True,
) -> Program:
    """Draw the parameters once, and run a particle filter for the rest that scores its evidence.

    **Meaning.** The measure of `program`, exactly. The parameters are drawn as the program draws
    them; all else is drawn by N particles, of which one is the outcome. After each piece that
    scores, the mean weight of the particles is scored in their place, so that what has been scored
    is at every point an unbiased estimate of the evidence so far, given the parameters. A `scan`
    of the program that scores stays one: `ppl.smc` of the result is cut at its iterations, which is
    SMC^2 without moves; `ppl.kernels.pmmh` is a Metropolis-Hastings kernel for it.

    Args:
        program: any program whose latent sites are bounded in number.
        parameters: addresses of latent sites that stand outside of loops and branches, and depend
            on no other latent site than parameters; one address may be a string.
        num_particles: number of particles N.
        resample: name or class of a scheme of `ppl.resampling`.
        ess_threshold: resample before draws where the effective sample size is below this part of
            N; 1 for whenever weights differ.
        collapse: draw one particle as the value; False gives all as a `Population`, of evidence 1.

    Raises:
        ArgumentError: a setting is out of range.
        AddressError: a parameter is not a latent site of the program.
        UnsupportedError: a parameter stands in a loop or branch, or depends on other draws.

    Source: Andrieu, Doucet and Holenstein (2010), section 2.4; the scores between draws are the
        suspended form of Ścibior et al. (POPL 2018), and the outer filter of Chopin, Jacob and
        Papaspiliopoulos (2013) runs on it.
    """
    names = as_parameters("pseudo_marginal", program, parameters)
    given = bootstrap_settings("pseudo_marginal", num_particles, resample, ess_threshold)
    settings = Filter(names, *given)
    name = f"pseudo_marginal({program.name})"
    if not collapse:
        return stage(_population, (program, settings, True), name=name)
    return stage(_value, (program, settings), name=name)


class Filter(NamedTuple):
    """The settings of the particle filter that runs given parameters."""

    parameters: tuple[str, ...]
    num_particles: int
    scheme: type[Resampling]
    ess_threshold: float


def filtered(program: Program, settings: Filter, trajectories: bool) -> Program:
    """Give the pseudo-marginal form of a program, with the particle's choices in the value."""
    return stage(_particle, (program, settings, trajectories), name=program.name)


def _value(program: Program, settings: Filter) -> Any:
    return _particle(program, settings, False).value


def _particle(program: Program, settings: Filter, trajectories: bool) -> Particle:
    population = _population(program, settings, trajectories)
    choice: Any = Categorical(logits=population.log_weights)
    with scope(_name(program)):
        index = sample("particle", choice)
    whole = Particle(population.values, population.choices, population.present)
    return jax.tree.map(lambda x: x[index], whole)


def _population(program: Program, settings: Filter, trajectories: bool) -> Population:
    strategy = _Pushing(settings.scheme, settings.ess_threshold)
    run = Run(strategy, settings.num_particles, trajectories, settings.parameters, _name(program))
    return run.program(program)


def _name(program: Program) -> str:
    name = "filter"
    while any(site.address.startswith(name) for site in program.sites):
        name += "'"  # a filter inside has its own sites
    return name


class _Pushing(Bootstrap):
    """Score the mean weight after scores, in the place of the particles' weights."""

    def after(self, run: Run, place: Place, cloud: Cloud) -> Cloud:
        weights = cloud.weights
        with run.scope():
            factor("evidence", weights.log_mean)
        # A run of weight zero goes on with any weights.
        dead = weights.log_mean == -jnp.inf
        scaled = jnp.where(dead, 0.0, weights.log_weights - jnp.where(dead, 0.0, weights.log_mean))
        return cloud._replace(weights=weights._replace(log_weights=scaled).times(0.0))


# --- Parameters ---------------------------------------------------------------------------------


def prior(program: Program, parameters: tuple[str, ...]) -> Program:
    """Give the program of the parameters alone; its value has them by address."""
    flat, _ = cut(program, parameters)
    return stage(_prior, (flat, parameters), name=f"the parameters of {program.name}")


def _prior(flat: Program, parameters: tuple[str, ...]) -> Choices:
    jaxpr = flat.structure.jaxpr
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*flat.consts, *flat.args], strict=True))
    sites = _drawn(jaxpr, parameters)
    for eqn in _needed(jaxpr, sites):
        outs = stage_equation(eqn, [read(env, {}, v) for v in eqn.invars])
        env.update(zip(eqn.outvars, outs, strict=True))
    return {a: env[eqn.outvars[0]] for a, eqn in sites.items()}


def _needed(jaxpr: Any, sites: dict[str, Any]) -> list[Any]:
    """List the equations that the parameters are computed by, themselves included."""
    wanted, kept = {eqn.outvars[0] for eqn in sites.values()}, []
    for eqn in reversed(jaxpr.eqns):
        if wanted.intersection(eqn.outvars):
            kept.append(eqn)
            wanted.update(v for v in eqn.invars if not isinstance(v, _jax.Literal))
    return kept[::-1]


def _drawn(jaxpr: Any, parameters: Sequence[str]) -> dict[str, Any]:
    """Find the equations that draw the parameters, outside of loops and branches."""
    sites = {eqn.params["site"].address: eqn for eqn in jaxpr.eqns if eqn.primitive is sample_p}
    return {a: sites[a] for a in parameters if a in sites}


def as_parameters(operation: str, program: Program, parameters: Sequence[str]) -> tuple[str, ...]:
    """Check the addresses of the parameters."""
    require_program(operation, program)
    names = (parameters,) if isinstance(parameters, str) else tuple(parameters)
    check_addresses(operation, names, program.latents)
    if len(set(names)) < len(names):
        raise ArgumentError(
            message(
                f"{operation} got parameters={parameters!r}",
                needs="different addresses",
                fix=f"parameters={tuple(dict.fromkeys(names))}",
            )
        )
    flat, region = cut(program, names)
    drawn = _drawn(flat.structure.jaxpr, names)
    for name in names:
        site = flat.sites[name]
        if name not in drawn:
            raise _refused(operation, site, f"stands inside {' '.join(site.path)}")
        others = (e for e in _needed(region.jaxpr, {name: drawn[name]}) if _jax.contains_effect(e))
        if drawn[name].outvars[0] in region.random or any(
            e.primitive is not sample_p for e in others
        ):
            raise _refused(operation, site, f"depends on {', '.join(site.depends_on)}")
    return names


def _refused(operation: str, site: SiteInfo, what: str) -> UnsupportedError:
    return UnsupportedError(
        message(
            f"{operation} got the parameter {at(site.address, site.source)}, which {what}",
            needs="parameters outside of loops and branches, computed from parameters alone",
            why="they are drawn once for all particles, before what each of these draws",
            fix="leave it out, or add the sites that it depends on",
        )
    )
