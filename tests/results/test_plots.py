from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
from matplotlib import pyplot
from scipy.stats import norm

from ppl.errors import ArgumentError, ResultError
from ppl.results._density import density
from ppl.results.plots import plot, plot_weighted


@pytest.fixture(autouse=True)
def no_open_figures():
    yield
    pyplot.close("all")


@pytest.fixture
def draws():
    rng = np.random.default_rng(0)
    return {
        "mu": rng.normal(3.0, 2.0, size=(3, 200)),
        "tau": np.abs(rng.standard_cauchy(size=(3, 200))),
        "theta": rng.normal(size=(3, 200, 2)),
        "n": rng.poisson(3.0, size=(3, 200)),
    }


def stats(draws):
    return {"diverging": draws["tau"] < 0.05, "energy": draws["mu"] ** 2}


def drawn(figure):
    """Draw for real, which is when most failures show, and return the titles of the panels."""
    figure.canvas.draw()
    return [axis.get_title(loc="left") for axis in figure.axes]


@pytest.mark.parametrize("kind", ["trace", "posterior", "forest", "pair", "rank", "energy"])
def test_every_kind_draws(draws, kind):
    drawn(plot(kind, draws, stats=stats(draws)))


@pytest.mark.parametrize("kind", ["trace", "posterior", "forest", "pair", "rank"])
def test_every_kind_survives_awkward_draws(kind):
    awkward = {
        "constant": np.full((2, 20), 3.0),
        "undefined": np.full((2, 20), np.nan),
        "infinite": np.where(np.arange(20) == 3, np.inf, np.ones((2, 20)) * np.arange(20.0)),
        "coin": np.arange(40).reshape(2, 20) % 2 == 0,
    }
    drawn(plot(kind, awkward))
    drawn(plot(kind, {"x": np.zeros((1, 1))}))


def test_trace_has_two_panels_and_one_line_per_chain(draws):
    figure = plot("trace", draws, var_names=["theta"])
    assert drawn(figure) == ["theta[0]", "", "theta[1]", ""]
    path = figure.axes[1].lines[2]
    assert len(figure.axes[1].lines) == 3
    assert (path.get_ydata() == draws["theta"][2, :, 0]).all()


def test_divergences_are_marked_where_they_are(draws):
    where = np.zeros((3, 200), bool)
    where[1, 17] = where[2, 60] = True
    figure = plot("trace", draws, stats={"diverging": where}, var_names=["mu"])
    assert figure.axes[1].lines[-1].get_xdata().tolist() == [17, 60]
    figure = plot("pair", draws, stats={"diverging": where}, var_names=["mu", "theta[1]"])
    marked = figure.axes[2].lines[-1]
    assert marked.get_xdata().tolist() == draws["mu"][where].tolist()
    assert marked.get_ydata().tolist() == draws["theta"][where][:, 1].tolist()


def test_names_choose_and_order_elements(draws):
    figure = plot("posterior", draws, var_names=["theta[1]", "mu"])
    assert drawn(figure) == ["theta[1]", "mu"]
    coords = {"school": ["A", "B"]}
    figure = plot("posterior", draws, dims={"theta": ("school",)}, coords=coords)
    assert drawn(figure) == ["mu", "tau", "theta[A]", "theta[B]", "n"]


def test_the_interval_is_the_one_asked_for(draws):
    figure = plot("posterior", draws, var_names=["mu"], probability=0.5)
    low, high = np.quantile(draws["mu"], [0.25, 0.75])
    bar = figure.axes[0].lines[-2].get_xdata()
    np.testing.assert_allclose(bar, [low, high], rtol=1e-12)
    assert f"50% [{low:.3g}, {high:.3g}]" in figure.axes[0].get_title(loc="right")


def test_forest_lists_elements_from_the_top_and_marks_high_rhat(draws):
    draws["theta"][1, :, 1] += 2.0
    figure = plot("forest", draws)
    drawn(figure)
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == ["mu", "tau", "theta[0]", "theta[1]", "n"]
    assert figure.axes[0].yaxis_inverted()
    colors = figure.axes[1].collections[0].get_facecolors()
    red = matplotlib.colors.to_rgba("#d62728")
    assert [tuple(c) == red for c in colors] == [False, False, False, True, False]


