"""`python -m unseg ...` runs `unseg ...`."""

from unseg.serving.cli.main import main

if __name__ == "__main__":
    main()
