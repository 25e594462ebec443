"""Every NumPy rule of the enumerator against JAX's own operation, batched over worlds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.scipy import special

from ppl.semantics.worlds import arrays

WORLDS = 3
RNG = np.random.default_rng(0)


def floats(*shape):
    return RNG.normal(size=(WORLDS, *shape))


def positive(*shape):
    return RNG.gamma(2.0, size=(WORLDS, *shape))


def unit(*shape):
    return RNG.uniform(0.05, 0.95, size=(WORLDS, *shape))


def ints(low, high, *shape):
    return RNG.integers(low, high, size=(WORLDS, *shape))


def bools(*shape):
    return RNG.random((WORLDS, *shape)) < 0.5


UNARY = {
    name: (getattr(lax, name), floats(2, 3))
    for name in (
        *("neg", "sign", "floor", "ceil", "exp", "exp2", "expm1", "tanh", "sin", "cos", "tan"),
        *("sinh", "cosh", "atan", "asinh", "cbrt", "square", "abs", "logistic", "erf", "erfc"),
        "is_finite",
    )
}
UNARY |= {
    name: (getattr(lax, name), positive(4))
    for name in ("log", "log1p", "sqrt", "rsqrt", "lgamma", "digamma")
}
UNARY |= {name: (getattr(lax, name), unit(4)) for name in ("asin", "acos", "atanh", "erf_inv")}
UNARY["acosh"] = (lax.acosh, 1 + positive(4))

BINARY = {
    name: (getattr(lax, name), floats(3), floats(3))
    for name in (
        *("add", "sub", "mul", "div", "max", "min", "atan2", "rem"),
        *("eq", "ne", "lt", "le", "gt", "ge"),
    )
}
BINARY |= {
    "pow": (lax.pow, positive(3), floats(3)),
    "pow_int": (lax.pow, floats(3), ints(-2, 3, 3).astype(np.int32)),
    "int_div": (lax.div, ints(-9, 9, 8), np.where(ints(0, 2, 8) == 1, 3, -4)),
    "int_rem": (lax.rem, ints(-9, 9, 8), np.where(ints(0, 2, 8) == 1, 3, -4)),
    "and": (lax.bitwise_and, bools(4), bools(4)),
    "or": (lax.bitwise_or, ints(0, 8, 4), ints(0, 8, 4)),
    "xor": (lax.bitwise_xor, bools(4), bools(4)),
    "scalar_left": (lax.mul, floats(), floats(3)),
    "scalar_right": (lax.sub, floats(2, 3), floats()),
    "scalar_div": (lambda x, y: (lax.div(x, y), lax.max(y, x)), floats(2, 3), floats()),
    "scalar_compare": (lambda x, y: jnp.where(x < y, x, y), floats(3), floats()),
    "not": (lambda x, y: lax.bitwise_not(x), bools(4), bools(4)),
    "igamma": (lax.igamma, positive(3), positive(3)),
    "igammac": (lax.igammac, positive(3), positive(3)),
}

TABLE = floats(4, 5)
CASES = {
    "convert": (lambda x: (x * 3).astype(jnp.int32), floats(4)),
    "convert_wild": (
        lambda x: x.astype(jnp.int32),
        np.array([[np.nan, np.inf, -np.inf, 3e12]] * WORLDS),
    ),
    "convert_bool": (lambda x: x.astype(bool), ints(0, 2, 4)),
    "round": (lambda x: (jnp.round(x * 2), lax.round(x * 2)), floats(5)),
    "integer_pow": (lambda x: (x**3, x**-2), positive(3)),
    "select": (lambda c, a, b: jnp.where(c, a, b), bools(3), floats(3), floats(3)),
    "select_scalar": (lambda c, a, b: lax.select(c, a, b), bools(), floats(3), floats(3)),
    "select_n": (lambda i, a: lax.select_n(i, a, 2 * a, 3 * a), ints(0, 3, 4), floats(4)),
    "clamp": (lambda x: lax.clamp(-0.5, x, 0.7), floats(6)),
    "clamp_array": (lambda a, x: lax.clamp(a, x, a + 1), floats(6), floats(6)),
    "reduce": (
        lambda x: (x.sum(0), x.prod(1), x.max(), x.min((0, 1)), x.sum((0, 1))),
        floats(3, 4),
    ),
    "reduce_bool": (lambda x: (x.all(0), x.any(), (~x).all()), bools(3, 2)),
    "argmax": (lambda x: (x.argmax(1), x.argmin(0), x.argmax()), floats(3, 4)),
    "cumulative": (
        lambda x: (
            jnp.cumsum(x, 0),
            jnp.cumprod(x, 1),
            lax.cummax(x, 1),
            lax.cummin(x, 0),
            lax.cumlogsumexp(x, 1),
            lax.cumsum(x, 0, reverse=True),
        ),
        floats(3, 4),
    ),
    "shape": (
        lambda x: (x[None, :, :, None], x.T, x.reshape(6, 2), jnp.squeeze(x[:1], 0), x[::-1]),
        floats(3, 4),
    ),
    "broadcast": (lambda x: jnp.broadcast_to(x[:, None], (3, 5)) + x[:, None], floats(3)),
    "concatenate": (lambda x, y: jnp.concatenate([x, y, x[:1]]), floats(3, 2), floats(2, 2)),
    "split": (lambda x: jnp.split(x, 2, axis=1), floats(3, 4)),
    "iota": (lambda x: x + jnp.arange(4) + lax.broadcasted_iota(float, (3, 4), 0), floats(3, 4)),
    "pad": (lambda x: lax.pad(x, -1.0, [(1, 2, 0), (0, 1, 2)]), floats(3, 2)),
    "pad_negative": (lambda x: lax.pad(x, -1.0, [(-1, 2, 0), (0, 1, 0)]), floats(3, 2)),
    "slice": (lambda x: (x[1:3, ::2], x[:, -2:]), floats(4, 5)),
    "dynamic_slice": (lambda x, i: lax.dynamic_slice(x, (i, 1), (2, 2)), floats(4, 5), ints(-1, 5)),
    "dynamic_shared": (lambda x: lax.dynamic_slice(x, (3, 9), (2, 2)), floats(4, 5)),
    "dynamic_update": (
        lambda x, u, i: lax.dynamic_update_slice(x, u, (i, 2)),
        floats(4, 5),
        floats(2, 2),
        ints(0, 5),
    ),
    "sort": (lambda x: (jnp.sort(x, 0), jnp.argsort(x, 1), jnp.flip(jnp.sort(x))), floats(4, 5)),
    "dot": (lambda x, y: (x @ y, x @ y[:, 0], y.T @ x.T), floats(3, 4), floats(4, 2)),
    "dot_batched": (
        lambda x, y: jnp.einsum("bij,bjk->bik", x, y),
        floats(2, 3, 4),
        floats(2, 4, 5),
    ),
    "dot_mixed": (lambda x, y: jnp.einsum("ibj,kjb->bik", x, y), floats(2, 3, 4), floats(5, 4, 3)),
    "dot_int": (lambda x, y: x @ y, ints(0, 5, 3, 4), ints(0, 5, 4)),
    "gather_row": (lambda x, i: x[i], TABLE, ints(0, 4)),
    "gather_rows": (lambda x, i: x[i], TABLE, ints(-4, 4, 3)),
    "gather_two": (lambda x, i, j: x[i, j], TABLE, ints(0, 4, 3), ints(0, 5, 3)),
    "gather_column": (lambda x, i: x[:, i], TABLE, ints(0, 5, 2)),
    "gather_outside": (
        lambda x, i: (x.at[i].get(mode="fill"), x.at[i].get(mode="clip"), x[i]),
        TABLE,
        ints(-9, 9, 3),
    ),
    "gather_int": (lambda x, i: x.at[i].get(mode="fill"), ints(0, 9, 4), ints(2, 7, 3)),
    "take_along": (lambda x, i: jnp.take_along_axis(x, i, 1), TABLE, ints(0, 5, 4, 2)),
    "gather_vmapped": (
        lambda x, i: jax.vmap(lambda x, i: x[i])(x, i),
        TABLE,
        ints(0, 5, 4),
    ),
    "gather_constant": (lambda i: jnp.arange(12.0).reshape(3, 4)[i], ints(0, 3)),
    "scatter": (lambda x, i: x.at[i].set(7.0), TABLE, ints(0, 4)),
    "scatter_add": (lambda x, i, u: x.at[i].add(u), floats(5), ints(0, 5, 4), floats(4)),
    "scatter_column": (lambda x, i: x.at[:, i].multiply(2.0), TABLE, ints(0, 5)),
    "scatter_max": (lambda x, i, u: x.at[i, 1].max(u), TABLE, ints(0, 4, 3), floats(3)),
    "scatter_min": (lambda x, i, u: x.at[i, 1].min(u), TABLE, ints(0, 4, 3), floats(3)),
    "scatter_outside": (lambda x, i: x.at[i].set(7.0), TABLE, ints(2, 8, 2)),
    "scatter_vmapped": (
        lambda x, i: jax.vmap(lambda x, i: x.at[i].add(1.0))(x, i),
        TABLE,
        ints(0, 5, 4),
    ),
    "softmax": (lambda x: jax.nn.softmax(x), floats(5)),
    "logsumexp": (lambda x: special.logsumexp(x, axis=0), floats(5, 2)),
    "custom": (lambda x: (jax.nn.relu(x), jax.nn.softplus(x)), floats(5)),
    "jit": (jax.jit(lambda x: x * 2 + 1), floats(5)),
    "while_by_jax": (lambda x: lax.fori_loop(0, 3, lambda _, y: y * x, x), floats(5)),
    "scan_by_jax": (lambda x: lax.scan(lambda c, y: (c + y, c), 0.0, x), floats(5)),
    "cond_by_jax": (lambda i, x: lax.cond(i > 1, jnp.sin, jnp.cos, x), ints(0, 3), floats(2)),
    "half": (lambda x: x.astype(jnp.bfloat16) * 2, floats(3)),
    "betainc": (special.betainc, positive(3), positive(3), unit(3)),
}


def check(fun, *args, shared=()):
    args = [np.asarray(a) for a in args]
    ours = [a[:1] if k in shared else a for k, a in enumerate(args)]
    theirs = [np.broadcast_to(a, (WORLDS, *a.shape[1:])) for a in ours]
    closed = jax.make_jaxpr(fun)(*[jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in ours])
    with np.errstate(all="ignore"):
        found = arrays.evaluate_jaxpr(closed.jaxpr, closed.consts, ours, WORLDS)
    wanted = jax.tree.leaves(jax.vmap(fun)(*theirs))
    assert len(found) == len(wanted)
    for f, w in zip(found, wanted, strict=True):
        assert f.dtype == w.dtype
        assert f.shape[0] in (1, WORLDS)
        f, w = (np.asarray(x, np.float64) for x in (np.broadcast_to(f, w.shape), w))
        np.testing.assert_allclose(f, w, rtol=1e-12, atol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", UNARY)
def test_unary_operations(name):
    check(*UNARY[name])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("shared", [(), (0,), (1,), (0, 1)])
def test_binary_operations_with_and_without_shared_operands(name, shared):
    check(*BINARY[name], shared=shared)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shared", [(), (0,), (1, 2)], ids=["own", "first shared", "rest shared"])
def test_other_operations_with_and_without_shared_operands(name, shared):
    check(*CASES[name], shared=shared)


@pytest.mark.usefixtures("x64")
def test_an_integer_division_by_zero_is_what_jax_says_it_is():
    check(lax.div, ints(-9, 9, 8), np.zeros((WORLDS, 8), int))


def test_world_counts_are_padded_to_few_sizes():
    sizes = {arrays.padded(n) for n in range(1, 5000)}
    assert sizes == {1, 8, 16, 64, 256, 1024, 4096, 16384}
    assert all(arrays.padded(n) >= n for n in range(1, 5000))
