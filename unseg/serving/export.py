"""Export a segmenter to ONNX or torch.export, with any batch and image size, checked against PyTorch.

    input   image   float32 [batch, 3, height, width]: RGB in 0..1, minus mean, over std (both in the metadata)
    output  logits  float32 [batch, labels, height, width], at the size of the input
    then    softmax over labels; add the probability of each label to its `output_label`, unless that is 255;
            argmax; replace each label by its `output_label`; 255 is the ignore label

The metadata has this too, with the labels' names and colours, as JSON under the key `unseg`.
"""

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable
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

SIZES = ((1, 64, 64), (2, 96, 160), (1, 375, 500))  # batch, height, width of the images that check an export
EXAMPLE = (2, 3, 64, 96)  # batch 2: the exporters take a size of 1 for a fixed one
MAX_DIFFERENCE, MIN_AGREEMENT = 1e-3, 0.999  # of logits; of pixels with the same label
OPSET = 18
REPORT = "please report this, with the model file and the versions of unseg, torch and onnxruntime"


def metadata(net: TrainedSegmenter, clusters: ClusterNames, colours: np.ndarray) -> dict[str, Any]:
    """Names, colours ([256, 3] uint8, by label), pre- and postprocessing, as JSON can hold them."""
    lut, names = clusters.label_lut(), ("background", *(clusters.title(k) for k in range(clusters.count)))
    labels = [
        {"label": i, "name": name, "output_label": int(lut[i]), "colour": "#{:02x}{:02x}{:02x}".format(*colours[i].tolist())}
        for i, name in enumerate(names)
    ]
    before = {"colours": "RGB", "range": [0, 1], "mean": batching.MEAN, "std": batching.STD, "trained_at": net.size}
    after = "softmax over axis 1; add each label's probability to its output_label, unless that is 255; argmax; "
    after += "replace each label by its output_label; 255 is ignored"
    return {"kind": "segmenter", "labels": labels, "preprocessing": before, "postprocessing": after}


def to_onnx(path: str | Path, net: TrainedSegmenter, about: dict[str, Any]) -> tuple[float, float]:
    """Write an ONNX file, float32. Returns the largest difference of a logit and the smallest agreement of labels at SIZES.

    Raises InputError if onnx or onnxruntime is not installed, or if its output differs from PyTorch's: no file is written.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"{name} is not installed; install it with `pip install -e '.[onnx]'`")
    import onnx

    model = to_cpu(net)
    with storage.atomic_write(path) as part, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            model,
            (torch.zeros(EXAMPLE),),
            input_names=["image"],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch"), 2: torch.export.Dim("height"), 3: torch.export.Dim("width")},),
            verbose=False,
        )
        assert program is not None
        proto = program.model_proto
        onnx.helper.set_model_props(proto, {"unseg": json.dumps(about, sort_keys=True)})
        proto.producer_version, proto.doc_string = "", (__doc__ or "").strip()
        onnx.save(proto, part)
        return check_onnx(model, part)


def to_torch(path: str | Path, net: TrainedSegmenter, about: dict[str, Any]) -> float:
    """Write a torch.export program (.pt2), for `torch.export.load`. Returns the largest difference of a logit at SIZES."""
    model = to_cpu(net)
    if net.shape["arch"] == "vit":  # torch.export cannot prove its guards on whole patches; `differences` finds a fixed size
        height = width = torch.export.Dim.AUTO
    else:
        least = net.shape["stride"] + 1  # below that the last feature map has one pixel, and PyTorch traces another path
        height, width = torch.export.Dim("height", min=least), torch.export.Dim("width", min=least)
    dynamic = {0: torch.export.Dim("batch"), 2: height, 3: width}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (torch.zeros(EXAMPLE),), dynamic_shapes=(dynamic,))
        with storage.atomic_write(path) as part:
            named = part.with_suffix(".pt2")
            torch.export.save(program, named, extra_files={"unseg.json": json.dumps(about, sort_keys=True)})
            named.replace(part)
        loaded = torch.export.load(path).module()
    return differences(model, loaded)[0]


def to_cpu(net: TrainedSegmenter) -> nn.Module:
    """A copy of the network on the CPU, in float32 and PyTorch's default memory layout."""
    return copy.deepcopy(net.model).cpu().float().to(memory_format=torch.contiguous_format).eval()


def check_onnx(model: nn.Module, path: Path) -> tuple[float, float]:
    """Compare onnxruntime with PyTorch, see `differences`. Raises InputError if they differ too much."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    difference, agreement = differences(model, lambda x: torch.from_numpy(session.run(["logits"], {"image": x.numpy()})[0]))
    if not (difference <= MAX_DIFFERENCE and agreement >= MIN_AGREEMENT):
        numbers = f"logits differ by {difference:.2g}, {100 * agreement:.2f} % of the labels agree"
        raise InputError(f"the ONNX file was not kept: {numbers}; {REPORT}")
    return difference, agreement


def differences(model: nn.Module, exported: Callable[[Tensor], Tensor]) -> tuple[float, float]:
    """Largest difference of a logit and smallest fraction of equal labels, on noise at SIZES. Raises InputError."""
    difference, agreement = 0.0, 1.0
    for b, h, w in SIZES:
        x = torch.randn(b, 3, h, w, generator=torch.Generator().manual_seed(h))
        with torch.inference_mode():
            expected, logits = model(x), exported(x)
        if logits.shape != expected.shape:
            raise InputError(f"the exported model returns {list(logits.shape)}, PyTorch {list(expected.shape)}; {REPORT}")
        difference = max(difference, float((logits - expected).abs().max()))
        agreement = min(agreement, float((logits.argmax(1) == expected.argmax(1)).float().mean()))
    return difference, agreement
