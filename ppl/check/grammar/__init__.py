"""The small language that random programs are drawn in, printed in, and read in."""
