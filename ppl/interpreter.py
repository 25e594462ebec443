"""The one evaluation loop: what control flow means, given what `sample` and `score` mean.

An interpreter says what happens at a site. The loop below runs every other equation by `bind`, so
that interpreting is itself traceable by JAX, and enters each equation that has a site inside
through a rule of `RULES`. An equation that contains a site and has no rule is an error: running it
unchanged would lose the site in silence.

A region (a jaxpr with its interpretation) is a pure function: it reads a key and given values, and
returns its outputs, an additive weight, and records by address. Addresses of a site inside loops
and `vmap`s name one array; its leading axes follow the nesting in which the user wrote the loops.
"""

from __future__ import annotations

import dataclasses
import functools
import weakref
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ppl import _jax
from ppl.context import context
from ppl.errors import AddressError, UnsupportedError, at, message
from ppl.primitives import Site, presence, sample_p, score_p


class Record(NamedTuple):
    """What an interpreter kept at a site, and where (per lane, per iteration) it exists."""

    value: Any
    present: Any = None


_LOOP = zlib.crc32(b"an axis of iterations")


def loop_key_of(key: Any) -> Any:
    """The key from which a loop in a region of key `key` derives that of each iteration."""
    return jax.random.fold_in(key, _LOOP)


class Frame:
    """The state of one region while it is evaluated."""

    def __init__(self, key: Any, given: Mapping[str, Any], zero: Any):
        self.key, self.given, self.weight = key, dict(given), zero
        self.records: dict[str, Record] = {}

    def key_for(self, site: Site) -> Any:
        """The site's key: it depends on the address and the iteration alone.

        So conditioning on one site, or interpreting in another way, changes no other draw.
        """
        return jax.random.fold_in(self.key, zlib.crc32(site.address.encode()))

    def loop_key(self) -> Any:
        """The key whose foldings with 0, 1, ... serve a loop's iterations."""
        return None if self.key is None else loop_key_of(self.key)

    def add(self, weight: Any) -> None:
        """Add to the region's weight."""
        self.weight = jax.tree.map(jnp.add, self.weight, weight)

    def record(self, site: Site, leaves: Sequence[Any], value: Any) -> None:
        """Keep `value` at the site's address."""
        self.keep(site.address, Record(value, presence(site, leaves)))

    def keep(self, address: str, record: Record) -> None:
        """Keep a record; alternatives of one address in exclusive branches are merged."""
        old = self.records.get(address)
        self.records[address] = record if old is None else _merge(old, record)


class Interpreter:
    """What `sample` and `score` mean. The default rebinds both: the identity on programs."""

    #: Name for messages.
    name = "this interpreter"
    #: Whether sites inside a `while_loop`, whose number is unknown, can be given a meaning.
    unbounded = True

    def zero(self) -> Any:
        """The neutral weight: a pytree of arrays, added along the evaluation."""
        return None

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        """Give the value of a latent, observed or deterministic site."""
        return sample_p.bind(*leaves, site=site)[0]

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        """Account for a factor."""
        score_p.bind(*leaves, site=site)


class Renaming(Interpreter):
    """Rebind every site with a prefix before its address."""

    name = "a call of a program inside a model"

    def __init__(self, prefix: str):
        self.prefix = prefix

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        return sample_p.bind(*leaves, site=self._renamed(site))[0]

    def score(self, frame: Frame, site: Site, leaves: list[Any]) -> None:
        score_p.bind(*leaves, site=self._renamed(site))

    def _renamed(self, site: Site) -> Site:
        return dataclasses.replace(site, address=self.prefix + site.address)


class Outcome(NamedTuple):
    """What evaluating a region gives."""

    outs: list[Any]
    weight: Any
    records: dict[str, Record]


def evaluate(
    interpreter: Interpreter,
    jaxpr: Any,
    consts: Sequence[Any],
    args: Sequence[Any],
    *,
    key: Any = None,
    given: Mapping[str, Any] | None = None,
) -> Outcome:
    """Evaluate a jaxpr under an interpreter.

    `given` holds, by address, arrays with the site's axes first. The result's records do too.
    """
    frame = Frame(key, given or {}, interpreter.zero())
    outs = _run(interpreter, frame, jaxpr, consts, args)
    return Outcome(outs, frame.weight, frame.records)


