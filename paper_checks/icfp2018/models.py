"""The benchmark's three models, with data of any length; an observation is a step of a `scan`.

The models and the laws of the data are those of the authors' code (`models/` of monad-bayes), with
constants written anew. Gamma(1, 1) is written as the exponential law it is. Each model returns a
number or two whose posterior means are known exactly (see `paper_checks.icfp2018.exact`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ppl
import ppl.distributions as dist

TRANSITIONS = ((0.1, 0.4, 0.5), (0.2, 0.6, 0.2), (0.15, 0.7, 0.15))
EMISSIONS = (-1.0, 1.0, 0.0)
DOCUMENTS, VOCABULARY, TOPICS = 5, 4, 2
LONGEST = 1000


@ppl.model
def regression(x, label):
    """Logistic regression whose log odds are noisy; how likely is a label of one at x = 8?"""
    slope = ppl.sample("slope", dist.Normal(0.0, 1.0))
    intercept = ppl.sample("intercept", dist.Normal(0.0, 1.0))
    noise = ppl.sample("noise", dist.Exponential(1.0))

    def step(_: None, row: Any) -> Any:
        x, label = row
        logit = ppl.sample("logit", dist.Normal(slope * x + intercept, noise))
        ppl.sample("label", dist.Bernoulli(logits=logit), obs=label)
        return None, None

    jax.lax.scan(step, None, (x, label))
    return jax.nn.sigmoid(ppl.sample("new", dist.Normal(slope * 8.0 + intercept, noise)))


@ppl.model
def markov(y):
    """Hidden Markov model with Gaussian emissions; is the start state 0, is the last one?"""
    start = ppl.sample("start", dist.CategoricalProbs(jnp.full(3, 1 / 3)))

    def step(state: Any, y: Any) -> Any:
        state = ppl.sample("state", dist.CategoricalProbs(jnp.array(TRANSITIONS)[state]))
        ppl.sample("y", dist.Normal(jnp.array(EMISSIONS)[state], 1.0), obs=y)
        return state, None

    last, _ = jax.lax.scan(step, start, y)
    return jnp.stack([start == 0, last == 0]).astype(float)


@ppl.model
def allocation(documents):
    """Latent Dirichlet allocation; how likely is word 0 as a further word, over all documents?"""
    with ppl.plate("topic", TOPICS):
        words = ppl.sample("words", dist.Dirichlet(jnp.ones(VOCABULARY)))

    def document(_: None, document: Any) -> Any:
        topics = ppl.sample("topics", dist.Dirichlet(jnp.ones(TOPICS)))

        def step(_: None, word: Any) -> Any:
            topic = ppl.sample("topic", dist.CategoricalProbs(topics))
            ppl.sample("word", dist.CategoricalProbs(words[topic]), obs=word)
            return None, None

        jax.lax.scan(step, None, document)
        return None, topics @ words[:, 0]

    return jnp.mean(jax.lax.scan(document, None, documents)[1])


def _data(name: str) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(2018)
    if name == "LR":
        return rng.uniform(-1, 1, LONGEST), rng.integers(0, 2, LONGEST)
    if name == "HMM":
        return (rng.integers(0, 3, LONGEST).astype(float),)
    return (rng.integers(0, VOCABULARY, (DOCUMENTS, LONGEST)),)


def data(name: str, length: int) -> tuple[np.ndarray, ...]:
    """Give the first observations (of each document) of LR, HMM or LDA."""
    return tuple(x[..., :length] for x in _data(name))


def program(name: str, length: int) -> ppl.Program:
    """Give the program of LR, HMM or LDA on data of a length (of each document)."""
    return MODELS[name](*data(name, length))


MODELS = {"LR": regression, "HMM": markov, "LDA": allocation}
