"""Scenes of digits: what is drawn where, what is absent costs nothing, and the verdicts."""

import builtins
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import ndtri
from numpyro.infer.util import log_density as numpyro_log_density

import ppl
from paper_checks import programmable_vi as programmable
from paper_checks.vi import scenes, scenes_numpyro

METHODS = {str(m): m for m in scenes.METHODS}


def patches(*_):
    """Fifteen hundred bright patches in place of the digits."""
    return np.random.default_rng(0).uniform(0.4, 1.0, (1500, scenes.DIGIT, scenes.DIGIT))


def test_a_patch_lies_where_it_is_put(x64):
    patch = jnp.asarray(patches()[0])
    where = ndtri(jnp.array([5.0, 12.0]) / scenes.SHIFTS)
    found = np.asarray(scenes.place(where, patch))
    np.testing.assert_allclose(found[5:13, 12:20], patch, rtol=0, atol=1e-10)
    assert abs(found.sum() - patch.sum()) < 1e-10
    half = scenes.place(ndtri(jnp.array([5.5, 12.0]) / scenes.SHIFTS), patch)
    moved = (patch[1:] + patch[:-1]) / 2
    np.testing.assert_allclose(half[6:13, 12:20], moved, rtol=0, atol=1e-10)


def test_what_is_absent_costs_nothing(x64):
    """Place and look of an absent object have the same law in model and guide."""
    image, _ = scenes.scenes(patches(), 1, seed=0)
    image, params = jnp.asarray(image[0], float), scenes.networks(0)
    rng = np.random.default_rng(1)
    drawn = {f"where{i}": rng.standard_normal(2) for i in range(2)}
    drawn |= {f"what{i}": rng.standard_normal(scenes.CODE) for i in range(2)}
    drawn |= {"present0": 0, "present1": 0}
    model, guide = scenes.scene(params, image), scenes.looks(params, image, scenes.METHODS[0])
    found = ppl.log_density(model, drawn) - ppl.log_density(guide, drawn)
    empty = jax.scipy.stats.norm.logpdf(image, 0.0, scenes.NOISE).sum()
    logit = scenes.apply(params["look"], image.ravel())[0]
    flags = math.log(1 / 3) - jax.nn.log_sigmoid(-logit)
    assert abs(found - empty - flags) < 1e-10


def test_a_second_object_needs_a_first(x64):
    image, params = jnp.zeros((scenes.SIDE, scenes.SIDE)), scenes.networks(0)
    logits = {b: float(scenes.flag(0.3, b).logits) for b in (0, 1)}
    assert logits == {0: -30.0, 1: 0.3}
    drawn = ppl.prior_predictive(scenes.looks(params, image, scenes.METHODS[0]), 0, 500)
    assert not np.any(drawn["present1"] > drawn["present0"])
    assert 0 < np.mean(drawn["present1"]) < 1


def test_numpyro_is_given_the_same_scenes_and_guide(x64):
    images, _ = scenes.scenes(patches(), 3, seed=0)
    images, params, rng = jnp.asarray(images, float), scenes.networks(0), np.random.default_rng(1)
    present = np.array([[1, 0], [1, 1], [0, 0]])
    drawn = {f"present{i}": present[:, i] for i in range(2)}
    drawn |= {f"where{i}": rng.standard_normal((3, 2)) for i in range(2)}
    drawn |= {f"what{i}": rng.standard_normal((3, scenes.CODE)) for i in range(2)}
    pairs = [
        (scenes.scene, scenes_numpyro.model),
        (lambda *args: scenes.looks(*args, scenes.METHODS[0]), scenes_numpyro.guide),
    ]
    for program, theirs in pairs:
        each = [
            ppl.log_density(program(params, image), {a: x[k] for a, x in drawn.items()})
            for k, image in enumerate(images)
        ]
        named = {name: params[name] for name in ("decoder", "encoder", "look")}
        total, _ = numpyro_log_density(theirs, (images,), {}, {**drawn, **named})
        np.testing.assert_allclose(total, sum(each), rtol=1e-12)


def test_scenes_hold_as_many_digits_as_counted():
    made, counts = scenes.scenes(patches(), 60, seed=3)
    assert set(counts) == {0, 1, 2}
    assert made.max() <= 1.0
    lit = (made > 0).sum((1, 2))
    assert np.all(lit[counts == 0] == 0)
    assert np.all(lit[counts == 1] == scenes.DIGIT**2)
    assert np.all(lit[counts == 2] >= 2 * scenes.DIGIT**2 - scenes.DIGIT)  # they hardly overlap


def trained(last):
    return scenes.Trained({1: 0.5, 2: last}, (1.0, 0.9, 0.8), 100.0, 0.5)


@pytest.mark.parametrize(
    ("name", "last", "fine", "said"),
    [
        ("ENUM", 0.975, True, "holds"),
        ("ENUM", 0.95, False, "FAILS"),
        ("REINFORCE", 0.62, True, "holds"),
        ("REINFORCE", 0.975, False, "FAILS"),
        ("nothing", 0.99, False, "FAILS"),
        ("IWAE(2) + MVD", 0.3, True, "reported"),
    ],
)
def test_verdicts(name, last, fine, said, monkeypatch):
    monkeypatch.setattr(scenes, "train", lambda *_: trained(last))
    monkeypatch.setattr(scenes_numpyro, "train", lambda *_: trained(0.4321))
    good, text = programmable.counting(METHODS[name], 2)
    assert ("NumPyro" in text and "0.432" in text) == (name == "REINFORCE")
    assert good == fine
    assert f"verdict  {said}" in text
    assert f"{last:.3f} after 2 epochs" in text


def test_without_digits_it_says_what_to_install(monkeypatch):
    plain = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    scenes.data.cache_clear()
    good, text = programmable.counting(scenes.METHODS[0], 2)
    assert not good
    assert "NOT CHECKED" in text
    assert "pip install scikit-learn" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ENUM", "MVD", "REINFORCE with baseline", "IWAE(2) + MVD"])
def test_a_method_of_each_kind_trains(name, monkeypatch):
    scenes.data.cache_clear()
    monkeypatch.setattr(scenes, "digits", patches)
    monkeypatch.setattr(scenes, "TRAINING", 128)
    monkeypatch.setattr(scenes, "HELD_OUT", 20)
    found = scenes.train(METHODS[name], 2)
    scenes.data.cache_clear()
    assert list(found.accuracy) == [1, 2]
    assert np.isfinite(found.bound)
    assert 0 <= found.last <= 1
    assert found.seconds > 0
