"""`FiniteMeasure`: its operations against sums by hand, its laws on random measures."""

import collections
import math

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

import ppl
import ppl.distributions as dist
from ppl import FiniteMeasure
from ppl.errors import ArgumentError, ResultError

Pair = collections.namedtuple("Pair", "left right")
COUNT = 12


@st.composite
def measures(draw, low=0, high=5):
    points = draw(st.lists(st.integers(low, high), min_size=1, max_size=6))
    weights = st.floats(0.01, 10.0) | st.just(0.0)
    masses = draw(st.lists(weights, min_size=len(points), max_size=len(points)))
    return FiniteMeasure.of(points, masses)


@st.composite
def kernels(draw):
    parts = [draw(measures()) for _ in range(6)]
    return lambda x: parts[int(x)]


def laws(*strategies):
    """Give Hypothesis' arguments to a law."""
    settings = hypothesis.settings(max_examples=COUNT)
    return lambda fun: settings(hypothesis.given(*strategies)(fun))


def same(one, other):
    return one.total_variation(other) < 1e-10 * (1 + one.total_mass)


def unit(x):
    return FiniteMeasure.of([x], [1.0])


# --- Laws ---------------------------------------------------------------------------------------


@laws(measures(), kernels(), kernels())
def test_bind_is_associative_and_a_point_is_its_unit(m, f, g):
    assert same(m.bind(f).bind(g), m.bind(lambda x: f(x).bind(g)))
    assert same(m.bind(unit), m)
    assert same(unit(3).bind(f), f(3))


@laws(measures(), measures(), measures())
def test_product_is_a_bind_and_its_marginals_are_its_parts(m, n, k):
    both = m.product(n)
    assert same(both, m.bind(lambda x: n.pushforward(lambda y: (x, y))))
    assert both.total_mass == pytest.approx(m.total_mass * n.total_mass, rel=1e-12)
    assert same(both.marginal(0), m.bind(lambda x: n.pushforward(lambda _: x)))
    left = both.product(k).pushforward(lambda v: (v[0][0], v[0][1], v[1]))
    right = m.product(n.product(k)).pushforward(lambda v: (v[0], v[1][0], v[1][1]))
    assert same(left, right)


@laws(measures())
def test_pushforward_is_a_functor_and_bind_of_points(m):
    f, g = (lambda x: x % 3), (lambda x: (x, x * x))
    assert same(m.pushforward(f).pushforward(g), m.pushforward(lambda x: g(f(x))))
    assert same(m.pushforward(lambda x: x), m)
    assert same(m.pushforward(f), m.bind(lambda x: unit(f(x))))
    assert m.pushforward(f).total_mass == pytest.approx(m.total_mass, rel=1e-12)
    assert len(m.pushforward(f)) <= 3


@laws(measures(), measures())
def test_expectation_is_linear_and_follows_pushforward_and_product(m, n):
    total = sum(mass * float(x) for x, mass in m)
    assert m.expect(lambda x: 1.0 * x) == pytest.approx(total, rel=1e-12)
    assert m.expect(lambda x: 1.0) == pytest.approx(m.total_mass, rel=1e-12)
    assert m.expect(lambda x: x * x) == pytest.approx(
        m.pushforward(lambda x: x * x).expect(lambda y: y), rel=1e-12
    )
    assert m.product(n).expect(lambda v: v[0] * v[1]) == pytest.approx(
        total * n.expect(lambda x: x), rel=1e-12
    )


@laws(measures())
def test_condition_splits_a_measure(m):
    even, odd = m.condition(lambda x: x % 2 == 0), m.condition(lambda x: x % 2 == 1)
    assert even.total_mass + odd.total_mass == pytest.approx(m.total_mass, rel=1e-12)
    assert all(int(x) % 2 == 0 for x in even.points)
    weighted = m.bind(lambda x: FiniteMeasure.of([x], [float(x % 2 == 0)]))
    assert same(even, weighted)


@laws(measures(), measures(), measures())
def test_total_variation_is_a_metric(m, n, k):
    d = FiniteMeasure.total_variation
    assert d(m, m) == 0.0
    assert d(m, n) == d(n, m)
    assert d(m, k) <= d(m, n) + d(n, k) + 1e-12
    masses = [(m.mass(x), n.mass(x)) for x in range(6)]
    assert d(m, n) == pytest.approx(0.5 * sum(abs(a - b) for a, b in masses), abs=1e-12)
    assert (d(m, n) < 1e-12) == all(abs(a - b) < 1e-11 for a, b in masses)


