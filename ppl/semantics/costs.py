"""What a jaxpr costs, guessed from its shapes: whether it is worth stopping, or compiling well.

And whether several may run side by side.
"""

from __future__ import annotations

import math
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
        case _ if "callback" in name:
            return 2e7
        case _:
            return 100 + (20 if eqn.primitive is sample_p else 1) * size


#: What calls a library that may divide its work among the threads that run the computation, and
#: wait for them: enough of those calls at a time, and nobody is left to be waited for.
_WAITING = frozenset(
    [
        "cholesky",
        "cholesky_update",
        "conv_general_dilated",
        "eig",
        "eigh",
        "fft",
        "ffi_call",
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


def waits(jaxpr: Any) -> bool:
    """Tell whether a jaxpr has operations that wait for other threads, or for Python."""
    return any(
        (name := eqn.primitive.name) in _WAITING
        or "callback" in name
        or "debug" in name
        or "custom_call" in name
        or any(map(waits, _jax.subjaxprs(eqn)))
        for eqn in jaxpr.eqns
    )
