"""`unseg profile NAME`: writes params.yaml from profiles/base.yaml and profiles/NAME.yaml."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from unseg.core import params, profiles
from unseg.core.console import InputError
from unseg.core.storage import atomic_write

FITTED = Path(".dvc/tmp/fitted.yaml")  # params.yaml as the last `unseg fit` wrote it


def profile(name: str, force: bool) -> None:
    """Write params.yaml for a profile. Raises InputError if it is unknown, or edits of params.yaml would be lost."""
    write_params(profiles.render(name), force)
    print(f"{params.FILE} is the profile {name}; next: dvc repro")


def write_params(text: str, force: bool) -> None:
    """Write params.yaml. Raises InputError if it has content that neither Git nor a profile has, unless force is set."""
    file = Path(params.FILE)
    if not force and file.exists():
        present = yaml.safe_load(file.read_text("utf-8"))
        if present != yaml.safe_load(text) and all(present != known for known in known_params()):
            raise InputError(f"{file} has edits of yours; commit or copy it, then use --force")
    with atomic_write(file) as part:
        part.write_text(text, "utf-8")


def known_params() -> Iterator[Any]:
    """The contents of params.yaml that can be restored: Git's, the profiles', and that of the last `unseg fit`."""
    shown = subprocess.run(["git", "show", f"HEAD:./{params.FILE}"], capture_output=True)
    if shown.returncode == 0:
        yield yaml.safe_load(shown.stdout)
    yield from (yaml.safe_load(profiles.render(name)) for name in profiles.names())
    if FITTED.exists():
        yield yaml.safe_load(FITTED.read_text("utf-8"))
