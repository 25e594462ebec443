"""Summing sites out inside one compiled density: what `ppl.marginalize` stands on."""
