"""What a jaxpr costs, guessed from its shapes: whether it is worth stopping, or compiling well.

And whether several may run side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ppl import _jax
from ppl.primitives import sample_p


def cost(jaxpr: Any) -> float:
    """Guess how many nanoseconds a jaxpr takes on one core: within a factor of ten."""
    return sum(map(cost_of, jaxpr.eqns))


def cost_of(eqn: Any) -> float:
    """Guess the same of an equation."""
    inner = list(map(cost, _jax.subjaxprs(eqn)))
    size = sum(math.prod(getattr(v.aval, "shape", ())) for v in eqn.outvars)
    name = eqn.primitive.name
    match name:
        case "scan":
            return eqn.params["length"] * sum(inner)
        case "while":
            return 10 * sum(inner)  # iterations that nobody knows the number of
        case "cond":
            return max(inner)
        case "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            return 100 + 0.1 * size * math.prod(eqn.invars[0].aval.shape[i] for i in contracted)
        case _ if inner:
            return sum(inner)
        case _ if name in _LAPACK:
            return 100 + 0.01 * size * eqn.invars[0].aval.shape[-1]
        case _ if "callback" in name:
            return 2e7
        case _:
            return 100 + (20 if eqn.primitive is sample_p else 1) * size


#: LAPACK's operations.
_LAPACK = frozenset(
    [
        "cholesky",
        "cholesky_update",
        "eig",
        "eigh",
        "geqp3",
        "geqrf",
        "hessenberg",
        "householder_product",
        "lu",
        "qr",
        "schur",
        "svd",
        "symmetric_product",
        "triangular_solve",
        "tridiagonal",
        "tridiagonal_solve",
    ]
)
#: What calls a library that may divide its work among the threads that run the computation, and
#: wait for them: enough of those calls at a time, and nobody is left to be waited for.
_WAITING = frozenset(["conv_general_dilated", "fft", "ffi_call"]) | (
    _LAPACK if _jax.LAPACK_WAITS else frozenset()
)


def waits(jaxpr: Any) -> bool:
    """Tell whether a jaxpr has operations that wait for other threads, or for Python."""
    return _has(
        jaxpr,
        lambda name: (
            name in _WAITING or any(part in name for part in ("callback", "debug", "custom_call"))
        ),
    )


def calls_lapack(jaxpr: Any) -> bool:
    """Tell whether a jaxpr has operations of LAPACK."""
    return _has(jaxpr, _LAPACK.__contains__)


def _has(jaxpr: Any, wanted: Callable[[str], bool]) -> bool:
    return any(
        wanted(eqn.primitive.name) or any(_has(inner, wanted) for inner in _jax.subjaxprs(eqn))
        for eqn in jaxpr.eqns
    )
