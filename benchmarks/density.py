"""Log densities and their gradients: against hand-written JAX, and cold against NumPyro.

`python -m benchmarks.density [--fast] [--only warm cold import]` prints three tables.

Warm: `jax.jit(jax.value_and_grad(f))` over the choices, data as arguments of the compiled function;
f is `ppl.log_density(model(*data), choices)` or the same density in `jnp` formulas.

Cold: from a fresh model function, with empty caches (JAX's tracing and compiling caches, and ours),
to the first gradient: staging, tracing, compiling, one evaluation. Imports are not included.
`log_density` is a gradient over choices; `unconstrained` is one over the vector of reals, for
NumPyro through `initialize_model`, which also searches a starting point.

Import: wall-clock time of the statement, in fresh processes.
"""

from __future__ import annotations

import argparse
import functools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.infer.util import initialize_model
from numpyro.infer.util import log_density as numpyro_log_density

import ppl
from benchmarks.models import Case, cases
from benchmarks.timing import alternate, human, table

WARM_TARGET, COLD_TARGET, IMPORT_TARGET = 1.05, 0.7, 1.5


# --- Measurements -------------------------------------------------------------------------------


def fresh(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Copy a function, so that no cache knows it."""
    copy = type(fun)(fun.__code__, fun.__globals__, fun.__name__)
    return functools.update_wrapper(copy, fun, assigned=("__doc__", "__module__"), updated=())


def our_gradient(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Compile the value and gradient of a model's log density."""
    model = ppl.model(fun)
    return jax.jit(jax.value_and_grad(lambda c, *data: ppl.log_density(model(*data), c)))


def repeated(fun: Callable[..., Any], times: int) -> Callable[..., Any]:
    """Take `times` gradient steps inside one compiled loop: the cost without that of the call."""

    def loop(choices: Any, *data: Any) -> Any:
        def step(_: Any, c: Any) -> Any:
            return jax.tree.map(lambda x, g: x + 1e-9 * g, c, fun(c, *data)[1])

        return jax.lax.fori_loop(0, times, step, choices)

    return jax.jit(loop)


def verdict(ratio: float, target: float) -> str:
    """Say whether a ratio meets its target."""
    return "met" if ratio <= target else "MISSED"


def warm(every: dict[str, Case], rounds: int) -> None:
    """Print gradient times against hand-written JAX."""
    rows = []
    for name, case in every.items():
        ours = our_gradient(case.ours)
        hands = {n: jax.jit(jax.value_and_grad(f)) for n, f in case.hand.items()}
        args = (case.choices, *case.data)
        for way, hand in hands.items():
            for a, b in zip(
                jax.tree.leaves(ours(*args)), jax.tree.leaves(hand(*args)), strict=True
            ):
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * float(jnp.max(jnp.abs(b))))
            kinds = [("per call", ours, hand)]
            if case.choices.keys() == {"mu", "tau", "raw"}:
                kinds.append(("in a loop", repeated(ours, 1000), repeated(hand, 1000)))
            for kind, one, other in kinds:
                result = alternate(
                    functools.partial(one, *args), functools.partial(other, *args), rounds=rounds
                )
                per = 1000 if kind == "in a loop" else 1
                times = [human(result.median(k) / per) for k in (0, 1)]
                ratio = result.ratio()
                rows.append(
                    [
                        f"{name}, {kind}",
                        way,
                        *times,
                        f"{ratio:.3f}",
                        result.spread(),
                        f"{result.best():.3f}",
                        verdict(ratio, WARM_TARGET),
                    ]
                )
    print(f"\nWarm: value and gradient, target ratio <= {WARM_TARGET}")
    heads = ["density", "against", "ppl", "other", "ratio", "spread", "of best", "target"]
    print(table(heads, rows))


def empty_caches() -> None:
    """Forget all that was traced and compiled."""
    jax.clear_caches()
    for name, module in [*sys.modules.items()]:
        for value in [*vars(module).values()] if name.startswith("ppl.") else ():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


