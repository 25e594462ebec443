"""One run of a program whose derivative is unbiased: what each site becomes.

Every draw is made with the derivative taken off its parameters, so that derivatives pass only where
an estimator says. A later run under other values at some sites (`Known.override`) makes the draws
of an earlier one again wherever their distribution is the same: what both have in common they
share, and the law of each is as if it had been drawn alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution

from ppl.distributions import Seed, describe
from ppl.errors import UnsupportedError, at, message
from ppl.inference.vi.alternatives import (
    Alternatives,
    enumerating,
    measure_valued,
    supported,
)
from ppl.inference.vi.draws import (
    Drawn,
    Known,
    Tally,
    parameters,
    passing,
    probability_of,
    same,
    scored,
    stopped,
    tallied,
    wide,
)
from ppl.inference.vi.estimators import (
    Enum,
    GumbelSoftmax,
    Ignore,
    Implicit,
    MeasureValued,
    Reinforce,
    Reparam,
    StraightThrough,
)
from ppl.inference.vi.noise import Noise, implicit_noise_of, noise_of
from ppl.inference.vi.relaxed import refuse_unrelaxed, relaxed
from ppl.interpreter import Frame, Interpreter
from ppl.primitives import (
    GradientEstimator,
    Operands,
    Site,
    facts,
    lanes,
    sample_p,
    value_of,
    with_operand,
)
from ppl.semantics.handlers import lifted


def estimator_at(site: Site, d: Distribution, chosen: GradientEstimator | None) -> Any:
    """Give the estimator of a site: what was chosen, or what suits the distribution."""
    if chosen is None:
        chosen = Reinforce() if noise_of(d) is None else Reparam()
    if isinstance(chosen, Reinforce):
        _refuse_moving(site, d)
    if isinstance(chosen, StraightThrough | GumbelSoftmax):
        straight = isinstance(chosen, StraightThrough)
        refuse_unrelaxed(site, d, "straight_through" if straight else "gumbel_softmax")
    noise = {Reparam: noise_of, Implicit: implicit_noise_of}.get(type(chosen))
    if noise is not None and noise(d) is None:
        name = type(chosen).__name__.lower()
        raise UnsupportedError(
            message(
                f"ppl.vi.{name} got {describe(d)} at {at(site.address, site.source)}",
                needs="a continuous distribution whose draws are a differentiable function of its "
                "parameters",
                why="there is no such function here",
                fix=f'ppl.sample("{site.address}", ..., grad=ppl.vi.reinforce())'
                + (", or ppl.vi.enum() if its values are few" if site.discrete else ""),
            )
        )
    return chosen


def _refuse_moving(site: Site, d: Distribution) -> None:
    """Refuse the score of a density whose support moves: it does not know of the ends."""
    moving = site.domain is not None and any(
        b is None or isinstance(b, int) for b in site.domain.bounds
    )
    if not site.discrete and moving:
        raise UnsupportedError(
            message(
                f"ppl.vi.reinforce got {describe(d)} at {at(site.address, site.source)}, whose "
                f"support, {site.support}, has ends that are computed",
                needs="a support that does not depend on parameters",
                why="what is gained and lost at the ends is no part of the score",
                fix=f'ppl.sample("{site.address}", ..., grad=ppl.vi.reparam())',
            )
        )


def site_estimator(site: Site, leaves: Any) -> Any:
    """Give the estimator of a site from its operands."""
    operands = site.operands(leaves)
    assert operands.distribution is not None
    return estimator_at(site, operands.distribution, operands.grad)


class Surrogate(Interpreter):
    """Draw every site as its estimator wants, and keep what the scored ones need.

    Those in `apart` stand once, outside of loops and branches, and keep it by element; what the
    others need is added up.
    """

    name = "ppl.vi.expectation"
    unbounded, rebinds, weighs = False, True, True

    def __init__(
        self,
        laws: dict[Any, int],
        apart: frozenset[str],
        prefix: str = "",
        *,
        forks: bool = True,
    ):
        self.laws, self.apart, self.prefix, self.forks = laws, apart, prefix, forks
        self.supports: dict[str, Any] = {}

    def zero(self) -> Any:
        nothing = jnp.zeros((), jnp.result_type(float))
        return Tally(*[nothing] * len(Tally._fields))

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        if site.kind != "latent":
            return value_of(site, leaves)
        estimator = site_estimator(site, leaves)
        if isinstance(estimator, Reparam | Implicit | GumbelSoftmax):
            return self._moved(frame, site, leaves, estimator)
        return self._drawn(frame, site, leaves, estimator)

    def _moved(self, frame: Frame, site: Site, leaves: list[Any], estimator: Any) -> Any:
        def noise(operands: Operands) -> Noise:
            d, chosen = operands.distribution, operands.grad
            assert d is not None
            if isinstance(chosen, GumbelSoftmax):
                heat = chosen.temperature
                return Noise(Seed(), lambda d, seed: relaxed(d, seed, heat, hard=chosen.hard))
            found = (noise_of if isinstance(estimator, Reparam) else implicit_noise_of)(d)
            assert found is not None
            return found

        def forward(operands: Operands, x: Any) -> Any:
            assert operands.distribution is not None
            return jnp.asarray(noise(operands).forward(operands.distribution, x), site.dtype)

        known, law = frame.given.get(site.address), self._law(site)
        inner, inner_leaves = _beside(site, leaves, lambda o: noise(o).base)
        x = self._take(inner, inner_leaves, known, law)
        frame.record(site, leaves, Drawn(x, law))
        return lanes(site, forward)(leaves, x)

    def _drawn(self, frame: Frame, site: Site, leaves: list[Any], estimator: Any) -> Any:
        bare_site, bare_leaves = with_operand(site, leaves, "grad", None, mapped=False)
        frozen = [stopped(x) for x in bare_leaves]
        known, law = frame.given.get(site.address), self._law(site)
        value = stopped(self._take(bare_site, frozen, known, law))
        kept = Drawn(value, law, parameters(site, leaves))
        if known is not None and known.listed:
            kept = Drawn(value, law, probability=lanes(site, probability_of)(leaves, value))
        elif isinstance(estimator, Reinforce):
            score = scored(site, leaves, value, estimator)
            if site.address in self.apart:
                kept = kept._replace(score=score)
            else:
                frame.add(tallied(score))
        elif isinstance(estimator, Enum | MeasureValued):
            if not self.forks:
                return value
            kept = kept._replace(
                alternatives=self._alternatives(bare_site, bare_leaves, value, estimator)
            )
        elif not isinstance(estimator, Ignore | StraightThrough):
            raise AssertionError(f"an estimator without a rule: {estimator!r}")
        frame.record(site, leaves, kept)
        if isinstance(estimator, StraightThrough):
            return lanes(site, passing)(leaves, value)
        return value

    def _law(self, site: Site) -> Any:
        """Number the distribution of a site: equal for equal parameters of one kind only."""
        return jnp.full(site.sizes, self.laws.setdefault(site.tree, len(self.laws)))

    def _take(self, site: Site, leaves: list[Any], known: Known | None, law: Any) -> Any:
        if known is not None and known.shared:
            value = known.value
        else:
            (value,) = self._bind(site, leaves)
            if known is not None:
                alike = same(site, leaves, known, law)
                value = jnp.where(wide(alike, value), known.value, value)
        if known is not None and known.mask is not None:
            value = jnp.where(wide(known.mask, value), known.override, value)
        return value

    def _bind(self, site: Site, leaves: list[Any]) -> Any:
        return sample_p.bind(
            *leaves, site=dataclasses.replace(site, address=self.prefix + site.address)
        )

    def _alternatives(self, site: Site, leaves: Any, value: Any, estimator: Any) -> Alternatives:
        d = site.operands(leaves).distribution
        assert d is not None
        if isinstance(estimator, Enum):
            forking, listed = enumerating(site), supported(site, d)
            # In exclusive branches an address may have other values: all are listed.
            old = self.supports.setdefault(site.address, listed)
            if not np.array_equal(old, listed):
                listed = np.unique(np.concatenate([old, listed]), axis=0)
            self.supports[site.address] = listed
        else:
            forking = measure_valued(site, d)
        extra = jnp.zeros(site.sizes)
        if forking.extra is not None:
            extra_of = forking.extra
            inner, extra_leaves = _beside(site, leaves, lambda o: extra_of(_known(o)))
            inner = dataclasses.replace(inner, address=f"{site.address}/alternatives")
            (extra,) = self._bind(inner, extra_leaves)

        def one(operands: Operands, value: Any, extra: Any) -> Alternatives:
            assert operands.distribution is not None
            found = forking.of(operands.distribution, value, extra)
            values = jnp.asarray(found.values, site.dtype)
            if operands.present is None:
                return Alternatives(values, found.coefficients)
            return Alternatives(values, jnp.where(operands.present, found.coefficients, 0.0))

        return lanes(site, one)(leaves, value, extra)


def _known(operands: Operands) -> Distribution:
    assert operands.distribution is not None
    return operands.distribution


def _beside(site: Site, leaves: list[Any], make: Callable[[Operands], Any]) -> Any:
    """Give a site's place another distribution, off which the derivative is taken."""
    made: list[Distribution] = []

    def one(operands: Operands) -> Operands:
        made.append(make(operands))  # of one lane, whose draw may have another shape
        return operands._replace(distribution=made[-1], grad=None)

    inner, new = lifted(site, leaves, one)
    dtype = jnp.uint32 if isinstance(made[-1], Seed) else site.dtype
    shape, of_all = tuple(made[-1].shape()), inner.operands(new).distribution
    assert of_all is not None
    inner = dataclasses.replace(inner, shape=shape, dtype=dtype, plates=(), **facts(of_all))
    return inner, [stopped(x) for x in new]
