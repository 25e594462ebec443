"""`Guide`: a family of programs that draw what a model draws, with parameters to be learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ppl import _jax
from ppl._types import PyTree, pytree, static
from ppl.context import context
from ppl.errors import ArgumentError, UnsupportedError, at, message
from ppl.program import Program, require_program
from ppl.semantics.handlers import condition
from ppl.semantics.unconstrained import Unconstrained, unconstrain
from ppl.sites import SiteInfo
from ppl.staging import stage


class Family(Protocol):
    """What a guide's distribution is, given a model and parameters. It is static: hashable."""

    @property
    def name(self) -> str:
        """What error messages and programs are called."""
        ...

    def draw(self, program: Program, params: PyTree) -> dict[str, Array]:
        """Draw the model's latents, by statements of the language; give them by address."""
        ...


@pytree
class Guide:
    """Programs, one for each value of the parameters, that draw a model's latents.

    A guide is a pytree: its arrays, and those of the model, are data, and all else is structure.
    `params` holds where the parameters start, a pytree of float arrays. Called with parameters of
    that form, it gives a score-free program: it draws every latent address of the model inside the
    model's support, its density is exact, and its value is the choices. So it can be run, printed,
    scored by `ppl.log_density`, and passed as the `proposal` of `ppl.importance` and `ppl.smc`.
    """

    params: PyTree
    program: Program | None
    family: Any = static()

    @classmethod
    def of(cls, function: Callable[[PyTree], Program], params: PyTree) -> Guide:
        """Make a guide of a function from parameters to a program.

        Args:
            function: such as a `ppl.model`; its program draws the latent addresses of the model,
                and scores nothing.
            params: where the parameters start: a pytree of float arrays.

        Raises:
            ArgumentError: `function` is no function, or a leaf of `params` is no float array.
        """
        if not callable(function) or isinstance(function, Program):
            raise ArgumentError(
                message(
                    f"guide got {type(function).__name__}",
                    needs="a function from parameters to a program",
                    fix="ppl.vi.guide(model, params), where model is under @ppl.model and takes "
                    "params",
                )
            )
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            if not _is_float(leaf):
                where = jax.tree_util.keystr(path)
                raise ArgumentError(
                    message(
                        f"guide got {leaf!r} at params{where}",
                        needs="a pytree of float arrays",
                        why="parameters are differentiated and moved by an optimizer",
                        fix="params, rest = eqx.partition(network, eqx.is_inexact_array), and in "
                        "the function eqx.combine(params, rest)",
                    )
                )
        return cls(jax.tree.map(jnp.asarray, params), None, function)

    @property
    def name(self) -> str:
        """What the guide and its programs are called."""
        if self.program is None:
            return str(getattr(self.family, "__name__", "guide"))
        return f"{self.family.name}({self.program.name})"

    def __repr__(self) -> str:
        shapes = jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", self.params)
        return f"<ppl.vi.Guide {self.name} {shapes}>"

    @property
    def space(self) -> Unconstrained:
        """The unconstrained space of the model: the coordinates of `loc` and other parameters.

        `space.names` names them, and `space.unflatten(params["loc"])` gives the constrained point
        at the centre of the guide.

        Raises:
            ArgumentError: the guide was made of a function.
        """
        if self.program is None:
            raise ArgumentError(
                message(
                    "space got a guide that was made of a function",
                    needs="a guide that was made of a model, such as ppl.vi.mean_field(program)",
                    fix="ppl.unconstrain(program)",
                )
            )
        return real_space(self.family.name, self.program)

    def __call__(self, params: PyTree) -> Program:
        """Give the program that draws the latents.

        Args:
            params: parameters of the form of the guide's own `params`.

        Raises:
            ArgumentError: the parameters have another form; or the function gave no program.
        """
        if self.program is None:
            with context(None):  # the function makes a program, and is no part of another one
                program = self.family(params)
            if not isinstance(program, Program):
                raise ArgumentError(
                    message(
                        f"guide got a function that gave {type(program).__name__}",
                        needs="a function from parameters to a program",
                        fix="ppl.vi.guide(model, params), where model is under @ppl.model",
                    )
                )
            return program
        _check_params(self.family.name, self.params, params)
        return stage(_draw, (self.family, self.program, params), name=self.name)


def guide(function: Callable[[PyTree], Program], params: PyTree) -> Guide:
    """Make a guide of a function from parameters to a program.

    **Meaning.** For each value of the parameters the measure of the program that the function
    gives. An amortised guide is one whose program takes its distributions' parameters from a
    network that reads data.

    Args:
        function: such as a `ppl.model`; its program draws the latent addresses of the model it is
            to guide, and scores nothing.
        params: where the parameters start: a pytree of float arrays. Of an Equinox network,
            `eqx.partition(network, eqx.is_inexact_array)` gives them.

    Raises:
        ArgumentError: `function` is no function, or a leaf of `params` is no float array.
    """
    return Guide.of(function, params)


