"""Draw the parts of a statement: expressions, distributions, observations, log weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ppl.check.grammar.syntax import (
    Apply,
    Expr,
    Item,
    Law,
    Lookup,
    Name,
    Number,
    Pick,
    Plus,
    Row,
    Same,
    Scaled,
    Total,
)

if TYPE_CHECKING:
    from ppl.check.grammar.drawing import Drawing, Place

# Sums of powers of two, so that no number is rounded on its way into the program.
_PROBABILITIES = (0.5, 0.25, 0.75, 0.125, 0.0, 1.0)
_ROWS = {
    2: ((0.5, 0.5), (0.25, 0.75), (0.75, 0.25), (0.0, 1.0), (1.0, 0.0)),
    3: ((0.5, 0.25, 0.25), (0.25, 0.25, 0.5), (0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (0.0, 0.0, 1.0)),
}
_LOG_WEIGHTS = (0.0, -1.0, -0.5, 0.5)
_MEANS = (0.0, 1.0, -1.0, 0.5)
_IMPOSSIBLE = float("-inf")
#: No index of a table, and no number of branches, is larger.
_WIDEST = 4


def _ints(env: Sequence[Name], most: int = 99) -> list[Name]:
    return [n for n in env if n.kind == "int" and n.length is None and n.size <= most]


def _reals(env: Sequence[Name], *kinds: str) -> list[Name]:
    wanted = kinds or ("real", "positive", "unit")
    return [n for n in env if n.kind in wanted and n.length is None]


# --- Expressions --------------------------------------------------------------------------------


def integer(
    d: Drawing,
    env: Sequence[Name],
    *,
    most: int = 9,
    numbers: bool = True,
    computed: bool = False,
    local: bool = False,
) -> Expr:
    """Draw a whole-number expression of size at most `most`; a plain variable is the simplest.

    Without `numbers` it names a variable, if there is one; `computed` makes a formula likely;
    `local` makes it differ from one member of the plate to the next.
    """
    scalars = _ints(env, most)
    firsts = [n for n in scalars if n.lane] if local else scalars
    vectors = [n for n in env if n.kind == "int" and n.length is not None and not local]
    choices: list[Callable[[], Expr]] = []
    pairs = [(a, b) for a in firsts for b in scalars if a.size + b.size - 1 <= most]
    sums = [Total(v) for v in vectors if Total(v).size <= most]
    items = [Item(v, i) for v in vectors for i in range(v.length or 0) if v.size <= most]
    if firsts:
        choices += [lambda: d.pick(firsts)] * (1 if computed else 4)
        choices += [lambda: _same(d, firsts, scalars)] if most > 1 else []
    if items:
        choices += [lambda: d.pick(items)]
    if sums:
        choices += [lambda: d.pick(sums)]
    if pairs:
        choices += [lambda: Plus(*d.pick(pairs))]
    if (numbers and not local) or not choices:
        choices += [lambda: Number(d.pick(range(min(most, 2))))]
    return d.pick(choices)()


def _same(d: Drawing, firsts: Sequence[Name], scalars: Sequence[Name]) -> Expr:
    left = d.pick(firsts)
    others = [n for n in scalars if n is not left]
    return Same(left, d.pick([*map(Number, _values(left.size)), *others]))


def _values(size: int) -> list[int]:
    """List a range's values, 1 before 0."""
    return [1, 0, *range(2, size)] if size > 1 else [0]


def real(d: Drawing, env: Sequence[Name], *, named: bool = False) -> Expr:
    """Draw a real expression; `named` puts a variable first, where there is one."""
    names = _reals(env)
    variables: list[Callable[[], Expr]] = [lambda: d.pick(names)] if names else []
    halves: list[Callable[[], Expr]] = [lambda: Scaled(0.5, d.pick(names))] if names else []
    counted: list[Callable[[], Expr]] = (
        [lambda: Scaled(1.0, integer(d, env, most=_WIDEST, numbers=False))] if _ints(env) else []
    )
    table = [lambda: _tabled(d, env, _MEANS)]
    order = [*variables * 2, *table] if named else [*table, *variables * 2]
    return d.pick([*order, *halves, *counted])()


def returned(d: Drawing, env: Sequence[Name]) -> Expr:
    """Draw what a program returns: any variable, vectors too, or a whole-number expression."""
    anything: list[Callable[[], Expr]] = [lambda: d.pick(env)] * 4 if env else []
    return d.pick([*anything, lambda: integer(d, env)])()


def _tabled(d: Drawing, env: Sequence[Name], palette: Sequence[Row]) -> Expr:
    """Draw one row of a palette, or a choice of rows by what has been drawn before."""
    one: list[Callable[[], Expr]] = [lambda: Lookup((d.pick(palette),))]
    if not _ints(env, _WIDEST):
        return one[0]()
    choices = [*one * 2, *[lambda: _table(d, env, palette)] * 3]
    if not isinstance(palette[0], tuple):
        choices.append(lambda: _pick(d, env, palette))
    return d.pick(choices)()


def _table(d: Drawing, env: Sequence[Name], palette: Sequence[Row]) -> Lookup:
    index = integer(d, env, most=_WIDEST, numbers=False)
    return Lookup(tuple(d.pick(palette) for _ in range(index.size)), index)


