"""`stream`: exact on finite programs, right on a Gaussian one, the same however it is fed."""

import functools
import math
import os
import types

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.errors import ArgumentError, ObservationError, ResultError, UnsupportedError
from ppl.inference.smc import smc
from ppl.inference.stream import BLOCK, Stream, stream
from ppl.semantics.guided import guided
from ppl.staging import stage
from tests.compiling import compilations
from tests.laws import digest, same
from tests.zoo import linear_gaussian, linear_gaussian_answer

Y = np.random.default_rng(1).normal(size=70).astype(np.float32)
NONE = Y[:0]
TABLE = [[0.8, 0.2], [0.5, 0.5], [0.1, 0.9]]


# --- Models -------------------------------------------------------------------------------------


@ppl.model
def fed(p, y):
    """Draws and a score before the loop, any program in it, and a draw after it."""
    table = jnp.array(TABLE)
    a = ppl.sample("a", dist.Bernoulli(0.3))
    ppl.factor("tilt", -2.0 * a)
    b = ppl.sample("b", dist.Bernoulli(0.6))

    def step(s, row):
        s = (s + digest(p()) + a) % 3
        ppl.sample("row", dist.Categorical(table[s]), obs=row)
        return s, None

    s, _ = jax.lax.scan(step, b, y)
    return s, a, ppl.sample("next", dist.Bernoulli(table[s, 1]))


@ppl.model
def coin():
    return ppl.sample("coin", dist.Bernoulli(0.4))


@ppl.model
def coins():
    def toss(s, _):
        c = ppl.sample("c", dist.Bernoulli(jnp.where(s == 1, 0.7, 0.4)))
        ppl.factor("f", -0.5 * c)
        return c, None

    return jax.lax.scan(toss, 0, None, length=2)[0]


@ppl.model
def timed(y, x, rate):
    """Two arguments that are scanned, one of them a tree, a count of time, and one that is not."""

    def step(s, now):
        t, y, x = now
        s = ppl.sample("s", dist.Normal(rate * s + x["shift"], 1.0 + 0.1 * t))
        with ppl.plate("side", 2):
            ppl.sample("y", dist.Normal(s, x["sd"]), obs=y)
        return s, None

    return jax.lax.scan(step, jnp.zeros(2), (jnp.arange(y.shape[0]), y, x))[0]


@ppl.model
def counts(y):
    def step(s, y):
        s = ppl.sample("s", dist.Gamma(2.0, 1.0))
        ppl.sample("y", dist.Poisson(s), obs=y)
        return s, None

    return jax.lax.scan(step, 0.0, y)[0]


@ppl.model
def guide(y):
    def step(s, y):
        return ppl.sample("x", dist.Normal(0.7 * y + 0.2 * s, 0.5)), None

    jax.lax.scan(step, 0.0, y)


# --- The law ------------------------------------------------------------------------------------


def composed(plan, fixed, rows):
    """All that a stream does, as one program: the start, a `scan` of its step, the end."""
    state = plan.start(fixed)

    def step(state, row):
        state, latest, _ = plan.step(state, row)
        return state, latest

    state, latest = jax.lax.scan(step, state, rows)
    return plan.finish(state, jax.tree.map(lambda x: x[-1], latest))


def law(model, y, count, change=lambda plan: None, **settings):
    made = Stream(model(y[:0]), count, **settings)
    plan = made._plan
    change(plan)
    program = stage(composed, (plan, made._fixed, [y] * len(made._feed.sources)))
    return ppl.enumerate(ppl.extract(program))