def cold(every: dict[str, Case], rounds: int) -> None:
    """Print the time to the first gradient against NumPyro's."""
    rows = []
    for name, case in every.items():
        args, data = (case.choices, *case.data), case.data

        def ours(case=case, args=args):
            return our_gradient(fresh(case.ours))(*args)

        def theirs(case=case, args=args):
            model = fresh(case.numpyro)

            def density(c, *arrays):
                return numpyro_log_density(model, arrays, {}, c)[0]

            return jax.jit(jax.value_and_grad(density))(*args)

        def hand(case=case, args=args):
            return jax.jit(jax.value_and_grad(fresh(next(iter(case.hand.values())))))(*args)

        def ours_real(case=case, data=data):
            real = ppl.unconstrain(ppl.model(fresh(case.ours))(*data))
            gradient = jax.jit(jax.value_and_grad(lambda v, u: u.log_density(v)))
            return gradient(jnp.full(real.size, 0.1), real)

        def theirs_real(case=case, data=data):
            model, key = fresh(case.numpyro), jax.random.key(0)
            info = initialize_model(key, model, model_args=data, dynamic_args=True)
            gradient = jax.jit(jax.value_and_grad(lambda z, *data: info.potential_fn(*data)(z)))
            return gradient(info.param_info.z, *data)

        for what, sides in (
            ("log_density", (ours, theirs, hand)),
            ("unconstrained", (ours_real, theirs_real)),
        ):
            result = alternate(*sides, rounds=rounds, seconds=0, warmup=1, before=empty_caches)
            times = [human(result.median(k)) for k in range(len(sides))]
            rows.append(
                [name, what, *times[:2], f"{result.ratio():.3f}", result.spread()]
                + [verdict(result.ratio(), COLD_TARGET), *times[2:]]
                + ([f"{result.ratio(2):.2f}"] if len(sides) > 2 else [])
            )
            rows[-1] += [""] * (9 - len(rows[-1]))
    print(f"\nCold: to the first gradient, against NumPyro, target ratio <= {COLD_TARGET}")
    heads = ["density", "route", "ppl", "numpyro", "ratio", "spread", "target", "by hand", "ratio"]
    print(table(heads, rows))


def imports(rounds: int) -> None:
    """Print the time of `import ppl` against `import numpyro`."""
    root = Path(__file__).resolve().parents[1]

    def load(module: str) -> Callable[[], float]:
        code = (
            f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
        )
        return lambda: float(subprocess.check_output([sys.executable, "-c", code], cwd=root))

    one, other = load("ppl"), load("numpyro")
    seconds = np.array([[one(), other()] for _ in range(rounds + 1)])[1:].T
    ratio = np.median(seconds[0] / seconds[1])
    low, q1, q3 = np.quantile(seconds[0] / seconds[1], [0, 0.25, 0.75])
    print(f"\nImport, target ratio <= {IMPORT_TARGET}")
    print(
        f"ppl {human(np.median(seconds[0]))}, numpyro {human(np.median(seconds[1]))}, ratio "
        f"{ratio:.2f} (min {low:.2f}, quartiles {q1:.2f} to {q3:.2f}): "
        f"{verdict(float(ratio), IMPORT_TARGET)}"
    )


def main() -> None:
    """Read the arguments and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fast", action="store_true", help="fewer rounds, less data")
    kinds = ("warm", "cold", "import")
    parser.add_argument("--only", nargs="+", choices=kinds, default=kinds)
    options = parser.parse_args()
    device = jax.devices()[0]
    print(f"{device.platform} {device.device_kind}, jax {jax.__version__}, ", end="")
    print(f"numpyro {numpyro.__version__}, {jnp.result_type(float).name}")
    every = cases(options.fast)
    if "warm" in options.only:
        warm(every, 10 if options.fast else 40)
    if "cold" in options.only:
        cold(every, 3 if options.fast else 9)
    if "import" in options.only:
        imports(3 if options.fast else 9)


if __name__ == "__main__":
    main()
