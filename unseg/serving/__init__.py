"""Use of a trained model: the Python API, the command line, export."""
