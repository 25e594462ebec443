"""Partial runs side by side: what searches keep, continue, and choose from."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ppl._types import PyTree
from ppl.errors import ArgumentError, message
from ppl.inference.lm.reasoning import Answer, Progress, Reasoning
from ppl.program import inline
from ppl.semantics.population import Population
from ppl.semantics.weighted import weighted
from ppl.staging import stage


class Lane(NamedTuple):
    """One partial run, or many: its arrays may have leading axes.

    `held` is what of the text and the model's state differs between runs; what is the same for all
    of them, such as the prompt's cache, the `Frontier` holds once. `depth` is the number of steps.
    `drawn` is the log weight that steps have of themselves, by a mask or a proposal.
    """

    held: tuple[Array, ...]
    total: Float[Array, "*axes"]
    steps: Int[Array, "*axes"]
    log_potential: Float[Array, "*axes"]
    drawn: Float[Array, "*axes"]
    scores: Float[Array, "*axes step"]
    depth: Int[Array, "*axes"]

    @property
    def log_weight(self) -> Float[Array, "*axes"]:
        """What the task's program weighs a run with so far."""
        lost = (self.log_potential == -jnp.inf) | (self.drawn == -jnp.inf)
        return jnp.where(lost, -jnp.inf, self.log_potential + self.drawn)


class Frontier:
    """A task's partial runs: how one begins, goes on, and ends.

    Args:
        task: what a search is over.
    """

    def __init__(self, task: Reasoning):
        self.task, self.weighs = task, weighs(task)
        context = task.context
        self.leaves, self.tree = jax.tree.flatten(context)
        # What a token leaves as it is, no step changes: it is the same for all runs.
        token = jnp.zeros((), int)
        read = jax.make_jaxpr(lambda c, t: c.extend(t, jnp.asarray(True)))(context, token).jaxpr
        pairs = zip(read.invars, read.outvars, strict=False)
        self.moves = [before is not after for before, after in pairs]

    def start(self) -> Lane:
        """Give the run before its first step."""
        run = self.task.start()
        zero = jnp.zeros_like(run.total)
        return self.joined(
            run, zero, jnp.zeros(self.task.num_steps, zero.dtype), jnp.zeros((), int)
        )

    def begin(self, *axes: int) -> Lane:
        """Give many of it.

        Args:
            *axes: how many along each axis.
        """
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (*axes, *x.shape)), self.start())

    def advance(self, lane: Lane, address: str = "step") -> Lane:
        """Draw the next step of one run, and judge it.

        Args:
            lane: the run.
            address: where the step is drawn.
        """
        run, drawn = self.run(lane), lane.drawn
        if self.weighs:
            program = stage(_advance, (self.task, run, address), name="step")
            found = inline(weighted(program))
            (moved, score), drawn = found.value, drawn + found.log_weight
        else:
            moved, score = self.task.advance(run, address)
        return self.scored(lane, moved, drawn, score)

    def scored(self, lane: Lane, moved: Progress, drawn: Any, score: Any) -> Lane:
        """Give a run after a step.

        Args:
            lane: the run before.
            moved: the run after, as the task knows it.
            drawn: the log weight of steps.
            score: the verifier's score.
        """
        return self.joined(moved, drawn, lane.scores.at[lane.depth].set(score), lane.depth + 1)

    def run(self, lane: Lane) -> Progress:
        """Give one run as the task knows it.

        Args:
            lane: the run.
        """
        fresh = iter(lane.held)
        held = [
            next(fresh) if moves else leaf
            for moves, leaf in zip(self.moves, self.leaves, strict=True)
        ]
        context = jax.tree.unflatten(self.tree, held)
        return Progress(context, lane.total, lane.steps, lane.log_potential)

    def answer(self, lane: Lane) -> Answer:
        """Give what one run came to.

        Args:
            lane: the run.
        """
        return Answer(self.run(lane).context.text, lane.scores, lane.log_potential)

    def over(self, lane: Lane) -> Array:
        """Tell whether nothing can come any more in one run.

        Args:
            lane: the run.
        """
        return self.run(lane).context.over

    def spelt(self, lane: Lane) -> Array:
        """Give what tells one run from others of the same depth: its tokens, -1 where none is.

        Args:
            lane: the run.
        """
        text = self.run(lane).context.text
        return jnp.where(jnp.arange(text.tokens.shape[-1]) < text.length, text.tokens, -1)

    def population(self, lanes: Lane, log_weights: Any, **known: Any) -> Population:
        """Give runs and their weights, whose sum is the evidence.

        Args:
            lanes: the runs, along one axis.
            log_weights: their weights.
            **known: fields of `Population`.
        """
        values = jax.vmap(self.answer)(lanes)
        return Population(values, log_weights, log_sum(log_weights), **known)

    def joined(self, run: Progress, drawn: Any, scores: Any, depth: Any) -> Lane:
        """Put a run together.

        Args:
            run: the run as the task knows it.
            drawn: the log weight of its steps.
            scores: its scores so far.
            depth: its number of steps.
        """
        leaves = jax.tree.leaves(run.context)
        held = tuple(x for x, moves in zip(leaves, self.moves, strict=True) if moves)
        return Lane(held, run.total, run.steps, run.log_potential, drawn, scores, depth)


def _advance(task: Reasoning, run: Progress, address: str) -> Any:
    return task.advance(run, address)


def weighs(task: Reasoning) -> bool:
    """Tell whether a task's steps weigh of themselves, by a mask or a proposal.

    Args:
        task: the task.
    """
    return bool(stage(_advance, (task, task.start(), "step"), name="step").structure.open_scores)


def take(lanes: PyTree, index: Any) -> PyTree:
    """Take rows of arrays, along the first axis.

    Args:
        lanes: arrays.
        index: which rows.
    """
    return jax.tree.map(lambda x: x[index], lanes)


def log_sum(log_weights: Any, axis: int | None = None) -> Any:
    """Add up weights; zeros add up to zero.

    Args:
        log_weights: their logs.
        axis: along which axis; None for all.
    """
    return jax.nn.logsumexp(log_weights, axis=axis)


def require_task(operation: str, task: Any) -> Reasoning:
    """Give the task, or raise `ArgumentError`.

    Args:
        operation: who asks, for the message.
        task: what was passed.
    """
    if not isinstance(task, Reasoning):
        raise ArgumentError(
            message(
                f"{operation} got {type(task).__name__}",
                needs="a Reasoning task",
                why="a search needs the single step, which a program as a whole does not show",
                fix=f"ppl.lm.{operation}(ppl.lm.reasoning(context, verifier, num_steps=8), ...)",
            )
        )
    return task


def refuse_weights(operation: str, task: Reasoning) -> None:
    """Raise `ArgumentError` if a task's steps weigh of themselves.

    Args:
        operation: who asks, for the message.
        task: the task.
    """
    if weighs(task):
        raise ArgumentError(
            message(
                f"{operation} got a task with a mask or a proposal",
                needs="steps that are drawn from the model's own law",
                why="others weigh of themselves",
                fix="ppl.lm.steer(task, num_particles=8, expand=4), or ppl.smc(task.program, 8)",
            )
        )
