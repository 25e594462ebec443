"""`ppl.vi.fit`: the steps it takes, how it is run, stopped, averaged, and what it gives."""

from __future__ import annotations

import signal
import threading
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ppl
import ppl.distributions as dist
from ppl.errors import InitializationError, ResultError
from ppl.inference.vi import ahead, elbo
from ppl.inference.vi.fit import fit
from ppl.inference.vi.optimizers import as_optimizer
from ppl.inference.vi.stopping import Plateau
from ppl.semantics import blocks, lanes
from tests.compiling import compilations


@ppl.model
def parabola(loc):
    z = ppl.sample("z", dist.Normal(loc, 1.0).to_event(1))
    return jnp.sum((z - 3.0) ** 2)


@ppl.model
def exact(x):
    """No draws at all: every step is known."""
    return jnp.sum(jnp.cos(x["a"]) * jnp.arange(3.0)) + x["b"] ** 2


START = {"a": jnp.array([0.3, -0.2, 1.0]), "b": jnp.array(2.0)}
Y = np.array([0.4, 1.9, -0.3, 2.2], np.float32)


@ppl.model
def normal(y):
    mu = ppl.sample("mu", dist.Normal(0.0, 1.0))
    with ppl.plate("n", len(y)):
        ppl.sample("y", dist.Normal(mu, 1.0), obs=y)


@ppl.model
def guide(params):
    return ppl.sample("mu", dist.Normal(params["loc"], jnp.exp(params["log_scale"])))


GUIDE = {"loc": jnp.array(-1.0), "log_scale": jnp.array(-1.0)}


def run(objective, params, steps=60, key=0, **options):
    options = {"maximize": False, "optimizer": optax.sgd(0.05), **options}
    program = fit(objective, params, num_steps=steps, **options)
    return ppl.run(program, key, progress=False)


def noisy(steps=60, key=0, **options):
    return run(parabola, jnp.zeros(3), steps, key, **options)


def same(one, other):
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(x, y)


# --- The steps ----------------------------------------------------------------------------------


def by_hand(optimizer, steps):
    @jax.jit
    def step(x, memory):
        objective = lambda x: jnp.sum(jnp.cos(x["a"]) * jnp.arange(3.0)) + x["b"] ** 2  # noqa: E731
        value, gradient = jax.value_and_grad(objective)(x)
        updates, memory = optimizer.update(gradient, memory, x)
        return value, optax.apply_updates(x, updates), memory

    x = jax.tree.map(lambda x: jnp.asarray(x, float), START)
    memory, values, path = optimizer.init(x), [], []
    for _ in range(steps):
        value, x, memory = step(x, memory)
        values.append(value)
        path.append(x)
    return np.array(values), jax.tree.map(lambda *xs: np.stack(xs), *path)


def test_steps_are_those_of_the_optimizer(x64):
    optimizer = optax.adamw(optax.cosine_decay_schedule(0.3, 40))
    values, path = by_hand(optimizer, 50)
    start = jax.tree.map(lambda x: jnp.asarray(x, float), START)
    found = run(exact, start, 50, optimizer=optimizer)
    np.testing.assert_allclose(found.values, values, rtol=1e-12)
    np.testing.assert_allclose(found.params["a"], path["a"][-1], rtol=1e-12)
    climbed = run(lambda x: negated(x), start, 50, optimizer=optimizer, maximize=True)
    np.testing.assert_allclose(climbed.values, -values, rtol=1e-12)
    np.testing.assert_allclose(climbed.params["a"], path["a"][-1], rtol=1e-12)


@ppl.model
def negated(x):
    return -exact.program(x)()


@pytest.mark.parametrize("fraction", [1.0, 0.5, 0.25])
def test_average(x64, fraction):
    _, path = by_hand(optax.sgd(0.05), 50)
    start = jax.tree.map(lambda x: jnp.asarray(x, float), START)
    found = run(exact, start, 50, average=fraction)
    weights = np.arange(1.0, 51.0) ** (2 / fraction - 2)
    # Polynomial weights are those of the recursion up to the gamma function's ratio: exactly at 1
    # and as (s + p) (s + p - 1) ... / p! for the whole powers that these fractions have.
    power = round(2 / fraction - 2)
    weights = np.array([np.prod([s + j for j in range(power)]) for s in range(1, 51)], float)
    np.testing.assert_allclose(found.params["a"], weights @ path["a"] / weights.sum(), rtol=1e-10)
    np.testing.assert_allclose(found.state.params["a"], path["a"][-1], rtol=1e-12)


