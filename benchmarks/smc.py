"""The particle filter against plain JAX and `particles`, and how its cost grows.

`python -m benchmarks.smc [--length 1000] [--particles 1000 20000 200000]` runs all sides in one
process, by turns, and prints medians, the ratio of ours to each other side with its spread, cold
times (tracing and compiling included), and scaling exponents in particles and in steps. `particles`
is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import ppl
from benchmarks.smc_models import tracking, tracking_data, volatility, volatility_data
from benchmarks.smc_peers import filters
from benchmarks.timing import alternate, human, table

MODELS = {
    "volatility": (volatility, volatility_data),
    "tracking": (tracking, tracking_data),
}


def ours(model: Any, data: Any, num_particles: int, seed: int) -> Any:
    """Run `ppl.smc` without trajectories."""
    program = ppl.smc(model(data), num_particles, trajectories=False)
    return ppl.run(program, seed).log_evidence


def sides(name: str, length: int, num_particles: int) -> dict[str, Callable[[], Any]]:
    """Give one call of each filter, with a new seed every time."""
    model, data = MODELS[name]
    data = data(length)
    seeds = iter(range(1, 1_000_000))
    found = {"ppl": functools.partial(ours, model, data, num_particles)}
    found |= {who: functools.partial(run, data, num_particles) for who, run in filters().items()}
    return {who: lambda run=run: run(next(seeds)) for who, run in found.items()}


def compare(name: str, length: int, num_particles: int, rounds: int) -> list[list[str]]:
    """Time all sides at one size."""
    runs = sides(name, length, num_particles)
    cold = {}
    for who, run in runs.items():
        jax.clear_caches()
        begun = time.perf_counter()
        jax.block_until_ready(run())
        cold[who] = time.perf_counter() - begun
    found = alternate(*runs.values(), rounds=rounds, seconds=0, warmup=1)
    rows = []
    for k, who in enumerate(runs):
        ratio = f"{found.ratio(k):.2f} ({found.spread(k)})" if k else ""
        rows.append(
            [name, f"{num_particles}", who, human(cold[who]), human(found.median(k)), ratio]
        )
    return rows


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Fit the slope of log time over log size."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def growth(name: str) -> list[str]:
    """Time our filter alone over particles, and over steps."""
    model, data = MODELS[name]

    def shortest(length: int, num_particles: int) -> float:
        times, series = [], data(length)
        for seed in range(4):
            begun = time.perf_counter()
            jax.block_until_ready(ours(model, series, num_particles, seed))
            times.append(time.perf_counter() - begun)
        return min(times[1:])

    many, long = [10_000, 30_000, 100_000, 300_000], [250, 500, 1000, 2000]
    by_particles = exponent(many, [shortest(50, n) for n in many])
    by_steps = exponent(long, [shortest(t, 2000) for t in long])
    return [name, f"{by_particles:.2f}", f"{by_steps:.2f}"]


def main() -> None:
    """Read the arguments and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--length", type=int, default=1000)
    parser.add_argument("--particles", type=int, nargs="+", default=[1000, 20_000, 200_000])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    rows = [
        row
        for name in MODELS
        for n in options.particles
        for row in compare(name, options.length, n, options.rounds)
    ]
    headers = ["model", "particles", "filter", "cold", "warm", "ppl's time over this one's"]
    print(table(headers, rows))
    print()
    print(table(["model", "exponent in particles", "in steps"], [growth(n) for n in MODELS]))


if __name__ == "__main__":
    main()
