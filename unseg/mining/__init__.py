"""One object mask an image, from the affinity graph of ViT keys."""
