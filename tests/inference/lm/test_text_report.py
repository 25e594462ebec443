"""What a population of texts shows: texts, weights, where they part, and what looks wrong."""

import jax.numpy as jnp
import numpy as np
import pytest

import ppl
from ppl.errors import ArgumentError
from ppl.semantics.population import Population
from tests.inference.lm.tables import WORDS, table

lm = ppl.lm


def population(texts, weights, **extra):
    """Particles that wrote some texts."""
    width = max(map(len, texts))
    tokens = [[*t, *[WORDS.end] * (width - len(t))] for t in texts]
    text = lm.Text(jnp.array(tokens), jnp.array([len(t) for t in texts]), WORDS)
    log_weights = jnp.log(jnp.array(weights))
    return Population(text, log_weights, jnp.array(-1.5), **extra)


def test_texts_are_put_together_and_parted_where_they_differ():
    found = lm.report(population([[0, 1], [0, 0, 1], [0, 1], [0]], [0.1, 0.4, 0.25, 0.25]))
    assert [t for t, _ in found.texts] == ["aab", "ab", "a"]
    np.testing.assert_allclose([w for _, w in found.texts], [0.4, 0.35, 0.25], rtol=1e-6)
    assert found.tree.text == "a"
    assert found.tree.weight == pytest.approx(1.0)
    assert [b.text for b in found.tree.branches] == ["ab", "b", ""]
    assert [b.weight for b in found.tree.branches] == pytest.approx([0.4, 0.35, 0.25])
    assert (found.tree.start, found.tree.stop, found.tree.branches[0].stop) == (0, 1, 3)
    shown = str(found)
    assert "log evidence -1.5" in shown
    assert "3 different texts" in shown
    assert "└─" in shown


def test_the_same_spelling_counts_together():
    found = lm.report(population([[0, 1], [2]], [0.5, 0.5]))  # "a" + "b", and "ab"
    assert found.texts == (("ab", pytest.approx(1.0)),)
    assert "same text" in found.notes[-1]


def test_a_run_shows_steps_and_what_was_spent():
    judge = lm.judge(lambda text: 0.1 + 0.2 * text.count("a"))
    model = table(0)
    task = lm.reasoning(model.prompt(room=3), judge, num_steps=3, max_tokens=1, stop=None)
    found = lm.report(ppl.run(ppl.smc(task.program, 16), 0), spent=judge)
    assert found.spent == {"calls of <lambda>": judge.calls}
    assert len(found.steps["ess"]) == 3
    assert f"spent: {judge.calls} calls" in str(found)
    assert "<pre>" in found._repr_html_()
    axes = found.plot().axes
    assert len(axes) == 2
    np.testing.assert_allclose(axes[1].lines[0].get_ydata(), found.steps["ess"])
    widths = {line.get_linewidth() for line in axes[0].lines}
    assert max(widths) == pytest.approx(7.6)  # the root, which all share


def test_a_collapse_is_said_in_words():
    count = 16
    texts = [[0], [1]] * (count // 2)
    weights = [1.0] + [1e-9] * (count - 1)
    notes = " ".join(lm.report(population(texts, weights)).notes)
    assert "collapsed: 16 particles count as 1.0" in notes
    same = population(texts, [1.0] * count, families=jnp.zeros(count, int))
    assert "one first particle" in " ".join(lm.report(same).notes)
    fine = population(texts, [1.0] * count, families=jnp.arange(count))
    assert lm.report(fine).notes == ()
    none = " ".join(lm.report(population(texts, [0.0] * count)).notes)
    assert "no text is possible" in none


def test_what_holds_no_texts_is_refused():
    other = Population(jnp.zeros(2), jnp.zeros(2), jnp.array(0.0))
    with pytest.raises(ArgumentError, match="field `text`"):
        lm.report(other)
    with pytest.raises(ArgumentError, match="judges, or models"):
        lm.report(population([[0]], [1.0]), spent=3)
