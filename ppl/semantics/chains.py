"""`Chains`: the draws of Markov chains, and how results are shown and kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ppl import _jax
from ppl._types import Key, PyTree, pytree, static
from ppl.counts import count
from ppl.errors import AddressError, ResultError, check_addresses, message
from ppl.program import Program
from ppl.results import arviz, plots, storage, table
from ppl.semantics.predictive import log_likelihood as pointwise
from ppl.semantics.predictive import observations, posterior_predictive


@pytree
class Chains:
    """Draws of Markov chains that leave a program's posterior invariant.

    **Meaning.** f -> the average of f over draws, which converges to the normalised measure.

    `draws` holds arrays of shape (chain, draw, *site) by address: latents, then deterministics.
    `stats` holds what the kernel reports, of shape (chain, draw). `present` tells, for sites that
    stand in branches, in which draws they exist; elsewhere a draw is a placeholder. `kernel` is
    the one that moved the chains, with the settings that warmup found: another run can use it.
    """

    draws: dict[str, Array]
    stats: dict[str, Array]
    state: PyTree = None
    program: Program | None = None
    latents: tuple[str, ...] = static(default=())
    present: dict[str, Array] = dataclasses.field(default_factory=dict)
    stored_dims: tuple[tuple[str, tuple[str, ...]], ...] = static(default=())
    kernel: PyTree = None
    underway: Any = static(default=None, repr=False)

    def extend(self, num_samples: int, *, progress: bool | None = None) -> Chains:
        """Go on from where the chains stand.

        **Meaning.** The draws that a run of that many more would have made, bit for bit: the old
        ones and the new.

        Args:
            num_samples: how many draws to add to each chain.
            progress: show a progress bar; None shows one in terminals and notebooks.

        Raises:
            ResultError: the chains do not know how they were made: they were read from a file, or
                made inside of another program.
            ArgumentError: the number is not a positive integer.
        """
        if self.underway is None:
            raise ResultError(
                message(
                    "extend got chains that do not know how they were made",
                    needs="the chains that ppl.run gave",
                    why="a file keeps the draws, and not where the chains stand",
                    fix="ppl.run(..., checkpoint=path), which can be taken up again",
                )
            )
        more = count("extend", "num_samples", num_samples)
        return self.underway.reach(self.num_draws + more, progress)

    @property
    def num_chains(self) -> int:
        """Number of chains."""
        return jax.tree.leaves(self.draws)[0].shape[0]

    @property
    def num_draws(self) -> int:
        """Number of draws in each chain."""
        return jax.tree.leaves(self.draws)[0].shape[1]

    def __getitem__(self, address: str) -> Array:
        """The draws of one site."""
        if address not in self.draws:
            check_addresses("chains", [address], self.draws)
        return self.draws[address]

    def summary(
        self,
        var_names: Sequence[str] | None = None,
        *,
        quantiles: tuple[float, ...] = (0.05, 0.5, 0.95),
        coords: Mapping[str, Sequence[Any]] | None = None,
    ) -> table.Summary:
        """Mean, sd, quantiles, MCSE, bulk and tail ESS, R-hat; with warnings in words.

        Args:
            var_names: addresses; None for all.
            quantiles: probabilities.
            coords: labels by plate name.
        """
        draws, notes = always(chosen(host(self.draws), var_names), self.present)
        summary = table.summarize(
            draws,
            dims=self._dims,
            coords=coords,
            quantiles=quantiles,
            stats=host(self.stats),
        )
        return dataclasses.replace(summary, notes=(*summary.notes, *notes))

    @property
    def _dims(self) -> dict[str, tuple[str, ...]]:
        """Name the axes of every site, from the program or from the file the draws came from."""
        return dimensions(self.program, self.draws) or dict(self.stored_dims)

    def predictive(self, key: Key) -> dict[str, Array]:
        """Draw from the posterior predictive, once per draw.

        Returns:
            By address, arrays of shape (chain, draw, *site): observations and deterministics.
        """
        program = self._whole("predictive")
        lead = (self.num_chains, self.num_draws)
        rows = {a: _rows(self.draws[a]) for a in self.latents}
        out = posterior_predictive(program, rows, key)
        return {a: x.reshape(*lead, *x.shape[1:]) for a, x in out.items()}

    def _whole(self, operation: str) -> Program:
        """Give the program, of which the draws have to be complete."""
        program = require_program(self.program, operation)
        missing = [a for a in self.latents if a not in self.draws]
        if missing:
            raise ResultError(
                message(
                    f"{operation} got chains without draws of {', '.join(missing)}",
                    needs="draws of every latent site",
                    why="what is missing would be drawn from the prior",
                    fix="ppl.mcmc(...) without keep=, or with all latent addresses among them",
                )
            )
        return program

    def to_arviz(
        self,
        *,
        log_likelihood: bool = False,
        posterior_predictive: Mapping[str, Any] | None = None,
        coords: Mapping[str, Sequence[Any]] | None = None,
    ) -> Any:
        """Convert to `arviz.InferenceData` (ArviZ < 1.0) or `xarray.DataTree`.

        Args:
            log_likelihood: compute it for every draw and observation (slow for large data).
            posterior_predictive: what `predictive` gave, to be kept beside the draws.
            coords: labels by plate name.
        """
        if log_likelihood:
            self._whole("to_arviz(log_likelihood=True)")
        return to_inference_data(
            self.program,
            host(self.draws),
            self.latents,
            stats=host(self.stats),
            log_likelihood=log_likelihood,
            predictive=posterior_predictive,
            coords=coords,
            dims=self._dims,
        )

    def plot(self, kind: str = "trace", **options: Any) -> Any:
        """Draw a picture with matplotlib.

        Args:
            kind: "trace", "posterior", "forest", "pair", "rank" or "energy".
            **options: those of `ppl.results.plots.plot`.
        """
        return plots.plot(
            kind, host(self.draws), stats=host(self.stats), dims=self._dims, **options
        )

    def save(self, path: str) -> None:
        """Write draws and statistics to a file (.npz, no pickle).

        Args:
            path: the file.
        """
        arrays = {
            "draws": host(self.draws),
            "stats": host(self.stats),
            "present": host(self.present),
        }
        dims = {a: list(d) for a, d in self._dims.items()}
        storage.save(path, arrays, {"kind": "chains", "latents": list(self.latents), "dims": dims})

    @classmethod
    def load(cls, path: str, program: Program | None = None) -> Chains:
        """Read what `save` wrote.

        Args:
            path: the file.
            program: the program the draws are from, needed for predictive draws and dim names.
        """
        arrays, about = read(path, "chains")
        if program is not None and set(about["latents"]) != set(program.latents):
            raise ResultError(
                message(
                    f"load got the program {program.name} with latents {program.latents}",
                    needs=f"the program of the stored draws, with latents {about['latents']}",
                    fix="Chains.load(path) without a program",
                )
            )
        draws = arrays.get("draws", {})
        return cls(
            draws,
            arrays.get("stats", {}),
            None,
            program,
            tuple(about["latents"]),
            arrays.get("present", {}),
            tuple((a, tuple(names)) for a, names in about["dims"].items()),
        )

    def __repr__(self) -> str:
        if any(_jax.is_tracer(x) for x in jax.tree.leaves(self.draws)):
            return f"Chains({', '.join(self.draws)}; traced)"
        return str(self.summary())

    def _repr_html_(self) -> str:
        return self.summary()._repr_html_()


# --- Shared with Population ----------------------------------------------------------------------


def host(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Bring arrays to the host."""
    return {k: np.asarray(x) for k, x in tree.items()}


