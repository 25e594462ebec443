"""`particle_gibbs`: chains that alternate conditional SMC with a kernel for what is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl._types import Choices
from ppl.counts import count
from ppl.errors import ArgumentError, InitializationError, check_addresses, message, named_keywords
from ppl.inference.conditional import ConditionalSMC, conditional_smc
from ppl.inference.particles import Run
from ppl.inference.particles.bootstrap import Bootstrap
from ppl.inference.particles.future import choose_particle
from ppl.inference.trace_kernel import as_addresses
from ppl.program import Loop, Program, require_program
from ppl.resampling import scheme
from ppl.semantics.chains import Chains
from ppl.semantics.kernel import Kernel
from ppl.semantics.suspended import loop_program
from ppl.semantics.weighted import Trace, trace_of
from ppl.statements import scope


@named_keywords
def particle_gibbs(
    program: Program,
    num_particles: int,
    num_samples: int = 1000,
    num_warmup: int = 0,
    num_chains: int = 4,
    kernel: Kernel | None = None,
    addresses: Sequence[str] | None = None,
    ess_threshold: float = 1.0,
    ancestor_sampling: bool = True,
    backward_sampling: bool = False,
) -> Program:
    """Fit a program by Markov chains that redraw its loops with particles.

    **Meaning.** Draws whose averages converge to expectations under the program's normalised
    measure, with any number of particles from two on. Each step redraws the sites at `addresses`
    given the others by conditional SMC, then moves the trace by `kernel`. A chain starts from a
    draw of a particle filter.

    Args:
        program: any program whose latent sites are bounded in number.
        num_particles: number of particles.
        num_samples: draws kept from each chain.
        num_warmup: steps of each chain before those.
        num_chains: chains, run side by side.
        kernel: leaves the program's measure invariant and moves the sites that are not at
            `addresses`, such as `ppl.kernels.random_walk(scale, addresses=["sigma"])`. None if
            there are none.
        addresses: the sites that particles redraw; None for all that stand in loops.
        ess_threshold: as in `ppl.kernels.conditional_smc`.
        ancestor_sampling: as there.
        backward_sampling: as there; in place of ancestor sampling.

    Returns:
        A program of `Chains`. Its `stats` are "lp", the log joint density, and "renewed", the part
        of the numbers at `addresses` that the particles changed.

    Raises:
        ArgumentError: a setting is out of range, the kernel is none, or there is none for sites
            that particles do not redraw.
        AddressError: an address is not a latent site of the program.
        UnsupportedError: as in `ppl.kernels.conditional_smc`.
        InitializationError: (when run) a filter found no run of positive weight.

    Source: Andrieu, Doucet and Holenstein (2010), section 2.4.3; Lindsten, Jordan and Schön (2014).
    """
    require_program("particle_gibbs", program)
    names = as_addresses("particle_gibbs", addresses) or _looped(program)
    check_addresses("particle_gibbs", names, program.latents)
    _require_kernel(kernel, [a for a in program.latents if a not in names])
    warmup = count("particle_gibbs", "num_warmup", num_warmup, 0)
    samples = count("particle_gibbs", "num_samples", num_samples)
    chains = count("particle_gibbs", "num_chains", num_chains)
    particles = conditional_smc(
        num_particles,
        addresses=names,
        ess_threshold=ess_threshold,
        ancestor_sampling=ancestor_sampling and not backward_sampling,
        backward_sampling=backward_sampling,
    )
    loop = Loop(
        init=_init,
        step=_step,
        emit=_emit,
        finish=_finish,
        check=_check,
        length=warmup + samples,
        skip=warmup,
        label="particle_gibbs",
    )
    name = f"particle_gibbs({program.name})"
    return loop_program(name, loop, program, particles, kernel, chains)


def _looped(program: Program) -> tuple[str, ...]:
    found = [s.address for s in program.sites if s.kind == "latent" and s.placed.scans]
    if not found:
        raise ArgumentError(
            message(
                f"particle_gibbs got {program.name}, in which no latent site stands in a loop",
                needs="addresses that particles redraw",
                fix=f"addresses={list(program.latents)}",
            )
        )
    return tuple(found)


def _require_kernel(kernel: Any, left: list[str]) -> None:
    if isinstance(kernel, Kernel) or (kernel is None and not left):
        return
    fix = f"kernel=ppl.kernels.single_site(addresses={left})" if left else "kernel=None"
    raise ArgumentError(
        message(
            f"particle_gibbs got kernel={kernel!r}" + (f" for the sites {left}" if left else ""),
            needs="a Kernel that moves what the particles do not redraw",
            why="a site that nothing moves keeps the value with which the chain starts"
            if left
            else "it is applied to traces",
            fix=fix,
        )
    )


class _State(NamedTuple):
    choices: Choices
    ok: Any


# --- The loop's pieces: model functions of (program, particles, kernel, num_chains) --------------


def _init(program: Program, particles: ConditionalSMC, kernel: Any, num_chains: int) -> _State:
    def one(_: Any) -> _State:
        strategy = Bootstrap(scheme("systematic"), 0.5)
        found = Run(strategy, particles.num_particles).program(program)
        last = choose_particle("start", found.log_weights)
        return _State({a: x[last] for a, x in found.choices.items()}, found.log_evidence > -jnp.inf)

    return jax.vmap(one)(jnp.arange(num_chains))


def _step(
    state: _State, program: Program, particles: ConditionalSMC, kernel: Any, num_chains: int
) -> tuple[_State, Any]:
    def one(choices: Choices) -> tuple[Choices, Any]:
        before = trace_of(program, choices)
        with scope("conditional_smc"):
            trace = particles(before)
        renewed = _renewed(before, trace, particles.addresses or ())
        if kernel is not None:
            with scope("kernel"):
                trace = kernel(trace)
        choices = {a: trace.choices[a].astype(x.dtype) for a, x in choices.items()}
        stats = {"lp": trace.log_density, "renewed": renewed}
        return choices, ({**choices, **trace.deterministics}, stats, trace.present)

    choices, out = jax.vmap(one)(state.choices)
    return state._replace(choices=choices), out


def _emit(out: Any, *_: Any) -> Any:
    return out


def _renewed(before: Trace, after: Trace, addresses: Sequence[str]) -> Any:
    """Give the part of the numbers that changed."""
    old, new = before.canonical[0], after.canonical[0]
    changed = jnp.concatenate([jnp.ravel(old[a] != new[a]) for a in addresses])
    return jnp.mean(changed, dtype=jnp.result_type(float))


def _finish(state: _State, kept: Any, program: Program, *_: Any) -> Chains:
    draws, stats, present = jax.tree.map(lambda x: x.swapaxes(0, 1), kept)
    order = [*program.latents, *(s.address for s in program.sites if s.kind == "deterministic")]
    draws = {a: draws[a] for a in order if a in draws}
    return Chains(draws, stats, state, program, program.latents, present)


def _check(state: _State, program: Program, particles: ConditionalSMC, *_: Any) -> None:
    bad = np.flatnonzero(~np.asarray(state.ok))
    if bad.size:
        raise InitializationError(
            message(
                f"particle_gibbs found no starting point for {bad.size} of {state.ok.shape[0]} "
                f"chains of {program.name}",
                needs="one of the particles of a filter to have a positive weight",
                why=f"all weights of {particles.num_particles} particles were zero",
                fix="more particles, or mend the model so that what it draws can have produced "
                "the observations",
            )
        )
