"""The statements: a step of a language model, an observed text, a condition, a twist."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl import _jax
from ppl.counts import count
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference.lm.automaton import Automaton, stopping
from ppl.inference.lm.context import Context, require_context, tokens_of
from ppl.inference.lm.next_token import NextToken
from ppl.inference.lm.patterns import regex
from ppl.inference.lm.remote import NOTHING, Block, Remote
from ppl.inference.lm.text import Text
from ppl.statements import factor, sample

Proposal = Callable[[Any], Any]


class Step(NamedTuple):
    """What a step said, and the text after it."""

    text: Text
    context: Context


@named_keywords
def step(
    address: str,
    context: Context,
    *,
    stop: str | Sequence[str] | None = None,
    max_tokens: int = 64,
    temperature: Any = 1.0,
    proposal: Proposal | str | None = None,
    mask: Automaton | str | None = None,
    locally_normalised: bool = False,
) -> Step:
    """Let the language model go on, up to a stop: a sample statement.

    **Meaning.** Tokens are drawn one by one from the model's law at a temperature, softmax(logits /
    temperature), until one completes a stop, ends the text, is the last of `max_tokens`, or fills
    the context's room. Under `address` they are a site in a loop over `max_tokens`; after the stop
    come placeholders, of probability one. A step on a text that is over says nothing.

    A proposal or a mask draws otherwise and weighs by the ratio of probabilities, once at the end,
    at the factor "<address>/weight". So a proposal leaves the measure as it is, and a mask cuts it
    down to the texts that match: its mass is the probability that the model's text does. With
    `locally_normalised` a mask does not weigh: each token has the model's probability given that it
    is allowed, which is another law.

    Args:
        address: a name, unique in the program.
        context: the text so far, or a model whose text begins here.
        stop: a string, or several: the step ends with the first, which belongs to it, as does what
            else its last token spells.
        max_tokens: the most tokens.
        temperature: positive; a number, may be traced.
        proposal: a function from the next token's logits, at the temperature, to those to draw
            from; "draft" for the context's draft model, at the same temperature. It must be able to
            propose whatever the model can say; what it cannot is lost from the measure.
        mask: what the step may say, its stop included: a regular expression, or an automaton
            (`ppl.lm.regex`, `grammar`). The text may end where it matches; the step ends where
            nothing can follow. One that is cut short of a match has weight zero.
        locally_normalised: do not weigh by the mask.

    Returns:
        The text of the step, and the context after it.

    Raises:
        ArgumentError: a setting is of the wrong kind, or two exclude one another.
    """
    context = require_context("step", context)
    most, stops = checked("step", address, context, max_tokens, stop)
    masked = mask is not None or context.mask is not None
    if locally_normalised and not masked:
        raise ArgumentError(
            message(
                f'step got locally_normalised=True at "{address}", and no mask',
                needs="a mask for this to be a setting of",
                fix=f'ppl.lm.step("{address}", context, mask="[0-9]+", locally_normalised=True)',
            )
        )
    if isinstance(context.lm, Remote):
        if proposal is not None or masked:
            context.lm.logits(context.state)  # refused, by name
        return _completed(address, context, stops, most, temperature)
    require_positive("step", address, temperature)
    automaton = regex(mask, context.vocabulary) if isinstance(mask, str) else mask
    writer = _Writer(
        stopping(stops, context.vocabulary) if stops else None,
        automaton,
        temperature,
        _proposer(address, context, proposal, temperature),
        proposal is not None or (masked and not locally_normalised),
        locally_normalised,
    )

    def one(pen: _Pen, _: Any) -> Any:
        return writer.write(address, pen)

    zero = jnp.zeros((), int)
    pen = _Pen(context, zero, zero, jnp.zeros((), bool), jnp.zeros_like(context.promised))
    pen, tokens = jax.lax.scan(one, pen, None, length=most)
    if writer.weighs:
        after, short = pen.context, jnp.asarray(False)
        if automaton is not None:
            short = ~automaton.accepts(pen.said) & ~context.over
        # A text that has filled its room cannot come to match any more.
        short = short | (after.truncated & ~after.matched)
        factor(f"{address}/weight", jnp.where(short, -jnp.inf, pen.log_weight))
    text = Text(tokens, pen.context.length - context.length, context.vocabulary)
    return Step(text, pen.context)


def checked(
    operation: str, address: str, context: Context, max_tokens: Any, stop: Any
) -> tuple[int, tuple[str, ...]]:
    """Check what steps of every kind are given: give the most tokens, and the stops.

    Args:
        operation: who asks, for the message.
        address: of the step.
        context: the text so far.
        max_tokens: the most tokens.
        stop: a string, several, or None.
    """
    most = count(operation, "max_tokens", max_tokens)
    if most > context.room:
        raise ArgumentError(
            message(
                f'{operation} got max_tokens={most} at "{address}", in a text with room for '
                f"{context.room}",
                needs="room for a whole step",
                why="a text that fills its room is cut there",
                fix=f"lm.prompt(text, room={most})",
            )
        )
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    if not all(isinstance(s, str) and s for s in stops):
        raise ArgumentError(
            message(
                f'{operation} got stop={stop!r} at "{address}"',
                needs="a string, or several, none of them empty",
                fix=r'stop="\n"',
            )
        )
    return most, stops


def require_positive(operation: str, address: str, temperature: Any) -> None:
    """Refuse a temperature by which no law can be divided; a traced one cannot be seen.

    Args:
        operation: who asks, for the message.
        address: of the step.
        temperature: what was passed.
    """
    if not _jax.is_tracer(temperature) and not 0 < float(temperature) < math.inf:
        raise ArgumentError(
            message(
                f'{operation} got temperature={temperature} at "{address}"',
                needs="a positive number",
                why="logits are divided by it",
                fix="temperature=0.1, for little chance",
            )
        )


def _completed(
    address: str,
    context: Context,
    stops: tuple[str, ...],
    most: int,
    temperature: Any,
) -> Step:
    """Make a step of one completion by a server."""
    lm = context.lm
    assert isinstance(lm, Remote)
    written = context.tokens, context.length
    block = Block(context.state, written, context.over, temperature, lm.client, stops, most)
    symbols = sample(address, block)
    says = ~context.over & (symbols != NOTHING)

    def one(context: Context, row: Any) -> Any:
        return context.extend(*row), None

    after, _ = jax.lax.scan(one, context, (symbols, says))
    return Step(Text(symbols, after.length - context.length, context.vocabulary), after)


@named_keywords
def generate(address: str, context: Context, *, max_tokens: int = 64, **settings: Any) -> Step:
    """Let the model write to the end of its text: a step without a stop.

    Args:
        address: a name, unique in the program.
        context: the text so far.
        max_tokens: the most tokens.
        **settings: `temperature`, `proposal`, `mask`, as in `ppl.lm.step`.
    """
    return step(address, context, max_tokens=max_tokens, **settings)


class _Pen(NamedTuple):
    """A step under way: the text, the states of its automata, whether it is done, its weight."""

    context: Context
    stopped: Any
    said: Any
    done: Any
    log_weight: Any


class _Writer(NamedTuple):
    """How one token is drawn and weighed."""

    stop: Automaton | None
    mask: Automaton | None
    temperature: Any
    propose: Callable[[Any, Context], Any] | None
    weighs: bool
    local: bool

    def write(self, address: str, pen: _Pen) -> tuple[_Pen, Any]:
        context, end = pen.context, pen.context.vocabulary.end
        over = pen.done | context.over
        logits = context.lm.logits(context.state)
        law = _log_softmax(logits / self.temperature)
        drawn = law if self.propose is None else _log_softmax(self.propose(law, context))
        if self.mask is not None or context.mask is not None:
            allowed = context.allowed if self.mask is None else self._allowed(pen, end)
            if self.local:
                law = _log_softmax(jnp.where(allowed, law, -jnp.inf))
            drawn = _log_softmax(jnp.where(allowed, drawn, -jnp.inf))
        # Where no token may come, the run has no weight, and what it says is nothing.
        lost = ~over & ~jnp.any(drawn > -jnp.inf)
        nothing = jnp.where(jnp.arange(law.shape[-1]) == end, 0.0, -jnp.inf)
        token = sample(address, NextToken(jnp.where(over | lost, nothing, drawn)))
        active = ~(over | lost)
        weight = pen.log_weight
        if self.weighs:
            ratio = jnp.where(active, law[token] - jnp.where(active, drawn[token], 0.0), 0.0)
            weight = jnp.where(lost, -jnp.inf, weight + ratio)
        stopped, said, ended = pen.stopped, pen.said, token == end
        if self.stop is not None:
            stopped = jnp.where(active, self.stop.move(stopped, token), stopped)
            ended = ended | self.stop.accepts(stopped)
        if self.mask is not None:
            speaks = active & (token != end)
            said = jnp.where(speaks, self.mask.move(said, token), said)
            ended = ended | ~jnp.any(self.mask.allowed(said))
        after = context.extend(token, active)
        return _Pen(after, stopped, said, over | lost | ended, weight), token

    def _allowed(self, pen: _Pen, end: int) -> Any:
        """Tell which tokens may come: the end and what completes a stop only where all matches."""
        assert self.mask is not None
        allowed = self.mask.allowed(pen.said)
        if self.stop is not None:
            stops = self.stop.accepts(self.stop.move(pen.stopped, slice(None)))
            allowed = allowed & (~stops | self.mask.accepts(self.mask.move(pen.said, slice(None))))
        return allowed.at[end].set(self.mask.accepts(pen.said)) & pen.context.allowed


def _proposer(address: str, context: Context, proposal: Any, temperature: Any) -> Any:
    if proposal is None:
        return None
    if callable(proposal):
        return lambda law, context: proposal(law)
    draft = context.draft
    if proposal == "draft" and draft is not None:
        return lambda law, context: draft.logits(context.draft_state) / temperature
    raise ArgumentError(
        message(
            f'step got proposal={proposal!r} at "{address}"'
            + (", and its text has no draft" if proposal == "draft" else ""),
            needs='a function of logits, or "draft" in a text that has one',
            fix='lm.prompt(text, draft=other), then proposal="draft"',
        )
    )


def _log_softmax(logits: Any) -> Any:
    """Normalise; where every logit is -inf, they stay."""
    top = jnp.max(logits)
    return jnp.where(top == -jnp.inf, -jnp.inf, jax.nn.log_softmax(logits))


@named_keywords
def observe(
    address: str, context: Context, text: str | Sequence[int], *, temperature: Any = 1.0
) -> Context:
    """Weigh by the probability that the model goes on with a given text, and append it.

    Args:
        address: a name, unique in the program.
        context: the text so far. If it is over, the weight is zero.
        text: what comes next, or its tokens. The end of the text is not a part of it, unless its
            token is.
        temperature: of the model's law.

    Returns:
        The context after it.
    """
    context = require_context("observe", context)
    require_positive("observe", address, temperature)
    tokens = tokens_of(context.vocabulary, text, "observe")

    def one(carry: Any, token: Any) -> Any:
        context, weight = carry
        law = _log_softmax(context.lm.logits(context.state) / temperature)
        possible = ~context.over & context.allowed[token]
        weight = weight + jnp.where(possible, law[token], -jnp.inf)
        return (context.extend(token, jnp.asarray(True)), weight), None

    if not tokens:
        return context
    start = context, jnp.zeros_like(context.promised)
    (context, weight), _ = jax.lax.scan(one, start, jnp.asarray(tokens, int))
    factor(address, weight)
    return context


@named_keywords
def condition(address: str, holds: Any) -> None:
    """Keep only the runs in which something holds: a factor of one or zero.

    Args:
        address: a name, unique in the program.
        holds: a boolean.
    """
    factor(address, jnp.where(jnp.asarray(holds, bool), 0.0, -jnp.inf))


@named_keywords
def twist(address: str, context: Context, log_value: Any) -> Context:
    """Weigh by a guess of what is to come, in place of the guess before.

    **Meaning.** The weight so far is multiplied by exp(log_value), and divided by what the twist
    before multiplied it with. So all but the last cancel; one of zero at the end leaves the measure
    of the program without twists.

    Args:
        address: a name, unique in the program.
        context: the text so far, which remembers the guess.
        log_value: the log of the guess, in nats; finite, or -inf for a run that is lost.

    Returns:
        The context with the guess.
    """
    context = require_context("twist", context)
    value = jnp.asarray(log_value, context.promised.dtype)
    factor(address, value - jnp.where(jnp.isfinite(context.promised), context.promised, 0.0))
    return dataclasses.replace(context, promised=value)
