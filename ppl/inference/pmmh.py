"""`pmmh`: Markov chains on parameters whose likelihood a particle filter estimates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from ppl.counts import count
from ppl.errors import (
    ArgumentError,
    InitializationError,
    message,
    named_keywords,
)
from ppl.inference.particle_marginal import (
    Given,
    Point,
    Proposal,
    Space,
    move,
    require_proper,
    space_of,
)
from ppl.inference.particles.bootstrap import bootstrap_settings
from ppl.inference.pseudo_marginal import Filter, as_parameters, filtered, prior
from ppl.program import Loop, Program
from ppl.resampling import Resampling
from ppl.semantics.chains import Chains
from ppl.semantics.density import match_choices
from ppl.semantics.handlers import do
from ppl.semantics.suspended import loop_program
from ppl.semantics.weighted import trace_of, weighted
from ppl.statements import scope

_TRIES = 100


@named_keywords
def pmmh(
    program: Program,
    parameters: Sequence[str],
    num_particles: int,
    proposal: Proposal | None = None,
    num_samples: int = 1000,
    num_warmup: int = 1000,
    num_chains: int = 4,
    init: Mapping[str, ArrayLike] | None = None,
    resample: str | type[Resampling] = "systematic",
    ess_threshold: float = 0.5,
    target_accept: float | None = None,
    trajectories: bool = True,
) -> Program:
    """Fit parameters by Markov chains, and estimate their likelihood by a particle filter.

    **Meaning.** Draws whose averages converge to expectations under the program's normalised
    measure, of parameters and all other latent sites, with any number of particles. Each step
    proposes parameters and runs a filter of N particles for them; the evidence estimate of the
    current parameters is kept, and never made anew. The more an estimate varies, the longer chains
    stay where one came out high: choose N so that the log evidence at likely parameters has a
    standard deviation of about one.

    Args:
        program: any program whose latent sites are bounded in number.
        parameters: addresses of latent sites that stand outside of loops and branches, and depend
            on no other latent site than parameters.
        num_particles: number of particles N.
        proposal: a model function from the current parameters, by address, that draws the next at
            the same addresses; they may be discrete. None takes Gaussian steps in unconstrained
            space, whose covariance and scale adapt in warmup, and are fixed after it.
        num_samples: draws kept from each chain.
        num_warmup: steps of each chain that adapt the proposal and are not kept.
        num_chains: chains, run side by side.
        init: starting values of the parameters, of shape (*site) for all chains or (chain, *site);
            None draws them from the prior, again until an evidence estimate is positive.
        resample: name or class of a scheme of `ppl.resampling`.
        ess_threshold: resample where the effective sample size is below this part of N.
        target_accept: the acceptance rate that the default proposal's scale is tuned to; None for
            0.234. Not to be given with a proposal.
        trajectories: keep one particle's choices with each draw; False keeps the parameters alone.

    Returns:
        A program of `Chains`. Its `stats` are "acceptance_rate", the probability with which the
        proposal was accepted; "log_evidence", the estimate of log p(data | parameters) that the
        state has; and "lp", that plus the prior's log density.

    Raises:
        ArgumentError: a setting is out of range.
        AddressError: a parameter is not a latent site, or the proposal draws others.
        UnsupportedError: a parameter stands in a loop or branch, depends on other draws, or is
            discrete where there is no proposal.
        InitializationError: (when run) no parameters of positive estimated evidence were found.

    Source: Andrieu, Doucet and Holenstein (2010); adaptation of Haario, Saksman and Tamminen (2001)
        with the scale of Andrieu and Thoms (2008), algorithm 4, in warmup only.
    """
    names = as_parameters("pmmh", program, parameters)
    settings = Filter(names, *bootstrap_settings("pmmh", num_particles, resample, ess_threshold))
    chains = count("pmmh", "num_chains", num_chains)
    samples = count("pmmh", "num_samples", num_samples)
    warmup = count("pmmh", "num_warmup", num_warmup, 0)
    theirs = prior(program, names)
    space = space_of("pmmh", theirs, proposal)
    if init is None:
        require_proper("pmmh", theirs, 'ppl.pmmh(..., init={{"{}": ...}})')
    loop = Loop(
        init=_init,
        step=_step,
        emit=_emit,
        finish=_finish,
        check=_check,
        length=warmup + samples,
        skip=warmup,
        label="pmmh",
    )
    if proposal is not None and target_accept is not None:
        raise ArgumentError(
            message(
                f"pmmh got target_accept={target_accept!r} beside a proposal",
                needs="one of them",
                why="a proposal of yours has no scale to tune",
                fix="leave target_accept out",
            )
        )
    accept = 0.234 if target_accept is None else target_accept
    if not 0 < accept < 1:
        raise ArgumentError(
            message(
                f"pmmh got target_accept={target_accept!r}",
                needs="a number between 0 and 1",
                fix="target_accept=0.234",
            )
        )
    about = _About(
        program,
        filtered(program, settings, bool(trajectories)),
        theirs,
        space,
        None if init is None else _starts(theirs, init, chains),
        chains,
        bool(trajectories),
        jnp.asarray(warmup),
        jnp.asarray(accept, jnp.result_type(float)),
    )
    return loop_program(f"pmmh({program.name})", loop, about)


class _About(NamedTuple):
    """What the loop is made with."""

    program: Program
    filter: Program
    prior: Program
    space: Space
    starts: Any
    num_chains: int
    trajectories: bool
    num_warmup: Any
    target_accept: Any


def _starts(prior: Program, init: Any, num_chains: int) -> dict[str, Any]:
    """Give every chain its starting values."""

    def first(address: str, x: Any) -> Any:
        sites = prior.sites
        many = address in sites and np.shape(x) == (num_chains, *sites[address].shape)
        return x[0] if many else x

    one = {a: first(a, x) for a, x in init.items()} if isinstance(init, Mapping) else init
    match_choices("pmmh(init=)", prior, one)
    return {
        s.address: jnp.broadcast_to(jnp.asarray(init[s.address], s.dtype), (num_chains, *s.shape))
        for s in prior.sites
        if s.kind == "latent"
    }


# --- The loop's pieces: model functions ---------------------------------------------------------


class _Adaptation(NamedTuple):
    """What the steps of the default proposal are drawn by."""

    mean: Any
    covariance: Any
    log_scale: Any
    count: Any

    @property
    def root(self) -> Any:
        """A square root of the covariance of steps."""
        size = self.mean.shape[0]
        jitter = 1e-6 * jnp.eye(size, dtype=self.mean.dtype)
        return jnp.exp(self.log_scale) * jnp.linalg.cholesky(self.covariance + jitter)

    @classmethod
    def at(cls, position: Any) -> _Adaptation:
        """Start with unit steps at a position."""
        size = position.shape[0]
        scale = jnp.asarray(np.log(2.38 / np.sqrt(size)), position.dtype)
        return cls(position, jnp.eye(size, dtype=position.dtype), scale, jnp.zeros((), int))

    def updated(self, position: Any, probability: Any, about: _About) -> _Adaptation:
        """Learn from a step of warmup."""
        rate = jnp.minimum(0.5, (self.count + 1.0) ** -0.6).astype(position.dtype)
        off = position - self.mean
        learned = _Adaptation(
            self.mean + rate * off,
            self.covariance + rate * (jnp.outer(off, off) - self.covariance),
            self.log_scale + rate * (probability - about.target_accept),
            self.count + 1,
        )
        return jax.tree.map(
            lambda a, b: jnp.where(self.count < about.num_warmup, a, b), learned, self
        )


class _State(NamedTuple):
    point: Point
    adaptation: Any
    ok: Any


def _rerun(about: _About) -> Any:
    """Give the filter as a function of parameters: its evidence, and one particle's choices."""

    def rerun(parameters: Any) -> Any:
        run = weighted(do(about.filter, parameters))()
        return run.log_weight, run.value.choices

    return rerun


