"""A segmenter for other programs: ONNX and torch.export, batch and size free, held against PyTorch before it is kept.

    input   image   float32 [batch, 3, height, width]: RGB in 0..1, minus mean, over std (both in the metadata)
    output  logits  float32 [batch, labels, height, width], at the size of the input
    then    softmax over labels; add the probability of each label to the one that `becomes` names, where that is not 255;
            argmax; label 255 (void) where `becomes` says so

The metadata says this too, with the labels' names and colours, as JSON under the key `unseg`.
"""

import copy
import importlib.util
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from unseg.clustering.naming import ClusterNames
from unseg.core import storage
from unseg.core.console import InputError
from unseg.engine import batching
from unseg.segmentation.segmenter import TrainedSegmenter

SIZES = ((1, 64, 64), (2, 96, 160), (1, 375, 500))  # batch, height, width at which the export is tried
FAR, SAME = 1e-3, 0.999  # largest difference of a logit; least share of pixels with one answer
OPSET = 18


def about(net: TrainedSegmenter, clusters: ClusterNames, colours: np.ndarray) -> dict[str, Any]:
    """What a program needs to know beside the graph; plain JSON.

    Args:
        colours: [256, 3] uint8, by label.
    """
    becomes, names = clusters.label_lut(), ("background", *(clusters.title(k) for k in range(clusters.count)))
    labels = [
        {"label": i, "name": name, "becomes": int(becomes[i]), "colour": "#{:02x}{:02x}{:02x}".format(*colours[i].tolist())}
        for i, name in enumerate(names)
    ]
    before = {"colours": "RGB", "range": [0, 1], "mean": batching.MEAN, "std": batching.STD, "trained_at": net.size}
    after = "softmax over axis 1; add each label's probability to the label it becomes, unless that is 255; argmax; 255 is void"
    return {"kind": "segmenter", "labels": labels, "preprocessing": before, "postprocessing": after}


def to_onnx(path: str | Path, net: TrainedSegmenter, told: dict[str, Any]) -> tuple[float, float]:
    """Write the graph, in float32; returns the largest difference and the least agreement seen at SIZES.

    Raises:
        InputError: onnx and onnxruntime are not installed, or the graph does not answer as PyTorch does (no file is left).
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"{name} is not installed; install it with `pip install -e '.[onnx]'`")
    import onnx

    model = plain(net)
    with storage.atomic_write(path) as part, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        # batch 2: the exporter takes a size of 1 for a fixed one
        program = torch.onnx.export(
            model,
            (torch.zeros(2, 3, 64, 96),),
            input_names=["image"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")},),
            verbose=False,
        )
        assert program is not None
        proto = program.model_proto
        onnx.helper.set_model_props(proto, {"unseg": json.dumps(told, sort_keys=True)})
        proto.producer_version, proto.doc_string = "", (__doc__ or "").strip()
        onnx.save(proto, part)
        return parity(model, part)


def plain(net: TrainedSegmenter) -> nn.Module:
    """The network on the CPU, in float32 and in PyTorch's usual memory layout."""
    return copy.deepcopy(net.model).cpu().float().to(memory_format=torch.contiguous_format).eval()


def parity(model: nn.Module, path: Path) -> tuple[float, float]:
    """Largest difference of a logit and least share of equal answers, onnxruntime against PyTorch. Raises: InputError."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    far, same = 0.0, 1.0
    for b, h, w in SIZES:
        x = torch.randn(b, 3, h, w, generator=torch.Generator().manual_seed(h))
        with torch.inference_mode():
            want: Tensor = model(x)
        got = torch.from_numpy(session.run(["logits"], {"image": x.numpy()})[0])
        if got.shape != want.shape:
            raise InputError(f"the exported graph answers {list(got.shape)}, PyTorch {list(want.shape)}; please report this")
        far = max(far, float((got - want).abs().max()))
        same = min(same, float((got.argmax(1) == want.argmax(1)).float().mean()))
    if not (far <= FAR and same >= SAME):
        found = f"it is off by {far:.2g}, {100 * same:.2f} % of pixels agree"
        raise InputError(f"the exported graph is not kept: {found}; please report this")
    return far, same


def to_torch(path: str | Path, net: TrainedSegmenter, told: dict[str, Any]) -> float:
    """Write a torch.export program (.pt2); returns the largest difference at SIZES. Read it by `torch.export.load`."""
    model = plain(net)
    least = net.shape["stride"] + 1  # with less, the last map has one pixel, for which PyTorch takes another path
    height, width = torch.export.Dim("height", min=least), torch.export.Dim("width", min=least)
    free = {0: torch.export.Dim("batch"), 2: height, 3: width}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (torch.zeros(2, 3, 64, 96),), dynamic_shapes=(free,))
        with storage.atomic_write(path) as part:
            named = part.with_suffix(".pt2")
            torch.export.save(program, named, extra_files={"unseg.json": json.dumps(told, sort_keys=True)})
            named.replace(part)
        again = torch.export.load(path).module()
    far = 0.0
    for b, h, w in SIZES:
        x = torch.randn(b, 3, h, w, generator=torch.Generator().manual_seed(h))
        with torch.inference_mode():
            far = max(far, float((again(x) - model(x)).abs().max()))
    return far
