"""Scenes of up to two digits: how many, where, and which (attend, infer, repeat)."""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.special import ndtr

import ppl
import ppl.distributions as dist

#: Pixels of a scene's side and of a digit's; where a digit can be moved to; the code of its look.
SIDE, DIGIT, CODE, NOISE = 28, 8, 8, 0.3
SHIFTS = SIDE - DIGIT
#: Logits of a first object, and of a second one if there is a first: 0, 1, 2 are as likely.
PRIOR = math.log(2), 0.0
TRAINING, HELD_OUT, BATCH, RATE = 4000, 1000, 64, 2e-3

#: How a derivative passes a presence, by name; the argument makes a baseline.
ESTIMATORS: dict[str, Callable[[Callable[[], Any]], Any]] = {
    "REINFORCE": lambda _: ppl.vi.reinforce(),
    "REINFORCE with baseline": lambda baseline: ppl.vi.reinforce(baseline(), learn=True),
    "ENUM": lambda _: ppl.vi.enum(),
    "MVD": lambda _: ppl.vi.mvd(),
    "nothing": lambda _: ppl.vi.ignore(),
}


class Method(NamedTuple):
    """Estimators of first and second presence, weights in the bound, what is claimed, length.

    `reaches` says whether the count accuracy comes to that of the paper; None: no claim.
    """

    first: str
    second: str
    particles: int
    reaches: bool | None
    epochs: int = 30

    def __str__(self) -> str:
        name = self.first if self.first == self.second else f"{self.first}, then {self.second}"
        return name if self.particles == 1 else f"IWAE({self.particles}) + {name}"


METHODS = [
    Method("REINFORCE", "REINFORCE", 1, False),
    Method("REINFORCE with baseline", "REINFORCE with baseline", 1, None),
    Method("ENUM", "ENUM", 1, True),
    Method("MVD", "MVD", 1, True),
    Method("ENUM", "MVD", 1, True),
    Method("MVD", "REINFORCE with baseline", 1, None),
    Method("REINFORCE", "REINFORCE", 2, None),
    Method("REINFORCE with baseline", "REINFORCE with baseline", 2, None),
    Method("ENUM", "ENUM", 2, None, 10),  # runs 16 combinations for each scene
    Method("MVD", "MVD", 2, None),
    Method("nothing", "nothing", 1, False),  # a mistake: presences are held fixed
]


# --- Data ---------------------------------------------------------------------------------------


def digits() -> np.ndarray:
    """Load 1797 handwritten digits of 8 by 8 pixels, from 0 to 1."""
    try:
        from sklearn.datasets import load_digits  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ModuleNotFoundError(
            "the scenes got no digits; they come with scikit-learn, which ppl does not need. "
            "Fix: python -m pip install scikit-learn"
        ) from error
    return load_digits().images / 16.0


