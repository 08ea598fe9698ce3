"""`unseg profile NAME`: writes params.yaml from profiles/base.yaml and profiles/NAME.yaml."""

import argparse
import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from unseg.core import params, profiles
from unseg.core.console import InputError
from unseg.core.storage import atomic_write

FITTED = Path(".dvc/tmp/fitted.yaml")  # a copy of the params.yaml that the last `unseg fit` wrote


def run(options: argparse.Namespace) -> None:
    """Write params.yaml for a profile. Raises InputError if there is no such profile, or edits of params.yaml would be lost."""
    write_params(profiles.render(options.name), options.force)
    print(f"{params.FILE} is the profile {options.name}; next: dvc repro")


def write_params(text: str, force: bool) -> None:
    """Write params.yaml. Raises InputError if its content is neither in Git nor a profile, unless force is set."""
    file = Path(params.FILE)
    if not force and file.exists():
        present = yaml.safe_load(file.read_text("utf-8"))
        if present != yaml.safe_load(text) and all(present != content for content in restorable_params()):
            raise InputError(f"{file} has edits of yours; commit or copy it, then use --force")
    with atomic_write(file) as part:
        part.write_text(text, "utf-8")


def restorable_params() -> Iterator[Any]:
    """Contents of params.yaml that can be restored: of Git's HEAD, of all profiles, and of the last `unseg fit`."""
    with contextlib.suppress(FileNotFoundError):  # a machine without Git
        committed = subprocess.run(["git", "show", f"HEAD:./{params.FILE}"], capture_output=True)
        if committed.returncode == 0:
            yield yaml.safe_load(committed.stdout)
    yield from (yaml.safe_load(profiles.render(name)) for name in profiles.names())
    if FITTED.exists():
        yield yaml.safe_load(FITTED.read_text("utf-8"))
