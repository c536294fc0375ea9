"""Time, taken so that it can be believed: in turns, on a quiet machine, beside the fastest opponents."""
