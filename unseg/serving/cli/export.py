"""`unseg export`: writes the segmenter for other programs."""

import argparse

from unseg.core.console import InputError
from unseg.serving import export
from unseg.serving.api import load
from unseg.serving.cli.clusters import clusters_file
from unseg.serving.cli.parser import check_output


def run(options: argparse.Namespace) -> None:
    files = [file for file in (options.onnx, options.torch) if file]
    if not files:
        raise InputError("nothing to export; give --onnx FILE or --torch FILE")
    if options.patch_tokens and not options.onnx:
        raise InputError("--patch-tokens is an output of an ONNX file; add --onnx FILE")
    for file in files:
        check_output(file, options.force)
    model = load(options.model or options.run.segmenter, clusters_file(options), device="cpu")
    about = export.metadata(model.net, model.clusters, model.colours)
    if options.onnx:
        far, same = export.to_onnx(options.onnx, model.net, about, options.patch_tokens)
        outputs = "logits and patch tokens" if options.patch_tokens else "logits"
        print(f"{options.onnx}: {outputs} within {far:.1e} of PyTorch's, {100 * same:.2f} % of the labels agree")
    if options.torch:
        print(f"{options.torch}: logits within {export.to_torch(options.torch, model.net, about):.1e} of PyTorch's")
