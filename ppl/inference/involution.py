"""`involution`: involutive MCMC. Auxiliary variables are drawn; what follows is deterministic.

With x the choices that exist and u auxiliary variables of density q(u; x), a map that is its own
inverse takes (x, u) to (x', u'), and is accepted with probability min(1, ratio),

    ratio = p(x') q(u'; x') / (p(x) q(u; x)) * |det d(x', u') / d(x, u)|,

the determinant being over the continuous coordinates that exist before, and those that exist after:
as many, though not the same ones, where the dimension of x changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ppl._types import Choices, Key, PyTree, pytree, static
from ppl.counts import count
from ppl.errors import (
    ArgumentError,
    ModelError,
    message,
    named_keywords,
)
from ppl.inference.redrawing import canonical, refuse_scores
from ppl.inference.trace_kernel import Step, Time, TraceKernel, accepted, over
from ppl.inference.volume import State, log_volume, require_full
from ppl.model import Model
from ppl.program import Program, require_program
from ppl.semantics.density import match_choices
from ppl.semantics.kernel import choose
from ppl.semantics.run import run
from ppl.semantics.weighted import Trace, trace_of, traced
from ppl.staging import stage
from ppl.statements import scope

Transform = Callable[[Choices, Choices], tuple[Mapping[str, Any], Mapping[str, Any]]]


@named_keywords
def involution(auxiliary: Callable[[Trace], Any], transform: Transform) -> Involution:
    """Make the kernel that draws auxiliary variables and applies a map that is its own inverse.

    **Meaning.** Leaves the program's measure on choices invariant, exactly, and is reversible. The
    Jacobian is computed. Where the transform does not lead back, beyond rounding, or has another
    number of continuous coordinates before and after, the move is rejected: that keeps the measure,
    and a chain that stays where it is; `verify` tells whether it is so.

    In sites of branches that are not taken, and in the auxiliary variables of such, the transform
    finds zeros; what it puts there is forgotten. So one map takes a run with one component to one
    with two, and back:

        def auxiliary(trace):
            jax.lax.cond(
                trace.choices["k"] == 0,
                lambda: ppl.sample("u", dist.Normal(0.0, 1.0)),
                lambda: 0.0,
            )

        def transform(x, u):
            split, m = x["k"] == 0, (x["m1"] + x["m2"]) / 2
            choices = {"k": 1 - x["k"], "m": m, "m1": x["m"] - u["u"], "m2": x["m"] + u["u"]}
            return choices, {"u": (x["m2"] - x["m1"]) / 2}

    Args:
        auxiliary: a model function from the present trace that draws auxiliary variables, at
            addresses of its own.
        transform: from choices and auxiliary variables, by address, to those that are different
            after the move, by address; the others stay. Differentiable in the continuous ones.

    Returns:
        A `Kernel`, with a method `verify`.

    Raises:
        ArgumentError: auxiliary or transform is no function; or (when called) the transform gives
            something else than two mappings.
        AddressError: (when called) the transform gives a value for an unknown address.
        ObservationError: (when called) the transform gives a value of another shape or dtype.
        OpenObservationsError: (when called) `auxiliary` scores.
        UnsupportedError: (when called) the transform moves a site whose values have fewer
            dimensions than coordinates, such as a simplex.

    Source: Neklyudov et al. (2020); Cusumano-Towner, Lew and Mansinghka (2020); the determinant
    across dimensions is that of Green (1995).
    """
    for name, function in (("auxiliary", auxiliary), ("transform", transform)):
        if not callable(function):
            raise ArgumentError(
                message(
                    f"involution got {name}={function!r}",
                    needs="a function",
                    fix="ppl.kernels.involution(auxiliary, transform)",
                )
            )
    return Involution(auxiliary, transform)


class _Attempt(NamedTuple):
    """A transformed state, and what its acceptance depends on."""

    trace: Trace
    before: State
    after: State
    again: State
    possible: Any
    returns: Any
    matched: Any
    log_det: Any
    log_ratio: Any


@pytree
class Involution(TraceKernel):
    """The kernel of `involution`."""

    auxiliary: Callable[[Trace], Any] = static()
    transform: Transform = static()

    operation: ClassVar[str] = "involution"

    def move(self, trace: Trace) -> Trace:
        """Draw auxiliary variables, transform, and accept or not."""
        return self.step(trace, (), Time(0, 0)).trace

    def step(self, trace: Trace, memory: PyTree, time: Time) -> Step:
        """Move, and report the probability of acceptance."""
        found = self._attempt(trace)
        valid = found.possible & found.returns & found.matched & ~jnp.isnan(found.log_ratio)
        ratio = jnp.where(valid, found.log_ratio, -jnp.inf)
        rate = jnp.exp(jnp.minimum(0.0, ratio))
        return Step(choose(accepted(ratio), found.trace, trace), memory, {"acceptance_rate": rate})

    def verify(self, program: Program, *, key: Key = 0, num_draws: int = 100) -> None:
        """Try the transform on draws from the program and the auxiliary variables.

        A chain cannot raise: there such moves are rejected.

        Args:
            program: its latents are drawn; its scores do not matter.
            key: a JAX key or a seed.
            num_draws: how many states to try.

        Raises:
            ModelError: the transform does not lead back, or has another number of continuous
                coordinates before and after.
        """
        require_program("verify", program)
        num_draws = count("verify", "num_draws", num_draws)
        tries = run(stage(_tries, (self, program, num_draws), name="verify"), key)
        possible, returns, matched = (np.asarray(x) for x in tries[3:])
        failed = np.flatnonzero(possible & ~(returns & matched))
        if not failed.size:
            return
        first = int(failed[0])
        before, after, again = ("; ".join(_shown(x, first) for x in pair) for pair in tries[:3])
        leads_back = bool(returns[first])
        raise ModelError(
            message(
                f"involution got a transform that maps ({before}) to ({after})"
                + ("" if leads_back else f", and that to ({again})"),
                needs="as many continuous coordinates after as before"
                if leads_back
                else "a transform that is its own inverse",
                why=f"of {num_draws} states drawn, {failed.size} are like this, and a chain would "
                "never leave them by this kernel",
                fix="auxiliary variables for what the move discards, so that "
                "transform(*transform(x, u)) == (x, u)",
            )
        )

    # --- One attempt ----------------------------------------------------------------------------

    def _program(self, trace: Trace) -> Program:
        whole = self.auxiliary
        return whole.program(trace) if isinstance(whole, Model) else stage(whole, (trace,))

    def _attempt(self, trace: Trace) -> _Attempt:
        trace = canonical(trace)
        program, forth = trace._known_program("involution"), self._program(trace)
        refuse_scores("involution got a model of auxiliary variables", forth)
        with scope("auxiliary"):
            drawn = traced(forth)()
        old = trace_of(forth, drawn.choices)
        before = trace.choices, old.canonical[0]
        after = self._transformed(program, forth, before)
        moved = canonical(trace.with_choices(after[0]))
        back = self._program(moved)
        new = trace_of(back, after[1])
        after = moved.choices, new.canonical[0]
        again = self._transformed(program, back, after)
        returns = _same(trace, again[0], before[0]) & _same(old, again[1], before[1])
        names = self._differentiated(program, forth, before)
        log_det, matched = log_volume(
            lambda state: self._transformed(program, forth, state),
            before,
            names,
            (trace, old),
            (moved, new),
        )
        p_new, q_new, p_old, q_old = (x.log_density for x in (moved, new, trace, old))
        return _Attempt(
            trace=moved,
            before=before,
            after=after,
            again=again,
            possible=p_new + q_new > -jnp.inf,
            returns=returns,
            matched=matched,
            log_det=log_det,
            log_ratio=p_new + q_new - p_old - q_old + log_det,
        )

    def _transformed(self, program: Program, auxiliary: Program, state: State) -> State:
        """Apply the transform, and check what can be seen of it."""
        changes = self._changes(state)
        found = []
        for p, old, new in zip((program, auxiliary), state, changes, strict=True):
            given = match_choices("involution", p, new, complete=False)
            found.append({a: given[a].astype(x.dtype) if a in given else x for a, x in old.items()})
        return found[0], found[1]

    def _changes(self, state: State) -> Sequence[Mapping[str, Any]]:
        changes = self.transform(dict(state[0]), dict(state[1]))
        if (
            not isinstance(changes, tuple)
            or len(changes) != 2
            or not all(isinstance(x, Mapping) for x in changes)
        ):
            raise ArgumentError(
                message(
                    f"involution got a transform that returned {type(changes).__name__}",
                    needs="a pair of mappings from addresses to values",
                    why="it says what the choices and the auxiliary variables become",
                    fix='return {"x": u["v"]}, {"v": choices["x"]}',
                )
            )
        return changes

    def _differentiated(
        self, program: Program, auxiliary: Program, state: State
    ) -> list[tuple[int, str]]:
        """List the continuous sites that the determinant depends on: others stay and exist."""
        moving = jax.eval_shape(lambda s: [dict(x) for x in self._changes(s)], state)
        names = []
        for i, p in enumerate((program, auxiliary)):
            for site in p.sites:
                moves = site.address in moving[i]
                if site.kind == "latent" and not site.discrete and (moves or site.conditional):
                    names.append((i, site.address))
                    if moves:
                        require_full("involution", site)
        return names


def _same(trace: Trace, one: Choices, two: Choices) -> Any:
    """Tell whether two choices agree, up to rounding, where the trace has them."""
    agree = [jnp.ones((), bool)]
    for address, a in two.items():
        b = one[address]
        if jnp.issubdtype(a.dtype, jnp.inexact):
            slack = jnp.sqrt(jnp.finfo(a.dtype).eps)
            equal = jnp.abs(a - b) <= slack * jnp.maximum(1.0, jnp.abs(a))
        else:
            equal = a == b
        flag = trace.present.get(address)
        agree.append(jnp.all(equal if flag is None else equal | ~over(flag, equal)))
    return jnp.all(jnp.array(agree))


# --- Trying a transform -------------------------------------------------------------------------


def _tries(kernel: Involution, program: Program, num_draws: int) -> Any:
    """Draw states and attempt a move from each; a model function."""

    def one(_: Any) -> Any:
        with scope("state"):
            drawn = traced(program)()
        found = kernel._attempt(trace_of(program, drawn.choices))
        return (
            found.before, found.after, found.again,
            found.possible, found.returns, found.matched,
        )  # fmt: skip

    return jax.vmap(one)(jnp.arange(num_draws))


def _shown(choices: Choices, index: int) -> str:
    return ", ".join(
        f"{a} = {np.array2string(np.asarray(x)[index], threshold=6, precision=4)}"
        for a, x in choices.items()
    )
