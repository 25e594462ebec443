"""`Population`: weighted particles."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ppl import _jax
from ppl._types import Choices, Key, PyTree, Scalar, pytree
from ppl.errors import ResultError, check_addresses, message
from ppl.program import Program
from ppl.resampling import SystematicResampling
from ppl.results import table
from ppl.semantics.chains import (
    always,
    chosen,
    dimensions,
    host,
    read,
    require_program,
    to_inference_data,
)
from ppl.semantics.predictive import posterior_predictive
from ppl.semantics.run import as_key


class Estimate(NamedTuple):
    """A Monte Carlo estimate and its standard error."""

    value: Any
    standard_error: Any


@pytree
class Population:
    """N weighted particles.

    **Meaning.** f -> E[Z sum_i W_i f(values_i)], where W are the normalised weights and
    Z = exp(log_evidence). `log_weights` are unnormalised. `log_evidence_se` is the standard error
    of `log_evidence` where the algorithm knows one. `present` tells, for sites that stand in
    branches, which particles reached them; elsewhere a choice is a placeholder. `steps` holds what
    the algorithm recorded step by step, such as the effective sample size. `families` tells which
    particles descend from the same first one, where particles were resampled.
    """

    values: PyTree
    log_weights: Float[Array, " particles"]
    log_evidence: Scalar
    choices: Choices = dataclasses.field(default_factory=dict)
    program: Program | None = None
    log_evidence_se: Scalar | None = None
    present: dict[str, Array] = dataclasses.field(default_factory=dict)
    steps: dict[str, Array] = dataclasses.field(default_factory=dict)
    families: Int[Array, " particles"] | None = None

    @property
    def num_particles(self) -> int:
        """N."""
        return self.log_weights.shape[-1]

    @property
    def weights(self) -> Float[Array, " particles"]:
        """Normalised weights; all zero if every particle has weight zero."""
        top = jnp.max(self.log_weights)
        return jnp.where(top == -jnp.inf, 0.0, jax.nn.softmax(self.log_weights))

    @property
    def ess(self) -> Scalar:
        """Effective sample size 1 / sum W_i^2 (Kish); 0 if every particle has weight zero."""
        total = jnp.sum(self.weights**2)
        return jnp.where(total > 0, 1.0 / jnp.where(total > 0, total, 1.0), 0.0)

    @property
    def draws(self) -> dict[str, Any]:
        """The particles' choices by address, of shape (particle, *site)."""
        return host(self.choices)

    def expect(self, fun: Callable[[PyTree], Any] | str) -> Estimate:
        """Estimate a posterior expectation by self-normalised weighting.

        The bias is O(1 / N). The standard error is that of independent families: particles that
        descend from one first particle belong together. It is NaN if all do.

        Args:
            fun: a function of one return value, or the address of a choice. For a site that stands
                in a branch the expectation is that given the site exists.

        Raises:
            ResultError: every particle has weight zero, so that there is no posterior.
        """
        self.require_mass("expect")
        present = None
        if isinstance(fun, str):
            check_addresses("expect", [fun], self.choices)
            x, present = self.choices[fun], self.present.get(fun)
        else:
            x = jax.vmap(fun)(self.values)

        def one(x: Any) -> Estimate:
            weights = self.weights.reshape(-1, *[1] * (x.ndim - 1))
            if present is not None:
                weights = weights * present.reshape(present.shape + (1,) * (x.ndim - present.ndim))
                weights = weights / jnp.sum(weights, axis=0)
            mean = jnp.sum(weights * x, axis=0)
            return Estimate(mean, self._error(weights * (x - mean)))

        leaves, tree = jax.tree.flatten(x)
        parts = [one(leaf) for leaf in leaves]
        return Estimate(*(jax.tree.unflatten(tree, column) for column in zip(*parts, strict=True)))

    def _error(self, parts: Any) -> Any:
        """Give the standard error of a sum, to which each particle contributes a part."""
        if self.families is None:
            return jnp.sqrt(jnp.sum(parts**2, axis=0))
        sums = jnp.zeros_like(parts).at[self.families].add(parts)
        alone = (self.num_particles > 1) & jnp.all(self.families == self.families[0])
        return jnp.where(alone, jnp.nan, jnp.sqrt(jnp.sum(sums**2, axis=0)))

    def require_mass(self, operation: str) -> None:
        """Raise `ResultError` if no particle has positive weight, or weights are no numbers.

        Args:
            operation: who asks, for the message.
        """
        if _jax.is_tracer(self.log_weights):
            return
        if bool(jnp.any(jnp.isnan(self.log_weights) | (self.log_weights == jnp.inf))):
            count = int(jnp.sum(~(self.log_weights < jnp.inf)))
            raise ResultError(
                message(
                    f"{operation} got a population with {count} weights that are NaN or infinite",
                    needs="finite weights, or weights of zero",
                    why="the density of some run is not a number",
                    fix="look for divisions by zero and overflow in the model; "
                    "ppl.trace(program, key) shows one run",
                )
            )
        if bool(jnp.all(self.log_weights == -jnp.inf)):
            raise ResultError(
                message(
                    f"{operation} got a population in which every particle has weight zero"
                    + self._died,
                    needs="at least one particle of positive weight",
                    why="the evidence estimate is zero, so that there is no posterior to describe",
                    fix="check the observations against the model's support, use more particles, "
                    "or a proposal",
                )
            )

    @property
    def _died(self) -> str:
        evidence = self.steps.get("log_evidence")
        if evidence is None or not bool(jnp.any(evidence == -jnp.inf)):
            return ""
        return f" since step {int(jnp.argmax(evidence == -jnp.inf))}"

    def resample(self, key: Key, num: int | None = None) -> dict[str, Array]:
        """Draw equally weighted choices (systematic resampling; Carpenter et al. 1999).

        Args:
            key: PRNG key or seed.
            num: number of draws; None for the number of particles.

        Raises:
            ResultError: every particle has weight zero.
        """
        self.require_mass("resample")
        count = self.num_particles if num is None else num
        ancestors = _ancestors(self.log_weights, as_key(key), count)
        return {a: x[ancestors] for a, x in self.choices.items()}

    def summary(
        self,
        var_names: Sequence[str] | None = None,
        *,
        quantiles: tuple[float, ...] = (0.05, 0.5, 0.95),
        coords: Mapping[str, Sequence[Any]] | None = None,
    ) -> table.Summary:
        """Weighted mean, sd, quantiles and standard errors; with warnings in words.

        Args:
            var_names: addresses; None for all.
            quantiles: probabilities.
            coords: labels by plate name.
        """
        draws, notes = always(chosen(self.draws, var_names), self.present)
        summary = table.summarize_weighted(
            draws,
            np.asarray(self.log_weights, float),
            dims=dimensions(self.program, self.choices),
            coords=coords,
            quantiles=quantiles,
            families=None if self.families is None else np.asarray(self.families),
        )
        return dataclasses.replace(summary, notes=(*summary.notes, *notes))

    def predictive(self, key: Key, num: int | None = None) -> dict[str, Array]:
        """Draw from the posterior predictive: resampled particles, observations drawn anew.

        Args:
            key: PRNG key or seed.
            num: number of draws; None for the number of particles.
        """
        one, two = jax.random.split(as_key(key))
        program = require_program(self.program, "predictive")
        return posterior_predictive(program, self.resample(one, num), two)

    def to_arviz(
        self,
        key: Key = 0,
        *,
        log_likelihood: bool = False,
        coords: Mapping[str, Sequence[Any]] | None = None,
    ) -> Any:
        """Convert to ArviZ, which knows no weights: as one chain of resampled particles.

        Args:
            key: PRNG key or seed of the resampling.
            log_likelihood: compute it for every draw and observation.
            coords: labels by plate name.
        """
        draws = {a: np.asarray(x)[None] for a, x in self.resample(key).items()}
        attrs = {
            "log_evidence": float(self.log_evidence),
            "ess": float(self.ess),
            "resampled": "systematic",
        }
        return to_inference_data(
            self.program,
            draws,
            tuple(draws),
            log_likelihood=log_likelihood,
            attrs=attrs,
            coords=coords,
        )

    def plot(self, **options: Any) -> Any:
        """Draw weighted histograms.

        Args:
            **options: those of `ppl.results.plots.plot_weighted`.
        """
        from ppl.results import plots

        dims = dimensions(self.program, self.choices)
        weights = np.asarray(self.log_weights, float)
        return plots.plot_weighted(self.draws, weights, dims=dims, **options)

    def save(self, path: str) -> None:
        """Write choices and weights to a file (.npz, no pickle).

        Args:
            path: the file.
        """
        from ppl.results import storage

        arrays = {
            "choices": self.draws,
            "log_weights": np.asarray(self.log_weights),
            "log_evidence": np.asarray(self.log_evidence),
        }
        if self.log_evidence_se is not None:
            arrays["log_evidence_se"] = np.asarray(self.log_evidence_se)
        if self.families is not None:
            arrays["families"] = np.asarray(self.families)
        arrays["present"], arrays["steps"] = host(self.present), host(self.steps)
        storage.save(path, arrays, {"kind": "population"})

    @classmethod
    def load(cls, path: str, program: Program | None = None) -> Population:
        """Read what `save` wrote; values are not kept, and are None.

        Args:
            path: the file.
            program: the program the particles are from.
        """
        arrays = read(path, "population")[0]
        return cls(
            None,
            jnp.asarray(arrays["log_weights"]),
            jnp.asarray(arrays["log_evidence"]),
            {a: jnp.asarray(x) for a, x in arrays["choices"].items()},
            program,
            arrays.get("log_evidence_se"),
            {a: jnp.asarray(x) for a, x in arrays.get("present", {}).items()},
            {a: jnp.asarray(x) for a, x in arrays.get("steps", {}).items()},
            arrays.get("families"),
        )

    def __repr__(self) -> str:
        if any(_jax.is_tracer(x) for x in jax.tree.leaves(self.log_weights)):
            return f"Population(num_particles={self.num_particles}, traced)"
        if self.log_weights.ndim != 1:
            return f"Population(log_weights of shape {self.log_weights.shape})"
        return f"{self._evidence}\n{self.summary()}" if self.choices else self._evidence

    @property
    def _evidence(self) -> str:
        error = "" if self.log_evidence_se is None else f" ± {float(self.log_evidence_se):.2g}"
        return f"log evidence {float(self.log_evidence):.4f}{error}"

    def _repr_html_(self) -> str:
        return f"<p>{self._evidence}</p>{self.summary()._repr_html_()}"


@functools.partial(jax.jit, static_argnums=2)
def _ancestors(log_weights: Any, key: Any, num: int) -> Any:
    return SystematicResampling(log_weights, num=num).sample(key)
