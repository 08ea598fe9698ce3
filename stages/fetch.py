"""Fetch official self-supervised weights, check them, and write them by timm's names; `models/dvc.yaml` lists them."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from unseg.core.console import InputError, run
from unseg.core.storage import atomic_write
from unseg.models import official, resnet, timm_weights, vit


def main(name: str, output: str) -> None:
    if name not in official.RECIPES and not timm_weights.is_name(name):
        raise InputError(f"there are no weights {name!r}; choose from {', '.join(official.RECIPES)}, or a ViT of timm, timm/NAME")
    file = timm_weights.obtain(name) if timm_weights.is_name(name) else official.obtain(official.RECIPES[name])
    sha256 = official.digest(file, "sha256")
    print(f"{file}: {file.stat().st_size} bytes, SHA-256 {sha256}")
    if timm_weights.is_name(name):
        model, about = timm_weights.load(name, file)
        state, about["source"] = model.state_dict(), f"https://huggingface.co/{timm_weights.config(name).hf_hub_id}"
    else:
        state, about = read_official(official.RECIPES[name], file)
    source = json.dumps(about | {"sha256": sha256}, sort_keys=True)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as part:
        save_file({key: state[key].contiguous() for key in sorted(state)}, part, {"unseg": source})


def read_official(recipe: official.Recipe, file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The whole state of a ViT-S or of a ResNet-50 without classifier, and its source. Raises InputError for another model."""
    about = {"kind": "backbone", "source": recipe.url}
    try:
        if recipe.patch:
            return vit.load(vit.Backbone(str(file), recipe.patch, width=384, depth=12, heads=6)).state_dict(), about
        backbone = resnet.ResNetBackbone("resnet50", width=64)
        resnet.initialise(backbone, str(file), "a ResNet-50")
        return backbone.net.state_dict(), about
    except InputError as error:
        raise InputError(f"this is not the official {recipe.file}: {error}; {recipe.url} has it") from None


if __name__ == "__main__":
    run(main)
