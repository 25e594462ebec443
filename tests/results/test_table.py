from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from ppl.errors import ArgumentError, ResultError
from ppl.results import diagnostics, html
from ppl.results._rounding import format_number
from ppl.results.table import summarize, summarize_weighted


@pytest.fixture
def draws():
    rng = np.random.default_rng(0)
    return {
        "mu": rng.normal(3.0, 2.0, size=(4, 500)),
        "theta": rng.normal(size=(4, 500, 3)),
        "Sigma": rng.normal(size=(4, 500, 2, 2)),
        "n": rng.poisson(4.0, size=(4, 500)),
    }


def test_rows_columns_and_values(draws):
    summary = summarize(draws, quantiles=(0.025, 0.5))
    assert summary.rows == (
        *("mu", "theta[0]", "theta[1]", "theta[2]"),
        *("Sigma[0,0]", "Sigma[0,1]", "Sigma[1,0]", "Sigma[1,1]", "n"),
    )
    expected_columns = "mean sd 2.5% 50% mcse_mean ess_bulk ess_tail rhat"
    assert summary.columns == tuple(expected_columns.split())
    assert summary.notes == ()
    x = draws["Sigma"][:, :, 1, 0]
    expected = [
        *(x.mean(), x.std(ddof=1), np.quantile(x, 0.025), np.median(x), diagnostics.mcse(x)),
        *(diagnostics.ess(x, "bulk"), diagnostics.ess(x, "tail"), diagnostics.rhat(x)),
    ]
    np.testing.assert_allclose(list(summary["Sigma[1,0]"].values()), expected, rtol=1e-12)
    with pytest.raises(dataclasses.FrozenInstanceError):
        summary.title = ""  # pyright: ignore[reportAttributeAccessIssue]


def test_lookup_by_row_by_variable_and_by_position(draws):
    summary = summarize(draws, dims={"theta": ("school",)}, coords={"school": ["A", "B", "C"]})
    assert summary.rows[1:4] == ("theta[A]", "theta[B]", "theta[C]")
    assert summary["theta[B]"] == summary["theta[1]"]
    assert isinstance(summary["mu"]["mean"], float)
    assert summary["Sigma"]["sd"].shape == (2, 2)
    assert summary["Sigma"]["sd"][1, 0] == summary["Sigma[1,0]"]["sd"]
    assert summary["theta"]["mean"].tolist() == [summary[f"theta[{k}]"]["mean"] for k in range(3)]
    assert all(name in summary for name in ("mu", "theta", "theta[A]", "theta[0]"))
    assert "theta[3]" not in summary
    with pytest.raises(ResultError, match='Did you mean "theta"'):
        summary["thetta"]


def test_conversions_keep_every_value(draws):
    summary = summarize(draws)
    assert list(summary) == list(summary.to_dict()) == list(summary.rows)
    assert summary.to_dict()["n"]["rhat"] == summary.values[-1, -1]
    frame = pytest.importorskip("pandas") and summary.to_pandas()
    assert (frame.to_numpy() == summary.values).all()
    assert list(frame.index) == list(summary.rows)
    assert list(frame.columns) == list(summary.columns)


def test_text_is_aligned_and_rounded_to_what_the_error_supports():
    rng = np.random.default_rng(1)
    draws = {"big": rng.normal(12345.0, 700.0, (4, 250)), "small": rng.normal(0, 1e-7, (4, 250))}
    lines = str(summarize(draws)).splitlines()
    assert lines[0] == "4 chains of 250 draws"
    assert tuple(lines[1].split()) == summarize(draws).columns
    mean = float(lines[2].split()[1])
    assert mean % 10 == 0  # the error is about 22
    assert abs(mean - draws["big"].mean()) <= 5
    assert "e-0" in lines[3]
    assert not any(line.endswith(" ") for line in lines)


@pytest.mark.parametrize(
    ("value", "figures", "error", "text"),
    [
        (3.14159, 4, math.nan, "3.142"),
        (3.14159, 4, 0.02, "3.14"),
        (3.14159, 4, 0.0001, "3.142"),
        (-0.004, 4, 0.02, "0.00"),
        (9.996, 4, 0.01, "10.00"),
        (12345.6, 4, 13.0, "12350"),
        (0.0, 4, 0.1, "0"),
        (1.5e-9, 4, 1e-11, "1.50e-09"),
        (-2.5e12, 4, math.nan, "-2.500e+12"),
        (0.0213, 2, math.nan, "0.021"),
    ],
)
def test_numbers_show_supported_digits(value, figures, error, text):
    assert format_number(value, figures, error) == text


