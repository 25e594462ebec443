"""`expectation`: a program of unbiased estimates whose derivatives are unbiased too."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl._types import PyTree
from ppl.context import context
from ppl.counts import count
from ppl.dataflow import ancestors
from ppl.errors import (
    ArgumentError,
    message,
    named_keywords,
)
from ppl.inference.vi.checking import check
from ppl.inference.vi.downstream import gathered, laid_along, split
from ppl.inference.vi.draws import Drawn, Known, Score, wide
from ppl.inference.vi.surrogate import Surrogate
from ppl.interpreter import Frame, Interpreter, Record, evaluate, placed_sites
from ppl.primitives import Site, value_of
from ppl.program import Program, require_program
from ppl.semantics.weighted import traced
from ppl.staging import stage

#: The most combinations of values of sites that are summed over in whole.
MOST_LISTED = 256


@named_keywords
def expectation(program: Program, num_samples: int = 1, maximize: bool = False) -> Program:
    """Estimate the expected value of a program so that derivatives may be taken.

    **Meaning.** The value has the mean of `program`'s value, and its derivatives in whatever the
    program's arrays are made from, of any order, have the derivatives of that mean: run it under
    `jax.grad`, `jax.hessian` and their like. Each site is passed as its estimator says
    (`ppl.sample(..., grad=)` or `ppl.vi.estimators`); where none is given, by reparameterisation if
    that is possible, else by REINFORCE. A score counts with those terms of the cost, and in plates
    and under `vmap` with those lanes of them, that depend on its draw: the operations between them
    tell.

    An expectation is a program, and so can be a part of another one.

    Args:
        program: a program without scores whose value is one real number.
        num_samples: independent runs that are averaged; from two on, each has the mean of the
            others as baseline at REINFORCE sites without one of their own.
        maximize: the expectation is climbed, not descended: the gradient of learned baselines
            changes sign, so that they learn along.

    Returns:
        A program of the number. Its sites are those of `program`, and their like for the values
        that enumeration and measure-valued derivatives look at.

    Raises:
        OpenObservationsError: the program scores.
        ArgumentError: its value is not one number, or `num_samples` is too small for a baseline.
        UnsupportedError: an estimator does not fit its site, or a site stands in a `while_loop`.

    Source: stochastic computation graphs with surrogates of any order after Foerster et al. (2018)
    and van Krieken et al. (2021); estimators per site as in Lew et al. (2023) and Becker et
    al. (2024), who run the rest of the program as a continuation where here it is run again; scores
    of terms and lanes alone as in Ranganath, Gerrish & Blei (2014) and Schulman et al. (2015).
    """
    require_program("vi.expectation", program)
    samples = count("expectation", "num_samples", num_samples)
    check(program, samples)
    name = f"expectation({program.name})"
    return stage(_expectation, (program, samples, bool(maximize)), name=name)


@named_keywords
def grad_estimate(function: Any, num_samples: int = 1) -> Any:
    """Estimate the gradient of an expectation, as a program.

    **Meaning.** The mean of the program's value is the gradient, in the parameters, of the expected
    value of `function(params)`; as a program it can be enumerated, checked, averaged or used in
    another one. To descend a gradient, `jax.grad` of `ppl.run(ppl.vi.expectation(...), key)` is the
    same thing in one pass.

    Args:
        function: a model of parameters whose value is one real number, or anything else that makes
            such a program of parameters.
        num_samples: as for `expectation`.

    Returns:
        A function of the parameters, a pytree of real arrays, that gives a program of a pytree of
        the same form.
    """
    samples = count("grad_estimate", "num_samples", num_samples)
    if isinstance(function, Program) or not callable(function):
        raise ArgumentError(
            message(
                f"grad_estimate got {type(function).__name__}",
                needs="a model of the parameters, or a function that makes a program of them",
                fix="ppl.vi.grad_estimate(cost)(params)",
            )
        )

    def of(params: PyTree) -> Program:
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), params)
        name = f"grad_estimate({getattr(function, '__name__', 'objective')})"
        return stage(_gradient, (function, params, samples), name=name)

    return of


# --- One estimate -------------------------------------------------------------------------------


class _Terms(NamedTuple):
    """By combination of listed values: probability, terms of the cost, scores; what forks add."""

    probability: Any
    costs: list[Any]
    scores: dict[str, Score]
    tally: Any
    forked: Any


def _expectation(program: Program, num_samples: int, maximize: bool) -> Any:
    one, sign = _Estimate(program), -1 if maximize else 1
    if num_samples == 1:
        terms = jax.tree.map(lambda x: jnp.asarray(x)[None], one.terms())
    else:
        terms = jax.vmap(lambda _: one.terms())(jnp.arange(num_samples))
    others = None
    if num_samples > 1:
        weigh = lambda x: jnp.einsum("nc,nc...->n...", terms.probability, x)  # noqa: E731
        others = [_means_of_others(jax.lax.stop_gradient(weigh(x))) for x in terms.costs]

    def sample(terms: _Terms, others: Any) -> Any:
        def combination(p: Any, costs: list[Any], scores: Any, tally: Any) -> Any:
            value, learned = one.value(costs, scores, tally, others)
            learned = jax.lax.stop_gradient(p) * (learned - jax.lax.stop_gradient(learned))
            return p * value + sign * learned

        found = jax.vmap(combination)(terms.probability, terms.costs, terms.scores, terms.tally)
        return jnp.sum(found) + jnp.sum(terms.forked)

    return jnp.mean(jax.vmap(sample)(terms, others))


def _means_of_others(costs: Any) -> Any:
    """Give the leave-one-out baselines (Mnih & Rezende 2016; Kool et al. 2019)."""
    return (jnp.sum(costs, 0) - costs) / (len(costs) - 1)


class _Estimate:
    """The runs of a program that make one estimate."""

    def __init__(self, program: Program):
        self.program, self.split = program, split(program)
        self.latents = [s for s in program.sites if s.kind == "latent"]
        self.ancestors = ancestors(program.structure.jaxpr)
        self.laws: dict[Any, int] = {}
        places = Counter(p.site.address for p in placed_sites(program.structure.jaxpr))
        self.several = {a for a, number in places.items() if number > 1}

    def surrogate(self, prefix: str = "", *, forks: bool = True) -> Surrogate:
        """Make an interpreter for one run."""
        return Surrogate(self.laws, self.split.apart, prefix, forks=forks)

    def run(self, interpreter: Surrogate, known: Mapping[str, Known], *, frozen: bool = False):
        data = [*self.program.consts, *self.program.args]
        if frozen:
            data = jax.lax.stop_gradient(data)
        outs, tally, records = evaluate(interpreter, self.split.jaxpr, [], data, given=known)
        return self.split.values(outs), tally, records

    def value(self, costs: list[Any], scores: dict[str, Score], tally: Any, others: Any) -> Any:
        """Give the cost with the derivative of the scores, and what baselines learn from."""
        stop = jax.lax.stop_gradient
        value, learned = tally.control, tally.square
        for score in scores.values():
            if score.control is not None:
                value = value + jnp.sum(score.control)
            if score.learned is not None:
                learned = learned + 0.5 * jnp.sum(score.learned**2)
        for i, (cost, term) in enumerate(zip(costs, self.split.terms, strict=True)):
            rises, free = [], []
            for address, score in scores.items():
                if address in term.sites:
                    along = self.split.along(address)[i]
                    rises.append(laid_along(score.rise, along, cost.ndim))
                    if score.control is None:
                        free.append(rises[-1])
                    if score.learned is not None:
                        sizes = score.learned.shape
                        own = stop(gathered(cost, along, sizes))
                        learned = learned - jnp.sum(own * score.learned)
            if term.sites - self.split.apart:
                rises.append(tally.score)
                free.append(tally.free)
                learned = learned - stop(jnp.sum(cost)) * tally.linear
            value = value + jnp.sum(jnp.exp(sum(rises)) * cost if rises else cost)
            if others is not None and free:
                value = value - jnp.sum(others[i] * (jnp.exp(sum(free)) - 1))
        return value, learned

    def terms(self) -> _Terms:
        first = self.surrogate()
        costs, tally, records = self.run(first, {})
        self.supports = supports = first.supports
        listed = self._listed(supports, records)
        if not listed:
            forked, scores = self._forked(records, {}), _scores(records)
            found = _Terms(jnp.ones(()), costs, scores, tally, forked)
            return jax.tree.map(lambda x: jnp.asarray(x)[None], found)
        chosen_from = [supports[a] for a, n in listed.items() for _ in range(n)]
        rows = np.array(list(itertools.product(*map(np.arange, map(len, chosen_from)))))
        values, start = {}, 0
        for address, number in listed.items():
            chosen = supports[address][rows[:, start : start + number]]
            shape = self._elements(address, records)
            values[address] = jnp.asarray(chosen.reshape(len(rows), *shape, *chosen.shape[2:]))
            start += number
        return jax.vmap(lambda v: self._combination(v, records))(values)

    def _combination(self, values: dict[str, Any], shared: Mapping[str, Record]) -> _Terms:
        known = {a: Known(v, listed=True) for a, v in values.items()}
        known |= self._shared(shared, frozenset(values), known)
        costs, tally, records = self.run(self.surrogate("listed/"), known)
        chance = self._chance(records, values)
        costs = [_possible(chance, cost) for cost in costs]
        return _Terms(chance, costs, _scores(records), tally, self._forked(records, values))

    def _chance(self, records: Mapping[str, Record], listed: Mapping[str, Any]) -> Any:
        """Give the probability of the listed values; sites that are not there are listed too."""
        chance = jnp.ones((), jnp.result_type(float))
        for address in listed:
            found, present = records[address].value.probability, records[address].present
            if present is not None:
                found = jnp.where(wide(present, found), found, 1 / len(self.supports[address]))
            chance = chance * jnp.prod(found)
        return chance

    def _listed(self, supports: dict[str, Any], records: Mapping[str, Record]) -> dict[str, int]:
        """Choose the sites to sum over in whole, with their numbers of elements."""
        found: dict[str, int] = {}
        total = 1
        for site in self.latents:
            if site.address not in supports:
                continue
            number = math.prod(self._elements(site.address, records))
            if number * math.log(len(supports[site.address])) + math.log(total) > math.log(
                MOST_LISTED + 0.5
            ):
                continue
            found[site.address] = number
            total *= len(supports[site.address]) ** number
        return found

    def _elements(self, address: str, records: Mapping[str, Record]) -> tuple[int, ...]:
        rank = len(self.program.sites[address].placed.prefix)
        shape = records[address].value.alternatives.coefficients.shape
        return (*shape[:rank], *shape[rank + 1 :])

    def _shared(
        self, records: Mapping[str, Record], changed: frozenset[str], known: Mapping[str, Known]
    ) -> dict[str, Known]:
        """Say what a run with changes at some sites has in common with an earlier one."""
        found: dict[str, Known] = {}
        for address, record in records.items():
            drawn: Drawn = record.value
            if address in known:
                continue
            if self.ancestors[address] & changed:
                law = drawn.law if address in self.several else None
                found[address] = Known(drawn.value, law, drawn.parameters, record.present)
            else:
                found[address] = Known(drawn.value)
        return found

    def _forked(self, records: Mapping[str, Record], listed: Mapping[str, Any]) -> Any:
        """Add up the costs of runs with one element changed, as far as the derivative needs."""
        total = jnp.zeros((), jnp.result_type(float))
        for address, record in records.items():
            if address not in listed and record.value.alternatives is not None:
                total = total + self._fork(address, records, listed)
        return total

    def _fork(self, address: str, records: Mapping[str, Record], listed: Mapping[str, Any]) -> Any:
        drawn: Drawn = records[address].value
        rank = len(self.program.sites[address].placed.prefix)
        assert drawn.alternatives is not None
        values, coefficients = (jnp.moveaxis(x, rank, 0) for x in drawn.alternatives)
        shape = coefficients.shape[1:]
        fixed = {a: Known(x, listed=True) for a, x in listed.items()}
        known = self._shared(records, frozenset([address]), fixed) | fixed

        def cost(value: Any, element: Any) -> Any:
            mask = jnp.arange(math.prod(shape)).reshape(shape) == element
            here = known[address]
            here = dataclasses.replace(here, mask=mask, override=value)
            interpreter = self.surrogate(f"{address}/instead/", forks=False)
            costs, _, found = self.run(interpreter, {**known, address: here}, frozen=True)
            chance = self._chance(found, listed)
            return chance * _possible(chance, sum(jnp.sum(x) for x in costs))

        over = jax.vmap(jax.vmap(cost, in_axes=(None, 0)), in_axes=(0, None))
        costs = over(jax.lax.stop_gradient(values), jnp.arange(math.prod(shape)))
        costs = jax.lax.stop_gradient(costs).reshape(coefficients.shape)
        return jnp.sum(coefficients * _possible(coefficients, costs))


def _scores(records: Mapping[str, Record]) -> dict[str, Score]:
    return {a: r.value.score for a, r in records.items() if r.value.score is not None}


def _possible(chance: Any, cost: Any) -> Any:
    """Let what cannot happen cost nothing."""
    return jnp.where((chance == 0) & ~jnp.isfinite(cost), 0.0, cost)


# --- The gradient as a program ------------------------------------------------------------------


class _Fixed(Interpreter):
    """Take every draw from what is given."""

    name, unbounded, rebinds = "ppl.vi.grad_estimate", False, False

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        return frame.given[site.address] if site.kind == "latent" else value_of(site, leaves)


def _gradient(function: Any, params: PyTree, num_samples: int) -> PyTree:
    def estimate(params: PyTree) -> Program:
        with context(None):  # the function makes a program; it is no part of this one
            return expectation(require_program("vi.expectation", function(params)), num_samples)

    choices = traced(estimate(jax.lax.stop_gradient(params)))().choices

    def fixed(params: PyTree) -> Any:
        program = estimate(params)
        s = program.structure
        return evaluate(_Fixed(), s.jaxpr, program.consts, program.args, given=choices).outs[0]

    return jax.grad(fixed)(params)
