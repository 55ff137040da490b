"""Throughput, latency and memory of models, measured side by side."""

from .measure import Measurement, Setting, compare
from .report import machine, plot, table, write_csv, write_json

__all__ = ["Measurement", "Setting", "compare", "machine", "plot", "table", "write_csv", "write_json"]
