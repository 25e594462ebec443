"""Small language models, and their laws written out token by token in plain Python."""

from collections.abc import Callable

import jax
import numpy as np

import ppl

WORDS = ppl.lm.Vocabulary(["a", "b", "ab", "\n", None])
END = WORDS.end


def table(key: int = 0, words: ppl.lm.Vocabulary = WORDS, order: int = 1) -> ppl.lm.Table:
    """A table with random logits."""
    return ppl.lm.Table.random(words, key, order=order)


def probabilities(
    lm: ppl.lm.Table, before: tuple[int, ...], temperature: float = 1.0
) -> np.ndarray:
    """The next token's probabilities after some tokens."""
    order, size = lm.table.ndim - 1, len(lm.vocabulary)
    history = ((size,) * order + before)[len(before) :]
    logits = np.asarray(lm.table)[history] / temperature
    return np.asarray(jax.nn.softmax(logits))


def law(
    lm: ppl.lm.Table,
    most: int,
    stop: str | None = None,
    before: tuple[int, ...] = (),
    temperature: float = 1.0,
) -> dict[tuple[int, ...], float]:
    """The probability of every text of one step."""
    found: dict[tuple[int, ...], float] = {}

    def grow(text: tuple[int, ...], mass: float) -> None:
        spelt = lm.vocabulary.decode(text)
        over = text and (text[-1] == lm.vocabulary.end or (stop is not None and stop in spelt))
        if over or len(text) == most:
            found[text] = mass
            return
        for token, p in enumerate(probabilities(lm, before + text, temperature)):
            grow((*text, token), mass * float(p))

    grow((), 1.0)
    return found


def enumerated(program: ppl.Program) -> dict[tuple[int, ...], float]:
    """The mass of every text that a program can return."""
    measure = ppl.enumerate(program)
    found: dict[tuple[int, ...], float] = {}
    for text, mass in zip(measure.points, measure.masses, strict=True):
        key = tuple(np.asarray(text.tokens)[: int(text.length)].tolist())
        found[key] = found.get(key, 0.0) + float(mass)
    return found


def same(found: dict, wanted: dict, tolerance: float = 1e-12) -> None:
    """Two measures agree point by point; a mass of zero need not be listed."""
    for text in {*found, *wanted}:
        assert abs(found.get(text, 0.0) - wanted.get(text, 0.0)) < tolerance, text
    assert sum(wanted.values()) > 0


def restricted(masses: dict, keep: Callable[[tuple[int, ...]], bool]) -> dict:
    """The masses of some texts."""
    return {text: mass for text, mass in masses.items() if keep(text)}
