from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl.errors import ArgumentError, ResultError
from ppl.results import diagnostics
from ppl.results.weighted import kish_ess, snis_se, weighted_moments, weighted_quantile


def autoregression(rng, shape, phi):
    x = rng.normal(size=shape)
    for t in range(1, shape[1]):
        x[:, t] += phi * x[:, t - 1]
    return x


def datasets():
    rng = np.random.default_rng(20)
    return {
        "iid": rng.normal(size=(4, 1000)),
        "autoregressive": autoregression(rng, (4, 500), 0.9),
        "antithetic": autoregression(rng, (4, 501), -0.7),
        "heavy tails": rng.standard_cauchy((3, 333)),
        "shifted chain": rng.normal(size=(4, 200)) + np.array([[0.0], [0], [0], [2]]),
        "wider chain": rng.normal(size=(4, 200)) * np.array([[1.0], [1], [1], [5]]),
        "constant": np.full((4, 100), 0.1),
        "counts": rng.poisson(2.0, size=(4, 200)),
        "coins": rng.integers(0, 2, size=(4, 51)),
        "four draws": rng.normal(size=(4, 4)),
        "five draws": rng.normal(size=(2, 5)),
        "seven draws": rng.normal(size=(2, 7)),
        "one chain": rng.normal(size=(1, 100)),
        "a NaN": np.where(np.arange(100) == 3, np.nan, rng.normal(size=(2, 100))),
        "three draws": rng.normal(size=(4, 3)),
    }


@pytest.fixture(scope="module")
def arviz():
    logging.getLogger("arviz").setLevel(logging.ERROR)
    logging.getLogger("arviz_stats").setLevel(logging.ERROR)
    return pytest.importorskip("arviz", reason="compares with ArviZ")


@pytest.fixture(scope="module")
def axes(arviz):
    """Say where chains and draws are, to the versions that must be told."""
    return {"chain_axis": 0, "draw_axis": 1} if int(arviz.__version__.split(".")[0]) >= 1 else {}


@pytest.mark.parametrize("name", datasets())
def test_agrees_with_arviz(arviz, axes, name):
    x = datasets()[name]
    with np.errstate(all="ignore"):
        expected = {("rhat", None): arviz.rhat(x, **axes)}
        for kind in ("mean", "sd", "bulk", "median"):
            expected["ess", kind] = arviz.ess(x, method=kind, **axes)
        expected["ess", "tail"] = arviz.ess(x, method="tail", prob=(0.05, 0.95), **axes)
        for prob in (0.1, 0.77):
            expected["ess", prob] = arviz.ess(x, method="quantile", prob=prob, **axes)
            expected["mcse", prob] = arviz.mcse(x, method="quantile", prob=prob, **axes)
        for kind in ("mean", "sd", "median"):
            expected["mcse", kind] = arviz.mcse(x, method=kind, **axes)
    for (function, kind), value in expected.items():
        ours = getattr(diagnostics, function)(x, *([] if kind is None else [kind]))
        np.testing.assert_allclose(ours, value, rtol=1e-10, err_msg=f"{function} {kind}")


def test_bfmi_agrees_with_arviz(arviz, axes):
    energy = autoregression(np.random.default_rng(3), (4, 300), 0.8)
    np.testing.assert_allclose(diagnostics.bfmi(energy), arviz.bfmi(energy, **axes), rtol=1e-12)


def test_elements_are_treated_one_by_one(monkeypatch):
    rng = np.random.default_rng(1)
    x = autoregression(rng, (3, 60, 2, 5), 0.5)
    monkeypatch.setattr(diagnostics, "_BLOCK_SIZE", 3 * 60 * 4)  # blocks of four columns
    for function in (diagnostics.rhat, diagnostics.ess, diagnostics.mcse):
        whole = function(x)
        assert whole.shape == (2, 5)
        for index in np.ndindex(2, 5):
            single = function(x[:, :, index[0], index[1]])
            assert single.shape == ()
            np.testing.assert_allclose(whole[index], single, rtol=1e-12)


def test_columns_with_undefined_values_do_not_spoil_others():
    x = np.random.default_rng(2).normal(size=(4, 100, 3))
    x[1, 5, 0], x[2, 7, 1] = np.inf, np.nan
    for function in (diagnostics.rhat, diagnostics.ess, diagnostics.mcse):
        assert np.isnan(function(x)).tolist() == [True, True, False]


def test_stuck_chains_have_infinite_rhat_and_hardly_any_draws():
    x = np.repeat(np.array([[0.1], [0.2], [0.3], [0.3]]), 100, axis=1)
    assert diagnostics.rhat(x) == math.inf
    assert diagnostics.ess(x) < 8


