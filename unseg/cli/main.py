"""`unseg VERB ...`: the words of the command line, and which function of the library each verb calls.

Every verb imports what it needs when it is called: `unseg --help` answers at once.
"""

import argparse
import sys
from pathlib import Path
from typing import TypeAlias

from unseg.cli.folder import Run
from unseg.console import InputError

ABOUT = """\
A folder of unlabelled photographs in, a semantic segmentation model out.

  unseg predict PHOTOS -o OUT      label maps and overlays of photographs, a folder of them, or a video
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
    add_predict(verbs)
    return top


Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_run(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--run", type=lambda text: Run(Path(text)), default=Run(Path()), metavar="FOLDER",
                      help="where `dvc repro` ran (this folder): its model, params.yaml and clusters.yaml are used")  # fmt: skip


def add_predict(verbs: Verbs) -> None:
    verb = verbs.add_parser(
        "predict",
        help="label every pixel of photographs or videos",
        description="Writes OUT/labels (index PNGs), OUT/overlays, OUT/predictions.json (COCO, run-length masks), "
        "OUT/summary.tsv and OUT/skipped.json.",
    )
    verb.add_argument("given", type=Path, metavar="PHOTO|FOLDER|VIDEO")
    verb.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="a new folder")
    add_run(verb)
    verb.add_argument("--model", type=Path, metavar="FILE", help="a segmenter (the run's final one)")
    verb.add_argument("--clusters", type=Path, metavar="FILE", help="names, colours, merges (the run's clusters.yaml)")
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


def run_predict(options: argparse.Namespace) -> None:
    from unseg.api import PUBLISHED_CRF, load
    from unseg.cli import predict
    from unseg.detection.detector import Detect
    from unseg.segmentation.labels import Crf
    from unseg.segmentation.segmenter import Predict

    run: Run = options.run
    known = run.params.exists()
    if options.instances and not known:
        raise InputError(f"{run.root} holds no run of unseg, whose detector --instances needs; name its folder by --run")
    model = load(
        options.model or run.segmenter,
        options.clusters or (None if options.model else run.clusters),
        run / "models/detector.safetensors" if options.instances else None,
        run.group("detect", Detect) if options.instances else None,
        options.device,
        options.size or (run.group("predict", Predict).input if known else "original"),
    )
    crf = (run.group("crf", Crf) if known else PUBLISHED_CRF) if options.crf else None
    book = predict.predict(model, options.given, options.out, crf, options.force)
    print(predict.summary(model.names, book))
    print(f"{len(book.images)} pictures in {options.out}" + (f", {len(book.skipped)} skipped:" if book.skipped else ""))
    for s in book.skipped[:20]:
        print(f"  {s['file_name']}: {s['reason']}")
    if len(book.skipped) > 20:
        print(f"  and {len(book.skipped) - 20} more in {options.out / 'skipped.json'}")
