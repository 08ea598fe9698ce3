"""`unseg fit`: copies a profile, points it at a folder, picks sizes that fit, and runs `dvc repro`.

It only drives DVC. By hand, in a clone of unseg:

    ln -s FOLDER data/raw/photos
    cp profiles/folder.yaml params.yaml     # then edit what `unseg fit` says it set
    dvc repro
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from ruamel.yaml import YAML

from unseg.core.console import InputError
from unseg.core.storage import atomic_write
from unseg.data import readers
from unseg.engine import environment

LINK = Path("data/raw/photos")  # what profiles/folder.yaml names
FITTED = Path(".dvc/tmp/fitted.yaml")  # params.yaml as the last `unseg fit` wrote it
PRETRAIN_STEPS, SEGMENTER_STEPS = 750, 400  # on a CPU: minutes each
MASKS_A_CLUSTER = 8  # at least, on average


def fit(folder: Path, profile: str, settings: Sequence[str], force: bool, run: bool) -> None:
    """Write params.yaml and the link, and run `dvc repro` in the working directory.

    Raises:
        InputError: not in a clone of unseg, nothing to learn from, edits in params.yaml that would be lost, or a stage failed.
    """
    source = Path(f"profiles/{profile}.yaml")
    if not Path("dvc.yaml").exists() or not source.exists():
        raise InputError(f"{source}: no such file; run `unseg fit` in the root of a clone of unseg")
    photos = count(folder)
    text = yaml.safe_load(source.read_text("utf-8"))
    document = YAML()
    document.preserve_quotes, document.width = True, 4096
    tree = document.load(source.read_text("utf-8"))
    changes = {**sizes(text, photos, accelerated()), **dict(map(setting, settings))}
    for key, value in changes.items():
        place(tree, key, value, source)
    link(folder, Path(str(tree["data"]["root"])))
    keep_edits(force, tree)
    for file in (Path("params.yaml"), FITTED):
        with atomic_write(file) as part, part.open("w", encoding="utf-8") as sink:
            document.dump(tree, sink)
    print(f"{photos} photographs in {folder}; params.yaml is {source}" + (" with" if changes else ""))
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


def place(tree: Any, key: str, value: Any, source: Path) -> None:
    *head, last = key.split(".")
    for part in head:
        tree = tree.get(part) if isinstance(tree, dict) else None
    if not isinstance(tree, dict) or last not in tree:
        raise InputError(f"--set {key}: {source} has no such key")
    tree[last] = value


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


def keep_edits(force: bool, tree: Any) -> None:
    """Raises InputError where params.yaml has content that neither Git nor profiles/ has, and that would be lost."""
    file = Path("params.yaml")
    if force or not file.exists():
        return
    have = yaml.safe_load(file.read_text("utf-8"))
    if have != tree and all(have != known for known in known_params()):
        raise InputError("params.yaml has edits of yours; commit or copy it, then use --force")


def known_params() -> Iterator[Any]:
    """The params that can be had back: Git's, the profiles', and those of the last `unseg fit`."""
    shown = subprocess.run(["git", "show", "HEAD:./params.yaml"], capture_output=True)
    if shown.returncode == 0:
        yield yaml.safe_load(shown.stdout)
    for file in (*Path("profiles").glob("*.yaml"), *([FITTED] if FITTED.exists() else [])):
        yield yaml.safe_load(file.read_text("utf-8"))


def repro() -> None:
    """`dvc repro`, with the Python that runs this. Raises: InputError, where a stage failed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run([sys.executable, "-m", "dvc", "repro"], env={**os.environ, "PATH": path})
    if done.returncode:
        raise InputError("`dvc repro` failed, see above; mend it and say `unseg fit` or `dvc repro` again: it goes on from there")
    final = yaml.safe_load(Path("params.yaml").read_text("utf-8"))["final"]
    print(f"report: {Path('results/report.html').resolve()}\nmodel: models/segmenter-{final}.safetensors")
    print("next: unseg clusters, unseg predict PHOTOS -o OUT")
