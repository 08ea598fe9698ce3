"""Evaluation with ground truth and without labels. No training uses it."""
