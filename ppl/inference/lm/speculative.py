"""`speculative`: a small model proposes tokens, and the large one keeps its own law."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ppl.counts import count
from ppl.distributions import Bernoulli
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference.lm.automaton import Automaton, stopping
from ppl.inference.lm.backend import LanguageModel
from ppl.inference.lm.context import Context, require_context
from ppl.inference.lm.next_token import NextToken
from ppl.inference.lm.steps import checked, require_positive
from ppl.inference.lm.text import Text
from ppl.statements import sample


class Speculation(NamedTuple):
    """What a step said, the text after it, and what became of the proposals.

    Of `proposed` tokens of the draft that were judged, `accepted` stayed. `rounds` is how often the
    target would have to be called, if it read a block at once.
    """

    text: Text
    context: Context
    accepted: Int[Array, ""]
    proposed: Int[Array, ""]
    rounds: Int[Array, ""]


@named_keywords
def speculative(
    address: str,
    context: Context,
    *,
    block: int = 4,
    stop: str | Sequence[str] | None = None,
    max_tokens: int = 64,
    temperature: Any = 1.0,
) -> Speculation:
    """Let the text's draft model propose tokens, and its language model accept them or not.

    **Meaning.** The law on texts is that of `ppl.lm.step` with the same settings, exactly and
    whatever the draft; nothing is weighed. A token drawn from the draft's law q is accepted with
    probability min(1, p / q), p being the model's; one that is not is drawn anew from the residual,
    max(p - q, 0) normalised. So a token is accepted with probability 1 - TV(p, q). After `block`
    tokens accepted in a row comes one from p itself, and a new block.

    Both models read each token as it comes. That saves no time: a gain needs a model that reads a
    block in one call, and `rounds` tells how many calls that would be.

    Sites are "<address>/draft", "<address>/accept" and "<address>/token", in a loop over
    `max_tokens`; where nothing is drawn they have one value, of probability one.

    Args:
        address: a name, unique in the program.
        context: the text so far, with a draft: `lm.prompt(text, draft=small)`.
        block: how many tokens the draft proposes at a time.
        stop: as in `ppl.lm.step`.
        max_tokens: the most tokens.
        temperature: of both laws; positive.

    Returns:
        The text of the step, the context after it, and counts.

    Raises:
        ArgumentError: a setting is of the wrong kind, or the text has no draft, or a mask.

    Source: Leviathan, Kalman and Matias (2023); Chen et al. (2023).
    """
    context = require_context("speculative", context)
    draft = context.draft
    if draft is None:
        raise ArgumentError(
            message(
                f'speculative got a text without a draft at "{address}"',
                needs="a draft model, which proposes",
                fix="lm.prompt(text, draft=small)",
            )
        )
    if context.mask is not None:
        raise ArgumentError(
            message(
                f'speculative got a text with a mask at "{address}"',
                needs="one without",
                why="a mask weighs, and here nothing does",
                fix="ppl.lm.step(address, context)",
            )
        )
    size = count("speculative", "block", block)
    most, stops = checked("speculative", address, context, max_tokens, stop)
    require_positive("speculative", address, temperature)
    automaton = stopping(stops, context.vocabulary) if stops else None

    def one(pen: _Pen, _: Any) -> Any:
        return _write(address, draft, automaton, size, temperature, pen)

    zero = jnp.zeros((), int)
    pen = _Pen(context, zero, zero, jnp.zeros((), bool), zero, zero, zero)
    pen, tokens = jax.lax.scan(one, pen, None, length=most)
    text = Text(tokens, pen.context.length - context.length, context.vocabulary)
    return Speculation(text, pen.context, pen.accepted, pen.proposed, pen.rounds)


class _Pen(NamedTuple):
    """A step under way: the text, the stops' state, the place in the block, and counts."""

    context: Context
    stopped: Any
    place: Any
    done: Any
    accepted: Any
    proposed: Any
    rounds: Any


def _write(
    address: str,
    draft: LanguageModel,
    stop: Automaton | None,
    block: int,
    temperature: Any,
    pen: _Pen,
) -> tuple[_Pen, Any]:
    context, end = pen.context, pen.context.vocabulary.end
    active = ~(pen.done | context.over)
    p = jax.nn.log_softmax(context.lm.logits(context.state) / temperature)
    q = jax.nn.log_softmax(draft.logits(context.draft_state) / temperature)
    nothing = jnp.where(jnp.arange(p.shape[-1]) == end, 0.0, -jnp.inf)
    judged = active & (pen.place < block)
    proposed = sample(f"{address}/draft", NextToken(jnp.where(judged, q, nothing)))
    ratio = jnp.where(judged, jnp.exp(jnp.minimum(p[proposed] - q[proposed], 0.0)), 0.0)
    accepted = sample(f"{address}/accept", Bernoulli(ratio)) == 1
    law = jnp.where(judged, residual(p, q), p)
    own = sample(f"{address}/token", NextToken(jnp.where(active & ~accepted, law, nothing)))
    token = jnp.where(accepted, proposed, own)
    stopped, ended = pen.stopped, token == end
    if stop is not None:
        stopped = jnp.where(active, stop.move(stopped, token), stopped)
        ended = ended | stop.accepts(stopped)
    after = _Pen(
        context.extend(token, active),
        stopped,
        # Next in the block while all is accepted; else the next token begins a block.
        jnp.where(accepted, pen.place + 1, 0),
        ~active | ended,
        pen.accepted + accepted,
        pen.proposed + judged,
        pen.rounds + (active & (pen.place == 0)),
    )
    return after, token


def residual(p: Any, q: Any) -> Any:
    """Give log max(p - q, 0), not normalised; where that is zero everywhere, p.

    Args:
        p: log probabilities of the target.
        q: those of the draft.
    """
    # p - q = p (1 - q / p), so that no digit is lost where q is small.
    above = p > q
    gap = jnp.where(above, q - jnp.where(above, p, 0.0), -1.0)
    found = jnp.where(above, p + jnp.log(-jnp.expm1(gap)), -jnp.inf)
    return jnp.where(jnp.any(above), found, p)
