"""Guides over all coordinates at once, drawn one address after the other."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import numpy as np
from jaxtyping import Array
from numpyro.distributions import Distribution

from ppl import _jax
from ppl._types import PyTree
from ppl.distributions import support_of
from ppl.errors import UnsupportedError, at, message
from ppl.inference.vi.guides.base import blocks, real_space
from ppl.inference.vi.guides.onto import onto
from ppl.interpreter import Frame, Interpreter, placed_sites
from ppl.primitives import Operands, Site, bind, facts, lanes, sample_p, score_p, value_of
from ppl.program import Program
from ppl.semantics.lockstep import Ahead
from ppl.sites import SiteInfo


class Sequential(Protocol):
    """A distribution of the vector of coordinates, as conditionals of its blocks."""

    @property
    def name(self) -> str:
        """What error messages and programs are called."""
        ...

    def conditional(
        self, params: PyTree, address: str, block: slice, earlier: dict[str, Array]
    ) -> Distribution:
        """Give the distribution of an address's coordinates, given those of all before it."""
        ...


class _Joint(Interpreter):
    """Draw each latent site, whole, given the coordinates of those before it.

    Sites inside loops cannot be drawn where they stand, since their iterations and lanes depend on
    one another: they are drawn before the loop, and are given to it.
    """

    unbounded = False
    weighs = True  # in the sense that a rule of the user cannot know what it does

    def __init__(self, family: Sequential, program: Program, params: PyTree):
        space = real_space(family.name, program)
        self.name, self.family, self.params = family.name, family, params
        self.blocks, self.real = blocks(space), dict(space.shapes)
        self.earlier: dict[str, Array] = {}
        self.choices: dict[str, Array] = {}

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        if site.kind != "latent":
            return value_of(site, leaves)
        if site.address in frame.given:
            return frame.given[site.address]
        if site.discrete:  # the members of a subsampled plate are drawn as the model draws them
            (value,) = bind(site, leaves)
            frame.record(site, leaves, value)
            return value
        support = _constant(site)
        if support is None:
            support = lanes(site, _support)(leaves)
            return self.draw(site, support, site.sizes, bool(site.sizes))
        return self.draw(site, support, site.sizes, False)

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        pass

    def ahead(self, info: SiteInfo) -> Array:
        """Draw a site of a loop before the loop."""
        site = info.placed.site
        support = _constant(site)
        if support is None:
            raise UnsupportedError(
                message(
                    f"{self.name} got {at(site.address, site.source)}, whose support "
                    f"{site.support} is computed and which stands inside {' '.join(info.path)}",
                    needs="a support that does not change with what the loop computes",
                    why="its iterations depend on one another, so they are drawn before the loop",
                    fix="ppl.vi.mean_field(program), which draws the site where it stands, or "
                    "ppl.vi.guide(function, params)",
                )
            )
        return self.draw(site, support, info.placed.prefix, False)

    def draw(self, site: Site, support: Any, sizes: tuple[int, ...], varying: bool) -> Array:
        """Draw a site, whole, given the coordinates of those before it."""
        address, real = site.address, self.real[site.address]
        base = self.family.conditional(self.params, address, self.blocks[address], self.earlier)
        d, inverse = onto(base, support, sizes, site.shape, real[len(sizes) :], varying)
        leaves, tree = jax.tree.flatten(Operands(d))
        whole = dataclasses.replace(
            site, tree=tree, shape=(*sizes, *site.shape), batch=(), plates=(), tags=(), **facts(d)
        )
        (value,) = bind(whole, leaves)
        self.choices[address] = value
        self.earlier[address] = inverse(value)
        return value


def _support(operands: Operands) -> Any:
    assert operands.distribution is not None
    return support_of(operands.distribution)


def _constant(site: Site) -> Any:
    """Give a site's support if it is known before the program runs; else None."""
    assert site.domain is not None
    bounds = site.domain.bounds
    if not all(isinstance(bound, np.ndarray) for bound in bounds):
        return None
    support = jax.tree.unflatten(site.domain.tree, bounds)
    rank = len(site.shape) - support.event_dim  # what has more axes has those of lanes
    return support if all(bound.ndim <= rank for bound in bounds) else None


def draw_jointly(family: Sequential, program: Program, params: PyTree) -> dict[str, Array]:
    """Draw a model's latents in the order of the program, each given those before it."""
    joint, s = _Joint(family, program, params), program.structure
    walk = Ahead(joint, (), s.jaxpr, program.consts, program.args)
    while walk.waiting:
        eqn, _ = walk.waiting
        if eqn.primitive not in (sample_p, score_p):
            inside = [p.site for sub in _jax.subjaxprs(eqn) for p in placed_sites(sub)]
            for site in inside:
                if site.kind == "latent" and not site.discrete:
                    info = program.sites[site.address]
                    walk.frame.given[site.address] = joint.ahead(info)
        walk.draw()
    drawn = {a: record.value for a, record in walk.frame.records.items()} | joint.choices
    return {address: drawn[address] for address in program.latents}
