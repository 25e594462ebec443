"""`fit`: descend, or climb, an expectation by its estimated gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ppl import distributions as dist
from ppl._types import PyTree
from ppl.context import context
from ppl.counts import count
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference.vi.ahead import split
from ppl.inference.vi.expectation import expectation
from ppl.inference.vi.fitted import Fit, Held
from ppl.inference.vi.objective import described
from ppl.inference.vi.optimizers import as_optimizer
from ppl.inference.vi.starting import refuse_start, trainable
from ppl.inference.vi.stopping import Plateau, Window
from ppl.program import Loop, Program
from ppl.semantics.run import draw_flat
from ppl.semantics.suspended import loop_program
from ppl.staging import stage
from ppl.statements import sample


@named_keywords
def fit(
    objective: Callable[[PyTree], Program],
    params: PyTree = None,
    *,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 1000,
    maximize: bool | None = None,
    num_samples: int = 1,
    average: float | None = None,
    stop: Plateau | None = None,
    program: Any = None,
    guide: Any = None,
) -> Program:
    """Fit parameters by stochastic gradients of an expectation.

    **Meaning.** A run of an optimizer on unbiased gradients of the mean of `objective(params)`'s
    value. It comes near a stationary point as step sizes fall (Robbins & Monro 1951); with constant
    ones it keeps moving about it, which `average` takes out. A step whose estimate or gradient is
    not finite changes nothing but the count of such steps, which the result reports.

    Args:
        objective: such as `ppl.vi.elbo(program, guide)` with a guide that has parameters, or any
            function from parameters to a program without scores whose value is one real number.
        params: where to start: a pytree of floating arrays, or an Equinox module, of which only
            those are changed; None for what the objective proposes.
        optimizer: of optax, schedules included; None for Adam with step size 0.01.
        num_steps: the number of updates.
        maximize: climb rather than descend; None asks the objective.
        num_samples: independent runs that each estimate averages.
        average: None for the last parameters, or a number in (0, 1] for a mean over all steps whose
            weights grow like the step's number to the power 2 / average - 2. Their mean age is
            that of the plain mean over this last fraction of the steps; at 1 it is the plain mean.
        stop: a rule by which to stop before `num_steps`, such as `ppl.vi.Plateau()`. The steps
            that are left then change nothing; inside another program the values of those are NaN.
        program: the model that an objective of your own is about, or a function of parameters that
            makes it: for `Fit.program` and, with `guide`, for `Fit.draws` and `Fit.psis`.
        guide: likewise the guide; its parameters are where to start if there are no others.

    Returns:
        A program of `Fit`, for `ppl.run`.

    Raises:
        ArgumentError: an argument is not what it should be; the message says what.
        OpenObservationsError: the objective scores.
        InitializationError: (when run) the first steps, up to eight, were all not finite.

    Source: for the average, Shamir & Zhang (2013), section 4: it needs no length in advance, so
    that a fit can be extended.
    """
    steps = count("fit", "num_steps", num_steps)
    samples = count("fit", "num_samples", num_samples)
    if not callable(objective) or isinstance(objective, Program):
        raise ArgumentError(
            message(
                f"fit got the objective {getattr(objective, 'name', objective)!r} of type "
                f"{type(objective).__name__}",
                needs="a function from parameters to a program",
                why="a program has no parameters left to fit",
                fix="ppl.vi.elbo(program, ppl.vi.mean_field(program))",
            )
        )
    if program is not None or guide is not None:
        objective = described(objective, program, guide)
    if average is not None and not (type(average) in (int, float) and 0 < average <= 1):
        raise _refusal("average", average, "a number in (0, 1], or None", "average=0.5")
    if stop is not None and not isinstance(stop, Plateau):
        raise _refusal("stop", stop, "a rule, or None", "stop=ppl.vi.Plateau(window=500)")
    if maximize is None:
        maximize = getattr(objective, "maximize", None)
    if not isinstance(maximize, (bool, np.bool_)):
        raise _refusal("maximize", maximize, "True or False", "maximize=False to descend")
    arrays, rest = trainable(getattr(objective, "params", None) if params is None else params)
    setting = Setting(
        objective,
        arrays,
        rest,
        as_optimizer("fit", optimizer),
        bool(maximize),
        samples,
        None if average is None else float(average),
        stop,
    )
    program = _objective(arrays, setting)
    loop = dataclasses.replace(_LOOP, length=steps)
    return loop_program(f"fit({program.name})", loop, setting)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Setting:
    """The arguments of `fit`, of which arrays are data."""

    objective: Any
    params: Any
    rest: Any
    optimizer: Any
    maximize: bool = dataclasses.field(metadata={"static": True})
    num_samples: int = dataclasses.field(metadata={"static": True})
    average: float | None = dataclasses.field(metadata={"static": True})
    stop: Plateau | None = dataclasses.field(metadata={"static": True})


def _refusal(name: str, value: Any, needs: str, fix: str) -> ArgumentError:
    return ArgumentError(message(f"fit got {name}={value!r}", needs=needs, fix=f"fit(..., {fix})"))


# --- One estimate -------------------------------------------------------------------------------


def _objective(arrays: PyTree, setting: Setting) -> Program:
    with context(None):  # the objective makes a program; it is no part of this one
        program = setting.objective(eqx.combine(arrays, setting.rest))
        if not isinstance(program, Program):
            raise ArgumentError(
                message(
                    f"fit got an objective that gave {type(program).__name__}",
                    needs="a function from parameters to a program",
                    fix="return ppl.vi.elbo(program, guide), or a model of the parameters",
                )
            )
        return expectation(program, setting.num_samples, setting.maximize)


def _estimate(words: Any, arrays: PyTree, setting: Setting) -> tuple[Any, PyTree]:
    """Estimate value and gradient."""

    def value(arrays: PyTree) -> Any:
        key = dist.Seed.key(words)
        (found,) = draw_flat(_objective(arrays, setting), key)
        return found

    return jax.value_and_grad(value)(arrays)


def _staged(arrays: PyTree, setting: Setting) -> Program:
    words = jax.ShapeDtypeStruct((2,), jnp.uint32)
    return stage(_estimate, (words, arrays, setting), name="estimate")


# --- The loop -----------------------------------------------------------------------------------


class State(NamedTuple):
    """Where a fit stands: `mean` of the parameters, counts of steps, and a seed for the rest."""

    params: PyTree
    optimizer: PyTree
    mean: PyTree
    window: Window | None
    stopped: Any
    steps: Any
    skipped: Any
    seed: Any


def _init(setting: Setting) -> State:
    arrays, kind = setting.params, jnp.result_type(float)
    zero = jnp.zeros((), jnp.int32)
    return State(
        params=arrays,
        optimizer=setting.optimizer.init(arrays),
        mean=None if setting.average is None else arrays,
        window=None if setting.stop is None else setting.stop.start(kind),
        stopped=jnp.zeros((), bool),
        steps=zero,
        skipped=zero,
        seed=sample("seed", dist.Seed()),
    )


def _ahead(block: Any, count: int, state: State, setting: Setting) -> Any:
    """Give each step its own key: the seed with the step's number added, which Threefry hashes."""
    number = (block * count + jnp.arange(count)).astype(jnp.uint32)
    words = jnp.stack([jnp.full(count, state.seed[0]), state.seed[1] + number], axis=1)
    program = _staged(state.params, setting)
    return jax.vmap(lambda w: split(program).early(w, program))(words)


