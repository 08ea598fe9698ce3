"""CrOC's three evaluations of a ViT."""
