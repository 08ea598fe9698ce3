"""DeepLab-v3 and the ViT student on the same pseudo-labels of a finished run: seconds of training, clustering mIoU.

    python benchmarks/student.py RUN [RUN ...] [--set segmenter.epochs=6 ...]

RUN is a folder in which `dvc repro` ran, e.g. one that `python benchmarks/demo.py --into FOLDER` made; it is only read. Both
segmenters are trained in this process on the label maps of r0: DeepLab with the run's params.yaml, the student with the changes
STUDENT and --set. The seconds are of the training stage without imports; the student's include the tokens of all images.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import truth_scores
from stages import predict, train_segmenter
from unseg.core import image_index, params
from unseg.models import vit  # noqa: F401  imported before the clock runs

STUDENT: dict[str, Any] = {"arch": "vit", "epochs": 6, "lr_milestone": 4}
LINKED = ("data", "models")


def measure(run: Path, changes: dict[str, Any]) -> tuple[float, float]:
    """Seconds of training and clustering mIoU on the evaluation images. changes: keys of the group segmenter."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name in LINKED:
            (folder / name).symlink_to(run / name)
        values = yaml.safe_load((run / "params.yaml").read_text("utf-8"))
        values["segmenter"] |= changes
        (folder / "params.yaml").write_text(yaml.safe_dump(values), "utf-8")
        with contextlib.chdir(folder):
            index, images = "data/images.json", str(values["data"]["images"])
            start = time.perf_counter()
            train_segmenter.main(index, "data/labels-r0.zip", images, weights="s.safetensors", history="s.tsv")
            seconds = time.perf_counter() - start
            predict.main(index=index, images=images, weights="s.safetensors", predictions="s.zip")
            val = image_index.eval_images(index)
            score = truth_scores.miou(Path("s.zip"), Path("data/truth.zip"), val, params.value("cluster.k", int))
        return seconds, score


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="change the student")
    options = parser.parse_args(words)
    given = {key.removeprefix("segmenter."): yaml.safe_load(text) for key, text in (pair.split("=", 1) for pair in options.set)}
    lines = []
    for run in [path.resolve() for path in options.runs]:
        deeplab, student = measure(run, {}), measure(run, STUDENT | given)
        lines.append(
            f"{run}: DeepLab-v3 {deeplab[0]:.1f} s, mIoU {deeplab[1]:.4f}; student {student[0]:.1f} s, mIoU {student[1]:.4f}; "
            f"time {student[0] / deeplab[0]:.2f}, mIoU {student[1] - deeplab[1]:+.4f}"
        )
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