def test_long_tables_are_cut_in_print_only():
    summary = summarize({"x": np.random.default_rng(2).normal(size=(2, 50, 100))})
    assert len(summary) == len(summary.values) == 100
    assert "x[59]" in str(summary)
    assert "x[60]" not in str(summary)
    assert "… 40 more rows" in str(summary)
    assert "first 60 of 100 rows" in summary._repr_html_()


def note(summary, text):
    found = [note for note in summary.notes if text in note]
    assert len(found) == 1, summary.notes
    return found[0]


def test_notes_say_what_is_wrong_and_where(draws):
    draws["theta"][2, :, 1] += 1.0
    assert "theta[1] (1." in note(summarize(draws), "R-hat is above 1.01")
    draws["mu"] = np.cumsum(draws["mu"] - 3.0, axis=1)
    assert "mu (" in note(summarize(draws), "Bulk ESS")
    assert "mu (" in note(summarize(draws), "Tail ESS")
    draws["Sigma"][0, 3, 1, 1] = np.nan
    assert "Sigma[1,1]:" in note(summarize(draws), "NaN or infinite")
    draws["theta"][3, :, 0] = 7.0
    assert note(summarize(draws), "never moved in theta[0]").startswith("Chain 3")
    draws["n"] = np.full((4, 500), 4)
    assert "draw of n:" in note(summarize(draws), "The same value")


def test_notes_read_the_statistics_of_the_sampler(draws):
    rng = np.random.default_rng(3)
    stats = {
        "diverging": np.arange(2000).reshape(4, 500) % 100 == 0,
        "energy": np.concatenate([rng.normal(size=(3, 500)), np.linspace(0, 9, 500)[None]]),
    }
    summary = summarize(draws, stats=stats)
    assert "20 of 2,000 transitions" in note(summary, "diverged")
    assert "chain 3 (0.00)" in note(summary, "BFMI")
    assert summarize(draws, stats={"diverging": np.zeros((4, 500), bool)}).notes == ()


def test_notes_read_what_moves_cost_and_how_many_are_accepted(draws):
    depth = np.where(np.arange(500) % 10 == 0, 10, 4) * np.ones((4, 1), int)
    assert "10 or more in 10%" in note(summarize(draws, stats={"tree_depth": depth}), "tree depth")
    rate = np.array([[0.8], [0.05], [0.234], [0.8]]) * np.ones((4, 500))
    low = note(summarize(draws, stats={"acceptance_rate": rate}), "acceptance rate")
    assert "in chain 1 (0.05):" in low
    fine = {"tree_depth": np.where(depth == 10, 9, 4), "acceptance_rate": np.full((4, 500), 0.2)}
    assert summarize(draws, stats=fine).notes == ()
    fine["tree_depth"][:, :20] = 10  # 4 %
    assert summarize(draws, stats=fine).notes == ()


def test_many_stuck_chains_are_one_note():
    x = np.random.default_rng(6).normal(size=(20, 200, 2))
    x[3:, :, 1] = np.arange(17)[:, None]
    text = note(summarize({"x": x}), "never moved")
    assert text.startswith("Chain 3, Chain 4, Chain 5, Chain 6, Chain 7 and 12 more never moved")
    assert "in x[1]. Try" in text


def test_many_short_chains_need_no_hundred_draws_each():
    x = np.random.default_rng(8).normal(size=(256, 20))
    assert not any("ESS" in text for text in summarize({"x": x}).notes)
    stuck = np.repeat(x[:, :1], 20, 1) + 1e-3 * x
    assert note(summarize({"x": stuck}), "Bulk ESS").startswith("Bulk ESS is under 1,000 for x (")


def test_one_chain_and_too_few_draws_are_said(draws):
    one = {name: x[:1] for name, x in draws.items()}
    assert "One chain only" in summarize(one).notes[0]
    assert np.isnan(summarize(one)["mu"]["rhat"])
    few = {"x": np.ones((4, 1))}
    assert summarize(few).notes == ("1 draw per chain: diagnostics need 4. Draw more.",)
    assert summarize(few)["x"]["mean"] == 1.0


