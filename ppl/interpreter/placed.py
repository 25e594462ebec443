"""Where the sites of a jaxpr stand: the loops and branches around each."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

from ppl import _jax
from ppl.primitives import Site, sample_p, score_p


class Placed(NamedTuple):
    """A site, and the control flow (outermost first) that stands between a region and it."""

    site: Site
    scans: tuple[int, ...] = ()
    whiles: int = 0
    branches: tuple[tuple[int, int], ...] = ()
    path: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the address's array: `vmap` and `scan` axes as nested, then one value's."""
        sizes = list(self.site.sizes)
        for depth, length in enumerate(reversed(self.scans), start=1):
            sizes.insert(self.axis(depth), length)
        return (*sizes, *self.site.shape)

    @property
    def prefix(self) -> tuple[int, ...]:
        """The `vmap` and `scan` axes alone: the shape of a presence flag."""
        return self.shape[: len(self.site.sizes) + len(self.scans)]

    def axis(self, depth: int) -> int:
        """Where the axis of the scan stands that is `depth` scans out from the site."""
        return sum(level.crossed >= depth for level in self.site.batch)


_placed: weakref.WeakKeyDictionary[Any, list[Placed]] = weakref.WeakKeyDictionary()


def placed_sites(jaxpr: Any) -> list[Placed]:
    """List the sites of a jaxpr in program order, with the loops around each."""
    jaxpr, _ = _jax.open_jaxpr(jaxpr)
    if jaxpr not in _placed:
        _placed[jaxpr] = list(_walk(jaxpr))
    return _placed[jaxpr]


def _walk(jaxpr: Any) -> Iterator[Placed]:
    for eqn in jaxpr.eqns:
        if eqn.primitive in (sample_p, score_p):
            site = eqn.params["site"]
            yield Placed(site, branches=site.branches, path=("branch",) * len(site.branches))
        for branch, sub in enumerate(_jax.subjaxprs(eqn)):
            for placed in placed_sites(sub):
                yield _enclose(eqn, branch, placed)


def _enclose(eqn: Any, branch: int, placed: Placed) -> Placed:
    match eqn.primitive.name:
        case "scan":
            length = eqn.params["length"]
            path = (f"scan({length})", *placed.path)
            return placed._replace(scans=(length, *placed.scans), path=path)
        case "while":
            return placed._replace(whiles=placed.whiles + 1, path=("while", *placed.path))
        case "cond":
            branches = ((id(eqn), branch), *placed.branches)
            return placed._replace(branches=branches, path=("branch", *placed.path))
        case _:
            return placed
