"""The same scenes, guide and training in NumPyro, with the one estimator that it has for them.

`TraceGraph_ELBO` is REINFORCE without a baseline, each score with the costs that depend on it.
"""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist
import optax
from numpyro.infer import SVI, TraceGraph_ELBO
from numpyro.optim import optax_to_numpyro

from paper_checks.vi import scenes
from paper_checks.vi.scenes import BATCH, CODE, DIGIT, NOISE, PRIOR, RATE, SIDE, TRAINING


def flag(logit: Any, before: Any) -> Any:
    return ndist.Bernoulli(logits=jnp.where(before == 1, logit, -30.0))


def model(images: Any) -> None:
    decoder = numpyro.param("decoder", scenes.networks(0)["decoder"])
    with numpyro.plate("scene", len(images)):
        present, canvas = jnp.ones(len(images), int), jnp.zeros((len(images), SIDE, SIDE))
        for i in range(2):
            present = numpyro.sample(f"present{i}", flag(PRIOR[i], present))
            where = numpyro.sample(f"where{i}", ndist.Normal(jnp.zeros(2), 1.0).to_event(1))
            what = numpyro.sample(f"what{i}", ndist.Normal(jnp.zeros(CODE), 1.0).to_event(1))
            patch = jax.nn.sigmoid(scenes.apply(decoder, what)).reshape(-1, DIGIT, DIGIT)
            canvas = canvas + present[:, None, None] * jax.vmap(scenes.place)(where, patch)
        numpyro.sample("image", ndist.Normal(canvas, NOISE).to_event(2), obs=images)


def guide(images: Any) -> None:
    start = scenes.networks(0)
    look, encoder = (numpyro.param(name, start[name]) for name in ("look", "encoder"))
    with numpyro.plate("scene", len(images)):
        present, rest = jnp.ones(len(images), int), images
        for i in range(2):
            seen = scenes.apply(look, rest.reshape(len(rest), -1))
            present = numpyro.sample(f"present{i}", flag(seen[:, 0], present))
            there = present[:, None]

            def normal(loc: Any, scale: Any, there: Any = there) -> Any:
                loc, scale = jnp.where(there, loc, 0.0), jnp.where(there, scale, 1.0)
                return ndist.Normal(loc, scale).to_event(1)

            law = normal(1.5 * seen[:, 1:3], jnp.exp(seen[:, 3:] - 1.0))
            where = numpyro.sample(f"where{i}", law)
            rows, columns = jnp.moveaxis(jax.vmap(scenes.frame)(where), 1, 0)
            patch = jnp.swapaxes(rows, 1, 2) @ rest @ columns
            loc, raw = jnp.split(scenes.apply(encoder, patch.reshape(len(rest), -1)), 2, axis=1)
            numpyro.sample(f"what{i}", normal(loc, jax.nn.softplus(raw)))
            cover = jnp.ones((len(rest), DIGIT, DIGIT))
            rest = rest * (1.0 - jax.vmap(scenes.place)(where, cover))


def train(epochs: int, seed: int = 0) -> scenes.Trained:
    """Do what `scenes.train` does, with NumPyro's `SVI`."""
    (images, _), (others, counts) = scenes.data()
    images, others = jnp.asarray(images), jnp.asarray(others)
    svi = SVI(model, guide, optax_to_numpyro(optax.adam(RATE)), TraceGraph_ELBO())
    steps, pauses = TRAINING // BATCH, {math.ceil(epochs * k / 3) for k in (1, 2, 3)}

    def step(state: Any, key: Any) -> Any:
        batch = images[jax.random.randint(key, (BATCH,), 0, TRAINING)]
        return svi.update(state, batch)

    @jax.jit
    def run(state: Any, key: Any) -> Any:
        state, losses = jax.lax.scan(step, state, jax.random.split(key, steps))
        return state, jnp.mean(losses)

    @jax.jit
    def counted(params: Any, key: Any) -> Any:
        seeded = numpyro.handlers.seed(numpyro.handlers.substitute(guide, params), key)
        sites = numpyro.handlers.trace(seeded).get_trace(others)
        return sites["present0"]["value"] + sites["present1"]["value"]

    state: Any = svi.init(jax.random.key(seed), images[:BATCH])
    accuracy, seconds, loss, right = {}, [], 0.0, np.zeros(len(counts), bool)
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        state, loss = jax.block_until_ready(run(state, jax.random.key(1000 + epoch)))
        seconds.append(time.perf_counter() - start)
        if epoch in pauses:
            params = svi.get_params(state)
            right = np.asarray(counted(params, jax.random.key(seed + 1))) == counts
            accuracy[epoch] = float(right.mean())
    by_count = tuple(float(right[counts == n].mean()) for n in range(3))
    return scenes.Trained(accuracy, by_count, -float(loss) / BATCH, float(np.median(seconds[1:])))
