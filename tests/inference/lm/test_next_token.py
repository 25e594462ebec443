"""The distribution of the next token: its law, in one stage and in two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import ppl
from ppl.errors import DistributionError

lm = ppl.lm


@pytest.mark.parametrize("size", [5, 256, 300, 1000])
def test_draws_have_the_law(size):
    """A chi-squared test over tokens of equal expected counts; it errs once in a million."""
    logits = 2.0 * jax.random.normal(jax.random.key(size), (size,))
    logits = logits.at[jnp.array([0, size // 2, size - 1])].set(-jnp.inf)
    d, draws = lm.NextToken(logits), 20_000
    found = np.bincount(np.asarray(d.sample(jax.random.key(1), (draws,))), minlength=size)
    mass = np.asarray(jnp.exp(d.log_prob(jnp.arange(size))), float)
    assert mass.sum() == pytest.approx(1.0, abs=1e-5)
    assert (found[mass == 0] == 0).all()
    rare = mass * draws < 10
    counts = np.append(found[~rare], found[rare].sum())
    wanted = np.append(mass[~rare], mass[rare].sum()) * draws
    keep = wanted > 0
    statistic = np.sum((counts[keep] - wanted[keep]) ** 2 / wanted[keep])
    assert stats.chi2.sf(statistic, keep.sum() - 1) > 1e-6


def test_rare_tokens_of_large_vocabularies_are_drawn_as_often_as_they_should():
    """Of 2^16 tokens one has half the mass; the others share the rest, in float32."""
    logits = jnp.zeros(2**16).at[7].set(jnp.log(2.0**16 - 1))
    draws = np.asarray(lm.NextToken(logits).sample(jax.random.key(0), (20_000,)))
    share = np.mean(draws == 7)
    assert abs(share - 0.5) < 5 * 0.5 / np.sqrt(draws.size)
    others = draws[draws != 7]
    assert abs(others.mean() / 2**16 - 0.5) < 5 / np.sqrt(12 * others.size)
    assert len(set(others.tolist())) > 0.9 * others.size  # they hardly ever coincide


def test_batches_draw_and_weigh_row_by_row():
    logits = jax.random.normal(jax.random.key(0), (3, 2, 300))
    d = lm.NextToken(logits)
    draws = d.sample(jax.random.key(1), (4,))
    assert draws.shape == (4, 3, 2)
    wanted = jnp.take_along_axis(jax.nn.log_softmax(logits)[None], draws[..., None], axis=-1)[
        ..., 0
    ]
    np.testing.assert_allclose(d.log_prob(draws), wanted, rtol=1e-6)
    one = jnp.full((3, 2, 300), -jnp.inf).at[..., 299].set(0.0)
    assert (lm.NextToken(one).sample(jax.random.key(2), (50,)) == 299).all()


def test_logits_that_are_no_numbers_are_refused():
    @ppl.model
    def program():
        return ppl.sample("t", lm.NextToken(np.array([0.0, np.nan])))

    with pytest.raises(DistributionError, match="logits"):
        program()
