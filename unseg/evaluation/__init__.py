"""How good it is, by ground truth. Nothing is learned from here."""
