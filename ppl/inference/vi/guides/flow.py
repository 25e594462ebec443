"""`flow`: normalising flows of the library flowjax, one for each address, given those before it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike
from numpyro.distributions import Distribution
from numpyro.distributions.constraints import Constraint
from numpyro.distributions.transforms import Transform

from ppl import _jax
from ppl import distributions as dist
from ppl._types import PyTree
from ppl.distributions import constraints
from ppl.errors import ArgumentError, UnsupportedError, message, named_keywords
from ppl.inference.vi.guides.base import Guide, blocks, centre, positive, real_space
from ppl.inference.vi.guides.joint import draw_jointly
from ppl.program import Program


@dataclasses.dataclass(frozen=True, eq=False)
class _Template:
    """A bijection without its trainable arrays; equal to itself only."""

    tree: Any
    leaves: tuple[Any, ...]

    @classmethod
    def of(cls, bijection: Any) -> tuple[_Template, tuple[Array, ...]]:
        """Split a bijection into what is fixed and what is trained."""
        leaves, tree = jax.tree.flatten(bijection)
        trained = tuple(x for x in leaves if eqx.is_inexact_array(x))
        return cls(tree, tuple(None if eqx.is_inexact_array(x) else x for x in leaves)), trained

    def fill(self, trained: tuple[Array, ...]) -> Any:
        """Put the trained arrays in their places."""
        from paramax import unwrap  # pyright: ignore[reportMissingImports]

        fresh = iter(trained)
        return unwrap(
            jax.tree.unflatten(self.tree, [next(fresh) if x is None else x for x in self.leaves])
        )


class _Flowing(Transform):
    """A flow's bijection of vectors, given the vector `condition`, then scaled and moved."""

    def __init__(self, template: _Template, trained: Any, condition: Any, loc: Any, scale: Any):
        self.template, self.trained, self.condition = template, trained, condition
        self.loc, self.scale = loc, scale

    def tree_flatten(self) -> Any:
        """Split into data and structure, for JAX."""
        names = ("trained", "condition", "loc", "scale")
        return tuple(getattr(self, n) for n in names), (names, {"template": self.template})

    @property
    def domain(self) -> Constraint:
        """Vectors of reals."""
        return constraints.real_vector

    @property
    def codomain(self) -> Constraint:
        """Vectors of reals."""
        return constraints.real_vector

    def __call__(self, x: Any) -> Any:
        """Map noise to coordinates."""
        bijection = self.template.fill(self.trained)
        return self.loc + self.scale * self._each(bijection.transform, x)

    def _inverse(self, y: Any) -> Any:
        bijection = self.template.fill(self.trained)
        return self._each(bijection.inverse, (y - self.loc) / self.scale)

    def log_abs_det_jacobian(self, x: Any, y: Any, intermediates: Any = None) -> Any:
        """Give the log of the volume that the noise's surroundings have, mapped."""
        bijection = self.template.fill(self.trained)
        # In the direction in which a density is evaluated, so that one pass serves for both.
        back = self._each(bijection.inverse_and_log_det, (y - self.loc) / self.scale)[1]
        return jnp.sum(jnp.log(self.scale)) - back

    def _each(self, fun: Callable[..., Any], x: Any) -> Any:
        def one(x: Any) -> Any:
            return fun(x, self.condition)

        for _ in range(x.ndim - 1):
            one = jax.vmap(one)
        return one(x)


@dataclasses.dataclass(frozen=True)
class Flow:
    """A flow for each address, conditional on those before it."""

    templates: tuple[tuple[str, _Template], ...]
    name: str = "flow"

    def draw(self, program: Program, params: PyTree) -> dict[str, Array]:
        """Draw the model's latents."""
        return draw_jointly(self, program, params)

    def conditional(
        self, params: PyTree, address: str, block: slice, earlier: dict[str, Array]
    ) -> Distribution:
        """Give the distribution of a block given all before it."""
        loc, scale = params["loc"][block], jnp.exp(params["log_scale"][block])
        condition = jnp.concatenate([*earlier.values()]) if block.start else None
        template, trained = dict(self.templates)[address], params["flows"][address]
        through = _Flowing(template, trained, condition, loc, scale)
        normal = dist.Normal(jnp.zeros_like(loc), 1.0).to_event(1)
        return dist.TransformedDistribution(normal, through)


