"""`judge`: ask a Python function about texts while a program runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl._host import on_host
from ppl.errors import ArgumentError, ResultError, message, named_keywords
from ppl.inference.lm.context import Context
from ppl.inference.lm.text import Text

#: Answers that are kept, so that no text is judged twice.
KEPT = 100_000


class Judge:
    """A Python function of texts, callable inside models; it counts how often it was asked.

    Made by `ppl.lm.judge`.
    """

    def __init__(self, function: Callable[..., Any], many: bool):
        self.function, self.many = function, many
        self.name = getattr(function, "__name__", type(function).__name__)
        self.calls = 0
        self._known: dict[tuple[str, ...], float] = {}

    def __call__(self, *texts: Text | Context) -> Any:
        """Judge texts, each of one lane.

        Args:
            *texts: what the function is given, as strings.

        Returns:
            A number for every lane.
        """
        given = [t.text if isinstance(t, Context) else t for t in texts]
        wrong = [type(t).__name__ for t in given if not isinstance(t, Text)]
        if wrong or not given:
            raise ArgumentError(
                message(
                    f"the judge {self.name} got {', '.join(wrong) or 'nothing'}",
                    needs="texts, or contexts",
                    why="the function is called with strings when the program runs",
                    fix="score = judge(context)",
                )
            )
        dtype = jnp.result_type(float)
        words = [t.vocabulary for t in given]

        def ask(*arrays: Any) -> np.ndarray:
            return self._ask(words, arrays).astype(dtype)[..., None].view(np.uint32)

        # Callbacks run in a thread of their own, where JAX may not know that x64 is on: the numbers
        # come back as their bits.
        arrays = [x for t in given for x in (t.tokens, t.length)]
        out = jax.ShapeDtypeStruct((dtype.itemsize // 4,), np.uint32)
        bits = jax.pure_callback(on_host(ask), out, *arrays, vmap_method="broadcast_all")
        return jax.lax.bitcast_convert_type(bits if dtype.itemsize > 4 else bits[..., 0], dtype)

    def _ask(self, words: Sequence[Any], arrays: Sequence[Any]) -> np.ndarray:
        host = [np.asarray(a) for a in arrays]
        axes = host[1].shape
        columns = []
        for i, vocabulary in enumerate(words):
            tokens = host[2 * i].reshape(-1, host[2 * i].shape[-1])
            lengths = host[2 * i + 1].reshape(-1)
            columns.append([vocabulary.decode(t[:n]) for t, n in zip(tokens, lengths, strict=True)])
        asked = list(zip(*columns, strict=True))
        self._learn([t for t in dict.fromkeys(asked) if t not in self._known])
        found = np.array([self._known[t] for t in asked]).reshape(axes)
        if len(self._known) > KEPT:
            self._known.clear()
        return found

    def _learn(self, new: list[tuple[str, ...]]) -> None:
        """Ask about the texts that are new."""
        if not new:
            return
        self.calls += len(new)
        if self.many:
            answers = list(self.function(*map(list, zip(*new, strict=True))))
        else:
            answers = [self.function(*texts) for texts in new]
        if len(answers) != len(new):
            raise ResultError(
                message(
                    f"the judge {self.name} gave {len(answers)} numbers for {len(new)} texts",
                    needs="one number for each",
                    fix="return a list as long as the lists given",
                )
            )
        for texts, answer in zip(new, answers, strict=True):
            value = float(answer)
            if np.isnan(value):
                raise ResultError(
                    message(
                        f"the judge {self.name} gave NaN for {texts[0]!r}",
                        needs="a number",
                        why="a weight that is no number spoils all others",
                        fix="return float('-inf'), or 0, for what cannot be judged",
                    )
                )
            self._known[texts] = value

    def __repr__(self) -> str:
        return f"Judge({self.name}, {self.calls} calls)"


@named_keywords
def judge(function: Callable[..., Any], *, many: bool = False) -> Judge:
    """Make a Python function of texts callable inside models: a verifier, a reward model.

    It is called on the host while the program runs, with strings, for all particles together, and
    once for each different text: what it says must depend on the text alone.

    Args:
        function: from strings, one for each text the judge is called with, to a number.
        many: whether it takes lists of strings and gives a list, as a batched model would.

    Returns:
        A `Judge`; `judge.calls` counts the texts it was asked about.

    Raises:
        ResultError: when the program runs: an answer is NaN, or there are too few.
    """
    if not callable(function):
        raise ArgumentError(
            message(
                f"judge got {function!r}",
                needs="a function of strings",
                fix="ppl.lm.judge(lambda text: len(text))",
            )
        )
    return Judge(function, many)