def test_nothing_depends_on_units_or_dtype():
    x = np.random.default_rng(4).integers(-50, 50, size=(4, 100)).astype(np.float64)
    for scale in (2.0**-60, 2.0**60):
        assert diagnostics.rhat(x) == diagnostics.rhat(scale * x)
        assert diagnostics.ess(x, "sd") == diagnostics.ess(scale * x, "sd")
        assert diagnostics.mcse(x) * scale == diagnostics.mcse(scale * x)
    ml_dtypes = pytest.importorskip("ml_dtypes")
    for dtype in (np.int16, np.float32, ml_dtypes.bfloat16):
        assert diagnostics.ess(x.astype(dtype)) == diagnostics.ess(x)


def test_ess_of_an_autoregression_is_close_to_its_known_value():
    phi, shape = 0.6, (8, 4000)
    x = autoregression(np.random.default_rng(5), shape, phi)[:, :, None]
    truth = 8 * 4000 * (1 - phi) / (1 + phi)
    # Its relative sd is about sqrt(2 * window / total), with a window of some 20 lags: 4%.
    assert abs(diagnostics.ess(x, "mean")[0] / truth - 1) < 5 * 0.04


def test_empty_events_and_missing_draws():
    assert diagnostics.rhat(np.zeros((4, 10, 0))).shape == (0,)
    assert np.isnan(diagnostics.ess(np.zeros((4, 0, 2)))).all()
    assert np.isnan(diagnostics.bfmi(np.zeros((2, 3)))).all()


def test_wrong_arguments_are_named():
    x = np.zeros((2, 10))
    with pytest.raises(ArgumentError, match=r"'bulky'.*'bulk'"):
        diagnostics.ess(x, "bulky")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match=r"got kind=1\.5"):
        diagnostics.mcse(x, 1.5)
    with pytest.raises(ResultError, match=r"x\[None\]"):
        diagnostics.rhat(np.zeros(10))
    with pytest.raises(ResultError, match="complex128"):
        diagnostics.rhat(x.astype(complex))


# --- many short chains ------------------------------------------------------------------------


def nested_by_definition(x, superchains):
    """Margossian et al. (2024), definition 2.2, sum by sum."""
    between, within, means = 0.0, 0.0, []
    names = sorted(set(superchains))
    for name in names:
        chains = [list(c) for c, label in zip(x, superchains, strict=True) if label == name]
        centres = [sum(c) / len(c) for c in chains]
        means.append(sum(centres) / len(centres))
        if len(chains) > 1:
            within += sum((c - means[-1]) ** 2 for c in centres) / (len(chains) - 1)
        for chain, centre in zip(chains, centres, strict=True):
            if len(chain) > 1:
                spread = sum((v - centre) ** 2 for v in chain) / (len(chain) - 1)
                within += spread / len(chains)
    centre = sum(means) / len(means)
    between = sum((m - centre) ** 2 for m in means) / (len(means) - 1)
    return math.sqrt(1 + between / (within / len(names)))


