"""`unseg VERB ...`: the words of the command line, and which function of the library each verb calls.

Every verb imports what it needs when it is called: `unseg --help` answers at once.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TypeAlias

from unseg.cli.folder import Run
from unseg.console import InputError

ABOUT = """\
A folder of unlabelled photographs in, a semantic segmentation model out.

  unseg fit FOLDER                 a model from a folder of photographs, by `dvc repro` (in a clone of unseg)
  unseg predict PHOTOS -o OUT      label maps and overlays of photographs, a folder of them, or a video
  unseg clusters                   look at what was found; name, merge, colour and ignore it (clusters.yaml)
  unseg probe PHOTOS MASKS -o FILE from a few labelled photographs, your own classes
  unseg export --onnx FILE         the model for other programs
  unseg compare RUN RUN            what changed between two runs, in numbers and pictures
"""


def main(words: list[str] | None = None) -> None:
    """Run a verb; an InputError ends it with one line and status 1."""
    options = parser().parse_args(words)
    try:
        options.verb(options)
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("unseg", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = top.add_subparsers(metavar="VERB", required=True, help="`unseg VERB --help` says more")
    add_fit(verbs)
    add_predict(verbs)
    add_clusters(verbs)
    add_probe(verbs)
    add_export(verbs)
    add_compare(verbs)
    return top


Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_run(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--run", type=lambda text: Run(Path(text)), default=Run(Path()), metavar="FOLDER",
                      help="where `dvc repro` ran (this folder): its model, params.yaml and clusters.yaml are used")  # fmt: skip


def add_model(verb: argparse.ArgumentParser) -> None:
    add_run(verb)
    verb.add_argument("--model", type=Path, metavar="FILE", help="a segmenter (the run's final one)")
    verb.add_argument("--clusters", type=Path, metavar="FILE", help="names, colours, merges (the run's clusters.yaml)")


def said_of(options: argparse.Namespace) -> Path | None:
    """The clusters.yaml that was asked for, or the run's own where the model is the run's."""
    found: Path | None = options.clusters or (None if options.model else options.run.clusters)
    return found


def add_predict(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "predict",
        help="label every pixel of photographs or videos",
        description="Writes OUT/labels (index PNGs), OUT/overlays, OUT/predictions.json (COCO, run-length masks), "
        "OUT/summary.tsv and OUT/skipped.json.",
    )
    verb.add_argument("given", type=Path, metavar="PHOTO|FOLDER|VIDEO")
    verb.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="a new folder")
    add_model(verb)
    verb.add_argument("--instances", action="store_true", help="the run's detector too: OUT/instances, OUT/instances.json")
    verb.add_argument("--crf", action="store_true", help="refine outlines by a dense CRF with the run's settings (slow)")
    verb.add_argument("--size", type=seen, metavar="SIZE", help="what the network sees: original, square, or pixels of the "
                      "shorter side; a photograph much larger than those of the training wants a number "
                      "(the run's predict.input)")  # fmt: skip
    verb.add_argument("--device", metavar="NAME", help="cpu, cuda, mps (UNSEG_DEVICE, or the best there is)")
    verb.add_argument("--force", action="store_true", help="write into OUT although it is not empty")
    verb.set_defaults(verb=run_predict)


def seen(text: str) -> str | int:
    return int(text) if text.isdigit() else text


def looks(options: argparse.Namespace) -> str | int:
    """What the network sees of a photograph: what was asked for, or what the run's own predictions are made of."""
    from unseg.segmentation.segmenter import Predict

    run: Run = options.run
    asked: str | int | None = options.size
    return asked or (str(run.group("predict", Predict).input) if run.params.exists() else "original")


def run_predict(options: argparse.Namespace) -> None:
    from unseg.api import PUBLISHED_CRF, load
    from unseg.cli import predict
    from unseg.detection.settings import Detect
    from unseg.segmentation.labels import Crf

    run: Run = options.run
    known = run.params.exists()
    if options.instances and not known:
        raise InputError(f"{run.root} holds no run of unseg, whose detector --instances needs; name its folder by --run")
    model = load(
        options.model or run.segmenter,
        said_of(options),
        run.detector if options.instances else None,
        run.group("detect", Detect) if options.instances else None,
        options.device,
        looks(options),
    )
    crf = (run.group("crf", Crf) if known else PUBLISHED_CRF) if options.crf else None
    book = predict.predict(model, options.given, options.out, crf, options.force)
    print(predict.summary(model.names, book))
    print(f"{len(book.images)} pictures in {options.out}" + (f", {len(book.skipped)} skipped:" if book.skipped else ""))
    for s in book.skipped[:20]:
        print(f"  {s['file_name']}: {s['reason']}")
    if len(book.skipped) > 20:
        print(f"  and {len(book.skipped) - 20} more in {options.out / 'skipped.json'}")


def add_clusters(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "clusters",
        help="cluster cards; name, merge, colour and ignore clusters",
        description="Writes a page of cluster cards, after the edits that are asked for. Edits go to the run's clusters.yaml, "
        "which can be edited by hand as well; they apply at prediction and in the report (`dvc repro`).",
    )
    add_run(verb)
    verb.add_argument("-o", "--out", type=Path, metavar="FILE", help="the page (RUN/results/clusters.html)")
    verb.add_argument("--no-page", action="store_true", help="only edit, and list what is said")
    for key, value, words in (
        ("name", "3=dog", "call cluster 3 dog"),
        ("colour", "3=#e69f00", "draw it so"),
        ("merge", "5=3", "cluster 5 is cluster 3, too; 5=background: nothing"),
        ("ignore", "7", "no answer where cluster 7 is (void, 255)"),
        ("reset", "3|all", "forget what was said of it"),
    ):
        verb.add_argument(
            f"--{key}", action="append", type=partial(pair, key), dest="changes", metavar=value, default=[], help=words
        )
    verb.set_defaults(verb=run_clusters)


