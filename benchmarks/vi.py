"""`ppl.vi.fit` against a hand-written optax loop in one `lax.scan`, and against NumPyro's SVI.

`python -m benchmarks.vi [--models logistic groups vae] [--rounds 10]` fits each model with Adam, on
all sides with the same objective, starting values, step size and number of steps; a run ends when
parameters and all estimates are on the host. It prints seconds of the first run, making and
compiling everything included, the median of three by turns, and of later runs, by turns, each with
its own seed; ours over each other's, with the spread over rounds; and the mean of the last
estimates, which should agree. Each first run begins with empty caches, and with data and starting
values that are there.

- logistic: Bayesian logistic regression, 1000 rows and 20 columns, mean-field normal guide.
- groups: 100 groups of 10 observations with unknown mean and scale, mean-field normal guide.
- vae: a variational autoencoder, 256 rows of 64 pixels, 8 latent numbers, 64 hidden units.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ppl
import ppl.distributions as dist
from benchmarks.smc_peers import installed
from benchmarks.tempered import data
from benchmarks.timing import alternate, human, table
from ppl.inference.vi import elbo
from ppl.inference.vi.fit import fit
from ppl.inference.vi.guides import mean_field

Run = Callable[[int], Any]
"""From a seed: the estimates of the bound, by step."""


class Case(NamedTuple):
    """A model on three sides: each makes a run."""

    steps: int
    rate: float
    ours: Callable[[int, float], Run]
    hand: Callable[[int, float], Run]
    numpyro: Callable[[int, float], Run]


def our_run(objective: Any, params: Any, steps: int, rate: float) -> Run:
    """Fit with `ppl`."""

    def run(seed: int) -> Any:
        program = fit(objective, params, optimizer=optax.adam(rate), num_steps=steps)
        found = ppl.run(program, seed, progress=False)
        jax.block_until_ready(found.params)
        return found.values

    return run


def hand_run(bound: Callable[..., Any], params: Any, arrays: Any, steps: int, rate: float) -> Run:
    """Fit `bound(params, key, *arrays)` in one scan."""
    optimizer = optax.adam(rate)

    @jax.jit
    def whole(key: Any, params: Any, *arrays: Any) -> Any:
        def step(carry: Any, key: Any) -> Any:
            params, memory = carry
            loss = lambda params: -bound(params, key, *arrays)  # noqa: E731
            value, gradient = jax.value_and_grad(loss)(params)
            updates, memory = optimizer.update(gradient, memory, params)
            return (optax.apply_updates(params, updates), memory), -value

        keys = jax.random.split(key, steps)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)

    def run(seed: int) -> Any:
        (found, _), values = whole(jax.random.key(seed), params, *arrays)
        return jax.block_until_ready((found, values))[1]

    return run


def numpyro_run(model: Any, guide: Any, arrays: Any, steps: int, rate: float) -> Run:
    """Fit with NumPyro's SVI."""
    from numpyro.infer import SVI, Trace_ELBO

    svi = SVI(model, guide, optax.adam(rate), Trace_ELBO())

    def run(seed: int) -> Any:
        found = svi.run(jax.random.key(seed), steps, *arrays, progress_bar=False)
        return -jax.block_until_ready(found.losses)

    return run


def normal_log(x: Any, loc: Any, scale: Any) -> Any:
    """Sum normal log densities."""
    z = (x - loc) / scale
    return jnp.sum(-0.5 * z**2 - jnp.log(scale) * jnp.ones_like(z) - 0.5 * math.log(2 * math.pi))


def auto_normal(model: Any) -> Any:
    """Give NumPyro's mean-field guide, with our starting values."""
    from numpyro.infer.autoguide import AutoNormal
    from numpyro.infer.initialization import init_to_value

    values = {"w": jnp.zeros(20), "mu": 0.0, "tau": 1.0, "theta": jnp.zeros(100)}
    return AutoNormal(model, init_loc_fn=init_to_value(values=values), init_scale=0.1)


# --- Logistic regression ------------------------------------------------------------------------


@ppl.model
def logistic(x: Any, y: Any) -> None:
    """Logistic regression with a normal prior."""
    w = ppl.sample("w", dist.Normal(jnp.zeros(x.shape[1]), 2.0).to_event(1))
    with ppl.plate("row", x.shape[0]):
        ppl.sample("y", dist.Bernoulli(logits=x @ w), obs=y)


def logistic_ours(steps: int, rate: float) -> Run:
    """Fit with `ppl`."""
    program = logistic(*data(1000, 20))
    return our_run(elbo(program, mean_field(program)), None, steps, rate)


