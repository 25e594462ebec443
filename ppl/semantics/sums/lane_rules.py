"""How operations move members: from the groups along the operands' axes to those of the results.

Each rule answers for one JAX primitive: does element i of the result, along some axis, depend on
element i of the operands alone? What has no rule, or mixes members, raises `Meeting`. Nothing is
assumed of plates: the answer comes from the operations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from ppl import _jax
from ppl.semantics.sums.lanes import Group, Labels, Meeting, is_literal, merge


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ELEMENTWISE = _names(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
    clamp clz complex conj convert_element_type copy copy_p cos cosh digamma div eq eq_to erf
    erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow is_finite
    le le_to lgamma log log1p logistic lt lt_to max min mul ne neg nextafter not or polygamma
    population_count pow random_gamma_grad real reduce_precision regularized_incomplete_beta rem
    round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt
    square stop_gradient sub tan tanh xor zeta"""
)
REDUCTIONS = _names(
    """argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum
    reduce_xor"""
)
_ALONG = {
    "cumsum": "axis",
    "cumprod": "axis",
    "cummax": "axis",
    "cummin": "axis",
    "cumlogsumexp": "axis",
    "sort": "dimension",
    "split": "axis",
    "concatenate": "dimension",
    "top_k": "axis",
    "approx_top_k": "reduction_dimension",
}
#: Linear algebra on the last two axes; those before are a batch.
_MATRICES = _names("cholesky eigh lu qr svd triangular_solve householder_product schur")


def propagate(eqn: Any, labels: Sequence[Labels]) -> list[Labels]:
    """Give the groups along the axes of an equation's results."""
    if not any(g for each in labels for g in each):
        return [(None,) * len(v.aval.shape) for v in eqn.outvars]
    name = eqn.primitive.name
    if name in ELEMENTWISE:
        return [_elementwise(eqn, labels)]
    if name in REDUCTIONS:
        return _reduced(eqn, labels)
    if name in _ALONG:
        return _kept(eqn, labels)
    if name in _MATRICES:
        return _batched(eqn, labels)
    if name in RULES:
        return RULES[name](eqn, labels)
    subs = list(_jax.subjaxprs(eqn))
    if name in ("jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint") or (
        name in ("custom_jvp_call", "custom_vjp_call") and subs
    ):
        return through(subs[0], labels)
    raise _meet(eqn, labels)


def through(jaxpr: Any, labels: Sequence[Labels]) -> list[Labels]:
    """Propagate through a jaxpr without sites."""
    jaxpr, _ = _jax.open_jaxpr(jaxpr)
    env: dict[Any, Labels] = dict(zip(jaxpr.invars, labels, strict=True))

    def read(atom: Any) -> Labels:
        if is_literal(atom) or atom not in env:
            return (None,) * len(atom.aval.shape)
        return env[atom]

    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, propagate(eqn, [read(v) for v in eqn.invars]), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _meet(eqn: Any, labels: Sequence[Labels]) -> Meeting:
    groups = [g for each in labels for g in each if g is not None]
    return Meeting(f"the operation '{eqn.primitive.name}'", groups=groups)


def _require_free(eqn: Any, labels: Labels, axes: Sequence[int]) -> None:
    """Raise unless no members lie along the axes."""
    groups = [g for a in axes if (g := labels[a]) is not None]
    if groups:
        raise Meeting(f"the operation '{eqn.primitive.name}'", groups=groups)


def _elementwise(eqn: Any, labels: Sequence[Labels]) -> Labels:
    rank = len(eqn.outvars[0].aval.shape)
    return merge(*[each for each in labels if len(each) == rank], (None,) * rank)


def _reduced(eqn: Any, labels: Sequence[Labels]) -> list[Labels]:
    axes = eqn.params["axes"]
    _require_free(eqn, labels[0], axes)
    return [tuple(g for i, g in enumerate(labels[0]) if i not in axes)] * len(eqn.outvars)


def _kept(eqn: Any, labels: Sequence[Labels]) -> list[Labels]:
    axis = eqn.params[_ALONG[eqn.primitive.name]] % len(labels[0])
    merged = merge(*labels)
    _require_free(eqn, merged, (axis,))
    return [merged] * len(eqn.outvars)


def _batched(eqn: Any, labels: Sequence[Labels]) -> list[Labels]:
    for each in labels:
        _require_free(eqn, each, range(max(len(each) - 2, 0), len(each)))
    lead = merge(*[each[:-2] for each in labels])
    ranks = [len(v.aval.shape) for v in eqn.outvars]
    return [(*lead, *(None,) * (rank - len(lead))) for rank in ranks]


def _broadcast(eqn: Any, labels: Sequence[Labels]) -> list[Labels]:
    out: list[Group | None] = [None] * len(eqn.params["shape"])
    for i, j in enumerate(eqn.params["broadcast_dimensions"]):
        out[j] = labels[0][i]
    return [tuple(out)]


def _transpose(eqn: Any, labels: Sequence[Labels]) -> list[Labels]:
    return [tuple(labels[0][i] for i in eqn.params["permutation"])]


def _squeeze(eqn: Any, labels: Sequence[Labels]) -> list[Labels]:
    return [tuple(g for i, g in enumerate(labels[0]) if i not in eqn.params["dimensions"])]


