"""Weighted particles on their way through a program, and how they are resampled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl import _jax
from ppl.inference.particles.forking import fork
from ppl.resampling import Resampling
from ppl.statements import sample

#: Among a particle's values: its index when the region began, and when the iteration did.
START, ITERATION = "start", "iteration"


class Weights(NamedTuple):
    """The weights of N particles, and what is known of them.

    The evidence estimate is `log_evidence` + `log_mean`: what resampling took out, and what the
    weights hold now. `log_noise` is by how much resampling has made it rarer for two particles to
    descend from different ones.
    """

    log_weights: Any
    log_evidence: Any
    log_mean: Any
    ess: Any
    resampled: Any
    log_noise: Any

    @classmethod
    def equal(cls, count: int) -> Weights:
        """N particles of weight one."""
        zero = jnp.zeros((), jnp.result_type(float))
        full = jnp.full((), count, zero.dtype)
        noise = zero + (-math.log1p(-1 / count) if count > 1 else jnp.nan)
        return cls(jnp.zeros(count, zero.dtype), zero, zero, full, jnp.zeros((), bool), noise)

    def times(self, log_factor: Any) -> Weights:
        """Multiply every particle's weight."""
        log_weights = self.log_weights + log_factor
        log_mean, ess = mean_and_ess(log_weights)
        return self._replace(log_weights=log_weights, log_mean=log_mean, ess=ess)

    def resampled_to(self, log_weights: Any, log_mean: Any, log_noise: Any) -> Weights:
        """Take a mean weight out into the evidence, and go on with other weights.

        If every weight was zero, so is every weight then; if one was no number, none is one.
        """
        dead = self.log_mean == -jnp.inf
        log_weights = jnp.where(dead, -jnp.inf, log_weights)
        log_weights = jnp.where(jnp.isnan(log_mean), jnp.nan, log_weights)
        evidence = self.log_evidence + jnp.where(dead, 0.0, log_mean)
        known = mean_and_ess(log_weights)
        resampled = jnp.ones((), bool)
        return Weights(log_weights, evidence, *known, resampled, self.log_noise + log_noise)

    def counted(self) -> Weights:
        """Forget that the particles were resampled before this step."""
        return self._replace(resampled=jnp.zeros((), bool))


def mean_and_ess(log_weights: Any) -> tuple[Any, Any]:
    """Give the log of the mean weight, and Kish's effective sample size; 0 if all weights are."""
    top = jnp.max(log_weights)
    scale = jnp.where(top == -jnp.inf, 0.0, top)
    weights = jnp.exp(log_weights - scale)
    total, squares = jnp.sum(weights), jnp.sum(weights * weights)
    count = math.log(log_weights.shape[0])
    dead = total == 0
    log_mean = jnp.where(dead, -jnp.inf, scale + jnp.log(jnp.where(dead, 1.0, total)) - count)
    return log_mean, jnp.where(dead, 0.0, total * total / jnp.where(dead, 1.0, squares))


class Cloud(NamedTuple):
    """Particles between two parts: by variable (or name) what each of them holds, and weights."""

    values: dict[Any, Any]
    weights: Weights

    def keep(self, variables: set[Any]) -> Cloud:
        """Drop variables that are not needed any more; what has a name stays."""
        live = {k: x for k, x in self.values.items() if isinstance(k, str) or k in variables}
        return self._replace(values=live)

    def take(self, ancestors: Any) -> Cloud:
        """Put the chosen particles in the place of all."""
        held = {k: jax.tree.map(lambda x: x[ancestors], v) for k, v in self.values.items()}
        return self._replace(values=held)

    def fork(self, ancestors: Any) -> tuple[Cloud, Any]:
        """Do the same with sorted ancestors, in whatever order copies little; give that order."""
        held, order = fork(list(self.values.values()), ancestors)
        return self._replace(values=dict(zip(self.values, held, strict=True))), order


