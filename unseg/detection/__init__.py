"""Mask R-CNN on mined masks."""
