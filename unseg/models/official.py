"""Self-supervised weights as their authors publish them: where they are, and how to know that they are the right ones.

A file is looked for in the folder UNSEG_WEIGHTS, where that is set, then where torch.hub keeps what it has fetched;
only then it is downloaded, to the latter. No complete SHA-256 of these files is published. What is published of
their MD5 is checked, and models/dvc.lock pins what was made of them: from the first run on, other weights show as a change.
"""

import hashlib
import os
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import torch

from unseg.core.console import InputError, Meter
from unseg.core.storage import atomic_write

HOST = "https://dl.fbaipublicfiles.com"
MEBI = 1 << 20
TIMEOUT = 30  # seconds without an answer


@dataclass(frozen=True)
class Recipe:
    """One file of weights."""

    url: str
    md5: str  # its first digits, as far as they are published; "" where they are not
    patch: int | None  # pixels, of a ViT-S; None: a ResNet-50

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]


# MD5s: of MoCo-v2 in its README's table of models; of DINO's ViTs in Open Metric Learning's lists of pre-trained models
RECIPES = {
    "dino_vits16": Recipe(f"{HOST}/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth", "cf0f22", 16),
    "dino_vits8": Recipe(f"{HOST}/dino/dino_deitsmall8_pretrain/dino_deitsmall8_pretrain.pth", "230cd5", 8),
    "dino_resnet50": Recipe(f"{HOST}/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth", "", None),
    "moco_resnet50": Recipe(f"{HOST}/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar", "a04e12f8", None),
}


def obtain(recipe: Recipe) -> Path:
    """The official file on this machine, checked.

    Raises:
        InputError: a file that is not the official one, UNSEG_WEIGHTS that is no folder, or no way to fetch it.
    """
    folders = [Path(torch.hub.get_dir()) / "checkpoints"]
    if given := os.environ.get("UNSEG_WEIGHTS"):
        if not Path(given).is_dir():
            raise InputError(f"UNSEG_WEIGHTS is {given}: no such folder; make it, and put {recipe.file} into it")
        folders.insert(0, Path(given))
    for folder in folders:
        if (file := folder / recipe.file).is_file():
            check(file, recipe, str(file), "remove it, so that it is fetched again")
            return file
    file = folders[-1] / recipe.file
    try:
        with atomic_write(file) as part:
            download(recipe.url, part)
            check(part, recipe, f"what {recipe.url} sent", "try again, or look whether a proxy answered in its place")
    except (OSError, HTTPException) as error:
        raise InputError(
            f"{recipe.url} cannot be fetched to {file} ({error}); fetch it elsewhere, put it as {recipe.file} into a folder, "
            "and set UNSEG_WEIGHTS to that folder"
        ) from None
    return file


def download(url: str, path: Path) -> None:
    """Raises: OSError or HTTPException, where it does not arrive whole."""
    request = urllib.request.Request(url, headers={"User-Agent": "unseg"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer, path.open("wb") as file:
        size = int(answer.headers.get("Content-Length") or 0)
        with Meter(-(-size // MEBI), f"fetch {url.rpartition('/')[2]}, MiB") as meter:
            while chunk := answer.read(MEBI):
                file.write(chunk)
                meter.step()
        if size and file.tell() != size:
            raise OSError(f"{file.tell()} of {size} bytes came")


def check(file: Path, recipe: Recipe, what: str, remedy: str) -> None:
    """Raises: InputError, where the file's MD5 is not the recipe's."""
    if not (got := digest(file, "md5")).startswith(recipe.md5):
        raise InputError(f"{what} has the MD5 {got}, the official {recipe.file} has {recipe.md5}...; {remedy}")


def digest(file: Path, algorithm: str) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()
