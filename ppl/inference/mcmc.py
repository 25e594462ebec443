"""`mcmc`: run a kernel as several chains."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from ppl import _jax
from ppl import distributions as dist
from ppl._types import PyTree
from ppl.errors import (
    ArgumentError,
    InitializationError,
    UnsupportedError,
    at,
    message,
    named_keywords,
)
from ppl.inference.kernel import GradientKernel
from ppl.program import Loop, Program, require_program
from ppl.semantics.chains import Chains
from ppl.semantics.density import joint, match_choices
from ppl.semantics.suspended import loop_program
from ppl.semantics.unconstrained import unconstrain
from ppl.statements import sample

_RADIUS, _TRIES = 2.0, 100


class _State(NamedTuple):
    kernel: PyTree
    position: Any
    ok: Any


@named_keywords
def mcmc(
    program: Program,
    kernel: GradientKernel,
    num_samples: int = 1000,
    num_warmup: int = 1000,
    num_chains: int = 4,
    init: Mapping[str, ArrayLike] | None = None,
) -> Program:
    """Fit a program by Markov chains.

    **Meaning.** Draws whose averages converge to expectations under the program's normalised
    measure, as the number of draws grows.

    Args:
        program: a program whose latent sites are continuous; flat improper priors are allowed.
        kernel: such as `ppl.kernels.nuts()`.
        num_samples: draws kept from each chain.
        num_warmup: steps of each chain that adapt the kernel and are not kept.
        num_chains: chains, run side by side.
        init: starting values by address, of shape (*site) for all chains or (chain, *site); None
            draws each unconstrained coordinate from Uniform(-2, 2), again until the density and
            its gradient are finite.

    Returns:
        A program of `Chains`, for `ppl.run`.

    Raises:
        ArgumentError: a number is not a positive integer, or the kernel is not one.
        UnsupportedError: a latent site is discrete, or there is none.
        InitializationError: (when run) no finite starting point was found; names the site.
    """
    require_program("mcmc", program)
    counts = {"num_samples": num_samples, "num_chains": num_chains, "num_warmup": num_warmup}
    for name, count in counts.items():
        _require_count(name, count, 0 if name == "num_warmup" else 1)
    if not isinstance(kernel, GradientKernel):
        raise ArgumentError(
            message(
                f"mcmc got the kernel {kernel!r}",
                needs="a kernel object",
                fix="ppl.mcmc(program, ppl.kernels.nuts())",
            )
        )
    space = unconstrain(program)
    if space.size == 0:
        raise UnsupportedError(
            message(
                f"mcmc got {program.name}, which has no latent site",
                needs="at least one continuous latent site",
                fix="ppl.run(program, key) draws from a program without latents or observations",
            )
        )
    loop = Loop(
        init=_init,
        step=_step,
        emit=_emit,
        finish=_finish,
        check=_check,
        length=int(num_warmup) + int(num_samples),
        skip=int(num_warmup),
        label="mcmc",
    )
    starts = None if init is None else _starts(program, init, num_chains)
    return loop_program(
        f"mcmc({program.name})", loop, program, kernel, int(num_chains), int(num_warmup), starts
    )


def _require_count(name: str, count: Any, least: int) -> None:
    try:
        fine = operator.index(count) >= least
    except TypeError:
        fine = False
    if not fine:
        raise ArgumentError(
            message(
                f"mcmc got {name}={count!r}",
                needs=f"an integer of at least {least}",
                fix=f"{name}=1000" if name != "num_chains" else "num_chains=4",
            )
        )


def _starts(program: Program, init: Mapping[str, Any], num_chains: int) -> dict[str, Any]:
    """Give every chain its starting values."""
    if isinstance(init, Mapping):
        init = {a: x if _jax.is_tracer(x) else np.asarray(x) for a, x in init.items()}
        one = {
            a: x[0]
            if a in program.sites and x.shape == (num_chains, *program.sites[a].shape)
            else x
            for a, x in init.items()
        }
        match_choices("mcmc(init=)", program, one)
    else:
        match_choices("mcmc(init=)", program, init)
    sites = [s for s in program.sites if s.kind == "latent"]
    return {
        s.address: jnp.broadcast_to(jnp.asarray(init[s.address], s.dtype), (num_chains, *s.shape))
        for s in sites
    }


# --- The loop's pieces: model functions of (program, kernel, num_chains, num_warmup, starts) -----


def _init(
    program: Program, kernel: GradientKernel, num_chains: int, num_warmup: int, starts: Any
) -> _State:
    space = unconstrain(program)

    def finite(z: Any) -> Any:
        value, gradient = jax.value_and_grad(space.log_density)(z)
        return jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))

    def search(state: Any) -> Any:
        tries, _, _ = state
        box = dist.Uniform(-_RADIUS, _RADIUS).expand([space.size]).to_event(1)
        z = sample("start", box)
        return tries + 1, z, finite(z)

    def one(given: Any) -> _State:
        if starts is None:
            nowhere = jnp.zeros(space.size, jnp.result_type(float))
            _, z, ok = jax.lax.while_loop(
                lambda s: ~s[2] & (s[0] < _TRIES), search, (0, nowhere, False)
            )
        else:
            z = space.flatten(given)
            ok = finite(z)
        return _State(kernel.init(space, z, num_warmup), z, ok)

    return jax.vmap(one)(jnp.arange(num_chains) if starts is None else starts)


def _step(
    state: _State,
    program: Program,
    kernel: GradientKernel,
    num_chains: int,
    num_warmup: int,
    starts: Any,
) -> tuple[_State, Any]:
    space = unconstrain(program)

    def one(state: _State) -> tuple[_State, Any]:
        inner, move = kernel.step(space, state.kernel, num_warmup)
        return _State(inner, move.position, state.ok), move

    return jax.vmap(one)(state)


def _emit(move: Any, program: Program, *_: Any) -> Any:
    points = jax.vmap(unconstrain(program).at)(move.position)
    return {**points.choices, **points.deterministics}, move.stats, points.present


def _finish(state: _State, kept: Any, program: Program, *_: Any) -> Chains:
    draws, stats, present = jax.tree.map(lambda x: x.swapaxes(0, 1), kept)
    order = [s.address for s in program.sites if s.address in draws]
    draws = {a: draws[a] for a in sorted(order, key=lambda a: a not in program.latents)}
    return Chains(draws, stats, state, program, program.latents, present)


def _check(
    state: _State, program: Program, kernel: Any, num_chains: int, num_warmup: int, starts: Any
) -> None:
    """Raise where no finite starting point was found, naming the site that is to blame."""
    bad = np.flatnonzero(~np.asarray(state.ok))
    if not bad.size:
        return
    chain = int(bad[0])
    if starts is None:
        choices = unconstrain(program).at(state.position[chain]).choices
        tried = (
            f"{_TRIES} draws from Uniform(-{_RADIUS:g}, {_RADIUS:g}) in unconstrained space were "
            "tried"
        )
    else:
        choices = {a: x[chain] for a, x in starts.items()}
        tried = "init gave these values"
    sites = joint(program, choices).sites
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
            f"mcmc found no starting point with a finite density for {bad.size} of "
            f"{state.ok.shape[0]} chains: {blamed}",
            needs="a finite log density and gradient where a chain starts",
            why=tried,
            fix="ppl.mcmc(..., init={address: value}) near plausible values, or mend the model",
        )
    )