def _pick(d: Drawing, env: Sequence[Name], palette: Sequence[Any]) -> Pick:
    of = integer(d, env, most=_WIDEST, numbers=False)
    return Pick(of, d.pick(_values(of.size)), d.pick(palette), d.pick(palette))


def test(d: Drawing, env: Sequence[Name]) -> tuple[Expr, float]:
    """Draw a test: an expression, and what it is compared with."""
    reals = _reals(env)
    if reals and (d.pick((True, False)) or not any(n.kind == "int" for n in env)):
        return d.pick(reals), 0.5
    of = integer(d, env, most=_WIDEST, numbers=False)
    return of, d.pick(_values(of.size))


# --- Distributions ------------------------------------------------------------------------------


def law(d: Drawing, place: Place, *, real: bool = False) -> Law:
    """Draw the distribution of a latent site that fits the budget of worlds."""
    most = place.most
    families = d.options.distributions
    if d.options.continuous and not d.real:  # the last free address is for a continuous one
        real = real or d.latents + d.copies + 1 > d.options.latents[1]
    if real:
        families = tuple(f for f in families if f in _REAL)
    families = tuple(f for f in families if f in _REAL or SIZES[f] <= most)
    return _law(d, place.env, d.pick(families), most)


#: How many values a site of a family has at the least.
SIZES = {"Bernoulli": 2, "Categorical": 2, "DiscreteUniform": 2, "Binomial": 3}
_REAL = ("Normal", "Uniform", "Beta", "Gamma")


def _law(d: Drawing, env: Sequence[Name], family: str, most: int, *, strict: bool = False) -> Law:
    """Draw parameters; `strict` allows no probability of 0 or 1."""
    match family:
        case "Bernoulli":
            return Law(family, (_probability(d, env, strict),), 2)
        case "Categorical":
            k = d.pick([n for n in (3, 2) if n <= most])
            rows = [row for row in _ROWS[k] if not strict or 0.0 not in row]
            return Law(family, (_tabled(d, env, rows),), k)
        case "DiscreteUniform":
            highs: list[Expr] = [Number(n) for n in (1, 2) if n < most]
            highs += _ints(env, min(most, _WIDEST))
            high = d.pick(highs)
            return Law(family, (Number(0), high), high.size)
        case "Binomial":
            return Law(family, (Number(2), _probability(d, env, strict)), 3)
        case "Normal":
            return Law(family, (real(d, env), Number(d.pick((1.0, 0.5)))), 0, "real")
        case "Uniform":
            highs = [Number(1.0), Number(2.0), *_reals(env, "positive")]
            high = d.pick(highs)
            return Law(family, (Number(0.0), high), 0, "unit" if high == highs[0] else "positive")
        case "Beta":
            shapes = tuple(Number(d.pick((2.0, 1.0, 3.0))) for _ in range(2))
            return Law(family, shapes, 0, "unit")
        case "Gamma":
            return Law(family, (_tabled(d, env, (2.0, 3.0)), Number(1.0)), 0, "positive")
    raise AssertionError(f"no distribution {family}")


def _probability(d: Drawing, env: Sequence[Name], strict: bool) -> Expr:
    palette = [p for p in _PROBABILITIES if not strict or 0 < p < 1]
    choices: list[Callable[[], Expr]] = [lambda: _tabled(d, env, palette)]
    units, lines = _reals(env, "unit"), _reals(env, "real")
    if units:
        choices.append(lambda: d.pick(units))
    if lines:
        choices.append(lambda: Apply("jax.nn.sigmoid(%s)", d.pick(lines)))
    return d.pick(choices)()


# --- Scores -------------------------------------------------------------------------------------


def _is_strict(d: Drawing) -> bool:
    """Tell whether no run may be impossible: with continuous sites nobody can check that one is."""
    return d.options.continuous and d.options.positive


def observation(d: Drawing, place: Place) -> tuple[Law, Lookup]:
    """Draw a distribution and data for it; in loops and plates the data may differ by element."""
    strict = _is_strict(d)
    families = ("Bernoulli", "Normal", "Categorical", "Binomial")
    family = d.pick(families if strict else (*families, "DiscreteUniform"))
    found = _law(d, place.env, family, 3, strict=strict)
    values: Sequence[float] = (0.5, 0.0, 1.0, -1.0) if family == "Normal" else _values(found.size)
    lane = place.lane
    if lane is not None and (place.in_plate is not None or d.pick((True, False))):
        return found, Lookup(tuple(d.pick(values) for _ in range(lane.size)), lane)
    return found, Lookup((d.pick(values),))


def log_weight(d: Drawing, env: Sequence[Name]) -> Expr:
    """Draw a log weight that is bounded above; it may be minus infinity in some runs."""
    impossible = () if _is_strict(d) else (_IMPOSSIBLE,)
    choices: list[Callable[[], Expr]] = [lambda: Lookup((d.pick(_LOG_WEIGHTS[1:]),))]
    if _ints(env):
        choices += [lambda: _table(d, env, (*_LOG_WEIGHTS, *impossible))] * 2
        choices += [lambda: _pick(d, env, (*_LOG_WEIGHTS, *impossible))] * 2
    reals = _reals(env)
    if reals:
        bounded = ("-jnp.square(%s)", "jnp.tanh(%s)")
        choices += [lambda: Apply(d.pick(bounded), d.pick(reals))] * 2
    return d.pick(choices)()
