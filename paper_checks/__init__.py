"""Papers' claims in our own words, checked one by one; each module runs with `python -m`."""
