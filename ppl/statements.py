"""The statements of the language: `sample`, `factor`, `deterministic`, `plate`, `scope`."""

from __future__ import annotations

import dataclasses
import functools
import operator
import os
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions
from jaxtyping import Array, ArrayLike
from numpyro.distributions import Distribution
from numpyro.primitives import _PYRO_STACK

from ppl import _jax
from ppl.context import Context, Plate, context, current_context
from ppl.distributions import (
    Subsample,
    describe,
    is_discrete,
    is_masked,
    refuse_parameters,
    violations,
)
from ppl.errors import (
    ArgumentError,
    DistributionError,
    ModelError,
    ObservationError,
    OutsideModelError,
    at,
    message,
    named_keywords,
)
from ppl.primitives import GradientEstimator, Operands, Site, bind, facts


@named_keywords
def sample(
    address: str,
    distribution: Distribution,
    obs: ArrayLike | None = None,
    *,
    grad: GradientEstimator | None = None,
    tags: tuple[Any, ...] = (),
) -> Array:
    """Draw a value, or observe one.

    **Meaning.** Without `obs`, the value is distributed as `distribution`, independently of all
    else. With `obs`, the run is weighted by the density of `obs`, which is also the value.

    Args:
        address: a name, unique in the program (after scopes).
        distribution: any `ppl.distributions` object; inside plates it is expanded to their sizes.
        obs: data of exactly the (expanded) distribution's shape, or None.
        grad: how `ppl.vi.expectation` differentiates through the draw, such as `ppl.vi.enum()`;
            None for reparameterisation where there is one, else REINFORCE.
        tags: hashable hints for transformers; no influence on the meaning.

    Returns:
        The value, of the distribution's batch and event shape.

    Raises:
        OutsideModelError: no model is being traced.
        ObservationError: `obs` has another shape or dtype, or lies outside the support.
        DistributionError: a parameter known now is outside its domain.
        ArgumentError: `grad` is no estimator, or the site is observed.
    """
    here, source = _here("sample", address), _source()
    name = here.prefix + address
    if not isinstance(distribution, Distribution):
        raise DistributionError(
            message(
                f"sample got {type(distribution).__name__} at {at(name, source)}",
                needs="a distribution object",
                fix="import ppl.distributions as dist; for example dist.Normal(0.0, 1.0)",
            )
        )
    d = _expand(distribution, here, name, source)
    value = None if obs is None else _observation(obs, d, name, source)
    if grad is not None:
        _check_grad(grad, value, name, source)
    return emit(address, d, value, here, scale=_scale(here), grad=grad, tags=tags)


def emit(
    address: str,
    d: Distribution,
    value: Any,
    here: Context,
    *,
    scale: Any = None,
    grad: GradientEstimator | None = None,
    tags: tuple[Any, ...] = (),
) -> Array:
    """Stage a site whose distribution and value already have the full batch shape."""
    name, source = here.prefix + address, _source()
    refuse_parameters(name, source, d, violations(d, _concrete))
    if value is None and is_masked(d):
        raise DistributionError(
            message(
                f"sample got a masked {describe(d)} at {at(name, source)}",
                needs="a probability distribution for a latent site",
                why="a masked-out element has log density 0 everywhere, which no draw can have",
                fix="mask observations only; unused latent elements may keep their prior",
            )
        )
    if value is None:
        shape, dtype = _signature(d)
        if grad is not None and grad.relaxes:
            dtype = jnp.result_type(float)
    else:
        shape, dtype = value.shape, value.dtype
    kind = "latent" if value is None else "observed"
    leaves, tree = jax.tree.flatten(Operands(d, value, None, scale, grad))
    site = Site(
        name, kind, tree, shape, dtype, source, here, plates=here.plates, tags=tags, **facts(d)
    )
    return bind(site, leaves)[0]


