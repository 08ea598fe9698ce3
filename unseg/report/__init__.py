"""The report of a run: one HTML page, figures, contact sheets."""
