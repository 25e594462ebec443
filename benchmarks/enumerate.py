"""Exact enumeration: an inference algorithm, hidden Markov models, a network.

`python -m benchmarks.enumerate [--fast]` prints a table.

Cold: the first call in a fresh process, staging and compiling included and imports left out; the
column `CPU` has its processor time, which a busy machine disturbs less, and `process` the whole
process with its imports. Warm: the calls after it, each with new data of the same shapes. Every
time is a median over rounds, with the minimum in brackets. Numbers are in double precision, as in
the exact checks; `error` is the distance from an answer computed without this library: total
variation relative to the mass, or the difference of the log evidences, whichever is larger.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import ppl
import ppl.distributions as dist
from benchmarks.timing import human, table


class Case(NamedTuple):
    """One measurement: what it does with fresh data, its targets in seconds, and warm calls."""

    name: str
    once: Callable[[int], tuple[Any, Callable[[], float]]]
    cold: float | None
    warm: float | None
    calls: int


# --- Hidden Markov models, and SMC on them ------------------------------------------------------


@ppl.model
def hmm(move, emit, seen):
    """Give the last state of a hidden Markov model."""

    def step(state, y):
        state = ppl.sample("state", dist.Categorical(probs=move[state]))
        ppl.sample("seen", dist.Categorical(probs=emit[state]), obs=y)
        return state, None

    return jax.lax.scan(step, 0, seen)[0]


@ppl.model
def smc(move, emit, seen, num_particles):
    """Resample (multinomially), propagate and weigh at every step."""

    def step(carry, y):
        states, log_weights, evidence = carry
        ancestry = dist.Categorical(logits=log_weights).expand([num_particles])
        states = states[ppl.sample("ancestors", ancestry)]
        states = jax.vmap(lambda z: ppl.sample("state", dist.Categorical(probs=move[z])))(states)
        log_weights = jnp.log(emit[states, y])
        evidence += jax.nn.logsumexp(log_weights) - jnp.log(num_particles)
        return (states, log_weights, evidence), None

    start = (jnp.zeros(num_particles, int), jnp.zeros(num_particles), 0.0)
    (states, log_weights, evidence), _ = jax.lax.scan(step, start, seen)
    return ppl.Population(states, log_weights, evidence, {})


def hmm_data(seed: int, steps: int, states: int) -> tuple[Any, Any, Any]:
    """Draw a chain and what is seen of it."""
    rng = np.random.default_rng(seed)
    move, emit = (rng.dirichlet(np.ones(n), states) for n in (states, 5))
    return move, emit, rng.integers(0, 5, steps)


def forward(move: Any, emit: Any, seen: Any) -> tuple[float, Any]:
    """Give log evidence and the law of the last state by the forward algorithm, in NumPy."""
    law, total = np.eye(len(move))[0], 0.0
    for y in seen:
        law = (law @ move) * emit[:, y]
        mass = law.sum()
        law, total = law / mass, total + np.log(mass)
    return total, law


def _last_state(measure: ppl.FiniteMeasure, data: Any) -> float:
    total, law = forward(*data)
    gap = abs(measure.log_evidence - total)
    posterior = measure.normalize()
    masses = [posterior.mass(np.int64(k)) for k in range(len(law))]
    return max(gap, 0.5 * float(np.abs(masses - law).sum()))


def enumerate_hmm(steps: int, states: int) -> Callable[[int], Any]:
    """Enumerate a hidden Markov model."""

    def once(seed: int) -> Any:
        data = hmm_data(seed, steps, states)
        measure = ppl.enumerate(hmm(*data))
        return measure, lambda: _last_state(measure, data)

    return once


def enumerate_smc(states: int) -> Callable[[int], Any]:
    """Enumerate what three particles say after three steps."""

    def once(seed: int) -> Any:
        data = hmm_data(seed, 3, states)
        measure = ppl.enumerate(ppl.extract(smc(*data, 3)))
        return measure, lambda: _last_state(measure, data)

    return once


def marginalize_hmm(steps: int, states: int) -> Callable[[int], Any]:
    """Sum the states out, and evaluate the log density; compiled."""
    evidence = jax.jit(lambda *data: ppl.log_density(ppl.marginalize(hmm(*data)), {}))

    def once(seed: int) -> Any:
        data = hmm_data(seed, steps, states)
        found = float(evidence(*data))
        return found, lambda: abs(found - forward(*data)[0])

    return once


# --- A network ----------------------------------------------------------------------------------

#: Rain and sprinklers, twelve nodes: each one's parents among those before it.
PARENTS = ((), (0,), (0,), (1, 2), (2,), (3,), (1, 4), (3, 5), (4, 6), (7,), (7, 8), (6, 9, 10))
SEEN = (9, 11)


@ppl.model
def network(tables):
    """Observe two of twelve nodes to be true; give the first node and the fourth."""
    values: list[Any] = []
    for k, (chances, parents) in enumerate(zip(tables, PARENTS, strict=True)):
        chance = dist.Bernoulli(chances[tuple(values[p] for p in parents)])
        values.append(ppl.sample(f"node{k}", chance, obs=1 if k in SEEN else None))
    return values[0], values[3]


def brute_force(tables: Any) -> dict[tuple[int, int], float]:
    """Add up the masses of all assignments, in NumPy."""
    masses = dict.fromkeys(itertools.product((0, 1), repeat=2), 0.0)
    for row in itertools.product((0, 1), repeat=len(PARENTS)):
        if all(row[k] for k in SEEN):
            chances = [t[tuple(row[p] for p in q)] for t, q in zip(tables, PARENTS, strict=True)]
            mass = np.prod([c if x else 1 - c for c, x in zip(chances, row, strict=True)])
            masses[row[0], row[3]] += float(mass)
    return masses


def enumerate_network(seed: int) -> Any:
    """Enumerate the network."""
    rng = np.random.default_rng(seed)
    tables = tuple(rng.uniform(0.05, 0.95, (2,) * len(parents)) for parents in PARENTS)
    measure = ppl.enumerate(network(tables))

    def error() -> float:
        masses = brute_force(tables)
        gaps = [abs(measure.mass(tuple(map(np.int64, x))) - m) for x, m in masses.items()]
        return 0.5 * sum(gaps) / sum(masses.values())

    return measure, error


def cases(fast: bool) -> list[Case]:
    """List the measurements. `fast` leaves out the longest chain."""
    lengths = (500, 1000) if fast else (500, 1000, 2000)
    found = [
        Case("SMC, 3 particles, 3 steps, K = 2", enumerate_smc(2), 2.0, 0.2, 9),
        Case("SMC, 3 particles, 3 steps, K = 3", enumerate_smc(3), None, None, 5),
        *(
            Case(f"HMM, T = {t}, K = 32", enumerate_hmm(t, 32), 2.0 if t == 1000 else None, None, 2)
            for t in lengths
        ),
        Case("network, 12 nodes", enumerate_network, 1.0, None, 9),
    ]
    if hasattr(ppl, "marginalize"):
        summed = marginalize_hmm(1000, 32)
        found.append(Case("marginalize and density, T = 1000, K = 32", summed, None, None, 9))
    return found


# --- Measurements -------------------------------------------------------------------------------


def measure_here(case: Case) -> dict[str, Any]:
    """Time the first call and the next ones in this process."""
    seconds, errors = [], []
    for seed in range(case.calls + 1):
        start, cpu = time.perf_counter(), time.process_time()
        _, error = case.once(seed)
        seconds.append((time.perf_counter() - start, time.process_time() - cpu))
        errors.append(error())
    wall, busy = zip(*seconds, strict=True)
    return {"cold": wall[0], "cpu": busy[0], "warm": wall[1:], "error": max(errors)}


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Time a case in fresh processes."""
    command = [sys.executable, "-m", "benchmarks.enumerate", "--case", name]
    found: dict[str, Any] = {"cold": [], "cpu": [], "process": [], "warm": [], "error": 0.0}
    for _ in range(rounds):
        start = time.perf_counter()
        lines = subprocess.run(
            command, cwd=Path(__file__).resolve().parents[1], check=True, stdout=subprocess.PIPE
        )
        whole = time.perf_counter() - start
        one = json.loads(lines.stdout)
        found["cold"].append(one["cold"])
        found["cpu"].append(one["cpu"])
        found["process"].append(whole - sum(one["warm"]))
        found["warm"] += one["warm"]
        found["error"] = max(found["error"], one["error"])
    return found


