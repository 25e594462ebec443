"""The schemes: how each draws its offspring, and with which mass."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from ppl.errors import ArgumentError, message, suggest
from ppl.resampling.base import Resampling, offspring
from ppl.resampling.sums import cumsum, cumulate, points_below, running


def _split(x: Any) -> Any:
    """Split expected numbers of offspring into wholes and fractions.

    What is short of a whole number by rounding alone is that number. Residual multinomial
    resampling jumps there: equal weights have no residuals.
    """
    whole = jnp.floor(x + 16 * jnp.finfo(x.dtype).eps * (x + 1))
    return whole, jnp.maximum(x - whole, 0.0)


def _residual(weights: Any, num: int) -> Any:
    """Give the copies that are certain, and weights and number of those that are drawn."""
    copies, rest = _split(num * weights)
    left = jnp.maximum(num - jnp.sum(copies), 0.0)
    rest = jnp.where(jnp.any(rest > 0), rest, weights)
    return copies.astype(jnp.int32), rest / jnp.sum(rest), left.astype(jnp.int32)


def _intervals(weights: Any, num: int, ancestors: Any) -> Any:
    """Give the interval of (0, num) that is the i-th ancestor's, less i."""
    ends = jnp.cumsum(weights)
    ends = num * jnp.pad(ends / ends[-1], (1, 0))
    place = jnp.arange(num)
    return ends[ancestors] - place, ends[ancestors + 1] - place


def _log(x: Any) -> Any:
    """Take logarithms of nonnegative numbers, with gradients that stay finite at zero."""
    positive = x > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, x, 1.0)), jnp.where(x <= 0, -jnp.inf, x))


def _log_multinomial(counts: Any, log_weights: Any) -> Any:
    terms = jnp.where(counts > 0, counts * log_weights, 0.0) - gammaln(counts + 1.0)
    return gammaln(jnp.sum(counts) + 1.0) + jnp.sum(terms)


class MultinomialResampling(Resampling):
    """Draw every ancestor by weight, independently, and sort.

    **Meaning.** Numbers of offspring are multinomial. Sampled from sorted uniforms, which are
    cumulated exponential gaps.
    """

    def _noise(self, key: Any, shape: tuple[int, ...]) -> Any:
        return jax.random.exponential(key, (*shape, self.num + 1))

    def _below(self, noise: Any, weights: Any) -> Any:
        return points_below(noise, cumulate(weights, self.num), self.num)

    def _log_mass(self, log_weights: Any, ancestors: Any) -> Any:
        return _log_multinomial(offspring(ancestors, self.size), jax.nn.log_softmax(log_weights))


class ResidualMultinomialResampling(MultinomialResampling):
    """Give every particle the whole part of its expected offspring, and draw the rest by residual.

    **Meaning.** floor(num * W_i) copies are certain; what is missing is multinomial with the
    fractions as weights. A number within 16 roundings of a whole one counts as that.

    Source: Liu and Chen 1998, section 2.
    """

    def _below(self, noise: Any, weights: Any) -> Any:
        copies, rest, left = _residual(weights, self.num)
        return cumsum(copies) + points_below(noise, cumulate(rest, left), left)

    def _log_mass(self, log_weights: Any, ancestors: Any) -> Any:
        copies, rest, _ = _residual(jax.nn.softmax(log_weights), self.num)
        more = offspring(ancestors, self.size) - copies
        never = jnp.any((more < 0) | ((more > 0) & (rest == 0)))
        return jnp.where(never, -jnp.inf, _log_multinomial(jnp.maximum(more, 0), _log(rest)))


class StratifiedResampling(Resampling):
    """Draw ancestor i at a uniform point of the i-th of num equal strata of the total weight.

    **Meaning.** The ancestors are independent and sorted of themselves. Ancestor i is particle j
    with the probability that the stratum's and the particle's intervals overlap.

    Source: Kitagawa 1996, appendix.
    """

    def _noise(self, key: Any, shape: tuple[int, ...]) -> Any:
        return jax.random.bits(key, (*shape, self.num), jnp.uint32)

    def _below(self, noise: Any, weights: Any) -> Any:
        high, low = cumulate(weights, self.num)
        return high + (noise[jnp.minimum(high, noise.size - 1)] < low)

    def _log_mass(self, log_weights: Any, ancestors: Any) -> Any:
        lower, upper = _intervals(jax.nn.softmax(log_weights), self.num, ancestors)
        return jnp.sum(_log(jnp.minimum(upper, 1.0) - jnp.maximum(lower, 0.0)))


