"""Every interpreter on every construct of JAX's control flow, against plain Python loops.

`control_flow_cases` holds the models, each with a reference that is written in `for` and `if` and
knows nothing of `ppl`. Densities are compared exactly (double precision, 1e-10), derivatives with
fourth-order differences of the reference. Interpreters must draw the same from one key; they are
compiled apart, and XLA may fuse a sum and a product in one and not in the other, so that their
values are compared to 1e-12, not by bits.
"""

import dataclasses
import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
from tests.control_flow_cases import CASES, LOG_2PI, Case, Tape

SCORES = ("observed", "factor")

pytestmark = pytest.mark.usefixtures("x64")
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
every_bounded_case = pytest.mark.parametrize(
    "case", [c for c in CASES.values() if not c.unbounded], ids=lambda c: c.name
)


def some_cases(*names: str):
    return pytest.mark.parametrize("case", [CASES[name] for name in names], ids=names)


def walk(case: Case, choices) -> tuple[Tape, object]:
    tape = Tape(choices)
    return tape, case.ref(tape)


def same(got, want, rtol: float = 1e-10) -> None:
    """Equal up to rounding, with the reference's shapes."""
    jax.tree.map(
        lambda g, w: (
            np.testing.assert_equal(np.shape(g), np.shape(w)),
            np.testing.assert_allclose(g, w, rtol=rtol, atol=1e-12),
        ),
        got,
        want,
    )


def identical(got, want) -> None:
    jax.tree.map(np.testing.assert_array_equal, got, want)


def difference(f, x: float, h: float = 1e-3) -> float:
    """The derivative of a function of one number, to fourth order."""
    return (8 * (f(x + h) - f(x - h)) - (f(x + 2 * h) - f(x - 2 * h))) / (12 * h)


def some(indices, seed: int, most: int = 8):
    indices = sorted(indices)
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(indices))[:most]
    return [indices[i] for i in chosen]


def total_at(case: Case, choices, address: str, index, value: float) -> float:
    moved = {**choices, address: np.array(choices[address], float)}
    moved[address][index] = value
    return walk(case, moved)[0].total()


@functools.cache
def _program(name: str) -> ppl.Program:
    return CASES[name].build()


def program_of(case: Case) -> ppl.Program:
    return _program(case.name)


# --- Densities ----------------------------------------------------------------------------------


@every_case
def test_the_site_table_has_the_shapes_of_the_nesting(case):
    p = program_of(case)
    assert {a: p.sites[a].shape for a in p.latents} == case.shapes


@every_case
def test_log_density(case):
    p = program_of(case)
    for seed in range(3):
        choices = case.choices(seed)
        tape, _ = walk(case, choices)
        np.testing.assert_allclose(ppl.log_density(p, choices), tape.total(), rtol=1e-10)
        # Choices of statements that are not reached count nothing, to the last bit.
        other = {a: np.array(v) for a, v in case.choices(seed + 100).items()}
        for address in choices:
            for index in tape.terms.get(address, {}):
                other[address][index] = choices[address][index]
        identical(ppl.log_density(p, other), ppl.log_density(p, choices))


@every_case
def test_gradient_of_log_density(case):
    p = program_of(case)
    real = {a: v for a, v in case.choices(0).items() if a not in case.binary}
    fixed = {a: v for a, v in case.choices(0).items() if a in case.binary}
    differentiate = jax.jacfwd if case.unbounded else jax.grad
    gradient = jax.jit(differentiate(lambda c: ppl.log_density(p, {**c, **fixed})))(real)
    tape, _ = walk(case, {**real, **fixed})
    for address, values in real.items():
        got = np.asarray(gradient[address])
        reached = tape.terms.get(address, {})
        absent = np.ones(values.shape, bool)
        for index in reached:
            absent[index] = False
        np.testing.assert_array_equal(got[absent], 0.0)  # no NaN from a branch not taken
        for index in some(reached, 1):
            f = functools.partial(total_at, case, {**real, **fixed}, address, index)
            want = difference(f, values[index])
            np.testing.assert_allclose(got[index], want, rtol=1e-7, atol=1e-8)


