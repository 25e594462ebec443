"""Predictive draws and pointwise likelihoods of a program, given choices or from the prior."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ppl._types import Key
from ppl.checks import observed_values
from ppl.errors import (
    ObservationError,
    OpenObservationsError,
    ResultError,
    at,
    check_addresses,
    message,
    named_keywords,
)
from ppl.interpreter import Frame, Interpreter, evaluate
from ppl.primitives import Site, draw, value_of, with_operand
from ppl.program import Program, require_program
from ppl.semantics.density import joint
from ppl.semantics.run import as_key


class Predicting(Interpreter):
    """Take what is given, draw the rest, observations included, and record every site."""

    name = "predictive"
    unbounded, rebinds = False, False

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        if site.kind == "deterministic":
            value = value_of(site, leaves)
        elif site.address in frame.given:
            value = frame.given[site.address]
        else:
            free, bare = with_operand(site, leaves, "value", None, mapped=False)
            value = draw(free, bare, frame.key_for(site))
        frame.record(site, leaves, value)
        return value

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        """A factor's weight is already in the draws that are given."""


def _predict(program: Program, given: Any, key: Any) -> dict[str, Array]:
    s = program.structure
    records = evaluate(
        Predicting(), s.jaxpr, program.consts, program.args, key=key, given=given
    ).records
    return {a: r.value for a, r in records.items() if a not in given}


@jax.jit
def _predict_many(program: Program, given: Any, keys: Any) -> dict[str, Array]:
    return jax.vmap(_predict, in_axes=(None, 0, 0))(program, given, keys)


@named_keywords
def posterior_predictive(
    program: Program, choices: Mapping[str, Any], key: Key
) -> dict[str, Array]:
    """Draw, for each row of `choices`, all sites that are not given, observations included.

    Args:
        program: the program the choices are from.
        choices: by address, arrays of shape (rows, *site); latent sites left out are drawn anew.
        key: PRNG key or seed.

    Returns:
        By address, arrays of shape (rows, *site): observations, deterministics, remaining latents.
    """
    require_program("posterior_predictive", program)
    check_addresses("posterior_predictive", choices, program.latents)
    given = {a: jnp.asarray(x) for a, x in choices.items()}
    rows = {x.shape[0] for x in given.values() if x.ndim}
    for address, x in given.items():
        site = program.sites[address]
        if len(rows) != 1 or x.shape[1:] != site.shape:
            raise ObservationError(
                message(
                    f"posterior_predictive got shape {x.shape} for {at(address, site.source)}",
                    needs=f"shape (rows, *{site.shape}), with the same rows for all addresses",
                    why=f"each row is one draw; the rows are {sorted(rows)}",
                    fix="chains.predictive(key), or reshape the draws to (rows, *site)",
                )
            )
    if not given:
        raise ResultError(
            message(
                "posterior_predictive got no choices",
                needs="at least one latent address",
                fix="ppl.prior_predictive(program, key)",
            )
        )
    return _predict_many(program, given, jax.random.split(as_key(key), rows.pop()))


@named_keywords
def prior_predictive(program: Program, key: Key, num_draws: int = 1000) -> dict[str, Array]:
    """Draw every site from the program with its observations left open.

    Args:
        program: a program without factors.
        key: PRNG key or seed.
        num_draws: number of independent draws.

    Returns:
        By address, arrays of shape (num_draws, *site).

    Raises:
        OpenObservationsError: the program has a factor, which is part of no distribution to draw
            from.
    """
    require_program("prior_predictive", program)
    weighed = [
        s for s in program.sites if s.kind == "factor" or (s.kind == "latent" and s.weighted)
    ]
    if weighed:
        where = at(weighed[0].address, weighed[0].source)
        raise OpenObservationsError(
            message(
                f"prior_predictive got a factor or scaled prior at {where}",
                needs="a program whose prior can be drawn from",
                why="a factor reweighs runs, and draws would ignore it",
                fix="ppl.mask(program, False) if the prior without factors is meant, or fit the "
                "program and use .predictive(key)",
            )
        )
    keys = jax.random.split(as_key(key), num_draws)
    return _predict_many(program, {}, keys)


@jax.jit
def log_likelihood(program: Program, choices: Any) -> dict[str, Array]:
    """Give, for each row of choices, the elementwise log density of every observation."""
    observed = program.observed

    def one(choices: Any) -> dict[str, Array]:
        sites = joint(program, choices).sites
        return {a: sites[a].value.log_density for a in observed}

    return jax.vmap(one)(choices)


def observations(program: Program) -> dict[str, Any]:
    """The observed values that do not depend on a draw."""
    return observed_values(program.sites, [*program.consts, *program.args])
