"""CrOC: self-supervised pre-training of a ViT."""
