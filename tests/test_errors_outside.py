"""Named errors of statements that no model surrounds, and of what is not a model."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import ppl
import ppl.distributions as dist
from ppl import errors
from tests.test_errors import normal, refused

# --- Outside of models --------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["plainly", "under jit", "under vmap"])
@pytest.mark.parametrize("statement", ["sample", "factor", "deterministic", "plate", "scope"])
def test_statement_outside_of_a_model(statement, where):
    def use(_=0.0):
        match statement:
            case "sample":
                ppl.sample("site", dist.Normal(0.0, 1.0))
            case "plate":
                ppl.plate("site", 3).__enter__()
            case "scope":
                ppl.scope("site").__enter__()
            case _:
                getattr(ppl, statement)("site", 1.0)
        return 0.0

    with refused(errors.OutsideModelError, f"{statement} was called", '"site"', "outside"):
        if where == "plainly":
            use()
        elif where == "under jit":
            jax.jit(use)()
        else:
            jax.vmap(use)(jnp.arange(2.0))


def test_statements_that_jax_is_made_to_execute():
    program = normal(1.0)
    jaxpr = program.structure.jaxpr
    execute = lambda: jax.core.eval_jaxpr(jaxpr, program.consts, *program.args)  # noqa: E731
    for run in (execute, jax.jit(execute)):
        with refused(errors.OutsideModelError, "JAX tried to execute", '"mu"', "ppl.run"):
            run()

    @ppl.model
    def eager():
        with jax.ensure_compile_time_eval():
            ppl.sample("site", dist.Normal(0.0, 1.0))

    with refused(errors.OutsideModelError, '"site"'):
        eager()


def test_gradient_of_a_function_that_draws():
    @ppl.model
    def m():
        return jax.grad(lambda x: ppl.sample("site", dist.Normal(x, 1.0)))(1.0)

    with refused(errors.PPLError, '"site"'):
        m()


def test_program_called_outside_of_a_model():
    with refused(errors.ModelError, "normal", "ppl.run", line=False):
        normal(1.0)()


def test_what_is_no_model():
    with refused(errors.ModelError, "int", line=False):
        ppl.model(3)  # pyright: ignore[reportArgumentType]

    with refused(errors.ModelError, "generator", line=False):
        ppl.model(lambda: (yield ppl.sample("site", dist.Normal(0.0, 1.0))))()
