"""The command line: words in, calls of the library, files and words out."""
