"""One object an image: its mask, its crop, its label."""