@named_keywords
def flow(
    program: Program,
    make: Callable[..., Any] | None = None,
    *,
    seed: int = 0,
    init_scale: ArrayLike = 0.1,
    init: Mapping[str, ArrayLike] | None = None,
) -> Guide:
    """Guide by normalising flows in unconstrained space.

    **Meaning.** The coordinates of each address are a flow of standard normals, conditional on the
    coordinates of all addresses before it; so each address is a site of its own, and its density is
    that of the flow. What the flow gives is multiplied by `exp(log_scale)` and added to `loc`. An
    address is drawn whole, as by `full_rank`. The parameters are `loc`, `log_scale` and `flows`,
    the flows' arrays by address.

    Args:
        program: the model; its latents are continuous. Flat improper priors are welcome.
        make: gives a flow, called as `make(key, base_dist=..., cond_dim=...)` like the functions of
            `flowjax.flows`, of which `functools.partial(coupling_flow, flow_layers=4)` is another.
            None makes two layers of masked autoregressive rational quadratic splines.
        seed: of the random numbers that the flows' networks start from.
        init_scale: where `exp(log_scale)` starts.
        init: constrained values by address, where `loc` starts; 0 for the others.

    Raises:
        UnsupportedError: flowjax is not installed; or as `full_rank` does.
        ArgumentError: `init_scale` is not positive.
        AddressError: `init` names an address that is not latent.
        ObservationError: a value of `init` has another shape than its site, or is outside its
            support.

    Source: Papamakarios et al. 2017, Masked autoregressive flow; Durkan et al. 2019, Neural spline
    flows.
    """
    try:
        import flowjax.flows  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UnsupportedError(
            message(
                "flow needs flowjax, which is not installed",
                needs="the optional library flowjax",
                fix='pip install "flowjax>=19.1"',
            )
        ) from None
    space = real_space("flow", program)
    scale = positive("flow", "init_scale", init_scale)
    loc = centre(space, init)
    places = blocks(space)
    sizes = tuple((address, block.start, block.stop) for address, block in places.items())
    x64 = loc.dtype == jnp.float64
    try:
        templates, flows = _made(make or _splines, sizes, seed, x64)
    except TypeError as error:
        raise ArgumentError(
            message(
                f"flow got make={make!r}, which could not be called: {error}",
                needs="a function make(key, base_dist=..., cond_dim=...) that gives a flow",
                fix="ppl.vi.flow(program, flowjax.flows.coupling_flow)",
            )
        ) from error
    log_scale = jnp.broadcast_to(jnp.log(jnp.asarray(scale, loc.dtype)), loc.shape)
    params = {"loc": loc, "log_scale": log_scale, "flows": flows}
    return Guide(params, program, Flow(templates))


@functools.lru_cache(maxsize=64)
def _made(
    make: Callable[..., Any], sizes: tuple[tuple[str, int, int], ...], seed: int, x64: bool
) -> tuple[tuple[tuple[str, _Template], ...], dict[str, tuple[Array, ...]]]:
    """Make the flows of addresses; for the same settings the same, so that code is reused."""
    from flowjax.distributions import StandardNormal  # pyright: ignore[reportMissingImports]

    templates, flows = [], {}
    keys = jax.random.split(jax.random.key(seed), len(sizes))
    for key, (address, start, stop) in zip(keys, sizes, strict=True):
        base = StandardNormal((stop - start,))
        made = make(key, base_dist=base, cond_dim=start or None)
        template, flows[address] = _Template.of(made.bijection)
        templates.append((address, template))
    if any(map(_jax.is_tracer, jax.tree.leaves(flows))):
        raise ArgumentError(
            message(
                "flow was called while JAX traces",
                needs="a call outside of jax.jit, jax.vmap and jax.grad",
                why="the networks of the guide are made once, and kept",
                fix="guide = ppl.vi.flow(program) first; guide(params) may be traced",
            )
        )
    return tuple(templates), flows


def _splines(key: Any, *, base_dist: Any, cond_dim: int | None) -> Any:
    from flowjax.bijections import RationalQuadraticSpline  # pyright: ignore[reportMissingImports]
    from flowjax.flows import masked_autoregressive_flow  # pyright: ignore[reportMissingImports]

    return masked_autoregressive_flow(
        key,
        base_dist=base_dist,
        cond_dim=cond_dim,
        transformer=RationalQuadraticSpline(knots=8, interval=5),
        flow_layers=2,
        nn_width=32,
    )
