"""Labels for the masks: clustering of their CLS tokens, the choice of K, names of clusters."""