def _reshape(eqn: Any, labels: Sequence[Labels]) -> list[Labels]:
    old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    out: list[Group | None] = [None] * len(new)
    for i, g in enumerate(labels[0]):
        if g is None:
            continue
        # The axis survives if one of its size has as many elements before it.
        before = math.prod(old[:i])
        fits = [j for j, n in enumerate(new) if n == old[i] and math.prod(new[:j]) == before]
        if not fits:
            raise Meeting("the operation 'reshape'", groups=[g])
        out[fits[0]] = g
    return [tuple(out)]


def _rev(eqn: Any, labels: Sequence[Labels]) -> list[Labels]:
    _require_free(eqn, labels[0], eqn.params["dimensions"])
    return [labels[0]]


def _same_size(eqn: Any, labels: Sequence[Labels]) -> list[Labels]:
    """`slice`, `dynamic_slice`, `pad`: members must be left alone."""
    old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    touched = [i for i in range(len(old)) if old[i] != new[i]]
    if eqn.primitive.name == "pad":
        config = eqn.params["padding_config"]
        touched += [i for i, (a, b, c) in enumerate(config) if (a, b, c) != (0, 0, 0)]
    _require_free(eqn, labels[0], touched)
    return [labels[0]]


def _update(eqn: Any, labels: Sequence[Labels]) -> list[Labels]:
    old, new = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape
    merged = merge(labels[0], labels[1])
    _require_free(eqn, merged, [i for i in range(len(old)) if old[i] != new[i]])
    return [merged]


def _dot(eqn: Any, labels: Sequence[Labels]) -> list[Labels]:
    (sum_l, sum_r), (batch_l, batch_r) = eqn.params["dimension_numbers"]
    left, right = labels
    _require_free(eqn, left, sum_l)
    _require_free(eqn, right, sum_r)
    batch = merge(tuple(left[i] for i in batch_l), tuple(right[i] for i in batch_r))
    rest = [g for i, g in enumerate(left) if i not in (*sum_l, *batch_l)]
    rest += [g for i, g in enumerate(right) if i not in (*sum_r, *batch_r)]
    return [(*batch, *rest)]


def _gather(eqn: Any, labels: Sequence[Labels]) -> list[Labels]:
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    table, index = labels
    shape = eqn.invars[0].aval.shape
    out: list[Group | None] = [None] * len(eqn.outvars[0].aval.shape)
    batch = [i for i in range(len(out)) if i not in numbers.offset_dims]
    dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    kept = [j for j in range(len(shape)) if j not in dropped]
    for i, j in zip(numbers.offset_dims, kept, strict=True):
        if sizes[j] == shape[j]:
            out[i] = table[j]
        else:
            _require_free(eqn, table, (j,))
    _require_free(eqn, table, numbers.collapsed_slice_dims)
    if index:
        _require_free(eqn, index, (len(index) - 1,))
    pairs = dict(
        zip(numbers.start_indices_batching_dims, numbers.operand_batching_dims, strict=True)
    )
    for i, j in enumerate(batch):
        sides = [(index[i],), (table[pairs[i]],)] if i in pairs else [(index[i],)]
        out[j] = merge(*sides)[0]
    return [tuple(out)]


def _cond(eqn: Any, labels: Sequence[Labels]) -> list[Labels]:
    branches = [through(b, labels[1:]) for b in eqn.params["branches"]]
    return [merge(*outs) for outs in zip(*branches, strict=True)]


def _scan(eqn: Any, labels: Sequence[Labels]) -> list[Labels]:
    num_consts, num_carry = _jax.scan_sizes(eqn)
    last = num_consts + num_carry
    consts, carry, xs = labels[:num_consts], list(labels[num_consts:last]), labels[last:]
    for each in xs:
        _require_free(eqn, each, (0,))
    rows = [each[1:] for each in xs]
    while True:
        outs = through(eqn.params["jaxpr"], [*consts, *carry, *rows])
        wider = [merge(a, b) for a, b in zip(carry, outs[:num_carry], strict=True)]
        if wider == carry:
            return [*carry, *((None, *each) for each in outs[num_carry:])]
        carry = wider


def _while(eqn: Any, labels: Sequence[Labels]) -> list[Labels]:
    num_cond, num_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    consts, carry = labels[num_cond : num_cond + num_body], list(labels[num_cond + num_body :])
    while True:
        through(eqn.params["cond_jaxpr"], [*labels[:num_cond], *carry])
        outs = through(eqn.params["body_jaxpr"], [*consts, *carry])
        wider = [merge(a, b) for a, b in zip(carry, outs, strict=True)]
        if wider == carry:
            return carry
        carry = wider


RULES: dict[str, Callable[[Any, Sequence[Labels]], list[Labels]]] = {
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "reshape": _reshape,
    "rev": _rev,
    "slice": _same_size,
    "dynamic_slice": _same_size,
    "pad": _same_size,
    "dynamic_update_slice": _update,
    "dot_general": _dot,
    "gather": _gather,
    "cond": _cond,
    "scan": _scan,
    "while": _while,
    "optimization_barrier": lambda eqn, labels: list(labels),
}
