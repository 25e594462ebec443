"""JAX's arithmetic in NumPy, over many worlds at once: see `arrays`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from ppl.semantics.worlds import indexing

#: `rule(params, out, *arrays)` gives one array or a list; `out` is the abstract result.
RULES: dict[str, Callable[..., Any]] = {}

_UNARY: dict[str, Callable[..., Any]] = {
    "neg": np.negative,
    "sign": np.sign,
    "floor": np.floor,
    "ceil": np.ceil,
    "is_finite": np.isfinite,
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "cbrt": np.cbrt,
    "square": np.square,
    "abs": np.abs,
    "logistic": special.expit,
    "erf": special.erf,
    "erfc": special.erfc,
    "erf_inv": special.erfinv,
    "lgamma": special.gammaln,
    "digamma": special.digamma,
    "not": np.invert,
    "copy": lambda x: x,
    "copy_p": lambda x: x,
    "stop_gradient": lambda x: x,
    "optimization_barrier": lambda x: x,
}
_BINARY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
    "pow": np.power,
    "atan2": np.arctan2,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "igamma": special.gammainc,
    "igammac": special.gammaincc,
}
_REDUCE: dict[str, Callable[..., Any]] = {
    "reduce_sum": np.sum,
    "reduce_prod": np.prod,
    "reduce_max": np.max,
    "reduce_min": np.min,
    "reduce_and": np.all,
    "reduce_or": np.any,
}
_CUMULATIVE: dict[str, Any] = {
    "cumsum": np.add,
    "cumprod": np.multiply,
    "cummax": np.maximum,
    "cummin": np.minimum,
    "cumlogsumexp": np.logaddexp,
}


def _elementwise(fun: Callable[..., Any]) -> Callable[..., Any]:
    def rule(params: Any, out: Any, *xs: Any) -> Any:
        ndim = 1 + len(out.shape)
        # Operands of one operation may be scalars beside arrays.
        return fun(*(x if x.ndim == ndim else indexing.spread(x, ndim) for x in xs))

    return rule


RULES.update({name: _elementwise(fun) for name, fun in (_UNARY | _BINARY).items()})


def _rule(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(fun: Callable[..., Any]) -> Callable[..., Any]:
        RULES[name] = fun
        return fun

    return register


@_rule("div")
def _div(params: Any, out: Any, x: Any, y: Any) -> Any:
    x, y = (indexing.spread(a, 1 + len(out.shape)) for a in (x, y))
    if out.dtype.kind == "f":
        return x / y
    if np.any(y == 0):
        return NotImplemented
    q = np.abs(x) // np.abs(y)  # towards zero, as in C
    return np.where((x < 0) == (y < 0), q, -q)


@_rule("rem")
def _rem(params: Any, out: Any, x: Any, y: Any) -> Any:
    x, y = (indexing.spread(a, 1 + len(out.shape)) for a in (x, y))
    return NotImplemented if out.dtype.kind != "f" and np.any(y == 0) else np.fmod(x, y)


@_rule("round")
def _round(params: Any, out: Any, x: Any) -> Any:
    if int(params["rounding_method"]) == 1:  # to even
        return np.round(x)
    return np.sign(x) * np.floor(np.abs(x) + 0.5)


@_rule("integer_pow")
def _integer_pow(params: Any, out: Any, x: Any) -> Any:
    return np.power(x, params["y"]) if params["y"] >= 0 else 1 / np.power(x, -params["y"])


@_rule("convert_element_type")
def _convert(params: Any, out: Any, x: Any) -> Any:
    if x.dtype.kind == "f" and out.dtype.kind in "iu":
        info = np.iinfo(out.dtype)  # as XLA does: NaN is 0, what is too large the largest
        wide = np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=np.inf, neginf=-np.inf)
        inside = np.where((wide > info.min) & (wide < info.max), wide, 0).astype(out.dtype)
        return np.where(wide >= info.max, info.max, np.where(wide <= info.min, info.min, inside))
    return x.astype(out.dtype)


@_rule("select_n")
def _select(params: Any, out: Any, *operands: Any) -> Any:
    which, *cases = (indexing.spread(x, 1 + len(out.shape)) for x in operands)
    if len(cases) == 2:
        return np.where(which.astype(bool), cases[1], cases[0])
    return np.choose(which, cases) if len(cases) < 32 else NotImplemented


@_rule("clamp")
def _clamp(params: Any, out: Any, low: Any, x: Any, high: Any) -> Any:
    low, high = (indexing.spread(b, x.ndim) for b in (low, high))
    return np.minimum(np.maximum(x, low), high)


def _reduce(fun: Callable[..., Any]) -> Callable[..., Any]:
    def rule(params: Any, out: Any, x: Any, *rest: Any) -> Any:
        if not math.prod(x.shape) and fun in (np.max, np.min):  # NumPy has no value for these
            return NotImplemented
        return fun(x, axis=tuple(a + 1 for a in params["axes"]))

    return rule


RULES.update({name: _reduce(fun) for name, fun in _REDUCE.items()})


def _extremum(fun: Callable[..., Any]) -> Callable[..., Any]:
    return lambda params, out, x: fun(x, axis=params["axes"][0] + 1)


RULES.update({"argmax": _extremum(np.argmax), "argmin": _extremum(np.argmin)})


def _cumulative(fun: Any) -> Callable[..., Any]:
    def rule(params: Any, out: Any, x: Any) -> Any:
        axis = params["axis"] + 1
        if params["reverse"]:
            return np.flip(fun.accumulate(np.flip(x, axis), axis=axis), axis)
        return fun.accumulate(x, axis=axis)

    return rule


RULES.update({name: _cumulative(fun) for name, fun in _CUMULATIVE.items()})


RULES.update(indexing.RULES)
