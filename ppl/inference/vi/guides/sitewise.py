"""Guides whose sites stand where the model's do, each with a distribution of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike
from numpyro.distributions import Distribution

from ppl import distributions as dist
from ppl._types import PyTree
from ppl.distributions import biject_to, is_unbounded, support_of
from ppl.errors import named_keywords
from ppl.inference.vi.guides.base import Guide, blocks, centre, positive, real_space
from ppl.interpreter import Frame, Interpreter, evaluate
from ppl.primitives import Operands, Site, bind, facts, value_of
from ppl.program import Program
from ppl.semantics.handlers import lifted


class _Sitewise(Interpreter):
    """Draw each latent site from another distribution; leave out all that scores."""

    unbounded = False
    weighs = True  # in the sense that a rule of the user cannot know what it does

    def __init__(self, name: str):
        self.name = name

    def distribution(self, d: Distribution, *params: Any) -> Distribution:
        """Give what one lane of a site is drawn from, given its parameters there."""
        raise NotImplementedError

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        if site.kind != "latent":
            return value_of(site, leaves)
        if not site.discrete:  # the members of a subsampled plate are drawn as the model draws them
            site, leaves = self._guided(site, leaves, frame.given[site.address])
        (value,) = bind(site, leaves)
        frame.record(site, leaves, value)
        return value

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        pass

    def _guided(self, site: Site, leaves: list[Any], params: Any) -> tuple[Site, list[Any]]:
        def one(operands: Operands, *params: Any) -> Operands:
            assert operands.distribution is not None
            return Operands(self.distribution(operands.distribution, *params))

        site, leaves = lifted(site, leaves, one, *params)
        known = site.operands(leaves).distribution
        assert known is not None
        return dataclasses.replace(site, **facts(known)), leaves


class _Normals(_Sitewise):
    def distribution(self, d: Distribution, *params: Any) -> Distribution:
        loc, scale = params
        support = support_of(d)
        if is_unbounded(support):
            return dist.Normal(loc, scale).to_event(d.event_dim)
        bijection = biject_to(support)
        normal = dist.Normal(loc, scale).to_event(bijection.domain.event_dim)
        return dist.TransformedDistribution(normal, bijection)


class _Points(_Sitewise):
    def distribution(self, d: Distribution, *params: Any) -> Distribution:
        return dist.Delta(biject_to(support_of(d))(params[0]), event_dim=d.event_dim)


def _walk(interpreter: _Sitewise, program: Program, *vectors: Any) -> dict[str, Array]:
    """Draw a model's latents, with parameters given as vectors over its coordinates."""
    space, s = real_space(interpreter.name, program), program.structure
    places, shapes = blocks(space), dict(space.shapes)
    given = {a: tuple(v[places[a]].reshape(shapes[a]) for v in vectors) for a in places}
    records = evaluate(interpreter, s.jaxpr, program.consts, program.args, given=given).records
    return {address: records[address].value for address in program.latents}


@dataclasses.dataclass(frozen=True)
class MeanField:
    """Independent normals in unconstrained space."""

    name: str = "mean_field"

    def draw(self, program: Program, params: PyTree) -> dict[str, Array]:
        """Draw the model's latents."""
        scale = jnp.exp(params["log_scale"])
        return _walk(_Normals(self.name), program, params["loc"], scale)


@dataclasses.dataclass(frozen=True)
class Point:
    """A point mass."""

    name: str = "delta"

    def draw(self, program: Program, params: PyTree) -> dict[str, Array]:
        """Draw the model's latents."""
        return _walk(_Points(self.name), program, params["loc"])


@named_keywords
def mean_field(
    program: Program,
    *,
    init_scale: ArrayLike = 0.1,
    init: Mapping[str, ArrayLike] | None = None,
) -> Guide:
    """Guide by independent normals in unconstrained space.

    **Meaning.** Each latent is a normal that NumPyro's bijection maps onto the latent's support;
    bounds may depend on earlier draws, and then do so in the guide. Sites stand where the model's
    do, inside the same scans, `vmap`s and plates. What the model observes or scores has no part in
    it. The members of a subsampled plate are drawn as the model draws them. The parameters are
    `loc` and `log_scale`, over the coordinates `guide.space.names`.

    Args:
        program: the model; its latents are continuous. Flat improper priors are welcome.
        init_scale: the standard deviation in unconstrained space that parameters start from.
        init: constrained values by address, where `loc` starts; 0 for the others.

    Raises:
        UnsupportedError: a latent is discrete, stands in a branch or a `while_loop`, or is a member
            of a subsampled plate.
        ArgumentError: `init_scale` is not positive.
        AddressError: `init` names an address that is not latent.
        ObservationError: a value of `init` has another shape than its site, or is outside its
            support.

    Source: Kucukelbir et al. 2017, Automatic differentiation variational inference, section 2.4.
    """
    space = real_space("mean_field", program)
    scale = positive("mean_field", "init_scale", init_scale)
    loc = centre(space, init)
    log_scale = jnp.broadcast_to(jnp.log(jnp.asarray(scale, loc.dtype)), loc.shape)
    return Guide({"loc": loc, "log_scale": log_scale}, program, MeanField())


@named_keywords
def delta(program: Program, *, init: Mapping[str, ArrayLike] | None = None) -> Guide:
    """Guide by a point mass.

    **Meaning.** Each latent is a point: the parameter `loc`, in unconstrained coordinates, mapped
    onto the support. The log density of the draw is 0, without a Jacobian, so the objective of
    `ppl.vi.elbo` is the log joint density in the model's own, constrained space, and its maximum
    the MAP estimate there. (`ppl.vi.laplace` finds the mode in unconstrained space, which differs.)

    Args:
        program: the model; its latents are continuous.
        init: constrained values by address, where `loc` starts; 0 in unconstrained space for the
            others.

    Raises:
        UnsupportedError: a latent is discrete, stands in a branch or a `while_loop`, or is a member
            of a subsampled plate.
        AddressError: `init` names an address that is not latent.
        ObservationError: a value of `init` has another shape than its site, or is outside its
            support.
    """
    return Guide({"loc": centre(real_space("delta", program), init)}, program, Point())
