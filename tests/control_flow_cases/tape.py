"""What a case is: a program, and a reference that walks a tape of choices."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

import ppl
import ppl.distributions as dist

LOG_2PI = math.log(2 * math.pi)


def normal_lp(x: float, loc: float, scale: float) -> float:
    return -0.5 * ((x - loc) / scale) ** 2 - math.log(scale) - 0.5 * LOG_2PI


@dataclasses.dataclass
class Term:
    """One site at one place of its address's array."""

    kind: str
    log_weight: float
    log_scale: float | None = None  # of a normal latent: what non-centring it gains
    log_jacobian: float = 0.0  # of the map from the reals to the support


class Tape:
    """Choices in, terms out: `terms[address][index]`."""

    def __init__(self, choices: Mapping[str, Any]):
        self.choices = {a: np.asarray(v) for a, v in choices.items()}
        self.terms: dict[str, dict[tuple[int, ...], Term]] = {}

    def _put(self, address: str, index: Any, term: Term) -> None:
        at = self.terms.setdefault(address, {})
        index = tuple(index)
        assert index not in at, f"the reference visits {address}{index} twice"
        at[index] = term

    def normal(self, address: str, index: Any, loc: Any, scale: Any = 1.0, obs: Any = None) -> Any:
        x = float(self.choices[address][tuple(index)]) if obs is None else float(obs)
        kind = "latent" if obs is None else "observed"
        loc, scale = float(loc), float(scale)
        self._put(address, index, Term(kind, normal_lp(x, loc, scale), math.log(scale)))
        return x

    def exponential(self, address: str, index: Any, rate: float) -> float:
        x = float(self.choices[address][tuple(index)])
        lp = math.log(rate) - rate * x
        self._put(address, index, Term("latent", lp, None, math.log(x)))
        return x

    def bernoulli(self, address: str, index: Any, p: float) -> int:
        x = int(self.choices[address][tuple(index)])
        self._put(address, index, Term("latent", math.log(p if x else 1 - p)))
        return x

    def factor(self, address: str, index: Any, w: Any) -> None:
        self._put(address, index, Term("factor", float(w)))

    def total(self, *kinds: str) -> float:
        return sum(
            t.log_weight
            for at in self.terms.values()
            for t in at.values()
            if not kinds or t.kind in kinds
        )


@dataclasses.dataclass(frozen=True)
class Case:
    """`build()` gives the program; `shapes` the arrays of choices that the nesting implies."""

    name: str
    build: Callable[[], ppl.Program]
    ref: Callable[[Tape], Any]
    shapes: dict[str, tuple[int, ...]]
    #: Addresses whose support is (0, inf), and those that are 0 or 1.
    positive: tuple[str, ...] = ()
    binary: tuple[str, ...] = ()
    #: Whether a while_loop is inside: JAX has no reverse mode for it, handlers no array of sites.
    unbounded: bool = False

    @property
    def normal(self) -> tuple[str, ...]:
        """The addresses of the normal latents."""
        return tuple(a for a in self.shapes if a not in (*self.positive, *self.binary))

    def choices(self, seed: int) -> dict[str, np.ndarray]:
        """Arbitrary values in the supports, not drawn by `ppl`."""
        rng = np.random.default_rng(seed)
        out: dict[str, np.ndarray] = {}
        for address, shape in self.shapes.items():
            if address in self.binary:
                out[address] = rng.integers(0, 2, shape)
            elif address in self.positive:
                out[address] = rng.exponential(size=shape) + 0.1
            else:
                out[address] = rng.normal(size=shape)
        return out


CASES: dict[str, Case] = {}


def case(
    shapes: dict[str, tuple[int, ...]],
    positive: Any = (),
    binary: Any = (),
    unbounded: bool = False,
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    """Register a function that returns (program builder, reference)."""

    def register(make: Callable[[], Any]) -> Callable[[], Any]:
        build, ref = make()
        name = make.__name__
        CASES[name] = Case(name, build, ref, shapes, tuple(positive), tuple(binary), unbounded)
        return make

    return register


N = dist.Normal
V3 = np.array([0.3, -1.1, 2.0])
V4 = np.array([0.7, -0.2, 1.5, -0.9])
M23 = np.array([[0.1, 0.5, -0.4], [1.2, -0.7, 0.9]])