def pair(key: str, text: str) -> tuple[str, str]:
    return key, text


def run_clusters(options: argparse.Namespace) -> None:
    from unseg.cli import clusters

    run: Run = options.run
    said = clusters.edit(run, options.changes)
    if text := clusters.listed(said):
        print(text)
    if not options.no_page:
        out = options.out or run / "results/clusters.html"
        clusters.write_page(run, said, out)
        print(f"{said.count} clusters in {out}")


def add_export(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "export",
        help="the model for other programs: ONNX, torch.export",
        description="Writes the segmenter with batch and size left free, compares it with PyTorch, and keeps it if they agree. "
        "Pre- and post-processing and the labels' names are in its metadata, under the key `unseg`.",
    )
    add_model(verb)
    verb.add_argument("--onnx", type=Path, metavar="FILE", help="for onnxruntime and others; needs `pip install -e '.[onnx]'`")
    verb.add_argument("--torch", type=Path, metavar="FILE", help="a .pt2 for torch.export.load")
    verb.set_defaults(verb=run_export)


def run_export(options: argparse.Namespace) -> None:
    from unseg.api import load
    from unseg.segmentation import export

    if not (options.onnx or options.torch):
        raise InputError("nothing to export; say --onnx FILE or --torch FILE")
    model = load(options.model or options.run.segmenter, said_of(options), device="cpu")
    told = export.about(model.net, model.clusters, model.colours)
    if options.onnx:
        far, same = export.to_onnx(options.onnx, model.net, told)
        print(f"{options.onnx}: logits within {far:.1e} of PyTorch's, {100 * same:.2f} % of pixels agree")
    if options.torch:
        print(f"{options.torch}: logits within {export.to_torch(options.torch, model.net, told):.1e} of PyTorch's")


def add_fit(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "fit",
        help="a model from a folder of photographs",
        description="In a clone of unseg: copies a profile to params.yaml, points it at FOLDER, picks sizes that fit, and runs "
        "`dvc repro`. All of it can be done by hand: docs/folder.md. Interrupted, it goes on where it was.",
    )
    verb.add_argument("folder", type=Path, metavar="FOLDER", help="photographs, in sub-folders or not; needs no label")
    verb.add_argument("--profile", default="folder", metavar="NAME", help="profiles/NAME.yaml (folder)")
    verb.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change params.yaml: croc.epochs=3")
    verb.add_argument("--no-run", action="store_true", help="only write params.yaml and the link to the folder")
    verb.add_argument("--force", action="store_true", help="write over edits in params.yaml")
    verb.set_defaults(verb=run_fit)


def run_fit(options: argparse.Namespace) -> None:
    from unseg.cli import fit

    fit.fit(options.folder, options.profile, options.set, options.force, not options.no_run)


def add_probe(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "probe",
        help="your own classes, from a few labelled photographs",
        description="MASKS holds NAME.png (grey or palette: 0 background, 1.. classes, 255 unknown) for NAME.jpg in PHOTOS, and "
        "classes.txt (a name a line, background first) if names are not given.",
    )
    verb.add_argument("photos", type=Path, metavar="PHOTOS")
    verb.add_argument("masks", type=Path, metavar="MASKS")
    verb.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="a segmenter; by --vote, a clusters.yaml")
    add_run(verb)
    verb.add_argument("--model", type=Path, metavar="FILE", help="a segmenter (the run's final one)")
    verb.add_argument("--classes", metavar="NAMES", help="background,dog,cat")
    verb.add_argument("--size", type=seen, metavar="SIZE", help="as in `unseg predict`; the two must agree")
    verb.add_argument("--vote", action="store_true", help="name and merge the clusters instead of training a linear head")
    verb.add_argument("--device", metavar="NAME")
    verb.add_argument("--force", action="store_true", help="write over FILE")
    verb.set_defaults(verb=run_probe)


def run_probe(options: argparse.Namespace) -> None:
    from unseg.api import load
    from unseg.cli import probe

    model = load(options.model or options.run.segmenter, device=options.device, seen=looks(options))
    said = probe.probe(model, options.photos, options.masks, options.out, options.classes, options.vote, options.force)
    print(f"{said}, in {options.out}")


def add_compare(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "compare",
        help="what changed between two runs",
        description="Params and numbers that differ; on a page, the pictures that changed most too.",
    )
    verb.add_argument(
        "runs", type=Path, metavar="RUN", nargs="+", help="a folder in which `dvc repro` ran; others are held against the first"
    )
    verb.add_argument("-o", "--out", type=Path, metavar="FILE", help="a page with pictures as well")
    verb.set_defaults(verb=run_compare)


def run_compare(options: argparse.Namespace) -> None:
    from unseg.io.records import whole
    from unseg.report import comparison

    if len(options.runs) < 2:
        raise InputError("unseg compare: name two runs or more")
    runs = comparison.opened(options.runs)
    print(comparison.spoken(runs))
    if options.out:
        page = comparison.compare(runs)
        with whole(options.out) as part:
            part.write_bytes(page)
        print(f"page: {options.out}")
