"""The networks that look at pictures, and how they are pre-trained or loaded."""
