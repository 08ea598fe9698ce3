"""`unseg COMMAND ...`: calls `run` of the command's module, which is imported only then, so that `--help` answers at once."""

import importlib
import sys

from unseg.core.console import InputError
from unseg.serving.cli import parser


def main(argv: list[str] | None = None) -> None:
    """Run a command. An error of the user or of the machine ends it with one line and status 1."""
    options = parser.parser().parse_args(argv)
    try:
        importlib.import_module(f"unseg.serving.cli.{options.command.replace('-', '_')}").run(options)
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # e.g. a full disk, a folder that is read-only
        where = error.filename2 or error.filename
        sys.exit(f"error: {where}: {error.strerror}" if where and error.strerror else f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
