"""Reading weight files: any state dict, and ResNets as torchvision, DINO, MoCo-v2, MoCo-v3 and unseg name their layers."""

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unseg.core.console import InputError

RANDOM_INIT = "models/fresh"  # stands for random weights; it looks like a path because a stage of DVC can only depend on a file
LAYER = re.compile(
    r"(conv1|bn1|layer[1-4]\.\d+\.(conv[1-3]|bn[1-3]|downsample\.[01]))"
    r"\.(weight|bias|running_mean|running_var|num_batches_tracked)"
)
ENCODERS = ("encoder_q.", "base_encoder.", "backbone.")  # prefixes of MoCo-v2, MoCo-v3, DINO
STATES = ("target_encoder", "teacher", "student", "state_dict", "model", "encoder")  # MSN's target is its teacher
HEADS = ("fc.", "head.")  # classifiers and projections: ignored
HELPERS = re.compile(r"(encoder_k|momentum_encoder|predictor)\..+|queue|queue_ptr")  # other parts of a training: ignored


def read_state(path: str | Path) -> dict[str, Tensor]:
    """A state dict from .safetensors, or from a pickle that holds only tensors (torch's `weights_only`).

    Of a dict of states the first of STATES is read. Raises InputError for any other file.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(
            [argparse.Namespace]
        ):  # DINO, iBOT, CrOC and CrIBo keep their options beside weights
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; see docs/weights.md") from None
    except SafetensorError as error:
        remedy = "download it again, or remove it and run `dvc repro`; see docs/weights.md"
        raise InputError(f"{path} is not a safetensors file ({error}); {remedy}") from None
    except Exception as error:  # unpickling a broken file raises any error
        reason = str(error).split("\n")[0]
        raise InputError(f"{path} cannot be read as weights alone ({reason}); save its state_dict with torch.save") from None
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, not weights by name; save its state_dict with torch.save")
    for name in STATES:
        if isinstance(state.get(name), dict):
            state = state[name]
    return state


def resnet_state(path: str | Path) -> dict[str, Tensor]:
    """A ResNet's weights by the names of torchvision and timm, without classifier or projection.

    E.g. MoCo-v2's key encoder and queue are ignored. Raises InputError for another name, or if there is no layer of a ResNet.
    """
    state = {key.removeprefix("module."): tensor for key, tensor in read_state(path).items()}
    encoder = next((e for e in ENCODERS if any(key.startswith(e) for key in state)), "")
    layers: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        name = key.removeprefix(encoder)
        if key.startswith(encoder) and LAYER.fullmatch(name):
            layers[name] = tensor
        elif not name.startswith(HEADS) and not (encoder and HELPERS.fullmatch(key)):
            unknown.append(key)
    if unknown or not layers:
        problem = (
            f"a ResNet has no {min(unknown)} (and {len(unknown) - 1} more keys)" if unknown else "it has no layer of a ResNet"
        )
        raise InputError(f"{path}: {problem}; give the weights of a plain ResNet, e.g. models/moco_resnet50.safetensors")
    return layers


def load_strictly(module: nn.Module, state: dict[str, Tensor], path: str, source: str) -> None:
    """Load weights. Raises InputError, naming the file and the source of the module's shape, if a name or shape does not fit."""
    wanted = module.state_dict()
    for name in sorted(wanted.keys() | state.keys()):
        shape, need = (list(s[name].shape) if name in s else None for s in (state, wanted))
        if shape != need:
            raise InputError(f"{path}: {name} has shape {shape}, {source} needs {need}")
    module.load_state_dict(state)
