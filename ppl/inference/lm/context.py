"""`Context`: a text under way, as a language model reads it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ppl import _jax
from ppl._types import PyTree, pytree, static
from ppl.context import current_context
from ppl.counts import count
from ppl.errors import ArgumentError, message
from ppl.inference.lm.automaton import DEAD, Automaton
from ppl.inference.lm.backend import LanguageModel
from ppl.inference.lm.text import Text
from ppl.inference.lm.vocabulary import Vocabulary
from ppl.semantics.run import run
from ppl.staging import stage


class Held:
    """What a context points to: no part of what a loop carries, or resampling forks.

    Two are equal if they hold the same object.
    """

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


@pytree
class Context:
    """A text under way, and a language model's state after it.

    A value like any other: a step gives a new one, and a loop carries it. `text` is what has come
    since the prompt; a model should return that, not the context with its caches.
    """

    state: PyTree
    draft_state: PyTree
    tokens: Int[Array, " room"]
    length: Int[Array, ""]
    finished: Bool[Array, ""]
    promised: Float[Array, ""]
    said: Int[Array, ""]
    held: Held = static()
    held_draft: Held | None = static(default=None)
    held_mask: Held | None = static(default=None)

    @property
    def lm(self) -> LanguageModel:
        """The language model."""
        return self.held.value

    @property
    def draft(self) -> LanguageModel | None:
        """The model that proposes, if there is one."""
        return None if self.held_draft is None else self.held_draft.value

    @property
    def mask(self) -> Automaton | None:
        """What the whole text since the prompt has to match."""
        return None if self.held_mask is None else self.held_mask.value

    @property
    def matched(self) -> Bool[Array, ""]:
        """Whether the text since the prompt matches its mask as it is; True without one."""
        if self.mask is None:
            return jnp.asarray(True)
        return (self.said != DEAD) & self.mask.accepts(self.said)

    @property
    def allowed(self) -> Bool[Array, " token"]:
        """Which tokens may come: with a mask, the end only where all matches."""
        size = len(self.vocabulary)
        if self.mask is None:
            return jnp.ones(size, bool)
        open_ = self.mask.allowed(self.said) & (self.said != DEAD)
        return open_.at[self.vocabulary.end].set(self.matched)

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's vocabulary."""
        return self.lm.vocabulary

    @property
    def room(self) -> int:
        """How many tokens there may be since the prompt. A text that fills it is cut there."""
        return self.tokens.shape[-1] // self.lm.symbols

    @property
    def text(self) -> Text:
        """The text since the prompt."""
        return Text(self.tokens, self.length, self.vocabulary)

    @property
    def truncated(self) -> Bool[Array, ""]:
        """Whether the text filled the room before it came to its end."""
        return ~self.finished & (self.length >= self.tokens.shape[-1])

    @property
    def over(self) -> Bool[Array, ""]:
        """Whether nothing can come any more: the text is finished, or truncated."""
        return self.finished | (self.length >= self.tokens.shape[-1])

    def extend(self, token: Any, active: Any) -> Context:
        """Append one token without weighing it.

        Args:
            token: the token.
            active: whether it counts. Where the text is over, none does.
        """
        active = active & ~self.over
        draft, mask, said = self.draft, self.mask, self.said
        ends = token == self.vocabulary.end
        if mask is not None:
            moved = jnp.where(said == DEAD, DEAD, mask.move(said, token))
            said = jnp.where(active & ~ends, moved, said)
            # Nothing can follow; after what does not match, a step is to find that out and weigh.
            ends = ends | ((said != DEAD) & ~jnp.any(mask.allowed(said)))
        place = jnp.where(active, self.length, self.tokens.shape[-1])
        return dataclasses.replace(
            self,
            state=self.lm.extend(self.state, token, active),
            draft_state=draft.extend(self.draft_state, token, active) if draft else None,
            tokens=self.tokens.at[place].set(token, mode="drop"),
            length=self.length + active,
            finished=self.finished | (active & ends),
            said=said,
        )

    def append(self, text: str | Sequence[int]) -> Context:
        """Append a text that is given, as an intervention: it weighs nothing.

        Args:
            text: the text, or its tokens. Of a text that is over, nothing is appended.

        Raises:
            ArgumentError: there is too little room, as far as that is known.
        """
        tokens = tokens_of(self.vocabulary, text, "append")
        if not tokens:
            return self
        length = 0 if _jax.is_tracer(self.length) else int(np.max(self.length))
        if length + len(tokens) > self.tokens.shape[-1]:
            raise ArgumentError(
                message(
                    f"append got {len(tokens)} tokens, after {length}, in a text with room for "
                    f"{self.room}",
                    needs="room for all of them",
                    why="what does not fit would be dropped",
                    fix=f"lm.prompt(text, room={length + len(tokens)})",
                )
            )
        row = jnp.asarray(tokens, int)
        if current_context().inside or any(map(_jax.is_tracer, jax.tree.leaves(self))):
            return _appended(self, row)
        return run(stage(_appended, (self, row), name="append"), 0)  # compiled once

    def __repr__(self) -> str:
        shown = repr(self.text) if self.tokens.ndim == 1 else f"of shape {self.tokens.shape[:-1]}"
        return f"Context({type(self.lm).__name__}, {shown}, room={self.room})"


