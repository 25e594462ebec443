"""Loops whose iterations are run at once give what the loops give, and are what they should be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ppl
import ppl.distributions as dist
from ppl import _jax
from ppl.interpreter import fission
from tests.compiling import compilations

pytestmark = pytest.mark.usefixtures("x64")

OPERATIONS = {
    "add": lambda a, b: a + b,
    "damp": lambda a, b: 0.5 * a + jnp.sin(b),
    "times": lambda a, b: jnp.tanh(a) * b,
    "norm": lambda a, b: jnp.log1p(a**2) - b,
    "cond": lambda a, b: jax.lax.cond(jnp.sum(b) > 0, lambda: a, lambda: b - a),
    "call": lambda a, b: jax.jit(lambda u, v: jnp.cos(u) + v)(a, b),
    "inner": lambda a, b: jax.lax.scan(lambda c, _: (0.5 * c + b, None), a, length=2)[0],
}


@st.composite
def loops(draw):
    """Draw a body: each line names an operation and two earlier values; then what is carried on."""
    carried, rows = draw(st.integers(1, 4)), draw(st.integers(0, 2))
    known = carried + rows + 1  # a constant too
    lines = []
    for _ in range(draw(st.integers(1, 6))):
        pick = st.integers(0, known - 1)
        lines.append((draw(st.sampled_from(sorted(OPERATIONS))), draw(pick), draw(pick)))
        known += 1
    onward = draw(st.lists(st.integers(0, known - 1), min_size=carried, max_size=carried))
    results = draw(st.lists(st.integers(0, known - 1), max_size=3))
    return carried, rows, lines, onward, results


def as_body(loop, const):
    """Make the body that a drawn loop describes."""
    _, _, lines, onward, results = loop

    def body(carry, row):
        values = [*carry, *row, const]
        for name, one, other in lines:
            values.append(OPERATIONS[name](values[one], values[other]))
        return [values[i] for i in onward], [values[i] for i in results]

    return body


def equations(jaxpr):
    """Give all equations, those inside others too."""
    for eqn in _jax.open_jaxpr(jaxpr)[0].eqns:
        yield eqn
        for sub in _jax.subjaxprs(eqn):
            yield from equations(sub)


def count(jaxpr, name):
    """Count the equations of a name, inside others too."""
    return sum(eqn.primitive.name == name for eqn in equations(jaxpr))


@settings(max_examples=60, deadline=None)
@given(loop=loops(), length=st.integers(2, 4), reverse=st.booleans())
def test_any_loop_gives_what_it_gives_one_by_one(loop, length, reverse):
    carried, rows, *_ = loop
    normal = np.random.default_rng(length).normal
    init = [jnp.asarray(normal(size=2)) for _ in range(carried)]
    xs = [jnp.asarray(normal(size=(length, 2))) for _ in range(rows)]
    const = jnp.asarray(normal(size=2))
    how = {"length": length, "reverse": reverse, "unroll": 1}

    def total(scan):
        def of(const, init, xs):
            carry, ys = scan(as_body(loop, const), init, xs, **how)
            leaves = [jnp.sum(jnp.sin(x)) for x in (*carry, *ys)]
            return sum(leaves), (carry, ys)

        return jax.jit(jax.value_and_grad(of, argnums=(0, 1, 2), has_aux=True))(const, init, xs)

    def fissioned(body, init, xs, **how):
        done = fission.scan(body, init, xs, **how)
        return jax.lax.scan(body, init, xs, **how) if done is None else done

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10),
        total(fissioned),
        total(jax.lax.scan),
    )


@pytest.mark.parametrize("way", [lambda f: f, jax.grad, jax.jit, jax.vmap, jax.hessian])
def test_staging_is_known(way):
    """Under a transformation that executes at once, and under one that stages."""
    x = jnp.ones(2) if way is jax.vmap else jnp.ones(())
    for run, expected in ((way, way is jax.jit), (lambda f: jax.make_jaxpr(way(f)), True)):
        said = []

        def tell(x, said=said):
            said.append(_jax.is_staging())
            return x**2

        run(tell)(x)
        assert said == [expected]


def test_a_gradient_outside_of_jit_is_one_computation():
    program, z = walk(jnp.ones(5)), jnp.arange(5.0)
    gradient = jax.grad(lambda z: ppl.log_density(program, {"z": z}))
    gradient(z)
    with compilations() as again:
        gradient(z)
    assert again.count <= 3  # forward, backward, and what adds them up


def density_of(model):
    """Stage the density of a program with one latent, "z"."""
    return jax.make_jaxpr(lambda z: ppl.log_density(model, {"z": z}))(
        jnp.zeros(model.sites["z"].shape)
    )


@ppl.model
def walk(y):
    def step(z, y):
        z = ppl.sample("z", dist.Normal(0.9 * z, 1.0))
        ppl.sample("y", dist.Normal(z, 1.0), obs=y)
        return z, None

    jax.lax.scan(step, 0.0, y)


@ppl.model
def second_order(y):
    def step(old, y):
        older, old = old
        z = ppl.sample("z", dist.Normal(old - 0.5 * older, 1.0))
        ppl.sample("y", dist.Normal(z, 1.0), obs=y)
        return (old, z), None

    jax.lax.scan(step, (0.0, 1.0), y)


@ppl.model
def counted(y):
    def step(i, z):
        z = ppl.sample("z", dist.Normal(0.9 * z, 1.0 + i))
        ppl.sample("y", dist.Normal(z, 1.0), obs=y[i])
        return z

    jax.lax.fori_loop(0, y.size, step, 0.0)


@ppl.model
def volatile(y):
    """A variance that remembers: only its recurrence must wait."""
    z = ppl.sample("z", dist.Normal(0.0, 1.0))

    def step(variance, y):
        ppl.sample("y", dist.Normal(z, jnp.sqrt(variance)), obs=y)
        return 0.1 + 0.5 * variance + 0.3 * (y - z) ** 2, None

    jax.lax.scan(step, 1.0, y)


@ppl.model
def branching(y):
    """A branch whose other side has no finite derivative at zero."""

    def step(z, y):
        scale = jax.lax.cond(z > 0.0, lambda: jnp.sqrt(z) + 1.0, lambda: 1.0)
        z = ppl.sample("z", dist.Normal(0.0, scale))
        ppl.sample("y", dist.Normal(z, 1.0), obs=y)
        return z, None

    jax.lax.scan(step, 0.0, y)


def by_hand(model, y, z):
    """Give the densities of the models above, iteration by iteration."""
    normal = lambda x, m, s: dist.Normal(m, s).log_prob(x)  # noqa: E731
    total, older, old, variance = 0.0, 0.0, 1.0 if model is second_order else 0.0, 1.0
    if model is volatile:
        total += normal(z, 0.0, 1.0)
    for i, yi in enumerate(y):
        if model is volatile:
            total += normal(yi, z, jnp.sqrt(variance))
            variance = 0.1 + 0.5 * variance + 0.3 * (yi - z) ** 2
            continue
        mean = {walk: 0.9 * old, second_order: old - 0.5 * older, counted: 0.9 * old}.get(model, 0)
        scale = 1.0 + i if model is counted else 1.0
        if model is branching and old > 0:
            scale = jnp.sqrt(old) + 1.0
        total += normal(z[i], mean, scale) + normal(yi, z[i], 1.0)
        older, old = old, z[i]
    return total


MODELS = [walk, second_order, counted, volatile, branching]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_densities_and_gradients_are_those_of_the_formulas(model):
    y = jnp.asarray([0.5, -1.0, 2.0, 0.25, 0.0])
    z = jnp.asarray(0.3) if model is volatile else jnp.asarray([-0.4, 1.2, 0.3, -2.0, 0.7])
    ours = jax.value_and_grad(lambda z: ppl.log_density(model(y), {"z": z}))(z)
    theirs = jax.value_and_grad(lambda z: by_hand(model, y, z))(z)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-12)
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-12)


@pytest.mark.parametrize(
    ("model", "scans"), [(walk, 0), (second_order, 0), (counted, 0), (volatile, 1), (branching, 1)]
)
def test_only_what_must_wait_is_a_loop(model, scans):
    program = model(jnp.ones(5))
    assert count(density_of(program), "scan") == scans
    real = ppl.unconstrain(program)
    assert (
        count(jax.make_jaxpr(lambda v: real.log_density(v))(jnp.ones(real.size)), "scan") == scans
    )


def test_what_is_the_same_in_every_iteration_is_computed_once():
    program = walk(jnp.ones(5))
    logs = [e for e in equations(density_of(program)) if e.primitive.name == "log"]
    assert logs
    assert all(e.outvars[0].aval.shape == () for e in logs)


def test_loops_that_draw_are_left_as_they_are():
    program = walk(jnp.ones(5))
    jaxpr = jax.make_jaxpr(lambda k: ppl.trace(program, k).log_weight)(jax.random.key(0))
    assert count(jaxpr, "scan") == 1


def test_a_loop_too_large_to_hold_is_left_as_it_is(monkeypatch):
    monkeypatch.setattr(fission, "_AT_ONCE", 100)
    assert count(density_of(walk(jnp.ones(5))), "scan") == 1


def test_a_checkpoint_in_a_loop_is_left_there():
    @ppl.model
    def saving(y):
        def step(z, y):
            z = ppl.sample("z", dist.Normal(jax.checkpoint(jnp.sin)(z), 1.0))
            ppl.sample("y", dist.Normal(z, 1.0), obs=y)
            return z, None

        jax.lax.scan(step, 0.0, y)

    jaxpr = density_of(saving(jnp.ones(5)))
    (loop,) = [e for e in equations(jaxpr) if e.primitive.name == "scan"]
    assert count(loop.params["jaxpr"], "remat2") == 1
    assert count(loop.params["jaxpr"], "sub") == 0


def test_a_function_of_the_host_is_called_iteration_by_iteration():
    """It may not be mapped: without a `vmap_method`, JAX refuses."""
    like = jax.ShapeDtypeStruct((), float)

    @ppl.model
    def calling(y):
        def step(z, y):
            z = ppl.sample("z", dist.Normal(jax.pure_callback(np.sin, like, z), 1.0))
            ppl.sample("y", dist.Normal(z, 1.0), obs=y)
            return z, None

        jax.lax.scan(step, 0.0, y)

    y, z = np.asarray([0.5, -1.0, 2.0]), np.asarray([0.3, 0.7, -0.2])
    normal = lambda x, mean: dist.Normal(mean, 1.0).log_prob(x)  # noqa: E731
    expected = normal(z, np.sin([0.0, *z[:-1]])).sum() + normal(y, z).sum()
    np.testing.assert_allclose(ppl.log_density(calling(y), {"z": z}), expected, rtol=1e-12)


def test_prints_of_a_loop_stay_in_order(capfd):
    @ppl.model
    def talking(y):
        def step(z, x):
            i, y = x
            jax.debug.print("at {i}", i=i, ordered=True)
            z = ppl.sample("z", dist.Normal(z, 1.0))
            ppl.sample("y", dist.Normal(z, 1.0), obs=y)
            return z, None

        jax.lax.scan(step, 0.0, (jnp.arange(y.size), y))

    jax.block_until_ready(ppl.log_density(talking(jnp.ones(3)), {"z": jnp.ones(3)}))
    jax.effects_barrier()
    assert [line for line in capfd.readouterr().out.splitlines() if "at" in line] == [
        "at 0",
        "at 1",
        "at 2",
    ]
