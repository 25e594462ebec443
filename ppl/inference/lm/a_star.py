"""`a_star`: always go on with the partial run that promises most."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from ppl.counts import count
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference.lm.frontier import Frontier, Lane, refuse_weights, require_task, take
from ppl.inference.lm.reasoning import Progress, Reasoning
from ppl.program import Program, inline
from ppl.semantics.handlers import do
from ppl.semantics.population import Population
from ppl.staging import stage


@named_keywords
def a_star(
    task: Reasoning,
    num_expansions: int,
    *,
    expand: int = 4,
    heuristic: Callable[[Progress], Any] | None = None,
    continuations: Literal["sample", "all"] = "sample",
) -> Program:
    """Search with a priority queue of partial runs.

    **Meaning.** Biased: one answer, not distributed as the task says. The open run of the highest
    priority is taken out, the first of equal ones, and its continuations are put in; until a whole
    run comes out, which is the answer. Runs of weight zero are dropped.

    The priority is what is known, plus `heuristic` for what is to come. With continuations="sample"
    `expand` are drawn, as in A*-decoding, and what is known is the log weight so far, which is the
    log potential if no mask or proposal weighs too. With "all"
    steps are single tokens, each of which is a continuation, and what is known is the log of the
    model's probability times the potential so far. Then nothing is random, and if the heuristic is
    admissible, at least as large as what the best way on can add, the answer is the most probable
    text of `task.program`. None, which adds nothing, is admissible where every step's log potential
    is at most zero and they add up: scores that are probabilities, link="log",
    aggregate="product".

    When the expansions are spent, the answer is the best whole run of those open, or else the best
    partial one, to which the rest is drawn.

    Args:
        task: what is searched.
        num_expansions: how many runs are continued at most. There is memory for that many times
            `expand`, or the vocabulary.
        expand: how many continuations are drawn each time.
        heuristic: a function of a run so far (its `context`, `steps`, `log_potential`) to nats; it
            may be traced.
        continuations: "sample" or "all".

    Returns:
        A program of a `Population` of one particle. Its weight, and the `log_evidence`, which
        means nothing, are what is known of it. Its `steps` has "found", whether the search came to
        its end, and "expanded", how many runs it continued.

    Raises:
        ArgumentError: a setting is of the wrong kind, there is no task, or its steps are longer
            than a token while all continuations are wanted.

    Source: Hart, Nilsson and Raphael (1968); A*-decoding (2025), sampled continuations.
    """
    task = require_task("a_star", task)
    number = count("a_star", "num_expansions", num_expansions)
    width = count("a_star", "expand", expand)
    if continuations not in ("sample", "all"):
        raise ArgumentError(
            message(
                f"a_star got continuations={continuations!r}",
                needs='"sample" or "all"',
                fix='continuations="sample"',
            )
        )
    most = dict(task.settings)["max_tokens"]
    if continuations == "all" and most != 1:
        raise ArgumentError(
            message(
                f'a_star got continuations="all" and steps of up to {most} tokens',
                needs="steps of one token",
                why="all steps of more tokens are too many to list",
                fix="ppl.lm.reasoning(..., max_tokens=1)",
            )
        )
    everything = continuations == "all"
    if everything:
        refuse_weights("a_star", task)
    width = len(task.context.vocabulary) if everything else width
    return stage(_a_star, (task, number, width, heuristic, everything), name="a_star")


class _Queue(NamedTuple):
    """Partial runs, the log of the model's probability of each, whether it is open, its priority.

    `answer` is the whole run that came out, if one has.
    """

    lanes: Lane
    log_prob: Any
    open: Any
    priority: Any
    found: Any
    answer: Any
    expanded: Any


def _a_star(
    task: Reasoning, num_expansions: int, width: int, heuristic: Any, everything: bool
) -> Population:
    frontier = Frontier(task)
    size = 1 + num_expansions * width
    zero = jnp.zeros(size, jnp.result_type(float))

    def priority(lane: Lane, log_prob: Any) -> Any:
        ahead = 0.0 if heuristic is None else heuristic(frontier.run(lane))
        # What is lost stays so, whatever is hoped for.
        lost = lane.log_weight == -jnp.inf
        return jnp.where(lost, -jnp.inf, log_prob + lane.log_weight + ahead)

    def go_on(lane: Lane, log_prob: Any, index: Any) -> Any:
        if not everything:
            return frontier.advance(lane), log_prob
        context = frontier.run(lane).context
        law = jax.nn.log_softmax(context.lm.logits(context.state) / task.temperature)
        said = jnp.where(frontier.over(lane), 0.0, law[index])
        return _with_token(frontier, lane, index), log_prob + said

    def expand(queue: _Queue, first: Any, node: Any) -> _Queue:
        lane, log_prob = take(queue.lanes, node), queue.log_prob[node]
        index = jnp.arange(width)
        lanes, log_probs = jax.vmap(lambda i: go_on(lane, log_prob, i))(index)
        values = jax.vmap(priority)(lanes, log_probs)
        # There is one way on for a text that is over.
        fine = (values > -jnp.inf) & (~frontier.over(lane) | (index == 0))
        at = first + index
        put = lambda xs, x: xs.at[at].set(x)  # noqa: E731
        return queue._replace(
            lanes=jax.tree.map(put, queue.lanes, lanes),
            log_prob=put(queue.log_prob, log_probs),
            open=put(queue.open.at[node].set(False), fine),
            priority=put(queue.priority, values),
            expanded=queue.expanded + 1,
        )

    def one(queue: _Queue, first: Any) -> tuple[_Queue, None]:
        queue = _look(queue, task.num_steps)
        node = _top(queue, queue.open)
        going = ~queue.found & jnp.any(queue.open)
        return jax.lax.cond(going, expand, lambda q, *_: q, queue, first, node), None

    nothing, start = jnp.zeros((), int), frontier.start()
    queue = _Queue(
        frontier.begin(size),
        zero,
        jnp.arange(size) == 0,
        zero.at[0].set(priority(start, zero[0])),
        jnp.zeros((), bool),
        nothing,
        nothing,
    )
    queue, _ = jax.lax.scan(one, queue, 1 + width * jnp.arange(num_expansions))
    queue = _look(queue, task.num_steps)
    whole = queue.open & (queue.lanes.depth == task.num_steps)
    best = _top(queue, jnp.where(jnp.any(whole), whole, queue.open))
    best = jnp.where(queue.found, queue.answer, best)

    def rest(lane: Lane, _: Any) -> Any:
        short = lane.depth < task.num_steps
        draw = lambda x: frontier.advance(x, "rest")  # noqa: E731
        return jax.lax.cond(short, draw, lambda x: x, lane), None

    lane, _ = jax.lax.scan(rest, take(queue.lanes, best), None, length=task.num_steps)
    some = queue.found | jnp.any(queue.open)
    known = jnp.where(some, queue.log_prob[best] + lane.log_weight, -jnp.inf)
    lanes = jax.tree.map(lambda x: x[None], lane)
    steps = {"found": queue.found, "expanded": queue.expanded}
    return frontier.population(lanes, known[None], steps=steps)


def _look(queue: _Queue, num_steps: int) -> _Queue:
    """See whether what comes out next is a whole run."""
    node = _top(queue, queue.open)
    whole = queue.open[node] & (queue.lanes.depth[node] == num_steps)
    answer = jnp.where(queue.found, queue.answer, node)
    return queue._replace(found=queue.found | whole, answer=answer)


def _top(queue: _Queue, among: Any) -> Any:
    return jnp.argmax(jnp.where(among, queue.priority, -jnp.inf))


def _with_token(frontier: Frontier, lane: Lane, token: Any) -> Lane:
    """Go on with a given token."""
    program = stage(_advance, (frontier.task, frontier.run(lane)), name="a_star")
    moved, score = inline(do(program, {"step": jnp.reshape(token, (1,))}))
    return frontier.scored(lane, moved, lane.drawn, score)


def _advance(task: Reasoning, run: Progress) -> Any:
    return task.advance(run)
