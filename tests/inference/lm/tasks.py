"""Small reasoning tasks for searches, with verifiers that run inside the program."""

import jax.numpy as jnp

import ppl

WORDS = ppl.lm.Vocabulary(["a", "b", None])


def share(context):
    """The share of "a" so far, inside (0, 1)."""
    hits = jnp.sum((context.tokens == 0) & (jnp.arange(context.room) < context.length))
    return 0.1 + 0.8 * hits / jnp.maximum(context.length, 1)


def strict(context):
    """Like `share`, and zero where "b" comes twice in a row: those runs are lost."""
    b = (context.tokens == 1) & (jnp.arange(context.room) < context.length)
    return jnp.where(jnp.any(b[1:] & b[:-1]), 0.0, share(context))


def task(steps=3, key=0, verifier=share, words=WORDS, **settings):
    """Steps of one token."""
    model = ppl.lm.Table.random(words, key)
    settings = {"max_tokens": 1, "stop": None, **settings}
    return ppl.lm.reasoning(model.prompt(room=steps), verifier, num_steps=steps, **settings)


def only(program):
    """What a program without randomness returns, without compiling it."""
    (value,) = ppl.enumerate(program).points
    return value
