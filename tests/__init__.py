"""The tests: they pin promises, on real engines, with a clock that only they turn."""
