"""Lanes over devices: particles, chains and plates, of which each device has its share.

A program says nothing of devices. When it is drawn from, every draw of many lanes is laid over the
devices along its outermost axis, and so is what comes out; XLA divides the computation between
them. JAX's random bits are a function of key and position, so that draws do not depend on how many
devices there are.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ppl._types import PyTree
from ppl.errors import ArgumentError, message
from ppl.interpreter import placed_sites
from ppl.primitives import Site

_LANES = "lanes"


@dataclasses.dataclass(frozen=True)
class Sharing:
    """Devices in a row, and the numbers of lanes that they divide; equal ones share compiled code.

    Nothing here changes a value: it says where values lie.
    """

    mesh: Mesh
    sizes: frozenset[int]

    @property
    def many_processes(self) -> bool:
        """Whether some of the devices are another process's."""
        return self.mesh.is_multi_process

    def spread(self, site: Site, value: Any) -> Any:
        """Lay a draw over the devices along its outermost axis of lanes, if they divide that."""
        axis, size = _outermost(site)
        return self._over(axis, value) if size in self.sizes else value

    def lay(self, tree: PyTree) -> PyTree:
        """Lay arrays over the devices whose first axis, or else the last, may be one of lanes."""

        def one(x: Any) -> Any:
            ends = (0, jnp.ndim(x) - 1) if jnp.ndim(x) else ()
            axis = next((i for i in ends if x.shape[i] in self.sizes), None)
            return x if axis is None else self._over(axis, x)

        return jax.tree.map(one, tree)

    def lay_rows(self, tree: PyTree) -> PyTree:
        """Do the same with rows, whose first axis is that of a loop."""

        def one(x: Any) -> Any:
            axis = next((i for i in range(1, jnp.ndim(x)) if x.shape[i] in self.sizes), None)
            return x if axis is None else self._over(axis, x)

        return jax.tree.map(one, tree)

    def place(self, tree: PyTree) -> PyTree:
        """Put on every device what is not there yet, as the result of a run would be."""
        whole = NamedSharding(self.mesh, PartitionSpec())

        def one(x: Any) -> Any:
            if getattr(getattr(x, "sharding", None), "mesh", None) == self.mesh:
                return x
            if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):  # JAX puts data only elsewhere
                kind = jax.random.key_impl(x)
                return jax.random.wrap_key_data(one(jax.random.key_data(x)), impl=kind)
            return jax.device_put(x, whole)

        return jax.tree.map(one, tree)

    def gather(self, tree: PyTree) -> PyTree:
        """Make arrays readable of which other processes hold parts; all have to ask for them."""
        return _gathering(self.mesh)(tree) if self.many_processes else tree

    def _over(self, axis: int, x: Any) -> Any:
        spec = PartitionSpec(*[None] * axis, _LANES)
        return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))


def share(mesh: Any, name: str, jaxpr: Any) -> Sharing:
    """Find out what of a program a mesh's devices can share.

    Raises:
        ArgumentError: the mesh is none, or its devices divide no draw of the program.
    """
    if not isinstance(mesh, Mesh):
        raise ArgumentError(
            message(
                f"run got mesh={mesh!r}",
                needs="a jax.sharding.Mesh",
                why="particles, chains or plates are laid over its devices",
                fix='mesh=jax.make_mesh((8,), ("particles",)) for jax.device_count() == 8',
            )
        )
    draws = [p.site for p in placed_sites(jaxpr) if p.site.kind == "latent"]
    found = {_outermost(site)[1]: site.address for site in draws}
    found.pop(1, None)
    devices, largest = mesh.size, max(found, default=0)
    # Whatever its axes are called and typed: programs know of lanes only.
    sharing = Sharing(
        Mesh(mesh.devices.reshape(-1), (_LANES,)),
        frozenset(size for size in found if size % devices == 0),
    )
    if sharing.sizes:
        return sharing
    listed = ", ".join(f'{size} (as at "{address}")' for size, address in found.items())
    more, fewer = -(-largest // devices) * devices, math.gcd(largest, devices)
    raise ArgumentError(
        message(
            f"run got a mesh of {devices} devices for {name}, whose draws "
            + (f"are of sizes {listed}" if found else "stand outside of every vmap and plate"),
            needs=f"particles, chains or members of a plate in a multiple of {devices}",
            why="every device takes an equal share of the outermost vmap or plate",
            fix=f"{more} in place of {largest}, or mesh=jax.make_mesh(({fewer},), "
            f'("particles",), devices=jax.devices()[:{fewer}])'
            if found
            else "ppl.run(program, key) without a mesh",
        )
    )


def _outermost(site: Site) -> tuple[int, int]:
    """Find the outermost `vmap` or plate of more than one member: its axis and size."""
    shape, lanes = (*site.sizes, *site.shape), len(site.sizes)
    plates = sorted(lanes + len(site.shape) - site.event_dim + p.dim for p in site.plates)
    return next(((i, shape[i]) for i in (*range(lanes), *plates) if shape[i] > 1), (0, 1))


@functools.cache
def _gathering(mesh: Mesh) -> Any:
    return jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
