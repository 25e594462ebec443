"""`tempering`: Markov chains at several temperatures, which swap their texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import _jax
from ppl.counts import count
from ppl.distributions import Bernoulli, DiscreteUniform
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference.lm.frontier import refuse_weights, require_task
from ppl.inference.lm.reasoning import Answer, Reasoning
from ppl.inference.redrawing import Given, rerun
from ppl.program import Program
from ppl.semantics.kernel import Kernel, kernel
from ppl.semantics.population import Population
from ppl.semantics.weighted import Trace, trace_of
from ppl.staging import stage
from ppl.statements import factor, sample, scope

_LADDER = (0.0, 0.25, 0.5, 1.0)


@named_keywords
def tempering(
    task: Reasoning,
    num_samples: int,
    *,
    inverse_temperatures: Sequence[float] = _LADDER,
    num_warmup: int = 0,
) -> Program:
    """Run chains at several temperatures side by side, and let them swap.

    **Meaning.** Answers whose averages converge to expectations under the normalised measure of
    `task.program`, as samples go to infinity; biased for a finite number, since chains begin with
    the model's own law. Each sweep is `ppl.lm.exchange`, which leaves the law of `ppl.lm.replicas`
    invariant. The answers are those of the last replica, at inverse temperature 1.

    Args:
        task: what is sampled.
        num_samples: how many sweeps are kept.
        inverse_temperatures: increasing, from 0 to 1.
        num_warmup: sweeps before those.

    Returns:
        A program of a `Population` of the answers, all of one family, with equal weights; one that
        is lost, while the chain has not found any other, weighs nothing. `log_evidence` is a
        consistent estimate, by stepping stones from each temperature to the next. Its `steps` has
        "accepted", by replica the share of sweeps that took the text drawn anew, and "swapped",
        by pair of neighbours the share of sweeps that swapped them.

    Raises:
        ArgumentError: a setting is out of range, there is no task, or it has a mask or proposal.

    Source: Geyer (1991); Xie et al. (2011), stepping stones.
    """
    task = require_task("tempering", task)
    refuse_weights("tempering", task)
    number = count("tempering", "num_samples", num_samples)
    warmup = count("tempering", "num_warmup", num_warmup, 0)
    ladder = _ladder("tempering", inverse_temperatures)
    if ladder[0] != 0 or ladder[-1] != 1:
        raise ArgumentError(
            message(
                f"tempering got inverse_temperatures from {ladder[0]} to {ladder[-1]}",
                needs="numbers from 0 to 1",
                why="at 0 is the model's own law, from which the evidence is reckoned, and at 1 "
                "the task's",
                fix=f"inverse_temperatures={_LADDER}",
            )
        )
    args = (task, jnp.asarray(ladder), number, warmup)
    return stage(_tempering, args, name="tempering")


@named_keywords
def replicas(task: Reasoning, inverse_temperatures: Sequence[float] = _LADDER) -> Program:
    """Put runs of a task side by side, each at a temperature of its own.

    **Meaning.** The product, over inverse temperatures b, of the model's law times the potential to
    the power b; at 0 what the task gives no potential at all counts too.

    Args:
        task: the task.
        inverse_temperatures: increasing, none below 0.

    Returns:
        A program of an `Answer` with a leading axis of replicas.

    Raises:
        ArgumentError: a setting is out of range, there is no task, or it has a mask or proposal.
    """
    task = require_task("replicas", task)
    refuse_weights("replicas", task)
    ladder = jnp.asarray(_ladder("replicas", inverse_temperatures))
    return stage(_replicas, (task, ladder), name="replicas")


def _replicas(task: Reasoning, ladder: Any) -> Answer:
    def one(heat: Any) -> Answer:
        run, scores = jax.lax.scan(
            lambda run, _: task.advance(run), task.start(), None, length=task.num_steps
        )
        factor("potential", _tempered(heat, run.log_potential))
        return Answer(run.context.text, scores, run.log_potential)

    return jax.vmap(one)(ladder)


def exchange(inverse_temperatures: Sequence[float] = _LADDER) -> Kernel:
    """Make the kernel that moves replicas, and swaps them.

    **Meaning.** Leaves `ppl.lm.replicas` with the same inverse temperatures invariant. Each replica
    is drawn anew by the model from a step on that is drawn uniformly, and the change accepted with
    the ratio of potentials, to the power b. Then neighbours swap their texts, or do not, in pairs
    that begin at even places, and in pairs that begin at odd ones.

    Args:
        inverse_temperatures: those of the program.
    """
    ladder = _ladder("exchange", inverse_temperatures)

    @kernel
    def exchanged(trace: Trace) -> Trace:
        program = trace.program
        assert program is not None  # a kernel is given traces that know it
        tokens, _, _ = _sweep(
            program, jnp.asarray(ladder), trace.choices["step"], Answer(*trace.value)
        )
        return trace.with_choices({"step": tokens})

    return exchanged


def _sweep(program: Program, ladder: Any, tokens: Any, answers: Answer) -> Any:
    """Move and swap; give tokens, answers, and what was accepted."""
    size, steps = tokens.shape[:2]
    cut = sample("cut", DiscreteUniform(jnp.zeros(size, int), steps - 1))
    keep = jnp.broadcast_to(
        (jnp.arange(steps) < cut[:, None]).reshape(size, steps, *[1] * (tokens.ndim - 2)),
        tokens.shape,
    )
    with scope("redrawn"):
        drawn = rerun("exchange", program, {"step": Given(tokens, keep)}).choices["step"]
    moved = Answer(*trace_of(program, {"step": drawn}).value)
    before, after = (_tempered(ladder, x.log_potential) for x in (answers, moved))
    accepted = sample("accept", Bernoulli(_chance(after, before))) == 1
    tokens, answers = _where(accepted, (drawn, moved), (tokens, answers))
    swaps = jnp.zeros(size, bool)
    for first, address in ((0, "even"), (1, "odd")):
        if first + 1 >= size:
            continue
        mine, other = answers.log_potential[:-1], answers.log_potential[1:]
        cold, warm = ladder[1:], ladder[:-1]
        swapped = _tempered(warm, other) + _tempered(cold, mine)
        stayed = _tempered(warm, mine) + _tempered(cold, other)
        begins = jnp.arange(size - 1) % 2 == first
        chance = jnp.where(begins, _chance(swapped, stayed), 0.0)
        swap = jnp.pad(sample(address, Bernoulli(chance)) == 1, (0, 1))
        place = jnp.arange(size) + swap - jnp.pad(swap, (1, 0))[:-1]
        tokens, answers = jax.tree.map(lambda x, at=place: x[at], (tokens, answers))
        swaps = swaps | swap
    return tokens, answers, (accepted, swaps[:-1])


def _tempering(task: Reasoning, ladder: Any, num_samples: int, num_warmup: int) -> Population:
    program = stage(_replicas, (task, ladder), name="replicas")
    with scope("start"):
        tokens = rerun("tempering", program, {}).choices["step"]
    answers = Answer(*trace_of(program, {"step": tokens}).value)

    def one(carry: Any, _: Any) -> Any:
        with scope("sweep"):
            tokens, answers, done = _sweep(program, ladder, *carry)
        last = jax.tree.map(lambda x: x[-1], answers)
        return (tokens, answers), (last, answers.log_potential, done)

    def quiet(carry: Any, _: Any) -> Any:
        with scope("warmup"):
            return _sweep(program, ladder, *carry)[:2], None

    carry = (tokens, answers)
    if num_warmup:
        carry, _ = jax.lax.scan(quiet, carry, None, length=num_warmup)
    _, (values, potentials, done) = jax.lax.scan(one, carry, None, length=num_samples)
    stones = jnp.diff(ladder) * potentials[:, :-1]
    log_evidence = jnp.sum(jax.nn.logsumexp(stones, axis=0) - jnp.log(num_samples))
    lost = potentials[:, -1] == -jnp.inf
    return Population(
        values,
        jnp.where(lost, -jnp.inf, 0.0),
        jnp.where(jnp.all(lost), -jnp.inf, log_evidence),
        steps={"accepted": _share(done[0]), "swapped": _share(done[1])},
        families=jnp.zeros(num_samples, int),
    )


def _share(flags: Any) -> Any:
    return jnp.mean(flags, axis=0, dtype=jnp.result_type(float))


def _tempered(heat: Any, log_potential: Any) -> Any:
    """Give a log potential to the power of an inverse temperature; at 0 that of nothing is one."""
    warm = heat > 0
    return jnp.where(warm, heat * jnp.where(warm, log_potential, 0.0), 0.0)


def _chance(after: Any, before: Any) -> Any:
    """Give the probability to accept; from what is lost, always."""
    lost = before == -jnp.inf
    return jnp.where(lost, 1.0, jnp.exp(jnp.minimum(after - jnp.where(lost, 0.0, before), 0.0)))


def _where(flags: Any, new: Any, old: Any) -> Any:
    """Take the new rows where flags say so."""

    def one(a: Any, b: Any) -> Any:
        return jnp.where(flags.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(one, new, old)


def _ladder(operation: str, inverse_temperatures: Any) -> np.ndarray:
    traced = _jax.is_tracer(inverse_temperatures)
    ladder = np.asarray(np.nan if traced else inverse_temperatures, float)
    if ladder.ndim != 1 or not ladder.size or ladder[0] < 0 or not np.all(np.diff(ladder) > 0):
        raise ArgumentError(
            message(
                f"{operation} got inverse_temperatures={inverse_temperatures!r}",
                needs="increasing numbers, none below 0, known when the program is made",
                why="each is a power of the potential",
                fix=f"inverse_temperatures={_LADDER}",
            )
        )
    return ladder
