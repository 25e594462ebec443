"""What is compared: every method gets as many runs of the model, and says one answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import ppl
from paper_checks.scaling.problems import (
    DIGITS,
    LINES,
    Problem,
    answered,
    examples,
    majority,
    score,
    scores,
)

#: The most tokens of a line; a right one has at most ten.
TOKENS, TEMPERATURE, EXPAND = 12, 0.6, 4

Found = dict[str, str | None]


class Verifier(NamedTuple):
    """How sure a verifier is, in nats of its logit, and how noisy."""

    margin: float
    noise: float


class Drawn(NamedTuple):
    """What particles wrote on one problem, each with its weight and its last score."""

    texts: list[str]
    log_weights: np.ndarray
    last: np.ndarray


class Bench:
    """A model that has read the examples, and programs over a number of problems at once.

    The programs are compiled once for all problems.
    """

    def __init__(self, model: Any):
        self.model = model
        longest = len(model.vocabulary.encode(Problem((9,) * DIGITS).question))
        self.start = model.prompt(examples(), room=longest + LINES * TOKENS)
        self._models: dict[Any, Any] = {}

    def draw(
        self, problems: Sequence[Problem], verifier: Verifier, method: Method, key: Any
    ) -> list[Drawn]:
        """Run a population method on every problem."""
        rows = np.array([self.model.vocabulary.encode(p.question) for p in problems])
        if (verifier, method) not in self._models:
            self._models[verifier, method] = self._model(verifier, method)
        text, log_weights, last = ppl.run(self._models[verifier, method](self.start, rows), key)
        found = zip(text.decode(), np.asarray(log_weights), np.asarray(last), strict=True)
        return [Drawn(*row) for row in found]

    def _model(self, verifier: Verifier, method: Method) -> Any:
        judge = ppl.lm.judge(lambda text: score(text, *verifier))

        @ppl.model
        def model(start: Any, rows: Any) -> Any:
            def one(row: Any) -> Any:
                context, _ = jax.lax.scan(lambda c, t: (c.extend(t, True), None), start, row)
                task = ppl.lm.reasoning(
                    context,
                    judge,
                    num_steps=LINES,
                    stop="\n",
                    max_tokens=TOKENS,
                    temperature=TEMPERATURE,
                    **dict(method.settings),
                )
                population = method.make(task)()
                values = population.values
                return values.text, population.log_weights, values.scores[..., -1]

            return jax.vmap(one)(rows)

        return model


class Method(NamedTuple):
    """A population method: from a task to a program, and the settings of the task."""

    name: str
    number: int
    settings: tuple[tuple[str, Any], ...] = ()

    def make(self, task: Any) -> Any:
        """Make the program."""
        n = self.number
        if self.name == "alone":
            return ppl.importance(task.program, n)
        if self.name == "particle filter":
            return ppl.smc(task.program, n)
        if self.name == "as published":
            return ppl.smc(task.program, n, resample="multinomial", ess_threshold=1.0)
        if self.name == "beam":
            return ppl.lm.beam(task, n // EXPAND, EXPAND)
        return ppl.lm.dvts(task, n // EXPAND, EXPAND)


def alone(number: int) -> Method:
    """Draw texts by the model itself, which all methods without resampling share."""
    return Method("alone", number)


def others(number: int) -> list[Method]:
    """List the methods that resample or search, with as many runs of the model."""
    found = [
        Method("particle filter", number),
        Method("as published", number, (("link", "logit"), ("absorbing", False))),
        Method("beam", number, (("aggregate", "last"),)),
    ]
    if number > EXPAND:  # one group is one beam
        found.append(Method("DVTS", number, (("aggregate", "last"),)))
    return found


def answer_of(method: Method, drawn: Drawn) -> str | None:
    """Give a method's answer: the particle filter votes by weight, the others take the best."""
    answers = list(map(answered, drawn.texts))
    if method.name == "particle filter":
        weights = np.exp(drawn.log_weights - drawn.log_weights.max())
        return majority(list(zip(answers, weights, strict=True)))
    best = drawn.last if method.name == "as published" else drawn.log_weights
    return answers[int(np.argmax(best))]


def without_resampling(drawn: list[str], verifier: Verifier) -> Found:
    """Answer by whole texts that the model wrote by itself."""
    answers = list(map(answered, drawn))
    judged = [scores(text, *verifier) for text in drawn]
    last = [s[-1] if s else 0.0 for s in judged]
    product = [float(np.prod(s)) if len(s) == LINES else 0.0 for s in judged]
    return {
        "single": answers[0],
        "self-consistency": majority([(a, 1.0) for a in answers]),
        "best-of-n": answers[int(np.argmax(last))],
        "weighted vote": majority(list(zip(answers, last, strict=True))),
        "importance": majority(list(zip(answers, product, strict=True))),
    }
