"""`unseg fit`: writes params.yaml from a profile with sizes that fit the folder, links the folder, and runs `dvc repro`.

It only drives DVC. By hand, in a clone of unseg:

    ln -s FOLDER data/raw/photos
    unseg profile folder     # then edit what `unseg fit` prints
    dvc repro
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from unseg.core import profiles
from unseg.core.console import InputError
from unseg.core.storage import atomic_write
from unseg.data import readers
from unseg.engine import environment
from unseg.serving.cli.profile import FITTED, write_params

PRETRAIN_STEPS, SEGMENTER_STEPS = 750, 400  # on a CPU: minutes each
MASKS_A_CLUSTER = 8  # at least, on average


def fit(folder: Path, profile: str, settings: Sequence[str], force: bool, run: bool) -> None:
    """Write params.yaml and the link to the folder, and run `dvc repro` in the working directory.

    Raises:
        InputError: if this is not a clone of unseg, the folder has no photographs, edits of params.yaml would be lost, or a
            stage fails.
    """
    if not Path("dvc.yaml").exists():
        raise InputError("dvc.yaml: no such file; run `unseg fit` in the root of a clone of unseg")
    values = yaml.safe_load(profiles.render(profile))
    photos = count(folder)
    changes = {**sizes(values, photos, accelerated()), **dict(map(setting, settings))}
    text = profiles.render(profile, changes)
    link(folder, Path(str(yaml.safe_load(text)["data"]["root"])))
    write_params(text, force)
    with atomic_write(FITTED) as part:
        part.write_text(text, "utf-8")
    print(f"{photos} photographs in {folder}; params.yaml is the profile {profile}" + (" with" if changes else ""))
    for key, value in changes.items():
        print(f"  {key}: {value}")
    if run:
        repro()


def count(folder: Path) -> int:
    """Photographs in it, by their names. Raises: InputError, where there are fewer than two."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found = readers.find_folder(readers.Data("folder", str(folder), str(folder), None, None, None))
    if len(found.candidates) < 2:
        what = readers.count_photos(found.ignored) or "empty"
        raise InputError(f"{folder} has {len(found.candidates)} photographs ({what}); give a folder with more")
    return len(found.candidates)


def accelerated() -> bool:
    """Whether the stages will run on more than the CPU; a named device is not touched here, where it would stay taken."""
    name = os.environ.get("UNSEG_DEVICE")
    return not name.startswith("cpu") if name else environment.device().type != "cpu"


def sizes(profile: dict[str, Any], photos: int, accelerator: bool) -> dict[str, Any]:
    """What to change in a profile for so many photographs on this machine, by dotted keys.

    Fewer clusters where there are too few masks for them. Without an accelerator, so many epochs that pre-training and each
    segmenter take some minutes: with few photographs more than the profile has, with many fewer.
    """
    changes: dict[str, Any] = {}
    if photos // MASKS_A_CLUSTER < profile["cluster"]["k"]:
        changes["cluster.k"] = max(2, photos // MASKS_A_CLUSTER)
    if accelerator or profile["backbone"]["weights"] != "models/croc.safetensors":
        return changes
    for group, steps in (("croc", PRETRAIN_STEPS), ("segmenter", SEGMENTER_STEPS)):
        per_epoch = max(1, photos // profile[group]["batch"])
        changes[f"{group}.epochs"] = max(1, min(steps // per_epoch, 4 * profile[group]["epochs"]))
    changes["segmenter.lr_milestone"] = max(0, changes["segmenter.epochs"] * 4 // 5 - 1)
    return changes


def setting(text: str) -> tuple[str, Any]:
    """'croc.epochs=3' to key and value, as DVC's -S has it."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set {text} is not understood; write it like --set croc.epochs=3")
    return key, yaml.safe_load(value)


def link(folder: Path, at: Path) -> None:
    """data/raw/photos leads to the folder. Raises: InputError, where the folder is above it, or something else is there."""
    if (Path.cwd() / at.parent).resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder} holds this clone of unseg; give a folder of photographs alone")
    if at.is_symlink():
        at.unlink()
    elif at.exists():
        if at.samefile(folder):
            return
        raise InputError(f"{at} is a folder already, and not {folder}; move it away, or `unseg fit {at}`")
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to(folder.resolve(), target_is_directory=True)


def repro() -> None:
    """`dvc repro`, with the Python that runs this. Raises: InputError, where a stage failed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run([sys.executable, "-m", "dvc", "repro"], env={**os.environ, "PATH": path})
    if done.returncode:
        raise InputError("`dvc repro` failed, see above; mend it and say `unseg fit` or `dvc repro` again: it goes on from there")
    final = yaml.safe_load(Path("params.yaml").read_text("utf-8"))["final"]
    print(f"report: {Path('results/report.html').resolve()}\nmodel: models/segmenter-{final}.safetensors")
    print("next: unseg clusters, unseg predict PHOTOS -o OUT")
