"""Running a program for all of its worlds at once, exactly: what `ppl.enumerate` stands on."""
