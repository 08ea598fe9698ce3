"""`unseg fit`: makes a project if there is none, links a folder, writes params.yaml with sizes that fit it, and runs `dvc repro`.

By hand, in a project or a clone of unseg:

    ln -s FOLDER data/raw/photos
    unseg profile photos     # then set what `unseg fit` prints; without pre-trained weights: folder
    dvc repro
"""

import argparse
import contextlib
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from unseg.core import params, profiles
from unseg.core.console import InputError
from unseg.core.fetched import CROC
from unseg.core.storage import atomic_write
from unseg.data import readers
from unseg.engine import environment
from unseg.serving import project
from unseg.serving.cli.profile import FITTED, write_params

WITH_WEIGHTS, WITH_WEIGHTS_GPU, WITHOUT_WEIGHTS = "photos", "photos_gpu", "folder"  # profiles
STEPS = {"croc": 750, "segmenter": 400}  # minutes each, on a CPU
MASKS_PER_CLUSTER = 8  # at least, on average


def run(options: argparse.Namespace) -> None:
    """Lay out a project where there is none, link the folder, write params.yaml, and run `dvc repro`."""
    if options.device:
        os.environ["UNSEG_DEVICE"] = options.device
    folder, accelerator = options.folder, has_accelerator()
    photos = count_photos(folder)
    root = place(folder)
    is_new = not (root / project.GRAPH).exists()
    known = (project.template_folder() if is_new else root) / profiles.FOLDER
    profile = options.profile or choose_profile(options.weights, accelerator, known)
    values = yaml.safe_load(profiles.render(profile, folder=known))
    given = {} if options.weights is None else name_weights(options.weights, root)
    changes = {**sizes(values, photos, accelerator), **given, **dict(map(parse_setting, options.set))}
    text = profiles.render(profile, changes, known)
    filled = yaml.safe_load(text)
    estimated, at = time_needed(filled, photos), Path(str(filled["data"]["root"]))
    check_apart(folder, root, at)
    if is_new:
        project.create(root)
        print(f"project in {root.resolve()}")
    folder = folder.resolve()
    with contextlib.chdir(root):
        link(folder, at)
        write_params(text, options.force)
        with atomic_write(FITTED) as part:
            part.write_text(text, "utf-8")
        say_what_changed()
        print(f"{photos} photographs in {options.folder}; params.yaml is the profile {profile}" + (" with" if changes else ""))
        for key, value in changes.items():
            print(f"  {key}: {value}")
        if not options.no_run:
            print(f"this will take about {estimated} on this machine", flush=True)
            repro()
    if not options.no_run:
        go = "" if root == Path() else f"cd {shlex.quote(str(root))}, "
        print(f"next: {go}unseg clusters, unseg predict PHOTOS -o OUT")


def place(folder: Path) -> Path:
    """The folder to work in: this one, if it is a project, a clone or empty, else unseg-NAME in it, for photographs in NAME.

    Raises InputError if unseg-NAME holds other things.
    """
    here = Path()
    root = here if (here / project.GRAPH).exists() or project.is_empty(here) else Path(f"unseg-{folder.resolve().name}")
    if not (root / project.GRAPH).exists():
        project.check_new(root)
    return root


def check_apart(folder: Path, root: Path, at: Path) -> None:
    """Raises InputError if the photographs hold the project in root, or another folder is linked in a project of their name."""
    link = root / at
    if link.parent.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{folder} holds {link}; go to a folder outside, or name one that has photographs only")
    if root != Path() and link.is_symlink() and link.resolve() != folder.resolve():
        raise InputError(f"{root} is the project of {link.resolve()}; run `unseg fit` in it, or in an empty folder")


def say_what_changed() -> None:
    """After an upgrade of unseg: one line on the stages that will run again, one if stages or profiles are those of before."""
    if not project.is_project(Path()):
        return
    if changed := project.refresh_code(Path()):
        print(f"unseg has changed in {', '.join(changed)}: the stages that use it will run again")
    if project.is_outdated(Path()):
        print("dvc.yaml, stages or profiles are not those of the installed unseg; `unseg init --upgrade` renews them")