@pytest.mark.parametrize("threshold", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("model", [coin, coins])
def test_a_scan_of_steps_has_the_measure_of_the_program(x64, model, threshold):
    y = np.array([1, 0, 1] if model is coin else [1, 0])  # coins have many worlds
    p = functools.partial(fed, model())
    same(law(p, y, 2, ess_threshold=threshold, resample="multinomial"), p(y))


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@hypothesis.settings(max_examples=12, database=None, deadline=None)
@hypothesis.given(
    ppl.check.programs(size=4, max_worlds=4),
    st.sampled_from(["multinomial", "systematic", "ssp"]),
    st.sampled_from([0.7, 1.0]),
)
def test_any_program_in_the_loop(program, scheme, threshold):
    y = np.array([1, 0])
    p = functools.partial(fed, program)
    same(law(p, y, 2, ess_threshold=threshold, resample=scheme), p(y))


def forgets_evidence(plan):
    step = plan.step

    def broken(self, state, row):
        new, *rest = step(state, row)
        return new._replace(evidence=state.evidence), *rest

    plan.step = types.MethodType(broken, plan)


def leaves_constants_behind(plan):
    step = plan.step

    def broken(self, state, row):
        new, *rest = step(state, row)
        stale = {k: x for k, x in state.own.items() if k.startswith("constant")}
        assert stale
        return new._replace(own={**new.own, **stale}), *rest

    plan.step = types.MethodType(broken, plan)


@pytest.mark.parametrize("mutant", [forgets_evidence, leaves_constants_behind])
def test_mutants_are_found(x64, mutant):
    y = np.array([1, 0, 1])
    p = functools.partial(fed, coin())
    with pytest.raises(AssertionError):
        same(law(p, y, 2, mutant, ess_threshold=0.9, resample="stratified"), p(y))


def test_against_the_kalman_filter():
    """|z| < 5 in each of two tests: false alarms about once in a million."""
    y, runs = Y[:30], 300
    means, _, evidence = linear_gaussian_answer(y)
    for proposal in (None, guide(NONE)):
        made = [
            stream(linear_gaussian(NONE), 50, key=k, proposal=proposal).feed_many(y)
            for k in range(runs)
        ]
        ratio = np.exp([s.log_evidence - evidence for s in made])
        populations = [s.population for s in made]
        weights = np.array([p.weights for p in populations], float)
        centred = np.array([p.choices["x"] for p in populations], float) - means[-1]
        # The estimate of the unnormalised expectation is unbiased; the normalised one is not.
        for x in (ratio - 1, ratio * (weights * centred).sum(1)):
            z = x.mean() / (x.std(ddof=1) / math.sqrt(runs))
            assert abs(z) < 5, z


# --- The same however it is fed -----------------------------------------------------------------


def everything(s):
    """Every bit of what a stream holds."""
    leaves = jax.tree.leaves(s._now[:2])
    return [np.asarray(x) for x in leaves]


def identical(one, two):
    return all(np.array_equal(a, b) for a, b in zip(everything(one), everything(two), strict=True))


def test_chunks_change_no_bit():
    one = stream(linear_gaussian(NONE), 50, key=3)
    for y in Y:
        assert one.feed(y) is one
    assert one.num_steps == len(Y) > 2 * BLOCK
    for sizes in ([0, 70], [0, 1, 33, 32, 4], [10, 0, 60]):
        begun = stream(linear_gaussian(Y[: sizes[0]]), 50, key=3)
        for a, b in zip(np.cumsum(sizes), sizes[1:], strict=False):
            begun.feed_many(Y[a : a + b])
        assert identical(begun, one)
    assert not identical(stream(linear_gaussian(NONE), 50, key=4).feed_many(Y), one)


@pytest.mark.parametrize("proposal", [False, True])
def test_random_numbers_are_those_of_smc(proposal):
    y = Y[:40]
    program = linear_gaussian(y)
    s = stream(linear_gaussian(NONE), 50, key=5, proposal=guide(NONE) if proposal else None)
    s.feed_many(y)
    if proposal:
        program = guided(program, guide(y))
    whole = ppl.run(smc(program, 50), 5)
    mine = s.population
    np.testing.assert_allclose(mine.choices["x"], whole.choices["x"][:, -1], rtol=1e-4)
    np.testing.assert_allclose(mine.log_evidence, whole.log_evidence, rtol=1e-5)
    np.testing.assert_allclose(mine.log_evidence_se, whole.log_evidence_se, rtol=1e-4)
    np.testing.assert_array_equal(mine.steps["resampled"], whole.steps["resampled"])
    np.testing.assert_allclose(mine.steps["ess"], whole.steps["ess"], rtol=1e-3)
    np.testing.assert_allclose(mine.steps["log_evidence"], whole.steps["log_evidence"], rtol=1e-4)


def test_memory_is_constant_and_nothing_is_compiled():
    s = stream(linear_gaussian(NONE), 50)
    s.feed_many(Y[:10])
    sizes, _ = [x.nbytes for x in everything(s)], s.population
    live = len(jax.live_arrays())
    with compilations() as again:
        for k in range(1000):
            s.feed(Y[k % 70])
        other = stream(linear_gaussian(NONE), 50, key=1)
        for n in range(1, 40, 7):
            other.feed_many(Y[:n])
        assert other.population.num_particles == 50
        del other
    assert again.count == 0
    assert s.num_steps == 1010
    assert [x.nbytes for x in everything(s)] == sizes
    assert len(jax.live_arrays()) <= live + 2


def test_evidence_of_a_long_stream_keeps_its_digits():
    @ppl.model
    def tilted(y):
        def step(s, y):
            c = ppl.sample("c", dist.Bernoulli(0.5))
            ppl.factor("f", y + c / 1024)
            return c, None

        return jax.lax.scan(step, 0, y)[0]

    count = 20_000
    s = stream(tilted(NONE), 2, ess_threshold=1.0).feed_many(np.full(count, -100.0, np.float32))
    each = -100 + math.log((1 + math.exp(1 / 1024)) / 2)
    naive = np.add.accumulate(np.full(count, each, np.float32))[-1]
    # Five standard deviations of the estimate, and at most half a unit in the last place a step.
    bound = 5 * math.sqrt(count / 2) / 2048 + count * 2.0**-18
    assert abs(s.log_evidence - count * each) < bound < abs(naive - count * each)


# --- What is known ------------------------------------------------------------------------------


def test_population_of_the_moment():
    s = stream(fed(coin(), np.zeros(0, np.int32)), 8, key=2, ess_threshold=1.0)
    before = s.population
    assert set(before.choices) == {"a", "b", "next"}
    assert before.steps == {}
    assert (s.num_steps, s.ess) == (0, 8)
    s.feed_many(np.array([1, 0, 1], np.int32))
    now = s.population
    state, a, following = now.values
    assert set(now.choices) == {"a", "b", "coin", "next"}
    assert all(x.shape == (8,) for x in (*now.choices.values(), state))
    np.testing.assert_array_equal(a, now.choices["a"])
    np.testing.assert_array_equal(following, now.choices["next"])
    assert now.steps["ess"].shape == (3,)
    whole = ppl.run(smc(fed(coin(), np.array([1, 0, 1], np.int32)), 8, ess_threshold=1.0), 2)
    jax.tree.map(np.testing.assert_array_equal, now.values, whole.values)
    assert len(set(np.asarray(state))) > 1
    assert now.log_evidence == pytest.approx(float(whole.log_evidence), rel=1e-6)
    assert now.log_evidence_se == pytest.approx(float(whole.log_evidence_se), rel=1e-4, nan_ok=True)
    assert now.log_evidence == pytest.approx(s.log_evidence, rel=1e-6)
    assert repr(s).startswith("Stream(fed, num_particles=8): 3 rows")
    assert s.num_particles == 8


def test_values_that_need_every_iteration_are_none():
    assert stream(linear_gaussian(NONE), 50).feed_many(Y[:2]).population.values is None


def test_several_arguments_by_name():
    y, shift, sd = (np.random.default_rng(2).uniform(1, 2, (6, 2)).astype("f4") for _ in range(3))
    whole = stream(timed(y, {"shift": shift, "sd": sd}, 0.9), 10)
    s = stream(timed(y[:0], {"shift": shift[:0], "sd": sd[:0]}, 0.9), 10)
    s.feed(y=y[0], x={"shift": shift[0], "sd": sd[0]})
    s.feed_many(y=y[1:], x={"shift": shift[1:], "sd": sd[1:]})
    assert identical(s, whole)
    with pytest.raises(ArgumentError, match=r"no argument 'x'"):
        s.feed(y=y[0])
    with pytest.raises(ArgumentError, match=r"unknown argument 'z'.*feed\(y=\.\.\., x=\.\.\.\)"):
        s.feed(y=y[0], x={}, z=1)
    with pytest.raises(ArgumentError, match="without a name"):
        s.feed(y[0], {"shift": shift[0], "sd": sd[0]})
    with pytest.raises(ArgumentError, match="structure"):
        s.feed(y=y[0], x={"shift": shift[0]})
    with pytest.raises(ArgumentError, match=r"\[1, 2\] rows"):
        s.feed_many(y=y[:1], x={"shift": shift[:2], "sd": sd[:2]})
    assert identical(s, whole)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (np.zeros(2, np.int32), r"int32 of shape \(2,\).*needs int32 of shape \(\)"),
        (np.zeros((), np.float32), r"float32 of shape \(\).*needs int32"),
        (1.0, "needs int32"),
        ("a", "needs int32"),
        (None, "structure"),
    ],
)
def test_rows_of_another_kind_are_refused(row, text):
    s = stream(counts(np.zeros(0, np.int32)), 4).feed(3)
    held = everything(s)
    with pytest.raises(ArgumentError, match=text):
        s.feed(row)
    assert all(a is b or np.array_equal(a, b) for a, b in zip(held, everything(s), strict=True))


