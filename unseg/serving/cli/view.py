"""`unseg view`: opens a run in FiftyOne, which it needs."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from unseg.clustering import naming
from unseg.core import optional
from unseg.core.console import track
from unseg.serving.cli import clusters
from unseg.serving.run import Run

if TYPE_CHECKING:
    from unseg.serving.fiftyone_view.fields import Predict

ADDRESS = "127.0.0.1"  # loopback: nobody else on the network sees the photographs
SCORE = 0.5  # least score of a detection that is shown, as in the report


def run(options: argparse.Namespace) -> None:
    """Raises InputError if FiftyOne is not installed, or if the run is not finished."""
    optional.check_extra("view", "fiftyone")
    from unseg.serving.fiftyone_view import fields

    view = fields.read(options.input, clusters.read(options.input), options.against)
    os.environ.setdefault("FIFTYONE_DO_NOT_TRACK", "true")  # it would report usage to its makers
    import fiftyone as fo

    from unseg.serving.fiftyone_view import dataset

    name = options.name or f"unseg-{options.input.root.resolve().name}"
    photographs = view.photographs(SCORE, predictor(options.input) if options.predict else None)
    made = dataset.write(view, track(photographs, "read", len(view.images)), name)
    print(f"{len(made)} photographs in the dataset {name}; views: {', '.join(made.list_saved_views()) or 'none'}")
    print(
        f"changed: compared with {view.before}" if view.before else "changed: there is no earlier round; name a run by --against"
    )
    if not options.no_app:
        print(f"http://{ADDRESS}:{options.port} (Ctrl-C ends it)")
        fo.launch_app(made, address=ADDRESS, port=options.port, remote=True).wait(-1)


def predictor(folder: Run) -> "Predict":
    """The final segmenter of the run: label map and confidence of a photograph."""
    from unseg.serving.api import load

    names = folder / naming.FILE
    model = load(folder.segmenter, names if names.exists() else None)

    def predict(path: Path) -> tuple[np.ndarray, np.ndarray]:
        found = model.predict(path)
        return found.labels, found.confidence

    return predict
