"""The report: one self-contained HTML page, PNG pictures and Markdown tables, all made from a results file alone."""

from bench.report.page import render

__all__ = ["render"]
