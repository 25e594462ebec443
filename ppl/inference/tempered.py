"""`tempered_smc`: a population that goes from the prior to the posterior in small steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from ppl._types import Choices
from ppl.counts import count
from ppl.errors import ArgumentError, UnsupportedError, at, message, named_keywords
from ppl.inference.moving import Lineage, chains, fitted, require_kernel, traces_of
from ppl.program import Program, inline, require_program
from ppl.resampling import Resampling, scheme
from ppl.semantics.kernel import Kernel
from ppl.semantics.population import Population
from ppl.semantics.tempering import Tempered, known, next_temperature, schedule, to_power
from ppl.semantics.weighted import Trace, traced
from ppl.staging import stage
from ppl.statements import sample, scope


@named_keywords
def tempered_smc(
    program: Program,
    num_particles: int,
    kernel: Kernel | Callable[[Population], Kernel],
    temperatures: ArrayLike | None = None,
    ess_threshold: float | None = None,
    num_moves: int = 1,
    resample: str | type[Resampling] = "systematic",
    max_temperatures: int | None = None,
    waste_free: int | None = None,
) -> Program:
    """Go from the prior to the posterior through powers of the likelihood.

    **Meaning.** A population for the program's measure. Particles are draws of the program without
    its scores. For each temperature they are weighed by the product of their scores to the power of
    the increase, resampled, and moved by a kernel for the program whose scores have the
    temperature as power; latent sites keep a scale they have. The evidence estimate is the product
    of the mean weights. With given temperatures and one kernel, evidence and weighted sums are
    unbiased; temperatures or kernels chosen by the particles leave them consistent, and biased, on
    the natural scale.

    Args:
        program: any program whose latent sites are bounded in number and proper.
        num_particles: number of particles N.
        kernel: leaves the programs invariant (`ppl.check.invariant` tells); or a function that
            gives such a kernel for a weighted population of the program it is to leave invariant.
        temperatures: increasing powers, above 0 and up to 1; None chooses each so that the
            conditional effective sample size of the next weights, among particles that can have a
            positive one, is a given part of the particles.
        ess_threshold: that part, None for 0.5; not to be given with temperatures.
        num_moves: how often the kernel is applied at each temperature, or in each link of a chain.
        resample: name or class of a scheme of `ppl.resampling`.
        max_temperatures: most temperatures that are chosen, None for 100; the last of them is 1
            whatever the effective sample size. Not to be given with temperatures.
        waste_free: length P of chains. At each temperature N / P particles are resampled, and all
            the P states that P - 1 links lead through are kept; None keeps the last state only.

    Returns:
        A program of `Population`, equally weighted. Its `steps` has a row for each temperature:
        "temperature", "ess" of the weights before resampling, "log_evidence" up to there, and
        "moved", the fraction of links that changed a choice. Where temperatures are chosen, rows
        that were not needed are NaN, and "exhausted" tells whether the last went to 1 because of
        `max_temperatures` and not because the effective sample size allowed it.
        `log_evidence_se` comes from the shares of weight of the first particles' descendants; it is
        NaN where all descend from one, or too few first ones are left to tell.

    Raises:
        ArgumentError: a setting is out of range, or the kernel is none.
        UnsupportedError: a latent site stands in a `while_loop`, or is a flat improper prior.

    Source: Del Moral, Doucet and Jasra (2006); conditional effective sample size of Zhou, Johansen
        and Aston (2016); waste-free chains of Dau and Chopin (2022); bias of Beskos et al. (2016);
        standard error of Lee and Whiteley (2018), who correct by what multinomial resampling adds
        on average, here by what resampling added.
    """
    require_program("tempered_smc", program)
    _check_sites(program)
    size, length = count("tempered_smc", "num_particles", num_particles), 1
    if waste_free is not None:
        length = count("tempered_smc", "waste_free", waste_free, 2)
        _require(
            size % length == 0,
            f"waste_free={length} for {size} particles",
            "chains of a length that divides the number of particles",
            "every chain leaves as many particles",
            f"num_particles={-(-size // length) * length}",
        )
    require_kernel("tempered_smc", kernel, callable(kernel))
    moves = _Moves(
        kernel, scheme(resample), size, count("tempered_smc", "num_moves", num_moves), length
    )
    _require(
        temperatures is None or (ess_threshold is None and max_temperatures is None),
        f"ess_threshold={ess_threshold!r}, max_temperatures={max_temperatures!r} and temperatures",
        "temperatures, or settings by which they are chosen",
        "given temperatures leave nothing to choose",
        "leave temperatures out",
    )
    most = 100 if max_temperatures is None else max_temperatures
    settings = (
        _schedule(temperatures),
        _fraction(0.5 if ess_threshold is None else ess_threshold),
        count("tempered_smc", "max_temperatures", most),
    )
    return stage(_tempered_smc, (program, moves, *settings), name=f"tempered_smc({program.name})")


class _Moves(NamedTuple):
    """What happens at a temperature; `length` is how many particles a chain leaves."""

    kernel: Any
    scheme: type[Resampling]
    num_particles: int
    num_moves: int
    length: int

    @property
    def num_chains(self) -> int:
        """How many particles are resampled."""
        return self.num_particles // self.length


class _State(NamedTuple):
    """A population, after so many temperatures."""

    choices: Choices
    log_likelihood: Any
    log_weights: Any
    log_evidence: Any
    temperature: Any
    lineage: Lineage
    variance: Any
    count: Any


def _tempered_smc(
    program: Program, moves: _Moves, temperatures: Any, threshold: Any, most: int
) -> Population:
    family, size = Tempered(program), moves.num_particles
    with scope("start"):
        first = traced(family.at(0.0))
        start: Trace = jax.vmap(lambda _: inline(first))(jnp.arange(size))
    state = _State(
        *_particles(family, start),
        start.log_weight,
        log_evidence=_number(0),
        temperature=_number(0),
        lineage=Lineage.start(moves.num_chains, moves.length),
        variance=_number(0),
        count=jnp.zeros((), int),
    )
    if temperatures is None:
        state, steps = _adapted(family, moves, state, threshold, most)
    else:
        step = lambda state, t: _step(family, moves, state, t)  # noqa: E731
        state, steps = jax.lax.scan(step, state, temperatures)
    final = traces_of(family.whole, state.choices, size)
    weights = jnp.broadcast_to(state.log_evidence, size)
    error = jnp.sqrt(state.variance)
    return Population(
        final.value,
        weights,
        weights[0],
        state.choices,
        program,
        error,
        final.present,
        steps,
        state.lineage.eve,
    )


def _particles(family: Tempered, traces: Trace) -> tuple[Choices, Any]:
    """Keep of traces the choices, zero where there are none, and the likelihood."""
    return jax.vmap(lambda trace: trace.canonical[0])(traces), family.log_likelihood(traces)


def _step(
    family: Tempered, moves: _Moves, state: _State, temperature: Any
) -> tuple[_State, dict[str, Any]]:
    """Reweigh, resample, move."""
    factors = to_power(state.log_likelihood, temperature - state.temperature)
    log_weights = state.log_weights + factors
    log_mean = jax.nn.logsumexp(log_weights) - math.log(moves.num_particles)
    log_evidence = state.log_evidence + log_mean
    # Where every weight is zero the run has weight zero, wherever particles are: at temperature 0
    # they are possible, so that no kernel starts from an impossible trace.
    program = family.at(jnp.where(log_evidence == -jnp.inf, 0.0, temperature))
    weighed = Population(None, log_weights, log_evidence, state.choices, program)
    with scope("resample"):
        ancestors = sample("ancestors", moves.scheme(log_weights, num=moves.num_chains))
    chosen = {a: x[ancestors] for a, x in state.choices.items()}
    with scope("move"):
        kernel = fitted("tempered_smc", moves.kernel, weighed)
        traces, moved = chains(
            kernel, program, chosen, moves.num_chains, moves.num_moves, moves.length
        )
    new = _State(
        *_particles(family, traces),
        log_weights=jnp.zeros_like(log_weights),
        log_evidence=log_evidence,
        temperature=temperature,
        lineage=state.lineage.resampled(weighed.weights, ancestors),
        variance=state.lineage.variance(weighed.weights),
        count=state.count + 1,
    )
    return new, {
        "temperature": temperature,
        "ess": weighed.ess,
        "log_evidence": log_evidence,
        "moved": moved,
    }


def _adapted(
    family: Tempered, moves: _Moves, state: _State, threshold: Any, most: int
) -> tuple[_State, dict[str, Any]]:
    """Go on until the temperature is 1, or every weight is zero."""

    def body(carry: Any) -> Any:
        state, rows, _ = carry
        found = next_temperature(
            state.temperature, state.log_weights, state.log_likelihood, threshold
        )
        last = state.count == most - 1
        new, row = _step(family, moves, state, jnp.where(last, 1.0, found))
        rows = jax.tree.map(lambda xs, x: xs.at[state.count].set(x), rows, row)
        return new, rows, last & (found < 1)

    names = ("temperature", "ess", "log_evidence", "moved")
    rows = {name: jnp.full(most, jnp.nan, jnp.result_type(float)) for name in names}
    state, rows, exhausted = jax.lax.while_loop(
        lambda carry: (carry[0].temperature < 1) & (carry[0].log_evidence > -jnp.inf),
        body,
        (state, rows, jnp.zeros((), bool)),
    )
    return state, {**rows, "exhausted": exhausted}


def _number(x: float) -> Any:
    return jnp.full((), x, jnp.result_type(float))


# --- Settings -----------------------------------------------------------------------------------


def _check_sites(program: Program) -> None:
    for site in program.sites:
        if site.kind == "latent" and (site.placed.whiles or site.improper):
            what, needs, fix = (
                ("a latent site in a while_loop", "sites that occur a known number of times",
                 "use jax.lax.scan, and mask the iterations that are not wanted")
                if site.placed.whiles
                else ("an improper flat prior", "latent sites that can be drawn from",
                      f'give "{site.address}" a proper prior')
            )  # fmt: skip
            why = "particles are choices, drawn from the prior and moved by a kernel"
            where = at(site.address, site.source)
            raise UnsupportedError(
                message(f"tempered_smc got {what} at {where}", needs=needs, why=why, fix=fix)
            )


def _require(fine: Any, got: str, needs: str, why: str, fix: str) -> None:
    if not fine:
        raise ArgumentError(message(f"tempered_smc got {got}", needs=needs, why=why, fix=fix))


def _schedule(temperatures: Any) -> Any:
    return None if temperatures is None else jnp.asarray(schedule("tempered_smc", temperatures))


def _fraction(threshold: Any) -> Any:
    value = known(threshold)
    _require(
        value.ndim == 0 and 0 < value < 1,
        f"ess_threshold={threshold!r}",
        "a number between 0 and 1, known when the program is made",
        "it is a part of the particles",
        "ess_threshold=0.5",
    )
    return jnp.asarray(value)
