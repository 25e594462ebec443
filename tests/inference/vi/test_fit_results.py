"""`ppl.vi.fit`: what it gives, and what it refuses."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ppl
from ppl.errors import ArgumentError, ResultError
from ppl.inference.vi import elbo
from ppl.inference.vi.fit import fit
from ppl.inference.vi.stopping import Plateau
from tests.inference.vi.test_fit import GUIDE, START, Y, exact, guide, noisy, normal, parabola, run

# --- Results ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    objective = elbo(normal(Y), guide)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 400))
    return run(objective, GUIDE, 400, maximize=None, optimizer=optimizer)


def test_guide_draws_and_weights(fitted):
    exact = Y.sum() / 5, 5**-0.5
    assert fitted.maximize
    assert fitted.guide.latents == ("mu",)
    draws = np.asarray(fitted.draws(1, 4000)["mu"])
    loc, scale = float(fitted.params["loc"]), float(jnp.exp(fitted.params["log_scale"]))
    assert abs(draws.mean() - loc) < 4.9 * scale / np.sqrt(4000)
    weighed = fitted.psis(2, 4000)
    assert weighed.pareto_k < weighed.reliable_k == 0.7
    weights = np.exp(weighed.log_weights)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
    # The weights mend what is left of the guide's error; z within 4.9 with probability 1 - 1e-6.
    error = np.sqrt(np.sum(weights**2 * (np.asarray(weighed.draws["mu"]) - exact[0]) ** 2))
    assert abs(weights @ np.asarray(weighed.draws["mu"]) - exact[0]) < 4.9 * error
    assert "usable" in repr(weighed)


def test_the_tail_tells_a_narrow_guide(fitted):
    """For a normal guide of s times the posterior's sd, k is 1 - s squared."""
    narrow = {"loc": jnp.array(Y.sum() / 5), "log_scale": jnp.log(0.3 * 5**-0.5)}
    start = run(fitted.objective, narrow, 1, maximize=None, optimizer=optax.sgd(0.0))
    weighed = start.psis(0, 20_000)
    # The posterior sd of k is (1 + k) over the root of the tail's size, 425: five of them.
    assert abs(weighed.pareto_k - 0.91) < 5 * 1.91 / np.sqrt(425)
    assert "not to be trusted" in repr(weighed)


def test_draws_start_chains(fitted):
    init = fitted.draws(0, 3)
    assert init["mu"].shape == (3,)
    kernel = ppl.kernel(lambda trace: trace.with_choices({}))
    chains = ppl.run(ppl.mcmc(normal(Y), kernel, 1, 0, 3, init=init), 0, progress=False)
    np.testing.assert_array_equal(chains["mu"][:, 0], init["mu"])


def test_how_a_fit_is_shown(fitted):
    summary = fitted.summary()
    assert len(summary) == 10
    assert summary.rows[0] == "1-40"
    first = np.asarray(fitted.values, float)[:40]
    np.testing.assert_allclose(summary["1-40"]["mean"], first.mean())
    assert "maximised: 400 steps" in repr(fitted)
    assert "elbo(normal" in repr(fitted)
    assert "<table" in fitted._repr_html_()
    going = run(exact, START, 20, optimizer=optax.sgd(1e-3))
    assert "still get better" in str(going)
    assert "still get better" not in str(fitted)
    assert fitted.plot().axes[0].get_xlabel() == "step"
    assert len(noisy(1).summary()) == 1
    with pytest.raises(ResultError, match="guide got the fit of an objective of type"):
        _ = going.guide


# --- Bad input ----------------------------------------------------------------------------------


def test_arguments_are_checked():
    x = jnp.zeros(3)
    for options, match in (
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_samples": 1.5}, "num_samples=1.5"),
        ({"average": 0.0}, "average=0.0"),
        ({"average": True}, "average=True"),
        ({"stop": 100}, "stop=100"),
        ({"optimizer": 0.1}, "optimizer=0.1"),
        ({"optimizer": optax.adam}, "optimizer="),
        ({"maximize": None}, "maximize=None"),
        ({"num_step": 5}, "num_step"),
    ):
        with pytest.raises(ArgumentError, match=match):
            fit(parabola, x, **{"maximize": False, **options})
    for params, match in (
        (None, "params=None"),
        ({"n": jnp.arange(3), "x": x}, r"params\['n'\] of dtype int32"),
        ({"x": x, "flag": True}, r"params\['flag'\] of dtype bool"),
        ([], r"params=\[\]"),
    ):
        with pytest.raises(ArgumentError, match=match):
            fit(parabola, params, maximize=False)
    with pytest.raises(ArgumentError, match="program has no parameters left"):
        fit(parabola(x), x, maximize=False)
    with pytest.raises(ArgumentError, match="an objective that gave"):
        fit(lambda x: x, x, maximize=False)
    with pytest.raises(ArgumentError, match="one real number"):
        fit(guided_vector, x, maximize=False)
    for window, options, match in ((1, {}, "window=1"), (9, {"z": -1.0}, "z=-1.0")):
        with pytest.raises(ArgumentError, match=match):
            Plateau(window, **options)
    for number in (0, 1.5):
        with pytest.raises(ArgumentError, match="extend got num_steps="):
            noisy(2).extend(number)


@ppl.model
def guided_vector(x):
    return x