def chosen(draws: dict[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
    """Pick draws by address; an unknown one is an error."""
    if names is None:
        return draws
    names = [names] if isinstance(names, str) else list(names)
    for name in names:
        whole = name.partition("[")[0]
        if name not in draws and name.endswith("]") and whole in draws:
            raise AddressError(
                message(
                    f'summary got "{name}", an element of "{whole}"',
                    needs="addresses",
                    why="a summary has a row for every element of a site",
                    fix=f'summary(["{whole}"])',
                )
            )
    check_addresses("summary", names, draws)
    return {name: draws[name] for name in names}


def always(
    draws: dict[str, Any], present: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Leave out sites that do not exist in every draw, and say which."""
    partial = {a: float(np.mean(present[a])) for a in draws if a in present}
    partial = {a: share for a, share in partial.items() if share < 1}
    notes = tuple(
        f"{a} is left out: it stands in a branch and exists in {share:.0%} of the draws; .present "
        f'tells in which, so .draws["{a}"] can be described given that it exists'
        for a, share in partial.items()
    )
    return {a: x for a, x in draws.items() if a not in partial}, notes


def _rows(x: Any) -> Any:
    return jnp.reshape(jnp.asarray(x), (-1, *x.shape[2:]))


def dimensions(program: Program | None, draws: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Name every axis of every site: by its plate where it has one."""
    if program is None:
        return {}
    return {
        s.address: tuple(n or f"{s.address}_dim_{i}" for i, n in enumerate(s.axes))
        for s in program.sites
        if s.address in draws or s.kind == "observed"
    }


def require_program(program: Program | None, operation: str) -> Program:
    """Give the program, or say that it has to be handed over."""
    if program is None:
        raise ResultError(
            message(
                f"{operation} got a result without its program",
                needs="the program the draws are from",
                why="a file keeps the draws, not the model",
                fix="Chains.load(path, program=model(data))",
            )
        )
    return program


def read(path: str, kind: str) -> tuple[Any, dict[str, Any]]:
    """Load a file and check that it holds what is asked for."""
    arrays, about = storage.load(path)
    if about.get("kind") != kind:
        raise ResultError(
            message(
                f"load got a file of kind {about.get('kind')!r}",
                needs=f"a file written by {kind}.save",
                fix="Chains.load or Population.load, whichever wrote it",
            )
        )
    return arrays, about


def to_inference_data(
    program: Program | None,
    draws: dict[str, Any],
    latents: tuple[str, ...],
    *,
    stats: dict[str, Any] | None = None,
    log_likelihood: bool = False,
    predictive: Mapping[str, Any] | None = None,
    attrs: dict[str, Any] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, tuple[str, ...]] | None = None,
) -> Any:
    """Build the ArviZ object from draws of shape (chain, draw, *site)."""
    groups: dict[str, Any] = {}
    if log_likelihood:
        program = require_program(program, "to_arviz(log_likelihood=True)")
        out = pointwise(program, {a: _rows(draws[a]) for a in latents})
        lead = next(iter(draws.values())).shape[:2]
        groups["log_likelihood"] = {
            a: np.asarray(x).reshape(*lead, *x.shape[1:]) for a, x in out.items()
        }
    if predictive is not None:
        groups["posterior_predictive"] = host(predictive)
    if stats:
        groups["sample_stats"] = stats
    if program is not None and (data := observations(program)):
        groups["observed_data"] = host(data)
    dims = dimensions(program, draws) if dims is None else dims
    return arviz.to_arviz(posterior=draws, dims=dims, coords=coords, attrs=attrs, **groups)
