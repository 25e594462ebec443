"""`unconstrain`: the continuous latents of a program as one vector of real numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from ppl import _jax
from ppl._types import PyTree, Scalar, pytree, static
from ppl.distributions import biject_to
from ppl.errors import ArgumentError, ObservationError, UnsupportedError, at, message
from ppl.interpreter import Frame, evaluate
from ppl.primitives import Operands, Site, density, factor, lanes, log_prob, weigh
from ppl.program import Program, require_program
from ppl.semantics.density import match_choices
from ppl.semantics.weighted import Weighing


class Point(NamedTuple):
    """A program at one point of its unconstrained space.

    `log_density` includes the log-Jacobian `log_jacobian` of the map from the vector to `choices`.
    """

    log_density: Scalar
    log_jacobian: Scalar
    value: PyTree
    choices: dict[str, Array]
    deterministics: dict[str, Array]
    present: dict[str, Array]


class _Constraining(Weighing):
    """Map each latent site's reals into its support, at the site, where its bounds are known."""

    name = "unconstrain"
    unbounded, settled = False, True

    def zero(self) -> Any:
        zero = jnp.zeros((), jnp.result_type(float))
        return zero, zero

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        frame.add((jnp.sum(factor(site, leaves)), 0.0))

    def observed(self, frame: Frame, site: Site, leaves: list[Any], value: Any) -> None:
        frame.add((jnp.sum(log_prob(site, leaves, value)), 0.0))

    def latent(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        def one(operands: Operands, z: Any) -> Any:
            d = operands.distribution
            assert d is not None
            if operands.present is not None:  # no gradient from where the site is absent
                z = jnp.where(operands.present, z, jax.lax.stop_gradient(z))
            bijection = biject_to(d.support)
            x = bijection(z)
            jacobian = jnp.sum(bijection.log_abs_det_jacobian(z, x))
            present = operands._replace(scale=None)
            return (
                x.astype(site.dtype),
                jnp.sum(weigh(operands, density(d, x))),
                weigh(present, jacobian),
            )

        x, weight, jacobian = lanes(site, one)(leaves, frame.given[site.address])
        frame.add((jnp.sum(weight), jnp.sum(jacobian)))
        frame.record(site, leaves, x)
        return x

    def deterministic(self, frame: Frame, site: Site, leaves: list[Any], value: Any) -> None:
        frame.record(site, leaves, value)


class _Freeing(Weighing):
    """Map each latent site's given value to the reals."""

    name = "unconstrain"
    unbounded, settled = False, True

    def latent(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        def one(operands: Operands, x: Any) -> Any:
            assert operands.distribution is not None
            try:
                return biject_to(operands.distribution.support).inv(x)
            except NotImplementedError:
                raise UnsupportedError(
                    message(
                        f"unconstrain got {at(site.address, site.source)}, with support "
                        f"{site.support}",
                        needs="a support that NumPyro has a bijection from the reals onto",
                        fix="write the site as a transformed distribution, or condition on it",
                    )
                ) from None

        x = frame.given[site.address]
        frame.record(site, leaves, lanes(site, one)(leaves, x))
        return x


@pytree
class Unconstrained:
    """A program's continuous latents as a vector of `size` reals; made by `ppl.unconstrain`.

    `flatten` and `unflatten` are inverse to one another on the sites that exist.

    Sites that stand in a branch that is not taken get a standard normal density on their
    coordinates, so that the vector always has a proper density and a fixed length; the marginal on
    the sites that exist is unchanged.
    """

    program: Program
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = static()

    @property
    def size(self) -> int:
        """The dimension."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    @property
    def names(self) -> tuple[str, ...]:
        """One name per coordinate: `address` or `address[i, j]`."""
        out: list[str] = []
        for address, shape in self.shapes:
            indices = np.ndindex(*shape)
            out += [address + (f"[{', '.join(map(str, i))}]" if i else "") for i in indices]
        return tuple(out)

    def at(self, vector: Float[Array, " size"]) -> Point:
        """Evaluate density, Jacobian, value, choices and deterministics in one pass.

        Args:
            vector: unconstrained coordinates.
        """
        if jnp.shape(vector) != (self.size,):
            raise ArgumentError(
                message(
                    f"unconstrained got a vector of shape {jnp.shape(vector)}",
                    needs=f"shape ({self.size},)",
                    why=f"the latents of {self.program.name} have {self.size} real coordinates",
                    fix="jax.vmap for several vectors",
                )
            )
        given, offset = {}, 0
        for address, shape in self.shapes:
            count = math.prod(shape)
            given[address] = vector[offset : offset + count].reshape(shape)
            offset += count
        s = self.program.structure
        outs, (density, jacobian), records = evaluate(
            _Constraining(), s.jaxpr, self.program.consts, self.program.args, given=given
        )
        choices = {a: records.pop(a).value for a, _ in self.shapes if records[a].present is None}
        total, flags = density + jacobian, {}
        for address, _ in self.shapes:
            if address in records:  # in a branch: where it is absent, its reals are standard normal
                value, present = records.pop(address)
                flags[address] = present
                choices[address] = value
                z = given[address]
                flag = present.reshape(present.shape + (1,) * (z.ndim - present.ndim))
                normal = -0.5 * (z**2 + math.log(2 * math.pi))
                total = total + jnp.sum(jnp.where(flag, 0.0, normal))
        choices = {a: choices[a] for a, _ in self.shapes}
        recorded = {a: r.value for a, r in records.items()}
        flags |= {a: r.present for a, r in records.items() if r.present is not None}
        return Point(total, jacobian, s.rebuild(outs), choices, recorded, flags)

    def log_density(self, vector: Float[Array, " size"]) -> Scalar:
        """Return the log joint density of the vector, log-Jacobian included.

        Args:
            vector: unconstrained coordinates.
        """
        return self.at(vector).log_density

    def log_jacobian(self, vector: Float[Array, " size"]) -> Scalar:
        """Return log |det d choices / d vector|.

        Args:
            vector: unconstrained coordinates.
        """
        return self.at(vector).log_jacobian

    def unflatten(self, vector: Float[Array, " size"]) -> dict[str, Array]:
        """Map the vector to choices, each in its support.

        Args:
            vector: unconstrained coordinates.
        """
        return self.at(vector).choices

    def flatten(self, choices: Mapping[str, ArrayLike]) -> Float[Array, " size"]:
        """Map choices to the vector: the inverse of `unflatten`.

        Args:
            choices: a value for every latent site.

        Raises:
            AddressError: an address is missing or unknown.
        """
        given = match_choices("flatten", self.program, choices)
        s = self.program.structure
        records = evaluate(
            _Freeing(), s.jaxpr, self.program.consts, self.program.args, given=given
        ).records
        for address, _ in self.shapes:
            z, site = records[address].value, self.program.sites[address]
            if not _jax.is_tracer(z) and not site.conditional and not bool(jnp.all(z == z)):
                raise ObservationError(
                    message(
                        f"flatten got {np.asarray(given[address])} for {at(address, site.source)}",
                        needs=f"values inside its support: {site.support}",
                        why="outside there is no unconstrained point that maps to them",
                        fix="pass choices of positive density, such as ppl.trace(...).choices",
                    )
                )
        parts = [jnp.ravel(records[address].value) for address, _ in self.shapes]
        return jnp.concatenate(parts) if parts else jnp.zeros((0,))


def unconstrain(program: Program) -> Unconstrained:
    """Give the continuous latents of a program real coordinates.

    **Meaning.** `log_density` is the density of the program's measure on choices, pulled back to
    R^size through NumPyro's bijections onto the supports; bounds may depend on earlier draws.

    Raises:
        UnsupportedError: a latent site is discrete, or stands in a `while_loop`.
    """
    require_program("unconstrain", program)
    for site in program.sites:
        if site.kind == "latent" and site.discrete:
            raise UnsupportedError(
                message(
                    f"unconstrain got the discrete latent site {at(site.address, site.source)} "
                    f"({site.distribution})",
                    needs="continuous latent sites",
                    why="a discrete choice has no gradient",
                    fix=f'ppl.condition(program, {{"{site.address}": ...}}), '
                    f'ppl.marginalize(program, ["{site.address}"]), or a kernel for it beside one '
                    f'for the others, such as ppl.kernels.gibbs(addresses=["{site.address}"])',
                )
            )
    return Unconstrained(program, _real_shapes(program))


def _real_shapes(program: Program) -> tuple[tuple[str, tuple[int, ...]], ...]:
    s = program.structure
    latents = [site for site in program.sites if site.kind == "latent"]

    def free(consts: Any, args: Any, given: Any) -> Any:
        return evaluate(_Freeing(), s.jaxpr, consts, args, given=given).records

    given = {x.address: jax.ShapeDtypeStruct(x.shape, x.dtype) for x in latents}
    records = jax.eval_shape(free, program.consts, program.args, given)
    return tuple((x.address, tuple(records[x.address].value.shape)) for x in latents)