def shown(seconds: list[float]) -> str:
    """Write median and minimum."""
    return f"{human(float(np.median(seconds)))} ({human(min(seconds))})"


def verdict(seconds: list[float], target: float | None) -> str:
    """Say whether the median meets its target."""
    if target is None:
        return ""
    met = float(np.median(seconds)) <= target
    return f"<= {human(target)}: {'met' if met else 'MISSED'}"


def main() -> None:
    """Read the arguments and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fast", action="store_true", help="fewer rounds, shorter chains")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    every = cases(options.fast and not options.case)
    if options.case:
        (case,) = (c for c in every if c.name == options.case)
        print(json.dumps(measure_here(case)))
        return
    device = jax.devices()[0]
    print(f"{device.platform} {device.device_kind}, jax {jax.__version__}, double precision")
    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    busy = ": the machine is busy, and the times are too long" if load > cores / 2 else ""
    print(f"{cores} cores, load average {load:.1f} at the start{busy}")
    rows, least = [], {}
    for case in every:
        one = measure(case.name, 3 if options.fast else 5)
        least[case.name] = min(one["cpu"])
        times = [
            shown(one["cold"]),
            verdict(one["cold"], case.cold),
            shown(one["cpu"]),
            shown(one["process"]),
        ]
        times += [shown(one["warm"]), verdict(one["warm"], case.warm)]
        rows.append([case.name, *times, f"{one['error']:.0e}"])
    print(table(["case", "cold", "target", "CPU", "process", "warm", "target", "error"], rows))
    chains = {n: s for n, s in least.items() if n.startswith("HMM")}
    lengths = [int(n.split("T = ")[1].split(",")[0]) for n in chains]
    best = [*chains.values()]
    steps = [f"{human(s / t)} at T = {t}" for s, t in zip(best, lengths, strict=True)]
    growth = (best[-1] / best[0]) / (lengths[-1] / lengths[0])
    met = "met" if growth <= 1.25 else "MISSED"
    print(f"\nHMM, least CPU time a step: {', '.join(steps)}")
    print(
        f"growth against linear, T = {lengths[0]} to {lengths[-1]}: {growth:.2f} (<= 1.25: {met})"
    )


if __name__ == "__main__":
    main()
