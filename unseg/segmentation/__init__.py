"""Label maps, and DeepLab-v3 on them."""