def _run(
    interpreter: Interpreter, frame: Frame, jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]
) -> list[Any]:
    env: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, _jax.Literal) else env[atom]

    env.update(zip(jaxpr.constvars, consts, strict=True))
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        values = [read(v) for v in eqn.invars]
        if eqn.primitive is sample_p:
            outs = [interpreter.sample(frame, eqn.params["site"], values)]
        elif eqn.primitive is score_p:
            interpreter.score(frame, eqn.params["site"], values)
            outs = []
        elif not _jax.contains_effect(eqn):
            outs = _jax.bind_equation(eqn, values)
        else:
            outs = _rule_for(interpreter, eqn)(interpreter, frame, eqn, values)
        env.update(zip(eqn.outvars, outs, strict=True))
    return [read(v) for v in jaxpr.outvars]


# --- Sites below an equation --------------------------------------------------------------------


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


def _first_site(eqn: Any) -> Site:
    return next(p.site for sub in _jax.subjaxprs(eqn) for p in placed_sites(sub))


def _rule_for(interpreter: Interpreter, eqn: Any) -> Callable[..., list[Any]]:
    name = eqn.primitive.name
    if name in RULES:
        return RULES[name]
    site = _first_site(eqn)
    raise UnsupportedError(
        message(
            f"{interpreter.name} met the JAX operation '{name}' around the site "
            f"{at(site.address, site.source)}",
            needs=f"sites to stand only inside {', '.join(sorted(RULES))}",
            why="an operation without a rule would lose the draws and scores inside it",
            fix=f"move the sample or factor statement out of '{name}'",
        )
    )


# --- Control flow -------------------------------------------------------------------------------


def _inline_rule(interpreter: Interpreter, frame: Frame, eqn: Any, values: Any) -> list[Any]:
    """`jit` and its like: the same region."""
    jaxpr, consts = _jax.open_jaxpr(eqn.params.get("jaxpr", eqn.params.get("call_jaxpr")))
    return _run(interpreter, frame, jaxpr, consts, values)


def _child(interpreter: Interpreter, jaxpr: Any) -> Callable[..., Outcome]:
    """The region below an equation, as a pure function of its key, given values and arguments."""
    jaxpr, consts = _jax.open_jaxpr(jaxpr)

    def region(key: Any, given: Mapping[str, Any], args: Sequence[Any]) -> Outcome:
        return evaluate(interpreter, jaxpr, consts, args, key=key, given=given)

    return region


def _below(frame: Frame, *jaxprs: Any) -> dict[str, Any]:
    """The given values that concern sites of the jaxprs."""
    addresses = {p.site.address for jaxpr in jaxprs for p in placed_sites(jaxpr)}
    return {a: v for a, v in frame.given.items() if a in addresses}


def _absorb(frame: Frame, weight: Any, records: Mapping[str, Record]) -> None:
    frame.add(weight)
    for address, record in records.items():
        frame.keep(address, record)


def _remat_rule(interpreter: Interpreter, frame: Frame, eqn: Any, values: Any) -> list[Any]:
    region = jax.checkpoint(
        _child(interpreter, eqn.params["jaxpr"]),
        prevent_cse=eqn.params["prevent_cse"],
        policy=eqn.params["policy"],
    )
    outs, weight, records = region(frame.key, _below(frame, eqn.params["jaxpr"]), values)
    _absorb(frame, weight, records)
    return outs


