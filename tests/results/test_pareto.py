"""Pareto smoothing: against ArviZ, against known tails, and at the edges."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ppl.errors import ResultError
from ppl.results.pareto import pareto_smooth, reliable_k


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("number", [50, 1000, 4001])
def test_weights_and_shape_are_those_of_arviz(scale, number):
    arviz = pytest.importorskip("arviz")
    if not hasattr(arviz, "psislw"):
        pytest.skip("this ArviZ has it elsewhere")
    log_weights = scale * np.random.default_rng(number).standard_normal(number)
    found, k = pareto_smooth(log_weights)
    expected, expected_k = arviz.psislw(log_weights.copy())
    np.testing.assert_allclose(k, expected_k, rtol=1e-9)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("shape", [-0.5, 0.2, 0.7, 1.2])
def test_shapes_of_known_tails(shape):
    rise = -np.log1p(-np.random.default_rng(0).random(200_000))
    log_weights = np.log1p(np.expm1(shape * rise) / shape)
    size = 3 * math.sqrt(200_000)
    # Five asymptotic standard errors of the maximum-likelihood shape.
    assert abs(pareto_smooth(log_weights).pareto_k - shape) < 5 * (1 + shape) / math.sqrt(size)


def test_edges():
    few = pareto_smooth(np.zeros(8))
    assert few.pareto_k == math.inf
    np.testing.assert_allclose(few.log_weights, -np.log(8))
    equal = pareto_smooth(np.full(500, -1e5))
    assert equal.pareto_k == -math.inf
    np.testing.assert_allclose(equal.log_weights, -np.log(500))
    rng = np.random.default_rng(0)
    half = np.where(rng.random(1000) < 0.5, -np.inf, rng.standard_normal(1000))
    found = pareto_smooth(half)
    assert np.isfinite(found.pareto_k)
    assert np.exp(found.log_weights).sum() == pytest.approx(1)
    for bad in (np.full(50, -np.inf), np.append(np.zeros(50), np.nan), np.append(0.0, np.inf)):
        assert math.isnan(pareto_smooth(bad).pareto_k)
    for shape in ((0,), (3, 2)):
        with pytest.raises(ResultError, match="pareto_smooth got log weights of shape"):
            pareto_smooth(np.zeros(shape))
    assert reliable_k(100) == 0.5
    assert reliable_k(10**6) == 0.7
