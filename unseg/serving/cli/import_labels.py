"""`unseg import-labels`: turns corrected labels into a zip for the pipeline, and into masks for `unseg probe`."""

import argparse
import os
from pathlib import PurePosixPath

import numpy as np
from PIL import Image as Pillow

from unseg.clustering import naming
from unseg.core import rounds, storage
from unseg.core.console import InputError
from unseg.core.label_maps import IGNORE_LABEL
from unseg.serving.cli import clusters
from unseg.serving.cli.parser import check_output
from unseg.serving.labels import corrections, formats, readers
from unseg.serving.labels.corrections import Corrections
from unseg.serving.run import Run


def run(options: argparse.Namespace) -> None:
    """Raises InputError for labels that cannot be used, before anything is written."""
    if not options.out and not options.masks:
        raise InputError("nothing to write; give -o FILE, --masks FOLDER, or both")
    if options.out and options.photos:
        raise InputError("-o is for photographs of the run; leave --photos out, or write --masks")
    if options.out:
        check_output(options.out, options.force)
    if options.masks:
        formats.check_empty(options.masks)
    folder: Run = options.run
    known = corrections.photographs(folder, options.photos)
    names = clusters.read(folder).names() if options.out or (folder / "data/instances.json").exists() else {}
    made = readers.read(options.input, options.format, known, names)
    lut = to_labels(made, names) if options.out else None
    print("; ".join([f"{len(made.maps)} photographs with labels", *made.notes]))
    if options.masks:
        print(f"{write_masks(options, made)} classes in {options.masks}")
    if lut is not None:
        maps = ((name, lut[decode(made, name)]) for name in made.maps)
        rounds.write_corrections(options.out, maps, naming.fingerprint(folder / "data/instances.json"))
        trained = sum(known[name].split != "val" for name in made.maps)
        file = os.path.relpath(options.out, folder.root)
        print(f"{trained} of them are for training; name {file} in corrections of params.yaml (docs/labels.md)")


def to_labels(made: Corrections, names: dict[int, str]) -> np.ndarray:
    """[256] uint8: the run's label of each value. Raises InputError for a class that the run does not have."""
    by_name, present = {name.casefold(): label for label, name in names.items()}, used(made)
    lut = np.full(256, IGNORE_LABEL, np.uint8)
    for value, title in enumerate(made.titles):
        if title.casefold() not in by_name and value in present:
            raise InputError(f"{made.path}: the run has no cluster {title!r}; it has {', '.join(list(names.values())[1:])}. Name "
                             "one by `unseg clusters --name`, or write --masks without -o")  # fmt: skip
        lut[value] = by_name.get(title.casefold(), 0)
    return lut


def used(made: Corrections) -> set[int]:
    """The values that the label maps have."""
    return {int(k) for name in made.maps for k in np.unique(decode(made, name))}


def decode(made: Corrections, name: str) -> np.ndarray:
    return storage.decode_png(made.maps[name])


def write_masks(options: argparse.Namespace, made: Corrections) -> int:
    """NAME.png for each photograph NAME.jpg, and classes.txt: the classes that occur, renumbered without gaps. Their number."""
    values = [0, *sorted(used(made) - {0, IGNORE_LABEL})]
    lut = np.full(256, IGNORE_LABEL, np.uint8)
    lut[values] = range(len(values))
    stems = [formats.stem(name) for name in made.maps]
    if twice := next((s for s in stems if stems.count(s) > 1), None):
        raise InputError(f"{options.input} has two photographs {twice} with different endings; rename one")
    with formats.new_folder(options.masks) as part:
        for name in made.maps:
            path = part / PurePosixPath(name).with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Pillow.fromarray(lut[decode(made, name)]).save(path, "PNG")
        (part / "classes.txt").write_text("".join(f"{made.titles[v]}\n" for v in values), "utf-8")
    return len(values)
