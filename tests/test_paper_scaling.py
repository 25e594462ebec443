"""The comparison of methods on running sums: its checker, its verifier, and its arithmetic."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import ppl
from paper_checks import inference_time_scaling as scaling
from paper_checks import self_steering as steering
from paper_checks.scaling import methods, problems

SUM = problems.Problem((7, 7, 1, 5, 9))
RIGHT = SUM.question + "".join(SUM.lines)


def test_problems_and_their_lines():
    assert SUM.lines[0] == "7 + 7 = 14\n"
    assert SUM.answer == "29"
    found = problems.problems(50, seed=1)
    assert len(set(found)) == 50
    assert found == problems.problems(50, seed=1)
    assert problems.examples().count("Numbers:") == problems.EXAMPLES
    assert not set(problems.problems(problems.EXAMPLES, seed=-1)) & set(problems.problems(200, 0))


def test_the_checker_reads_line_by_line():
    lines = RIGHT.splitlines(keepends=True)
    for n in range(2, len(lines) + 1):
        assert problems.correct("".join(lines[:n]))
    assert not problems.correct(lines[0])  # nothing is said yet
    assert not problems.correct(RIGHT.replace("14", "15"))
    assert not problems.correct(RIGHT + "29 + 1 = 30\n")
    assert not problems.correct(RIGHT.rstrip("\n"))
    assert problems.answered(RIGHT) == "29"
    assert problems.answered("".join(lines[:3])) is None
    assert problems.answered(RIGHT.replace("= 29", "is 29")) is None
    wrong = RIGHT.replace("= 29", "= 28")
    assert problems.answered(wrong) == "28"


def test_noise_belongs_to_the_text():
    texts = [f"{RIGHT}{i}" for i in range(2000)]
    logits = [math.log(s / (1 - s)) for s in (problems.score(t, 2.0, 1.5) for t in texts)]
    assert problems.score(texts[0], 2.0, 1.5) == problems.score(texts[0], 2.0, 1.5)
    # All are wrong: a normal number of mean -2 and sd 1.5, within five standard errors.
    assert abs(np.mean(logits) + 2.0) < 5 * 1.5 / math.sqrt(2000)
    assert abs(np.std(logits) - 1.5) < 5 * 1.5 / math.sqrt(4000)
    assert problems.score(RIGHT, 2.0, 0.0) == pytest.approx(1 / (1 + math.exp(-2.0)))
    assert len(problems.scores(RIGHT, 2.0, 0.0)) == problems.LINES


def test_answers_without_resampling():
    wrong = RIGHT.replace("= 29", "= 28")
    exact = methods.Verifier(2.0, 0.0)
    found = methods.without_resampling([wrong, wrong, RIGHT], exact)
    assert found["single"] == found["self-consistency"] == "28"
    assert found["best-of-n"] == found["weighted vote"] == found["importance"] == "29"


def test_counts_and_intervals():
    right = {
        ("particle filter", 4, 1.0): [True, True, True, False],
        ("best-of-n", 4, 1.0): [False, True, False, True],
        ("particle filter", 1, 1.0): [True, False, False, False],
    }
    assert scaling.compared(right, "particle filter", "best-of-n", 4, 1.0)[:2] == (2, 1)
    assert scaling.compared(right, "particle filter", "best-of-n", 4, 1.0)[2] == pytest.approx(0.5)
    share, low, high = scaling.interval([True] * 50 + [False] * 50)
    assert (share, round(low, 3), round(high, 3)) == (0.5, 0.404, 0.596)
    # From a quarter at one run to three quarters at four: a half at two, by logarithms.
    needed = scaling.runs_needed(right, "particle filter", 0.5, 1.0)
    assert needed == pytest.approx(2.0)
    assert scaling.runs_needed(right, "particle filter", 0.9, 1.0) == math.inf


def test_what_is_not_finished_counts_for_no_verdict():
    """Sixteen runs have answered one problem of twenty, and none of those right."""
    right = {(m, 4, 1.0): [m == "particle filter"] * 20 for m in scaling.METHODS}
    right |= {(m, 16, 1.0): [m == "best-of-n"] for m in scaling.METHODS}
    right |= {(m, 16, 3.0): [False] for m in scaling.METHODS}
    good, text = scaling.verdict(right)
    assert good
    assert "at N = 4: 20 problems won" in text
    assert "noise 1: N = 16 not finished" in text
    assert "noise 3: N = 16 not finished" in text
    assert "noise 3: particle filter" not in text
    assert "N = 16 (1 of 20)" in scaling.table(right)


@pytest.mark.slow
def test_the_whole_study_on_a_table(tmp_path, monkeypatch):
    """All methods run on a model of single letters, which gets nothing right."""
    letters = ppl.lm.Vocabulary([*"Numbers: 0123456789+=\n", None])
    logits = jnp.zeros((len(letters) + 1, len(letters)))
    model = ppl.lm.Table(letters, logits)
    right = scaling.study(model, 2, [1, 4, 8], [1.0], together=2)
    assert set(right) == {(m, n, 1.0) for m in scaling.METHODS for n in (1, 4, 8)}
    assert all(len(flags) == 2 for flags in right.values())
    scaling.save(right, tmp_path)
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000
    text = (tmp_path / "results.txt").read_text()
    assert all(name in text for name in scaling.METHODS)
    assert "FAILS" in text  # nothing is above anything
    begun, kept = scaling.saved(tmp_path, [1, 4, 8], [1.0])
    assert (begun, kept) == (right, {})
    assert scaling.saved(tmp_path, [4], [2.0]) == ({}, right)  # another noise is added to it
    monkeypatch.setattr(scaling.Bench, "draw", None)  # all is there: nothing is drawn
    assert scaling.study(model, 2, [1, 4, 8], [1.0], together=2, begun=begun) == right
    # Other numbers are added, and those that are there can be asked for alone.
    begun, kept = scaling.saved(tmp_path, [4], [1.0])
    assert ({n for _, n, _ in begun}, {n for _, n, _ in kept}) == ({4}, {1, 8})
    for numbers, noises in (([4, 16], [1.0]), ([4], [1.0, 2.0])):
        with pytest.raises(SystemExit, match="those alone that it lacks"):
            scaling.saved(tmp_path, numbers, noises)
    both = {**right, **{(m, n, 2.0): f for (m, n, _), f in right.items() if n > 1}}
    assert [scaling.numbers_of(both, s) for s in scaling.noises_of(both)] == [[1, 4, 8], [4, 8]]
    assert scaling.table(both).count("self-consistency") == 2


def test_a_steered_sentence_is_judged():
    for task in steering.TASKS:
        assert task.pattern.endswith(r"\.")
    good = steering.Found("Sun to ore red mud.", True, -2.0, -10.0)
    bad = steering.Found("", False, math.nan, -math.inf)
    assert "no run" in steering.row("SMC", [bad])
    assert steering.row("SMC", [good, good]).split()[1] == "1.00"
    found = {("t", m): [good, good] for m in ("local", "importance", "SMC")}
    assert not steering.verdict(found)[0]  # no likelier than the local ones