@named_keywords
def factor(address: str, log_weight: ArrayLike) -> None:
    """Weigh the run by exp(log_weight).

    Args:
        address: a name, unique in the program.
        log_weight: nats; an array counts as the sum of its elements. Inside plates it must
            broadcast to the plates' shape, and counts once per member.
    """
    here, source = _here("factor", address), _source()
    name = here.prefix + address
    value = jnp.asarray(log_weight)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        value = value.astype(jnp.result_type(float))
    shape = _plate_shape(here, value.shape, name, source)
    value = jnp.broadcast_to(value, shape)
    leaves, tree = jax.tree.flatten(Operands(None, value, None, _scale(here)))
    bind(Site(name, "factor", tree, shape, value.dtype, source, here, plates=here.plates), leaves)


@named_keywords
def deterministic(address: str, value: ArrayLike) -> Array:
    """Record a value under an address; the measure is unchanged.

    Args:
        address: a name, unique in the program.
        value: any array.

    Returns:
        The value.
    """
    here, source = _here("deterministic", address), _source()
    value = jnp.asarray(value)
    leaves, tree = jax.tree.flatten(Operands(None, value))
    plates = tuple(p for p in here.plates if -p.dim <= value.ndim and value.shape[p.dim] == p.size)
    site = Site(
        here.prefix + address,
        "deterministic",
        tree,
        value.shape,
        value.dtype,
        source,
        here,
        plates=plates,
    )
    return bind(site, leaves)[0]


class scope:  # noqa: N801 - used like a function
    """Put `prefix/` before the addresses of all sites inside the `with` block."""

    def __init__(self, prefix: str):
        self.prefix = prefix

    def __enter__(self) -> None:
        here = _here("scope", self.prefix)
        self._entered = context(dataclasses.replace(here, prefix=f"{here.prefix}{self.prefix}/"))
        self._entered.__enter__()

    def __exit__(self, *exc: Any) -> None:
        self._entered.__exit__(*exc)


class plate:  # noqa: N801 - used like a function
    """Declare conditionally independent members along one batch axis.

    **Meaning.** Sites inside are expanded to `size` independent members. With `subsample_size`, the
    members are a uniformly drawn subset (a site of its own, at `address`), and the log densities
    inside count `size / subsample_size` times, so that the expected log density is that of all.

    Args:
        address: the name of the axis; results carry it as a dimension.
        size: number of members.
        subsample_size: number of members in a minibatch; None for all.
        dim: the batch axis, counted from the right (-1 is the last); None for the next free one.

    Returns:
        Entering gives the members' indices, of shape (size,) or (subsample_size,).
    """

    def __init__(
        self,
        address: str,
        size: int,
        subsample_size: int | None = None,
        *,
        dim: int | None = None,
    ):
        size = _require_size(address, "size", size)
        if subsample_size is not None:
            subsample_size = _require_size(address, "subsample_size", subsample_size)
        if subsample_size is not None and subsample_size > size:
            raise ArgumentError(
                message(
                    f'plate "{address}" got subsample_size={subsample_size} of size={size}',
                    needs="subsample_size <= size",
                    fix=f'ppl.plate("{address}", {size}, subsample_size={size})',
                )
            )
        if dim is not None and dim >= 0:
            raise ArgumentError(
                message(f'plate "{address}" got dim={dim}', needs="a negative dim", fix="dim=-1")
            )
        self.address, self.size, self.subsample_size, self.dim = address, size, subsample_size, dim

    def __enter__(self) -> Array:
        here = _here("plate", self.address)
        members = self.subsample_size or self.size
        taken = {p.dim for p in here.plates}
        dim = self.dim if self.dim is not None else -1
        while self.dim is None and dim in taken:
            dim -= 1
        if dim in taken or any(p.name == self.address for p in here.plates):
            raise ArgumentError(
                message(
                    f'plate "{self.address}" uses axis {dim}, name and axes in use are '
                    f"{[(p.name, p.dim) for p in here.plates]}",
                    needs="a name and an axis of its own",
                    fix=f'ppl.plate("{self.address}", {self.size}) without dim',
                )
            )
        if members < self.size:
            # One subset serves all members of the plates around it, and counts once.
            with context(dataclasses.replace(here, plates=(), scale=1.0)):
                indices = sample(self.address, Subsample(self.size, members))
            here = dataclasses.replace(here, scale=here.scale * self.size / members)
        else:
            indices = jnp.arange(self.size)
        plates = (*here.plates, Plate(self.address, members, dim))
        self._entered = context(dataclasses.replace(here, plates=plates))
        self._entered.__enter__()
        return indices

    def __exit__(self, *exc: Any) -> None:
        self._entered.__exit__(*exc)


