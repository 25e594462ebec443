"""The papers' claims hold, known mistakes are seen, and a claim that fails fails the run."""

import pytest

from paper_checks import denotational_validation as validation
from paper_checks.denotational import distances, metropolis
from paper_checks.denotational.programs import drawn, may_lack_sites

CLAIMS = {claim.name: claim for claim in validation.claims()}
SLOW = {"resample", "SMC", "trace MH"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CLAIMS]
)
def test_a_claim_holds_and_its_mistake_is_seen(name, x64):
    """Exact, so without false alarms; random programs come on top of those written by hand."""
    good, text = validation.verdict(CLAIMS[name], validation.programs(0 if name in SLOW else 1))
    assert good, text
    assert "(exact; at most 1e-10)" in text


def test_random_programs_are_the_same_in_every_run(x64):
    one, two = (drawn(3, may_lack_sites) for _ in range(2))
    assert [str(p) for p in one] == [str(p) for p in two]
    assert all(map(may_lack_sites, one))


FALSE = {
    "a claim that fails": ([0.0, 0.5], [1.0], "verdict  FAILS\n"),
    "a mistake unseen": ([0.0], [0.0], "holds, MISTAKE UNSEEN\n"),
    "nothing compared": ([], [1.0], "verdict  FAILS\n"),
}


@pytest.mark.parametrize(("values", "wrong", "said"), FALSE.values(), ids=FALSE)
def test_a_failure_gives_exit_code_one(values, wrong, said, monkeypatch, capsys):
    claim = validation.Claim("false", "nowhere", "-", lambda _: values, "-", lambda _: wrong)
    monkeypatch.setattr(validation, "claims", lambda: [claim, CLAIMS["sample"]])
    assert validation.main(["--programs", "0"]) == 1
    printed = capsys.readouterr().out
    assert said in printed
    assert "1 of 2 claims hold" in printed


def test_all_well_gives_exit_code_zero(monkeypatch, capsys):
    monkeypatch.setattr(validation, "claims", lambda: [CLAIMS["sample"]])
    assert validation.main(["--programs", "0"]) == 0
    assert "1 of 1 claims hold" in capsys.readouterr().out


def test_a_comparison_by_draws_is_no_exact_check():
    """At the false-alarm probability of one in a million that the report states."""
    report = validation.ppl.check.preserves(lambda p: p, distances.uniform())
    with pytest.raises(AssertionError, match="not exact"):
        distances.exact(report)


def test_the_slip_of_precedence_has_its_known_long_run(x64):
    """4/9 is 0.8 / (0.8 + 1): up with probability min(1, 4 / 5), down always."""
    assert max(metropolis.long_run(metropolis.precedence, 4 / 9)) < 1e-10
