"""What a language model offers: a state, the next token's logits, and how a token extends it."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
from jaxtyping import Array, Bool, Float, Int

from ppl._types import PyTree
from ppl.inference.lm.automaton import Automaton
from ppl.inference.lm.patterns import regex
from ppl.inference.lm.vocabulary import Vocabulary


class LanguageModel(eqx.Module):
    """A model of the next token.

    **Meaning.** For every text so far, a probability on the next token; the end of the text is one
    of them. A model is a pytree: given to a `@ppl.model` as an argument, its arrays are inputs of
    the program. A state is a pytree of arrays, one text's. Many texts are lanes of `jax.vmap`: what
    is the same for all of them (weights, the prompt's cache) stays without their axis, and
    resampling forks texts by taking rows.
    """

    #: How many of a text's symbols there is room for, for each token that is asked for.
    symbols: ClassVar[int] = 1

    vocabulary: eqx.AbstractVar[Vocabulary]

    @abc.abstractmethod
    def start(self, tokens: Sequence[int], room: int) -> PyTree:
        """Read a prompt.

        Args:
            tokens: the prompt, on the host.
            room: how many tokens the text may grow by.

        Returns:
            The state after the prompt.
        """

    @abc.abstractmethod
    def logits(self, state: PyTree) -> Float[Array, " token"]:
        """Give the logits of the next token.

        Args:
            state: the state of one text.
        """

    @abc.abstractmethod
    def extend(self, state: PyTree, token: Int[Array, ""], active: Bool[Array, ""]) -> PyTree:
        """Append one token.

        Args:
            state: the state of one text.
            token: the token.
            active: whether it counts; if not, the state stays as it is, whatever the token.
        """

    def prompt(
        self,
        text: str | Sequence[int] = "",
        *,
        room: int = 256,
        draft: Any = None,
        mask: Automaton | str | None = None,
    ) -> Any:
        """Begin a text.

        Args:
            text: the prompt, as text or in tokens.
            room: how many tokens the text may grow by, over all steps.
            draft: another model of the same vocabulary that reads along, to propose tokens:
                `ppl.lm.step(..., proposal="draft")`.
            mask: what the whole text has to match, over all steps: a regular expression, or an
                automaton (`ppl.lm.regex`, `grammar`). Every step weighs by the probability of what
                it had to avoid. The text ends where nothing can follow, and weighs nothing if it
                fills its room without a match. `context.matched` tells whether it matches so far:
                at the end of a program, `ppl.lm.condition("done", context.matched)`.
                `ppl.lm.reasoning` sees to that itself.

        Returns:
            A `Context`, which `ppl.lm.step` continues.
        """
        from ppl.inference.lm.context import begin

        automaton = regex(mask, self.vocabulary) if isinstance(mask, str) else mask
        return begin(self, text, room, draft, automaton)


def keep_where(active: Any, new: PyTree, old: PyTree) -> PyTree:
    """Take a new state where the text goes on.

    Args:
        active: whether it does.
        new: the state with one token more.
        old: the state without.
    """
    return jax.tree.map(lambda a, b: jax.numpy.where(active, a, b), new, old)