# --- Helpers ------------------------------------------------------------------------------------

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_SKIPPED = tuple(
    os.path.dirname(os.path.abspath(sys.modules[m].__file__ or "")) + os.sep
    for m in ("jax", "numpyro")
)


def _source() -> str:
    """The line of user code that is making a site."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((_PACKAGE, *_SKIPPED)):
            base = "In [...]" if name.startswith("<") else os.path.basename(name)
            return f"{base}:{frame.f_lineno}"
        frame = frame.f_back  # pyright: ignore[reportAssignmentType]
    return ""


def _require_size(address: str, what: str, number: Any) -> int:
    try:
        count = 0 if isinstance(number, bool) or _jax.is_tracer(number) else operator.index(number)
    except TypeError:
        count = 0
    if count < 1:
        raise ArgumentError(
            message(
                f'plate "{address}" got {what}={number!r}',
                needs="a positive integer that is known when the model is traced",
                why="array shapes are static in JAX",
                fix="pass a Python int, such as y.shape[0]",
            )
        )
    return count


def _here(statement: str, address: Any) -> Context:
    if not isinstance(address, str) or not address:
        raise ArgumentError(
            message(
                f"{statement} got the address {address!r}",
                needs="a non-empty string",
                fix=f'ppl.{statement}("name", ...)',
            )
        )
    here = current_context()
    if not here.bridged and any(isinstance(h, numpyro.plate) for h in _PYRO_STACK):
        raise ModelError(
            message(
                f'{statement} was called at "{address}" ({_source()}) inside a numpyro.plate',
                needs="ppl.plate around statements of this language",
                why="NumPyro's plate would not expand it",
                fix="with ppl.plate(name, size):",
            )
        )
    if not here.inside:
        raise OutsideModelError(
            message(
                f'{statement} was called at "{address}" ({_source()}) outside of a model',
                needs="a model around it",
                why="outside of a model there is nothing to draw for or to weigh",
                fix="put the statement in a function under @ppl.model; to draw a number now, "
                "distribution.sample(key)",
            )
        )
    return here


def _scale(here: Context) -> Any:
    return None if here.scale == 1.0 else here.scale


def _concrete(x: Any) -> np.ndarray | None:
    if _jax.is_tracer(x) or not isinstance(x, (int, float, np.ndarray, np.generic, jax.Array)):
        return None
    return np.asarray(x)


def _check_grad(grad: Any, value: Any, name: str, source: str) -> None:
    if isinstance(grad, GradientEstimator) and value is None:
        return
    known = isinstance(grad, GradientEstimator)
    raise ArgumentError(
        message(
            f"sample got grad={grad!r} at {at(name, source)}"
            + (", which is observed" if known else ""),
            needs="an estimator at a latent site" if known else "a gradient estimator",
            why="nothing is drawn at an observation" if known else "",
            fix="leave grad out"
            if known
            else f'ppl.sample("{name}", ..., grad=ppl.vi.reinforce())',
        )
    )


def _plate_shape(here: Context, shape: tuple[int, ...], name: str, source: str) -> tuple[int, ...]:
    """Broadcast a batch shape with the plates around it; every clash is an error."""
    rank = max([len(shape), *(-p.dim for p in here.plates)])
    full = [1] * (rank - len(shape)) + list(shape)
    for p in here.plates:
        if full[p.dim] not in (1, p.size):
            raise ObservationError(
                message(
                    f"a site got batch shape {shape} at {at(name, source)}",
                    needs=f'size 1 or {p.size} on axis {p.dim}, the plate "{p.name}"',
                    why="a plate's members are laid along that axis",
                    fix=f'check the shapes, or choose the axis with ppl.plate("{p.name}", '
                    f"{p.size}, dim=...)",
                )
            )
        full[p.dim] = p.size
    return tuple(full)


def _expand(d: Distribution, here: Context, name: str, source: str) -> Distribution:
    shape = _plate_shape(here, d.batch_shape, name, source)
    return d if shape == tuple(d.batch_shape) else d.expand(shape)


@functools.lru_cache(maxsize=4096)
def _drawn(tree: Any, avals: tuple[Any, ...], x64: bool) -> tuple[tuple[int, ...], Any]:
    d = jax.tree.unflatten(tree, [jax.ShapeDtypeStruct(*a) for a in avals])
    try:
        out = jax.eval_shape(lambda d, key: d.sample(key), d, jax.random.key(0))
    except NotImplementedError:  # densities that cannot be drawn from still have a shape
        return d.shape(), jnp.result_type(float)
    return out.shape, out.dtype


# Tracing their `sample` takes longer than staging all else, and this is what comes out of it.
_FLOATS = tuple(
    getattr(numpyro.distributions, name)
    for name in (
        *("Beta", "Cauchy", "Dirichlet", "Exponential", "Gamma", "Gumbel", "HalfCauchy"),
        *("HalfNormal", "InverseGamma", "Laplace", "Logistic", "LogNormal", "Normal", "StudentT"),
        "Uniform",
    )
)


def _signature(d: Distribution) -> tuple[tuple[int, ...], Any]:
    """Shape and dtype of a draw."""
    leaves, tree = jax.tree.flatten(d)
    base: Any = d
    while type(base).__name__ in ("ExpandedDistribution", "Independent"):
        base = base.base_dist
    if type(base) in _FLOATS:
        return d.shape(), jnp.result_type(jnp.result_type(float), *map(jnp.result_type, leaves))
    avals = tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)
    x64 = bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]
    with context(None):
        return _drawn(tree, avals, x64)


def _observation(obs: Any, d: Distribution, name: str, source: str) -> Array:
    def refuse(what: str, needs: str, fix: str, why: str = "") -> ObservationError:
        where = at(name, source)
        return ObservationError(
            message(f"sample got an observation {what} at {where}", needs=needs, why=why, fix=fix)
        )

    if isinstance(obs, (jax.Array, np.ndarray, np.generic)) or _jax.is_tracer(obs):
        value = obs
    else:
        value = np.asarray(obs)
    if value.dtype.kind not in "biuf" and value.dtype.name != "bfloat16":
        raise refuse(f"of dtype {value.dtype}", "real numbers", "obs=numpy.asarray(y, float)")
    shape = tuple(d.batch_shape) + tuple(d.event_shape)
    if tuple(value.shape) != shape:
        raise refuse(
            f"of shape {tuple(value.shape)}",
            f"shape {shape}, that of {describe(d)} there",
            f"pass data of shape {shape}"
            + (
                f', or wrap the statement in `with ppl.plate("n", {np.size(value, 0)}):` if the '
                "members are independent"
                if value.ndim and shape == ()
                else ""
            ),
            "broadcasting an observation would change how often it counts",
        )
    if is_discrete(d):
        if value.dtype.kind == "f":
            raise refuse(
                f"of dtype {value.dtype}",
                f"integers, as {describe(d)} is discrete",
                "obs=y.astype(int)",
            )
    elif value.dtype.kind in "biu":
        value = jnp.asarray(value, jnp.result_type(float))
    elif jnp.finfo(value.dtype).bits < 32:  # a log density in half precision is no use
        value = jnp.asarray(value, jnp.float32)
    return jnp.asarray(value)