@laws(measures(), measures())
def test_kl_is_not_negative_and_bounds_total_variation(m, n):
    assert m.kl(m) == pytest.approx(0.0, abs=1e-12)
    assert m.kl(n) >= -1e-12
    if m.total_mass > 0 and n.total_mass > 0:
        p, q = m.normalize(), n.normalize()
        assert p.total_variation(q) <= math.sqrt(p.kl(q) / 2) + 1e-9  # Pinsker


def test_kl_by_hand():
    p, q = FiniteMeasure.of([0, 1], [0.3, 0.7]), FiniteMeasure.of([1, 0, 2], [0.5, 0.4, 0.1])
    wanted = 0.3 * math.log(0.3 / 0.4) + 0.7 * math.log(0.7 / 0.5)
    assert p.kl(q) == pytest.approx(wanted, rel=1e-12)
    assert q.kl(p) == math.inf
    twice = FiniteMeasure.of([0, 1], [0.6, 1.4])
    assert twice.kl(p) == pytest.approx(2 * math.log(2) - 2 + 1, rel=1e-12)


@laws(measures())
def test_normalising_twice_is_normalising_once(m):
    if m.total_mass == 0:
        with pytest.raises(ResultError, match="normalize got a measure of total mass zero"):
            m.normalize()
        return
    p = m.normalize()
    assert p.total_mass == pytest.approx(1.0, rel=1e-12)
    assert same(p.normalize(), p)
    assert p.mass(m.mode()) == max(p.masses)
    assert m.mass(m.mode()) == max(m.masses)


# --- Construction and reading -------------------------------------------------------------------


def test_equal_points_are_joined_and_points_without_mass_dropped():
    m = FiniteMeasure.of([(0, 1.0), (1, 2.0), (0, 1.0 + 1e-12), (2, 3.0)], [0.1, 0.2, 0.3, 0.0])
    assert len(m) == 2
    assert m.mass((0, 1.0)) == pytest.approx(0.4, rel=1e-12)
    assert m.mass((2, 3.0)) == 0.0
    assert m.mass((7, 7.0)) == 0.0
    assert [(int(a), float(mass)) for (a, _), mass in m] == [(0, pytest.approx(0.4)), (1, 0.2)]
    assert m.total_mass == pytest.approx(0.6)
    assert m.log_evidence == pytest.approx(math.log(0.6))
    assert [int(a) for a, _ in m.points] == [0, 1]


def test_masses_far_below_the_smallest_number_are_kept_in_logs():
    m = FiniteMeasure(np.arange(2), np.array([-2000.0, -2001.0]))
    assert m.total_mass == 0.0
    assert m.log_evidence == pytest.approx(-2000 + math.log1p(math.exp(-1)), rel=1e-12)
    assert_allclose(m.normalize().masses, [1 / (1 + math.exp(-1)), 1 / (1 + math.e)], rtol=1e-12)
    assert m.mode() == 0
    assert_allclose(m.pushforward(lambda x: 0 * x).log_masses, [m.log_evidence], rtol=1e-12)


@pytest.mark.parametrize(
    ("points", "masses"), [([0, 1], [0.5]), ([0, 1], [0.5, -0.1]), ([], []), ([0], [np.nan])]
)
def test_bad_lists_of_points_are_refused(points, masses):
    with pytest.raises(ArgumentError, match=r"FiniteMeasure.of got .*a non-negative mass for each"):
        FiniteMeasure.of(points, masses)


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(ArgumentError, match=r"log masses of shape \(2,\) .0 NaN.*\[\(3,\)\]"):
        FiniteMeasure(np.arange(3), np.zeros(2))
    with pytest.raises(ArgumentError, match=r"log masses of shape \(2,\) .1 NaN"):
        FiniteMeasure(np.arange(2), np.array([0.0, np.nan]))


def test_marginals_by_key_index_attribute_and_function():
    m = FiniteMeasure.of([{"a": 0, "values": 1}, {"a": 1, "values": 1}], [0.2, 0.3])
    assert m.marginal("a").mass(1) == pytest.approx(0.3)
    assert m.marginal("values").mass(1) == pytest.approx(0.5)  # a key, not the dict's method
    pair = FiniteMeasure.of([Pair(0, 5), Pair(1, 5)], [0.2, 0.3])
    assert pair.marginal("right").mass(5) == pytest.approx(0.5)
    assert pair.marginal(0).mass(1) == pytest.approx(0.3)
    assert pair.marginal(lambda p: p.left + p.right).mass(6) == pytest.approx(0.3)
    trace = ppl.FiniteMeasure(ppl.Weighted(np.arange(2), np.zeros(2)), np.log([0.2, 0.3]))
    assert trace.marginal("value").mass(1) == pytest.approx(0.3)


