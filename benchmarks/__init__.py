"""Ratios against controls and peers; `results/` holds their runs."""