@pytest.mark.parametrize("samples", [1, 4])
def test_noise_of_every_step_is_its_own(samples):
    """Steps of constant size on a parabola are a linear recursion: their law is known exactly."""
    size, rate, steps = 2000, 0.05, 30
    found = run(parabola, jnp.zeros(size), steps, num_samples=samples, optimizer=optax.sgd(rate))
    keep = 1 - 2 * rate
    variance = (2 * rate) ** 2 * np.sum(keep ** (2 * np.arange(steps))) / samples
    z = (np.asarray(found.params, float) - 3 * (1 - keep**steps)) / np.sqrt(variance)
    # Each statistic is beyond 4.9 with probability 1e-6.
    assert abs(z.mean()) * np.sqrt(size) < 4.9
    assert abs(np.mean(z**2) - 1) * np.sqrt(size / 2) < 4.9
    assert found.steps == steps
    assert found.skipped == 0


def test_minibatches():
    """Means over runs, whose noise is that of data and draws."""
    y = jnp.asarray(np.random.default_rng(0).normal(1.0, 1.0, 20))
    rate, steps, runs = 0.01, 40, 100

    @ppl.model
    def rows(y):
        mu = ppl.sample("mu", dist.Normal(0.0, 1.0))
        with ppl.plate("n", 20, subsample_size=4) as index:
            ppl.sample("y", dist.Normal(mu, 1.0), obs=y[index])

    @ppl.model
    def fixed(loc):
        return ppl.sample("mu", dist.Normal(loc, 0.2))

    @ppl.model
    def around(y):
        objective = elbo(rows.program(y), fixed.program)
        return fit(objective, jnp.zeros(()), optimizer=optax.sgd(rate), num_steps=steps)()

    found = jax.vmap(lambda key: ppl.run(around(y), key).params)(
        jax.random.split(jax.random.key(0), runs)
    )
    best, keep = float(jnp.sum(y)) / 21, 1 - 21 * rate
    error = np.std(found, ddof=1) / np.sqrt(runs)
    # Beyond 5.3 with probability 1e-6 for Student's t of 99 degrees of freedom.
    assert abs(np.mean(found) - best * (1 - keep**steps)) < 5.3 * error


# --- Running ------------------------------------------------------------------------------------


def test_blocks_and_progress_change_nothing(monkeypatch, capsys):
    whole = noisy()
    program = fit(parabola, jnp.zeros(3), num_steps=60, maximize=False, optimizer=optax.sgd(0.05))
    same(ppl.run(program, 0, progress=True), whole)
    assert capsys.readouterr().err
    monkeypatch.setattr(lanes, "SECONDS", 0.0)
    same(noisy(), whole)
    assert not np.array_equal(noisy(key=1).values, whole.values)


@pytest.mark.parametrize("options", [{}, {"average": 0.5, "stop": Plateau(200)}])
def test_extending_is_running_longer(options):
    longer, short = noisy(150, **options), noisy(40, **options)
    more = short.extend(70, progress=False)
    assert (len(short.values), len(more.values)) == (40, 110)
    same(more.extend(40, progress=False), longer)
    same(short.extend(20, progress=False), noisy(60, **options))  # from the old one, again
    same(more.extend(40, progress=False), longer)
    same(short, noisy(40, **options))


@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals go to the main one"
)
def test_interrupted_and_taken_up_again(monkeypatch, tmp_path):
    path, whole = str(tmp_path / "fit"), noisy(90)
    block, left = blocks._block, [50]

    def pressing(*args):
        left[0] -= 1
        if not left[0]:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.1)
        return block(*args)

    options = {"maximize": False, "optimizer": optax.sgd(0.05), "num_steps": 90}
    with monkeypatch.context() as patch:
        patch.setattr(lanes, "SECONDS", 0.0)  # blocks of one step
        patch.setattr(blocks, "_block", pressing)
        try:
            part = ppl.run(fit(parabola, jnp.zeros(3), **options), 0, checkpoint=path)
        except KeyboardInterrupt:  # it would end the tests
            pytest.fail("the steps that were made are lost")
    made = len(part.values)
    assert 40 < made < 90
    assert made == part.steps == part.state.steps
    np.testing.assert_array_equal(part.values, whole.values[:made])
    again = ppl.run(fit(parabola, jnp.zeros(3), **options), 0, checkpoint=path)
    same(again, whole)
    longer = again.extend(20, progress=False)
    same(longer, noisy(110))
    # The checkpoint is further now: parameters and values are those of one moment.
    same(ppl.run(fit(parabola, jnp.zeros(3), **options), 0, checkpoint=path), longer)


