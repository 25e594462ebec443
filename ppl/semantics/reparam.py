"""`reparam`: other coordinates for latent sites, the same measure on the return value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike
from numpyro.distributions import Distribution

from ppl import distributions as dist
from ppl._types import pytree
from ppl.distributions import describe
from ppl.errors import (
    ArgumentError,
    DistributionError,
    UnsupportedError,
    at,
    check_addresses,
    message,
)
from ppl.interpreter import Frame, Interpreter, evaluate
from ppl.primitives import Operands, Site, bind, facts, lanes
from ppl.program import Program, require_program
from ppl.semantics.handlers import fixed, lifted
from ppl.staging import stage


class Strategy(Protocol):
    """How one site is drawn by way of another: its base distribution, and the map from it."""

    def base(self, d: Distribution) -> Distribution: ...

    def forward(self, d: Distribution, x: Any) -> Any: ...


@pytree
class NonCentred:
    """Draw a location-scale site by way of a standardised one.

    With centredness c, the base site has location c * loc and scale scale ** c: c = 1 leaves the
    site as it is, c = 0 is full non-centring. The centredness is data of the program, so it can be
    differentiated and learned (Gorinova, Moore & Hoffman 2020).
    """

    centredness: ArrayLike = 0.0

    def base(self, d: Distribution) -> Distribution:
        """Give the distribution that is drawn instead.

        Args:
            d: the site's distribution.
        """
        core, rebuild = _location_scale(d)
        c = jnp.asarray(self.centredness)
        loc, scale = core.loc, core.scale  # pyright: ignore[reportAttributeAccessIssue]
        return rebuild(c * loc, scale**c)

    def forward(self, d: Distribution, x: Any) -> Any:
        """Map the base site's value to the site's.

        Args:
            d: the site's distribution.
            x: the base site's value.
        """
        core, _ = _location_scale(d)
        c = jnp.asarray(self.centredness)
        loc, scale = core.loc, core.scale  # pyright: ignore[reportAttributeAccessIssue]
        return loc + scale ** (1 - c) * (x - c * loc)


@pytree
class Untransformed:
    """Draw a transformed distribution (log-normal, logit-normal, ...) by way of its base."""

    def base(self, d: Distribution) -> Distribution:
        """Give the distribution that is drawn instead.

        Args:
            d: the site's distribution.
        """
        return transformed(d)[0]

    def forward(self, d: Distribution, x: Any) -> Any:
        """Map the base site's value to the site's.

        Args:
            d: the site's distribution.
            x: the base site's value.
        """
        for transform in transformed(d)[1]:
            x = transform(x)
        return x


def _location_scale(d: Distribution) -> tuple[Distribution, Any]:
    batch, event_dim = d.batch_shape, d.event_dim
    core = d
    while type(core).__name__ in ("ExpandedDistribution", "Independent"):
        core = core.base_dist  # pyright: ignore[reportAttributeAccessIssue]
    names = set(core.arg_constraints)
    if not {"loc", "scale"} <= names or core.event_dim or type(core).__name__ == "LogNormal":
        raise DistributionError(
            message(
                f"NonCentred got {describe(d)}",
                needs="a distribution with loc and scale, such as Normal or StudentT",
                why="non-centring standardises by location and scale",
                fix="ppl.Untransformed() for transformed distributions",
            )
        )
    shape = (*batch, *d.event_shape)

    def rebuild(loc: Any, scale: Any) -> Distribution:
        kept = {n: getattr(core, n) for n in names - {"loc", "scale"}}
        new = type(core)(**kept, loc=loc, scale=scale)  # pyright: ignore[reportCallIssue]
        return new.expand(shape).to_event(event_dim)

    return core, rebuild


def transformed(d: Distribution) -> tuple[Distribution, list[Any]]:
    """Take a transformed distribution apart: its base, with the same axes, and the transforms."""
    if isinstance(d, dist.Independent):  # pyright: ignore[reportAttributeAccessIssue]
        base, transforms = transformed(d.base_dist)
        return base.to_event(d.reinterpreted_batch_ndims), transforms
    if isinstance(d, dist.ExpandedDistribution):  # pyright: ignore[reportAttributeAccessIssue]
        base, transforms = transformed(d.base_dist)
        return base.expand(d.batch_shape), transforms
    if isinstance(d, dist.TransformedDistribution):  # pyright: ignore[reportAttributeAccessIssue]
        return d.base_dist, list(d.transforms)
    raise DistributionError(
        message(
            f"Untransformed got {describe(d)}",
            needs="a TransformedDistribution",
            fix="ppl.NonCentred() for location-scale distributions",
        )
    )


class _Reparam(Interpreter):
    name = "reparam"
    weighs = True  # in the sense that a rule of the user cannot know what it does

    def __init__(self, strategies: Mapping[str, Strategy]):
        self.strategies = strategies

    def arrays(self) -> Any:
        return self.strategies

    def with_arrays(self, arrays: Any) -> Interpreter:
        return _Reparam(arrays)

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        strategy = self.strategies.get(site.address)
        if strategy is None or site.kind != "latent":
            return super().sample(frame, site, leaves)
        if site.operands(leaves).scale is not None:
            raise UnsupportedError(
                message(
                    f"reparam got the scaled site {at(site.address, site.source)}",
                    needs="a site whose density counts once",
                    why="the change of variables would be scaled with the density",
                    fix="ppl.scale(ppl.reparam(program, ...), factor, addresses) where that is "
                    "meant, or leave the site as it is",
                )
            )

        def base(operands: Operands) -> Operands:
            assert operands.distribution is not None
            return operands._replace(distribution=strategy.base(operands.distribution))

        def forward(operands: Operands, x: Any) -> Any:
            assert operands.distribution is not None
            return strategy.forward(operands.distribution, x)

        try:
            inner, base_leaves = lifted(site, leaves, base)
        except DistributionError as error:
            raise DistributionError(f"at {at(site.address, site.source)}: {error}") from None
        known = inner.operands(base_leaves).distribution
        assert known is not None
        inner = dataclasses.replace(inner, address=f"{site.address}_base", **facts(known))
        x = bind(inner, base_leaves)[0]
        value = lanes(site, forward)(leaves, x)
        return bind(*fixed(site, leaves, value))[0]


def _reparam(program: Program, strategies: dict[str, Any]) -> Any:
    s = program.structure
    outs = evaluate(_Reparam(strategies), s.jaxpr, program.consts, program.args).outs
    return s.rebuild(outs)


def reparam(program: Program, strategies: Mapping[str, Strategy]) -> Program:
    """Draw latent sites by way of others; each becomes deterministic, its base is `<address>_base`.

    **Meaning.** The same measure on the return value and on the recorded sites; another density,
    and so another geometry for gradient-based kernels.

    Args:
        program: any program.
        strategies: `ppl.NonCentred(centredness)` or `ppl.Untransformed()` by address.
    """
    latents = require_program("reparam", program).latents
    check_addresses("reparam", strategies, latents)
    for address, strategy in strategies.items():
        if isinstance(strategy, type) or not hasattr(strategy, "base"):
            site = program.sites[address]
            raise ArgumentError(
                message(
                    f"reparam got {strategy!r} for {at(address, site.source)}",
                    needs="a strategy",
                    fix=f'ppl.reparam(program, {{"{address}": ppl.NonCentred()}})',
                )
            )
    prepared = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), dict(strategies))
    return stage(_reparam, (program, prepared), name=program.name)
