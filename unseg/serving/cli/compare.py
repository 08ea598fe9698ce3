"""`unseg compare`: shows what changed between runs."""

import argparse

from unseg.core.console import InputError
from unseg.core.storage import atomic_write
from unseg.report import comparison
from unseg.serving.cli.parser import check_output


def run(options: argparse.Namespace) -> None:
    if len(options.runs) < 2:
        raise InputError("unseg compare: name two runs or more")
    if options.out:
        check_output(options.out, options.force)
    runs = comparison.read_runs(options.runs)
    print(comparison.summary(runs))
    if options.out:
        with atomic_write(options.out) as part:
            part.write_bytes(comparison.compare(runs))
        print(f"page: {options.out}")
