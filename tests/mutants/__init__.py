"""Algorithms with known bugs of other libraries, each beside its correct version.

The correct version comes first in each section, its mutants after it. `tests/test_mutants.py` asks
that the checks of `ppl.check` accept the one and reject the others.
"""
