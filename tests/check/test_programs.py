"""The strategy of random programs: what it draws means what its text says, and shrinks well."""

import collections
import inspect
import linecache
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl.check.grammar import reading
from ppl.check.grammar import syntax as grammar
from ppl.check.programs import programs, source, text_of
from ppl.errors import ArgumentError, ResultError
from tests.check.oracle import brute_force, combinations, distance, read

# Staging a program takes milliseconds, compiling it up to a second.
compiled = hypothesis.settings(max_examples=8, database=None)
search = hypothesis.settings(
    max_examples=2000,
    database=None,
    phases=(
        hypothesis.Phase.generate,
        hypothesis.Phase.shrink,
    ),  # without explaining, which is slow
)
few = hypothesis.settings(max_examples=30, database=None)
many = hypothesis.settings(max_examples=300, database=None)


def statements(program):
    return list(grammar.walk(text_of(program).statements))


def lines(program):
    """The body of the model, without imports and blank lines."""
    body = source(program).partition("def model():\n")[2].partition("\n\n")[0]
    return [line.strip() for line in body.splitlines()]


# --- What is drawn is well typed ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["finite", pytest.param("continuous", marks=pytest.mark.slow)])
def test_every_program_has_a_trace_and_a_density(kind):
    @compiled
    @hypothesis.given(programs(kind), st.integers(0, 2**31 - 1))
    def check(program, seed):
        trace = ppl.trace(program, jax.random.key(seed))
        density = float(ppl.log_density(program, trace.choices))
        assert not np.isnan(density)
        assert density < np.inf
        assert set(trace.choices) == set(program.latents)
        assert (density == -np.inf) == (float(trace.log_weight) == -np.inf)
        for leaf in jax.tree.leaves(trace.value):
            assert not np.any(np.isnan(leaf))

    check()


def test_the_text_means_what_the_program_means(x64):
    """The log density, summed over all values, against the text read in plain Python."""

    @compiled
    @hypothesis.given(programs(max_worlds=64))
    def check(program):
        hypothesis.assume(combinations(program) <= 2**12)
        expected = read(program)
        assert sum(expected.values()) > 0
        assert distance(brute_force(program), expected) < 1e-10

    check()


def test_the_printed_source_is_the_program(x64):
    @compiled
    @hypothesis.given(programs(max_worlds=32))
    def check(program):
        namespace = {}
        exec(compile(source(program), "<a fresh module>", "exec"), namespace)
        again = namespace["program"]
        assert again.structure is not program.structure
        assert str(again) == str(program)
        hypothesis.assume(combinations(again) <= 2**10)
        assert distance(brute_force(again), read(program)) < 1e-10

    check()