def _init(about: _About) -> _State:
    space, rerun = about.space, _rerun(about)

    def one(given: Any) -> _State:
        def attempt() -> tuple[Point, Any]:
            with scope("prior"):
                parameters = weighted(about.prior)().value if about.starts is None else given
            position = space.start(parameters)
            log_evidence, held = rerun(parameters)
            ok = jnp.isfinite(space.at(position).log_density + log_evidence)
            return Point(position, log_evidence, held), ok

        def again(state: Any) -> Any:
            return state[0] + 1, *attempt()

        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(attempt))
        _, point, ok = jax.lax.while_loop(lambda s: ~s[2] & (s[0] < _TRIES), again, (0, *nothing))
        return _State(
            point, None if isinstance(space, Given) else _Adaptation.at(point.position), ok
        )

    return jax.vmap(one)(jnp.arange(about.num_chains) if about.starts is None else about.starts)


def _step(state: _State, about: _About) -> tuple[_State, Any]:
    def one(state: _State) -> tuple[_State, Any]:
        adaptation = state.adaptation
        root = None if adaptation is None else adaptation.root
        point, probability = move(about.space, _rerun(about), state.point, root)
        if adaptation is not None:
            adaptation = adaptation.updated(point.position, probability, about)
        return _State(point, adaptation, state.ok), (point, probability)

    return jax.vmap(one)(state)


def _emit(out: Any, about: _About) -> Any:
    def one(point: Point, probability: Any) -> Any:
        here = about.space.at(point.position)
        stats = {
            "acceptance_rate": probability,
            "log_evidence": point.log_evidence,
            "lp": here.log_prior + point.log_evidence,
        }
        if not about.trajectories:
            return here.parameters, stats, {}
        trace = trace_of(about.program, {**point.held, **here.parameters})
        return {**trace.choices, **trace.deterministics}, stats, trace.present

    return jax.vmap(one)(*out)


def _finish(state: _State, kept: Any, about: _About) -> Chains:
    draws, stats, present = jax.tree.map(lambda x: x.swapaxes(0, 1), kept)
    program = about.program
    order = [s.address for s in program.sites if s.address in draws]
    draws = {a: draws[a] for a in sorted(order, key=lambda a: a not in program.latents)}
    latents = tuple(a for a in draws if a in program.latents)
    return Chains(draws, stats, state, program, latents, present)


def _check(state: _State, about: _About) -> None:
    bad = np.flatnonzero(~np.asarray(state.ok))
    if bad.size:
        raise InitializationError(
            message(
                f"pmmh found no parameters of positive estimated evidence for {bad.size} of "
                f"{state.ok.shape[0]} chains",
                needs="a finite log prior density and log evidence estimate where a chain starts",
                why=f"{_TRIES} filters were run, "
                + ("for draws from the prior" if about.starts is None else "for the given values"),
                fix="ppl.pmmh(..., init={address: value}) near plausible values, or more particles",
            )
        )
