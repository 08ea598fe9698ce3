"""unseg: a folder of unlabelled photographs in, a semantic segmentation model out."""