def scenes(images: np.ndarray, number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw scenes and their counts; two digits in one scene hardly overlap."""
    rng = np.random.default_rng(seed)
    counts, made = rng.integers(0, 3, number), np.zeros((number, SIDE, SIDE), np.float32)
    for scene, count in zip(made, counts, strict=True):
        corners = rng.integers(0, SHIFTS + 1, (2, 2))
        while np.abs(corners[0] - corners[1]).max() < DIGIT - 1:
            corners = rng.integers(0, SHIFTS + 1, (2, 2))
        for row, column in corners[:count]:
            scene[row : row + DIGIT, column : column + DIGIT] += rng.choice(images)
    return np.minimum(made, 1.0), counts


@functools.cache
def data() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Make scenes to train with, and held-out ones, of digits that no training scene has."""
    images = digits()
    return scenes(images[:1400], TRAINING, 0), scenes(images[1400:], HELD_OUT, 1)


# --- Model and guide ----------------------------------------------------------------------------


def networks(seed: int) -> dict[str, Any]:
    """Draw starting values; a code starts as a dark patch."""
    rng, kind = np.random.default_rng(seed), jnp.result_type(float)

    def layers(*sizes: int, last: float = 1.0, bias: float = 0.0) -> list[Any]:
        scales = [1.0] * (len(sizes) - 2) + [last]
        pairs = zip(itertools.pairwise(sizes), scales, strict=True)
        made = [rng.standard_normal(p) * s / math.sqrt(p[0]) for p, s in pairs]
        shifts = [np.zeros(w.shape[1]) for w in made[:-1]] + [np.full(sizes[-1], bias)]
        return [
            (jnp.asarray(w, kind), jnp.asarray(b, kind)) for w, b in zip(made, shifts, strict=True)
        ]

    return {
        "decoder": layers(CODE, 64, DIGIT**2, last=0.3, bias=-2.0),
        "encoder": layers(DIGIT**2, 64, 2 * CODE),
        "look": layers(SIDE**2, 128, 5, last=0.1),
        "baseline": [layers(SIDE**2, 64, 1, last=0.1, bias=14.0) for _ in range(2)],
    }


def apply(layers: Any, x: Any) -> Any:
    (first, shift), (second, last) = layers
    return jax.nn.relu(x @ first + shift) @ second + last


def frame(where: Any) -> Any:
    """Give what places a patch, by rows and by columns: bilinear weights, (2, SIDE, DIGIT)."""
    corner = SHIFTS * ndtr(where)[:, None, None]  # a standard normal is any place alike
    pixel, own = jnp.arange(SIDE)[:, None], jnp.arange(DIGIT)
    return jnp.maximum(0.0, 1.0 - jnp.abs(pixel - corner - own))


def place(where: Any, patch: Any) -> Any:
    rows, columns = frame(where)
    return rows @ patch @ columns.T


def flag(logit: Any, before: Any) -> Any:
    """Give the law of a presence: after one that is absent never, to single precision."""
    return dist.Bernoulli(logits=jnp.where(before == 1, logit, -30.0))


@ppl.model
def scene(params: Any, image: Any) -> None:
    present, canvas = 1, jnp.zeros((SIDE, SIDE))
    for i in range(2):
        present = ppl.sample(f"present{i}", flag(PRIOR[i], present))
        where = ppl.sample(f"where{i}", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        what = ppl.sample(f"what{i}", dist.Normal(jnp.zeros(CODE), 1.0).to_event(1))
        patch = jax.nn.sigmoid(apply(params["decoder"], what)).reshape(DIGIT, DIGIT)
        canvas = canvas + present * place(where, patch)
    ppl.sample("image", dist.Normal(canvas, NOISE).to_event(2), obs=image)


@ppl.model
def looks(params: Any, image: Any, method: Method) -> None:
    """Look twice; the second time, where the first look was is covered."""
    present, rest = 1, image
    for i, name in enumerate((method.first, method.second)):
        seen = apply(params["look"], rest.ravel())

        def baseline(i: int = i, rest: Any = rest) -> Any:
            # What is learned of the cost must not move the first look.
            fixed = jax.lax.stop_gradient(rest.ravel())
            return 10.0 * apply(params["baseline"][i], fixed)[0]

        grad = ESTIMATORS[name](baseline)
        present = ppl.sample(f"present{i}", flag(seen[0], present), grad=grad)

        def normal(loc: Any, scale: Any, present: Any = present) -> Any:
            # What is not there is as the model has it, and costs nothing.
            loc, scale = jnp.where(present, loc, 0.0), jnp.where(present, scale, 1.0)
            return dist.Normal(loc, scale).to_event(1)

        where = ppl.sample(f"where{i}", normal(1.5 * seen[1:3], jnp.exp(seen[3:] - 1.0)))
        rows, columns = frame(where)
        loc, raw = jnp.split(apply(params["encoder"], (rows.T @ rest @ columns).ravel()), 2)
        ppl.sample(f"what{i}", normal(loc, jax.nn.softplus(raw)))
        rest = rest * (1.0 - place(where, jnp.ones((DIGIT, DIGIT))))


# --- Training -----------------------------------------------------------------------------------


@ppl.model
def objective(params: Any, images: Any, method: Method) -> Any:
    """Estimate the mean bound of a batch; each scene's score function has its own cost."""
    law = dist.DiscreteUniform(0, len(images) - 1).expand((BATCH,)).to_event(1)
    batch = images[ppl.sample("batch", law)]

    def bound(image: Any) -> Any:
        pair = scene.program(params, image), looks.program(params, image, method)
        if method.particles == 1:
            value = ppl.vi.elbo(*pair)
        else:
            value = ppl.vi.iwelbo(*pair, num_particles=method.particles)
        return ppl.vi.expectation(value, maximize=True)()

    return jnp.mean(jax.vmap(bound)(batch))


@ppl.model
def counted(params: Any, images: Any) -> Any:
    """Draw the number of objects in each scene from the guide."""

    def one(image: Any) -> Any:
        choices = ppl.traced(looks.program(params, image, METHODS[0]))().choices
        return choices["present0"] + choices["present1"]

    return jax.vmap(one)(images)


class Trained(NamedTuple):
    """Count accuracy by epoch asked for, at the end by count, the bound, and seconds an epoch."""

    accuracy: dict[int, float]
    by_count: tuple[float, ...]
    bound: float
    seconds: float

    @property
    def last(self) -> float:
        return list(self.accuracy.values())[-1]


def train(method: Method, epochs: int, seed: int = 0) -> Trained:
    """Train model and guide together, and count held-out scenes three times."""
    (images, _), (others, counts) = data()
    images, others = jnp.asarray(images), jnp.asarray(others)
    steps, pauses = TRAINING // BATCH, {math.ceil(epochs * k / 3) for k in (1, 2, 3)}
    fitted: Any = None
    accuracy, seconds, right = {}, [], np.zeros(len(counts), bool)
    for epoch in range(1, epochs + 1):
        start = time.perf_counter()
        if fitted is None:
            fit = ppl.vi.fit(
                lambda params: objective(params, images, method),
                networks(seed),
                optimizer=optax.adam(RATE),
                num_steps=steps,
                maximize=True,
            )
            fitted = ppl.run(fit, seed)
        else:
            fitted = fitted.extend(steps)
        jax.block_until_ready(fitted.params)
        seconds.append(time.perf_counter() - start)
        if epoch in pauses:
            right = np.asarray(ppl.run(counted(fitted.params, others), seed + 1)) == counts
            accuracy[epoch] = float(right.mean())
    by_count = tuple(float(right[counts == n].mean()) for n in range(3))
    bound = float(np.mean(fitted.values[-steps:]))
    return Trained(accuracy, by_count, bound, float(np.median(seconds[1:])))
