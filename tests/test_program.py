"""Programs as values: site table, printing, pytrees, and never a stale result."""

from __future__ import annotations

import builtins
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ppl
import ppl.distributions as dist
from tests.zoo import linear_gaussian, normal_log_density, normal_normal


@ppl.model
def zoo(y, flag):
    mu = ppl.sample("mu", dist.Normal(0.0, 1.0))
    sd = ppl.sample("sd", dist.HalfNormal(2.0))
    with ppl.plate("group", 3, dim=-1):
        theta = ppl.sample("theta", dist.Normal(mu, sd))
        ppl.sample("y", dist.Normal(theta, 1.0), obs=y)
    ppl.factor("tilt", -sd)
    total = ppl.deterministic("total", theta.sum())

    def step(carry, t):
        z = ppl.sample("z", dist.Normal(carry, 1.0))
        vs = jax.vmap(lambda m: ppl.sample("v", dist.Uniform(0.0, 1.0 + m**2)))(jnp.arange(2.0))
        return z, vs

    jax.lax.scan(step, total, jnp.arange(4))
    jax.lax.cond(
        (sd > 1) & flag,
        lambda: ppl.sample("left", dist.Dirichlet(jnp.array([1.0, 2.0])))[0],
        lambda: ppl.sample("right", dist.Poisson(2.0)) * 1.0,
    )
    return theta


@pytest.fixture(scope="module")
def program():
    return zoo(np.array([0.1, 0.2, 0.3], np.float32), np.array(True))


# Address: kind, distribution, shape, axes, dtype, support, path, parents.
TABLE = {
    "mu": ("latent", "Normal", (), (), "float32", "real", (), ()),
    "sd": ("latent", "HalfNormal", (), (), "float32", "positive", (), ()),
    "theta": ("latent", "Normal", (3,), ("group",), "float32", "real", (), ("mu", "sd")),
    "y": ("observed", "Normal", (3,), ("group",), "float32", "real", (), ("theta",)),
    "tilt": ("factor", "", (), (), "float32", "", (), ("sd",)),
    "total": ("deterministic", "", (), (), "float32", "", (), ("theta",)),
    "z": ("latent", "Normal", (4,), (None,), "float32", "real", ("scan(4)",), ("total",)),
    "v": ("latent", "Uniform", (4, 2), (None, None), "float32", None, ("scan(4)",), ()),
    # JAX keeps the branches of a cond in the order false, true.
    "right": ("latent", "Poisson", (), (), "int32", "integer nonnegative(0)", ("branch",), ("sd",)),
    "left": ("latent", "Dirichlet", (2,), (None,), "float32", "simplex", ("branch",), ("sd",)),
}


@pytest.mark.parametrize("address", TABLE)
def test_site_table(program, address):
    kind, name, shape, axes, dtype, support, path, parents = TABLE[address]
    site = program.sites[address]
    assert (site.kind, site.distribution, site.shape, site.axes) == (kind, name, shape, axes)
    assert str(np.dtype(site.dtype)) == dtype
    assert site.path == path
    assert site.observed == (kind == "observed")
    assert site.conditional == (path == ("branch",))
    if support is not None:
        assert site.support == support
    # A scan's carry makes z depend on itself, which is not listed.
    assert site.depends_on == parents
    assert site.source.startswith("test_program.py:")


def test_table_is_a_sequence(program):
    addresses = [s.address for s in program.sites]
    assert addresses == list(TABLE)
    assert len(program.sites) == len(TABLE)
    assert "mu" in program.sites
    assert "nope" not in program.sites
    assert program.sites[0] is program.sites["mu"]
    assert program.sites[-1].address == "left"
    assert program.latents == ("mu", "sd", "theta", "z", "v", "right", "left")
    assert program.observed == ("y",)


def test_control_dependence_through_scan_and_while():
    @ppl.model
    def m():
        n = ppl.sample("n", dist.Normal(0.0, 1.0))
        count, total = jax.lax.while_loop(
            lambda c: c[0] < n,
            lambda c: (c[0] + 1, c[1] + ppl.sample("w", dist.Normal(0.0, 1.0))),
            (0.0, 0.0),
        )
        a = ppl.sample("a", dist.Normal(count, 1.0))
        return ppl.sample("b", dist.Normal(total, 1.0)) + a

    sites = m().sites
    assert sites["w"].depends_on == ("n",)
    assert sites["w"].path == ("while",)
    assert sites["a"].depends_on == ("n",)
    assert sites["b"].depends_on == ("n", "w")


def test_printing(program):
    text = str(program)
    assert text == repr(program)
    assert text.splitlines()[0] == "zoo"
    for address in TABLE:
        assert any(line.split()[0] == address for line in text.splitlines()[2:])
    assert "(group=3)" in text
    assert "scan(4)" in text


