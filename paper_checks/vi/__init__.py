"""The parts of `paper_checks.programmable_vi`."""
