"""Vocabularies: what each token spells."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ppl.errors import ArgumentError, message


class Vocabulary:
    """Tokens by their numbers, each with the bytes it spells.

    Special tokens spell nothing. Two vocabularies are equal only if they are the same object.

    Args:
        pieces: the bytes or text of every token; None for a special token.
        end: the number of the token that ends a text; the last special token if None.

    Raises:
        ArgumentError: there is no special token that can be the end.
    """

    def __init__(self, pieces: Sequence[bytes | str | None], end: int | None = None):
        self.pieces = tuple(p.encode() if isinstance(p, str) else p for p in pieces)
        specials = [i for i, p in enumerate(self.pieces) if p is None]
        end = specials[-1] if end is None and specials else end
        if end is None or not 0 <= end < len(self.pieces) or self.pieces[end] is not None:
            raise ArgumentError(
                message(
                    f"Vocabulary got the end {end!r} and {len(specials)} special tokens",
                    needs="a special token that ends a text",
                    why="a text that cannot end has no probability",
                    fix='ppl.lm.Vocabulary(["a", "b", None])',
                )
            )
        self.end = end

    def __len__(self) -> int:
        return len(self.pieces)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} tokens)"

    def bytes_of(self, token: int) -> bytes:
        """Give what a token spells; nothing for a special one.

        Args:
            token: its number.
        """
        return self.pieces[token] or b""

    def decode(self, tokens: Any) -> str:
        """Give the text that tokens spell; bytes that are no UTF-8 become replacement characters.

        Args:
            tokens: numbers of tokens.
        """
        spelt = b"".join(self.bytes_of(int(t)) for t in np.asarray(tokens).ravel())
        return spelt.decode("utf-8", "replace")

    def encode(self, text: str) -> list[int]:
        """Write a text in tokens: here, the longest that fits at each place.

        Args:
            text: any text.

        Raises:
            ArgumentError: no token fits at some place.
        """
        left, tokens = text.encode(), []
        while left:
            for token in self._longest_first:
                piece = self.bytes_of(token)
                if left.startswith(piece):
                    tokens.append(token)
                    left = left[len(piece) :]
                    break
            else:
                raise ArgumentError(
                    message(
                        f"the vocabulary got {text!r}, of which {left.decode(errors='replace')!r} "
                        "is left",
                        needs="a text that its tokens can spell",
                        fix="see vocabulary.pieces for what there is",
                    )
                )
        return tokens

    @functools.cached_property
    def _longest_first(self) -> list[int]:
        spelling = [i for i, p in enumerate(self.pieces) if p]
        return sorted(spelling, key=lambda i: -len(self.bytes_of(i)))


def require_vocabulary(operation: str, vocabulary: Any) -> Vocabulary:
    """Give a vocabulary, or raise `ArgumentError`.

    Args:
        operation: who asks, for messages.
        vocabulary: what was passed.
    """
    if not isinstance(vocabulary, Vocabulary):
        raise ArgumentError(
            message(
                f"{operation} got {type(vocabulary).__name__} for the vocabulary",
                needs="the tokens of the model that is to write the text",
                fix=f"ppl.lm.{operation}(..., lm.vocabulary)",
            )
        )
    return vocabulary
