"""`unseg compare`: shows what changed between runs."""

import argparse
from pathlib import Path

from unseg.core.console import InputError
from unseg.core.storage import atomic_write
from unseg.report import comparison
from unseg.report.comparison import ComparedRun
from unseg.serving.cli.parser import check_output
from unseg.serving.run import Run


def run(options: argparse.Namespace) -> None:
    if options.round and len(options.runs) > 1:
        raise InputError("--round compares two rounds of one run; name one run")
    if len(options.runs) < 2 and not options.round:
        raise InputError("unseg compare: name two runs or more, or one run and --round")
    if options.out:
        check_output(options.out, options.force)
    runs = rounds(options.runs[0], options.round) if options.round else comparison.read_runs(options.runs)
    print(comparison.summary(runs))
    if options.out:
        with atomic_write(options.out) as part:
            part.write_bytes(comparison.compare(runs))
        print(f"page: {options.out}")


def rounds(folder: Path, first: str) -> list[ComparedRun]:
    """A round of a run, and its final one."""
    return [comparison.read(folder, name, name) for name in (first, Run(folder).value("final", str))]
