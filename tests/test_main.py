"""`python -m ppl`, run once as a user does: its figures, its picture, its options."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, stats

import ppl.__main__ as job

ROOT = Path(__file__).resolve().parents[1]
Y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
NAMES = {"mu": "mu", "tau": "tau"} | {
    f"theta[{letter}]": f"theta[{k}]" for k, letter in enumerate("ABCDEFGH", 1)
}
Z = 5.5  # two-sided 4e-8 a comparison; 12 comparisons here: 5e-7 in all


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Run the job in an empty folder; give what it printed and that folder."""
    folder = tmp_path_factory.mktemp("job")
    # As an installed package is found from anywhere.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "ppl", "--output", "drawn.png"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""  # no terminal, so no progress bar either
    return result.stdout, folder


def rows(text: str) -> dict[str, dict[str, float]]:
    """Read the summary table out of the printed text."""
    lines = text.splitlines()
    (start,) = (k for k, line in enumerate(lines) if line.split()[:2] == ["mean", "sd"])
    columns = lines[start].split()
    table = {}
    for line in lines[start + 1 :]:
        if not line:
            return table
        label, *cells = line.split()
        numbers = [float(cell.replace(",", "")) for cell in cells]
        table[label] = dict(zip(columns, numbers, strict=True))
    raise AssertionError(f"the table does not end:\n{text}")


def estimates(pattern: str, text: str) -> list[tuple[float, float]]:
    """Find every `<pattern> a ± b` as (a, b)."""
    found = re.findall(rf"{pattern} (-?\d+\.\d+) ± (\d+\.\d+)", text)
    return [(float(a), float(b)) for a, b in found]


@pytest.mark.slow
def test_means_agree_with_the_reference(outcome, posteriordb):
    text, _ = outcome
    folder = posteriordb("eight_schools-eight_schools_noncentered")
    reference = json.loads((folder / "reference.json").read_text("utf-8"))["parameters"]
    printed = rows(text)
    assert set(printed) == set(NAMES)
    for ours, theirs in NAMES.items():
        row, known = printed[ours], reference[theirs]
        # Printed with two decimals: rounding adds at most 0.005.
        error = np.hypot(row["mcse_mean"], known["mcse_mean"])
        assert abs(row["mean"] - known["mean"]) < Z * error + 0.005, ours
        assert row["rhat"] < 1.01
        assert row["ess_bulk"] > 400


def log_marginal(tau: float) -> float:
    """Integrate mu and theta out by hand: y is normal given tau."""
    covariance = np.diag(SIGMA**2 + tau**2) + 25.0
    return float(stats.multivariate_normal(np.zeros(8), covariance).logpdf(Y))


@pytest.mark.slow
def test_evidences_agree_with_quadrature(outcome):
    text, _ = outcome
    prior = stats.halfcauchy(scale=5.0)
    # Over the prior's probability u, so that the heavy tail needs no cut.
    mass, _ = integrate.quad(lambda u: np.exp(log_marginal(prior.ppf(u)) + 30.0), 0.0, 1.0)
    (some, none) = estimates("log evidence =", text)
    for (value, error), exact in ((some, np.log(mass) - 30.0), (none, log_marginal(0.0))):
        assert 0 < error < 0.02
        assert abs(value - exact) < Z * error + 0.0005
    ((factor, error),) = estimates("by a factor of", text)
    assert factor == pytest.approx(np.exp(abs(none[0] - some[0])), abs=0.01)


@pytest.mark.slow
def test_probability_that_school_a_is_better_than_c(outcome, posteriordb):
    text, _ = outcome
    folder = posteriordb("eight_schools-eight_schools_noncentered")
    with np.load(folder / "draws.npz") as draws:
        event = draws["theta[1]"] > draws["theta[3]"]  # nearly independent draws
    ((value, error),) = estimates(r"P\(theta\[A\] > theta\[C\]\) =", text)
    combined = np.hypot(error, event.std() / np.sqrt(event.size))
    assert abs(value - event.mean()) < Z * combined


@pytest.mark.slow
def test_probabilities_come_with_their_errors(outcome):
    text, _ = outcome
    found = estimates(r"P\([^=]*\[?.*\]?\) =", text)
    assert len(found) == 3
    assert all(0 < value < 1 and 0 < error < 0.02 for value, error in found)


@pytest.mark.slow
def test_picture_is_written_and_readable(outcome):
    from matplotlib import image

    text, folder = outcome
    assert [path.name for path in folder.iterdir()] == ["drawn.png"]
    assert "drawn.png" in text
    pixels = image.imread(folder / "drawn.png")
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 1000
    assert pixels.std() > 0.05  # there is something on it


def test_default_picture_is_ignored_by_git():
    assert "/posterior.png" in (ROOT / ".gitignore").read_text("utf-8").splitlines()
    assert job._options([]).output == Path("posterior.png")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--outptu", "x.png"], "unrecognized arguments"),
        (["--out", "x.png"], "unrecognized arguments"),
        (["--output", "x.gif"], ".png, .pdf, .svg"),
        (["--output", "no/such/folder/x.png"], "folder"),
        (["--seed", "many"], "invalid int"),
    ],
)
def test_wrong_arguments_are_refused_before_the_fit(arguments, complaint, capsys):
    with pytest.raises(SystemExit) as stop:
        job.main(arguments)
    assert stop.value.code == 2
    assert complaint in capsys.readouterr().err


def test_help_names_the_options(capsys):
    with pytest.raises(SystemExit) as stop:
        job.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "--output" in shown
    assert "posterior.png" in shown
