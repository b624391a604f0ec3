"""Micro benchmarks: `python -m loadtest.bench NAME`. Contenders take turns within one run; medians and ratios count."""
