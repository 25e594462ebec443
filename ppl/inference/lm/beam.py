"""`beam`: keep the best of some continuations at every step; with groups, DVTS."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ppl.counts import count
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference.lm.frontier import Frontier, Lane, log_sum, require_task, take
from ppl.inference.lm.reasoning import Reasoning
from ppl.program import Program
from ppl.semantics.population import Population
from ppl.staging import stage


@named_keywords
def beam(task: Reasoning, width: int, expand: int, *, num_groups: int = 1) -> Program:
    """Continue every run several times, and keep the best.

    **Meaning.** Biased: what survives is not distributed as the task says, however many there are;
    `ppl.check.preserves(lambda _: ppl.lm.beam(task, 2, 2), task.program)` finds it. Of the width *
    expand continuations of a group the `width` of the largest weight are kept: of the largest log
    potential, if no mask or proposal weighs too. Of equal ones the first counts, in the order of
    the runs they continue.

    With groups of width 1 it is diverse verifier tree search; `ppl.lm.dvts` says so.

    Args:
        task: what is searched.
        width: how many runs a group keeps.
        expand: how often each is continued.
        num_groups: groups, which know nothing of one another.

    Returns:
        A program of a `Population` of all groups' runs, each group's best first. Weights are those
        of `task.program`. A search estimates no evidence: `log_evidence` is the log of the mean
        weight, what it would be if the runs were independent draws.

    Raises:
        ArgumentError: a number is not a positive integer, or there is no task.

    Source: Snell et al. (2024), beam search against a verifier; Beeching et al. (2024), groups.
    """
    return _search("beam", task, width, expand, num_groups)


@named_keywords
def dvts(task: Reasoning, num_groups: int, expand: int) -> Program:
    """Keep the best continuation of every one of some runs: diverse verifier tree search.

    **Meaning.** `ppl.lm.beam` with groups of width 1, and biased like it.

    Args:
        task: what is searched.
        num_groups: how many runs.
        expand: how often each is continued.

    Returns:
        As `ppl.lm.beam`.

    Raises:
        ArgumentError: a number is not a positive integer, or there is no task.

    Source: Beeching et al. (2024).
    """
    return _search("dvts", task, 1, expand, num_groups)


def _search(operation: str, task: Reasoning, width: Any, expand: Any, num_groups: Any) -> Program:
    sizes = {"num_groups": num_groups, "width": width, "expand": expand}
    sizes = [count(operation, name, value) for name, value in sizes.items()]
    return stage(_beam, (require_task(operation, task), *sizes), name=operation)


def _beam(task: Reasoning, num_groups: int, width: int, expand: int) -> Population:
    frontier = Frontier(task)

    def best(lanes: Lane) -> Lane:
        order = jnp.argsort(-lanes.log_weight, stable=True)
        return take(lanes, order[:width])

    def one(lanes: Lane, _: Any) -> Any:
        many = jax.tree.map(lambda x: jnp.repeat(x, expand, axis=1), lanes)
        many = jax.vmap(jax.vmap(frontier.advance))(many)
        return jax.vmap(best)(many), None

    lanes, _ = jax.lax.scan(one, frontier.begin(num_groups, width), None, length=task.num_steps)
    lanes = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), lanes)
    return _weighed(frontier, lanes)


@named_keywords
def rebase(task: Reasoning, width: int, *, temperature: Any = 0.2) -> Program:
    """Continue good runs more often than poor ones, always `width` in all.

    **Meaning.** Biased: how often a run is continued is rounded, not drawn, and nothing weighs
    against it. Run i has about width * softmax(scores / temperature)[i] continuations: the best
    run has its share rounded up, the next its share of what is left, and so on. Of equal scores the
    first counts.

    Args:
        task: what is searched. The scores are its verifier's last ones.
        width: how many continuations a step has.
        temperature: how even the shares are.

    Returns:
        As `ppl.lm.beam`, of `width` runs.

    Raises:
        ArgumentError: a number is not positive, or there is no task.

    Source: Wu et al. (2024), REBASE; the rounding is that of their code.
    """
    number = count("rebase", "width", width)
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ArgumentError(
            message(
                f"rebase got temperature={temperature}",
                needs="a positive number",
                fix="temperature=0.2",
            )
        )
    return stage(_rebase, (require_task("rebase", task), number, temperature), name="rebase")


def _rebase(task: Reasoning, width: int, temperature: Any) -> Population:
    frontier = Frontier(task)

    def one(lanes: Lane, step: Any) -> Any:
        lanes = jax.vmap(frontier.advance)(lanes)
        # A run that is lost has no share, if any other is left.
        scores = jax.vmap(lambda s: s[step])(lanes.scores) / temperature
        scores = jnp.where(lanes.log_weight == -jnp.inf, -jnp.inf, scores)
        copies = allocate(scores, width)
        parents = jnp.repeat(jnp.arange(width), copies, total_repeat_length=width)
        # What the last step left is the answer; it is not continued.
        last = step == task.num_steps - 1
        return take(lanes, jnp.where(last, jnp.arange(width), parents)), None

    steps = jnp.arange(task.num_steps)
    lanes, _ = jax.lax.scan(one, frontier.begin(width), steps)
    return _weighed(frontier, lanes)


def allocate(log_shares: Float[Array, " run"], width: int) -> Int[Array, " run"]:
    """Divide a number by shares, the largest first, each share of what is left rounded up.

    Args:
        log_shares: logs of the shares, not normalised. If all are -inf, they count as equal.
        width: the number.

    Returns:
        How much each has, `width` in all.
    """
    top = jnp.max(log_shares)
    shares = jnp.where(top == -jnp.inf, 1.0, jnp.exp(log_shares - top))
    order = jnp.argsort(-shares, stable=True)
    sorted_ = shares[order]
    later = jnp.cumsum(sorted_[::-1])[::-1]  # its last sum is its last term, so nothing is left

    def give(left: Any, one: Any) -> Any:
        share, rest = one
        part = left * jnp.where(rest > 0, share / jnp.where(rest > 0, rest, 1.0), 0.0)
        # What is above a whole number by rounding alone is that number.
        whole = jnp.ceil(part - 16 * jnp.finfo(part.dtype).eps * (part + 1))
        return left - whole, whole

    _, given = jax.lax.scan(give, jnp.asarray(width, shares.dtype), (sorted_, later))
    return jnp.zeros(shares.shape, int).at[order].set(given.astype(int))


def _weighed(frontier: Frontier, lanes: Lane) -> Population:
    log_weights = lanes.log_weight
    found = frontier.population(lanes, log_weights)
    log_evidence = log_sum(log_weights) - math.log(log_weights.shape[0])
    return Population(found.values, log_weights, log_evidence)
