"""Numbers of things; see `ppl.counts`."""

from ppl.counts import count as count