@every_bounded_case
def test_unconstrain(case):
    p = ppl.condition(program_of(case), {a: case.choices(0)[a] for a in case.binary})
    u = ppl.unconstrain(p)
    assert u.size == sum(int(np.prod(s)) for a, s in case.shapes.items() if a not in case.binary)

    def unflatten(vector):
        choices, offset = dict(case.choices(0)), 0
        for address, shape in u.shapes:
            z = vector[offset : offset + int(np.prod(shape))].reshape(shape)
            offset += z.size
            choices[address] = np.exp(z) if address in case.positive else z
        return choices

    def want(vector):
        """Density and Jacobian where the reference goes, a standard normal elsewhere."""
        choices = unflatten(vector)
        tape, _ = walk(case, choices)
        jacobian = sum(t.log_jacobian for at in tape.terms.values() for t in at.values())
        filler = 0.0
        for address, shape in u.shapes:
            for index in np.ndindex(*shape):
                if index not in tape.terms.get(address, {}):
                    x = choices[address][index]
                    z = np.log(x) if address in case.positive else x
                    filler += -0.5 * (z**2 + LOG_2PI)
        return tape.total() + jacobian + filler, jacobian

    rng = np.random.default_rng(3)
    vector = rng.normal(size=u.size)

    def at(vector):
        point = u.at(vector)
        return point.log_density, point

    both = jax.jit(jax.value_and_grad(at, has_aux=True))
    (_, point), gradient = both(vector)
    density, jacobian = want(vector)
    np.testing.assert_allclose(point.log_density, density, rtol=1e-10)
    np.testing.assert_allclose(point.log_jacobian, jacobian, rtol=1e-10, atol=1e-12)
    choices = unflatten(vector)
    tape, value = walk(case, choices)
    same(point.value, value)
    for address, _ in u.shapes:
        for index in tape.terms.get(address, {}):
            same(point.choices[address][index], choices[address][index])
    reached = np.concatenate(
        [[i in tape.terms.get(a, {}) for i in np.ndindex(*s)] for a, s in u.shapes]
    ).astype(bool)
    back = u.flatten({a: choices[a] for a, _ in u.shapes})
    np.testing.assert_allclose(back[reached], vector[reached], rtol=1e-10, atol=1e-12)
    for i in some(range(u.size), 2):
        direction = np.eye(u.size)[i]
        slope = difference(lambda x, e=direction: want(vector + x * e)[0], 0.0)
        np.testing.assert_allclose(gradient[i], slope, rtol=1e-7, atol=1e-8)


# --- Draws --------------------------------------------------------------------------------------


@every_case
def test_trace_weighted_and_run_agree(case):
    p = program_of(case)
    for seed in range(2):
        trace = ppl.trace(p, seed)
        assert {a: v.shape for a, v in trace.choices.items()} == case.shapes
        tape, value = walk(case, trace.choices)
        same(trace.value, value)
        same(trace.log_weight, np.asarray(tape.total(*SCORES)))
        same(ppl.log_density(p, trace.choices), np.asarray(tape.total()))
        weighted = ppl.run(ppl.weighted(p), seed)
        same(weighted.value, jax.tree.map(np.asarray, trace.value), rtol=1e-12)
        same(weighted.log_weight, np.asarray(trace.log_weight), rtol=1e-12)
        assert trace.program is p
        identical(ppl.run(ppl.traced(p), seed), dataclasses.replace(trace, program=None))
        if not p.structure.open_scores:
            drawn = ppl.run(p, seed)
            same(drawn, jax.tree.map(np.asarray, trace.value), rtol=1e-12)
        # Lanes, iterations and addresses have keys of their own; absent choices are placeholders.
        draws = [np.ravel(trace.choices[a]) for a in (*case.normal, *case.positive)]
        draws = np.concatenate([d[(d != 0.0) & ~np.isnan(d)] for d in draws])
        assert len(np.unique(draws)) == draws.size
        # `present` says where the reference goes.
        for address in case.shapes:
            flags = np.ones(case.shapes[address], bool)
            if address in trace.present:
                rank = trace.present[address].ndim
                flags = np.asarray(trace.present[address])
                flags = np.broadcast_to(
                    flags.reshape(flags.shape + (1,) * (len(case.shapes[address]) - rank)),
                    case.shapes[address],
                )
            assert set(map(tuple, np.argwhere(flags))) == set(tape.terms.get(address, {})), address


