"""What `ppl._jax` adds to JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ppl import _jax

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="the options are those of XLA on a CPU"
)


def decay(x, count):
    """Run a small loop."""
    return jax.lax.fori_loop(0, count, lambda i, x: jnp.sin(x) / 2 + jnp.sum(x) / 300, x)


def compiled(**options):
    """Compile the loop."""
    return jax.jit(decay, compiler_options=options).lower(jnp.ones(300), 3).compile()


def test_an_option_in_a_map_reaches_xla():
    (option,) = _jax.WHOLE_LOOPS
    name, _, _ = _jax.WHOLE_LOOPS[option].partition("=")
    apart = compiled(**{option: f"{name}=1"})
    whole = compiled(**_jax.WHOLE_LOOPS)
    assert "small_call" not in apart.as_text()
    assert "small_call" in whole.as_text()
    np.testing.assert_allclose(whole(jnp.ones(300), 3), apart(jnp.ones(300), 3), rtol=1e-6)


def test_other_options_hold_beside_it():
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_no_such_option"):
        compiled(**_jax.WHOLE_LOOPS, xla_no_such_option=True)
    both = compiled(**_jax.WHOLE_LOOPS, xla_cpu_enable_fast_math=False)
    assert "small_call" in both.as_text()


def test_a_loop_with_operations_that_need_calls_stays_a_loop():
    def sorts(x, count):
        return jax.lax.fori_loop(0, count, lambda i, x: jnp.sort(x)[::-1] / 2, x)

    x = jnp.arange(5.0)
    run = jax.jit(sorts, compiler_options=_jax.WHOLE_LOOPS)
    assert "small_call" not in run.lower(x, 3).compile().as_text()
    np.testing.assert_allclose(run(x, 3), sorts(x, 3))