@pytest.mark.parametrize("sizes", [(2, 1, 2), (2, 3, 1), (4, 16, 1), (3, 4, 5), (8, 1, 100)])
def test_nested_rhat_is_its_definition(sizes):
    rng = np.random.default_rng(8)
    superchains = rng.permutation(np.repeat([7, 3, 5, 1, 0, 2, 4, 6][: sizes[0]], sizes[1]))
    x = rng.normal(size=(len(superchains), sizes[2], 2)) + 0.3 * superchains[:, None, None]
    found = diagnostics.nested_rhat(x, superchains)
    expected = [nested_by_definition(x[..., k], superchains.tolist()) for k in range(2)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_nested_rhat_is_one_where_chains_forgot_their_starts():
    rng = np.random.default_rng(9)
    superchains = np.repeat(np.arange(16), 128)
    x = rng.normal(size=(2048, 1))
    # nR^2 - 1 is a chi-square of 15 degrees over 15 * 128; beyond 60 / 15 with probability 2e-7.
    assert 1 < diagnostics.nested_rhat(x, superchains) < math.sqrt(1 + 60 / 15 / 128)
    # One draw of chains that remember their starts: each superchain is where it began.
    started = rng.normal(size=16)[superchains][:, None] + 0.1 * x
    assert diagnostics.nested_rhat(started, superchains) > 3
    # The same chains in other superchains: no superchain differs from another.
    assert diagnostics.nested_rhat(started, np.arange(2048) % 16) < 1.2


def test_nested_rhat_at_its_ends():
    superchains = [0, 0, 1, 1]
    equal = np.array([[0.1, 0.3], [0.1, 0.5], [0.1, 0.3], [0.1, 0.5]])
    assert diagnostics.nested_rhat(equal, superchains) == 1.0
    assert diagnostics.nested_rhat(np.array([[0.1], [0.1], [0.2], [0.2]]), superchains) == math.inf
    assert np.isnan(diagnostics.nested_rhat(np.full((4, 3), 0.1), superchains))
    assert np.isnan(diagnostics.nested_rhat(np.array([[0.1], [0.2]]), ["a", "b"]))
    assert np.isnan(diagnostics.nested_rhat(np.array([[0.1], [0.2], [np.nan], [1]]), superchains))
    for wrong in ([0, 0, 0, 1], [0, 0, 0, 0], [0, 1], [[0, 0], [1, 1]], 2):
        with pytest.raises(ArgumentError, match="nested_rhat got superchains"):
            diagnostics.nested_rhat(np.zeros((4, 3)), wrong)
    with pytest.raises(ResultError, match="complex"):
        diagnostics.nested_rhat(np.zeros((4, 3), complex), superchains)


# --- weighted particles -----------------------------------------------------------------------


def test_weighted_statistics_are_those_of_the_discrete_distribution():
    x = np.array([[3.0, -1.0], [1.0, -1.0], [2.0, 5.0]])
    log_weights = np.log([0.2, 0.5, 0.3]) + 700  # normalisation must not overflow
    mean, sd = weighted_moments(x, log_weights)
    np.testing.assert_allclose(mean, [1.7, 0.8], rtol=1e-12)  # 700 has 13 digits after the point
    np.testing.assert_allclose(sd, np.sqrt([0.2 * 9 + 0.5 + 0.3 * 4 - 1.7**2, 0.7 + 7.5 - 0.64]))
    cuts = weighted_quantile(x, log_weights, np.array([0.0, 0.5, 0.51, 0.8, 1.0]))
    assert cuts.tolist() == [[1, -1], [1, -1], [2, -1], [2, 5], [3, 5]]
    np.testing.assert_allclose(kish_ess(log_weights), 1 / (0.04 + 0.25 + 0.09), rtol=1e-12)
    error = math.sqrt(0.04 * 1.3**2 + 0.25 * 0.7**2 + 0.09 * 0.3**2)
    np.testing.assert_allclose(snis_se(x, log_weights)[0], error, rtol=1e-12)


def test_equal_weights_reduce_to_plain_statistics():
    x = np.random.default_rng(6).normal(size=(1001, 3))
    log_weights = np.full(1001, -5.0)
    mean, sd = weighted_moments(x, log_weights)
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(sd, x.std(axis=0), rtol=1e-12)
    np.testing.assert_allclose(snis_se(x, log_weights), x.std(axis=0) / math.sqrt(1001))
    np.testing.assert_allclose(kish_ess(log_weights), 1001)
    probs = np.arange(1, 11) / 10
    inverse = np.quantile(x, probs, axis=0, method="inverted_cdf")
    assert (weighted_quantile(x, log_weights, probs) == inverse).all()


def test_particles_without_weight_never_count():
    x = np.array([np.nan, 1.0, 2.0, -np.inf])
    log_weights = np.array([-np.inf, 0.0, 0.0, -np.inf])
    assert weighted_moments(x, log_weights).mean == 1.5
    assert weighted_quantile(x, log_weights, 0.0) == 1.0
    assert weighted_quantile(x, log_weights, 1.0) == 2.0
    assert kish_ess(log_weights) == 2.0


@pytest.mark.parametrize("bad", [-np.inf, np.nan, np.inf])
def test_undefined_weights_give_nan(bad):
    log_weights = np.full(3, bad)
    for answer in (
        *weighted_moments(np.ones((3, 2)), log_weights),
        snis_se(np.ones((3, 2)), log_weights),
        weighted_quantile(np.ones((3, 2)), log_weights, 0.5),
    ):
        assert answer.shape == (2,)
        assert np.isnan(answer).all()
    assert kish_ess(log_weights) == 0 or np.isnan(kish_ess(log_weights))
    assert (kish_ess(log_weights) == 0) == (bad == -np.inf)


def test_a_heavy_particle_that_is_not_finite_spoils_its_column_only():
    x = np.array([[np.inf, 1.0], [0.0, 3.0]])
    log_weights = np.zeros(2)
    for answer in (
        *weighted_moments(x, log_weights),
        snis_se(x, log_weights),
        weighted_quantile(x, log_weights, 0.5),
    ):
        assert np.isnan(answer).tolist() == [True, False]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.floats(0, 1))
def test_a_weight_of_n_is_n_copies(counts, prob):
    x = np.random.default_rng(len(counts)).normal(size=len(counts))
    copies = np.repeat(x, counts)
    log_weights = np.log(counts)
    np.testing.assert_allclose(
        weighted_moments(x, log_weights).sd, copies.std(), rtol=1e-9, atol=1e-12
    )
    if abs(prob * len(copies) - round(prob * len(copies))) > 1e-6:
        expected = np.quantile(copies, prob, method="inverted_cdf")
        assert weighted_quantile(x, log_weights, prob) == expected


def test_weighted_arguments_are_checked():
    with pytest.raises(ResultError, match=r"shape \(3, 2\).*shape \(4,\)"):
        weighted_moments(np.ones((3, 2)), np.zeros(4))
    with pytest.raises(ArgumentError, match=r"q=1\.5"):
        weighted_quantile(np.ones(3), np.zeros(3), 1.5)