@some_cases("vmap_of_scan_of_cond", "scan_with_tree_of_xs", "switch_in_vmap_in_vmap")
def test_keys_are_by_address(case):
    """Conditioning on one site leaves the standardised draws of others alone."""
    p = program_of(case)
    trace = ppl.trace(p, 3)
    *_, last = case.shapes
    again = ppl.trace(ppl.condition(p, {last: trace.choices[last]}), 3)
    for address in again.choices:
        same(again.choices[address], trace.choices[address])
    same(again.value, trace.value)


# --- Handlers -----------------------------------------------------------------------------------


@every_bounded_case
def test_condition(case):
    p, choices = program_of(case), case.choices(0)
    tape, value = walk(case, choices)
    addresses = list(case.shapes)
    q = ppl.condition(p, {a: choices[a] for a in addresses[::2]})
    rest = {a: choices[a] for a in addresses[1::2]}
    assert set(q.latents) == set(rest)
    same(ppl.log_density(q, rest), np.asarray(tape.total()))
    weighted = ppl.run(ppl.weighted(ppl.condition(q, rest)), 0)
    same(weighted.log_weight, np.asarray(tape.total()))
    same(weighted.value, value)


@every_bounded_case
def test_do(case):
    p, choices = program_of(case), case.choices(0)
    tape, value = walk(case, choices)
    chosen = list(case.shapes)[::2]
    cut = sum(t.log_weight for a in chosen for t in tape.terms.get(a, {}).values())
    q = ppl.do(p, {a: choices[a] for a in chosen})
    rest = {a: v for a, v in choices.items() if a not in chosen}
    same(ppl.log_density(q, rest), np.asarray(tape.total() - cut))
    weighted = ppl.run(ppl.weighted(ppl.do(p, choices)), 0)
    same(weighted.log_weight, np.asarray(tape.total(*SCORES)))
    same(weighted.value, value)


@every_bounded_case
def test_replay(case):
    p, choices = program_of(case), case.choices(0)
    chosen = list(case.shapes)[::2]
    trace = ppl.trace(ppl.replay(p, {a: choices[a] for a in chosen}), 1)
    tape, value = walk(case, trace.choices)
    same(trace.value, value)
    same(trace.log_weight, np.asarray(tape.total(*SCORES)))
    for address in chosen:
        for index in tape.terms.get(address, {}):
            np.testing.assert_array_equal(trace.choices[address][index], choices[address][index])


@every_bounded_case
def test_scale(case):
    p, choices = program_of(case), case.choices(0)
    tape, _ = walk(case, choices)
    *_, address = [s.address for s in p.sites if s.kind != "deterministic"]
    part = sum(t.log_weight for t in tape.terms.get(address, {}).values())
    q = ppl.scale(ppl.scale(p, 0.3), 2.5, [address])  # factors multiply
    same(ppl.log_density(q, choices), np.asarray(0.3 * tape.total() + 0.45 * part))
    trace = ppl.trace(ppl.scale(p, 0.3), 2)
    identical(trace.choices, ppl.trace(p, 2).choices)
    tape, _ = walk(case, trace.choices)
    want = 0.3 * tape.total(*SCORES) - 0.7 * tape.total("latent")
    same(trace.log_weight, np.asarray(want))


@every_bounded_case
def test_mask(case):
    p, choices = program_of(case), case.choices(0)
    tape, _ = walk(case, choices)
    scored = [s for s in p.sites if s.kind in SCORES]
    if not scored:
        pytest.skip("nothing to mask")
    q, dropped = p, 0.0
    for site in scored:
        rng = np.random.default_rng(zlib.crc32(site.address.encode()))
        keep = rng.random(site.shape) < 0.5
        q = ppl.mask(q, keep, [site.address])
        for index, term in tape.terms.get(site.address, {}).items():
            assert len(index) == keep.ndim
            dropped += 0.0 if keep[index] else term.log_weight
    same(ppl.log_density(q, choices), np.asarray(tape.total() - dropped))


@every_bounded_case
def test_reparam(case):
    p = program_of(case)
    q = ppl.reparam(p, {a: ppl.NonCentred(0.0) for a in case.normal})
    assert set(q.latents) == {
        a if a in (*case.positive, *case.binary) else f"{a}_base" for a in case.shapes
    }
    trace = ppl.trace(q, 4)
    choices = {a: trace.choices.get(a, trace.deterministics.get(a)) for a in case.shapes}
    tape, value = walk(case, choices)
    same(trace.value, value)
    same(trace.log_weight, np.asarray(tape.total(*SCORES)))
    gain = sum(
        t.log_scale
        for a in case.normal
        for t in tape.terms.get(a, {}).values()
        if t.log_scale is not None
    )
    same(ppl.log_density(q, trace.choices), np.asarray(tape.total() + gain))


