"""Random well-typed programs, as a Hypothesis strategy, and the source of a program."""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import linecache
import weakref
from collections.abc import Sequence
from typing import Any, Literal

from ppl.check.grammar import reading
from ppl.check.grammar.control import text
from ppl.check.grammar.drawing import CONTINUOUS, CONTROL_FLOW, FINITE, Options
from ppl.check.grammar.printing import source_of
from ppl.check.grammar.syntax import Text
from ppl.errors import ArgumentError, message, named_keywords
from ppl.program import Program, require_program
from ppl.results._names import require

KINDS = ("finite", "continuous")

_made: weakref.WeakKeyDictionary[Any, tuple[str, Text]] = weakref.WeakKeyDictionary()


@named_keywords
def programs(
    kind: Literal["finite", "continuous"] = "finite",
    *,
    size: int = 8,
    latents: tuple[int, int] = (1, 5),
    observations: bool | None = None,
    control_flow: tuple[str, ...] = CONTROL_FLOW,
    distributions: tuple[str, ...] | None = None,
    max_worlds: int = 200,
    depth: int = 2,
    positive_evidence: bool = True,
) -> Any:
    """Give a Hypothesis strategy of random well-typed programs.

    **Meaning.** Every program can be staged, traced and given a log density. Finite ones have at
    most `max_worlds` runs of positive prior mass, so that they, and algorithms on them, can be
    enumerated; some branches have probability zero, and some runs weight zero. In continuous ones
    every weight is bounded, so that averages of weights have all moments.

    A failing example is reported with the source of the program, which is a complete module, and
    is shrunk: to fewer statements, none that contain others, Bernoulli sites, probabilities 1/2.

    Args:
        kind: "finite" for discrete sites only; "continuous" for at least one continuous site.
        size: most statements, counted at every depth.
        latents: fewest and most addresses of latent sites.
        observations: True for at least one observation or factor, False for none, None for either.
        control_flow: which of "cond", "plate", "vmap", "scan", "switch", "jit", "checkpoint" and
            "submodel" may occur.
        distributions: names of the distributions of latent sites; None for all. They are
            "Bernoulli", "Categorical", "DiscreteUniform", "Binomial", and in continuous programs
            also "Normal", "Uniform", "Beta" and "Gamma".
        max_worlds: most runs, told apart by their discrete draws.
        depth: how deep control flow may be nested.
        positive_evidence: whether some run must have positive weight.

    Returns:
        A strategy of `Program`s. `source(program)` gives the text of one.

    Raises:
        ArgumentError: an option is unknown, or no program fits them together.
        ResultError: Hypothesis is not installed.
    """
    st = require("hypothesis.strategies", "check.programs")
    continuous = kind == "continuous"
    families = (*CONTINUOUS, *FINITE) if continuous else FINITE
    options = Options(
        continuous=continuous,
        size=size,
        latents=latents,
        observations=observations,
        control_flow=tuple(control_flow),
        distributions=families if distributions is None else tuple(distributions),
        max_worlds=max_worlds,
        depth=depth,
        positive=positive_evidence,
    )
    _check(options, kind, families)
    checked = options.positive and not options.continuous

    @st.composite
    def program(draw: Any) -> Program:
        number = itertools.count()

        def pick(choices: Sequence[Any]) -> Any:
            # Hypothesis copies what it drew at one place to other places of the same strategy, and
            # would so make most programs near copies of one another: here no two are the same.
            start = next(number) << 10
            return choices[draw(st.sampled_from(range(start, start + len(choices)))) - start]

        found = text(pick, options)
        if checked:
            require("hypothesis", "check.programs").assume(reading.possible(found))
        made = program_of(found)
        _note(source(made))
        return made

    return program()


def source(program: Program) -> str:
    """Give a program's text, for a report.

    Args:
        program: any program.

    Returns:
        The module that makes it, if it comes from `programs`; else the source of the model
        function, if it is the user's and can be read; else the site table.
    """
    require_program("check.source", program)
    if program.structure in _made:
        return _made[program.structure][0]
    function = program.structure.fun
    function = None if function is None else inspect.unwrap(function)
    # Of a text that was executed, newer Python finds that of `python -c` instead.
    written = getattr(getattr(function, "__code__", None), "co_filename", "") != "<string>"
    if written and (getattr(function, "__module__", None) or "").partition(".")[0] != "ppl":
        try:
            return inspect.getsource(function)  # pyright: ignore[reportArgumentType]
        except (OSError, TypeError):
            pass
    return str(program)


def text_of(program: Program) -> Text:
    """Give the drawn text of a program that comes from `programs`."""
    return _made[program.structure][1]


def program_of(found: Text) -> Program:
    """Make the program of a text; equal texts share one staged structure."""
    printed = source_of(found)
    program = _model(printed)()
    _made[program.structure] = (printed, found)
    return program


@functools.lru_cache(maxsize=1024)
def _model(printed: str) -> Any:
    """Define the model of a source, where errors and `inspect` can find its lines."""
    name = f"program_{hashlib.blake2b(printed.encode(), digest_size=4).hexdigest()}"
    file = f"{name}.py"
    linecache.cache[file] = (len(printed), None, printed.splitlines(keepends=True), file)
    namespace: dict[str, Any] = {"__name__": name}
    exec(compile(printed, file, "exec"), namespace)
    return namespace["model"]


def _note(printed: str) -> None:
    """Have Hypothesis show the source with a failing example."""
    hypothesis = require("hypothesis", "check.programs")
    if hypothesis.currently_in_test_context():
        hypothesis.note(printed)


def _check(o: Options, kind: str, families: tuple[str, ...]) -> None:
    """Raise `ArgumentError` unless some program satisfies the options."""
    fewest, most = o.latents
    least = max(fewest, int(o.continuous)) + (o.observations is True)
    worlds = o.smallest**fewest
    _member("kind", kind, KINDS, f'kind="{KINDS[0]}"')
    for name in o.control_flow:
        _member("control flow", name, CONTROL_FLOW, f"control_flow={CONTROL_FLOW}")
    for name in o.distributions:
        _member("distribution", name, families, f"distributions={families}")
    if not 0 <= fewest <= most or (o.continuous and most < 1):
        more = ", one of them continuous" if o.continuous else ""
        needs = f"the fewest and the most latent addresses{more}"
        raise _refused(f"latents={o.latents}", needs, "latents=(1, 4)")
    if o.size < least:
        needs = f"at least {least} statements for what is asked for"
        raise _refused(f"size={o.size}", needs, f"size={least}")
    if o.max_worlds < worlds:
        what = f"max_worlds={o.max_worlds} for {fewest} latent sites"
        raise _refused(what, f"at least {worlds}", f"max_worlds={worlds}, or fewer latents")
    if o.depth < 0:
        raise _refused(f"depth={o.depth}", "a whole number from 0", "depth=2")
    if not any(f in (CONTINUOUS if o.continuous else FINITE) for f in o.distributions):
        needs = f"at least one {kind} distribution"
        raise _refused(f"distributions={o.distributions}", needs, f"distributions={families[:1]}")


def _member(what: str, name: str, known: tuple[str, ...], fix: str) -> None:
    if name not in known:
        raise _refused(f"unknown {what} {name!r}", f"one of {', '.join(map(repr, known))}", fix)


def _refused(what: str, needs: str, fix: str) -> ArgumentError:
    return ArgumentError(message(f"check.programs got {what}", needs=needs, fix=fix))
