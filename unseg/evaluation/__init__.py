"""Scores against ground truth, and without labels. Nothing is learned from here."""
