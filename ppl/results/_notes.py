"""What looks wrong with draws or particles, in words, each with what to try."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Num

from ppl.results import diagnostics

_RHAT_LIMIT = 1.01  # Vehtari et al. (2021), section 5
_ESS_PER_CHAIN = 100  # the same
_ESS_ENOUGH = 1000  # of many short chains together, whose sizes are estimated together
_BFMI_LIMIT = 0.3  # Betancourt (2016)
_DEEP, _DEEP_SHARE = 10, 0.05  # the default of max_tree_depth, in ours and in Stan
_ACCEPTANCE_LIMIT = 0.1
_MIN_DRAWS = 4
_FEW_FAMILIES = 10
_KISH_LIMIT = 100
_NAMED = 5  # rows a warning names


def plural(number: int, noun: str) -> str:
    """Write a number and its noun: `1 chain`, `4 chains`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def of_chains(
    rows: Sequence[str],
    draws: Mapping[str, Num[np.ndarray, "chain draw *event"]],
    values: Mapping[str, Float[np.ndarray, " row"]],
    stats: Mapping[str, Num[np.ndarray, "chain draw"]],
) -> tuple[str, ...]:
    """List the warnings about Markov chains.

    Args:
        rows: labels of the elements of all variables.
        draws: by variable, in the order of the rows.
        values: the columns of the summary.
        stats: sampler statistics; "diverging", "energy", "tree_depth" and "acceptance_rate" are
            read.
    """
    return tuple([*_of_draws(rows, draws, values), *_of_stats(stats)])


def of_particles(
    rows: Sequence[str],
    means: Float[np.ndarray, " row"],
    log_weights: Float[np.ndarray, " N"],
    kish: float,
    families: np.ndarray | None = None,
) -> tuple[str, ...]:
    """List the warnings about weighted particles."""
    if not kish > 0:
        return (
            "No particle has a positive, finite weight: nothing was estimated. Try a proposal "
            "that can produce the observations, and check them for NaN.",
        )
    notes = []
    undefined = np.isnan(means)
    if undefined.any():
        notes.append(f"NaN or infinite particles in {_some(rows, undefined)}: no estimates there.")
    if families is not None and len(log_weights) > 1:
        alive = len(np.unique(np.asarray(families)[np.asarray(log_weights) > -np.inf]))
        if alive == 1:
            notes.append(
                "All particles descend from one: errors cannot be told from this run. Repeat it "
                "with other keys, or use more particles."
            )
        elif alive < _FEW_FAMILIES:
            notes.append(
                f"The particles descend from {alive} first ones: errors are uncertain. Use more "
                "particles, or repeat the run with other keys."
            )
    if kish < min(_KISH_LIMIT, 0.5 * len(log_weights)):
        notes.append(
            f"The weights are worth {kish:.1f} of {len(log_weights):,} particles: errors are large "
            "and se_mean is too small. Try more particles, a better proposal, or tempering."
        )
    return tuple(notes)


def _of_draws(
    rows: Sequence[str],
    draws: Mapping[str, np.ndarray],
    values: Mapping[str, Float[np.ndarray, " row"]],
) -> Iterator[str]:
    if not draws:
        return
    num_chains, num_draws = next(iter(draws.values())).shape[:2]
    if num_draws < _MIN_DRAWS:
        yield f"{plural(num_draws, 'draw')} per chain: diagnostics need {_MIN_DRAWS}. Draw more."
        return
    if num_chains == 1:
        yield "One chain only: R-hat compares chains. Run four (num_chains=4)."

    moved, finite = _movement(draws, num_chains)
    if not finite.all():
        yield (
            f"NaN or infinite draws in {_some(rows, ~finite)}: no estimates there. Look for an "
            "overflow or a parameter outside its domain in the model."
        )
    constant = finite & (values["sd"] == 0)
    if constant.any():
        yield (
            f"The same value in every draw of {_some(rows, constant)}: R-hat and ESS say nothing "
            "there. If it is not meant to be constant, the sampler never moved: check its step "
            "size and acceptance rate."
        )
    stuck = ~moved & finite & ~constant
    if stuck.any():
        chains = [f"Chain {k}" for k in range(num_chains)]
        yield (
            f"{_some(chains, stuck.any(axis=1))} never moved in {_some(rows, stuck.any(axis=0))}. "
            "Try another initial value, a longer warmup, or a smaller step size; or double "
            "precision (JAX_ENABLE_X64=1), should the density be huge there."
        )
    high = values["rhat"] > _RHAT_LIMIT
    if high.any():
        yield (
            f"R-hat is above {_RHAT_LIMIT} for {_some(rows, high, values['rhat'], '.2f')}: the "
            "chains have not mixed. Try more warmup and draws, or another parameterisation "
            "(ppl.reparam)."
        )
    for kind, what in (("bulk", "means"), ("tail", "the 5% and 95% quantiles")):
        size = values[f"ess_{kind}"]
        needed = min(_ESS_PER_CHAIN * num_chains, _ESS_ENOUGH)
        low = size < needed
        if low.any():
            some = needed < _ESS_ENOUGH
            limit = f"{_ESS_PER_CHAIN} per chain" if some else f"{_ESS_ENOUGH:,}"
            yield (
                f"{kind.capitalize()} ESS is under {limit} for "
                f"{_some(rows, low, size, '.0f')}: {what} are not reliable. Try more draws."
            )


