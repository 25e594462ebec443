"""Checks that a program, a kernel or an algorithm keeps the measure it should keep."""

from ppl.check.calibration import sbc
from ppl.check.coverage import tarp
from ppl.check.exact import equal, invariant, preserves, reversible, unbiased
from ppl.check.geweke import geweke
from ppl.check.means import same_mean
from ppl.check.programs import programs, source
from ppl.check.report import CheckFailed, Report
from ppl.check.sequential import sequential
from ppl.check.statistical import same_measure

__all__ = [
    "CheckFailed",
    "Report",
    "equal",
    "geweke",
    "invariant",
    "preserves",
    "programs",
    "reversible",
    "same_mean",
    "same_measure",
    "sbc",
    "sequential",
    "source",
    "tarp",
    "unbiased",
]
