"""The whole tour, as somebody who installs unseg has it: a wheel in a new environment, an empty folder, photographs.

One function a step, each with the commands as one would type them and a look at what they made. The other packages come from
the environment of the tests; unseg and `stages` do not. HOME and all caches are folders of the test, and nothing is fetched.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from browser import CHROMIUM, DESK, chromium
from PIL import Image as Pillow
from PIL import ImageDraw
from safetensors.torch import save_file

from unseg.models import vit

PHOTOGRAPHS = 40
SMALL = (
    *("rounds=[r0]", "refine=[]", "final=r0", "mine.resize=56", "embed.resize=28", "embed.longest=56", "embed.descriptor=cls"),
    *("cluster.k=3", "choose.ks=[2]", "choose.repeats=2", "linear.epochs=1", "report.pictures=4"),
    *("detector.width=8", "detector.fpn=16", "detector.hidden=16", "detector.short_sides=[64]", "detector.long_side=64"),
    *("detector.iterations=2", "detector.batch=2", "detector.lr_steps=[1]", "detector.rois=8", "detector.proposals=10"),
    *("detector.warmup_iterations=0", "detect.short_side=64", "detect.max_detections=3", "quality.images=8"),
    *("segmenter.size=56", "segmenter.epochs=1", "segmenter.lr_milestone=0", "segmenter.channels=8"),
)


class Tour:
    """A new environment, a home, and an empty working directory."""

    def __init__(self, around: Path, wheel: Path) -> None:
        self.venv, self.root, self.home = around / "venv", around / "work", around / "home"
        self.root.mkdir()
        self.home.mkdir()
        kept = {key: os.environ[key] for key in ("LANG", "TMPDIR", "OMP_NUM_THREADS") if key in os.environ}
        self.env = kept | {
            "HOME": str(self.home),
            "PATH": os.pathsep.join([str(self.venv / "bin"), "/usr/bin", "/bin"]),
            "DVC_SITE_CACHE_DIR": str(self.home / "dvc"),
            "HF_HUB_OFFLINE": "1",
            "UNSEG_DEVICE": "cpu",
            "UNSEG_WORKERS": "0",
        }
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.venv], check=True)
        (site,) = (self.venv / "lib").glob("python*/site-packages")
        packages = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        (site / "of_the_tests.pth").write_text("\n".join(packages))  # .pth files in those folders have no effect
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            self.venv / "bin/python",
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            "--no-compile",
        ]
        subprocess.run([*pip, wheel], check=True)

    def sh(self, *words: str) -> str:
        """The standard output of a command that succeeds."""
        done = subprocess.run(words, cwd=self.root, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr[-3000:], done.stdout[-3000:])
        return done.stdout


@pytest.fixture
def tour(built: Path, tmp_path: Path) -> Tour:
    (wheel,) = built.glob("*.whl")
    return Tour(tmp_path, wheel)


def photograph(path: Path, seed: int) -> None:
    """A disc or a square on a background of another colour, with noise."""
    rng = np.random.default_rng(seed)
    image = Pillow.new("RGB", (80, 64), tuple(rng.integers(150, 250, 3)))
    x, y, size = rng.integers(8, 30), rng.integers(4, 20), rng.integers(24, 40)
    draw = ImageDraw.Draw(image)
    shape = draw.ellipse if seed % 2 else draw.rectangle
    shape([int(x), int(y), int(x + size), int(y + size)], fill=(200, 30, 30) if seed % 2 else (30, 30, 200))
    noisy = np.asarray(image).astype(int) + rng.integers(-20, 20, (64, 80, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path)


def pictures(tour: Tour) -> None:
    """40 photographs in two folders, two new ones, and a small ViT."""
    for i in range(PHOTOGRAPHS):
        photograph(tour.home / f"pictures/{('garden', 'my street')[i % 2]}/{i}.jpg", i)
    for i in (100, 101):
        photograph(tour.home / f"new/{i}.jpg", i)
    save_file(vit.build(vit.Shape(patch=14, width=16, depth=2, heads=1), 56).state_dict(), tour.home / "vit.safetensors")


def installed(tour: Tour) -> None:
    """The package is the wheel's, and its stages are no package of the environment."""
    where = tour.sh("python", "-c", "import unseg; print(unseg.__file__)")
    assert Path(where.strip()).is_relative_to(tour.venv)
    tour.sh("python", "-c", "import importlib.util; assert importlib.util.find_spec('stages') is None")
    assert "COMMAND" in tour.sh("unseg", "--help")


