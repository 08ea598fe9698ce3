"""Weights in files: how any are read, and ResNets as torchvision, DINO, MoCo-v2 and -v3, and unseg lay them out."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unseg.core.console import InputError

RANDOM_INIT = "models/fresh"  # the path that stands for no weights: DVC wants a file where a stage may depend on one
LAYER = re.compile(
    r"(conv1|bn1|layer[1-4]\.\d+\.(conv[1-3]|bn[1-3]|downsample\.[01]))"
    r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"
)
ENCODERS = ("encoder_q.", "base_encoder.", "backbone.")  # MoCo-v2, MoCo-v3, DINO: what goes before a layer's name
HEADS = ("fc.", "head.")  # classifiers and projections, of which nothing here has use
HELPERS = re.compile(r"(encoder_k|momentum_encoder|predictor)\..+|queue|queue_ptr")  # of a training, beside its encoder


def read_state(path: str | Path) -> dict[str, Tensor]:
    """A state dict from .safetensors, or from a pickle that holds tensors only (torch's `weights_only`).

    A dict of nested states is entered at `teacher`, `student`, `state_dict` or `model`.

    Raises:
        InputError: no such file, not weights, or a pickle that holds more than tensors.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; see docs/weights.md") from None
    except SafetensorError as error:
        raise InputError(f"{path} is not a safetensors file ({error}); fetch or make it again") from None
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{path} cannot be read as weights alone ({reason}); save its state_dict with torch.save") from None
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, not weights by name; save its state_dict with torch.save")
    for name in ("teacher", "student", "state_dict", "model"):
        if isinstance(state.get(name), dict):
            state = state[name]
    return state


def resnet_state(path: str | Path) -> dict[str, Tensor]:
    """A ResNet's weights under the names that torchvision and timm share, without classifier or projection.

    Args:
        path: a .safetensors, or a .pth or .pth.tar of tensors: MoCo-v2's `module.encoder_q.*` in `state_dict` (the
            key encoder and the queue left out), DINO's plain names or `backbone.*` in `teacher`, ...

    Raises:
        InputError: not weights, a key that has no place in a ResNet, or no ResNet in it at all.
    """
    state = {key.removeprefix("module."): tensor for key, tensor in read_state(path).items()}
    encoder = next((e for e in ENCODERS if any(key.startswith(e) for key in state)), "")
    layers: dict[str, Tensor] = {}
    strange = []
    for key, tensor in state.items():
        name = key.removeprefix(encoder)
        if key.startswith(encoder) and LAYER.fullmatch(name):
            layers[name] = tensor
        elif not name.startswith(HEADS) and not (encoder and HELPERS.fullmatch(key)):
            strange.append(key)
    if strange or not layers:
        what = f"{min(strange)} (and {len(strange) - 1} more keys) has no place" if strange else "nothing has its place"
        raise InputError(f"{path}: {what} in a ResNet; give the weights of a plain ResNet, e.g. models/moco_resnet50.safetensors")
    return layers
