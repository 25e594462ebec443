"""`tree_sampling`: a tree over partial runs, whose values say which way to go on."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl.counts import count
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference.lm.frontier import Frontier, Lane, log_sum, require_task, take
from ppl.inference.lm.next_token import NextToken
from ppl.inference.lm.reasoning import Reasoning
from ppl.program import Program
from ppl.semantics.population import Population
from ppl.staging import stage
from ppl.statements import sample

_LOST = -1e30  # a value for what is lost: below all others, and above that of no continuation


@named_keywords
def tree_sampling(
    task: Reasoning,
    num_rollouts: int,
    *,
    sharpness: Any = 1.0,
    expand: Any = 2.0,
    growth: Any = 0.8,
    greedy: bool = False,
    bonus: Any = 1.0,
) -> Program:
    """Grow a tree over partial runs, and go where it promises most.

    **Meaning.** A rollout goes down from the start to a whole run. Where a partial run that was
    visited n times has fewer than expand * n^growth continuations, one more is drawn, and all that
    follows is new; elsewhere one of them is chosen with probability proportional to exp(value). The
    value of a whole run is sharpness * log potential, and what a mask or a proposal weighs beside
    it; that of a partial run the log of the mean exp(value) of its continuations. A continuation
    that is drawn again counts as often as it was drawn, in choices and means. A text that is over
    is continued once. There is memory for num_rollouts * num_steps partial runs.

    The result is what the paper's sampling stage draws from, as weights: that of a whole run is the
    probability to come to it by such choices alone, times exp of the first value, which estimates
    the evidence. Asymptotically exact as rollouts go to infinity, for the measure of the task with
    its log potential times `sharpness`. Biased for a finite number of them, the evidence too: where
    more is drawn depends on what was found before.

    With `greedy` the continuation of the largest value + bonus * sqrt(log(visits of this run) /
    visits of that) is followed, the first of equal ones. That is a search, biased however long it
    goes on; weights are exp of the values of whole runs alone.

    Args:
        task: what is sampled.
        num_rollouts: how many whole runs are made.
        sharpness: what log potentials are multiplied with; positive.
        expand: how many continuations a partial run has after one visit.
        growth: how their number grows with visits, between 0 and 1.
        greedy: follow the best.
        bonus: what is visited less is then followed for.

    Returns:
        A program of a `Population`, with one particle for each rollout. One that ended where
        another had ended before weighs nothing. Its `steps` has "log_evidence", the estimate after
        each rollout. When greedy, `log_evidence` is the log of the mean weight and means nothing.

    Raises:
        ArgumentError: a setting is out of range, or there is no task.

    Source: Jain et al. (2025), Diffusion Tree Sampling, and its greedy variant with the bonus of
        Kocsis and Szepesvári (2006). Here texts can be equal, which their runs cannot.
    """
    task = require_task("tree_sampling", task)
    number = count("tree_sampling", "num_rollouts", num_rollouts)
    fine = {"sharpness": sharpness, "expand": expand, "growth": growth}
    for name, value in fine.items():
        if isinstance(value, int | float) and not 0 < value <= (
            1 if name == "growth" else math.inf
        ):
            raise ArgumentError(
                message(
                    f"tree_sampling got {name}={value}",
                    needs="a number above 0 and up to 1" if name == "growth" else "one above 0",
                    fix=f"{name}=0.5",
                )
            )
    args = (task, number, sharpness, expand, growth, bool(greedy), bonus)
    return stage(_tree_sampling, args, name="tree_sampling")


class _Tree(NamedTuple):
    """Nodes: partial runs, what they come from (-1 for a place not taken), values, counts.

    A node was drawn `times` times, and its continuations `children` times together.
    """

    lanes: Lane
    tokens: Any
    parent: Any
    value: Any
    visits: Any
    times: Any
    children: Any


def _tree_sampling(
    task: Reasoning,
    num_rollouts: int,
    sharpness: Any,
    expand: Any,
    growth: Any,
    greedy: bool,
    bonus: Any,
) -> Population:
    frontier, depth = Frontier(task), task.num_steps
    size = 1 + num_rollouts * depth
    zeros = jnp.zeros(size, int)
    dtype = jnp.result_type(float)
    lanes = frontier.begin(size)  # the first is the start
    tokens = jax.vmap(frontier.spelt)(lanes)
    tree = _Tree(lanes, tokens, zeros - 1, jnp.full(size, -jnp.inf, dtype), zeros, zeros, zeros)

    def down(carry: Any, place: Any) -> Any:
        """Go one step down, to a new run at a place of its own or to a known one."""
        tree, node, fresh = carry
        lane = take(tree.lanes, node)
        allowed = expand * jnp.asarray(tree.visits[node], dtype) ** growth
        allowed = jnp.where(frontier.over(lane), 1.0, allowed)
        children = tree.children[node]
        widen = fresh | (children == 0) | (children < allowed)
        known = _choose(tree, node, widen, bonus if greedy else None)
        moved = jax.lax.cond(widen, frontier.advance, lambda x: x, lane)
        tokens = frontier.spelt(moved)
        # What was drawn before is not new: it counts once more.
        again = (tree.parent == node) & jnp.all(tree.tokens == tokens, axis=-1)
        new = widen & ~jnp.any(again)
        found = jnp.where(new, place, jnp.where(widen, jnp.argmax(again), known))
        at = jnp.where(new, place, size)
        put = lambda xs, x: xs.at[at].set(x, mode="drop")  # noqa: E731
        tree = tree._replace(
            lanes=jax.tree.map(put, tree.lanes, moved),
            tokens=put(tree.tokens, tokens),
            parent=put(tree.parent, node),
            times=tree.times.at[found].add(widen),
            children=tree.children.at[node].add(widen),
        )
        return (tree, found, new), node

    def rollout(tree: _Tree, first: Any) -> Any:
        start = tree, jnp.zeros((), int), jnp.zeros((), bool)
        (tree, leaf, _), path = jax.lax.scan(down, start, first + jnp.arange(depth))
        whole = take(tree.lanes, leaf)
        lost = whole.log_weight == -jnp.inf
        reward = jnp.where(lost, -jnp.inf, sharpness * whole.log_potential + whole.drawn)
        value = tree.value.at[leaf].set(reward)

        def back(value: Any, node: Any) -> Any:
            below = jnp.where(tree.parent == node, value + jnp.log(tree.times), -jnp.inf)
            return value.at[node].set(log_sum(below) - jnp.log(tree.children[node])), None

        value, _ = jax.lax.scan(back, value, path, reverse=True)
        visits = tree.visits.at[path].add(1)
        return tree._replace(value=value, visits=visits), value[0]

    firsts = 1 + depth * jnp.arange(num_rollouts)
    tree, log_evidence = jax.lax.scan(rollout, tree, firsts)
    leaves = firsts + depth - 1
    taken = tree.parent[leaves] >= 0
    lanes = take(tree.lanes, leaves)
    steps = {"log_evidence": log_evidence}
    if greedy:
        weights = jnp.where(taken, tree.value[leaves], -jnp.inf)
        found = frontier.population(lanes, weights)
        return Population(found.values, weights, found.log_evidence - math.log(num_rollouts))
    log_share = jnp.where(tree.parent < 0, -jnp.inf, 0.0).at[0].set(0.0)
    for step in range(depth):  # of each partial run, what is its continuations' alike
        here = firsts + step
        parent = tree.parent[here]
        share = log_share[parent] + jnp.log(tree.times[here] / tree.children[parent])
        log_share = log_share.at[here].set(jnp.where(parent < 0, -jnp.inf, share))
    weights = jnp.where(taken, log_share[leaves] + tree.value[leaves], -jnp.inf)
    return frontier.population(lanes, weights, steps=steps)


def _choose(tree: _Tree, node: Any, widen: Any, bonus: Any) -> Any:
    """Choose one of the known continuations of a node, if there is not to be a new one."""
    mine = tree.parent == node
    if bonus is not None:  # what was visited less may be better than it seems
        seldom = jnp.log(jnp.maximum(tree.visits[node], 1)) / jnp.maximum(tree.visits, 1)
        values = jnp.where(tree.value == -jnp.inf, _LOST, tree.value) + bonus * jnp.sqrt(seldom)
        return jnp.argmax(jnp.where(mine, values, -jnp.inf))
    values = jnp.where(mine, tree.value + jnp.log(tree.times), -jnp.inf)
    # Where all have value zero so far, any may come.
    values = jnp.where(jnp.any(values > -jnp.inf), values, jnp.where(mine, 0.0, -jnp.inf))
    nothing = jnp.where(jnp.arange(values.size) == 0, 0.0, -jnp.inf)
    return sample("child", NextToken(jnp.where(widen, nothing, values)))
