"""Figures and the report. Every plot function takes arrays and returns a matplotlib Figure."""