def test_rank_lines_show_the_chain_that_differs(draws):
    draws["mu"][0] += 100.0
    axis = plot("rank", draws, var_names=["mu"], bins=6).axes[0]
    heights = [patch.get_data().values.tolist() for patch in axis.patches[1:]]
    assert heights[0] == [0, 0, 0, 0, 3, 3]  # three chains: the highest third of all ranks
    assert np.sum(heights, axis=0).tolist() == [3] * 6


def test_what_is_left_out_is_said(draws):
    figure = plot("posterior", draws, max_elements=2)
    assert drawn(figure) == ["mu", "tau"]
    assert "first 2 of 5 elements" in figure.get_suptitle()
    assert plot("posterior", draws).get_suptitle() == ""


def test_unknown_names_are_errors_with_the_closest(draws):
    with pytest.raises(ArgumentError, match='Did you mean "trace"'):
        plot("trase", draws)
    with pytest.raises(ResultError, match='Did you mean "theta"'):
        plot("trace", draws, var_names=["thta"])
    with pytest.raises(ArgumentError, match=r"unknown option 'bin'.*Did you mean \"bins\""):
        plot("rank", draws, bin=10)
    with pytest.raises(ArgumentError, match="none of that"):
        plot("trace", draws, bins=10)
    with pytest.raises(ResultError, match="no statistic 'energy'"):
        plot("energy", draws)
    with pytest.raises(ResultError, match=r"stats\['diverging'\] of shape \(2, 2\)"):
        plot("trace", draws, stats={"diverging": np.zeros((2, 2))})
    with pytest.raises(ResultError, match="nothing to show"):
        plot("trace", {"x": np.zeros((2, 10, 0))})
    assert pyplot.get_fignums() == []


def test_settings_of_the_user_are_left_alone(draws):
    before = dict(matplotlib.rcParams)
    plot("posterior", draws)
    assert dict(matplotlib.rcParams) == before


def test_weighted_histograms_use_the_weights():
    x = np.array([0.0, 1.0, 2.0, 3.0])
    log_weights = np.log([0.1, 0.2, 0.3, 0.4])
    figure = plot_weighted({"x": x, "n": np.array([1, 1, 2, 2])}, log_weights, bins=4)
    assert drawn(figure) == ["x", "n"]
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    np.testing.assert_allclose(heights, [0.1, 0.2, 0.3, 0.4], rtol=1e-12)
    assert figure.get_supxlabel() == "4 particles, effective 3.3"
    with pytest.raises(ResultError, match="positive, finite weight"):
        plot_weighted({"x": x}, np.full(4, -np.inf))


def test_density_is_close_to_the_true_one():
    grid = np.linspace(0.5, 19999.5, 20000) / 20000
    found = density(norm.ppf(grid))
    assert found is not None
    # The bias of the kernel is about h^2 / 2 times the curvature: here 0.4 * 0.124^2 / 2 = 0.003.
    np.testing.assert_allclose(found.height, norm.pdf(found.grid), atol=0.004)
    edge = density(-np.log1p(-grid))
    assert edge is not None
    assert not edge.cut
    assert 0.85 < edge.height[0] < 1  # not halved at the edge of an exponential


def test_density_with_weights_is_that_of_the_weighted_draws():
    x = np.linspace(-3, 3, 20001)
    weights = norm.pdf(x)
    found = density(x, weights / weights.sum())
    assert found is not None
    inner = np.abs(found.grid) < 2.5
    np.testing.assert_allclose(found.height[inner], norm.pdf(found.grid)[inner], atol=0.004)


def test_density_of_long_tails_and_of_integers():
    long = density(np.tan(np.linspace(-1.57, 1.57, 1001)))
    assert long is not None
    assert long.cut
    assert long.grid[-1] < 100
    bars = density(np.array([2, 2, 5, 2]))
    assert bars is not None
    assert bars.discrete
    assert (bars.grid.tolist(), bars.height.tolist()) == ([2, 5], [0.75, 0.25])
    assert density(np.array([np.nan])) is None
