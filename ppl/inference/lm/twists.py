"""Twists: learnt guesses of how a text will be weighed in the end."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from ppl._types import Key
from ppl.counts import count
from ppl.errors import ArgumentError, ResultError, message, named_keywords
from ppl.inference.importance import importance
from ppl.inference.lm.context import Context
from ppl.inference.lm.reasoning import Reasoning
from ppl.semantics.run import as_key, run
from ppl.staging import stage

Features = Callable[[Context], Any]


class Twist(eqx.Module):
    """The log of a guess, linear in features of the text so far: weights @ features + offset."""

    features: Features = eqx.field(static=True)
    weights: Float[Array, " feature"]
    offset: Float[Array, ""]

    def __call__(self, context: Context) -> Float[Array, ""]:
        """Give the log of the guess.

        Args:
            context: the text so far.
        """
        return self.weights @ jnp.asarray(self.features(context)) + self.offset


@named_keywords
def learn_twist(
    task: Reasoning,
    features: Features,
    *,
    num_samples: int = 256,
    ridge: float = 1e-4,
    num_updates: int = 200,
    key: Key = 0,
) -> Twist:
    """Learn what a text's weight is expected to become, from texts that the model writes.

    **Meaning.** A twist psi is best where it is the mean of the weight that is still to come, given
    the text so far: population methods then lose nothing to weights. Over prefixes s_t of texts of
    the model with further weight w, the loss E[psi(s_t) - w log psi(s_t)] has that mean as its
    minimum; it is convex in a linear log psi. Any twist leaves the target as it is. What masks and
    proposals weigh is not learnt: texts are those that the steps draw.

    Args:
        task: what the twist is for.
        features: a JAX function from the context to a vector: of its last tokens and its length, or
            `lambda c: c.lm.hidden(c.state)` of a Llama.
        num_samples: texts to learn from.
        ridge: weight of the squared norm of the weights in the loss.
        num_updates: steps of L-BFGS.
        key: PRNG key or seed.

    Returns:
        A `Twist`, for `task.twisted(twist)`.

    Raises:
        ResultError: no text has positive weight, or the fit is not finite.

    Source: the soft value functions of Zhao et al. (2024), *Probabilistic inference in language
        models via twisted SMC*; theirs are learnt by contrast, ours by regression.
    """
    number = count("learn_twist", "num_samples", num_samples)
    updates = count("learn_twist", "num_updates", num_updates)
    program = stage(_prefixes, (task, features), name="prefixes")
    found = run(importance(program, number), as_key(key))
    rows, live, potentials, last = found.values
    if rows.ndim != 3:
        raise ArgumentError(
            message(
                f"learn_twist got features of shape {rows.shape[2:]}",
                needs="a vector for each text",
                fix="features=lambda context: jnp.array([context.length])",
            )
        )
    weights = jnp.exp(last[:, None] - jnp.where(jnp.isfinite(potentials), potentials, 0.0))
    use = live & jnp.isfinite(potentials)
    fitted, loss = _fit(rows, jnp.where(use, weights, 0.0), use, ridge, updates)
    if not bool(jnp.isfinite(loss)) or not bool(jnp.any(weights * use > 0)):
        raise ResultError(
            message(
                f"learn_twist learnt from {number} texts and came to a loss of {float(loss)}",
                needs="some texts of positive weight, and finite features",
                fix="num_samples=4096, or a potential that is not zero so often",
            )
        )
    return Twist(features, *fitted)


def _prefixes(task: Reasoning, features: Features) -> Any:
    """Write texts by the model alone: the features, and potential, after each step."""

    def one(state: Any, number: Any) -> Any:
        moved, _ = task.advance(state)
        live = ~moved.context.over & (number < task.num_steps - 1)
        row = jnp.asarray(features(moved.context), state.total.dtype)
        return moved, (row, live, moved.log_potential)

    state, rows = jax.lax.scan(one, task.start(), jnp.arange(task.num_steps))
    return *rows, state.log_potential


@functools.partial(jax.jit, static_argnums=4)
def _fit(rows: Any, weights: Any, use: Any, ridge: Any, updates: int) -> Any:
    total = jnp.maximum(jnp.sum(use), 1)
    mean = jnp.sum(weights) / total

    def loss(params: Any) -> Any:
        slope, offset = params
        log_guess = rows @ slope + offset
        each = jnp.where(use, jnp.exp(log_guess) - weights * log_guess, 0.0)
        scale = jnp.where(mean > 0, mean, 1.0)
        return jnp.sum(each) / (total * scale) + ridge * jnp.sum(slope**2)

    start = jnp.zeros(rows.shape[-1], rows.dtype), jnp.log(jnp.where(mean > 0, mean, 1.0))
    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def update(carry: Any, _: Any) -> Any:
        params, state = carry
        value, grad = value_and_grad(params, state=state)
        step, state = solver.update(grad, state, params, value=value, grad=grad, value_fn=loss)
        return (optax.apply_updates(params, step), state), None

    (params, _), _ = jax.lax.scan(update, (start, solver.init(start)), None, length=updates)
    return params, loss(params)
