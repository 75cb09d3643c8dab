"""Checks before a run: the machine, memory and time, the data, self-consistency."""