def test_impossible_data_are_refused():
    with pytest.raises(ObservationError, match=r'nan at .*at "y"'):
        stream(linear_gaussian(NONE), 4).feed(np.nan)
    with pytest.raises(ObservationError, match=r'-1 at index \(1,\).*at "y"'):
        stream(counts(np.zeros(0, np.int32)), 4).feed_many(np.array([1, -1], np.int32))


# --- Files --------------------------------------------------------------------------------------


def test_a_stream_goes_on_from_a_file(tmp_path):
    path = tmp_path / "filter.npz"
    s = stream(linear_gaussian(NONE), 50, key=7).feed_many(Y[:33])
    s.save(path)
    again = Stream.load(path, linear_gaussian(NONE), 50)
    assert identical(s, again)
    assert jax.tree.all(jax.tree.map(np.array_equal, s.population.steps, again.population.steps))
    s.feed_many(Y[33:])
    for y in Y[33:]:
        again.feed(y)
    assert identical(s, again)
    fresh = stream(fed(coin(), np.zeros(0, np.int32)), 4)
    fresh.save(path)  # over the old file
    assert identical(fresh, Stream.load(path, fed(coin(), np.zeros(0, np.int32)), 4))
    assert os.listdir(tmp_path) == ["filter.npz"]


@pytest.mark.parametrize(
    ("program", "settings", "text"),
    [
        (linear_gaussian(NONE), {"num_particles": 9}, "num_particles 9 .*needs 8"),
        (linear_gaussian(NONE), {"resample": "ssp"}, "resample SSP.*needs Systematic"),
        (linear_gaussian(NONE), {"ess_threshold": 0.6}, "ess_threshold 0.6"),
        (linear_gaussian(NONE, a=0.9), {}, "loop .*needs"),
        (linear_gaussian(NONE), {"proposal": guide(NONE)}, "sites "),
        (counts(np.zeros(0, np.int32)), {}, "sites "),
    ],
)
def test_files_of_other_streams_are_refused(tmp_path, program, settings, text):
    path = str(tmp_path / "filter.npz")
    stream(linear_gaussian(NONE), 8).save(path)
    with pytest.raises(ResultError, match=f"Stream.load got {text}"):
        Stream.load(path, program, **{"num_particles": 8, **settings})


