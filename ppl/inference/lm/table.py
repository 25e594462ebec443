"""`Table`: a language model small enough to be enumerated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ppl.errors import ArgumentError, message
from ppl.inference.lm.backend import LanguageModel, keep_where
from ppl.inference.lm.vocabulary import Vocabulary


class Table(LanguageModel):
    """A table of next-token logits by the tokens before.

    **Meaning.** After the tokens ..., a, b the next one has the logits `table[a, b]`, if the table
    has three axes: one for each token it looks back on, and one for the next. Before the text
    begins stands a token of its own, numbered V, so that the axes have sizes V + 1, ..., V + 1, V.

    Args:
        vocabulary: V tokens, or their texts with None for the end.
        table: the logits.

    Raises:
        ArgumentError: the table has other axes than that.
    """

    vocabulary: Vocabulary = eqx.field(static=True)
    table: Float[Array, ...]

    def __init__(self, vocabulary: Vocabulary | Sequence[Any], table: Any):
        known = isinstance(vocabulary, Vocabulary)
        self.vocabulary = vocabulary if known else Vocabulary(vocabulary)
        self.table = jnp.asarray(table)
        size = len(self.vocabulary)
        shape = self.table.shape
        if not shape or shape != (*[size + 1] * (len(shape) - 1), size):
            raise ArgumentError(
                message(
                    f"Table got a table of shape {shape} for {size} tokens",
                    needs=f"{size} logits for each history: shape ({size},), ({size + 1}, {size}), "
                    f"({size + 1}, {size + 1}, {size}) or so on",
                    why=f"the token {size} stands for what is before the text",
                    fix="Table.random(vocabulary, key)",
                )
            )

    @classmethod
    def random(
        cls, vocabulary: Vocabulary | Sequence[Any], key: Any = 0, *, order: int = 1, scale: Any = 1
    ) -> Table:
        """Draw the logits from a normal distribution.

        Args:
            vocabulary: the tokens.
            key: PRNG key or seed.
            order: on how many tokens it looks back.
            scale: the standard deviation of the logits.
        """
        words = vocabulary if isinstance(vocabulary, Vocabulary) else Vocabulary(vocabulary)
        key = jax.random.key(key) if isinstance(key, int) else key
        shape = (*[len(words) + 1] * order, len(words))
        return cls(words, scale * jax.random.normal(key, shape, jnp.result_type(float)))

    def start(self, tokens: Sequence[int], room: int) -> tuple[Any, ...]:
        order = self.table.ndim - 1
        before = [len(self.vocabulary)] * order + list(tokens)
        return tuple(jnp.asarray(t, int) for t in before[len(before) - order :])

    def logits(self, state: tuple[Any, ...]) -> Float[Array, " token"]:
        return self.table[state]

    def extend(
        self, state: tuple[Any, ...], token: Int[Array, ""], active: Bool[Array, ""]
    ) -> tuple[Any, ...]:
        return keep_where(active, (*state, jnp.asarray(token, int))[1:], state) if state else ()