def test_an_index_into_a_vector_is_one_of_the_point_not_of_the_points():
    vector = FiniteMeasure(np.arange(6).reshape(2, 3), np.log([0.4, 0.6]))
    assert vector.marginal(2).mass(5) == pytest.approx(0.6)
    many = FiniteMeasure(np.arange(18).reshape(6, 3), np.log(np.ones(6)))
    with pytest.raises(ArgumentError, match=r"marginal got 5; needs a key, index or attribute"):
        many.marginal(5)
    with pytest.raises(ArgumentError, match=r"marginal got 'b'.*lambda value"):
        FiniteMeasure.of([{"a": 0}], [1.0]).marginal("b")
    with pytest.raises(ArgumentError, match=r"marginal got 0.*The value is"):
        FiniteMeasure.of([3], [1.0]).marginal(0)


def test_functions_that_jax_cannot_trace_run_point_by_point():
    m = FiniteMeasure.of([0, 1, 2], [0.2, 0.3, 0.5])
    names = {0: 10, 1: 20, 2: 10}
    assert m.pushforward(lambda x: names[int(x)]).mass(10) == pytest.approx(0.7)
    assert m.pushforward(lambda x: names.get(x, 0)).mass(20) == pytest.approx(0.3)
    assert m.expect(lambda x: 1.0 if x > 0 else 0.0) == pytest.approx(0.8)
    assert m.expect(lambda x: np.sum(np.arange(x))) == pytest.approx(0.5)
    assert m.condition(lambda x: bool(x)).total_mass == pytest.approx(0.8)
    assert m.expect(lambda x: jnp.arange(3)[jnp.arange(3) < x].sum()) == pytest.approx(0.5)
    with pytest.raises(TypeError, match="did not contain a loop"):
        m.expect(lambda x: x + "a")


def test_expectations_are_trees_of_arrays():
    m = FiniteMeasure.of([0, 1], [0.25, 0.5])
    found = m.expect(lambda x: {"x": x, "v": jnp.stack([x, 1 - x])})
    assert found["x"] == 0.5
    assert_allclose(found["v"], [0.5, 0.25])


def test_bind_takes_programs_too():
    coin = ppl.model(lambda p: ppl.sample("x", dist.Bernoulli(p)))
    m = FiniteMeasure.of([0.2, 0.6], [0.5, 1.5]).bind(lambda p: coin(jnp.asarray(p)))
    assert m.mass(1) == pytest.approx(0.5 * 0.2 + 1.5 * 0.6, rel=1e-6)  # single precision


def test_a_measure_without_points_can_be_used_like_others():
    nothing = FiniteMeasure((np.zeros(0, int), np.zeros((0, 2))), np.zeros(0))
    some = FiniteMeasure.of([(1, np.ones(2))], [0.25])
    assert len(nothing.pushforward(lambda v: v[0])) == 0
    assert nothing.pushforward(lambda v: {"sum": v[1].sum()}).values["sum"].shape == (0,)
    assert len(nothing.marginal(1)) == len(nothing.condition(lambda v: v[0] > 0)) == 0
    assert len(nothing.marginal(1).marginal(1)) == 0
    assert len(nothing.pushforward(lambda v: 1 if v[0] > 0 else 0)) == 0
    assert nothing.expect(lambda v: v[0]) == 0.0
    assert_allclose(nothing.expect(lambda v: v[1]), [0.0, 0.0])
    assert nothing.quadrature_error() == 0.0
    assert nothing.mass((1, np.ones(2))) == 0.0
    assert nothing.total_variation(some) == some.total_variation(nothing) == 0.125
    assert nothing.kl(some) == 0.25
    assert some.kl(nothing) == math.inf
    assert nothing.total_variation(nothing) == 0.0
    assert len(nothing.product(some)) == len(some.product(nothing)) == 0
    assert len(nothing.bind(lambda v: some)) == 0
    assert len(some.bind(lambda v: nothing)) == 0
    assert nothing.differences(nothing) == []
    with pytest.raises(ResultError, match=r"mode got a measure of total mass zero.*impossible"):
        nothing.mode()


