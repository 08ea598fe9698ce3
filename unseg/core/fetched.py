"""Official weights: models/dvc.yaml fetches those that `fetch` in params.yaml lists."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from unseg.core.console import InputError

FETCHED = re.compile(r"models/(timm/.+|(?:dino|moco)_\w+)\.safetensors")
CROC = "models/croc.safetensors"  # made from croc.init


def check_listed(weights: Mapping[str, str], fetch: Collection[str]) -> None:
    """Raises InputError if official weights are named that are neither in `fetch` nor there.

    Args:
        weights: files by key of params.yaml; "croc.init" counts only if another key names CROC.
        fetch: items, e.g. timm/vit_small_patch16_224.dino.
    """
    for key, file in weights.items():
        match = FETCHED.fullmatch(file)
        if key == "croc.init" and CROC not in weights.values():
            continue
        if match and match[1] not in fetch and not Path(file).exists():
            raise InputError(f"params.yaml: {key} is {file}: no such file; add {match[1]} to fetch, and `dvc repro` makes it")
