"""Texts that a server continues, as contexts of this language: a step is one completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution, constraints

from ppl._host import on_host
from ppl._types import PyTree
from ppl.errors import ResultError, UnsupportedError, message
from ppl.inference.lm.backend import LanguageModel
from ppl.inference.lm.completions import Completion, Request
from ppl.inference.lm.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ppl.inference.lm.server import OpenAI

#: A text from a server is bytes, whatever its tokens are; its end is a symbol, and so is nothing.
BYTES = Vocabulary([*(bytes([i]) for i in range(256)), None, None], end=256)
NOTHING = 257


class Remote(LanguageModel):
    """A model on a server: it completes texts, and does nothing else.

    Its symbols are bytes. There is room for eight of them for each token that is asked for.
    """

    symbols: ClassVar[int] = 8

    vocabulary: Vocabulary = eqx.field(static=True, default=BYTES)
    client: Any = eqx.field(static=True, kw_only=True)

    def start(self, tokens: Sequence[int], room: int) -> PyTree:
        # Padded, so that prompts of similar length share compiled code.
        size = max(64, 1 << (len(tokens) - 1).bit_length()) if tokens else 64
        prompt = np.zeros(size, np.int32)
        prompt[: len(tokens)] = tokens
        return jnp.asarray(prompt), jnp.asarray(len(tokens), jnp.int32)

    def logits(self, state: PyTree) -> NoReturn:
        raise UnsupportedError(
            message(
                f"{self.client!r} was asked for the probabilities of next tokens",
                needs="a model in this process",
                why="a completion server gives texts: it can neither weigh one, nor be masked",
                fix="ppl.lm.Llama.load(path), or ppl.lm.step without mask and proposal",
            )
        )

    def extend(self, state: PyTree, token: Any, active: Any) -> PyTree:
        return state


class Block(Distribution):
    """Draw one completion.

    **Meaning.** What the server's model says after the text so far, as bytes, and the end of the
    text, if it comes. It can be drawn and not weighed.

    Args:
        prompt: the prompt's bytes, padded, and how many count.
        written: what has come since, likewise.
        over: whether nothing is to come.
        temperature: of the server's law.
        client: whom to ask.
        stop: what ends a completion.
        max_tokens: the most tokens.
        validate_args: NumPyro's switch for checks of parameters and values.
    """

    arg_constraints = {  # noqa: RUF012
        "prompt": constraints.independent(constraints.nonnegative_integer, 1),
        "prompt_length": constraints.nonnegative_integer,
        "written": constraints.independent(constraints.nonnegative_integer, 1),
        "length": constraints.nonnegative_integer,
        "over": constraints.boolean,
        "temperature": constraints.nonnegative,
    }
    pytree_aux_fields = ("client", "stop", "max_tokens")

    def __init__(
        self,
        prompt: tuple[Any, Any],
        written: tuple[Any, Any],
        over: Any,
        temperature: Any,
        client: OpenAI,
        stop: tuple[str, ...],
        max_tokens: int,
        *,
        validate_args: bool | None = None,
    ):
        self.prompt, self.prompt_length = prompt
        self.written, self.length = written
        self.over, self.temperature = over, jnp.asarray(temperature, jnp.float32)
        self.client, self.stop, self.max_tokens = client, stop, max_tokens
        size = Remote.symbols * max_tokens
        super().__init__(jnp.shape(self.length), (size,), validate_args=validate_args)

    @property
    def support(self) -> Any:
        """The constraint that draws satisfy."""
        return constraints.independent(constraints.integer_interval(0, NOTHING), 1)

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Draw completions; all lanes of a program are asked for together.

        Args:
            key: PRNG key.
            sample_shape: leading axes.
        """
        shape = (*sample_shape, *self.batch_shape)
        seeds = jax.random.bits(key, shape, jnp.uint32) >> 1
        out = jax.ShapeDtypeStruct((*shape, *self.event_shape), np.int32)
        parts = (self.prompt, self.prompt_length, self.written, self.length, self.over)
        parts = [
            jnp.broadcast_to(x, (*shape, *jnp.shape(x)[len(self.batch_shape) :])).astype(jnp.int32)
            for x in parts
        ]
        temperature = jnp.broadcast_to(self.temperature, shape)
        call = jax.pure_callback(
            on_host(self._ask), out, seeds, temperature, *parts, vmap_method="broadcast_all"
        )
        return call.astype(int)

    def log_prob(self, value: Any, intermediates: Any = None) -> NoReturn:
        """Refuse: a server does not weigh texts.

        Args:
            value: completions.
            intermediates: unused; part of NumPyro's interface.
        """
        raise UnsupportedError(
            message(
                f"the density of a completion by {self.client!r} was asked for",
                needs="a method that draws steps from the model itself",
                why="a completion server draws texts, and does not weigh them",
                fix="ppl.smc(program, num_particles) or ppl.importance, without a proposal",
            )
        )

    def _ask(self, seeds: Any, temperatures: Any, *parts: Any) -> np.ndarray:
        seeds = np.asarray(seeds)
        prompts, sizes, written, lengths, over = (
            np.asarray(x).reshape(seeds.size, *np.shape(x)[seeds.ndim :]) for x in parts
        )
        found = np.full((seeds.size, *self.event_shape), NOTHING, np.int32)
        lanes = np.flatnonzero(over == 0)
        requests = [
            Request(
                BYTES.decode([*prompts[i][: sizes[i]], *written[i][: lengths[i]]]),
                seed=int(seeds.flat[i]),
                max_tokens=self.max_tokens,
                stop=self.stop,
                temperature=float(np.asarray(temperatures).flat[i]),
            )
            for i in lanes
        ]
        for i, completion in zip(lanes, self.client.complete(requests), strict=True):
            found[i] = self._written(completion)
        return found.reshape(*seeds.shape, *self.event_shape)

    def _written(self, completion: Completion) -> np.ndarray:
        if completion.ended == "stop or end":
            raise ResultError(
                message(
                    f"{self.client!r} gave a completion that ended with its stop, or the text",
                    needs="to know which: a text that is over must not go on",
                    why="this server cuts the stop off, and says the same of both",
                    fix='OpenAI(..., stops="client"), which looks for the stop itself',
                )
            )
        symbols = [*completion.text.encode(), *[BYTES.end] * (completion.ended == "end")]
        size = self.event_shape[0]
        if not 0 < len(symbols) <= size:
            raise ResultError(
                message(
                    f"{self.client!r} gave a completion of {len(symbols)} symbols for up to "
                    f"{self.max_tokens} tokens",
                    needs=f"one to {size}, counting bytes and the end of the text",
                    why=f"there is room for {Remote.symbols} bytes a token, and no text may be cut",
                    fix=f"ask for more: max_tokens={-(-len(symbols) // Remote.symbols)}",
                )
            )
        return np.array([*symbols, *[NOTHING] * (size - len(symbols))], np.int32)
