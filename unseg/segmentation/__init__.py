"""Pseudo-labels, the segmenter trained on them, and the CRF."""
