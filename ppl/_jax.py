"""The one place where `ppl` touches the internals of JAX.

Everything that may move between JAX releases is behind a name of this module: the effect that
keeps `sample` and `score` alive, primitive registration, the batching-rule table, the cache-aware
context, and the walk over equations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version as _version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import compiler as _compiler
from jax._src import config as _config
from jax._src import core as _core
from jax._src import effects as _effects
from jax.extend import random as _random
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive, Var
from jax.extend.core import jaxprs_in_params as _jaxprs_in_params
from jax.interpreters import ad as _ad
from jax.interpreters import batching as _batching
from jax.interpreters import mlir as _mlir

__all__ = [
    "LAPACK_WAITS",
    "SOON",
    "THREEFRY",
    "WHOLE_LOOPS",
    "ClosedJaxpr",
    "Jaxpr",
    "JaxprEqn",
    "Literal",
    "Primitive",
    "Var",
    "add_tangents",
    "belongs_to",
    "bind_equation",
    "cache_aware_context",
    "contains_effect",
    "custom_jvp_rule",
    "custom_vjp_rules",
    "define_primitive",
    "enclosing_traces",
    "has_effect",
    "is_staging",
    "is_threefry",
    "is_tracer",
    "open_jaxpr",
    "override_batching",
    "part_of_jaxpr",
    "rule_tangents",
    "scan_sizes",
    "scan_sizes_of",
    "subjaxprs",
    "threefry_bits",
    "threefry_with",
    "variables",
    "vmap_in_rule",
    "with_settings",
    "zero_tangent",
]


#: What tells XLA on a CPU to emit code in the older way, as long as it knows it: such code is there
#: in two thirds of the time, and is as fast where arrays are small.
SOON = {"xla_cpu_use_fusion_emitters": False} if jax.__version__.startswith("0.10.") else {}

#: Whether LAPACK's kernels divide a batch among XLA's threads and wait for them, inside of one.
#: They do so in jaxlib before 0.11.1 (its `ParallelBatchMap`; see issue 39292 of jax-ml/jax).
LAPACK_WAITS = tuple(map(int, _version("jaxlib").split(".")[:3])) < (0, 11, 1)

_EXTRA = "xla_backend_extra_options"


def _with_extra(get: Callable[..., Any]) -> Callable[..., Any]:
    """Let `compiler_options` name a backend's extra option, as `XLA_FLAGS` can: one "key=value".

    JAX hands a program's options to XLA one by one, which refuses those that lie in a map.
    """

    @functools.wraps(get)
    def get_compile_options(*args: Any, **named: Any) -> Any:
        overrides = dict(named.get("env_options_overrides") or {})
        extra = overrides.pop(_EXTRA, None)
        if extra is None:
            return get(*args, **named)
        options = get(*args, **named | {"env_options_overrides": overrides})
        key, _, value = extra.partition("=")
        entry = _message(1, key.encode()) + _message(2, value.encode())
        # The numbers of the build options, of the debug options in them, and of the map in those.
        # What is said later in a message is added to what was said before.
        added = _message(3, _message(3, _message(500, entry)))
        return options.ParseFromString(options.SerializeAsString() + added)

    return get_compile_options


def _message(number: int, content: bytes) -> bytes:
    """Write a field of a protocol buffer that has a length."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


_compiler.get_compile_options = _with_extra(_compiler.get_compile_options)

#: What tells XLA on a CPU to make one function of a loop whose body touches fewer bytes than this:
#: else each operation of the body is called by itself, which takes longer than a small one does.
WHOLE_LOOPS = {_EXTRA: "xla_cpu_small_while_loop_byte_threshold=1000000000"}


class Probabilistic(_effects.Effect):
    """The effect of `sample` and `score`: what keeps an equation from being dropped."""

    def __eq__(self, other: object) -> bool:
        return type(other) is Probabilistic

    def __hash__(self) -> int:
        return hash(Probabilistic)

    def __str__(self) -> str:
        return "Probabilistic"


PROBABILISTIC = Probabilistic()
# Lowering is allowed here so that it reaches our lowering rule, which refuses by name.
for _allowed in (
    _effects.control_flow_allowed_effects,
    _effects.custom_derivatives_allowed_effects,
    _effects.remat_allowed_effects,
    _effects.lowerable_effects,
):
    _allowed.add_type(Probabilistic)

_EFFECTS = frozenset({PROBABILISTIC})