def _of_stats(stats: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Read the statistics of each kernel; those of several are called `<kernel>.<name>`."""
    kernels: dict[str, dict[str, np.ndarray]] = {}
    for name, x in stats.items():
        kernel, _, own = name.rpartition(".")
        kernels.setdefault(kernel, {})[own] = x
    for kernel, own in kernels.items():
        for note in _of_kernel(own):
            yield f"{kernel}: {note}" if kernel else note


def _of_kernel(stats: Mapping[str, np.ndarray]) -> Iterator[str]:
    if "diverging" in stats:
        diverging = np.asarray(stats["diverging"]).astype(bool)
        count = int(diverging.sum())
        if count:
            yield (
                f"{count:,} of {plural(diverging.size, 'transition')} diverged: part of the "
                "posterior is not explored. Try a higher target acceptance rate, or a non-centred "
                "parameterisation (ppl.reparam)."
            )
    if "tree_depth" in stats:
        share = float(np.mean(np.asarray(stats["tree_depth"]) >= _DEEP))
        if share > _DEEP_SHARE:
            yield (
                f"The tree depth was {_DEEP} or more in {share:.0%} of the transitions: draws are "
                "costly, and trajectories may be cut short. Try another parameterisation "
                "(ppl.reparam), scales nearer to one another, or a longer warmup."
            )
    if "acceptance_rate" in stats:
        rates = np.asarray(stats["acceptance_rate"], np.float64)
        made = np.isfinite(rates)  # in a mixture, a kernel makes some of the moves
        rate = np.sum(rates, axis=1, where=made) / np.maximum(np.sum(made, axis=1), 1)
        low = made.any(axis=1) & (rate < _ACCEPTANCE_LIMIT)
        if low.any():
            chains = [f"chain {k}" for k in range(len(low))]
            yield (
                f"The acceptance rate is under {_ACCEPTANCE_LIMIT} in "
                f"{_some(chains, low, rate, '.2f')}: most moves are refused. Try a smaller step "
                "size, a longer warmup, or another kernel."
            )
    if "energy" in stats and np.all(np.isfinite(stats["energy"])):
        fraction = diagnostics.bfmi(stats["energy"])
        low = fraction < _BFMI_LIMIT
        if low.any():
            chains = [f"chain {k}" for k in range(len(low))]
            yield (
                f"BFMI is under {_BFMI_LIMIT} in {_some(chains, low, fraction, '.2f')}: the energy "
                "is explored slowly, as in posteriors with heavy tails or funnels. Try another "
                "parameterisation (ppl.reparam)."
            )


def _movement(draws: Mapping[str, np.ndarray], num_chains: int) -> tuple[np.ndarray, np.ndarray]:
    """Say, by chain and row, whether values ever change, and by row whether all are finite."""
    moved: list[np.ndarray] = [np.empty((num_chains, 0), bool)]
    finite: list[np.ndarray] = [np.empty(0, bool)]
    for x in draws.values():
        flat = x.astype(np.float64).reshape(*x.shape[:2], math.prod(x.shape[2:]))
        moved.append(np.any(flat != flat[:, :1], axis=1))
        finite.append(np.all(np.isfinite(flat), axis=(0, 1)))
    return np.concatenate(moved, axis=1), np.concatenate(finite)


def _some(
    rows: Sequence[str], flags: np.ndarray, values: np.ndarray | None = None, form: str = ""
) -> str:
    """Name the flagged rows, with their values if given, up to a limit."""
    found = np.flatnonzero(flags).tolist()
    names = [
        rows[k] if values is None else f"{rows[k]} ({values[k]:{form}})" for k in found[:_NAMED]
    ]
    more = f" and {len(found) - _NAMED:,} more" if len(found) > _NAMED else ""
    return ", ".join(names) + more
