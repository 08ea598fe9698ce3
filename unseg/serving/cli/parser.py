"""The words of the command line: what each verb takes, and its help. Nothing is imported that takes time."""

import argparse
from functools import partial
from pathlib import Path
from typing import TypeAlias

from unseg.serving.run import Run

ABOUT = """\
A folder of unlabelled photographs in, a semantic segmentation model out.

  unseg fit FOLDER                 a model from a folder of photographs, by `dvc repro` (in a clone of unseg)
  unseg predict PHOTOS -o OUT      label maps and overlays of photographs, a folder of them, or a video
  unseg clusters                   look at what was found; name, merge, colour and ignore it (clusters.yaml)
  unseg probe PHOTOS MASKS -o FILE from a few labelled photographs, your own classes
  unseg export --onnx FILE         the model for other programs
  unseg compare RUN RUN            what changed between two runs, in numbers and pictures
"""

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def parser() -> argparse.ArgumentParser:
    """What it parses has the name of the verb in `verb`."""
    top = argparse.ArgumentParser("unseg", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = top.add_subparsers(metavar="VERB", dest="verb", required=True, help="`unseg VERB --help` says more")
    add_fit(verbs)
    add_profile(verbs)
    add_predict(verbs)
    add_clusters(verbs)
    add_probe(verbs)
    add_export(verbs)
    add_compare(verbs)
    return top


def add_run(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--run", type=lambda text: Run(Path(text)), default=Run(Path()), metavar="FOLDER",
                      help="where `dvc repro` ran (this folder): its model, params.yaml and clusters.yaml are used")  # fmt: skip


def add_model(verb: argparse.ArgumentParser) -> None:
    add_run(verb)
    verb.add_argument("--model", type=Path, metavar="FILE", help="a segmenter (the run's final one)")


def add_clusters_file(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--clusters", type=Path, metavar="FILE", help="names, colours, merges (the run's clusters.yaml)")


def add_device(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--device", metavar="NAME", help="cpu, cuda, mps (UNSEG_DEVICE, or the best there is)")


def add_force(verb: argparse.ArgumentParser, words: str) -> None:
    verb.add_argument("--force", action="store_true", help=words)


def seen(text: str) -> str | int:
    return int(text) if text.isdigit() else text


def pair(key: str, text: str) -> tuple[str, str]:
    return key, text


def add_fit(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "fit",
        help="a model from a folder of photographs",
        description="In a clone of unseg: writes params.yaml from a profile with sizes that fit FOLDER, links FOLDER, and runs "
        "`dvc repro`. All of it can be done by hand: docs/folder.md. Interrupted, it goes on where it was.",
    )
    verb.add_argument("folder", type=Path, metavar="FOLDER", help="photographs, in sub-folders or not; needs no label")
    verb.add_argument("--profile", default="folder", metavar="NAME", help="a profile, see `unseg profile` (folder)")
    verb.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change params.yaml: croc.epochs=3")
    verb.add_argument("--no-run", action="store_true", help="only write params.yaml and the link to the folder")
    add_device(verb)
    add_force(verb, "write over edits in params.yaml")


def add_profile(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "profile",
        help="write params.yaml from a profile",
        description="In a clone of unseg: writes params.yaml from profiles/base.yaml and what profiles/NAME.yaml changes.",
    )
    verb.add_argument("name", metavar="NAME", help="voc, coco20k, folder, demo, ...: the files in profiles/")
    add_force(verb, "write over edits in params.yaml")


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
    add_clusters_file(verb)
    verb.add_argument("--instances", action="store_true", help="the run's detector too: OUT/instances, OUT/instances.json")
    verb.add_argument("--crf", action="store_true", help="refine outlines by a CRF with the run's settings (slow)")
    verb.add_argument("--size", type=seen, metavar="SIZE", help="what the network sees: original, square, or pixels of the "
                      "shorter side; a photograph much larger than those of the training wants a number "
                      "(as the model's run does: predict.input)")  # fmt: skip
    add_device(verb)
    add_force(verb, "write into OUT although it is not empty")


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
    add_model(verb)
    verb.add_argument("--classes", metavar="NAMES", help="background,dog,cat")
    verb.add_argument("--size", type=seen, metavar="SIZE", help="as in `unseg predict`, which will look as is said here")
    verb.add_argument("--vote", action="store_true", help="name and merge the clusters instead of training a linear head")
    add_device(verb)
    add_force(verb, "write over FILE")


def add_export(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "export",
        help="the model for other programs: ONNX, torch.export",
        description="Writes the segmenter with batch and size left free, compares it with PyTorch, and keeps it if they agree. "
        "Pre- and post-processing and the labels' names are in its metadata, under the key `unseg`.",
    )
    add_model(verb)
    add_clusters_file(verb)
    verb.add_argument("--onnx", type=Path, metavar="FILE", help="for onnxruntime and others; needs `pip install -e '.[onnx]'`")
    verb.add_argument("--torch", type=Path, metavar="FILE", help="a .pt2 for torch.export.load")
    add_force(verb, "write over FILE")


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
    add_force(verb, "write over FILE")
