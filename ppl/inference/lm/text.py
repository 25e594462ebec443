"""Texts: tokens, how many, and what they spell."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from ppl import _jax
from ppl._types import pytree, static
from ppl.inference.lm.vocabulary import Vocabulary


@pytree
class Text:
    """A text in tokens, or many: arrays may have leading axes, such as particles.

    The first `length` tokens count, the end among them; those after are placeholders.
    """

    tokens: Int[Array, "*axes room"]
    length: Int[Array, "*axes"]
    vocabulary: Vocabulary = static()

    @property
    def finished(self) -> Bool[Array, "*axes"]:
        """Whether the last token ends the text."""
        last = jnp.maximum(self.length - 1, 0)[..., None]
        token = jnp.take_along_axis(self.tokens, last, axis=-1)[..., 0]
        return (self.length > 0) & (token == self.vocabulary.end)

    def decode(self) -> Any:
        """Give what is spelt: a string, or lists of them, as deep as there are leading axes."""
        tokens, length = np.asarray(self.tokens), np.asarray(self.length)
        if tokens.ndim == 1:
            return self.vocabulary.decode(tokens[: int(length)])
        rows = zip(tokens, length, strict=True)
        return [Text(t, n, self.vocabulary).decode() for t, n in rows]  # pyright: ignore[reportArgumentType]

    def __getitem__(self, index: Any) -> Text:
        return Text(self.tokens[index], self.length[index], self.vocabulary)

    def __str__(self) -> str:
        if _jax.is_tracer(self.tokens):
            return f"Text(up to {self.tokens.shape[-1]} tokens)"
        found = self.decode()
        return found if isinstance(found, str) else "\n".join(map(repr, found))

    def __repr__(self) -> str:
        if _jax.is_tracer(self.tokens) or self.tokens.ndim > 1:
            return f"Text{tuple(self.tokens.shape)}"
        return f"Text({self.decode()!r})"
