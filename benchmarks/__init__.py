"""Benchmarks: ratios taken side by side in one run. `make bench NAME=x` prints a table and writes benchmarks/results/x.json."""
