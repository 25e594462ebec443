"""Models under control flow, each beside the plain Python loops that say what it means.

A case is a pair: `model(...)` with JAX's control flow, and `ref(t)`, which walks the same program
with `for` and `if` over numbers. The tape `t` knows the choices, and what every handler does to a
site: it never calls `ppl`. One reference so serves every interpreter.
"""

from tests.control_flow_cases import deep, nested, single  # noqa: F401 (they register cases)
from tests.control_flow_cases.tape import CASES, LOG_2PI, V3, V4, Case, Tape, normal_lp

__all__ = ["CASES", "LOG_2PI", "V3", "V4", "Case", "Tape", "normal_lp"]
