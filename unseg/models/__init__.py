"""ViT and ResNet models, and loading of their weights."""
