"""`unseg VERB ...`: which functions of the library each verb calls. `unseg.serving.cli.parser` says what the verbs take.

Every verb imports what it needs when it is called: `unseg --help` answers at once.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from unseg.core.console import InputError
from unseg.serving.cli import parser
from unseg.serving.run import Run


def main(given: list[str] | None = None) -> None:
    """Run a verb; what the user or the machine got wrong ends it with one line and status 1."""
    options = parser.parser().parse_args(given)
    verbs = {f.__name__: f for f in (fit, profile, predict, clusters, probe, export, compare)}
    try:
        verbs[options.verb](options)
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # a full disk, a folder that may not be written
        where = error.filename2 or error.filename
        sys.exit(f"error: {where}: {error.strerror}" if where and error.strerror else f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def vacant(path: Path, force: bool) -> None:
    """Raises: InputError, where a file is there already and may not be written over."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file")
    if path.exists() and not force:
        raise InputError(f"{path} is there already; give another name, or --force")


def said_of(options: argparse.Namespace) -> Path | None:
    """The clusters.yaml that was asked for, or the run's own where the model is the run's.

    Raises:
        InputError: the run's own was written for another clustering.
    """
    from unseg.serving.cli import clusters

    run: Run = options.run
    if options.clusters or options.model or not run.clusters:
        return options.clusters  # type: ignore[no-any-return]
    if (run / "data/instances.json").exists():
        clusters.current(run)
    return run.clusters


def fit(options: argparse.Namespace) -> None:
    from unseg.serving.cli import fit

    if options.device:
        os.environ["UNSEG_DEVICE"] = options.device
    fit.fit(options.folder, options.profile, options.set, options.force, not options.no_run)


def profile(options: argparse.Namespace) -> None:
    from unseg.serving.cli import profile

    profile.profile(options.name, options.force)


def predict(options: argparse.Namespace) -> None:
    from unseg.detection.settings import Detect
    from unseg.segmentation.crf import Crf
    from unseg.serving.api import PUBLISHED_CRF, load
    from unseg.serving.cli import predict

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
        options.size,
    )
    crf = (run.group("crf", Crf) if known else PUBLISHED_CRF) if options.crf else None
    book = predict.predict(model, options.given, options.out, crf, options.force)
    print(predict.summary(model.names, book))
    count = len(book.images)
    print(f"{count} picture{'s' * (count > 1)} in {options.out}" + (f", {len(book.skipped)} skipped:" if book.skipped else ""))
    for s in book.skipped[:20]:
        print(f"  {s['file_name']}: {s['reason']}")
    if len(book.skipped) > 20:
        print(f"  and {len(book.skipped) - 20} more in {options.out / 'skipped.json'}")


def clusters(options: argparse.Namespace) -> None:
    from unseg.serving.cli import clusters

    run: Run = options.run
    said = clusters.edit(run, options.changes)
    if text := clusters.listed(said):
        print(text)
    if not options.no_page:
        out = options.out or run / "results/clusters.html"
        clusters.write_page(run, said, out)
        print(f"{said.count} clusters in {out}")


def probe(options: argparse.Namespace) -> None:
    from unseg.serving.api import load
    from unseg.serving.cli import clusters, probe

    vacant(options.out, options.force)
    model = load(options.model or options.run.segmenter, device=options.device, seen=options.size)
    if not options.model and (options.run / "data/instances.json").exists():  # a vote notes which clustering it is about
        model = replace(model, clusters=clusters.current(options.run, fresh=True))
    said = probe.probe(model, options.photos, options.masks, options.out, options.classes, options.vote)
    print(f"{said}, in {options.out}")


def export(options: argparse.Namespace) -> None:
    from unseg.serving import export
    from unseg.serving.api import load

    files = [file for file in (options.onnx, options.torch) if file]
    if not files:
        raise InputError("nothing to export; say --onnx FILE or --torch FILE")
    for file in files:
        vacant(file, options.force)
    model = load(options.model or options.run.segmenter, said_of(options), device="cpu")
    told = export.about(model.net, model.clusters, model.colours)
    if options.onnx:
        far, same = export.to_onnx(options.onnx, model.net, told)
        print(f"{options.onnx}: logits within {far:.1e} of PyTorch's, {100 * same:.2f} % of pixels agree")
    if options.torch:
        print(f"{options.torch}: logits within {export.to_torch(options.torch, model.net, told):.1e} of PyTorch's")


def compare(options: argparse.Namespace) -> None:
    from unseg.core.storage import atomic_write
    from unseg.report import comparison

    if len(options.runs) < 2:
        raise InputError("unseg compare: name two runs or more")
    if options.out:
        vacant(options.out, options.force)
    runs = comparison.opened(options.runs)
    print(comparison.spoken(runs))
    if options.out:
        page = comparison.compare(runs)
        with atomic_write(options.out) as part:
            part.write_bytes(page)
        print(f"page: {options.out}")
