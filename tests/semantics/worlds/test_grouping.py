"""What counts as the same value, and that worlds which agree are joined."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from numpy.testing import assert_allclose
from scipy.special import logsumexp

import ppl
import ppl.distributions as dist
from ppl.semantics.worlds import evaluator
from ppl.semantics.worlds.grouping import Groups, group, largest, log_sum_exp, total, total_of

pytestmark = pytest.mark.usefixtures("x64")


def partition(*columns, tolerance=None):
    """The rows of each group, in order of first rows."""
    rows = len(columns[0])
    codes = group(columns, rows, tolerance).codes
    return sorted([sorted(np.flatnonzero(codes == c).tolist()) for c in np.unique(codes)])


INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_equal_exactly_up_to_the_ends_of_their_range(dtype):
    info = np.iinfo(dtype)
    x = np.array([info.max, info.min, info.max - 1, info.max, info.min + 1, info.min], dtype)
    assert partition(x) == [[0, 3], [1, 5], [2], [4]]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
def test_floats_are_equal_up_to_a_tolerance_of_their_precision(dtype):
    tolerance = {"float64": 1e-9, "float32": 1e-5}.get(dtype, 1e-2)
    for size in (1.0, 1000.0):
        x = np.array([size, size * (1 + 0.5 * tolerance), -size, size * (1 + 3 * tolerance)])
        x = x.astype(jnp.dtype(dtype))
        assert partition(x) == [[0, 1], [2], [3]]


def test_the_tolerance_is_absolute_near_zero_and_can_be_set():
    x = np.array([0.0, 5e-10, 3e-9])
    assert partition(x) == [[0, 1], [2]]
    assert partition(x, tolerance=1e-8) == [[0, 1, 2]]
    assert partition(x, tolerance=0.0) == [[0], [1], [2]]
    assert partition(np.array([1.0, 1.0 + 2e-16]), tolerance=0.0) == [[0], [1]]


def test_zeros_infinities_and_nans():
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, np.inf, -np.nan, 1e308, -np.inf])
    assert partition(x) == [[0, 1], [2, 5], [3, 8], [4, 6], [7]]
    assert partition(x, tolerance=0.0) == [[0, 1], [2, 5], [3, 8], [4, 6], [7]]
    assert partition(np.array([np.nan, np.nan])) == [[0, 1]]
    assert partition(np.array([np.inf, np.inf])) == [[0, 1]]


def test_bools_complex_numbers_keys_and_many_columns():
    assert partition(np.array([True, False, True])) == [[0, 2], [1]]
    assert partition(np.array([1 + 2j, 1 - 2j, 1 + 2j, 2 + 2j])) == [[0, 2], [1], [3]]
    assert partition(jax.random.wrap_key_data(np.array([[1, 2], [1, 3], [1, 2]], np.uint32))) == [
        [0, 2],
        [1],
    ]
    rng = np.random.default_rng(0)
    wide = rng.integers(0, 2**40, (6, 8))[[0, 1, 2, 0, 1, 5]]  # codes would overflow 64 bits
    assert partition(wide, np.zeros(6)) == [[0, 3], [1, 4], [2], [5]]
    assert partition(wide.astype(float), wide) == [[0, 3], [1, 4], [2], [5]]


def test_no_rows_no_columns_and_empty_columns():
    assert group([], 3).number == 1
    assert group([np.zeros((3, 0))], 3).number == 1
    assert group([np.zeros((0, 2))], 0) == Groups(*[pytest.approx(np.zeros(0))] * 2)
    assert group([], 0).number == 0


def test_sums_within_groups_are_those_of_logsumexp():
    rng = np.random.default_rng(1)
    logs = np.append(rng.normal(size=9) * 300, [-np.inf, -np.inf, -2000.0])
    codes = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 0, 4])
    groups = Groups(codes, np.array([0, 1, 2, 9, 11]))
    wanted = [logsumexp(logs[codes == c]) for c in range(5)]
    assert_allclose(total(logs, groups), wanted, rtol=1e-12)
    assert_allclose(largest(logs, groups), [logs[codes == c].max() for c in range(5)])
    assert log_sum_exp(logs) == pytest.approx(logsumexp(logs), rel=1e-12)
    assert log_sum_exp(np.zeros(0)) == -np.inf
    assert_allclose(total_of(np.log([0.2, 0.3]), np.array([2, 2]), 4)[2], np.log(0.5))


# --- Joining, seen from outside -----------------------------------------------------------------


@pytest.fixture
def widths(monkeypatch):
    """The numbers of worlds that were left after each joining."""
    found = []
    join = evaluator.Evaluator.join

    def counted(self, state, arrays):
        result = join(self, state, arrays)
        found.append(result[0].worlds)
        return result

    monkeypatch.setattr(evaluator.Evaluator, "join", counted)
    return found


def forward(initial, p, likelihood):
    """The forward algorithm: log evidence and the law of the last state."""
    alpha, log_evidence = initial.copy(), 0.0
    for t, row in enumerate(likelihood):
        alpha = (alpha if t == 0 else alpha @ p) * row
        log_evidence += np.log(alpha.sum())
        alpha /= alpha.sum()
    return log_evidence, alpha


def test_a_long_hidden_markov_model_costs_what_the_forward_algorithm_costs(widths):
    steps, states = 200, 4
    rng = np.random.default_rng(2)
    initial, p = rng.dirichlet(np.ones(states)), rng.dirichlet(np.ones(states), states)
    means, y = rng.normal(size=states), rng.normal(size=steps)

    @ppl.model
    def hmm(initial, p, means, y):
        z = ppl.sample("z0", dist.Categorical(probs=initial))
        ppl.sample("y0", dist.Normal(means[z], 0.5), obs=y[0])

        def step(z, y):
            z = ppl.sample("z", dist.Categorical(probs=p[z]))
            ppl.sample("y", dist.Normal(means[z], 0.5), obs=y)
            return z, z

        return lax.scan(step, z, y[1:])[0]

    measure = ppl.enumerate(hmm(*map(jnp.array, (initial, p, means, y))))
    likelihood = np.exp(-0.5 * ((y[:, None] - means) / 0.5) ** 2) / (0.5 * np.sqrt(2 * np.pi))
    log_evidence, last = forward(initial, p, likelihood)
    assert_allclose(measure.log_evidence, log_evidence, rtol=1e-12)
    assert_allclose(measure.normalize().masses, last, rtol=1e-10)
    assert len(widths) > steps
    assert max(widths) <= states


def test_worlds_in_branches_loops_and_calls_are_joined(widths):
    """Sums of 20 coins drawn under a jit, in a branch, in a scan: 21 values and never more."""

    @ppl.model
    def model():
        coin = jax.jit(lambda: ppl.sample("x", dist.Bernoulli(0.5)))

        def step(c, _):
            return c + lax.cond(c % 2 == 0, lambda: coin(), lambda: coin()), None

        return lax.scan(step, 0, None, length=20)[0]

    measure = ppl.enumerate(model())
    assert_allclose(measure.mass(10), 184756 / 2**20, rtol=1e-10)
    assert max(widths) <= 42


def walk(size, tolerance=None):
    def model():
        step = lambda c, _: (c + size * ppl.sample("x", dist.Bernoulli(0.5)), c)  # noqa: E731
        return lax.scan(step, 1.0, None, length=2)

    return ppl.enumerate(ppl.model(model)(), tolerance=tolerance)


def test_float_values_are_joined_in_carries_and_outputs_by_the_tolerance():
    """c is 1, 1 + s or 1 + 2 s, and the output tells which coin came first: four points."""
    assert len(walk(1e-10)) == 1
    assert len(walk(1e-7)) == 4
    assert len(walk(1e-10, tolerance=1e-12)) == 4
    assert len(walk(1e-10, tolerance=0.0)) == 4
    assert len(walk(1e-3, tolerance=1e-2)) == 1
    with jax.enable_x64(False):
        assert len(walk(1e-6)) == 1
        assert len(walk(1e-4)) == 4


def test_what_is_not_finite_is_a_value_like_others():
    @ppl.model
    def model():
        k = ppl.sample("k", dist.Categorical(probs=jnp.ones(6) / 6))
        return jnp.array([0.0, -0.0, jnp.inf, jnp.nan, -jnp.inf, jnp.nan])[k]

    measure = ppl.enumerate(model())
    found = dict(zip(map(str, measure.values.tolist()), measure.masses, strict=True))
    assert set(found) == {"0.0", "inf", "nan", "-inf"}
    assert_allclose([found[k] for k in ("0.0", "nan", "inf", "-inf")], np.array([2, 2, 1, 1]) / 6)