def logistic_hand(steps: int, rate: float) -> Run:
    """Fit by hand."""

    def bound(params: Any, key: Any, x: Any, y: Any) -> Any:
        loc, scale = params["loc"], jnp.exp(params["log_scale"])
        w = loc + scale * jax.random.normal(key, loc.shape)
        logits = x @ w
        likelihood = jnp.sum(y * logits - jax.nn.softplus(logits))
        return likelihood + normal_log(w, 0.0, 2.0) - normal_log(w, loc, scale)

    params = {"loc": jnp.zeros(20), "log_scale": jnp.full(20, math.log(0.1))}
    return hand_run(bound, params, data(1000, 20), steps, rate)


def logistic_numpyro(steps: int, rate: float) -> Run:
    """Fit with NumPyro."""
    import numpyro

    def model(x: Any, y: Any) -> None:
        w = numpyro.sample("w", dist.Normal(jnp.zeros(x.shape[1]), 2.0).to_event(1))
        with numpyro.plate("row", x.shape[0]):
            numpyro.sample("y", dist.Bernoulli(logits=x @ w), obs=y)

    return numpyro_run(model, auto_normal(model), data(1000, 20), steps, rate)


# --- Groups -------------------------------------------------------------------------------------


@functools.cache
def groups_data() -> Any:
    """Simulate ten observations of each of 100 groups."""
    rng = np.random.default_rng(0)
    theta = rng.normal(1.0, 0.7, 100)
    return jnp.asarray(theta[:, None] + rng.standard_normal((100, 10)), jnp.result_type(float))


@ppl.model
def groups(y: Any) -> None:
    """Groups with unknown mean and scale."""
    mu = ppl.sample("mu", dist.Normal(0.0, 5.0))
    tau = ppl.sample("tau", dist.HalfNormal(5.0))
    with ppl.plate("group", 100, dim=-2):
        theta = ppl.sample("theta", dist.Normal(mu, tau))
        with ppl.plate("member", 10, dim=-1):
            ppl.sample("y", dist.Normal(theta, 1.0), obs=y)


def groups_ours(steps: int, rate: float) -> Run:
    """Fit with `ppl`."""
    program = groups(groups_data())
    return our_run(elbo(program, mean_field(program)), None, steps, rate)


def groups_hand(steps: int, rate: float) -> Run:
    """Fit by hand."""

    def bound(params: Any, key: Any, y: Any) -> Any:
        loc, scale = params["loc"], jnp.exp(params["log_scale"])
        z = loc + scale * jax.random.normal(key, loc.shape)
        mu, tau, theta = z[0], jnp.exp(z[1]), z[2:]
        prior = normal_log(mu, 0.0, 5.0) + normal_log(tau, 0.0, 5.0) + math.log(2) + z[1]
        joint = prior + normal_log(theta, mu, tau) + normal_log(y, theta[:, None], 1.0)
        return joint - normal_log(z, loc, scale)

    params = {"loc": jnp.zeros(102), "log_scale": jnp.full(102, math.log(0.1))}
    return hand_run(bound, params, (groups_data(),), steps, rate)


def groups_numpyro(steps: int, rate: float) -> Run:
    """Fit with NumPyro."""
    import numpyro

    def model(y: Any) -> None:
        mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = numpyro.sample("tau", dist.HalfNormal(5.0))
        with numpyro.plate("group", 100):
            theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta[:, None], 1.0).to_event(2), obs=y)

    return numpyro_run(model, auto_normal(model), (groups_data(),), steps, rate)


# --- A variational autoencoder ------------------------------------------------------------------

ROWS, PIXELS, LATENT, HIDDEN = 256, 64, 8, 64


