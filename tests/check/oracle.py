"""Two slow judges of what a finite program means; neither shares code with the enumerator.

`brute_force` puts every combination of values into the log density; `read` interprets the text
that `ppl.check.programs` drew, in plain Python. Both give unnormalised masses by return value.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from typing import Any

import jax
import numpy as np

from ppl.check.grammar import reading
from ppl.check.programs import text_of
from ppl.interpreter.placed import placed_sites
from ppl.program import Program
from ppl.semantics.density import joint

CHUNK = 4096


def brute_force(program: Program, *, widest: int = 4, most: int = 2**17) -> dict[tuple, float]:
    """Sum the joint density over all values of all latent sites, by return value.

    A key is the tuple of the value's leaves, arrays as nested tuples. Sites in branches that were
    not taken have no influence, so only the combinations that put the first value there count.
    Where a support's bounds depend on draws, 0, ..., widest - 1 are tried, and the prior masses
    must sum to one.

    Raises:
        ValueError: there are more than `most` combinations, or `widest` is too small.
    """
    candidates, count = _candidates(program, widest), combinations(program, widest=widest)
    if count > most:
        raise ValueError(f"{count} combinations are more than {most}")
    first = {address: values[0] for address, _, values in candidates}
    element = [values for _, shape, values in candidates for _ in range(math.prod(shape))]
    masses: dict[tuple, list[float]] = defaultdict(list)
    prior = 0.0
    for rows in _chunks(itertools.product(*element)):
        choices, start = {}, 0
        for address, shape, _ in candidates:
            stop = start + math.prod(shape)
            choices[address] = rows[:, start:stop].reshape(len(rows), *shape)
            start = stop
        value, log_density, sites = jax.device_get(_evaluate(program, choices))
        keep, log_prior = np.ones(len(rows), bool), np.zeros(len(rows))
        for address, chosen in choices.items():
            record = sites[address]
            log_prior += _total(record.value.log_density)
            if record.present is not None:
                absent = ~record.present
                absent = absent.reshape(absent.shape + (1,) * (chosen.ndim - absent.ndim))
                keep &= ~np.any(
                    absent & (chosen != first[address]), axis=tuple(range(1, chosen.ndim))
                )
        assert not np.any(np.isnan(log_density))
        prior += float(np.sum(np.exp(log_prior[keep])))
        leaves = [np.asarray(x) for x in jax.tree.leaves(value)]
        for i in np.flatnonzero(keep & (log_density > -np.inf)):
            masses[tuple(_hashable(x[i]) for x in leaves)].append(math.exp(log_density[i]))
    if abs(prior - 1) > 1e-5 and not any(s.weighted for s in program.sites):
        raise ValueError(f"the prior masses sum to {prior}; is some support wider than {widest}?")
    return {value: math.fsum(parts) for value, parts in masses.items()}


def read(program: Program) -> dict[tuple, float]:
    """Give the masses of a finite program drawn by `ppl.check.programs`, read off its text."""
    return reading.masses(text_of(program))


def distance(one: dict[tuple, float], other: dict[tuple, float]) -> float:
    """Half the sum of the absolute differences of two measures."""
    return 0.5 * math.fsum(abs(one.get(k, 0.0) - other.get(k, 0.0)) for k in {*one, *other})


def combinations(program: Program, *, widest: int = 4) -> int:
    """Count what `brute_force` would go through."""
    sites = _candidates(program, widest)
    return math.prod(len(values) ** math.prod(shape) for _, shape, values in sites)


def _candidates(program: Program, widest: int) -> list[tuple[str, tuple[int, ...], list[int]]]:
    """List address, shape and possible values of every latent site."""
    latents = [s for s in program.sites if s.kind == "latent"]
    return [(s.address, s.shape, _values(program, s.address, widest)) for s in latents]


def _values(program: Program, address: str, widest: int) -> list[int]:
    """List the values that a latent site could take, over all branches that use its address."""
    found: set[int] = set()
    for placed in placed_sites(program.structure.jaxpr):
        if placed.site.address == address:
            found |= set(_support(placed.site, widest))
    return sorted(found)


def _support(site: Any, widest: int) -> range:
    if not site.discrete or site.event_dim:
        raise ValueError(f'"{site.address}" is not one of finitely many whole numbers')
    if site.support == "boolean":
        return range(2)
    bounds = [b for b in site.domain.bounds if b is not None and not isinstance(b, int)]
    if len(bounds) < 2:
        return range(widest)
    low, high = (int(np.max(b)) for b in bounds)
    return range(low, high + 1)


def _chunks(rows_of: Any) -> Any:
    while rows := list(itertools.islice(rows_of, CHUNK)):
        yield np.array(rows, np.int64).reshape(len(rows), -1)


@jax.jit
def _evaluate(program: Program, choices: dict[str, Any]) -> Any:
    if not choices:  # nothing to draw: one world
        return jax.tree.map(lambda x: x[None], tuple(joint(program, {})))
    return jax.vmap(lambda c: tuple(joint(program, c)))(choices)


def _total(x: np.ndarray) -> np.ndarray:
    return np.sum(x, axis=tuple(range(1, np.ndim(x))))


def _hashable(x: np.ndarray) -> Any:
    def tuples(x: Any) -> Any:
        return tuple(map(tuples, x)) if isinstance(x, list) else x

    return tuples(x.tolist())
