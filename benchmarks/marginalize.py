"""Sums over hidden states: against a forward algorithm by hand, and NumPyro's enumeration.

`python -m benchmarks.marginalize [--fast]` prints a table of times for value and gradient of the
marginal log density of a hidden Markov model, with transitions and emissions as the parameters.
NumPyro's column needs the package `funsor`, which is no dependency of ours.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as ndist

import ppl
import ppl.distributions as dist
from benchmarks.timing import alternate, human, table
from ppl.semantics.marginal import marginalize

HAND_TARGET, NUMPYRO_TARGET = 1.2, 1.0


def hmm(logits, mu, y):
    """Write a hidden Markov model with normal emissions."""

    def step(z, y):
        z = ppl.sample("z", dist.Categorical(logits=logits[z]))
        ppl.sample("y", dist.Normal(mu[z], 0.7), obs=y)
        return z, None

    jax.lax.scan(step, 0, y)


def ours(params: Any, y: Any) -> Any:
    """Evaluate the marginal log density."""
    return ppl.log_density(marginalize(ppl.model(hmm)(*params, y)), {})


def by_hand(params: Any, y: Any) -> Any:
    """Write the forward algorithm by hand."""
    logits, mu = params
    table = jax.nn.log_softmax(logits)

    def emit(y: Any) -> Any:
        return -0.5 * ((y - mu) / 0.7) ** 2 - np.log(0.7) - 0.5 * np.log(2 * np.pi)

    def step(alpha: Any, y: Any) -> Any:
        return jax.nn.logsumexp(alpha[:, None] + table, axis=0) + emit(y), None

    alpha, _ = jax.lax.scan(step, table[0] + emit(y[0]), y[1:])
    return jax.nn.logsumexp(alpha)


def by_numpyro() -> Callable[..., Any] | None:
    """Give NumPyro's enumeration, or None without funsor."""
    if importlib.util.find_spec("funsor") is None:
        print("NumPyro's column is left out: its enumeration needs `pip install funsor`")
        return None
    from numpyro.contrib.control_flow import scan
    from numpyro.contrib.funsor import config_enumerate, enum
    from numpyro.contrib.funsor import log_density as enumerated

    def model(logits, mu, y):
        def step(z, y):
            z = numpyro.sample("z", ndist.Categorical(logits=logits[z]))
            numpyro.sample("y", ndist.Normal(mu[z], 0.7), obs=y)
            return z, None

        scan(step, 0, y)

    def density(params: Any, y: Any) -> Any:
        lifted = enum(config_enumerate(model), -1)
        return enumerated(lifted, (*params, y), {}, {})[0]

    return density


def compare(length: int, states: int, rounds: int) -> list[str]:
    """Measure one size."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(states, states)), jnp.float32)
    mu = jnp.asarray(rng.normal(size=states), jnp.float32)
    y = jnp.asarray(rng.normal(size=length), jnp.float32)
    sides = [ours, by_hand]
    if (theirs := by_numpyro()) is not None:
        sides.append(theirs)
    calls = []
    results = []
    for fun in sides:
        gradient = jax.jit(jax.value_and_grad(fun))
        results.append(gradient((logits, mu), y))
        calls.append(functools.partial(gradient, (logits, mu), y))
    for other in results[1:]:
        for a, b in zip(jax.tree.leaves(results[0]), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * float(jnp.max(jnp.abs(b))))
    result = alternate(*calls, rounds=rounds, seconds=0.02)
    row = [f"T={length}, K={states}", human(result.median(0)), human(result.median(1))]
    row += [f"{result.ratio():.3f}", result.spread(), _verdict(result.ratio(), HAND_TARGET)]
    if len(calls) > 2:
        row += [human(result.median(2)), f"{result.ratio(2):.3f}"]
        row += [_verdict(result.ratio(2), NUMPYRO_TARGET)]
    return row


def _verdict(ratio: float, target: float) -> str:
    return "met" if ratio <= target else "MISSED"


def main() -> None:
    """Read the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fast", action="store_true", help="fewer rounds, less data")
    options = parser.parse_args()
    device = jax.devices()[0]
    print(f"{device.platform} {device.device_kind}, jax {jax.__version__}, ", end="")
    print(f"numpyro {numpyro.__version__}, {jnp.result_type(float).name}")
    sizes = [(100, 8)] if options.fast else [(1000, 32), (1000, 4), (200, 128)]
    rows = [compare(t, k, 5 if options.fast else 30) for t, k in sizes]
    heads = ["model", "ppl", "by hand", "ratio", "spread", f"<= {HAND_TARGET}"]
    heads += ["numpyro", "ratio", f"<= {NUMPYRO_TARGET}"][: len(rows[0]) - len(heads)]
    print(f"\nValue and gradient of a hidden Markov model\n{table(heads, rows)}")


if __name__ == "__main__":
    main()
