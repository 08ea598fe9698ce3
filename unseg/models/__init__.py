"""The networks, and the reading of their weights: ViT and ResNet."""
