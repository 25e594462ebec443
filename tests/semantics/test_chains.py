"""Draws of Markov chains: names of axes, files, predictive draws, exports, pictures."""

from __future__ import annotations

import matplotlib.figure
import matplotlib.pyplot as plt
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.errors import AddressError

Y = np.array([[0.5, 1.5, -1.0], [0.0, 0.2, 0.4]], np.float32)


@ppl.model
def hierarchy(y):
    mu = ppl.sample("mu", dist.Normal(0.0, 1.0))
    with ppl.plate("group", 2, dim=-2):
        theta = ppl.sample("theta", dist.Normal(mu, 1.0))
        with ppl.plate("member", 3, dim=-1):
            ppl.sample("y", dist.Normal(theta, 0.5), obs=y)
    with ppl.scope("aux"):
        ppl.sample("w", dist.Dirichlet(np.ones(2, np.float32)))
    ppl.deterministic("spread", theta - mu)


@pytest.fixture(scope="module")
def chains():
    kernel = ppl.kernels.nuts(max_tree_depth=4)
    return ppl.run(ppl.mcmc(hierarchy(Y), kernel, 50, 50, 2), 0, progress=False)


def test_shapes_and_order(chains):
    assert list(chains.draws) == ["mu", "theta", "aux/w", "spread"]
    assert (chains.num_chains, chains.num_draws) == (2, 50)
    shapes = {a: x.shape[2:] for a, x in chains.draws.items()}
    assert shapes == {"mu": (), "theta": (2, 1), "aux/w": (2,), "spread": (2, 1)}
    assert all(x.shape == (2, 50) for x in chains.stats.values())
    difference = chains["theta"] - np.asarray(chains["mu"])[..., None, None]
    np.testing.assert_allclose(chains["spread"], difference, atol=1e-6)
    np.testing.assert_allclose(np.sum(chains["aux/w"], -1), 1, atol=1e-6)
    with pytest.raises(ppl.PPLError, match='"thet"'):
        _ = chains["thet"]


def test_summary_and_printing(chains):
    text = str(chains)
    for name in ("mu", "theta", "aux/w", "spread"):
        assert name in text
    assert "<table" in chains._repr_html_()
    rows = str(chains.summary(quantiles=(0.1, 0.9)))
    assert "10%" in rows or "0.1" in rows


def test_an_element_is_no_address_of_a_summary(chains):
    with pytest.raises(AddressError, match=r'an element of "theta"; .*Fix: summary\(\["theta"\]\)'):
        chains.summary(["mu", "theta[0,0]"])
    with pytest.raises(AddressError, match="unknown address"):
        chains.summary(["nu[0]"])


def test_summary_numbers(chains):
    mu = np.asarray(chains["mu"], float)
    line = next(x for x in str(chains.summary()).splitlines() if x.split()[:1] == ["mu"])
    mean = float(line.split()[1])
    # Printed to the digits that its error supports: within one MCSE of the plain mean.
    assert abs(mean - mu.mean()) <= mu.std()


def test_predictive(chains):
    out = chains.predictive(0)
    assert out["y"].shape == (2, 50, 2, 3)
    np.testing.assert_allclose(out["spread"], chains["spread"], atol=1e-6)
    # Standardised residuals of 600 draws: |z| < 5.
    z = (np.asarray(out["y"]) - np.asarray(chains["theta"])) / 0.5
    assert abs(z.mean()) < 5 / np.sqrt(z.size)
    assert abs((z**2).mean() - 1) < 5 * np.sqrt(2 / z.size)
    np.testing.assert_array_equal(out["y"], chains.predictive(0)["y"])


def test_save_and_load(chains, tmp_path):
    path = tmp_path / "chains.npz"
    chains.save(str(path))
    bare = ppl.Chains.load(str(path))
    for address, x in chains.draws.items():
        np.testing.assert_array_equal(bare[address], x)
    for name, x in chains.stats.items():
        np.testing.assert_array_equal(bare.stats[name], x)
    assert bare.latents == chains.latents
    assert bare._dims == chains._dims, "the names of axes are in the file"
    assert str(bare) == str(chains)
    with pytest.raises(ppl.PPLError, match="program"):
        bare.predictive(0)
    full = ppl.Chains.load(str(path), hierarchy(Y))
    np.testing.assert_array_equal(full.predictive(1)["y"], chains.predictive(1)["y"])
    other = ppl.model(lambda: ppl.sample("z", dist.Normal(0.0, 1.0)))()
    with pytest.raises(ppl.PPLError, match="theta"):
        ppl.Chains.load(str(path), other)
    with pytest.raises(ppl.PPLError, match="chains"):
        ppl.Population.load(str(path))


def test_arviz_names_axes_by_plates(chains):
    pytest.importorskip("arviz")
    idata = chains.to_arviz(log_likelihood=True, posterior_predictive=chains.predictive(0))
    posterior = idata["posterior"]
    assert posterior["theta"].dims[:3] == ("chain", "draw", "group")
    assert posterior["aux.w"].attrs["address"] == "aux/w"
    assert dict(posterior.sizes)["group"] == 2
    assert idata["observed_data"]["y"].dims == ("group", "member")
    np.testing.assert_array_equal(idata["observed_data"]["y"], Y)
    likelihood = idata["log_likelihood"]["y"]
    assert likelihood.dims == ("chain", "draw", "group", "member")
    expected = dist.Normal(chains["theta"], 0.5).log_prob(Y)
    np.testing.assert_allclose(likelihood, expected, rtol=1e-4, atol=1e-5)
    assert idata["posterior_predictive"]["y"].dims[2:] == ("group", "member")
    assert idata["sample_stats"]["diverging"].dtype == bool


@pytest.mark.parametrize("kind", ["trace", "posterior", "forest", "pair", "rank", "energy"])
def test_plots(chains, kind):
    made = chains.plot(kind)
    figure = made if isinstance(made, matplotlib.figure.Figure) else plt.gcf()
    assert figure.axes
    plt.close("all")


def test_unknown_plot(chains):
    with pytest.raises(ppl.PPLError, match="trace"):
        chains.plot("trase")