def _step(state: State, drawn: Any, setting: Setting) -> tuple[State, Any]:
    def update(state: State) -> tuple[State, Any]:
        return _updated(state, drawn, setting)

    if setting.stop is None:
        return update(state)
    nothing = jnp.full((), jnp.nan, jnp.result_type(float))
    return jax.lax.cond(state.stopped, lambda s: (s, nothing), update, state)


def _updated(state: State, drawn: Any, setting: Setting) -> tuple[State, Any]:
    program = _staged(state.params, setting)
    value, gradient = program.structure.rebuild(split(program).late(drawn, program))
    leaves = (value, *jax.tree.leaves(gradient))
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))
    sign = -1 if setting.maximize else 1
    optimizer = optax.with_extra_args_support(setting.optimizer)
    updates, memory = optimizer.update(
        jax.tree.map(lambda g: sign * g, gradient),
        state.optimizer,
        state.params,
        value=sign * value,
    )
    params = optax.apply_updates(state.params, updates)
    params, memory = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old).astype(old.dtype),
        (params, memory),
        (state.params, state.optimizer),
    )
    steps = state.steps + 1
    mean, window, stopped = state.mean, state.window, state.stopped
    if setting.average is not None:
        power = 2 / setting.average - 2
        share = (power + 1) / (steps + power)
        mean = jax.tree.map(lambda m, x: m + (share * (x - m)).astype(m.dtype), mean, params)
    if setting.stop is not None and window is not None:
        window, stopped = setting.stop.after(window, -sign * value, finite)
    skipped = state.skipped + ~finite
    return State(params, memory, mean, window, stopped, steps, skipped, state.seed), value


def _check(state: State, setting: Setting) -> None:
    if 0 < int(state.steps) == int(state.skipped):
        estimate = jax.jit(lambda words, arrays: _estimate(words, arrays, setting))
        value, gradient = estimate(state.seed, setting.params)
        refuse_start(setting, int(state.steps), value, gradient)


def _finish(state: State, values: Any, setting: Setting) -> Fit:
    found = state.params if setting.average is None else state.mean
    return Fit(
        params=eqx.combine(found, setting.rest),
        values=values,
        steps=state.steps,
        skipped=state.skipped,
        stopped=state.stopped,
        held=Held.of(setting.objective),
        state=state,
        maximize=setting.maximize,
    )


def _hand(found: Fit, underway: Any, setting: Setting) -> Fit:
    values = found.values
    _check(found.state, setting)
    if len(values) < underway.ready:  # a checkpoint of a longer run: give all that it made
        values = underway.lanes.emitted(underway.ready)
    return dataclasses.replace(found, values=values[: int(found.steps)], underway=underway)


_LOOP = Loop(
    init=_init,
    step=_step,
    emit=None,
    finish=_finish,
    length=0,
    label="fit",
    check=_check,
    ahead=_ahead,
    hand=_hand,
)
