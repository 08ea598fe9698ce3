"""Pre-trained ViTs by timm's names, from $UNSEG_WEIGHTS, the Hugging Face hub's cache, a mirror of the hub, or the hub.

$UNSEG_WEIGHTS/NAME/model.safetensors comes first (`huggingface-cli download timm/NAME --local-dir NAME` makes such a folder).
The hub's variables apply: HF_HOME is the cache, HF_ENDPOINT a mirror, and HF_HUB_OFFLINE=1 uses only the cache.
"""

import os
from dataclasses import asdict, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import timm

from unseg.core.console import InputError
from unseg.models import vit
from unseg.models.vit import ViT

PREFIX = "timm/"  # of the names in params.yaml, as on the hub
FILE = "model.safetensors"
TIMEOUT = 5  # seconds that the hub may take to answer `is_available`


def is_name(name: str) -> bool:
    """Whether this names a ViT of timm; other names are those of `official`."""
    return name.startswith(PREFIX)


def name_of(file: str) -> str | None:
    """NAME of models/timm/NAME.safetensors, the file that the stage `fetch` makes; None for another file."""
    prefix, suffix = f"models/{PREFIX}", ".safetensors"
    return file.removeprefix(prefix).removesuffix(suffix) if file.startswith(prefix) and file.endswith(suffix) else None


def config(name: str) -> Any:
    """timm's configuration of pre-trained weights, e.g. of timm/vit_small_patch16_224.dino; InputError if it has none."""
    model = name.removeprefix(PREFIX)
    if "." not in model or not timm.is_model_pretrained(model):
        examples = ", ".join(timm.list_models(f"{model.partition('.')[0][:12]}*", pretrained=True)[:3])
        raise InputError(
            f"params.yaml: fetch has {name}; timm {timm.__version__} has no such weights; write timm/ARCHITECTURE.TAG as on "
            f"https://huggingface.co/timm{f', e.g. one of {examples}' if examples else ''}"
        )
    return timm.get_pretrained_cfg(model)


def find_given(name: str) -> Path | None:
    """The checkpoint in $UNSEG_WEIGHTS, if it is there. Raises InputError if UNSEG_WEIGHTS is no folder."""
    model = name.removeprefix(PREFIX)
    if given := os.environ.get("UNSEG_WEIGHTS"):
        if not Path(given).is_dir():
            raise InputError(f"UNSEG_WEIGHTS is {given}: no such folder; make it, and put {model}/{FILE} into it")
        if (file := Path(given) / model / FILE).is_file():
            return file
    return None


def is_available(name: str) -> bool:
    """Whether `obtain` can be expected to succeed: the file is on this machine, or the hub answers. Fetches nothing."""
    import huggingface_hub
    from huggingface_hub import constants

    about = config(name)
    repo, file = about.hf_hub_id, about.hf_hub_filename or FILE
    if find_given(name) or isinstance(huggingface_hub.try_to_load_from_cache(repo, file), str):
        return True
    try:
        address = Request(huggingface_hub.hf_hub_url(repo, file), method="HEAD")
        return not constants.HF_HUB_OFFLINE and bool(urlopen(address, timeout=TIMEOUT))
    except (OSError, HTTPException):  # the hub's own functions retry for half a minute
        return False


def obtain(name: str) -> Path:
    """The path of the checkpoint. Raises InputError if it cannot be found or fetched."""
    model, about = name.removeprefix(PREFIX), config(name)
    if file := find_given(name):
        return file
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(about.hf_hub_id, about.hf_hub_filename or FILE))
    except Exception as error:  # of the hub, of its client for HTTP, or of the system
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{about.hf_hub_id} cannot be fetched from the hub ({reason}); fetch its {FILE} elsewhere, put it into a folder as "
            f"{model}/{FILE}, and set UNSEG_WEIGHTS to that folder"
        ) from None


def load(name: str, file: Path) -> tuple[ViT, dict[str, Any]]:
    """timm's ViT with the weights of a checkpoint, without head, and the metadata of unseg's file (`vit_files.Network`, licence).

    timm reads the checkpoint and converts its layout.

    Raises:
        InputError: the model is no supported ViT, or the file does not belong to it.
    """
    model, about = name.removeprefix(PREFIX), config(name)
    try:
        overlay = {"file": str(file), "custom_load": False}
        model_with_weights = timm.create_model(model, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0)
    except Exception as error:  # of torch, safetensors, or timm's filter
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file} is not the checkpoint of {name} ({reason}); remove it, and fetch it again") from None
    net = vit.checked(model_with_weights, name)
    network = replace(vit.describe(net), arch=model.partition(".")[0], mean=list(about.mean), std=list(about.std))
    return net, {"kind": "vit", "backbone": asdict(network), "name": model, "license": about.license or "unknown: see the source"}