def test_other_arguments_and_other_files_are_refused(tmp_path):
    path = str(tmp_path / "filter.npz")
    x = {"shift": np.zeros((0, 2), "f4"), "sd": np.ones((0, 2), "f4")}
    stream(timed(x["sd"], x, np.float32(0.9)), 8).save(path)
    with pytest.raises(ResultError, match="got arguments"):
        Stream.load(path, timed(x["sd"], x, np.float32(0.8)), 8)
    with pytest.raises(ArgumentError, match="with 3 rows"):
        Stream.load(path, linear_gaussian(Y[:3]), 8)
    ppl.run(ppl.importance(linear_gaussian(Y[:3]), 4), 0).save(path)
    with pytest.raises(ResultError, match="kind 'population'"):
        Stream.load(path, linear_gaussian(NONE), 8)


# --- Failures -----------------------------------------------------------------------------------


@ppl.model
def doomed(y):
    def step(s, y):
        x = ppl.sample("x", dist.Bernoulli(0.5))
        ppl.factor("f", jnp.where(x >= 0, y, 0.0))
        return x, None

    return jax.lax.scan(step, 0, y)[0]


@pytest.mark.parametrize("bad", [-np.inf, np.nan])
def test_no_particle_left(bad):
    s = stream(doomed(NONE), 4).feed_many(np.array([0.0, -1.0], "f4"))
    held = everything(s)
    with pytest.raises(ResultError, match=r"at step 4; .*as it was before the call"):
        s.feed_many(np.array([0.0, bad, 0.0], "f4"))
    assert all(np.array_equal(a, b) for a, b in zip(held, everything(s), strict=True))
    assert s.feed(0.0).num_steps == 3
    with pytest.raises(ResultError, match="at step 1;"):
        stream(doomed(NONE), 4).feed(bad)


