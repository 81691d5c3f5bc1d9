"""Measurements of fusednn: suites (``bench_*.py``), the machinery they share, and the report.

Run ``pytest bench`` from the repository root; see ``docs/benchmarking.md``.
"""
