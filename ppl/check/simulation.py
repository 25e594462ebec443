"""Choices and data from a program, and an algorithm's posterior draws given those data."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ppl import distributions as dist
from ppl._types import Choices, PyTree
from ppl.check.draws import draw_many
from ppl.errors import (
    ArgumentError,
    OpenObservationsError,
    UnsupportedError,
    at,
    check_addresses,
    message,
)
from ppl.interpreter import Record
from ppl.program import Program, require_program
from ppl.semantics.chains import Chains
from ppl.semantics.density import joint
from ppl.semantics.handlers import condition, unobserve
from ppl.semantics.population import Population
from ppl.semantics.weighted import traced
from ppl.staging import stage
from ppl.statements import sample, scope

_BLOCK = 64  # simulations that run side by side

Infer = Callable[..., Any]


class Simulations(NamedTuple):
    """Repeated simulations, of arrays with a leading axis; `draws` have (simulation, draw, *site).

    `log_likelihood` holds that of the truth and of the draws, or None if some choices are missing
    from the draws.
    """

    truth: dict[str, Any]
    data: dict[str, Any]
    draws: dict[str, Any]
    log_likelihood: tuple[Any, Any] | None


def generative(operation: str, program: Program) -> Program:
    """Make a program's observations latent, if that leaves nothing to weigh."""
    require_program(operation, program)
    if not program.observed:
        raise ArgumentError(
            message(
                f"{operation} got {program.name}, which observes nothing",
                needs="a program with observations, whose data can be simulated",
                fix='ppl.sample("y", distribution, obs=y) in the model; any y of the right shape',
            )
        )
    free = unobserve(program)
    if free.structure.open_scores:
        site = free.structure.open_scores[0]
        raise OpenObservationsError(
            message(
                f"{operation} got a factor or a scaled site at {at(site.address, site.source)}",
                needs="a program from which choices and data can be drawn",
                why="a factor reweighs runs, and simulated data would ignore it",
                fix="ppl.sample(address, distribution, obs=...) in place of ppl.factor",
            )
        )
    return free


def simulate(
    operation: str, infer: Infer, program: Program, num_draws: int, num: int, key: Array
) -> Simulations:
    """Draw choices and data from a program `num` times, and infer the choices from the data."""
    free = generative(operation, program)
    _refuse_branches(operation, program)
    args = (free, program.observed, operation, infer, num_draws)
    return draw_many(stage(_simulation, args, name=operation), key, num, block=_BLOCK)


def prior(operation: str, program: Program, num: int, key: Array) -> tuple[Any, Any]:
    """Draw choices and data from a program, by address with a leading axis."""
    free = generative(operation, program)
    return draw_many(stage(simulated, (free, program.observed), name=operation), key, num)


def simulated(free: Program, observed: tuple[str, ...]) -> tuple[Choices, Choices]:
    """Draw choices and data once; a model function."""
    with scope("simulated"):
        choices = traced(free)().choices
    data = {a: choices[a] for a in observed}
    return {a: x for a, x in choices.items() if a not in data}, data


def _refuse_branches(operation: str, program: Program) -> None:
    for site in program.sites:
        if site.kind == "latent" and site.conditional:
            raise UnsupportedError(
                message(
                    f"{operation} got the latent site {at(site.address, site.source)}, which "
                    "stands in a branch",
                    needs="choices that every run makes",
                    why="a choice that may be absent has no rank",
                    fix="draw it before the branch, or check the algorithm on another program",
                )
            )


def _simulation(
    free: Program, observed: tuple[str, ...], operation: str, infer: Infer, num_draws: int
) -> Simulations:
    """Simulate once; a model function."""
    truth, data = simulated(free, observed)
    posterior = condition(free, data)
    with scope("inferred"):
        result = infer(posterior, data) if _takes_data(infer) else infer(posterior)
        result = result() if isinstance(result, Program) else result  # a model inlines itself
        draws = _fitting(operation, _draws(operation, result, num_draws), truth)
    shown = {a: truth[a] for a in draws}
    if len(draws) < len(truth):
        return Simulations(shown, data, draws, None)
    likelihoods = jax.vmap(lambda c: log_likelihood(posterior, c))(draws)
    return Simulations(shown, data, draws, (log_likelihood(posterior, truth), likelihoods))


