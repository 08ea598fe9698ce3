"""Export a segmenter to ONNX or torch.export, with any batch and image size, checked against PyTorch.

    input   image   float32 [batch, 3, height, width]: RGB in 0..1, minus mean, over std (both in the metadata)
    output  logits  float32 [batch, labels, height, width], at the size of the input
            patch_tokens  float32 [batch, channels, rows, columns], if wanted, of a ViT student: after the ViT's final norm;
            an incomplete patch at the right or the bottom counts as one
    then    softmax over labels; add the probability of each label to its `output_label`, unless that is 255;
            argmax; replace each label by its `output_label`; 255 is the ignore label

The metadata has this too, with the labels' names and colours, as JSON under the key `unseg`.
"""

import copy
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
from unseg.core import optional, storage
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


class WithTokens(nn.Module):
    """A ViT student with two outputs: logits and patch tokens."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, tokens = self.student.with_tokens(x)  # type: ignore[operator]
        return logits, tokens


def to_onnx(path: str | Path, net: TrainedSegmenter, about: dict[str, Any], patch_tokens: bool = False) -> tuple[float, float]:
    """Write an ONNX file, float32. Returns the largest difference of an output and the smallest agreement of labels at SIZES.

    patch_tokens: the second output. Raises InputError if the model has none, if onnx or onnxruntime is not installed, or if an
    output differs from PyTorch's: no file is written.
    """
    if patch_tokens and net.shape["arch"] != "vit":
        raise InputError(
            f"a {net.shape['arch']} has no patch tokens; leave out --patch-tokens, or train with segmenter.arch: vit"
        )
    optional.check_extra("onnx", "onnx", "onnxscript", "onnxruntime")
    import onnx

    model, outputs = to_cpu(net), ["logits"]
    if patch_tokens:
        model, outputs = WithTokens(model).eval(), ["logits", "patch_tokens"]
    with storage.atomic_write(path) as part, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            model,
            (torch.zeros(EXAMPLE),),
            input_names=["image"],
            output_names=outputs,
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
    """Write a torch.export program (.pt2), for `torch.export.load`. Returns the largest difference of a logit at SIZES.

    Raises InputError if it fails at one of them: no file is written.
    """
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
            try:
                torch.export.save(program, named, extra_files={"unseg.json": json.dumps(about, sort_keys=True)})
                difference = differences(model, torch.export.load(named).module())[0]
                named.replace(part)
            finally:
                named.unlink(missing_ok=True)
    return difference


def to_cpu(net: TrainedSegmenter) -> nn.Module:
    """A copy of the network on the CPU, in float32 and PyTorch's default memory layout."""
    return copy.deepcopy(net.model).cpu().float().to(memory_format=torch.contiguous_format).eval()


def check_onnx(model: nn.Module, path: Path) -> tuple[float, float]:
    """Compare onnxruntime with PyTorch, see `differences`. Raises InputError if they differ too much."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(x: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(torch.from_numpy, session.run(None, {"image": x.numpy()})))

    difference, agreement = differences(model, run)
    if not (difference <= MAX_DIFFERENCE and agreement >= MIN_AGREEMENT):
        numbers = f"outputs differ by {difference:.2g}, {100 * agreement:.2f} % of the labels agree"
        raise InputError(f"the ONNX file was not kept: {numbers}; {REPORT}")
    return difference, agreement


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def differences(model: nn.Module, exported: Callable[[Tensor], Tensor | tuple[Tensor, ...]]) -> tuple[float, float]:
    """Largest difference of an output and smallest fraction of equal labels, on noise at SIZES. Raises InputError.

    The difference of patch tokens is relative to the largest of them, if that is above 1: DINOv2 has some of magnitude 50.
    """
    difference, agreement = 0.0, 1.0
    for b, h, w in SIZES:
        x = torch.randn(b, 3, h, w, generator=torch.Generator().manual_seed(h))
        with torch.inference_mode():
            expected = as_tuple(model(x))
            try:
                got = as_tuple(exported(x))
            except Exception as error:  # the runtimes' own
                reason = storage.one_line(error)
                raise InputError(
                    f"the exported model was not kept: it fails for images of {h} x {w} pixels. PyTorch's exporters fix the size "
                    f"for ViTs with rotary embeddings (DINOv3): use a student of another ViT, or PyTorch ({reason})"
                ) from None
        shapes = [[list(output.shape) for output in outputs] for outputs in (got, expected)]
        if shapes[0] != shapes[1]:
            raise InputError(f"the exported model returns {shapes[0]}, PyTorch {shapes[1]}; {REPORT}")
        for i, (output, wanted) in enumerate(zip(got, expected, strict=True)):
            scale = max(1.0, float(wanted.abs().max())) if i else 1.0
            difference = max(difference, float((output - wanted).abs().max()) / scale)
        agreement = min(agreement, float((got[0].argmax(1) == expected[0].argmax(1)).float().mean()))
    return difference, agreement