# --- Comparing ----------------------------------------------------------------------------------


def test_measures_on_other_kinds_of_values_are_not_compared():
    one, other = FiniteMeasure.of([0], [1.0]), FiniteMeasure.of([(0, 1)], [1.0])
    wide = FiniteMeasure.of([np.zeros(2)], [1.0])
    for operation in ("total_variation", "kl", "differences"):
        for different in (other, wide):
            with pytest.raises(ResultError, match=rf"{operation} got measures on .*pushforward"):
                getattr(one, operation)(different)
    with pytest.raises(ResultError, match="mass got measures on values of different structure"):
        one.mass((0, 1))


def test_the_tolerance_of_a_measure_is_used_wherever_points_are_compared():
    x = np.array([1.0, 1.0 + 1e-12])
    logs = np.log([0.25, 0.75])
    loose, exact = FiniteMeasure(x, logs), FiniteMeasure(x, logs, tolerance=0.0)
    assert len(loose.pushforward(lambda x: x)) == 1
    assert len(exact.pushforward(lambda x: x)) == 2
    assert exact.mass(1.0) == pytest.approx(0.25)
    assert loose.mass(1.0) == pytest.approx(1.0)
    moved = FiniteMeasure(x[::-1], logs, tolerance=0.0)
    assert exact.total_variation(moved) == pytest.approx(0.5)
    assert loose.total_variation(moved) == pytest.approx(0.5)  # the other one's, where one has it
    assert loose.total_variation(FiniteMeasure(x[::-1], logs)) == pytest.approx(0.0, abs=1e-15)
    assert len(exact.product(exact).pushforward(lambda v: v)) == 4


def test_differences_lists_the_worst_points_first():
    one = FiniteMeasure.of([{"a": 0}, {"a": 1}, {"a": 2}], [0.2, 0.3, 0.5])
    other = FiniteMeasure.of([{"a": 0}, {"a": 1}, {"a": 3}], [0.2, 0.25, 0.55])
    found = one.differences(other)
    assert [text for text, *_ in found] == ["a = 3", "a = 2", "a = 1"]
    assert_allclose([p[1:] for p in found], [[0, 0.55], [0.5, 0], [0.3, 0.25]], atol=1e-12)
    assert len(one.differences(other, most=2)) == 2


# --- Pictures -----------------------------------------------------------------------------------


def test_repr_reads_as_a_table_with_bars():
    m = FiniteMeasure.of([{"a": 0, "b": np.zeros(2)}, {"a": 1, "b": np.ones(2)}], [0.25, 0.5])
    lines = repr(m).splitlines()
    assert lines[0] == "total mass 0.75 (log evidence -0.287682), 2 points"
    assert lines[1].split() == ["a", "b", "mass"]
    assert lines[2].split() == ["0", "[0.,", "0.]", "0.25", "█" * 12]
    assert lines[3].split() == ["1", "[1.,", "1.]", "0.5", "█" * 24]
    assert repr(FiniteMeasure.of([3], [1.0])).splitlines()[1].split() == ["value", "mass"]
    assert repr(FiniteMeasure.of([3], [1.0])).splitlines()[0].endswith("1 point")


def test_long_measures_show_their_heaviest_points():
    m = FiniteMeasure.of(list(range(50)), [1.0 + (i % 7 == 0) for i in range(50)])
    text = repr(m)
    assert "50 points, the 20 heaviest shown" in text
    shown = [int(line.split()[0]) for line in text.splitlines()[2:]]
    assert shown == sorted([*range(0, 50, 7), *[i for i in range(14) if i % 7][:12]])


def test_html_escapes_and_shows_the_same_numbers():
    m = FiniteMeasure.of([{"<a>": 0}, {"<a>": 1}], [0.25, 0.5])
    text = m._repr_html_()
    assert "total mass 0.75" in text
    assert "&lt;a&gt;" in text
    assert "<a>" not in text
    assert ">0.25<" in text


def test_plot_draws_a_bar_for_each_point():
    import matplotlib.pyplot as plt

    m = FiniteMeasure.of([(0, 1), (1, 1)], [0.25, 0.5])
    ax = m.plot()
    assert [bar.get_width() for bar in ax.patches] == [0.25, 0.5]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0, 1", "1, 1"]
    assert ax.get_xlabel() == "mass"
    assert m.plot(ax) is ax
    plt.close("all")