def _takes_data(infer: Infer) -> bool:
    """Whether the function has a second positional argument without a default."""
    try:
        parameters = inspect.signature(infer).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in positional and p.default is p.empty]
    return len(needed) == 2


def _draws(operation: str, result: PyTree, num: int) -> Choices:
    """Take `num` equally weighted draws of every site from a result."""
    if isinstance(result, Population):
        logits = jnp.broadcast_to(result.log_weights, (num, result.num_particles))
        ancestors = sample("resample", dist.CategoricalLogits(logits))
        return {a: x[ancestors] for a, x in result.choices.items()}
    if isinstance(result, Chains):
        latents = result.latents or tuple(result.draws)
        rows = {a: result.draws[a].reshape(-1, *result.draws[a].shape[2:]) for a in latents}
        return {a: _spaced(operation, x, num) for a, x in rows.items()}
    if isinstance(result, Mapping):
        return {a: _spaced(operation, jnp.asarray(x), num) for a, x in result.items()}
    raise ArgumentError(
        message(
            f"{operation}(infer=) gave {type(result).__name__}",
            needs="a program of Chains, of a Population, or of a mapping from addresses to arrays "
            "of shape (draw, *site)",
            fix="infer=lambda p: ppl.importance(p, num_particles=1000)",
        )
    )


def _fitting(operation: str, draws: Choices, truth: Choices) -> Choices:
    """Check that draws are of the program's choices, and give them in its order."""
    check_addresses(f"{operation}(infer=)", draws, truth)
    for address, x in draws.items():
        if x.shape[1:] != truth[address].shape:
            raise ArgumentError(
                message(
                    f'{operation}(infer=) gave draws of shape {x.shape[1:]} at "{address}"',
                    needs=f"shape {truth[address].shape}, that of the site",
                    why="a draw is compared with the true value number by number",
                    fix=f"let infer give an array of shape (draw, *{truth[address].shape})",
                )
            )
    if not draws:
        raise ArgumentError(
            message(
                f"{operation}(infer=) gave no draws",
                needs=f"draws of some of {', '.join(truth)}",
                fix='return {"address": draws}',
            )
        )
    return {a: draws[a] for a in truth if a in draws}


def _spaced(operation: str, x: Array, num: int) -> Array:
    have = x.shape[0] if x.ndim else 0
    if have < num:
        raise ArgumentError(
            message(
                f"{operation} got {have} posterior draws",
                needs=f"at least num_draws={num}",
                fix=f"let infer keep more draws, or set num_draws={max(have, 1)}",
            )
        )
    return x[np.arange(num) * have // num]


def log_likelihood(program: Program, choices: Choices) -> Array:
    """Sum the log densities of all observations at given choices."""
    sites = joint(program, choices).sites
    return sum((_total(sites[a]) for a in program.observed), jnp.zeros(()))


def _total(record: Record) -> Array:
    x = record.value.log_density
    if record.present is None:
        return jnp.sum(x)
    extra = (1,) * (x.ndim - record.present.ndim)
    return jnp.sum(jnp.where(record.present.reshape(record.present.shape + extra), x, 0.0))


def flat(values: Mapping[str, Any], lead: int) -> tuple[tuple[str, ...], Any]:
    """Lay sites out in one last axis, after `lead` axes; and name its entries."""
    names, parts = [], []
    for address, x in values.items():
        x = np.asarray(x, np.float64)
        shape = x.shape[lead:]
        names += [address + (f"[{','.join(map(str, i))}]" if i else "") for i in np.ndindex(shape)]
        parts.append(x.reshape(*x.shape[:lead], -1))
    return tuple(names), np.concatenate(parts, axis=-1)
