"""CrOC: pre-training of a ViT."""
