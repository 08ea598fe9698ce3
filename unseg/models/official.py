"""Official self-supervised weights: their addresses and checksums.

They are searched in the folder UNSEG_WEIGHTS, if set, then in torch.hub's cache; otherwise they are downloaded to that cache. No
SHA-256 of them is published. The published digits of the MD5 are checked, and models/dvc.lock pins the first run's output.
"""

import hashlib
import os
import socket
import sys
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

import torch

from unseg.core.console import InputError
from unseg.core.storage import atomic_write

HOST = "https://dl.fbaipublicfiles.com"
TIMEOUT = 30  # seconds without an answer


@dataclass(frozen=True)
class Recipe:
    """One file of weights."""

    url: str
    md5: str  # its first digits, as far as they are published; "": none
    patch: int | None  # pixels, of a ViT-S; None: a ResNet-50

    @property
    def file(self) -> str:
        return self.url.rpartition("/")[2]


# MD5 of MoCo-v2: its README's table of models; of DINO's ViTs: Open Metric Learning's lists of pre-trained models
RECIPES = {
    "dino_vits16": Recipe(f"{HOST}/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth", "cf0f22", 16),
    "dino_vits8": Recipe(f"{HOST}/dino/dino_deitsmall8_pretrain/dino_deitsmall8_pretrain.pth", "230cd5", 8),
    "dino_resnet50": Recipe(f"{HOST}/dino/dino_resnet50_pretrain/dino_resnet50_pretrain.pth", "", None),
    "moco_resnet50": Recipe(f"{HOST}/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar", "a04e12f8", None),
}


def obtain(recipe: Recipe) -> Path:
    """The path of the official file. Raises InputError for another MD5, a missing UNSEG_WEIGHTS, or a failed download."""
    folders = [Path(torch.hub.get_dir()) / "checkpoints"]
    if given := os.environ.get("UNSEG_WEIGHTS"):
        if not Path(given).is_dir():
            raise InputError(f"UNSEG_WEIGHTS is {given}: no such folder; make it, and put {recipe.file} into it")
        folders.insert(0, Path(given))
    for folder in folders:
        if (file := folder / recipe.file).is_file():
            check_md5(file, recipe, str(file), "remove it, so that it is fetched again")
            return file
    file = folders[-1] / recipe.file
    try:
        with atomic_write(file) as part:
            download(recipe.url, part)
            check_md5(part, recipe, f"the download of {recipe.url}", "try again, or check whether a proxy answered")
    except (OSError, HTTPException) as error:
        raise InputError(
            f"{recipe.url} cannot be fetched to {file} ({error}); fetch it elsewhere, put it as {recipe.file} into a folder, "
            "and set UNSEG_WEIGHTS to that folder"
        ) from None
    return file


def download(url: str, path: Path) -> None:
    """torch.hub's download, with the timeout and the check of the size that it lacks. Raises OSError or HTTPException."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        with urlopen(Request(url, method="HEAD")) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
        torch.hub.download_url_to_file(url, str(path), progress=sys.stderr.isatty())
    finally:
        socket.setdefaulttimeout(before)
    if size and path.stat().st_size != size:
        raise OSError(f"only {path.stat().st_size} of {size} bytes came")


def check_md5(file: Path, recipe: Recipe, what: str, remedy: str) -> None:
    """Raises InputError if the file's MD5 is not the recipe's."""
    if not (md5 := digest(file, "md5")).startswith(recipe.md5):
        raise InputError(f"{what} has the MD5 {md5}, the official {recipe.file} has {recipe.md5}...; {remedy}")


def digest(file: Path, algorithm: str) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, algorithm).hexdigest()