def test_inside_another_program(x64):
    stop = Plateau(5, z=1e3)

    @ppl.model
    def around(start, stop):
        return fit(
            parabola, start, num_steps=60, maximize=False, optimizer=optax.sgd(0.05), stop=stop
        )()

    for rule, steps in ((None, 60), (stop, 10)):
        found = ppl.run(around(jnp.zeros(3), rule), jax.random.key(0))
        assert (found.steps, len(found.values)) == (steps, 60)
        assert np.all(np.isnan(found.values[steps:]))
        with pytest.raises(ResultError, match="extend got a fit"):
            found.extend(1)
    grad = jax.grad(lambda start: jnp.sum(ppl.run(around(start, None), jax.random.key(0)).params))
    # Each step keeps nine tenths of where it starts.
    np.testing.assert_allclose(grad(jnp.ones(3)), 0.9**60, rtol=1e-8)


def test_inside_is_what_a_run_is(x64):
    """Two compilations of one computation: equal up to rounding."""

    @ppl.model
    def around(start):
        return fit(parabola, start, num_steps=40, maximize=False, optimizer=optax.sgd(0.05))()

    key = jax.random.key(3)
    inside = jax.jit(lambda start, key: ppl.run(around(start), key))(jnp.zeros(3), key)
    outside = noisy(40, key)
    np.testing.assert_allclose(inside.values, outside.values, rtol=1e-9)
    np.testing.assert_allclose(inside.params, outside.params, rtol=1e-9)


# --- Compilations -------------------------------------------------------------------------------


def test_nothing_is_compiled_anew():
    def make(scale, shift, rate=0.01):
        objective = elbo(normal(Y + shift), guide)
        start = jax.tree.map(lambda x: x * scale, GUIDE)
        return fit(objective, start, optimizer=optax.adam(rate), num_steps=25)

    ppl.run(make(1.0, 0.0), 0, progress=False).extend(3)
    with compilations() as again:
        ppl.run(make(0.5, 1.0), 1, progress=False).extend(50)
    assert again.count == 0
    with compilations() as again:
        ppl.run(make(0.5, 1.0, 0.02), 1, progress=False)
    assert again.count > 0


def test_optimizers_that_are_made_alike_are_one():
    def schedule(step):
        return 0.1 / (1 + step)

    def known(make):
        return as_optimizer("fit", make())

    for make in (
        lambda: None,
        lambda: optax.adam(0.1),
        lambda: optax.sgd(schedule, momentum=0.9),
        lambda: optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1, b1=0.5)),
    ):
        assert known(make) is known(make)
    makes = (
        lambda: optax.adam(0.1),
        lambda: optax.adam(0.2),
        lambda: optax.adam(0.1, b2=0.99),
        lambda: optax.sgd(0.1),
        lambda: optax.sgd(schedule),
        lambda: optax.sgd(lambda step: 0.1 / (2 + step)),
    )
    assert len({id(known(make)) for make in makes}) == len(makes)
    rates = [0.1]
    listed = [optax.sgd(lambda step, rates=rates: rates[0]) for rates in (rates, [0.2])]
    assert as_optimizer("fit", listed[0]) is not as_optimizer("fit", listed[1])


# --- What is made ahead -------------------------------------------------------------------------


def test_what_is_made_ahead_changes_nothing(x64, monkeypatch):
    """Noise in jitted parts, in a scan, and beside the parameters; and all of it in the step."""

    @ppl.model
    def mixed(loc):
        z = ppl.sample("z", dist.Normal(loc, 1.0).to_event(1))
        shift = ppl.sample("shift", dist.Normal(0.0, 1.0))
        near = jax.jit(lambda z, u: jnp.sum(z * jnp.broadcast_to(u, z.shape)))(z, shift)

        def step(x, _):
            return x + loc[0] * ppl.sample("inner", dist.Normal(0.0, 1.0)), None

        walk, _ = jax.lax.scan(step, near, None, length=3)
        return walk**2 + jnp.sum(z**2)

    options = {"steps": 20, "optimizer": optax.adam(0.05)}
    whole = run(mixed, jnp.ones(3), **options)
    monkeypatch.setattr(ahead, "MOST", 0)
    ahead._known.clear()
    alone = run(mixed, jnp.ones(3), key=0, **options)
    np.testing.assert_allclose(alone.values, whole.values, rtol=1e-9)


# --- Steps that are not finite ------------------------------------------------------------------


@ppl.model
def cliffs(x):
    u = ppl.sample("u", dist.Uniform(0.0, 1.0))
    height = jnp.where(u < 0.25, jnp.nan, jnp.where(u < 0.5, jnp.inf, 0.0))
    edge = jnp.where(u > 0.9, x - jax.lax.stop_gradient(x), 1.0)
    return height + jnp.sqrt(edge) + x  # at 0 the root's derivative is infinite