def test_html_is_escaped():
    @ppl.model
    def m():
        with ppl.plate("<i>", 2):
            return ppl.sample("<script>&", dist.Normal(0.0, 1.0))

    page = m()._repr_html_()
    assert "&lt;script&gt;&amp;" in page
    assert "<script>" not in page
    assert "<i>" not in page


def test_render_without_graphviz(program, monkeypatch):
    monkeypatch.setitem(sys.modules, "graphviz", None)
    lines = program.render().splitlines()
    assert "theta <- mu, sd" in lines
    assert "mu <- (nothing)" in lines
    assert len(lines) == len(TABLE)


def test_render_with_graphviz(program, monkeypatch):
    graphviz = pytest.importorskip("graphviz")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")  # only the text is read
    graph = program.render()
    assert isinstance(graph, graphviz.Digraph)
    assert "mu -> theta" in graph.source
    assert "group = 3" in graph.source
    colons = ppl.model(
        lambda: ppl.sample("b:1", dist.Normal(ppl.sample("a:n", dist.Normal(0.0, 1.0)), 1.0))
    )
    # A colon would read as a port of the node "a".
    assert '"a:n" -> "b:1"' in colons().render().source


def test_immutable(program):
    for name in ("args", "structure", "sites", "anything"):
        with pytest.raises(AttributeError):
            setattr(program, name, None)
    for name in ("args", "structure", "_consts"):
        with pytest.raises(AttributeError, match="immutable"):
            delattr(program, name)
    with pytest.raises(AttributeError):
        program.sites["mu"].kind = "observed"
    with pytest.raises(TypeError):
        program.sites[0] = program.sites[1]


def test_data_are_copied_or_at_least_not_mixed_up(x64):
    y = np.zeros(2)
    p = normal_normal(y)
    before = float(ppl.log_density(p, {"mu": 0.0}))
    y[:] = 100.0
    assert float(ppl.log_density(p, {"mu": 0.0})) == before
    assert float(ppl.log_density(normal_normal(y), {"mu": 0.0})) != before


# --- Programs as pytrees --------------------------------------------------------------------------


def test_program_is_a_pytree_of_its_arrays(x64):
    y = np.array([0.5, 1.5])
    p = normal_normal(y)
    (leaf,) = jax.tree.leaves(p)
    assert leaf.tolist() == [0.5, 1.5]
    doubled = jax.tree.map(lambda x: 2 * x, p)
    assert isinstance(doubled, ppl.Program)
    choices = {"mu": 0.3}
    direct = ppl.log_density(normal_normal(2 * y), choices)
    assert ppl.log_density(doubled, choices) == direct
    assert jax.jit(ppl.log_density)(doubled, choices) == pytest.approx(float(direct), rel=1e-14)
    gradient = jax.grad(lambda p: ppl.log_density(p, choices))(p)
    np.testing.assert_allclose(jax.tree.leaves(gradient)[0], -(y - 0.3) / 0.25, rtol=1e-12)


def test_programs_map_over_data(x64):
    ys = np.array([[0.5, 1.5], [2.0, -1.0], [0.0, 0.0]])
    mus = np.array([0.3, 0.1, -1.0])
    expected = [
        float(ppl.log_density(normal_normal(y), {"mu": m})) for y, m in zip(ys, mus, strict=True)
    ]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *[normal_normal(y) for y in ys])
    one = jax.vmap(lambda p, m: ppl.log_density(p, {"mu": m}))(batch, mus)
    two = jax.vmap(lambda y, m: ppl.log_density(normal_normal(y), {"mu": m}))(ys, mus)
    three = jax.jit(jax.vmap(lambda y, m: ppl.log_density(normal_normal(y), {"mu": m})))(ys, mus)
    for got in (one, two, three):
        np.testing.assert_allclose(got, expected, rtol=1e-13)


def test_gradient_through_data_in_a_scan(x64):
    y = np.array([0.5, 1.5, -0.2])
    x = np.array([0.1, 0.2, 0.3])
    gradient = jax.grad(lambda y: ppl.log_density(linear_gaussian(y), {"x": x}))(y)
    np.testing.assert_allclose(gradient, -(y - x) / 0.16, rtol=1e-12)


def test_runs_inside_transformations_draw_what_runs_outside_draw():
    m = ppl.model(lambda s: ppl.sample("x", dist.Normal(0.0, s)))
    outside = ppl.run(m(np.float32(2.0)), 3)
    inside = jax.jit(lambda s, k: ppl.run(m(s), k))(np.float32(2.0), jax.random.key(3))
    assert outside == inside
    keys = jax.random.split(jax.random.key(0), 4)
    many = jax.vmap(lambda k: ppl.run(m(np.float32(2.0)), k))(keys)
    assert len(np.unique(many)) == 4
    assert many[2] == ppl.run(m(np.float32(2.0)), keys[2])


# --- Never stale ----------------------------------------------------------------------------------