def _scan_rule(interpreter: Interpreter, frame: Frame, eqn: Any, values: Any) -> list[Any]:
    params = eqn.params
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    consts, init, xs = (
        values[:num_consts],
        values[num_consts : num_consts + num_carry],
        values[num_consts + num_carry :],
    )
    # The scan's own axis of an address stands behind the `vmap` axes that enclose the scan.
    axes = {p.site.address: p.axis(len(p.scans) + 1) for p in placed_sites(params["jaxpr"])}
    given = {
        a: jax.tree.map(lambda x, a=a: jnp.moveaxis(x, axes[a], 0), v)
        for a, v in _below(frame, params["jaxpr"]).items()
    }
    key, region = frame.loop_key(), _child(interpreter, params["jaxpr"])

    def body(state: Any, x: Any) -> Any:
        (carry, weight), (i, given, x) = state, x
        step_key = None if key is None else jax.random.fold_in(key, i)
        outs, more, records = region(step_key, given, [*consts, *carry, *x])
        weight = jax.tree.map(jnp.add, weight, more)
        return (outs[:num_carry], weight), (outs[num_carry:], records)

    (carry, weight), (ys, records) = jax.lax.scan(
        body,
        (init, interpreter.zero()),
        (jnp.arange(params["length"]), given, xs),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    moved = {
        a: jax.tree.map(lambda x, a=a: jnp.moveaxis(x, 0, axes[a]), r) for a, r in records.items()
    }
    _absorb(frame, weight, moved)
    return [*carry, *ys]


def _cond_rule(interpreter: Interpreter, frame: Frame, eqn: Any, values: Any) -> list[Any]:
    index, *args = values
    branches = eqn.params["branches"]
    key, given = frame.key, _below(frame, *branches)
    regions = [functools.partial(_child(interpreter, b), key, given) for b in branches]
    # Records of the branches not taken are absent zeros of the right shape.
    shapes = [jax.eval_shape(lambda args, r=r: r(args).records, args) for r in regions]
    like: dict[str, Any] = {}
    for records in shapes:
        for address, record in records.items():
            _same_shape(address, like.setdefault(address, record.value), record.value)
    prefix = {p.site.address: p.prefix for branch in branches for p in placed_sites(branch)}

    def branch(region: Callable[..., Outcome], args: Sequence[Any]) -> Any:
        outs, weight, records = region(args)
        full = {}
        for address, shape in like.items():
            value, present = records.get(address, (None, None))
            if address not in records:
                value = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)
            if present is None:
                present = jnp.full(prefix[address], address in records)
            full[address] = Record(value, present)
        return outs, weight, full

    outs, weight, records = jax.lax.switch(
        index, [functools.partial(branch, r) for r in regions], args
    )
    _absorb(frame, weight, records)
    return outs


def _same_shape(address: str, one: Any, other: Any) -> None:
    def signature(tree: Any) -> Any:
        return [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]

    if signature(one) != signature(other):
        raise AddressError(
            message(
                f'"{address}" stands in two branches with values {signature(one)} and '
                f"{signature(other)}",
                needs="the same shape and dtype in every branch that uses the address",
                why="an address names one array, whichever branch is taken",
                fix="use different addresses in the branches",
            )
        )


def _merge(old: Record, new: Record) -> Record:
    """Join two alternatives of one address; at most one is present in each lane."""
    if old.present is None or new.present is None:
        raise AssertionError("an address that is always present cannot stand twice")
    _same_shape("a shared address", old.value, new.value)

    def pick(a: Any, b: Any) -> Any:
        flag = new.present.reshape(new.present.shape + (1,) * (b.ndim - new.present.ndim))
        return jnp.where(flag, b, a)

    return Record(jax.tree.map(pick, old.value, new.value), old.present | new.present)


def _while_rule(interpreter: Interpreter, frame: Frame, eqn: Any, values: Any) -> list[Any]:
    params = eqn.params
    num_cond, num_body = params["cond_nconsts"], params["body_nconsts"]
    cond_consts, body_consts = values[:num_cond], values[num_cond : num_cond + num_body]
    init = values[num_cond + num_body :]
    latent = [p.site for b in ("cond_jaxpr", "body_jaxpr") for p in placed_sites(params[b])]
    latent = [s for s in latent if s.kind == "latent"]
    if latent and not interpreter.unbounded:
        site = latent[0]
        raise UnsupportedError(
            message(
                f"{interpreter.name} met the latent site {at(site.address, site.source)} inside "
                "a while_loop",
                needs="a number of sites that is known before the program runs",
                why="an unbounded loop has no array of choices of fixed shape",
                fix="use jax.lax.scan or a fori_loop with constant bounds, and mask the steps "
                "not wanted; ppl.run and ppl.weighted accept the loop as it is",
            )
        )
    test, step = (
        _child(interpreter, params["cond_jaxpr"]),
        _child(interpreter, params["body_jaxpr"]),
    )
    key = frame.loop_key()

    def at_step(i: Any) -> Any:
        return None if key is None else jax.random.fold_in(key, i)

    def advance(i: Any, carry: Any) -> Any:
        carry, weight, _ = step(at_step(i), {}, [*body_consts, *carry])
        return carry, weight

    def go_on(i: Any, carry: Any) -> Any:
        (go,), weight, _ = test(at_step(i), {}, [*cond_consts, *carry])
        return go, weight

    def body(state: Any) -> Any:
        i, go, carry, weight = state
        if testing:  # the test draws or scores: it stands in the body, and happens once a round
            go, more = go_on(i, carry)
            weight = jax.tree.map(jnp.add, weight, more)
            idle = interpreter.zero()
            carry, more = jax.lax.cond(go, lambda c: advance(i, c), lambda c: (c, idle), carry)
        else:
            carry, more = advance(i, carry)
        return i + 1, go, carry, jax.tree.map(jnp.add, weight, more)

    testing = _jax.has_effect(params["cond_jaxpr"])
    start = (jnp.zeros((), jnp.int32), jnp.ones((), bool), init, interpreter.zero())
    _, _, carry, weight = jax.lax.while_loop(
        lambda s: s[1] if testing else go_on(s[0], s[2])[0], body, start
    )
    frame.add(weight)
    return carry