def define_primitive(
    name: str,
    *,
    multiple_results: bool,
    shapes: Callable[..., Any],
    batch: Callable[..., Any],
    refuse: Callable[..., Exception],
    refuse_derivative: Callable[..., Exception],
) -> Primitive:
    """Register an effectful primitive that JAX can stage and `vmap` but never execute.

    `shapes(**params)` gives `(shape, dtype)` pairs; `batch(size, args, dims, **params)` is the
    `vmap` rule, called even when no operand is mapped; `refuse(**params)` and
    `refuse_derivative(**params)` build the errors for attempts to execute or lower the primitive,
    and to differentiate it.
    """
    primitive = Primitive(name)
    primitive.multiple_results = multiple_results

    def abstract(*_: Any, **params: Any) -> Any:
        out = [_core.ShapedArray(shape, dtype) for shape, dtype in shapes(**params)]
        return (out if multiple_results else out[0]), _EFFECTS

    def batcher(axis: Any, args: Sequence[Any], dims: Sequence[Any], **params: Any) -> Any:
        mapped = [None if d is None else d for d in dims]
        outs = batch(axis.size, args, mapped, **params)
        return (outs, [0] * len(outs)) if multiple_results else (outs, 0)

    def refused(*_: Any, **params: Any) -> Any:
        raise refuse(**params)

    def derive(**params: Any) -> Any:
        raise refuse_derivative(**params)

    primitive.def_effectful_abstract_eval(abstract)
    primitive.def_impl(refused)
    _batching.fancy_primitive_batchers[primitive] = batcher
    _ad.primitive_jvps[primitive] = lambda primals, tangents, **params: derive(**params)
    _mlir.register_lowering(primitive, lambda ctx, *args, **params: refused(**params))
    return primitive


def override_batching(
    name: str, rule: Callable[[Callable[..., Any], Any, Any, Any, dict[str, Any]], Any]
) -> None:
    """Put `rule` in front of JAX's batching rule of the control-flow primitive `name`.

    `rule(original, axis, args, dims, params)` may call `original(axis, args, dims, **params)`.
    """
    primitive = next(p for p in _batching.fancy_primitive_batchers if p.name == name)
    original = _batching.fancy_primitive_batchers[primitive]

    def wrapped(axis: Any, args: Any, dims: Any, **params: Any) -> Any:
        return rule(original, axis, args, dims, params)

    _batching.fancy_primitive_batchers[primitive] = wrapped


