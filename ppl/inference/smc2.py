"""`smc2`: a population of parameters, each with a particle filter of its own."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl.counts import count
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference.particle_marginal import (
    Point,
    Proposal,
    Space,
    Walk,
    move,
    require_proper,
    space_of,
)
from ppl.inference.particles import Cloud, Weights, choose_cloud, relative_error, resample
from ppl.inference.particles.bootstrap import bootstrap_settings, too_uneven
from ppl.inference.pseudo_marginal import (
    Filter,
    Particle,
    as_parameters,
    filtered,
    prior,
)
from ppl.inference.segments import between, iteration, lengths
from ppl.program import Program
from ppl.resampling import Resampling
from ppl.semantics.handlers import do
from ppl.semantics.population import Population
from ppl.semantics.weighted import weighted
from ppl.staging import stage
from ppl.statements import scope


@named_keywords
def smc2(
    program: Program,
    parameters: Sequence[str],
    num_parameters: int,
    num_particles: int,
    ess_threshold: float = 0.5,
    num_moves: int = 1,
    move_every: int | None = None,
    proposal: Proposal | None = None,
    resample: str | type[Resampling] = "systematic",
    trajectories: bool = True,
) -> Program:
    """Filter parameters and states at once.

    **Meaning.** A population for the program's measure, parameters and all else. Each of
    N = `num_parameters` draws of the parameters runs a filter of its own, and is weighed by how the
    filter's evidence estimate grows with each iteration of a `scan` of the program that scores.
    Parameters are resampled where weights have become uneven, and moved by particle marginal
    Metropolis-Hastings for the data so far, which runs the filter again from the start. Evidence
    and weighted sums are unbiased, on the natural scale, for any numbers of particles, without
    moves or where `proposal` and `move_every` are given. Moves because of uneven weights, and the
    default proposal, which is fitted to the population, leave them consistent, with a bias of
    O(1 / N): what decides on a move must not depend on what is moved.

    Args:
        program: any program whose latent sites are bounded in number. Cuts are before the
            iterations of its outermost `scan`s that score.
        parameters: addresses of latent sites that stand outside of loops and branches, and depend
            on no other latent site than parameters. Their priors are proper.
        num_parameters: number N of draws of the parameters.
        num_particles: number of particles of each filter.
        ess_threshold: resample where the effective sample size is below this part of N, and in the
            filters of theirs; 1 for whenever weights differ.
        num_moves: Metropolis-Hastings steps at a time; 0 for none.
        move_every: move before each iteration of a `scan` whose index is a positive multiple of
            this, at O(T^2) cost for T iterations; None moves when parameters were resampled.
        proposal: a model function from the current parameters, by address, that draws the next at
            the same addresses. None takes Gaussian steps in unconstrained space, with 2.38^2 / d
            times the covariance of the weighted population.
        resample: name or class of a scheme of `ppl.resampling`.
        trajectories: keep one particle's choices with each draw; False keeps the parameters alone.

    Returns:
        A program of `Population`. Its `steps` has a row for each iteration: "ess" of the weights,
        "log_evidence" so far, "resampled", whether parameters were resampled before it, and
        "acceptance_rate", the mean acceptance probability of the moves before it (0 if none were
        made).

    Raises:
        ArgumentError: a setting is out of range.
        AddressError: a parameter is not a latent site, or the proposal draws others.
        UnsupportedError: a parameter stands in a loop or branch, depends on other draws, or is
            discrete where there is no proposal; or its prior is flat and improper.

    Source: Chopin, Jacob and Papaspiliopoulos (2013), with a fixed number of state particles.
    """
    names = as_parameters("smc2", program, parameters)
    inner = Filter(names, *bootstrap_settings("smc2", num_particles, resample, ess_threshold))
    number = count("smc2", "num_parameters", num_parameters)
    moves = count("smc2", "num_moves", num_moves, 0)
    every = None if move_every is None else count("smc2", "move_every", move_every)
    if not moves and not (proposal is None and every is None):
        raise ArgumentError(
            message(
                f"smc2 got num_moves=0 with proposal={proposal!r}, move_every={move_every!r}",
                needs="moves for these to be settings of",
                fix="num_moves=1",
            )
        )
    theirs = prior(program, names)
    require_proper("smc2", theirs, 'give "{}" a prior that has a total mass')
    space = space_of("smc2", theirs, proposal) if moves else None
    filter = filtered(program, inner, bool(trajectories))
    about = _About(program, filter, theirs, space, number, moves, every, *inner[2:])
    return stage(_smc2, (about,), name=f"smc2({program.name})")


class _About(NamedTuple):
    """What the algorithm is made with."""

    program: Program
    filter: Program
    prior: Program
    space: Space | None
    number: int
    num_moves: int
    move_every: int | None
    scheme: type[Resampling]
    ess_threshold: float

    def at(self, position: Any) -> Any:
        """Give the parameters that a position stands for."""
        return position if self.space is None else self.space.at(position).parameters


def _smc2(about: _About) -> Population:
    def started(_: Any) -> Any:
        with scope("prior"):
            run = weighted(about.prior)()
        parameters = run.value
        position = parameters if about.space is None else about.space.start(parameters)
        return Point(position, jnp.zeros_like(run.log_weight), None), run.log_weight

    points, log_weights = jax.vmap(started)(jnp.arange(about.number))
    weights = Weights.equal(about.number).times(log_weights)
    first, accepted = jnp.arange(about.number), jnp.zeros(about.number, weights.ess.dtype)
    cloud = Cloud({"points": points, "first": first, "accepted": accepted}, weights)
    steps = []
    with scope("filter"):
        cloud = _advanced(about, cloud, between, 0)
    for k, length in enumerate(lengths(about.filter)):
        with scope(f"loop{k + 1}"):
            step = functools.partial(_step, about, k)
            cloud, more = jax.lax.scan(step, cloud, jnp.arange(length))
        steps.append(more)
        with scope("filter"):
            cloud = _advanced(about, cloud, between, k + 1)
    return _finished(about, cloud, steps)


def _step(about: _About, k: int, cloud: Cloud, t: Any) -> tuple[Cloud, dict[str, Any]]:
    """Take all filters through an iteration of a loop, resampled and moved before it if need be."""
    nothing = jnp.zeros_like(cloud.values["accepted"])
    cloud = Cloud({**cloud.values, "accepted": nothing}, cloud.weights.counted())
    uneven = too_uneven(cloud.weights, about.ess_threshold)
    cloud = choose_cloud(uneven, lambda c: resample(c, about.scheme), cloud)
    if about.space is not None:
        every = about.move_every
        due = uneven if every is None else (t > 0) & (t % every == 0)
        with scope("move"):
            cloud = choose_cloud(due, lambda c: _moved(about, c, k, t), cloud)
    with scope("filter"):
        cloud = _advanced(about, cloud, iteration, k, t)
    weights = cloud.weights
    return cloud, {
        "ess": weights.ess,
        "log_evidence": weights.log_evidence + weights.log_mean,
        "resampled": weights.resampled,
        "acceptance_rate": jnp.mean(cloud.values["accepted"]),
    }


def _advanced(about: _About, cloud: Cloud, piece: Callable[..., Any], *place: Any) -> Cloud:
    """Run a piece of every filter, and weigh its parameters by what it scores."""

    def one(point: Point) -> tuple[Point, Any]:
        filter = do(about.filter, about.at(point.position))
        run = weighted(stage(piece, (filter, point.held, *place)))()
        total = point.log_evidence + run.log_weight
        return Point(point.position, total, run.value), run.log_weight

    points, log_factor = jax.vmap(one)(cloud.values["points"])
    return Cloud({**cloud.values, "points": points}, cloud.weights.times(log_factor))


def _moved(about: _About, cloud: Cloud, k: int, t: Any) -> Cloud:
    """Move each point by a kernel for the data so far."""
    space = about.space
    assert space is not None
    root = _root(cloud) if isinstance(space, Walk) else None

    def again(points: Point, _: Any) -> tuple[Point, Any]:
        def one(point: Point) -> tuple[Point, Any]:
            return move(space, lambda p: _rerun(do(about.filter, p), k, t), point, root)

        return jax.vmap(one)(points)

    points, accepted = jax.lax.scan(again, cloud.values["points"], length=about.num_moves)
    return cloud._replace(values={**cloud.values, "points": points, "accepted": accepted.mean(0)})


def _rerun(filter: Program, k: int, t: Any) -> tuple[Any, Any]:
    """Run a filter from the start up to the t-th iteration of the k-th loop."""

    def go(state: Any, total: Any, piece: Callable[..., Any], *place: Any) -> tuple[Any, Any]:
        run = weighted(stage(piece, (filter, state, *place)))()
        return run.value, total + run.log_weight

    state, total = go(None, 0.0, between, 0)
    for j, length in enumerate(lengths(filter)[: k + 1]):
        last = length if j < k else t

        def step(carry: Any, i: Any, j: int = j, last: Any = last) -> tuple[Any, None]:
            def run(*carry: Any) -> Any:
                return go(*carry, iteration, j, i)

            return jax.lax.cond(i < last, run, lambda *carry: carry, *carry), None

        (state, total), _ = jax.lax.scan(step, (state, total), jnp.arange(length))
        if j < k:
            state, total = go(state, total, between, j + 1)
    return total, state


def _root(cloud: Cloud) -> Any:
    """Give a square root of the covariance of the default steps."""
    z = cloud.values["points"].position
    fine = jnp.all(jnp.isfinite(z), axis=1) & (cloud.weights.log_weights > -jnp.inf)
    z = jnp.where(fine[:, None], z, 0.0)
    w = jax.nn.softmax(jnp.where(fine, cloud.weights.log_weights, -jnp.inf), where=fine)
    off = z - w @ z
    covariance = (w[:, None] * off).T @ off
    size = z.shape[1]
    jitter = 1e-6 * (1.0 + jnp.trace(covariance)) * jnp.eye(size, dtype=z.dtype)
    return 2.38 / np.sqrt(size) * jnp.linalg.cholesky(covariance + jitter)


def _finished(about: _About, cloud: Cloud, steps: list[dict[str, Any]]) -> Population:
    weights = cloud.weights
    joined = {k: jnp.concatenate([s[k] for s in steps]) for k in steps[0]} if steps else {}
    points = cloud.values["points"]
    particle: Particle = points.held
    choices = {**particle.choices, **jax.vmap(about.at)(points.position)}
    return Population(
        particle.value,
        weights.log_weights,
        weights.log_evidence + weights.log_mean,
        {a: choices[a] for a in about.program.latents if a in choices},
        about.program,
        relative_error(weights, cloud.values["first"]),
        particle.present,
        joined,
        cloud.values["first"],
    )