VALUE = 1.0
ARRAY = np.ones(2)
slice = 1.0


class Config:
    value = 1.0

    def get(self):
        return self.value


CONFIG, MODULE = Config(), types.ModuleType("helpers")
MODULE.value = 1.0  # pyright: ignore[reportAttributeAccessIssue]
TABLE_OF, LONG = {"a": [1.0]}, [1.0] * 2000


def helper():
    return VALUE


@jax.jit
def jitted(x):
    return VALUE * x


def body(carry, x):
    return carry + VALUE * x, None


def _set(owner, name):
    return lambda v: setattr(owner, name, v)


THIS = sys.modules[__name__]
READS = {
    "global": (lambda: VALUE, _set(THIS, "VALUE")),
    "helper": (helper, _set(THIS, "VALUE")),
    "lambda in lambda": (lambda: (lambda: VALUE)(), _set(THIS, "VALUE")),
    "shadowed builtin": (lambda: slice, _set(THIS, "slice")),
    "list in dict": (lambda: TABLE_OF["a"][0], lambda v: TABLE_OF["a"].__setitem__(0, v)),
    "end of a long list": (lambda: LONG[1999], lambda v: LONG.__setitem__(1999, v)),
    "attribute": (lambda: CONFIG.value, _set(CONFIG, "value")),
    "method": (lambda: CONFIG.get(), _set(CONFIG, "value")),
    "class attribute": (lambda: Config.value, _set(Config, "value")),
    "module attribute": (lambda: MODULE.value, _set(MODULE, "value")),  # pyright: ignore
    "jitted helper": (lambda: jitted(jnp.ones(())), _set(THIS, "VALUE")),
    "scan body": (lambda: jax.lax.scan(body, 0.0, jnp.ones(1))[0], _set(THIS, "VALUE")),
}


def test_an_array_changed_in_place_is_refused():
    """JAX remembers a constant by the identity of its array; going on would be silently stale."""

    @ppl.model
    def m():
        return jnp.asarray(ARRAY)[0] * jnp.ones(())

    assert float(ppl.run(m(), 0)) == ARRAY[0]
    ARRAY.fill(ARRAY[0] + 1.0)
    with pytest.raises(ppl.PPLError, match=r"\"ARRAY\", which was changed in place.*Fix:"):
        m()


@pytest.mark.parametrize("case", READS)
def test_a_changed_closure_is_seen(case):
    read, change = READS[case]

    @ppl.model
    def m():
        return read() * jnp.ones(())

    values = []
    for value in (1.0, 2.0, 3.0):
        change(value)
        values.append(float(ppl.run(m(), 0)))
    change(1.0)
    assert values == [1.0, 2.0, 3.0]


def test_changed_cells_arguments_and_methods_are_seen():
    global VALUE
    cell = 1.0
    config = Config()
    config.value = 1.0
    bound = ppl.model(config.get)
    closure, static = ppl.model(lambda: cell * jnp.ones(())), ppl.model(lambda c: c.get())
    function = ppl.model(lambda f: f() * jnp.ones(()))
    values = []
    for VALUE in (1.0, 2.0):
        cell = config.value = VALUE
        row = [closure(), bound(), static(config), function(helper), function(closure)]
        values.append([float(ppl.run(p, 0)) for p in row])
    VALUE = 1.0
    assert values == [[1.0] * 5, [2.0] * 5]


def test_redefined_model_and_helper_in_a_notebook():
    namespace = {"ppl": ppl, "dist": dist, "__name__": "notebook", "__builtins__": builtins}
    cell = "def f(x):\n    return {} * x\n"
    exec(cell.format(1.0), namespace)
    exec("@ppl.model\ndef m(x):\n    return f(x)\n", namespace)
    one = float(ppl.run(namespace["m"](np.float32(3.0)), 0))
    exec(cell.format(2.0), namespace)
    assert (one, float(ppl.run(namespace["m"](np.float32(3.0)), 0))) == (3.0, 6.0)
    exec('@ppl.model\ndef m(x):\n    return ppl.sample("a", dist.Delta(x))\n', namespace)
    assert namespace["m"](np.float32(3.0)).sites[0].source.startswith("In [")


def test_a_site_that_reads_a_changed_global():
    global VALUE

    def site(x):
        return ppl.sample("x", dist.Normal(VALUE * x, 1.0))

    for wrap in (lambda f: f, jax.jit, jax.checkpoint):
        m = ppl.model(lambda wrap=wrap: wrap(site)(jnp.ones(())))
        got = []
        for VALUE in (1.0, 4.0):  # noqa: B007 - the model reads it
            got.append(float(ppl.log_density(m(), {"x": 1.0})))
        VALUE = 1.0
        expected = [normal_log_density(1.0, 1.0), normal_log_density(1.0, 4.0)]
        np.testing.assert_allclose(got, expected, rtol=1e-6)