def choose_profile(weights: str | None, accelerator: bool, known: Path) -> str:
    """The profile for pre-trained weights, or the one without them if those that it fetches cannot be had."""
    profile = WITH_WEIGHTS_GPU if accelerator else WITH_WEIGHTS
    if weights is None:
        from unseg.models import timm_weights  # imports timm, which takes seconds

        for name in yaml.safe_load(profiles.render(profile, folder=known))["fetch"]:
            if not timm_weights.is_available(name):
                print(
                    f"{name} is not on this machine and cannot be fetched, so a small ViT is pre-trained on your photographs; "
                    "pre-trained weights give much better masks: see --weights and docs/weights.md"
                )
                return WITHOUT_WEIGHTS
    return profile


def name_weights(file: str, root: Path) -> dict[str, Any]:
    """Changes of params.yaml for a ViT in a file of the user's. The path stays as it is if root is the working directory."""
    if not Path(file).is_file():
        raise InputError(f"--weights {file}: no such file; name a ViT's weights (docs/weights.md), or leave --weights out")
    path = file if root == Path() else str(Path(file).resolve())
    return {"backbone.weights": path, "embedder.weights": path, "fetch": []}


def time_needed(values: dict[str, Any], photos: int) -> str:
    """The estimate for `dvc repro`, in words. values: content of params.yaml."""
    from unseg.models.vit import Backbone
    from unseg.serving import estimate

    shape = estimate.shape_of(params.check("backbone", Backbone, values["backbone"], params.FILE))
    minutes = max(1, round(estimate.seconds(values, photos, shape) / 60))
    return f"{minutes} minutes" if minutes < 120 else f"{round(minutes / 60)} hours"


def count_photos(folder: Path) -> int:
    """Photographs in a folder, by their file names. Raises InputError if there are fewer than two."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    dataset = readers.find_folder(readers.Data("folder", str(folder), str(folder), None, None, None))
    if len(dataset.candidates) < 2:
        contents = readers.format_counts(dataset.ignored) or "empty"
        raise InputError(f"{folder} has {len(dataset.candidates)} photographs ({contents}); give a folder with more")
    return len(dataset.candidates)


def has_accelerator() -> bool:
    """Whether the stages will use another device than the CPU. A device named by UNSEG_DEVICE is not opened here."""
    name = os.environ.get("UNSEG_DEVICE")
    return not name.startswith("cpu") if name else environment.device().type != "cpu"


def sizes(profile: dict[str, Any], photos: int, accelerator: bool) -> dict[str, Any]:
    """Changes of a profile for this number of photographs, by dotted key.

    With few photographs there are fewer clusters and neighbours. Without an accelerator, the epochs are set so that pre-training
    and each segmenter take some minutes.
    """
    changes: dict[str, Any] = {}
    if photos // MASKS_PER_CLUSTER < profile["cluster"]["k"]:
        changes["cluster.k"] = max(2, photos // MASKS_PER_CLUSTER)
    if profile["cluster"]["algorithm"] == "spectral" and photos <= 2 * profile["cluster"]["neighbors"]:
        changes["cluster.neighbors"] = max(1, photos // 2)  # of masks, of which there may be fewer than photographs
    if accelerator:
        return changes
    for group in ("croc", "segmenter") if profile["backbone"]["weights"] == CROC else ("segmenter",):
        per_epoch = max(1, photos // profile[group]["batch"])
        changes[f"{group}.epochs"] = max(1, min(STEPS[group] // per_epoch, 4 * profile[group]["epochs"]))
    changes["segmenter.lr_milestone"] = max(0, changes["segmenter.epochs"] * 4 // 5 - 1)
    return changes


def parse_setting(text: str) -> tuple[str, Any]:
    """'croc.epochs=3' to key and value."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"--set {text} is not understood; write it like --set croc.epochs=3")
    return key, yaml.safe_load(value)


def link(folder: Path, at: Path) -> None:
    """Make `at` a link to the folder. Raises InputError if `at` is another folder."""
    if at.is_symlink():
        at.unlink()
    elif at.exists():
        if at.samefile(folder):
            return
        raise InputError(f"{at} exists and is not {folder}; move it away, or run `unseg fit {at}`")
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to(folder.resolve(), target_is_directory=True)


def repro() -> None:
    """Run `dvc repro` with this Python. Raises InputError if a stage fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    done = subprocess.run([sys.executable, "-m", "dvc", "repro"], env={**os.environ, "PATH": path})
    if done.returncode:
        raise InputError("`dvc repro` failed, see above; fix the cause, then run `unseg fit` or `dvc repro` again to resume")
    final = yaml.safe_load(Path("params.yaml").read_text("utf-8"))["final"]
    print(f"report: {Path('results/report.html').resolve()}\nmodel: models/segmenter-{final}.safetensors")