def vmap_in_rule(axis: Any, dims: Sequence[Any], fun: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.vmap` as a batching rule means it: same axis size and axis name as the caller's."""
    name = axis.name if isinstance(axis.name, str) else None
    return jax.vmap(fun, in_axes=tuple(dims), axis_size=axis.size, axis_name=name)


def subjaxprs(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    """Yield the jaxprs an equation carries in its parameters."""
    return iter(_jaxprs_in_params(eqn.params))


def contains_effect(eqn: JaxprEqn) -> bool:
    """Tell whether `sample` or `score` happens anywhere inside the equation."""
    return PROBABILISTIC in eqn.effects or any(
        contains_effect(inner) for sub in subjaxprs(eqn) for inner in sub.eqns
    )


def has_effect(jaxpr: Any) -> bool:
    """Tell whether `sample` or `score` happens anywhere inside an (open or closed) jaxpr."""
    return any(contains_effect(eqn) for eqn in open_jaxpr(jaxpr)[0].eqns)


def open_jaxpr(jaxpr: Any) -> tuple[Jaxpr, list[Any]]:
    """Split an open or closed jaxpr into the open one and its constants."""
    if isinstance(jaxpr, ClosedJaxpr):
        return jaxpr.jaxpr, list(jaxpr.consts)
    return jaxpr, []


def variables(atoms: Iterable[Any]) -> list[Var]:
    """List what of operands or results is a variable, no literal."""
    return [atom for atom in atoms if not isinstance(atom, Literal)]


def part_of_jaxpr(
    jaxpr: Jaxpr, eqns: Sequence[JaxprEqn], inputs: Sequence[Var], outputs: Sequence[Any]
) -> Jaxpr:
    """Make a jaxpr of some equations of another."""
    names = jaxpr.debug_info._replace(arg_names=None, result_paths=None)
    return jaxpr.replace(
        constvars=[], invars=list(inputs), outvars=list(outputs), eqns=list(eqns), debug_info=names
    )


def bind_equation(eqn: JaxprEqn, args: Sequence[Any]) -> list[Any]:
    """Execute (or stage) one equation unchanged."""
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*args, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def scan_sizes(eqn: JaxprEqn) -> tuple[int, int]:
    """Give the numbers of constants and of carried values among a scan's operands."""
    return scan_sizes_of(eqn.params)


def scan_sizes_of(params: dict[str, Any]) -> tuple[int, int]:
    """Give the same from the parameters of the equation."""
    if "ft_in" in params:  # JAX 0.12 and later
        consts, carry, _ = params["ft_in"].unpack()
        return len(list(consts)), len(list(carry))
    return params["num_consts"], params["num_carry"]


def custom_jvp_rule(eqn: JaxprEqn) -> tuple[int, Jaxpr, list[Any]]:
    """Stage the user's rule of a `custom_jvp_call`: constants' count, jaxpr, its constants.

    The jaxpr maps primals and tangents (constants excluded) to output primals and tangents; output
    tangents that are zero whatever the inputs are instantiated by the caller, in `rule_tangents`.
    """
    num_consts = eqn.params["num_consts"]
    count = len(eqn.invars) - num_consts
    thunk = eqn.params["jvp_jaxpr_fun"].call_wrapped
    jaxpr, consts, zeros = thunk(*[False] * count)
    return num_consts, jaxpr, [list(consts), list(zeros)]


def rule_tangents(outs: Sequence[Any], zeros: Sequence[bool]) -> list[Any]:
    """Split the results of a staged `custom_jvp` rule and fill in its symbolic zeros."""
    primals, nonzero = outs[: len(zeros)], iter(outs[len(zeros) :])
    return [zero_tangent(p) if z else next(nonzero) for p, z in zip(primals, zeros, strict=True)]


def zero_tangent(x: Any) -> Any:
    """Give the zero tangent (or cotangent) of a value: float0 for integers."""
    aval = _core.typeof(x).to_tangent_aval()
    if aval.dtype == jax.dtypes.float0:
        return np.zeros(aval.shape, jax.dtypes.float0)
    return jnp.zeros(aval.shape, aval.dtype)


def add_tangents(one: Any, other: Any) -> Any:
    """Add two tangents or cotangents of one value; integers have none."""
    return one if one.dtype == jax.dtypes.float0 else one + other


def custom_vjp_rules(eqn: JaxprEqn) -> tuple[int, Jaxpr, list[Any], Callable[..., Any], Any]:
    """Stage the user's rules of a `custom_vjp_call`.

    Returns the constants' count, the forward jaxpr (constants excluded) and its constants, then
    `residuals(results, args)`, which picks the residuals out of the forward results, and
    `backward(residuals, cotangents)`, which gives one cotangent per argument, constants excluded.
    """
    num_consts = eqn.params["num_consts"]
    count = len(eqn.invars) - num_consts
    jaxpr, consts = eqn.params["fwd_jaxpr_thunk"].call_wrapped(*[True] * count)
    _, _, forwarded = eqn.params["out_trees"]()

    def residuals(results: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        fresh = iter(results)
        return [next(fresh) if f is None else args[f] for f in forwarded]

    def backward(saved: Sequence[Any], cotangents: Sequence[Any]) -> list[Any]:
        out = eqn.params["bwd"].call_wrapped(*saved, *cotangents)
        if isinstance(out, tuple) and len(out) == 2 and isinstance(out[0], (list, tuple)):
            out = out[0]  # newer releases return logs beside the cotangents
        return [None if type(ct).__name__ in ("Zero", "SymbolicZero") else ct for ct in out]

    return num_consts, jaxpr, list(consts), residuals, backward


def is_tracer(x: Any) -> bool:
    """Tell whether `x` is an abstract value inside a JAX transformation."""
    return isinstance(x, _core.Tracer)


#: The name of JAX's default generator.
THREEFRY = _random.threefry_prng_impl.name


def is_threefry(key: Any) -> bool:
    """Tell whether a key is one of JAX's default generator."""
    return str(jax.random.key_impl(key)) == THREEFRY


def threefry_bits(words: Any, width: int, shape: tuple[int, ...]) -> Any:
    """Compute JAX's random bits from the two words of a key."""
    return _random.threefry_prng_impl.random_bits(words, width, shape)


def threefry_with(random_bits: Callable[..., Any], *, name: str, tag: str, words: int = 2) -> Any:
    """Define a generator that is JAX's default but for how it computes bits.

    One whose keys have more than two words has no keys but those that are made of words.
    """
    base = _random.threefry_prng_impl
    return _random.define_prng_impl(
        key_shape=(words,),
        seed=base.seed,
        split=base.split,
        fold_in=base.fold_in,
        random_bits=random_bits,
        name=name,
        tag=tag,
    )


def cache_aware_context(default: Any) -> Any:
    """Make a thread-local value whose changes invalidate JAX's tracing caches.

    The result is called with a new value to give a context manager, and read with `.value`.
    """
    return jax.make_user_context(default)


def enclosing_traces() -> list[Any]:
    """List the traces that are under way, innermost first."""
    traces = [_core.trace_ctx.trace]
    while (outer := getattr(traces[-1], "parent_trace", None)) is not None:
        traces.append(outer)
    return traces


def is_staging() -> bool:
    """Tell whether operations are traced into a jaxpr, rather than executed one by one."""
    return any(type(trace).__name__ == "DynamicJaxprTrace" for trace in enclosing_traces())


def belongs_to(value: Any, traces: Sequence[Any]) -> bool:
    """Tell whether a traced value belongs to one of the traces."""
    return any(value._trace is trace for trace in traces)


def with_settings(fun: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function that has JAX's settings of this thread in another, which has none."""
    known = [*_config.config_states.values(), *_CONTEXTS]
    here = [(c, x) for c in known if (x := c.get_local()) is not _config.config_ext.unset]

    def called(*args: Any) -> Any:
        before = [(c, c.swap_local(x)) for c, x in here]
        try:
            return fun(*args)
        finally:
            for c, x in before:
                c.set_local(x)

    return called


_CONTEXTS = [
    c
    for c in vars(_config).values()
    if isinstance(c, _config.config_ext.Config) and not isinstance(c, _config.State)
]