def _appended(context: Context, tokens: Any) -> Context:
    def one(context: Context, token: Any) -> Any:
        return context.extend(token, jnp.asarray(True)), None

    return jax.lax.scan(one, context, tokens)[0]


def begin(
    lm: LanguageModel, text: Any, room: Any, draft: LanguageModel | None, mask: Automaton | None
) -> Context:
    """Begin a text; see `LanguageModel.prompt`."""
    room = count("prompt", "room", room)
    tokens = tokens_of(lm.vocabulary, text, "prompt")
    if draft is not None and draft.vocabulary is not lm.vocabulary:
        raise ArgumentError(
            message(
                f"prompt got a draft with {draft.vocabulary} for a model with {lm.vocabulary}",
                needs="one vocabulary, the same object",
                why="a token that is proposed must mean the same to both",
                fix="make both models with one Vocabulary",
            )
        )
    return Context(
        lm.start(tokens, room),
        None if draft is None else draft.start(tokens, room),
        jnp.full(room * lm.symbols, lm.vocabulary.end, int),
        jnp.zeros((), int),
        jnp.zeros((), bool),
        jnp.zeros((), jnp.result_type(float)),
        jnp.zeros((), int),
        Held(lm),
        None if draft is None else Held(draft),
        None if mask is None else Held(mask),
    )


def tokens_of(vocabulary: Vocabulary, text: Any, operation: str) -> list[int]:
    """Give the tokens of a text; tokens stay as they are.

    Args:
        vocabulary: the vocabulary.
        text: a string, or numbers of tokens.
        operation: who asks, for the message.
    """
    if isinstance(text, str):
        return vocabulary.encode(text)
    tokens = [int(t) for t in text]
    wrong = [t for t in tokens if not 0 <= t < len(vocabulary)]
    if wrong:
        raise ArgumentError(
            message(
                f"{operation} got the tokens {wrong}",
                needs=f"numbers from 0 to {len(vocabulary) - 1}",
                fix="pass the text as a string",
            )
        )
    return tokens


def require_context(operation: str, context: Any) -> Context:
    """Give the context; of a bare model, that of an empty prompt.

    Args:
        operation: who asks, for the message.
        context: what was passed.
    """
    if isinstance(context, LanguageModel):
        return context.prompt()
    if isinstance(context, Context):
        return context
    raise ArgumentError(
        message(
            f"{operation} got {type(context).__name__} where the text so far should be",
            needs="a Context",
            why="a step continues a text",
            fix=f'ppl.lm.{operation}("line", lm.prompt("Once upon"), ...)',
        )
    )