def test_edges():
    assert summarize({}).rows == ()
    assert summarize({"x": np.zeros((2, 10, 0))}).rows == ()
    assert summarize({"b": np.arange(20).reshape(2, 10) % 2 == 0})["b"]["mean"] == 0.5
    assert np.isnan(summarize({"x": np.zeros((2, 0, 2))}).values).all()


def test_wrong_arguments_are_named(draws):
    with pytest.raises(ResultError, match="leading shapes"):
        summarize({**draws, "x": np.zeros((4, 10))})
    with pytest.raises(ArgumentError, match=r"quantiles=\(5,\)"):
        summarize(draws, quantiles=(5,))
    with pytest.raises(ResultError, match="2 values for 'school'"):
        summarize(draws, dims={"theta": ("school",)}, coords={"school": ["A", "B"]})
    with pytest.raises(ResultError, match="repeated values for 'school'"):
        summarize(draws, dims={"theta": ("school",)}, coords={"school": ["A", "B", "A"]})
    with pytest.raises(ResultError, match="at most one name for each axis"):
        summarize(draws, dims={"mu": ("school",)})


def test_weighted_summary():
    x = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    log_weights = np.log([1.0, 2.0, 1.0])
    summary = summarize_weighted({"x": x, "k": np.array([5, 5, 9])}, log_weights)
    assert summary.rows == ("x[0]", "x[1]", "k")
    assert summary.columns == ("mean", "sd", "5%", "50%", "95%", "se_mean")
    assert summary["x"]["mean"].tolist() == [1.0, 1.0]
    assert summary["k"] == pytest.approx(
        {"mean": 6, "sd": 3**0.5, "5%": 5, "50%": 5, "95%": 9, "se_mean": 0.875**0.5}
    )
    assert summary.title == "3 particles, effective 2.7"
    assert summary.notes == ()


def test_weighted_notes():
    x = np.random.default_rng(4).normal(size=1000)
    degenerate = np.where(np.arange(1000) < 3, 0.0, -50.0)
    assert "worth 3.0 of 1,000" in note(summarize_weighted({"x": x}, degenerate), "worth")
    dead = summarize_weighted({"x": x}, np.full(1000, -np.inf))
    assert "No particle" in dead.notes[0]
    assert np.isnan(dead.values).all()
    x[5] = np.inf
    assert "particles in x:" in note(summarize_weighted({"x": x}, np.zeros(1000)), "NaN")


def test_html_is_escaped():
    summary = summarize({"<b>": np.random.default_rng(5).normal(size=(1, 50))})
    page = summary._repr_html_()
    assert "<b>" not in page
    assert "&lt;b&gt;" in page
    assert "<details" in page
    assert "&lt;i&gt;" in html.details("<i>", "<p>body</p>")
    assert "<p>body</p>" in html.details("<i>", "<p>body</p>")
    assert html.table(["a"], [["<"]], caption="&").count("&lt;") == 1


def test_text_table_alignments():
    text = html.text_table(["name", "x", "n"], [["a", "1.25", "7"], ["bcd", "10", "100"]], "l.r")
    assert text == "name      x    n\na      1.25    7\nbcd   10     100"
    assert html.text_table(["a", "b"], []) == "a  b"


def test_the_statistics_of_several_kernels_are_read_one_by_one():
    rng = np.random.default_rng(2)
    draws = {"x": rng.normal(size=(4, 500))}
    diverging = np.zeros((4, 500), bool)
    diverging[0, :3] = True
    rates = np.where(rng.random((4, 500)) < 0.5, np.nan, 0.02)  # a mixture drew it half of the time
    stats = {"nuts_0.diverging": diverging, "nuts_1.diverging": ~diverging & False}
    notes = summarize(draws, stats={**stats, "mh.acceptance_rate": rates}).notes
    assert sum("diverged" in note for note in notes) == 1
    assert any(note.startswith("nuts_0: 3 of 2,000 transitions diverged") for note in notes)
    assert any(note.startswith("mh: The acceptance rate is under") for note in notes)