def test_the_printed_source_runs_by_itself(tmp_path):
    program = smallest(lambda p: len(statements(p)) > 1)
    file = tmp_path / "witness.py"
    file.write_text(source(program) + "print(program)\n", "utf-8")
    out = subprocess.run([sys.executable, file], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(program)


# --- What is drawn, and how much ----------------------------------------------------------------


def constructs(program):
    """Name what occurs in a program's text."""
    text = text_of(program)
    seen = {text.form}
    for s in statements(program):
        seen.add(type(s).__name__)
        for block in grammar.inside(s):
            for inner in grammar.walk(block.statements):
                seen.add(f"{type(inner).__name__} in {type(s).__name__}")
        if isinstance(s, grammar.Draw):
            seen.add(s.law.family)
            if s.address != s.name.text:
                seen.add("shared address")
            if s.law.family == "DiscreteUniform" and isinstance(s.law.parameters[1], grammar.Name):
                seen.add("dynamic support")
            for e in s.law.parameters:
                if isinstance(e, grammar.Lookup) and e.index is not None:
                    seen.add("table")
                if isinstance(e, grammar.Lookup | grammar.Pick) and has_zero(e):
                    seen.add("probability zero")
        if isinstance(s, grammar.Observe):
            seen.add(f"observed {s.law.family}")
        if isinstance(s, grammar.Factor) and "inf" in repr(s.log_weight):
            seen.add("impossible")
        if isinstance(s, grammar.Scan):
            seen |= {"reverse"} if s.reverse else set()
        if isinstance(s, grammar.Vmap | grammar.Scan) and s.over is not None:
            seen.add(f"{type(s).__name__} over draws")
        if isinstance(s, grammar.Wrap):
            seen.add(s.wrapper)
    return seen


def has_zero(e):
    rows = e.rows if isinstance(e, grammar.Lookup) else (e.yes, e.no)
    return any(x in (0.0, 1.0) for x in np.ravel(rows))


WANTED = {
    *("one", "tuple", "dict", "Draw", "Observe", "Factor", "Record", "Plate", "Vmap", "Scan"),
    *("Cond", "Switch", "Submodel", "jax.jit", "jax.checkpoint", "reverse", "table"),
    *("Bernoulli", "Categorical", "DiscreteUniform", "Binomial", "dynamic support"),
    *("observed Bernoulli", "observed Normal", "observed Categorical", "impossible"),
    *("probability zero", "shared address", "Vmap over draws"),
    *("Draw in Scan", "Draw in Vmap", "Draw in Cond", "Observe in Scan", "Observe in Cond"),
    *("Cond in Vmap", "Cond in Scan", "Cond in Cond", "Vmap in Cond"),
}


def test_every_construct_occurs_and_worlds_are_bounded():
    seen = collections.Counter()
    worlds = []

    @many
    @hypothesis.given(programs())
    def collect(program):
        found = constructs(program)
        seen.update(found)
        for name in found & WANTED:
            hypothesis.event(name)
        worlds.append(sum(1 for _ in reading.runs(text_of(program))))

    collect()
    assert len(worlds) >= 300
    assert {name for name in WANTED if not seen[name]} == set()
    assert max(worlds) <= 200
    assert max(worlds) > 50


def test_continuous_programs_mix_all_kinds():
    seen = collections.Counter()

    @hypothesis.settings(many, max_examples=120)
    @hypothesis.given(programs("continuous"))
    def collect(program):
        sites = [s for s in statements(program) if isinstance(s, grammar.Draw)]
        assert any(s.law.kind != "int" for s in sites)
        seen.update(constructs(program))

    collect()
    wanted = {"Normal", "Gamma", "Beta", "Uniform", "Bernoulli", "Categorical"}
    wanted |= {"Cond", "Scan", "Vmap", "Plate", "Submodel", "Observe", "Factor"}
    assert {name for name in wanted if not seen[name]} == set()


@pytest.mark.parametrize("bound", [8, 40])
def test_the_number_of_worlds_is_bounded(bound):
    @few
    @hypothesis.given(programs(max_worlds=bound))
    def check(program):
        assert sum(1 for _ in reading.runs(text_of(program))) <= bound

    check()


@pytest.mark.parametrize("kind", ["finite", "continuous"])
@pytest.mark.parametrize("observations", [True, False])
@pytest.mark.parametrize("latents", [(1, 2), (3, 3)])
def test_options_restrict(kind, observations, latents):
    flow = ("scan", "cond", "submodel")
    strategy = programs(
        kind, latents=latents, observations=observations, control_flow=flow, size=5, depth=1
    )

    @few
    @hypothesis.given(strategy)
    def check(program):
        low, high = latents
        assert low <= len(program.latents) <= high
        assert bool(program.structure.open_scores) == observations
        found = statements(program)
        assert len(found) <= 5
        kinds = {type(s) for s in found}
        assert kinds.isdisjoint({grammar.Vmap, grammar.Plate, grammar.Switch, grammar.Wrap})
        for s in found:
            for block in grammar.inside(s):
                assert not any(grammar.inside(t) for t in block.statements)

    check()


def test_distributions_restrict():
    @few
    @hypothesis.given(programs(distributions=("Categorical", "Binomial"), latents=(1, 4)))
    def check(program):
        families = {s.law.family for s in statements(program) if isinstance(s, grammar.Draw)}
        assert families <= {"Categorical", "Binomial"}

    check()


def test_evidence_may_be_zero_if_asked(x64):
    program = smallest(lambda p: not read(p), positive_evidence=False, size=3)
    # NumPyro keeps probabilities of 0 and 1 a rounding error away from these.
    assert sum(brute_force(program).values()) < 1e-10


# --- Shrinking ----------------------------------------------------------------------------------


def smallest(condition, **options):
    return hypothesis.find(programs(**options), condition, settings=search)


def test_the_simplest_program():
    assert lines(smallest(lambda p: True)) == [
        'x1 = ppl.sample("x1", dist.Bernoulli(0.5))',
        "return x1",
    ]
    assert lines(smallest(lambda p: True, kind="continuous")) == [
        'r1 = ppl.sample("r1", dist.Uniform(0.0, 1.0))',
        "return r1",
    ]


def test_shrinks_to_one_scan():
    found = smallest(lambda p: any(isinstance(s, grammar.Scan) for s in statements(p)))
    assert lines(found) == [
        "def step1(c1, i1):",
        'x1 = ppl.sample("x1", dist.Bernoulli(0.5))',
        "return x1, x1",
        "x2, v1 = jax.lax.scan(step1, 0, jnp.arange(2))",
        "return x2",
    ]


def test_shrinks_to_one_impossible_value():
    found = smallest(lambda p: "probability zero" in constructs(p))
    assert lines(found) == ['x1 = ppl.sample("x1", dist.Bernoulli(0.0))', "return x1"]


def test_shrinks_to_one_observation():
    found = smallest(lambda p: len(p.observed) > 0)
    assert lines(found) == [
        'ppl.sample("y1", dist.Bernoulli(0.5), obs=1)',
        'x1 = ppl.sample("x1", dist.Bernoulli(0.5))',
        "return x1",
    ]


def test_a_failing_example_is_reported_with_its_source():
    @search
    @hypothesis.given(programs())
    def fails(program):
        assert not program.observed

    with pytest.raises(AssertionError) as error:
        fails()
    notes = "\n".join(error.value.__notes__)
    assert 'ppl.sample("y1", dist.Bernoulli(0.5), obs=1)' in notes
    assert "program = model()" in notes


# --- The source of a program --------------------------------------------------------------------


@ppl.model
def written_by_hand(scale=1.0):
    return ppl.sample("x", dist.Normal(0.0, scale))


def test_source_of_a_users_program():
    assert source(written_by_hand()) == inspect.getsource(written_by_hand.__wrapped_model__)


def test_source_of_a_transformed_program_is_its_table():
    program = ppl.condition(written_by_hand(), {"x": 0.0})
    assert source(program) == str(program)


def test_source_without_a_file_is_the_table():
    namespace = {"ppl": ppl, "dist": dist}
    exec(
        "@ppl.model\ndef f():\n    return ppl.sample('x', dist.Bernoulli(0.5))\nprogram = f()\n",
        namespace,
    )
    assert source(namespace["program"]) == str(namespace["program"])


def test_equal_texts_share_one_structure_and_lines_can_be_found():
    one, two = (smallest(lambda p: True) for _ in range(2))
    assert one.structure is two.structure
    file, _, number = one.sites["x1"].source.partition(":")
    assert 'ppl.sample("x1"' in linecache.getline(file, int(number))


# --- Errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kind": "finit"}, "unknown kind 'finit'; needs one of 'finite', 'continuous'"),
        ({"control_flow": ("while",)}, "unknown control flow 'while'; needs one of 'cond'"),
        ({"distributions": ("Poisson",)}, "unknown distribution 'Poisson'; needs one of"),
        ({"distributions": ()}, "needs at least one finite distribution"),
        (
            {"kind": "continuous", "distributions": ("Bernoulli",)},
            "needs at least one continuous distribution",
        ),
        ({"latents": (3, 2)}, "got latents=(3, 2); needs the fewest and the most latent addresses"),
        ({"kind": "continuous", "latents": (0, 0)}, "one of them continuous"),
        ({"size": 1, "observations": True}, "got size=1; needs at least 2 statements"),
        ({"latents": (4, 4), "max_worlds": 15}, "max_worlds=15 for 4 latent sites; needs at least"),
        ({"depth": -1}, "got depth=-1; needs a whole number from 0"),
        ({"max_world": 3}, "unknown keyword max_world=3"),
    ],
)
def test_wrong_options_are_refused(options, text):
    with pytest.raises(ArgumentError) as error:
        programs(**options)
    assert text in str(error.value)
    assert "Fix: " in str(error.value) or "Did you mean" in str(error.value)


def test_hypothesis_missing_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "hypothesis.strategies", None)
    with pytest.raises(ResultError, match=r"check\.programs found no package hypothesis") as error:
        programs()
    assert "Fix: pip install hypothesis." in str(error.value)


def test_source_of_something_else_is_refused():
    with pytest.raises(ArgumentError, match=r"check\.source got int; needs a Program"):
        source(3)


# --- The oracle ---------------------------------------------------------------------------------


def test_the_oracle_knows_two_coins(x64):
    from tests.zoo import TWO_COINS, two_coins

    assert distance(brute_force(two_coins()), TWO_COINS) < 1e-12


def test_the_oracle_refuses_a_support_that_is_too_wide():
    @ppl.model
    def model():
        x = ppl.sample("x", dist.DiscreteUniform(0, 5))
        return ppl.sample("y", dist.DiscreteUniform(0, x))

    with pytest.raises(ValueError, match=r"wider than 4\?"):
        brute_force(model())
    assert sum(brute_force(model(), widest=6).values()) == pytest.approx(1.0, rel=1e-5)