def test_steps_that_are_not_finite_change_nothing():
    found = run(cliffs, jnp.array(0.0), 200, average=1.0, stop=Plateau(190, z=0.0))
    values = np.asarray(found.values)
    bad = ~np.isfinite(values)
    rise = int(found.skipped) - bad.sum()
    assert bad.sum() > 50
    assert rise > 5
    assert found.steps == 200
    # Every finite step goes down by as much.
    np.testing.assert_allclose(found.state.params, -0.05 * (200 - found.skipped), rtol=1e-5)
    assert f"{int(found.skipped)} of 200 steps" in str(found)
    assert found.summary()["1-20"]["non_finite"] == bad[:20].sum()


def test_starts_that_are_not_finite():
    for objective, match in (
        (lambda x: lost(x), r"one is (nan|-?inf)"),
        (lambda x: steep(x), r"the gradient in params\['b'\] is not finite"),
    ):
        with pytest.raises(InitializationError, match=match):
            run(objective, {"a": jnp.zeros(2), "b": jnp.zeros(())}, 50)
    bad = elbo(normal(np.full(4, 1e30, np.float32)), guide)
    with pytest.raises(InitializationError, match=r'observed site "y".*at a draw of the guide'):
        run(bad, GUIDE, 50, maximize=None)


@ppl.model
def lost(x):
    return jnp.log(-1.0 - x["b"] ** 2) + jnp.sum(x["a"])


@ppl.model
def steep(x):
    return jnp.sqrt(jnp.abs(x["b"])) + jnp.sum(x["a"])


# --- Stopping -----------------------------------------------------------------------------------


def plateau(values, window, z, tolerance):
    """The rule, as its description has it."""
    before = None
    for end in range(window, len(values) + 1, window):
        part = values[end - window : end]
        error = np.sum(np.diff(part) ** 2) / (2 * (window - 1)) / window
        if before is not None:
            least = max(tolerance, z * np.sqrt(error + before[1]))
            if part.mean() - before[0] <= least:
                return end
        before = part.mean(), error
    return len(values)


@pytest.mark.parametrize(("z", "tolerance"), [(2.0, 0.0), (0.0, 0.0), (0.0, 0.1), (3.0, 0.02)])
def test_plateau_is_its_description(x64, z, tolerance):
    rng = np.random.default_rng(1)
    values = 1e6 - np.exp(-np.arange(400) / 50) * 10 + rng.normal(0, 0.3, 400)
    rule = Plateau(20, z, tolerance)

    def step(carry, gain):
        window, stopped = carry
        window, stop = rule.after(window, gain, jnp.isfinite(gain))
        return (window, stopped | stop), stopped | stop

    start = rule.start(jnp.float64), jnp.zeros((), bool)
    _, stopped = jax.lax.scan(step, start, jnp.asarray(values))
    expected = plateau(values, 20, z, tolerance)
    assert 40 <= expected < 400
    assert int(np.argmax(stopped)) + 1 == expected
    holes = np.insert(values, [3, 50, 51], np.nan)  # count in no window
    _, stopped = jax.lax.scan(step, start, jnp.asarray(holes))
    assert int(np.argmax(stopped)) + 1 == expected + 3


def test_a_stopped_fit(x64):
    stop = Plateau(20, z=2.0)
    whole, found = noisy(400), noisy(400, stop=stop)
    made = plateau(-np.asarray(whole.values), 20, 2.0, 0.0)
    assert 40 <= made < 400
    assert found.stopped
    assert len(found.values) == found.steps == made
    np.testing.assert_allclose(found.values, whole.values[:made], rtol=1e-12)
    np.testing.assert_allclose(found.params, noisy(made).params, rtol=1e-12)
    assert found.extend(10) is found
    early = noisy(made - 5, stop=stop)
    assert not early.stopped
    same(early.extend(100, progress=False), found)


# --- Parameters ---------------------------------------------------------------------------------


def test_an_equinox_module():
    class Affine(eqx.Module):
        weight: jax.Array
        activation: object
        scale: float

    start = {"net": Affine(jnp.ones(3), jnp.tanh, 0.5), "bias": 0.25}

    @ppl.model
    def cost(weight, activation, scale, bias):
        return jnp.sum(activation(weight) ** 2) * scale + bias**2

    def objective(p):
        return cost(p["net"].weight, p["net"].activation, p["net"].scale, p["bias"])

    found = run(objective, start, 300).params
    assert isinstance(found["net"], Affine)
    assert found["net"].activation is jnp.tanh
    assert found["net"].scale == 0.5
    assert np.all(np.abs(found["net"].weight) < 0.1)
    assert abs(found["bias"]) < 0.1
