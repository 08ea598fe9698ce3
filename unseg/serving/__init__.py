"""The finished model in use: Python API, command line, export."""
