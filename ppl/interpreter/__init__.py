"""The evaluation loop and its rules: what programs have in common, whatever interprets them."""

from ppl.interpreter import batching, control, custom
from ppl.interpreter.base import (
    Frame,
    Interpreter,
    Outcome,
    Record,
    Renaming,
    Ring,
    address_hash,
    evaluate,
    loop_key_of,
    merge_records,
    run_equation,
)
from ppl.interpreter.placed import Placed, placed_sites

__all__ = [
    "Frame",
    "Interpreter",
    "Outcome",
    "Placed",
    "Record",
    "Renaming",
    "Ring",
    "address_hash",
    "evaluate",
    "loop_key_of",
    "merge_records",
    "placed_sites",
    "run_equation",
]

# Imported for what they register: the rules of the loop and of `vmap`.
del batching, control, custom
