"""NUTS against BlackJAX, NumPyro and nutpie: effective draws per second, cold and warm.

Where chains are many (`--chains 1024`), the sides "ppl chees" and "ppl mams" are
`ppl.kernels.chees` and `ppl.kernels.mams`.

`python -m benchmarks.mcmc [--models ...] [--sides ...] [--chains 4 1024] [--rounds 3]` runs all
sides in one process, by turns, on the default device, and prints, for each posterior of
`benchmarks.mcmc_models`: seconds of the first run, making and compiling everything included; of
later runs, each with its own seed, the median and range of seconds, of the smallest bulk effective
size over all coordinates (one estimator for all sides), and of the two's quotient; gradient
evaluations a kept draw and the largest R-hat; and ours over the other's quotient, with the range
over rounds. A run ends when the draws are on the host. Imports are made before.

`--check` shows instead that all sides draw from the same densities. For a peer that is not
installed: `python -m pip install blackjax "nutpie[pymc]"`.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import time
from typing import Any, NamedTuple

import jax
import numpy as np

import ppl
from benchmarks.mcmc_models import POSTERIORS, check_density
from benchmarks.mcmc_peers import PEERS, Budget, Draws, Sampler, check_peers, flat
from benchmarks.smc_peers import installed
from benchmarks.timing import human, table
from ppl.results import diagnostics


def our_sampler(name: str, budget: Budget, kernel: Any = ppl.kernels.nuts) -> Sampler:
    """Make `ppl.mcmc` with NUTS, as its users do, or with another kernel."""
    program = POSTERIORS[name].program()
    mcmc = ppl.mcmc(
        program,
        kernel(),
        num_samples=budget.samples,
        num_warmup=budget.warmup,
        num_chains=budget.chains,
    )

    def sample(seed: int) -> Draws:
        chains = ppl.run(mcmc, seed)
        values = flat({a: chains[a] for a in program.latents})
        return Draws(values, float(np.mean(chains.stats["n_steps"])))

    return sample


SIDES = {
    "ppl": our_sampler,
    "ppl chees": functools.partial(our_sampler, kernel=ppl.kernels.chees),
    "ppl mams": functools.partial(our_sampler, kernel=ppl.kernels.mams),
    **PEERS,
}
TOGETHER = "ppl chees", "ppl mams"
OURS = "ppl", *TOGETHER
MANY = 64  # chains, which those kernels are made for
NEEDS: dict[str, tuple[str, ...]] = {
    "ppl": (),
    "ppl chees": (),
    "ppl mams": (),
    "NumPyro": ("numpyro",),
    "BlackJAX": ("blackjax",),
    "nutpie": ("nutpie", "pymc"),
}


class Result(NamedTuple):
    """What one side did: seconds cold, and per warm round seconds, sizes, gradients, R-hats."""

    cold: float
    seconds: np.ndarray
    sizes: np.ndarray
    gradients: float
    rhat: float

    @property
    def rates(self) -> np.ndarray:
        """Smallest effective size per second, of each round."""
        return self.sizes / self.seconds


def measure(name: str, sides: list[str], budget: Budget, rounds: int) -> dict[str, Result]:
    """Run all sides once cold, then by turns, the order reversed every other round."""
    samplers: dict[str, Sampler] = {}
    cold: dict[str, float] = {}
    rows: dict[str, list[Any]] = {side: [] for side in sides}
    for side in sides:
        begun = time.perf_counter()
        samplers[side] = SIDES[side](name, budget)
        samplers[side](0)
        cold[side] = time.perf_counter() - begun
    for seed in range(1, rounds + 1):
        for side in sides[:: 1 if seed % 2 else -1]:
            begun = time.perf_counter()
            draws = samplers[side](seed)
            seconds = time.perf_counter() - begun
            size = np.min(diagnostics.ess(draws.values, "bulk"))
            rhat = np.max(diagnostics.rhat(draws.values))
            rows[side].append((seconds, size, draws.gradients, rhat))
    found = {}
    for side in sides:
        seconds, sizes, gradients, rhats = np.array(rows[side]).T
        found[side] = Result(cold[side], seconds, sizes, np.median(gradients), np.max(rhats))
    return found


def spread(values: np.ndarray, form: str = ".3g") -> str:
    """Write the median and, of several values, the range."""
    low, middle, high = (format(x, form) for x in np.quantile(values, [0.0, 0.5, 1.0]))
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def lines(name: str, chains: int, found: dict[str, Result]) -> list[list[str]]:
    """Lay out the results of one posterior."""
    speed = {side: np.median(r.rates) for side, r in found.items() if side not in OURS}
    best = max(speed, key=lambda side: speed[side], default="")
    out = []
    for side, r in found.items():
        ratio = spread(found["ppl"].rates / r.rates, ".2f") if "ppl" in found else ""
        cells = [human(r.cold), spread(r.seconds), spread(r.sizes, ".0f"), spread(r.rates, ".0f")]
        cells += [f"{r.gradients:.1f}", f"{r.rhat:.3f}", ratio if side not in OURS else ""]
        out.append([name, f"{chains}", side + (" *" if side == best else ""), *cells])
    return out


def main() -> None:
    """Read the arguments and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=POSTERIORS, default=[*POSTERIORS])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=[*SIDES])
    parser.add_argument("--chains", type=int, nargs="+", default=[4])
    parser.add_argument("--warmup", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3, help="warm runs of each side")
    parser.add_argument("--check", action="store_true", help="compare densities, draw nothing")
    options = parser.parse_args()
    if options.check:
        for name in options.models:
            check_density(POSTERIORS[name])
            check_peers(name)
            print(f"{name}: the same density on all sides")
        return
    os.environ.setdefault("PYTENSOR_FLAGS", "numba__cache=False")  # cold: nothing from the disk
    sides = [s for s in options.sides if all(map(installed, NEEDS[s]))]
    for package in (p for side in sides for p in NEEDS[side]):
        importlib.import_module(package)
    device = jax.devices()[0]
    print(f"{device.platform}: {device.device_kind}, {jax.device_count()} of them")
    headers = ["posterior", "chains", "side (* best peer)", "cold", "warm s", "min ESS", "ESS a s"]
    headers += ["gradients", "R-hat", "ours over theirs"]
    for name in options.models:
        for chains in options.chains:
            budget = Budget(chains, options.warmup, options.samples)
            fit = [s for s in sides if s not in TOGETHER or chains >= MANY]
            found = measure(name, fit, budget, options.rounds)
            print(table(headers, lines(name, chains, found)), flush=True)
            print()


if __name__ == "__main__":
    main()
