"""The parts of `paper_checks.denotational_validation`."""