def test_an_interrupted_call_changes_nothing(monkeypatch):
    s = stream(linear_gaussian(NONE), 50).feed(0.1)
    held, calls = everything(s), []
    block = ppl.inference.stream._block

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return block(*args)

    monkeypatch.setattr(ppl.inference.stream, "_block", interrupted)
    with pytest.raises(KeyboardInterrupt):
        s.feed_many(Y)
    assert len(calls) == 2
    assert all(np.array_equal(a, b) for a, b in zip(held, everything(s), strict=True))


def step_of(s, y):
    x = ppl.sample("x", dist.Normal(s, 1.0))
    ppl.sample("y", dist.Normal(x, 1.0), obs=y)
    return x, x


REFUSED = {
    "no loop": (lambda y: ppl.factor("f", jnp.sum(y)), "with 0 loops"),
    "two loops": (
        lambda y: [
            jax.lax.scan(lambda s, r, a=a: (s, ppl.sample(a, dist.Normal(s, 1.0), obs=r)), 0.0, y)
            for a in ("one", "two")
        ],
        'with 2 loops.*"one".*"two"',
    ),
    "reverse": (lambda y: jax.lax.scan(step_of, 0.0, y, reverse=True)[0], "runs backwards"),
    "no data": (
        lambda y: jax.lax.scan(lambda s, _: step_of(s, 0.0), 0.0, None, length=3)[0],
        "has no data",
    ),
    "transformed": (
        lambda y: jax.lax.scan(step_of, 0.0, jnp.exp(y))[0],
        "result of 'exp'.*compute inside the loop",
    ),
    "closure": (lambda y: jax.lax.scan(step_of, 0.0, Y[:3])[0], "closes over"),
    "random rows": (
        lambda y: jax.lax.scan(
            step_of,
            0.0,
            ppl.sample("z", dist.Normal(jnp.zeros(y.shape[0]), 1.0).to_event(1)),
        )[0],
        "on draws",
    ),
    "constant": (
        lambda y: jax.lax.scan(lambda s, r: step_of(s, r - jnp.mean(y)), 0.0, y)[0],
        "reads all rows, as a whole",
    ),
    "initial": (
        lambda y: jax.lax.scan(step_of, jnp.sum(y), y)[0],
        "the loop at .* reads all rows, through '.*sum",
    ),
    "statement": (
        lambda y: (ppl.factor("f", jnp.sum(y)), jax.lax.scan(step_of, 0.0, y)[0])[1],
        'the statement at "f"',
    ),
    "score after": (
        lambda y: ppl.factor("end", jax.lax.scan(step_of, 0.0, y)[0]),
        'scores after its loop, at "end"',
    ),
    "part": (
        lambda y: jax.lax.scan(step_of, 0.0, y["y"])[0],
        "a part of the argument 'y'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_programs_that_cannot_be_fed_are_refused(case):
    fun, text = REFUSED[case]
    y = {"y": Y[:3], "n": Y[:3]} if case == "part" else Y[:3]
    with pytest.raises((UnsupportedError, ArgumentError), match=text):
        stream(ppl.model(fun)(y), 4)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_particles": 0},
        {"num_particles": 2.5},
        {"num_particles": 4, "ess_threshold": 2.0},
        {"num_particles": 4, "resample": "best"},
        {"num_particles": 4, "proposals": None},
    ],
)
def test_settings_are_checked(settings):
    with pytest.raises(ArgumentError, match="Fix: "):
        stream(linear_gaussian(NONE), **settings)