def _custom_jvp_rule(interpreter: Interpreter, frame: Frame, eqn: Any, values: Any) -> list[Any]:
    """Keep the user's rule for the outputs; weights and records are differentiated as they are."""
    call, key = eqn.params["call_jaxpr"], frame.key
    region = _child(interpreter, call)

    @jax.custom_jvp
    def apply(given: Any, args: Any) -> Outcome:
        return region(key, given, args)

    @apply.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        _refuse_redraw(interpreter, key, call)
        out, out_dot = jax.jvp(lambda g, a: region(key, g, a), primals, tangents)
        with _where(call):
            num_consts, jaxpr, (consts, zeros) = _jax.custom_jvp_rule(eqn)
        args = [*primals[1][num_consts:], *tangents[1][num_consts:]]
        ruled = evaluate(interpreter, jaxpr, consts, args, given=primals[0]).outs
        return out, out_dot._replace(outs=_jax.rule_tangents(ruled, zeros))

    outs, weight, records = apply(_below(frame, call), values)
    _absorb(frame, weight, records)
    return outs


def _custom_vjp_rule(interpreter: Interpreter, frame: Frame, eqn: Any, values: Any) -> list[Any]:
    """Keep the user's rule for the outputs; weights and records are differentiated as they are."""
    call, key = eqn.params["call_jaxpr"], frame.key
    region = _child(interpreter, call)

    @jax.custom_vjp
    def apply(given: Any, args: Any) -> Outcome:
        return region(key, given, args)

    def forward(given: Any, args: Any) -> Any:
        _refuse_redraw(interpreter, key, call)
        out, pull = jax.vjp(lambda g, a: region(key, g, a), given, args)
        with _where(call):
            num_consts, jaxpr, consts, residuals, _ = _jax.custom_vjp_rules(eqn)
        ran = evaluate(interpreter, jaxpr, consts, args[num_consts:], given=given).outs
        return out, (pull, residuals(ran, args))

    def backward(saved: Any, bar: Outcome) -> Any:
        pull, residuals = saved
        with _where(call):
            num_consts, *_, rule = _jax.custom_vjp_rules(eqn)
        given_bar, args_bar = pull(bar._replace(outs=[_jax.zero_tangent(x) for x in bar.outs]))
        user = [None] * num_consts + rule(residuals, bar.outs)
        return given_bar, [
            a if u is None or a.dtype == jax.dtypes.float0 else a + u
            for a, u in zip(args_bar, user, strict=True)
        ]

    apply.defvjp(forward, backward)
    outs, weight, records = apply(_below(frame, call), values)
    _absorb(frame, weight, records)
    return outs


def _where(jaxpr: Any) -> Any:
    """The context in which a custom derivative was called: its rule is traced only when needed.

    It is that of the outermost statement inside; a rule that cannot be placed so (every statement
    sits in a plate or scope of the function's own) fails on its addresses.
    """
    contexts = [p.site.context for p in placed_sites(jaxpr)]
    return context(min(contexts, key=lambda c: (len(c.plates), len(c.prefix))))


def _refuse_redraw(interpreter: Interpreter, key: Any, jaxpr: Any) -> None:
    latent = [p.site for p in placed_sites(jaxpr) if p.site.kind == "latent"]
    if key is not None and latent:
        raise UnsupportedError(
            message(
                f"{interpreter.name} was differentiated through the draw at "
                f"{at(latent[0].address, latent[0].source)} inside a custom derivative",
                needs="the draws to be given, not made anew",
                why="the derivative rule would draw other values than the function did",
                fix=f'move the sample statement of "{latent[0].address}" out of the custom_jvp '
                "or custom_vjp function",
            )
        )


RULES: dict[str, Callable[..., list[Any]]] = {
    "jit": _inline_rule,
    "pjit": _inline_rule,
    "closed_call": _inline_rule,
    "core_call": _inline_rule,
    "remat2": _remat_rule,
    "checkpoint": _remat_rule,
    "scan": _scan_rule,
    "cond": _cond_rule,
    "while": _while_rule,
    "custom_jvp_call": _custom_jvp_rule,
    "custom_vjp_call": _custom_vjp_rule,
}
