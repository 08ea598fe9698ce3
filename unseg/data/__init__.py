"""Data sets in: photographs, readers of their layouts, ground truth, the demo's scenes, video."""