class SystematicResampling(StratifiedResampling):
    """Draw one uniform point for all strata.

    **Meaning.** Particle i has num * W_i offspring, rounded down or up. The mass of a vector is the
    length of the set of points at which every ancestor's interval is hit.

    Source: Carpenter, Clifford and Fearnhead 1999; Douc, Cappé and Moulines 2005, section 2.4.
    """

    def _noise(self, key: Any, shape: tuple[int, ...]) -> Any:
        return jax.random.bits(key, (*shape, 1), jnp.uint32)

    def _log_mass(self, log_weights: Any, ancestors: Any) -> Any:
        lower, upper = _intervals(jax.nn.softmax(log_weights), self.num, ancestors)
        return _log(jnp.minimum(jnp.min(upper), 1.0) - jnp.maximum(jnp.max(lower), 0.0))


class ResidualSystematicResampling(SystematicResampling):
    """Give every particle the whole part of its expected offspring, and draw the rest by one point.

    **Meaning.** The same measure as systematic resampling: whole parts move the ends of the
    particles' intervals by whole strata, and the point sees only fractions.

    Source: Bolić, Djurić and Hong 2004, "Resampling algorithms for particle filters".
    """


class SSPResampling(Resampling):
    """Round the expected offspring, settling one particle after the other against the next.

    **Meaning.** Particle i has num * W_i offspring, rounded down or up, and the roundings are
    negatively associated. One particle is open at a time; of it and the next, one is rounded, and
    the other stays open with the fraction that is left. What fraction that is does not depend on
    the draws, so that all of them are made at once.

    Source: Gerber, Chopin and Whiteley 2019, section 3.
    """

    def _noise(self, key: Any, shape: tuple[int, ...]) -> Any:
        return jax.random.uniform(key, (*shape, self.size))

    def _below(self, noise: Any, weights: Any) -> Any:
        high, low = cumulate(weights, self.num)
        open_ = jnp.pad(low[:-1], (1, 0))
        fraction = low - open_
        up = low < fraction  # fractions reach one: whichever is settled is rounded up
        x, y = jnp.where(up, -fraction, open_), jnp.where(up, -open_, fraction)
        x, y = x.astype(noise.dtype), y.astype(noise.dtype)
        passed_on = (noise * (x + y) < x) == up
        # A particle that is open after its turn is rounded as the next one to pass on says.
        order = jnp.arange(self.size, 0, -1, dtype=jnp.int32)
        found = jnp.where(passed_on, 2 * order + up, 0)
        nearest = running(jnp.maximum, found[::-1])[::-1]
        return high + jnp.pad(nearest[1:] & 1, (0, 1))

    def _log_mass(self, log_weights: Any, ancestors: Any) -> Any:
        copies, fractions = _split(self.num * jax.nn.softmax(log_weights))
        more = offspring(ancestors, self.size) - copies.astype(int)

        def step(carry: Any, particle: Any) -> Any:
            """Carry the open fraction, and by the open particle's rounding the chances of both."""
            open_, chances = carry
            fraction, extra = particle
            up = open_ + fraction >= 1
            x, y = jnp.where(up, 1 - fraction, open_), jnp.where(up, 1 - open_, fraction)
            first = jnp.where(x + y > 0, x / jnp.where(x + y > 0, x + y, 1.0), 1.0)
            pass_on = jnp.where(up, first, 1 - first)
            kept = jnp.where(extra == up, (1 - pass_on) * chances, 0.0)
            fresh = jnp.where(jnp.arange(2) == extra, pass_on * chances[up.astype(int)], 0.0)
            mass = jnp.sum(kept + fresh)
            chances = (kept + fresh) / jnp.where(mass > 0, mass, 1.0)
            return (open_ + fraction - up, chances), _log(mass)

        start = (jnp.arange(2) == more[0]).astype(fractions.dtype)
        _, terms = jax.lax.scan(step, (fractions[0], start), (fractions[1:], more[1:]))
        return jnp.sum(terms) + _log(jnp.sum(start))


#: The schemes by name.
SCHEMES: dict[str, type[Resampling]] = {
    "multinomial": MultinomialResampling,
    "stratified": StratifiedResampling,
    "systematic": SystematicResampling,
    "residual_multinomial": ResidualMultinomialResampling,
    "residual_systematic": ResidualSystematicResampling,
    "ssp": SSPResampling,
}


def scheme(choice: str | type[Resampling]) -> type[Resampling]:
    """Give the class of a scheme that was named, or is given.

    Args:
        choice: a key of `SCHEMES`, or a class derived from `Resampling`.

    Raises:
        ArgumentError: it is neither.
    """
    if isinstance(choice, str) and choice in SCHEMES:
        return SCHEMES[choice]
    if isinstance(choice, type) and issubclass(choice, Resampling) and choice is not Resampling:
        return choice
    raise ArgumentError(
        message(
            f"resampling got the scheme {choice!r}",
            needs="a name of ppl.resampling.SCHEMES or a class derived from Resampling",
            why=suggest(str(choice), SCHEMES),
            fix='resample="systematic"',
        )
    )
