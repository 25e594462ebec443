"""What to answer, when there are many particles: the best one, or a vote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl._types import PyTree
from ppl.errors import ArgumentError, message, named_keywords
from ppl.inference.lm.text import Text
from ppl.program import Program, inline, require_program
from ppl.semantics.population import Population
from ppl.staging import stage


def best(program: Program) -> Program:
    """Keep the particle of the largest weight.

    **Meaning.** Biased: the law of the best of N is not the program's. Of N independent runs with
    scores of law F it is F^N, as in best-of-n, `ppl.lm.best(ppl.importance(program, N))`;
    `ppl.check.preserves(lambda p: ppl.lm.best(ppl.importance(p, 8)), program)` finds it.

    Args:
        program: a program of a `Population`.

    Returns:
        A program of one particle's value. Of equal weights the first counts, even
        if all are zero.
    """
    require_program("best", program)
    if type(program.structure.shapes) is not Population:
        raise ArgumentError(
            message(
                f"best got {program.name}, which returns {type(program.structure.shapes).__name__}",
                needs="a program of a Population",
                fix="ppl.lm.best(ppl.importance(program, num_particles=8))",
            )
        )
    return stage(_best, (program,), name=f"best({program.name})")


def _best(program: Program) -> PyTree:
    found = inline(program)
    index = jnp.argmax(found.log_weights)
    return jax.tree.map(lambda x: x[index], found.values)


@named_keywords
def vote(
    population: Population,
    answer: Callable[[str], Any] | None = None,
    *,
    weighted: bool = True,
) -> dict[Any, float]:
    """Let particles vote on the answer.

    **Meaning.** The estimated posterior probability of each answer, the most probable first. Not
    weighted it is self-consistency, the majority of what the model says.

    Args:
        population: particles whose values are texts, or have one.
        answer: from a text to its answer, None for one that has none; the whole text by default.
        weighted: count particles by weight; if False, all alike.

    Returns:
        Answers and their shares. Texts without an answer have a share too, under None, and come
        last.

    Raises:
        ResultError: no particle has positive weight, or weights are no numbers.
    """
    texts = text_of(population.values).decode()
    if weighted:
        population.require_mass("vote")
        weights = np.asarray(population.weights)
    else:
        weights = np.full(len(texts), 1 / len(texts))
    shares: dict[Any, float] = {}
    for text, weight in zip(texts, weights, strict=True):
        key = text if answer is None else answer(text)
        shares[key] = shares.get(key, 0.0) + float(weight)
    order = sorted(shares.items(), key=lambda item: (item[0] is None, -item[1]))
    return dict(order)


def text_of(values: Any) -> Text:
    """Find the text in what particles returned.

    Args:
        values: a `Text`, or something with a field `text`.
    """
    found = values if isinstance(values, Text) else getattr(values, "text", None)
    if not isinstance(found, Text):
        raise ArgumentError(
            message(
                f"vote got particles of {type(values).__name__}",
                needs="texts, or values with a field `text`",
                fix="return context.text from the model",
            )
        )
    return found
