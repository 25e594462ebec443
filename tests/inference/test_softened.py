"""Resampling by a power of the weights: the measure stays, and weights keep their rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.errors import ArgumentError

pytestmark = pytest.mark.usefixtures("x64")


@ppl.model
def chain(y):
    def step(bit, y):
        bit = ppl.sample("bit", dist.Bernoulli(0.2 + 0.5 * bit))
        ppl.factor("y", jnp.where(bit == y, 0.3, -1.5))
        return bit, None

    return jax.lax.scan(step, jnp.zeros((), int), y)[0]


PROGRAM = chain(jnp.array([1, 0, 1]))


@pytest.mark.parametrize(
    "power",
    [
        lambda share, progress: 0.5,
        lambda share, progress: jnp.clip(share + progress, 0.0, 1.0),
        lambda share, progress: 0.0,
    ],
    ids=["half", "annealed", "none"],
)
@pytest.mark.parametrize("resample", ["systematic", "multinomial"])
def test_the_measure_stays(power, resample):
    report = ppl.check.preserves(
        lambda p: ppl.smc(p, 2, resample=resample, ess_threshold=1.0, resample_power=power), PROGRAM
    )
    assert report.passed, report


def test_a_power_of_one_is_plain_resampling():
    settings = {"ess_threshold": 1.0}
    plain = ppl.run(ppl.smc(PROGRAM, 32, **settings), 0)
    power = ppl.run(ppl.smc(PROGRAM, 32, **settings, resample_power=lambda s, p: 1.0), 0)
    np.testing.assert_array_equal(plain.values, power.values)
    np.testing.assert_allclose(plain.log_weights, power.log_weights, atol=1e-12)


def test_a_power_of_zero_keeps_all_weights():
    """Nothing is chosen: the evidence is that of importance sampling with the same weights."""
    power = ppl.run(ppl.smc(PROGRAM, 64, ess_threshold=1.0, resample_power=lambda s, p: 0.0), 1)
    total = jax.nn.logsumexp(power.log_weights) - jnp.log(64)
    assert len(set(np.asarray(power.families).tolist())) == 64
    assert power.log_evidence == pytest.approx(float(total), abs=1e-10)


def test_wrong_powers_are_refused():
    with pytest.raises(ArgumentError, match="one number"):
        ppl.smc(PROGRAM, 2, resample_power=lambda s, p: jnp.zeros(2))
    with pytest.raises(ArgumentError, match=r"lookahead and a resample_power.*one of them"):
        ppl.smc(PROGRAM, 2, lookahead=lambda c, t: 0.0, resample_power=lambda s, p: 1.0)
