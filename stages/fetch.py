"""Fetch official self-supervised weights, check them, and write them by timm's names; `models/dvc.yaml` lists them."""

import json

from safetensors.torch import save_file
from torch import Tensor

from unseg.core.console import InputError, run
from unseg.core.storage import atomic_write
from unseg.models import official, resnet, vit


def main(name: str, output: str) -> None:
    if name not in official.RECIPES:
        raise InputError(f"there are no weights {name!r}; choose from {', '.join(official.RECIPES)}")
    recipe = official.RECIPES[name]
    file = official.obtain(recipe)
    sha256 = official.digest(file, "sha256")
    print(f"{file}: {file.stat().st_size} bytes, SHA-256 {sha256}")
    try:
        state = read_weights(str(file), recipe.patch)
    except InputError as error:
        raise InputError(f"this is not the official {recipe.file}: {error}; {recipe.url} has it") from None
    source = json.dumps({"kind": "backbone", "sha256": sha256, "source": recipe.url}, sort_keys=True)
    with atomic_write(output) as part:
        save_file({key: state[key].contiguous() for key in sorted(state)}, part, {"unseg": source})


def read_weights(file: str, patch: int | None) -> dict[str, Tensor]:
    """The model's whole state. patch: pixels, of a ViT-S; None: a ResNet-50 without classifier."""
    if patch:
        return vit.load(vit.Backbone(file, patch, width=384, depth=12, heads=6)).state_dict()
    backbone = resnet.ResNetBackbone("resnet50", width=64)
    resnet.initialise(backbone, file, "a ResNet-50")
    return backbone.net.state_dict()


if __name__ == "__main__":
    run(main)
