"""`reasoning`: step by step towards an answer, weighed by a verifier on the way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ppl._types import pytree, static
from ppl.counts import count
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference.lm.automaton import Automaton
from ppl.inference.lm.context import Context, require_context
from ppl.inference.lm.steps import step
from ppl.inference.lm.text import Text
from ppl.program import Program
from ppl.staging import stage
from ppl.statements import factor

AGGREGATES = ("product", "last", "min", "max", "mean")

_LINKS: dict[str, Callable[[Any], Any]] = {
    "log": lambda score: jnp.log(score),  # NaN below zero, for all to see
    "logit": lambda score: jax.scipy.special.logit(score),
    "identity": lambda score: score,
}


class Answer(NamedTuple):
    """What a run of steps came to: its text, the verifier's score after each step, how many count.

    `log_potential` is the log of what the scores together weigh, in nats.
    """

    text: Text
    scores: Float[Array, "*axes step"]
    log_potential: Float[Array, "*axes"]


class Progress(NamedTuple):
    """A run under way: the text, the scores' sum and number, and what they weigh."""

    context: Context
    total: Any
    steps: Any
    log_potential: Any


@pytree
class Reasoning:
    """Steps of a language model, each judged by a verifier. Made by `ppl.lm.reasoning`.

    `program` is what population methods and kernels take; searches that need the single step use
    `start` and `advance`.
    """

    context: Context
    sharpness: Any
    temperature: Any
    twist: Any
    verifier: Callable[[Context], Any] = static()
    num_steps: int = static()
    link: Callable[[Any], Any] = static()
    aggregate: str = static()
    absorbing: bool = static()
    settings: tuple[tuple[str, Any], ...] = static()

    def start(self) -> Progress:
        """Give the run before its first step."""
        zero = jnp.zeros_like(self.context.promised)
        return Progress(self.context, zero, jnp.zeros((), int), zero)

    def advance(self, run: Progress, address: str = "step") -> tuple[Progress, Any]:
        """Draw one step and judge it; nothing is weighed.

        Args:
            run: the run so far.
            address: where the step is drawn.

        Returns:
            The run after it, and the verifier's score.
        """
        _, context = step(address, run.context, temperature=self.temperature, **dict(self.settings))
        score = jnp.asarray(self.verifier(context), run.total.dtype)
        if score.shape:
            raise ArgumentError(
                message(
                    f"reasoning got scores of shape {score.shape} from its verifier",
                    needs="one number for one text",
                    fix="ppl.lm.judge(lambda text: ...), or a function of the context to a scalar",
                )
            )
        weight = self.sharpness * self.link(score)
        steps = run.steps + 1
        total = jnp.where(run.steps == 0, weight, self._together(run.total, weight))
        value = total / steps if self.aggregate == "mean" else total
        if context.mask is not None:  # after the last step, the whole text has to match
            value = jnp.where((steps == self.num_steps) & ~context.matched, -jnp.inf, value)
        found = total, steps, value
        if self.absorbing:  # what is over is not weighed again
            over, kept = run.context.over, (run.total, run.steps, run.log_potential)
            found = [jnp.where(over, a, b) for a, b in zip(kept, found, strict=True)]
        return Progress(context, *found), score

    def _together(self, total: Any, weight: Any) -> Any:
        if self.aggregate in ("product", "mean"):
            return total + weight
        return {"last": weight, "min": jnp.minimum(total, weight)}.get(
            self.aggregate, jnp.maximum(total, weight)
        )

    @property
    def program(self) -> Program:
        """The program: a scan of steps, each weighed by what it changes in the potential."""
        return stage(_program, (self,), name="reasoning")

    def twisted(self, twist: Callable[[Context], Any] | None) -> Reasoning:
        """Weigh by a guess of what is still to come, and take it back at the end.

        **Meaning.** The same measure, reached by other weights on the way: after each step but the
        last, a text counts by its weight times exp(twist(context)). Searches (`ppl.lm.beam` and the
        like) look at the potential alone.

        Args:
            twist: from the context to the log of the guess: a `ppl.lm.Twist`, or a function; None
                for none. A guess of -inf gives a text up, and so changes the measure.
        """
        known = twist is None or not callable(twist) or isinstance(twist, eqx.Module)
        return dataclasses.replace(self, twist=twist if known else jax.tree_util.Partial(twist))

    def __repr__(self) -> str:
        return f"Reasoning({self.context!r}, {self.num_steps} steps, {self.aggregate})"


