"""Programs run from the host, loop by loop: the value of one compiled call, and safe to stop."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from ppl._host import on_host
from ppl.errors import ArgumentError, Interrupted
from ppl.results import progress, storage
from ppl.semantics import outermost
from ppl.semantics.run import _execute
from tests.compiling import compilations
from tests.stopping import Pressed

STEPS = 100
LONG = outermost.LONG, outermost.SOME


def walk(start, rows, address="x", reverse=False):
    """Draw a random walk; its rows, twice them, and its end."""

    def step(x, row):
        x = ppl.sample(address, dist.Normal(0.9 * x + row, 1.0))
        return x, (x, 2 * x, jnp.sin(x))

    return jax.lax.scan(step, start, rows, reverse=reverse)


@ppl.model
def forward(start, rows):
    return walk(start, rows)


@ppl.model
def backward(start, rows):
    last, (xs, _, _) = walk(start, rows, reverse=True)  # a part of the rows is not needed
    return last, xs


@ppl.model
def several(start, rows):
    """Two loops with draws before, between and after; a row of the first is read at the end."""
    scale = ppl.sample("scale", dist.Gamma(2.0, 2.0))
    last, (xs, _, _) = walk(start * scale, rows)
    middle = ppl.sample("middle", dist.Normal(last, scale))
    _, (ys, _, _) = walk(middle, rows[::-1], "y")
    return ppl.sample("end", dist.Normal(xs[3] + ys[-1], 1.0)), scale


@ppl.model
def nested(start, rows):
    def outer(x, row):
        return walk(x, jnp.stack([row, -row]), "inner")[0], x

    return jax.lax.scan(outer, start, rows)


@ppl.model
def until(start, rows):
    """Go on until a walk has left an interval: nobody knows for how long."""

    def body(state):
        x, count = state
        x, _ = walk(x, rows[:20], "inner")
        return x, count + 1

    x, count = jax.lax.while_loop(lambda s: jnp.abs(s[0]) < 6.0, body, (start, jnp.array(0)))
    return x, count, ppl.sample("after", dist.Normal(x, 1.0))


@ppl.model
def filtered(start, rows):
    def step(x, row):
        x = ppl.sample("x", dist.Normal(0.9 * x, 0.5))
        ppl.sample("y", dist.Normal(x, 1.0), obs=row)
        return x, None

    return jax.lax.scan(step, start, rows)[0]


PROGRAMS = {
    **{m.__name__: m for m in (forward, backward, several, nested, until)},
    "smc": lambda start, rows: ppl.smc(filtered(start, rows), 8),
    "smc, no trajectories": lambda *args: ppl.smc(filtered(*args), 8, trajectories=False),
}


def made(name, seed=0):
    rows = np.random.default_rng(seed).normal(size=STEPS)
    return PROGRAMS[name](jnp.asarray(0.5), jnp.asarray(rows))


def whole(program, key=0):
    """Run a program in one compiled call."""
    return program.structure.rebuild(_execute(program, jax.random.key(key), None))


def same(one, other):
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def often(monkeypatch):
    """Write after every call, and make calls short."""
    for name in ("SAVE_EVERY", "SECONDS", "WORTH"):
        monkeypatch.setattr(outermost, name, 0.0)


@pytest.fixture(autouse=True)
def long(monkeypatch):
    """Run all loops from the host."""
    outermost.parts_of.cache_clear()
    monkeypatch.setattr(outermost, "LONG", 0.0)
    monkeypatch.setattr(outermost, "SOME", 0.0)
    yield
    outermost.parts_of.cache_clear()


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


# --- The same values ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_value_is_that_of_one_call(name, often):
    program = made(name)
    assert outermost.parts_of(program.structure, False) is not None
    blocks, one = ppl.run(program, 0), whole(program)
    for x, y in zip(jax.tree.leaves(blocks), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-12)
        assert (x.dtype, x.shape) == (y.dtype, y.shape)


def test_where_blocks_end_makes_no_difference(often, monkeypatch):
    program = made("smc")
    short = ppl.run(program, 1)
    monkeypatch.setattr(outermost, "SECONDS", 1e3)
    same(ppl.run(program, 1), short)


def test_which_loops_are_long_depends_on_the_program():
    @ppl.model
    def quiet(rows):
        x = ppl.sample("x", dist.Normal(0.0, 1.0))
        return jax.lax.scan(lambda c, r: (c + r, c), x, rows)

    def loops(program):
        return [part.length for part in outermost.parts_of(program.structure, False) or ()]

    outermost.LONG, outermost.SOME = LONG
    outermost.parts_of.cache_clear()
    rows = jnp.zeros(1000)
    assert loops(ppl.smc(filtered(0.0, rows), 100)) == []
    assert 1000 in loops(ppl.smc(filtered(0.0, rows), 100_000))
    assert loops(quiet(jnp.zeros(10**7))) == []  # nothing is drawn in it


def test_many_loops_are_cut_if_that_is_asked_for(often, capsys):
    @ppl.model
    def three(rows):
        return [walk(jnp.zeros(()), rows, f"x{k}")[0] for k in range(3)]

    program = three(jnp.ones(STEPS))
    assert outermost.parts_of(program.structure, False) is None
    expected = ppl.run(program, 0)
    found = ppl.run(program, 0, progress=True)
    assert "300/300" in capsys.readouterr().err
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_rows_that_nothing_reads_are_not_kept():
    parts = outermost.parts_of(made("backward").structure, False)
    assert [part.kept_rows for part in parts if part.loop is not None] == [(0,)]


def test_what_a_user_holds_stays_whole(often):
    start, rows = jnp.asarray(0.5), jnp.ones(STEPS)
    before = np.asarray(rows).copy()
    ppl.run(forward(start, rows), 0)
    np.testing.assert_array_equal(rows, before)
    assert float(start) == 0.5


def test_new_data_and_keys_compile_nothing(often):
    ppl.run(made("several"), 0)
    with compilations() as found:
        ppl.run(made("several", seed=1), 1)
    assert found.count == 0


def test_a_bar_compiles_nothing_anew(often):
    expected = ppl.run(made("several"), 0)
    with compilations() as found:
        same(ppl.run(made("several"), 0, progress=True), expected)
    assert found.count == 0


def test_under_vmap_and_jit_it_is_one_computation():
    program = made("forward")
    keys = jax.random.split(jax.random.key(0), 3)
    many = jax.jit(jax.vmap(lambda key: ppl.run(program, key)[0]))(keys)
    one = [ppl.run(program, key)[0] for key in keys]
    np.testing.assert_allclose(many, one, rtol=1e-12)


def call(function, x):
    """Call Python while XLA runs: in another thread, where precision is single."""
    like = jax.ShapeDtypeStruct((), jnp.float32)
    return jax.pure_callback(on_host(function), like, x.astype(jnp.float32)).astype(x.dtype)


# --- Interrupts ---------------------------------------------------------------------------------


def interrupted(monkeypatch, after, program, **options):
    with monkeypatch.context() as patch:
        patch.setattr(outermost, "progress_bar", lambda *_: Pressed(after))
        with pytest.raises(Interrupted) as stopped:
            ppl.run(program, 0, **options)
    return stopped.value


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_interrupted_run_goes_on(name, often, monkeypatch):
    program = made(name)
    stopped = interrupted(monkeypatch, 20 if name == "until" else 60, program)
    assert not isinstance(stopped, Exception)  # `except Exception` does not swallow it
    same(stopped.resume(), ppl.run(program, 0))


def test_an_interrupt_says_how_far_the_run_was(often, monkeypatch):
    stopped = interrupted(monkeypatch, 60, made("several"))
    assert "run of several was interrupted after 60 of 200 iterations" in str(stopped)
    assert ".resume()" in str(stopped)


def test_ctrl_c_comes_between_calls():
    """A signal at any moment leaves a run that can go on."""
    rows = jnp.asarray(np.random.default_rng(3).normal(size=20_000))
    program = ppl.smc(filtered(jnp.asarray(0.5), rows), 64)
    expected = ppl.run(program, 0)
    started = threading.Event()

    def press():
        started.wait()
        time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    def again_and_again():
        started.set()
        for _ in range(200):
            ppl.run(program, 0)

    pressing = threading.Thread(target=press)
    pressing.start()
    with pytest.raises(Interrupted) as stopped:
        again_and_again()
    pressing.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    same(stopped.value.resume(), expected)


def test_an_error_of_python_inside_leaves_the_run_whole(often):
    """What goes into a call that calls Python is not written over."""
    bad = [True]

    def shifted(x):
        if bad[0] and x > 0.7:
            raise KeyboardInterrupt
        return np.asarray(x)

    @ppl.model
    def asking(rows):
        def step(x, row):
            u = ppl.sample("u", dist.Uniform())
            return x + call(shifted, u), None

        return jax.lax.scan(step, jnp.zeros(()), rows)[0]

    program = asking(jnp.zeros(STEPS))
    with pytest.raises(Interrupted) as stopped:
        ppl.run(program, 0)
    bad[0] = False
    same(stopped.value.resume(), ppl.run(program, 0))


@pytest.mark.parametrize("where", ["before", "inside", "after"])
def test_errors_of_python_come_by_their_class(where, often):
    def failing(x):
        raise ZeroDivisionError("as the user wrote it")

    def asked(here, x):
        return call(failing, x) if here == where else x

    @ppl.model
    def asking(rows):
        start = asked("before", ppl.sample("start", dist.Normal(0.0, 1.0)))

        def step(x, row):
            x = asked("inside", ppl.sample("x", dist.Normal(x, 1.0)))
            return x, x

        return asked("after", jax.lax.scan(step, start, rows)[0])

    with pytest.raises(ZeroDivisionError, match="as the user wrote it"):
        ppl.run(asking(jnp.zeros(STEPS)), 0)


# --- Checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_checkpoint_is_taken_up_again(name, often, monkeypatch, tmp_path):
    program, path = made(name), str(tmp_path / "c")
    expected = ppl.run(program, 0)
    for after in (3, 20) if name == "until" else (3, 60, 150):
        if after <= 60 or name == "several":
            interrupted(monkeypatch, after, program, checkpoint=path)
    same(ppl.run(program, 0, checkpoint=path), expected)
    with monkeypatch.context() as patch:  # all is there: nothing is drawn
        patch.setattr(outermost.Passage, "_block", None)
        patch.setattr(outermost, "_between", None)
        same(ppl.run(program, 0, checkpoint=path), expected)


def test_rows_are_written_once_while_they_come(often, tmp_path):
    ppl.run(made("forward"), 0, checkpoint=str(tmp_path / "c"))
    written = {"rows": 0, "outs": 0}
    for file in (tmp_path / "c").glob("piece-*.npz"):
        piece = storage.load(file)[0]
        for name in written:
            written[name] += sum(x.size for x in piece.get(name, {}).values())
    # And once more when the loop is over, with what it carried. The last rows come with these only.
    assert written["outs"] == 3 * STEPS + 1
    assert 3 * (STEPS - 2) <= written["rows"] < 3 * STEPS


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = str(tmp_path / "c")
    ppl.run(made("forward"), 0, checkpoint=path)
    for program, key in ((made("forward"), 1), (made("forward", 1), 0), (made("backward"), 0)):
        with pytest.raises(ArgumentError, match="belongs to another run"):
            ppl.run(program, key, checkpoint=path)
    chains = ppl.mcmc(filtered(jnp.asarray(0.0), jnp.ones(3)), ppl.kernels.single_site(), 5, 0, 1)
    ppl.run(chains, 0, checkpoint=str(tmp_path / "chains"), progress=False)
    with pytest.raises(ArgumentError, match="another kind of run"):
        ppl.run(made("forward"), 0, checkpoint=str(tmp_path / "chains"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentError, match="is a file"):
        ppl.run(made("forward"), 0, checkpoint=str(tmp_path / "file"))


@pytest.mark.parametrize("lost", [1, 2])
def test_pieces_that_do_not_fit_are_refused(lost, often, monkeypatch, tmp_path):
    """As two processes with one checkpoint would leave them."""
    program, path = made("forward"), tmp_path / "c"
    interrupted(monkeypatch, 60, program, checkpoint=str(path))
    names = sorted(path.glob("piece-*.npz"))
    rows = [f for f in names if "rows" in storage.load(f)[0]]
    rows[lost].write_bytes(rows[lost + 1].read_bytes())
    with pytest.raises(ArgumentError, match=r"do not fit together.*one process at a time"):
        ppl.run(program, 0, checkpoint=str(path))


def test_a_checkpoint_needs_a_loop(tmp_path):
    @ppl.model
    def straight():
        return ppl.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ArgumentError, match="an outermost loop that draws"):
        ppl.run(straight(), 0, checkpoint=str(tmp_path / "c"))


def test_a_short_loop_has_a_checkpoint_if_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(outermost, "LONG", LONG[0])
    path, program = str(tmp_path / "c"), made("forward")
    assert outermost.parts_of(program.structure, False) is None
    expected = ppl.run(program, 0, checkpoint=path)
    same(ppl.run(program, 0, checkpoint=path), expected)


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    """Processes killed by `kill -9` lose nothing that the next does not draw again, bit for bit."""
    for kills in ("5", "0"):
        command = [sys.executable, "-m", "tests.killed_filter", str(tmp_path), kills]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    whole, resumed = (np.load(tmp_path / f"{name}.npz") for name in ("whole", "resumed"))
    for name in whole:
        np.testing.assert_array_equal(whole[name], resumed[name])


# --- Progress -----------------------------------------------------------------------------------


def test_a_bar_counts_iterations(often, capsys):
    ppl.run(made("several"), 0, progress=True)
    shown = capsys.readouterr().err
    assert "several: 100%" in shown
    assert "200/200" in shown


def test_a_bar_of_an_unknown_number(often, capsys):
    ppl.run(made("until"), 0, progress=True)
    assert "until: " in capsys.readouterr().err


def test_a_bar_that_nobody_asked_for_waits(often, capsys, monkeypatch):
    monkeypatch.setattr(progress, "_in_terminal", lambda: True)
    monkeypatch.setattr(outermost, "PATIENCE", 1e3)
    ppl.run(made("forward"), 0)
    assert "100%" not in capsys.readouterr().err
    monkeypatch.setattr(outermost, "PATIENCE", 0.0)
    ppl.run(made("forward"), 0)
    assert "100%" in capsys.readouterr().err