@functools.cache
def images() -> Any:
    """Simulate binary images that lie near a surface of few dimensions."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((ROWS, 3)) @ rng.standard_normal((3, PIXELS))
    return jnp.asarray(rng.random((ROWS, PIXELS)) < 1 / (1 + np.exp(-2 * logits)), int)


@functools.cache
def networks() -> Any:
    """Draw the starting values of decoder and encoder."""
    rng = np.random.default_rng(1)

    def layers(sizes: list[int]) -> list[Any]:
        pairs = itertools.pairwise(sizes)
        weights = [rng.standard_normal(pair) / math.sqrt(pair[0]) for pair in pairs]
        kind = jnp.result_type(float)
        return [(jnp.asarray(w, kind), jnp.zeros(w.shape[1], kind)) for w in weights]

    return {
        "decoder": layers([LATENT, HIDDEN, PIXELS]),
        "encoder": layers([PIXELS, HIDDEN, 2 * LATENT]),
    }


def apply(layers: Any, x: Any) -> Any:
    """Run a network."""
    (first, shift), (second, last) = layers
    return jnp.tanh(x @ first + shift) @ second + last


def encoded(layers: Any, x: Any) -> tuple[Any, Any]:
    """Give location and scale of the latent numbers."""
    loc, log_scale = jnp.split(apply(layers, x.astype(jnp.result_type(float))), 2, axis=-1)
    return loc, jnp.exp(log_scale)


@ppl.model
def decoder(params: Any, x: Any) -> None:
    """Images from latent numbers."""
    with ppl.plate("row", ROWS):
        z = ppl.sample("z", dist.Normal(jnp.zeros(LATENT), 1.0).to_event(1))
        pixels = dist.Bernoulli(logits=apply(params["decoder"], z)).to_event(1)
        ppl.sample("x", pixels, obs=x)


@ppl.model
def encoder(params: Any, x: Any) -> None:
    """Latent numbers from images."""
    loc, scale = encoded(params["encoder"], x)
    with ppl.plate("row", ROWS):
        ppl.sample("z", dist.Normal(loc, scale).to_event(1))


def vae_ours(steps: int, rate: float) -> Run:
    """Fit with `ppl`."""
    x = images()
    objective = elbo(lambda params: decoder(params, x), lambda params: encoder(params, x))
    return our_run(objective, networks(), steps, rate)


def vae_hand(steps: int, rate: float) -> Run:
    """Fit by hand."""

    def bound(params: Any, key: Any, x: Any) -> Any:
        loc, scale = encoded(params["encoder"], x)
        z = loc + scale * jax.random.normal(key, loc.shape)
        logits = apply(params["decoder"], z)
        likelihood = jnp.sum(x * logits - jax.nn.softplus(logits))
        return likelihood + normal_log(z, 0.0, 1.0) - normal_log(z, loc, scale)

    return hand_run(bound, networks(), (images(),), steps, rate)


def vae_numpyro(steps: int, rate: float) -> Run:
    """Fit with NumPyro."""
    import numpyro

    def model(x: Any) -> None:
        layers = numpyro.param("decoder", networks()["decoder"])
        with numpyro.plate("row", ROWS):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(LATENT), 1.0).to_event(1))
            pixels = dist.Bernoulli(logits=apply(layers, z)).to_event(1)
            numpyro.sample("x", pixels, obs=x)

    def guide(x: Any) -> None:
        loc, scale = encoded(numpyro.param("encoder", networks()["encoder"]), x)
        with numpyro.plate("row", ROWS):
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return numpyro_run(model, guide, (images(),), steps, rate)


CASES = {
    "logistic": Case(10_000, 1e-2, logistic_ours, logistic_hand, logistic_numpyro),
    "groups": Case(10_000, 1e-2, groups_ours, groups_hand, groups_numpyro),
    "vae": Case(1_000, 1e-3, vae_ours, vae_hand, vae_numpyro),
}
GIVEN: dict[str, tuple[Callable[[], Any], ...]] = {
    "logistic": (lambda: data(1000, 20),),
    "groups": (groups_data,),
    "vae": (images, networks),
}
"""What all sides start from, which is made once."""


def measure(name: str, rounds: int) -> list[list[str]]:
    """Run all sides cold, then by turns."""
    case = CASES[name]
    sides = {"ppl": case.ours, "optax": case.hand}
    if installed("numpyro"):
        sides["NumPyro"] = case.numpyro
    cold: dict[str, list[float]] = {who: [] for who in sides}
    runs: dict[str, Run] = {}
    last: dict[str, str] = {}
    for given in GIVEN[name]:
        given()
    for again in range(3):
        for who, make in list(sides.items())[:: -1 if again % 2 else 1]:
            jax.clear_caches()
            begun = time.perf_counter()
            runs[who] = make(case.steps, case.rate)
            values = np.asarray(runs[who](0), float)
            cold[who].append(time.perf_counter() - begun)
            tail = values[-case.steps // 5 :]
            last[who] = f"{tail.mean():.2f} ({np.std(tail) / math.sqrt(len(tail)):.2f})"
    seeds = iter(range(1, 10**6))
    turns: list[Callable[[], Any]] = [lambda run=run: run(next(seeds)) for run in runs.values()]
    found = alternate(turns[0], turns[1], *turns[2:], rounds=rounds, seconds=0)
    rows = []
    for side, who in enumerate(sides):
        ratio = f"{found.ratio(side):.2f} ({found.spread(side)})" if side else ""
        shares = sorted(a / b for a, b in zip(cold["ppl"], cold[who], strict=True))
        ahead = f"{shares[1]:.2f} ({shares[0]:.2f} to {shares[2]:.2f})" if side else ""
        times = human(sorted(cold[who])[1]), human(found.median(side))
        rows.append([name, who, *times, ahead, ratio, last[who]])
    return rows


def main() -> None:
    """Read the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    jax.block_until_ready(jax.jit(jnp.sin)(jax.random.normal(jax.random.key(0), (3,))))
    rows = [row for name in options.models for row in measure(name, options.rounds)]
    headers = ["model", "side", "cold", "warm", "ppl's share cold", "warm", "last estimates"]
    print(table(headers, rows))


if __name__ == "__main__":
    main()
