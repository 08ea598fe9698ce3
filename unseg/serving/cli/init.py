"""`unseg init FOLDER`: lays out a project, in which `unseg fit` and `dvc repro` work without a clone of unseg."""

import argparse
import shlex
from pathlib import Path

from unseg.core.console import InputError
from unseg.serving import project


def run(options: argparse.Namespace) -> None:
    """Raises InputError for a folder that cannot be used; then nothing is written."""
    root: Path = options.folder
    if options.upgrade:
        changed = project.upgrade(root, options.force)
        print(*(changed or ["stages, profiles and graph are up to date"]), sep="\n")
        print("next: dvc repro, or unseg fit; params.yaml and clusters.yaml are as they were")
        return
    if options.force:
        raise InputError("--force is for --upgrade; a new project needs a new or empty folder")
    project.create(root)
    print(f"project in {root.resolve()}; next:")
    if root.resolve() != Path.cwd():
        print(f"  cd {shlex.quote(str(root))}")
    print("  unseg fit PHOTOGRAPHS    # a model from your folder of photographs; or, for the demo: dvc repro")
