"""`mcmc`: run a kernel as several chains."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from ppl import distributions as dist
from ppl._types import Choices, PyTree
from ppl.counts import count
from ppl.errors import AddressError, UnsupportedError, check_addresses, message, named_keywords
from ppl.inference.coordinates import coordinates
from ppl.inference.parts import as_kernels
from ppl.inference.starting import (
    TRIES,
    drawn_start,
    finite,
    given_starts,
    require_finite,
)
from ppl.inference.trace_kernel import FlatKernel, Time, TraceKernel, typical
from ppl.program import Loop, Program, require_program
from ppl.semantics.chains import Chains
from ppl.semantics.kernel import Kernel
from ppl.semantics.suspended import loop_program
from ppl.semantics.unconstrained import unconstrain
from ppl.semantics.weighted import trace_of, traced
from ppl.statements import sample


@named_keywords
def mcmc(
    program: Program,
    kernel: Kernel,
    num_samples: int = 1000,
    num_warmup: int = 1000,
    num_chains: int = 4,
    init: Mapping[str, ArrayLike] | None = None,
    thin: int = 1,
    keep: Sequence[str] | None = None,
) -> Program:
    """Fit a program by Markov chains.

    **Meaning.** Draws whose averages converge to expectations under the program's normalised
    measure, as the number of draws grows, if the kernel leaves that measure invariant and can reach
    all of it.

    Args:
        program: a program whose latent sites are bounded in number; flat improper priors are
            allowed where the kernel moves in unconstrained space.
        kernel: such as `ppl.kernels.nuts()`, a composition of several, or your own `@ppl.kernel`.
        num_samples: draws kept from each chain.
        num_warmup: moves of each chain that adapt the kernel and are not kept.
        num_chains: chains, run side by side; on a CPU, those of NUTS on all of its cores.
        init: starting values by address, of shape (*site) for all chains or (chain, *site). Those
            not given are drawn: each unconstrained coordinate from Uniform(-2, 2), again until the
            log density and its gradient are finite, and rounding moves it by no more than a nat
            (where that never happens, the first finite draw is taken); discrete sites from the
            program, again as well.
        thin: only every thin-th move is kept.
        keep: addresses whose draws are kept; None for all.

    Returns:
        A program of `Chains`, for `ppl.run`. Of its `stats`, "lp" is the log joint density of the
        draw; with NUTS on all latents that of its unconstrained coordinates, Jacobian included.

    Raises:
        ArgumentError: a number is not a positive integer, or the kernel is not one.
        AddressError: `init` or `keep` has an address that the program has not.
        UnsupportedError: no latent site is there, or the kernel refuses one.
        InitializationError: (when run) no finite starting point was found; names the site.
    """
    require_program("mcmc", program)
    samples = count("mcmc", "num_samples", num_samples)
    warmup = count("mcmc", "num_warmup", num_warmup, 0)
    chains = count("mcmc", "num_chains", num_chains)
    thin = count("mcmc", "thin", thin)
    (kernel,) = as_kernels("mcmc", kernel)
    if not program.latents:
        raise UnsupportedError(
            message(
                f"mcmc got {program.name}, which has no latent site",
                needs="at least one latent site",
                fix="ppl.run(program, key) draws from a program without latents or observations",
            )
        )
    shown = [s.address for s in program.sites if s.kind in ("latent", "deterministic")]
    keep = None if keep is None else _keep(keep)
    check_addresses("mcmc(keep=)", keep or (), shown)
    starts = None if init is None else given_starts("mcmc", program, init, chains)
    pieces = _MOVES
    if isinstance(kernel, FlatKernel) and kernel.addresses is None:
        space = unconstrain(program)  # refuses a discrete latent, and names it
        kernel.check(space, warmup, chains)
        pieces = dataclasses.replace(_FLAT, done=kernel.flat_done, alone=kernel.flat_alone)
    loop = dataclasses.replace(pieces, length=warmup + samples * thin, skip=warmup, thin=thin)
    setting = Setting(program, kernel, starts, chains, warmup, keep)
    return loop_program(f"mcmc({program.name})", loop, setting)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Setting:
    """The arguments of `mcmc`, of which arrays are data."""

    program: Program
    kernel: TraceKernel
    starts: dict[str, Any] | None
    num_chains: int = dataclasses.field(metadata={"static": True})
    num_warmup: int = dataclasses.field(metadata={"static": True})
    keep: tuple[str, ...] | None = dataclasses.field(metadata={"static": True})

    @property
    def complete(self) -> bool:
        """Whether every starting value is given."""
        return self.starts is not None and set(self.starts) == set(self.program.latents)

    @property
    def lanes(self) -> Any:
        """One entry for each chain: what is given of its start."""
        return jnp.arange(self.num_chains) if self.starts is None else self.starts


def _keep(addresses: Sequence[str]) -> tuple[str, ...]:
    found = (addresses,) if isinstance(addresses, str) else tuple(addresses)
    if not found or len(set(found)) < len(found):
        raise AddressError(
            message(
                f"mcmc got keep={addresses!r}",
                needs="one or more different addresses, or None for all",
                fix='ppl.mcmc(..., keep=["x"])',
            )
        )
    return found


def _lean(setting: Setting) -> tuple[Setting]:
    """Forget where chains started: other starts compile nothing anew."""
    return (dataclasses.replace(setting, starts=None),)


def _kept(setting: Setting, values: dict[str, Any]) -> dict[str, Any]:
    return {a: x for a, x in values.items() if setting.keep is None or a in setting.keep}


def _finish(state: Any, kept: Any, setting: Setting) -> Chains:
    draws, stats, present = jax.tree.map(lambda x: x.swapaxes(0, 1), kept)
    program = setting.program
    order = [*program.latents, *(s.address for s in program.sites if s.kind == "deterministic")]
    draws = {a: draws[a] for a in order if a in draws}
    return Chains(draws, stats, state, program, program.latents, present)


# --- A flat kernel: chains in unconstrained space, many steps a move ----------------------------


class _Flat(NamedTuple):
    state: Any
    ok: Any
    start: Any


def _gradient(setting: Setting) -> Any:
    return jax.value_and_grad(unconstrain(setting.program).log_density)


def _flat_init(setting: Setting) -> _Flat:
    space = unconstrain(setting.program)

    def one(given: Any) -> Any:
        seed = sample("seed", dist.Seed())
        if not setting.complete:
            return *drawn_start(space, None if setting.starts is None else given), seed
        z = space.flatten(given)
        return z, finite(space, z), seed

    z, ok, seed = jax.vmap(one)(setting.lanes)
    kernel: Any = setting.kernel
    return _Flat(kernel.flat_start(_gradient(setting), z, seed), ok, z)


def _flat_ahead(block: Any, count: int, flat: _Flat, setting: Setting) -> Any:
    kernel: Any = setting.kernel
    return kernel.ahead(block, count, unconstrain(setting.program).size, flat.state.seed)


def _flat_step(flat: _Flat, drawn: Any, setting: Setting) -> Any:
    kernel: Any = setting.kernel
    state, out = kernel.flat_step(_gradient(setting), flat.state, drawn, setting.num_warmup)
    return flat._replace(state=state), out


def _flat_emit(out: Any, setting: Setting) -> Any:
    kernel: Any = setting.kernel
    position, stats = kernel.flat_stats(out)
    points = jax.vmap(unconstrain(setting.program).at)(position)
    values = _kept(setting, {**points.choices, **points.deterministics})
    return values, stats, {a: x for a, x in points.present.items() if a in values}


def _flat_check(flat: _Flat, setting: Setting) -> None:
    def choices(chain: int) -> Any:
        if setting.starts is None or not setting.complete:
            return unconstrain(setting.program).at(flat.start[chain]).choices
        return {a: x[chain] for a, x in setting.starts.items()}

    what = "log density and gradient"
    require_finite("mcmc", setting.program, flat.ok, choices, setting.complete, what)


def _flat_hand(chains: Chains, underway: Any, setting: Setting) -> Chains:
    kernel: Any = setting.kernel
    kernel = kernel.flat_tuned(chains.state.state)
    return dataclasses.replace(chains, kernel=kernel, underway=underway)


_FLAT = Loop(
    init=_flat_init,
    step=_flat_step,
    emit=_flat_emit,
    finish=_finish,
    length=0,
    label="mcmc",
    check=_flat_check,
    ahead=_flat_ahead,
    lean=_lean,
    hand=_flat_hand,
)


# --- Any kernel: from trace to trace ------------------------------------------------------------


class _Moves(NamedTuple):
    choices: Choices
    memory: PyTree
    index: Any
    ok: Any


def _moves_init(setting: Setting) -> _Moves:
    program = setting.program

    def one(given: Any) -> _Moves:
        choices = given
        if not setting.complete:
            choices = _start(program, {} if setting.starts is None else given)
        trace = trace_of(program, choices)
        memory = setting.kernel.start(trace)
        ok = jnp.isfinite(trace.log_density)
        return _Moves(trace.choices, memory, jnp.zeros((), int), ok)

    return jax.vmap(one)(setting.lanes)


def _start(program: Program, given: Choices) -> Choices:
    """Draw discrete sites from the program and others from a box, until the density is finite.

    Args:
        program: what is fitted.
        given: values that are not drawn.
    """
    latents = [s for s in program.sites if s.kind == "latent"]
    continuous = tuple(s.address for s in latents if not s.discrete)
    if len(continuous) == len(latents):
        space = unconstrain(program)
        return {**space.unflatten(drawn_start(space, given)[0]), **given}

    def search(state: Any) -> Any:
        drawn = {**traced(program)().choices, **given}
        if continuous:
            space = coordinates("mcmc", trace_of(program, drawn), continuous).space
            some = {a: x for a, x in given.items() if a in continuous}
            drawn = {**drawn, **space.unflatten(drawn_start(space, some)[0]), **some}
        return state[0] + 1, drawn, jnp.isfinite(trace_of(program, drawn).log_density)

    nowhere = {s.address: jnp.zeros(s.shape, s.dtype) for s in latents}
    start = 0, nowhere, jnp.zeros((), bool)
    return jax.lax.while_loop(lambda s: ~s[2] & (s[0] < TRIES), search, start)[1]


def _moves_step(state: _Moves, setting: Setting) -> tuple[_Moves, Any]:
    def one(state: _Moves) -> tuple[_Moves, Any]:
        trace = trace_of(setting.program, state.choices)
        time = Time(state.index, setting.num_warmup)
        after, memory, stats = setting.kernel.step(trace, state.memory, time)
        same = {a: after.choices[a].astype(x.dtype) for a, x in state.choices.items()}
        memory = jax.tree.map(lambda old, new: jnp.asarray(new, old.dtype), state.memory, memory)
        out = same, {**stats, "lp": after.log_density}
        return _Moves(same, memory, state.index + 1, state.ok), out

    return jax.vmap(one)(state)


def _moves_emit(out: Any, setting: Setting) -> Any:
    choices, stats = out

    def one(choices: Choices) -> Any:
        trace = trace_of(setting.program, choices)
        values = _kept(setting, {**trace.choices, **trace.deterministics})
        return values, {a: x for a, x in trace.present.items() if a in values}

    values, present = jax.vmap(one)(choices)
    return values, stats, present


def _moves_check(state: _Moves, setting: Setting) -> None:
    def choices(chain: int) -> Any:
        return {a: x[chain] for a, x in state.choices.items()}

    require_finite("mcmc", setting.program, state.ok, choices, setting.complete, "log density")


def _moves_hand(chains: Chains, underway: Any, setting: Setting) -> Chains:
    kernel = typical(setting.kernel, chains.state.memory)
    return dataclasses.replace(chains, kernel=kernel, underway=underway)


_MOVES = Loop(
    init=_moves_init,
    step=_moves_step,
    emit=_moves_emit,
    finish=_finish,
    length=0,
    label="mcmc",
    check=_moves_check,
    lean=_lean,
    hand=_moves_hand,
)