def init(tour: Tour) -> None:
    """`unseg init` in the empty folder; from here on it is the working directory."""
    assert "unseg fit PHOTOGRAPHS" in tour.sh("unseg", "init", "my-project")
    tour.root /= "my-project"
    assert (tour.root / "stages/mine.py").exists()


def fit(tour: Tour) -> None:
    """All stages run. After a change of the installed code, those run again that use it, and no others."""
    settings = [word for setting in SMALL for word in ("--set", setting)]
    words = ["unseg", "fit", str(tour.home / "pictures"), "--weights", str(tour.home / "vit.safetensors"), *settings]
    out = tour.sh(*words)
    assert f"{PHOTOGRAPHS} photographs in" in out
    assert "Running stage 'train_segmenter@r0'" in out
    assert (tour.root / "models/segmenter-r0.safetensors").stat().st_size
    assert "<html" in (tour.root / "results/report.html").read_text()
    assert len(yaml.safe_load((tour.root / "data/images.json").read_text())["images"]) == PHOTOGRAPHS
    (module,) = tour.venv.glob("lib/*/site-packages/unseg/report/page.py")
    module.write_text(module.read_text() + "# of the next version\n")
    again = tour.sh(*words)
    assert "unseg has changed in report: the stages that use it will run again" in again
    assert [line for line in again.splitlines() if line.startswith("Running stage")] == ["Running stage 'report':"]


def predict(tour: Tour) -> None:
    tour.sh("unseg", "predict", str(tour.home / "new"), "-o", "out")
    assert {p.name for p in (tour.root / "out/labels").iterdir()} == {"100.jpg.png", "101.jpg.png"}
    with Pillow.open(tour.root / "out/labels/100.jpg.png") as labels:
        assert labels.size == (80, 64)


def export_labels(tour: Tour) -> None:
    """Of the run to COCO and Label Studio, of the prediction to YOLO."""
    for given, format in ((".", "coco"), (".", "label-studio"), ("out", "yolo-seg")):
        tour.sh("unseg", "export-labels", given, "--format", format, "-o", f"labels-{format}")
    assert len(json.loads((tour.root / "labels-coco/semantic.json").read_text())["images"]) == PHOTOGRAPHS
    assert len(json.loads((tour.root / "labels-label-studio/tasks.json").read_text())) == PHOTOGRAPHS
    assert {p.stem for p in (tour.root / "labels-yolo-seg/labels").rglob("*.txt")} == {"100", "101"}


def push(tour: Tour) -> None:
    """The model, into a folder with the layout of a repository of the hub, and the card."""
    tour.sh("unseg", "push", "jane/shapes", "--to", "share", "--license", "apache-2.0", "--pictures")
    assert "jane/shapes" in (tour.root / "share/README.md").read_text()


def load(tour: Tour) -> None:
    program = "import sys, unseg; print(unseg.load('share').predict(sys.argv[1]).labels.shape)"
    assert "(64, 80)" in tour.sh("python", "-c", program, str(tour.home / "new/100.jpg"))


def serve(tour: Tour) -> None:
    """A photograph dropped on the page is answered; skipped without Chromium."""
    if not CHROMIUM:
        return
    words = ["unseg", "serve", "--port", "0"]
    with (
        subprocess.Popen(words, cwd=tour.root, env=tour.env, stdout=subprocess.PIPE, text=True) as process,
        chromium() as browser,
    ):
        try:
            assert process.stdout
            browser.open(process.stdout.readline().split()[0], DESK)
            browser.wait("document.querySelector('#about').textContent.includes('3 clusters')")
            browser.drop((tour.home / "new/100.jpg").read_bytes(), "100.jpg")
            browser.wait("document.querySelectorAll('#here li').length")
            browser.screenshot(tour.home / "page.png", whole=True)
            assert (tour.home / "page.png").stat().st_size > 10_000
        finally:
            process.kill()


STEPS = (pictures, installed, init, fit, predict, export_labels, push, load, serve)


def test_the_tour(tour: Tour) -> None:
    for step in STEPS:
        start, before = time.monotonic(), sum(os.times()[:4])
        step(tour)
        seconds, cpu = time.monotonic() - start, sum(os.times()[:4]) - before
        print(f"{step.__name__}: {seconds:.1f} s, {cpu:.1f} s of CPU", flush=True)  # pytest -s