@some_cases("vmap_size_equals_event_size", "vmap_of_scan_of_cond", "scan_of_vmap", "cond_on_a_draw")
def test_unobserve_draws_the_observations(case):
    p = program_of(case)
    q = ppl.unobserve(p)
    assert set(q.latents) == set(p.latents) | set(p.observed)
    trace = ppl.trace(q, 0)
    assert {a: trace.choices[a].shape for a in p.observed} == {
        a: p.sites[a].shape for a in p.observed
    }
    back = ppl.condition(q, {a: trace.choices[a] for a in p.observed})
    rest = {a: trace.choices[a] for a in p.latents}
    same(ppl.log_density(back, rest), ppl.log_density(q, trace.choices))


# --- JAX around whole interpreter calls ---------------------------------------------------------


@some_cases(
    "vmap_size_equals_event_size",
    "scan_with_tree_of_xs",
    "cond_on_a_draw",
    "while_loop_that_scores",
    "vmap_of_cond_mapped_predicate",
    "vmap_of_while_mapped_predicate",
    "vmap_of_scan",
    "custom_jvp_in_vmap_of_scan",
)
def test_vmap_over_keys_and_over_choices(case):
    p = program_of(case)
    keys = jax.random.split(jax.random.key(0), 3)
    many = jax.jit(jax.vmap(lambda k: ppl.trace(p, k)))(keys)
    one = ppl.trace(p, keys[1])
    same(jax.tree.map(lambda x: x[1], many.choices), jax.tree.map(np.asarray, one.choices))
    first, *_ = case.shapes
    rows = [case.choices(seed) for seed in range(10, 13)]
    choices = {a: np.stack([row[a] for row in rows]) for a in case.shapes}
    got = jax.vmap(lambda c: ppl.log_density(p, c))(choices)
    want = [walk(case, {a: v[i] for a, v in choices.items()})[0].total() for i in range(3)]
    same(got, np.array(want))
    # One address mapped, along its last axis; the others not.
    moved = {a: np.moveaxis(v, 0, -1) if a == first else v[0] for a, v in choices.items()}
    axes = {a: -1 if a == first else None for a in choices}
    got = jax.vmap(lambda c: ppl.log_density(p, c), in_axes=(axes,))(moved)
    want = [
        walk(case, {a: v[i] if a == first else v[0] for a, v in choices.items()})[0].total()
        for i in range(3)
    ]
    same(got, np.array(want))


@some_cases(
    "vmap_axes_mixed_and_out_axes",
    "scan_with_tree_of_xs",
    "cond_on_a_draw",
    "vmap_of_scan",
    "scan_of_vmap",
    "vmap_of_cond_mapped_predicate",
    "jit_in_checkpoint_in_scan",
    "nested_conds_under_vmaps",
    "custom_jvp_in_vmap_of_scan",
    "custom_vjp_in_vmap_of_scan",
)
def test_checkpoint_and_second_derivative(case):
    p, choices = program_of(case), case.choices(0)
    *_, address = case.normal
    tape, _ = walk(case, choices)
    if not tape.terms.get(address):
        pytest.skip("not reached")
    (index,) = some(tape.terms[address], 0, most=1)
    x0 = choices[address][index]

    def along(x):
        moved = jnp.asarray(choices[address]).at[index].set(x)
        return ppl.log_density(p, {**choices, address: moved})

    reference = functools.partial(total_at, case, choices, address, index)
    slope = jax.grad(jax.checkpoint(along))(x0)
    np.testing.assert_allclose(slope, difference(reference, x0), rtol=1e-7, atol=1e-8)
    h = 1e-2
    f = [reference(x0 + k * h) for k in (-2, -1, 0, 1, 2)]
    curvature = (-f[0] + 16 * f[1] - 30 * f[2] + 16 * f[3] - f[4]) / (12 * h * h)
    second = jax.grad(jax.grad(along)) if "custom_vjp" in case.name else jax.hessian(along)
    np.testing.assert_allclose(second(x0), curvature, rtol=1e-6, atol=1e-6)
