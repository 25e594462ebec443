"""The language: what `sample`, `factor`, `deterministic`, `plate` and `scope` mean."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from tests.zoo import normal_log_density, ordered_subsets, subsampled

pytestmark = pytest.mark.usefixtures("x64")


def close(a, b):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-12, atol=1e-12)


# --- Plates -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dims", "expected"),
    [((None, None), (2, 3)), ((-2, -1), (3, 2)), ((-1, -2), (2, 3)), ((-3, -1), (3, 1, 2))],
)
def test_nested_plates_expand_along_their_axes(dims, expected):
    # None takes the next free axis, counted from the right: the outer plate gets -1.
    @ppl.model
    def m():
        with ppl.plate("rows", 3, dim=dims[0]), ppl.plate("columns", 2, dim=dims[1]):
            return ppl.sample("x", dist.Normal(0.0, 1.0))

    site = m().sites["x"]
    assert site.shape == expected == ppl.run(m(), 0).shape
    names = {3: "rows", 2: "columns", 1: None}
    assert site.axes == tuple(names[size] for size in expected)
    assert len(np.unique(ppl.run(m(), 0))) == 6


def test_plate_broadcasts_and_counts_every_member():
    @ppl.model
    def m(loc):
        with ppl.plate("rows", 3, dim=-2) as i:
            assert i.shape == (3,)
            with ppl.plate("columns", 2, dim=-1):
                x = ppl.sample("x", dist.Normal(loc, 1.0))
                v = ppl.sample("v", dist.Normal(jnp.zeros(4), 1.0).to_event(1))
            r = ppl.sample("r", dist.Normal(0.0, 2.0))
        return x, v, r

    p = m(np.array([1.0, -1.0]))
    shapes = {s.address: s.shape for s in p.sites}
    assert shapes == {"x": (3, 2), "v": (3, 2, 4), "r": (3, 1)}
    assert p.sites["v"].axes == ("rows", "columns", None)
    choices = {a: np.random.default_rng(0).normal(size=s) for a, s in shapes.items()}
    expected = (
        normal_log_density(choices["x"], np.array([1.0, -1.0]))
        + normal_log_density(choices["v"])
        + normal_log_density(choices["r"], sd=2.0)
    )
    close(ppl.log_density(p, choices), expected)


def test_factor_counts_per_member_and_deterministic_not_at_all():
    @ppl.model
    def m():
        ppl.factor("vector", jnp.array([1.0, 2.0]))
        ppl.factor("integer", 3)
        with ppl.plate("n", 5):
            ppl.factor("each", 0.5)
            ppl.factor("own", jnp.arange(5))
        return ppl.deterministic("d", jnp.arange(3) * 2)

    close(ppl.log_density(m(), {}), 1 + 2 + 3 + 5 * 0.5 + 10)
    t = ppl.trace(m(), 0)
    close(t.log_weight, 18.5)
    assert t.deterministics["d"].tolist() == [0, 2, 4] == t.value.tolist()


def test_subsample_scales_and_indexes():
    y = np.array([0.3, -1.2, 2.0, 0.7])
    p = subsampled(y)
    assert p.sites["n"].shape == (2,)
    assert p.sites["y"].axes == ("n",)
    index = np.array([3, 1])
    got = ppl.log_density(p, {"mu": 0.4, "n": index})
    # The index site: one of 4 * 3 ordered subsets. Observations count 4 / 2 times.
    expected = normal_log_density(0.4) - np.log(12) + 2 * normal_log_density(y[index], 0.4)
    close(got, expected)
    for wrong in ([1, 1], [0, 4], [-1, 0]):
        assert ppl.log_density(p, {"mu": 0.4, "n": np.array(wrong)}) == -np.inf


def test_subsampled_log_likelihood_is_unbiased_by_enumeration():
    y = np.array([0.3, -1.2, 2.0, 0.7])
    p = subsampled(y, 3)
    subsets = ordered_subsets(4, 3)
    values = jax.vmap(lambda i: ppl.log_density(p, {"mu": 0.4, "n": i}))(jnp.asarray(subsets))
    full = normal_log_density(0.4) + normal_log_density(y, 0.4)
    close(np.mean(values), full - np.log(24))


def test_subsample_draws_every_ordered_subset_equally():
    # Chi-square over 12 cells, 24000 draws; the 1 - 1e-6 quantile of chi2(11) is 52.0.
    draws = ppl.prior_predictive(subsampled(np.zeros(4)), 0, 24000)["n"]
    cells, counts = np.unique(np.asarray(draws), axis=0, return_counts=True)
    assert len(cells) == 12
    assert np.sum((counts - 2000) ** 2 / 2000) < 52.0


def test_nested_subsampling_multiplies_scales_of_data_only():
    @ppl.model
    def m():
        with ppl.plate("a", 4, 2, dim=-2), ppl.plate("b", 6, 3, dim=-1):
            ppl.sample("y", dist.Normal(0.0, 1.0), obs=jnp.ones((2, 3)))

    got = ppl.log_density(m(), {"a": np.arange(2), "b": np.arange(3)})
    close(got, 4 * normal_log_density(np.ones(6)) - np.log(4 * 3) - np.log(6 * 5 * 4))


def test_full_subsample_is_no_subsample():
    @ppl.model
    def m():
        with ppl.plate("n", 3, subsample_size=3) as i:
            return ppl.sample("x", dist.Normal(i * 1.0, 1.0))

    assert [s.address for s in m().sites] == ["x"]


# --- Scopes and models inside models ------------------------------------------------------------


@ppl.model
def child(loc):
    x = ppl.sample("x", dist.Normal(loc, 1.0))
    ppl.factor("f", -x)
    return ppl.deterministic("twice", 2 * x)


def test_scopes_nest_and_models_inline():
    @ppl.model
    def parent():
        with ppl.scope("a"):
            one = child(0.0)
            with ppl.scope("b"):
                two = child(one)
        return one + two + child(3.0)

    p = parent()
    names = ["a/x", "a/f", "a/twice", "a/b/x", "a/b/f", "a/b/twice", "x", "f", "twice"]
    assert [s.address for s in p.sites] == names
    assert p.sites["a/b/x"].depends_on == ("a/twice",)
    values = {"a/x": 1.0, "a/b/x": 0.5, "x": 2.0}
    expected = normal_log_density(1.0) + normal_log_density(0.5, 2.0) + normal_log_density(2.0, 3.0)
    close(ppl.log_density(p, values), expected - 3.5)


def test_scope_ends_after_an_exception():
    @ppl.model
    def m():
        try:
            with ppl.scope("a"), ppl.plate("n", 3):
                raise ValueError
        except ValueError:
            return ppl.sample("x", dist.Normal(0.0, 1.0))

    assert [(s.address, s.shape) for s in m().sites] == [("x", ())]


def test_program_called_in_a_model_means_the_model_inlined():
    program = child(np.float64(1.5))

    @ppl.model
    def by_program():
        with ppl.scope("a"):
            return program()

    @ppl.model
    def by_model():
        with ppl.scope("a"):
            return child(1.5)

    assert [s.address for s in by_program().sites] == ["a/x", "a/f", "a/twice"]
    for x in (0.0, 1.0, -2.0):
        close(ppl.log_density(by_program(), {"a/x": x}), ppl.log_density(by_model(), {"a/x": x}))
    one, two = ppl.trace(by_program(), 7), ppl.trace(by_model(), 7)
    assert one.value == two.value


def test_program_in_a_plate_is_expanded_and_scaled_or_refused():
    program = child(np.float64(0.0))

    @ppl.model
    def m():
        with ppl.plate("n", 10, 2):
            program()

    try:
        p = m()
    except ppl.PPLError:
        return
    x = np.array([0.5, 1.0])
    got = ppl.log_density(p, {"n": np.arange(2), "x": x})
    close(got, 5 * (normal_log_density(x) - x.sum()) - np.log(90))


def test_model_program_inside_a_model_is_a_program():
    seen = []

    @ppl.model
    def m(y):
        inner = child.program(y)
        seen.append(isinstance(inner, ppl.Program))
        with ppl.scope("p"):
            inner()
        return ppl.sample("z", dist.Normal(0.0, 1.0))

    p = m(np.float64(0.5))
    assert seen == [True]
    assert [s.address for s in p.sites] == ["p/x", "p/f", "p/twice", "z"]
    close(
        ppl.log_density(p, {"p/x": 1.0, "z": 0.0}),
        normal_log_density(1.0, 0.5) - 1 + normal_log_density(0.0),
    )


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_an_impossible_value_has_no_density(probability):
    """NumPyro moves such probabilities inwards; the density of what cannot be is still -inf."""

    @ppl.model
    def sure(p):
        x = ppl.sample("x", dist.Bernoulli(p))
        with ppl.plate("n", 2):
            ppl.sample("k", dist.Binomial(3, p))
        return x

    least, most = int(probability), 3 * int(probability)
    possible = {"x": least, "k": jnp.array([most, most])}
    program = sure(jnp.asarray(probability))
    assert float(ppl.log_density(program, possible)) == pytest.approx(0.0, abs=1e-5)
    for change in ({"x": 1 - least}, {"k": jnp.array([most, 2])}):
        assert float(ppl.log_density(program, {**possible, **change})) == -jnp.inf
    # An impossible run has no slope either, and no NaN.
    slope = jax.grad(lambda p: ppl.log_density(sure(p), possible))(jnp.asarray(probability))
    assert bool(jnp.isfinite(slope))
