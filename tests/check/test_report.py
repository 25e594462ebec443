"""A report says what was found, passes only when it passed, and prints for people."""

import pytest

from ppl.check import CheckFailed, Report
from ppl.errors import PPLError, ResultError

FACTS = dict(
    statistic=0.277,
    statistic_name="total variation",
    threshold=1e-10,
    budget={"worlds": 1234},
    witness="site  kind\nx<y   latent",
    columns=("state", "p", "q"),
    differences=[("x=0, y=1", "0.25", "0.5"), ("x=1, y=1", "0.75", "0.5")],
    notes=("The mass of x=0 differs.",),
)


def report(verdict, **changes):
    return Report("invariant", verdict, **{**FACTS, **changes})


@pytest.mark.parametrize("verdict", ["failed", "undecided"])
def test_only_a_passed_check_passes(verdict):
    assert report("passed").passed
    assert report("passed")
    assert not report(verdict).passed
    assert not report(verdict)


@pytest.mark.parametrize("verdict", ["failed", "undecided"])
def test_require_raises_the_report(verdict):
    with pytest.raises(CheckFailed, match=rf"(?s)invariant: {verdict}.*total variation  0\.277"):
        report(verdict).require()
    with pytest.raises(AssertionError):
        report(verdict).require()
    with pytest.raises(PPLError):
        report(verdict).require()


def test_require_gives_the_report_back():
    passed = report("passed")
    assert passed.require() is passed


def test_text():
    assert str(report("failed")) == (
        "invariant: failed\n"
        "  total variation  0.277\n"
        "  threshold        1e-10\n"
        "  false alarm      none (exact)\n"
        "  worlds           1,234\n"
        "  - The mass of x=0 differs.\n"
        "\n"
        "  state        p    q\n"
        "  x=0, y=1  0.25  0.5\n"
        "  x=1, y=1  0.75  0.5\n"
        "\n"
        "  site  kind\n"
        "  x<y   latent"
    )


def test_text_of_a_statistical_check_states_its_false_alarm():
    text = str(report("passed", false_alarm=1e-6, threshold=None, witness="", differences=()))
    assert text == (
        "invariant: passed\n"
        "  total variation  0.277\n"
        "  false alarm      at most 1e-06\n"
        "  worlds           1,234\n"
        "  - The mass of x=0 differs."
    )


def test_html_escapes_and_opens_what_failed():
    html = report("failed")._repr_html_()
    assert "x&lt;y" in html
    assert "x<y" not in html
    assert '<details class="ppl-details" open><summary>differences' in html
    assert " open><summary>differences" not in report("passed")._repr_html_()


def test_plot_without_a_picture_names_the_checks_that_have_one():
    with pytest.raises(ResultError, match=r"plot got .* invariant; needs .* sbc or tarp"):
        report("failed").plot()


def test_plot_draws_on_the_given_axis():
    from matplotlib import pyplot as plt

    _, ax = plt.subplots()
    assert report("passed", draw_plot=lambda ax: ax.plot([0, 1])).plot(ax) is ax
    assert len(ax.lines) == 1
    plt.close()
