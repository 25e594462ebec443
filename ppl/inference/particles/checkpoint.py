"""The state of a stream in a file, and what must be the same for it to go on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ppl import _jax
from ppl._types import PyTree
from ppl.errors import ResultError, message
from ppl.inference.particles.online import Moment, Online
from ppl.primitives import sample_p, score_p
from ppl.results import storage
from ppl.staging import stage


def save(path: str | os.PathLike[str], moment: Moment, identity: Mapping[str, Any]) -> None:
    """Write a stream."""
    arrays = {
        "state": _named(moment.state),
        "latest": _named(moment.latest),
        "steps": moment.steps,
        "key": np.asarray(jax.random.key_data(moment.key)),
    }
    metadata = {
        "kind": "stream",
        "identity": dict(identity),
        "key": str(jax.random.key_impl(moment.key)),
        "jax": jax.__version__,
    }
    storage.save(path, arrays, metadata)


def load(
    path: str | os.PathLike[str], plan: Online, fixed: Sequence[Any], row: Sequence[Any]
) -> Moment:
    """Read a stream; refuse that of another program."""
    arrays, metadata = storage.load(path)
    name = os.fspath(path)
    if metadata.get("kind") != "stream":
        raise ResultError(
            message(
                f"Stream.load got a file of kind {metadata.get('kind')!r}: {name!r}",
                needs="a file that stream.save wrote",
                fix="Stream.load(path, ...) with that file",
            )
        )
    for what, mine in identity(plan, fixed).items():
        theirs = metadata["identity"].get(what)
        if theirs != mine:
            raise ResultError(
                message(
                    f"Stream.load got {what} {mine} for {name!r}",
                    needs=f"{theirs}, as in the file (written under JAX {metadata['jax']}, this is "
                    f"{jax.__version__})",
                    why="a stream goes on with the program and the settings that it began with",
                    fix="pass what ppl.stream was given, or start a new stream",
                )
            )
    state = stage(plan.start, (list(fixed),), name="start").structure.shapes
    latest = stage(plan.step, (state, list(row)), name="step").structure.shapes[1]
    held: Any = arrays
    return Moment(
        _filled(state, held["state"], name),
        _filled(latest, held["latest"], name) if held["latest"] else None,
        held["steps"],
        jax.random.wrap_key_data(jnp.asarray(held["key"]), impl=metadata["key"]),
    )


def _named(tree: PyTree) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def _filled(like: PyTree, arrays: Mapping[str, np.ndarray], name: str) -> PyTree:
    leaves, tree = jax.tree_util.tree_flatten_with_path(like)
    known = {jax.tree_util.keystr(path): x for path, x in leaves}
    for at in {**known, **arrays}:
        mine, theirs = (
            f"{np.dtype(d[at].dtype)} of shape {d[at].shape}" if at in d else "nothing"
            for d in (known, arrays)
        )
        if mine != theirs:
            raise ResultError(
                message(
                    f"Stream.load got {theirs} at {at} in {name!r}",
                    needs=f"{mine}, as the program has",
                    why="the file belongs to another program",
                    fix="pass the program that ppl.stream was given",
                )
            )
    return jax.tree.unflatten(tree, [jnp.asarray(arrays[at]) for at in known])


def identity(plan: Online, fixed: Sequence[Any]) -> dict[str, Any]:
    """Say in what JSON can hold which stream this is: its settings, program and arguments."""
    loop = plan.loop
    sites = [[s.address, s.kind, s.distribution, s.support] for s in plan.structure.sites]
    return {
        "num_particles": plan.count,
        "resample": plan.strategy.scheme.__name__,
        "ess_threshold": plan.strategy.ess_threshold,
        "sites": sites,
        "loop": _digest(_text(loop.body.jaxpr, {}).encode(), *map(_bytes, loop.consts)),
        "arguments": _digest(*map(_bytes, fixed)),
    }


def _digest(*parts: bytes) -> str:
    return hashlib.blake2b(b"|".join(parts), digest_size=8).hexdigest()


def _bytes(x: Any) -> bytes:
    x = np.asarray(x)
    return f"{x.dtype}{x.shape}".encode() + x.tobytes()


def _plain(x: Any) -> bool:
    return isinstance(x, bool | int | float | str) or (isinstance(x, tuple) and all(map(_plain, x)))


def _text(jaxpr: Any, names: dict[Any, int]) -> str:
    """Write a jaxpr without what differs between processes, or with the place in a file."""

    def atom(v: Any) -> str:
        if isinstance(v, _jax.Literal):
            return f"{v.val}:{v.aval}"
        return f"v{names.setdefault(v, len(names))}:{v.aval}"

    def written(eqn: Any) -> str:
        if eqn.primitive in (sample_p, score_p):
            inside = f"{eqn.params['site'].address} {eqn.params['site'].kind}"
        else:
            inside = str({k: v for k, v in sorted(eqn.params.items()) if _plain(v)})
            inside += "".join(_text(sub, names) for sub in _jax.subjaxprs(eqn))
        ins, outs = (" ".join(map(atom, vs)) for vs in (eqn.invars, eqn.outvars))
        return f"{outs} = {eqn.primitive.name}[{inside}] {ins}"

    ins, outs = (" ".join(map(atom, vs)) for vs in (jaxpr.invars, jaxpr.outvars))
    return "\n".join([ins, *map(written, jaxpr.eqns), outs])
