"""A run in FiftyOne: what is shown, as plain data (`fields`), and the dataset made of it (`dataset`)."""
