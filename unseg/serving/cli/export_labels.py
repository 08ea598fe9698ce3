"""`unseg export-labels`: writes a run's label maps and detections, or those of `unseg predict`, for annotation tools."""

import argparse

from unseg.clustering import naming
from unseg.core.console import InputError, track
from unseg.serving.cli import clusters
from unseg.serving.labels import formats, source


def run(options: argparse.Namespace) -> None:
    """Raises InputError for a source or an output folder that cannot be used; then nothing is written."""
    if not 0 <= options.score <= 1:
        raise InputError(f"--score {options.score} is not understood; give a number from 0 to 1")
    formats.check_empty(options.out)
    folder, names = options.input, None
    if not (folder / "predictions.json").is_file() and folder.params.exists():
        names = clusters.read(folder)
        names = naming.read(options.clusters, names.count) if options.clusters else names
    elif options.clusters:
        raise InputError(f"{folder.root} has the names of `unseg predict`; give --clusters to that command")
    found = source.read(folder, not options.no_instances, names)
    if not found.images:
        raise InputError(f"{folder.root} has no photograph with labels; {found.frames} frames of videos are left out")
    photographs = (found.photograph(i, options.score) for i in track(found.images, "export"))
    notes = formats.export(options.out, options.format, found, photographs)
    frames = [f"{found.frames} frames of videos are left out"] if found.frames else []
    count = len(found.images)
    print(f"{count} photograph{'s' * (count > 1)} in {options.out}", *(f"  {note}" for note in [*notes, *frames]), sep="\n")
