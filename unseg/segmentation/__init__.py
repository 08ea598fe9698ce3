"""Pseudo-labels, the segmenter that is trained on them, and the CRF."""
