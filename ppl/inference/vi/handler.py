"""`estimators`: choose how derivatives pass the sites of a program, from outside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ppl.errors import ArgumentError, at, check_addresses, message
from ppl.interpreter import Frame, Interpreter, evaluate
from ppl.primitives import GradientEstimator, Site, bind, with_operand
from ppl.program import Program, require_program
from ppl.staging import stage


class _Choosing(Interpreter):
    name, fixes = "ppl.vi.estimators", False

    def __init__(self, chosen: Mapping[str, GradientEstimator]):
        self.chosen = chosen

    def arrays(self) -> Any:
        return self.chosen

    def with_arrays(self, arrays: Any) -> Interpreter:
        return _Choosing(arrays)

    def sample(self, frame: Frame, site: Site, leaves: list[Any]) -> Any:
        if site.kind == "latent" and site.address in self.chosen:
            chosen = self.chosen[site.address]
            site, leaves = with_operand(site, leaves, "grad", chosen, mapped=False)
        return bind(site, leaves)[0]


def estimators(program: Program, chosen: Mapping[str, GradientEstimator]) -> Program:
    """Choose how derivatives pass latent sites; the measure is the same.

    Args:
        program: any program.
        chosen: by address, such as `{"z": ppl.vi.enum()}`; it replaces what the model says.

    Raises:
        AddressError: an address is no latent site.
        ArgumentError: a value is no gradient estimator.
    """
    latents = require_program("vi.estimators", program).latents
    check_addresses("estimators", chosen, latents)
    for address, estimator in chosen.items():
        if not isinstance(estimator, GradientEstimator):
            site = program.sites[address]
            raise ArgumentError(
                message(
                    f"estimators got {estimator!r} for {at(address, site.source)}",
                    needs="a gradient estimator",
                    fix=f'ppl.vi.estimators(program, {{"{address}": ppl.vi.reinforce()}})',
                )
            )
    return stage(_estimators, (program, dict(chosen)), name=program.name)


def _estimators(program: Program, chosen: dict[str, GradientEstimator]) -> Any:
    s = program.structure
    return s.rebuild(evaluate(_Choosing(chosen), s.jaxpr, program.consts, program.args).outs)
