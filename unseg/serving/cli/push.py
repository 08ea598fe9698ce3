"""`unseg push`: publishes a run's model on the Hugging Face hub, with a model card, or writes the same files into a folder."""

import argparse
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from unseg.clustering import naming
from unseg.core import params
from unseg.core.console import InputError
from unseg.detection.settings import Detect
from unseg.serving.api import load
from unseg.serving.cli import clusters
from unseg.serving.hub import card, client, repository
from unseg.serving.labels.formats import check_empty
from unseg.serving.run import Run


def run(options: argparse.Namespace) -> None:
    """Raises InputError for a run that is not finished, or an output folder that is not empty; then nothing is written."""
    client.check_name(options.name)
    if options.to and options.private:
        raise InputError("--private is for an upload; leave it out with --to")
    if options.to:
        check_empty(options.to)
    elif options.pictures is None and not options.private:
        raise InputError("the card's pictures publish photographs of the run; give --pictures, --no-pictures or --private")
    names, files = prepare(options.run, options.name, options.detector, options.license, options.pictures is not False)
    if options.to:
        write(options.to, names, files)
        print(f"{options.to}: unseg.load takes this folder")
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), names, files)
        print(client.upload(Path(folder), options.name, options.private, [repository.DETECTOR, f"{repository.PICTURES}/*"]))
    print(f'unseg.load("{client.SCHEME}{options.name}") takes it')


def write(folder: Path, names: naming.ClusterNames, files: dict[str, bytes | Path]) -> None:
    naming.write(folder / repository.CLUSTERS, names)
    repository.write(folder, files)


def prepare(
    run: Run, name: str, detector: bool, licence: str | None, pictures: bool
) -> tuple[naming.ClusterNames, dict[str, bytes | Path]]:
    """The clusters, and the other files of the repository. Writes nothing.

    Raises InputError if the run is not finished, its model cannot be loaded, or `licence` contradicts that of its weights.
    """
    model, final = run.segmenter, run.value("final", str)
    card.check_finished(run, final)
    names = clusters.read(run)
    detect = run.group("detect", Detect) if detector else None
    loaded = load(model, None, run.detector if detector else None, detect, device="cpu")
    sheets = {f"{repository.PICTURES}/{file}": title for file, title in card.PICTURES.items()} if pictures else {}
    sheets = {path: title for path, title in sheets.items() if (run / "results" / path).is_file()}
    if pictures and not sheets:
        raise InputError(f"{run / 'results/pictures'} has no pictures; make them with `dvc repro report`, or give --no-pictures")
    weights = card.weights_of(run, card.read_values(run))
    licences = card.licences(weights, licence)
    shape = {**loaded.net.shape, "size": loaded.net.size, "precision": loaded.net.precision}
    files: dict[str, bytes | Path] = {
        repository.MODEL: model,
        repository.CONFIG: repository.config(
            shape, loaded.input_size, asdict(detect) if detect else None, params.read(run.params)
        ),
        repository.CARD: card.render(run, name, names, licences, weights, detector, sheets),
        **({repository.DETECTOR: run.detector} if detector else {}),
        **{path: run / "results" / path for path in sheets},
    }
    if sheets:
        print(f"warning: {', '.join(sheets)} show photographs of the run; --no-pictures leaves them out", file=sys.stderr)
    if not licences or card.UNKNOWN in licences:
        why = "weights have no licence in their file" if licences else "the run used no weights of others"
        print(f"warning: the card has no licence ({why}); --license sets it", file=sys.stderr)
    return names, files
