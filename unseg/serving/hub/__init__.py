"""A run's model as a repository of the Hugging Face hub: its files, its model card, and the hub's client."""
