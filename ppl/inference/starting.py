"""Where chains start: at finite points, drawn or given; and who is to blame if there is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import _jax
from ppl import distributions as dist
from ppl.errors import InitializationError, at, message
from ppl.program import Program
from ppl.semantics.density import joint, match_choices
from ppl.semantics.unconstrained import Unconstrained
from ppl.statements import sample

#: The box of unconstrained space that starts are drawn from, and how often.
RADIUS, TRIES = 2.0, 100


def drawn_start(space: Unconstrained, given: Mapping[str, Any] | None = None) -> tuple[Any, Any]:
    """Draw a point of unconstrained space until its density and gradient are finite.

    The log density should be known to a nat, too: where rounding alone is more, as at -1e8 in
    single precision, a chain cannot tell up from down. If no draw is, the first finite one is
    taken: with much data there may be none.

    Args:
        space: the coordinates.
        given: values, by address, that are not drawn.

    Returns:
        The point, and whether it is one.
    """

    def search(state: Any) -> Any:
        tries, first, ok, _ = state
        z = sample("start", dist.Uniform(-RADIUS, RADIUS).expand([space.size]).to_event(1))
        if given:
            z = space.flatten({**space.unflatten(z), **given})
        value, fine = _density(space, z)
        known = fine & (jnp.abs(value) * jnp.finfo(value.dtype).eps <= 1)
        return tries + 1, jnp.where(ok & ~known, first, z), ok | fine, known

    nowhere = jnp.zeros(space.size, jnp.result_type(float))
    empty = jnp.asarray(space.size == 0)
    start = 0, nowhere, empty, empty
    _, z, ok, _ = jax.lax.while_loop(lambda s: ~s[3] & (s[0] < TRIES), search, start)
    return z, ok


def finite(space: Unconstrained, z: Any) -> Any:
    """Tell whether density and gradient are finite."""
    return _density(space, z)[1]


def _density(space: Unconstrained, z: Any) -> tuple[Any, Any]:
    value, gradient = jax.value_and_grad(space.log_density)(z)
    return value, jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))


def given_starts(
    operation: str, program: Program, init: Mapping[str, Any], num_chains: int
) -> dict[str, Any]:
    """Give every chain its starting values.

    Args:
        operation: for messages.
        program: what is fitted.
        init: values of shape (*site) for all chains or (chain, *site).
        num_chains: their number.
    """
    if isinstance(init, Mapping):
        init = {a: x if _jax.is_tracer(x) else np.asarray(x) for a, x in init.items()}
        one = {
            a: x[0]
            if a in program.sites and x.shape == (num_chains, *program.sites[a].shape)
            else x
            for a, x in init.items()
        }
        match_choices(f"{operation}(init=)", program, one, complete=False)
    else:
        match_choices(f"{operation}(init=)", program, init)
    sites = [s for s in program.sites if s.kind == "latent" and s.address in init]
    return {
        s.address: jnp.broadcast_to(jnp.asarray(init[s.address], s.dtype), (num_chains, *s.shape))
        for s in sites
    }


def require_finite(
    operation: str, program: Program, ok: Any, choices: Any, given: bool, what: str
) -> None:
    """Raise where no finite starting point was found, naming the site that is to blame.

    Args:
        operation: for messages.
        program: what is fitted.
        ok: of shape (chain,), whether a chain has a point.
        choices: gives those of a chain.
        given: whether the user chose them.
        what: what has to be finite.
    """
    bad = np.flatnonzero(~np.asarray(ok))
    if not bad.size:
        return
    box = f"Uniform(-{RADIUS:g}, {RADIUS:g}) in unconstrained space"
    discrete = any(s.discrete for s in program.sites if s.kind == "latent")
    where = f"{TRIES} draws from {'the program and ' if discrete else ''}{box}"
    sites = joint(program, choices(int(bad[0]))).sites
    blamed = "the gradient of the joint density is not finite"
    for site in program.sites:
        record = sites.get(site.address)
        if record is None or bool(jnp.all(jnp.isfinite(record.value.log_density))):
            continue
        value = np.array2string(np.asarray(record.value.value), threshold=6, precision=4)
        density = float(jnp.sum(record.value.log_density))
        blamed = (
            f"{site.kind} site {at(site.address, site.source)} has log density {density} at "
            f"{value} (support: {site.support or 'none'}); it depends on "
            f"{', '.join(site.depends_on) or 'no other site'}"
        )
        break
    raise InitializationError(
        message(
            f"{operation} found no starting point with a finite density for {bad.size} of "
            f"{np.size(ok)} chains: {blamed}",
            needs=f"a finite {what} where a chain starts",
            why="init gave these values" if given else f"{where} were tried",
            fix="ppl.mcmc(..., init={address: value}) near plausible values, or mend the model",
        )
    )