def choose_cloud(flag: Any, change: Any, cloud: Cloud) -> Cloud:
    """Change the particles where a flag says so: one branch of the program."""
    names = list(cloud.values)

    def changed(values: list[Any], weights: Weights) -> Any:
        new = change(Cloud(dict(zip(names, values, strict=True)), weights))
        return [new.values[k] for k in names], new.weights

    def same(values: list[Any], weights: Weights) -> Any:
        return values, weights

    values, weights = jax.lax.cond(flag, changed, same, list(cloud.values.values()), cloud.weights)
    return Cloud(dict(zip(names, values, strict=True)), weights)


def select_cloud(flag: Any, one: Cloud, other: Cloud) -> Cloud:
    """Take one cloud or the other by a flag, where both have been made."""
    pick = lambda x, y: jnp.where(flag, x, y)  # noqa: E731
    values = {k: jax.tree.map(pick, v, other.values[k]) for k, v in one.values.items()}
    return Cloud(values, jax.tree.map(pick, one.weights, other.weights))


def resample(cloud: Cloud, scheme: type[Resampling], log_potential: Any = None) -> Cloud:
    """Draw ancestors and make all weights equal: the measure stays, whatever is chosen.

    With a potential, ancestors are drawn by weight times potential, and weights are its inverse.
    """
    weights = cloud.weights
    tilt = jnp.zeros_like(weights.log_weights) if log_potential is None else log_potential
    tilted = jnp.where(weights.log_weights == -jnp.inf, -jnp.inf, weights.log_weights + tilt)
    ancestors = sample("ancestors", scheme(tilted))
    log_mean, ess = mean_and_ess(tilted)
    copies = jnp.zeros_like(tilted).at[ancestors].add(1.0)
    count = tilted.shape[0]
    # How likely two draws by weight are of different particles, over how many pairs now are.
    apart, now = 1 - 1 / ess, 1 - jnp.sum((copies / count) ** 2)
    log_noise = jnp.where(now > 0, jnp.log(apart) - jnp.log(jnp.where(now > 0, now, 1.0)), jnp.nan)
    moved, ancestors = cloud.fork(ancestors)
    return moved._replace(weights=weights.resampled_to(-tilt[ancestors], log_mean, log_noise))


def relative_error(weights: Weights, first: Any) -> Any:
    """Estimate the standard error of the log evidence from one run.

    `first` has every particle's ancestor at the start. NaN if all particles have the same one, as
    the run then says nothing of how runs differ.

    Source: Lee and Whiteley (2018), the estimator of the relative variance. They correct by what
    multinomial resampling adds on average, N / (N - 1) each time; here it is what the resampling
    added, which holds for the other schemes too.
    """
    top = jnp.max(weights.log_weights)
    share = jax.nn.softmax(jnp.where(top == -jnp.inf, 0.0, weights.log_weights))
    families = jnp.zeros_like(share).at[first].add(share)
    apart = jnp.sum(families * (1.0 - families))  # the probability of two different families
    variance = 1.0 - jnp.exp(weights.log_noise) * apart
    several = jnp.sum(families > 0) > 1  # shares of one family may not add up to one exactly
    known = several & (top > -jnp.inf) & (variance >= 0)
    return jnp.where(known, jnp.sqrt(jnp.where(known, variance, 0.0)), jnp.nan)


def read(env: Mapping[Any, Any], values: Mapping[Any, Any], atom: Any) -> Any:
    """Look an atom up: a literal, what differs between particles, or what is one for all."""
    if isinstance(atom, _jax.Literal):
        return atom.val
    return values[atom] if atom in values else env[atom]


def among(values: Mapping[Any, Any], atom: Any) -> bool:
    """Tell whether an atom is one of the values that differ between particles."""
    return not isinstance(atom, _jax.Literal) and atom in values


def moved(source: int, to: int) -> Callable[[Any], Any]:
    """Give the function that moves an axis."""
    return lambda x: jnp.moveaxis(x, source, to)