def _draw(family: Family, program: Program, params: PyTree) -> dict[str, Array]:
    return family.draw(program, params)


def _is_float(x: Any) -> bool:
    if not (isinstance(x, jax.Array | np.ndarray | np.generic | float) or _jax.is_tracer(x)):
        return False
    return bool(jnp.issubdtype(jnp.result_type(x), jnp.floating))


def _check_params(operation: str, own: PyTree, given: PyTree) -> None:
    def form(tree: PyTree) -> dict[str, tuple[int, ...]]:
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return {jax.tree_util.keystr(path): tuple(jnp.shape(x)) for path, x in leaves}

    if form(own) != form(given):
        raise ArgumentError(
            message(
                f"{operation} got params of the form {form(given)}",
                needs=f"{form(own)}",
                fix="pass guide.params, or what an optimizer made of them",
            )
        )


# --- The model's coordinates --------------------------------------------------------------------


def is_subsample(site: SiteInfo) -> bool:
    """Tell whether a site chooses the members of a subsampled plate."""
    return site.distribution == "Subsample"


def require_guidable(operation: str, program: Program, *, subsample: bool = True) -> None:
    """Raise unless every latent site has real coordinates, and occurs once in every run.

    Subsampled plates are allowed where `subsample` is: a guide draws their members as the model
    does.
    """
    require_program(f"vi.{operation}", program)
    latents = [s for s in program.sites if s.kind == "latent"]
    subsampled = [s.address for s in latents if is_subsample(s)]
    for site in latents:
        where = at(site.address, site.source)
        members = [
            p.name for p in site.plates for a in subsampled if f"/{a}".endswith(f"/{p.name}")
        ]
        guide = "or write a guide: ppl.vi.guide(function, params)"
        for holds, got, needs, why, fix in [
            (
                site.discrete and not (is_subsample(site) and subsample),
                f"the discrete latent site {where} ({site.distribution})",
                "continuous latent sites",
                "a discrete choice has no normal distribution",
                f'ppl.marginalize(program, ["{site.address}"]), {guide}',
            ),
            (
                site.conditional,
                f"{where}, which stands in a branch",
                "latent sites that occur in every run",
                "a guide draws each address whichever branch the model takes",
                f"draw the site before the branch, {guide}",
            ),
            (
                bool(site.placed.whiles),
                f"{where}, which stands in a while_loop",
                "latent sites that occur a known number of times",
                "in a loop without bounds there is no array of parameters of fixed shape",
                f"use jax.lax.scan, {guide}",
            ),
            (
                bool(members),
                f'{where}, a member of the subsampled plate "{members[0] if members else ""}"',
                "latent sites outside of subsampled plates",
                "its density counts for members that are not drawn",
                "draw the site outside of the plate, or take the plate whole",
            ),
        ]:
            if holds:
                raise UnsupportedError(
                    message(f"{operation} got {got}", needs=needs, why=why, fix=fix)
                )
    if not [s for s in latents if not s.discrete]:
        raise UnsupportedError(
            message(
                f"{operation} got {program.name}, which has no continuous latent site",
                needs="something to guide",
                fix="ppl.condition, or ppl.trace for the log weight of the program",
            )
        )


def real_space(operation: str, program: Program, *, subsample: bool = True) -> Unconstrained:
    """Give the coordinates of a model's continuous latents; hold the members of plates."""
    require_guidable(operation, program, subsample=subsample)
    held = [s for s in program.sites if s.kind == "latent" and is_subsample(s)]
    members = {s.address: jnp.broadcast_to(jnp.arange(s.shape[-1]), s.shape) for s in held}
    return unconstrain(condition(program, members) if members else program)


def centre(space: Unconstrained, init: Mapping[str, ArrayLike] | None) -> Float[Array, " size"]:
    """Give the coordinates of starting values; those of the sites not named are 0.

    Args:
        space: the coordinates.
        init: constrained values by address.
    """
    zero = jnp.zeros(space.size, jnp.result_type(float))
    if not init:
        return zero
    rest = unconstrain(condition(space.program, init))
    others = rest.unflatten(jnp.zeros(rest.size, zero.dtype))
    return space.flatten({**others, **init}).astype(zero.dtype)


def blocks(space: Unconstrained) -> dict[str, slice]:
    """Give the coordinates of each address."""
    found, offset = {}, 0
    for address, shape in space.shapes:
        count = int(np.prod(shape, dtype=int))
        found[address], offset = slice(offset, offset + count), offset + count
    return found


def positive(operation: str, name: str, value: Any) -> Any:
    """Check a starting scale: a positive number, or one for each coordinate."""
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" or not bool(np.all(np.isfinite(array) & (array > 0))):
        raise ArgumentError(
            message(
                f"{operation} got {name}={value!r}",
                needs="a positive number, the standard deviation in unconstrained space",
                fix=f"{name}=0.1",
            )
        )
    return array