def increment(before: Any, after: Any) -> Any:
    """Give the log weight of a step: what it changes in the log potential. What is lost stays so.

    Args:
        before: the log potential before the step.
        after: after it.
    """
    gone = before == -jnp.inf
    return jnp.where(gone, -jnp.inf, after - jnp.where(gone, 0.0, before))


def _program(task: Reasoning) -> Answer:
    def one(carry: Any, number: Any) -> Any:
        run, guess = carry
        moved, score = task.advance(run)
        weight = increment(run.log_potential, moved.log_potential)
        ahead = guess
        if task.twist is not None:
            last = moved.context.over | (number == task.num_steps - 1)
            ahead = jnp.where(last, 0.0, task.twist(moved.context)).astype(guess.dtype)
            # What a guess of zero has lost stays lost.
            weight = weight + ahead - jnp.where(guess == -jnp.inf, 0.0, guess)
        factor("reward", weight)
        return (moved, ahead), score

    run = task.start()
    start = run, jnp.zeros_like(run.total)
    (run, _), scores = jax.lax.scan(one, start, jnp.arange(task.num_steps))
    return Answer(run.context.text, scores, run.log_potential)


@named_keywords
def reasoning(
    context: Context,
    verifier: Callable[[Context], Any],
    *,
    num_steps: int,
    stop: str | Sequence[str] | None = "\n\n",
    max_tokens: int = 64,
    temperature: Any = 1.0,
    link: str | Callable[[Any], Any] = "log",
    aggregate: str = "product",
    sharpness: Any = 1.0,
    absorbing: bool = True,
    proposal: Any = None,
    mask: Automaton | str | None = None,
) -> Reasoning:
    """Let a language model reason in steps, and a verifier weigh them.

    **Meaning.** Steps are drawn as by `ppl.lm.step`. With g_t = sharpness * link(score_t), a whole
    text has weight exp(A(g_1, ..., g_T)), where A is the aggregate. On the way it has that of its
    steps so far: each step is weighed by what it changes, so that a population method may drop poor
    beginnings early, and the last weight is the declared one whatever the aggregate. A text that is
    over is weighed no more.

    Args:
        context: the prompt.
        verifier: from the context so far to a score: a `ppl.lm.judge`, or a JAX function of one
            context to a scalar.
        num_steps: the most steps.
        stop: what ends a step, as in `ppl.lm.step`.
        max_tokens: the most tokens of a step.
        temperature: of the model's law.
        link: from a score to a log potential: "log" of a score that is a probability, its "logit",
            the score itself by "identity", or a function. A step of log potential -inf loses the
            run for good.
        aggregate: how the steps' potentials are put together: their "product", the "last", "min",
            "max", or the geometric "mean".
        sharpness: what log potentials are multiplied with, the inverse of a temperature.
        absorbing: if False, a text that is over is weighed again at every later step, by its last
            score. That is another law, which some published code samples.
        proposal: as in `ppl.lm.step`.
        mask: as in `ppl.lm.step`, of each step.

    Returns:
        A `Reasoning`. Its `program` returns an `Answer`.

    Raises:
        ArgumentError: a setting is of the wrong kind, or the text has too little room.

    Source: Puri et al. (2025), whose declared target is link="log", aggregate="product".
    """
    context = require_context("reasoning", context)
    number = count("reasoning", "num_steps", num_steps)
    most = count("reasoning", "max_tokens", max_tokens)
    if number * most > context.room:
        raise ArgumentError(
            message(
                f"reasoning got {number} steps of up to {most} tokens, and a text with room for "
                f"{context.room}",
                needs="room for all steps",
                why="a text that fills its room is cut there",
                fix=f"lm.prompt(text, room={number * most})",
            )
        )
    if aggregate not in AGGREGATES:
        raise ArgumentError(
            message(
                f"reasoning got aggregate={aggregate!r}",
                needs=f"one of {', '.join(AGGREGATES)}",
                fix='aggregate="product"',
            )
        )
    if not callable(link) and link not in _LINKS:
        raise ArgumentError(
            message(
                f"reasoning got link={link!r}",
                needs=f"one of {', '.join(_LINKS)}, or a function",
                fix='link="log"',
            )
        )
    settings = {"max_tokens": most, "proposal": proposal, "mask": mask}
    settings["stop"] = stop if stop is None or isinstance(stop, str) else tuple(stop)
    return Reasoning(
        context,
        sharpness,
        temperature,
        None,
        verifier,
        number,
        link if callable(link) else _LINKS[link],
        aggregate,
        bool(absorbing),
        tuple(sorted(settings.items())),
    )
