"""Every command of README.md and docs/ is run, as it is written, in a finished toy run.

A line is given to bash; `unseg ...` is called within this process, for torch's start takes seconds. Places outside the repository
(~, /data, /mnt/share) are folders of the test. Nothing is trained to test a sentence: where a line would run a pipeline,
`dvc repro --dry` says what it would run, and `prepare` alone runs. (`unseg fit` is run to its end by
test_my_own_folder_to_the_end, which is slow.) What a test cannot run is listed in INSTALL, ELSEWHERE, HELP, LOADED and SHRUNK
with the reason and with what is done instead; README's lines on experiments and remotes are run by test_share.py.
"""

import ast
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import uvicorn
import yaml
from conftest import TINY, Pipeline
from packaging.requirements import Requirement
from pages import PAGES, ROOT, blocks, commands
from PIL import Image as Pillow

from unseg.clustering import naming
from unseg.models import timm_weights
from unseg.serving import export
from unseg.serving.cli import fit, serve
from unseg.serving.cli.main import main

MINE = "Your own photographs"  # a section of README
SHARED = ("dvc exp ", "dvc remote ", "dvc push", "git clone ")  # run by test_share.py, as README has them
INSTALL = {  # needs the network and minutes: CI runs the line; here, what it would install must be what is installed
    "pip install -r requirements.txt && dvc repro": "requirements.txt",
    "pip install -r requirements-dev.txt && pytest": "requirements-dev.txt",
}
ELSEWHERE = {  # the suite itself, or hours
    "pytest tests/pipeline/test_contract.py": "a test of this suite",
    "python benchmarks/tables.py s1 --run --seeds 0 1 2": "hours; what it queues is tested by tests/test_tables.py",
    "python -m tests.fuzz": "minutes; tests/pipeline/test_faults.py runs 350 of its inputs",
}
HELP = (  # whole pipelines, several times, or minutes at the papers' sizes: asked for their help
    "python benchmarks/demo.py",
    "python benchmarks/backbones.py",
    "python benchmarks/detect.py",
    "python benchmarks/detectors.py",
    "python benchmarks/gpu.py",  # tests/test_gpu_benchmark.py runs it at toy size
    "python benchmarks/voc.py",  # tests/test_voc_benchmark.py, likewise
)
LOADED = {  # minutes, without a help to ask for: loaded, so that what they import is there
    "python -m benchmarks.scale": "benchmarks/scale.py",
    "python tests/pipeline/kills.py": "tests/pipeline/kills.py",
}
SHRUNK = {  # benchmarks at the papers' sizes: main() is called at the sizes given here
    "python benchmarks/mine.py": ("benchmarks/mine.py", {"ROWS": 4, "COLS": 6, "PATCHES": 24, "DEPTH": 2}, [1]),
    "python -m benchmarks.run": (
        "benchmarks/run.py",
        {"ROUNDS": 1, "MINE": (32, 48), "CROP": (32, 32), "PHOTO": (48, 64), "SIDE": 64},
        [0.1],
    ),
    "python benchmarks/evaluate.py": ("benchmarks/evaluate.py", {}, ["2"]),
    "python -m benchmarks.croc": ("benchmarks/croc.py", {"PROFILE": "demo", "BATCH": 2}, [1]),
    "python benchmarks/predict.py": ("benchmarks/predict.py", {"SMALL": (60, 80), "LARGE": (300, 400)}, [["--photos", "2"]]),
    "python benchmarks/scenes.py": ("benchmarks/scenes.py", {}, [["--scenes", "20", "--seeds", "0"]]),
    "python benchmarks/crf.py": ("benchmarks/crf.py", {}, [["--scenes", "1", "--photos", "0"]]),
    "python benchmarks/student.py .": ("benchmarks/student.py", {}, [["."]]),
    "python benchmarks/precision.py": ("benchmarks/precision.py", {}, [["--photos", "12"]]),
}
GPU = "unseg profile voc"  # after it, `dvc repro` wants GPUs and official weights: only `prepare` is run


class Home:
    """A finished toy run, and the places that the pages speak of."""

    def __init__(self, pipe: Pipeline) -> None:
        self.pipe, self.around = pipe, pipe.root.parent
        self.ran: set[str] = set()

    def follow(self, line: str) -> None:
        """Run a line, once; test_a_benchmark has those of benchmarks."""
        if line in self.ran or line in {*ELSEWHERE, *HELP, *LOADED, *SHRUNK}:
            return
        self.ran.add(line)
        if line in INSTALL:
            installed(line)
        elif line.startswith("unseg "):
            main([os.path.expanduser(word) for word in shlex.split(line)[1:]])
        else:
            known = line.startswith("python benchmarks/tables.py") or "benchmarks" not in line
            assert known, f"{line}: say in SHRUNK, HELP or LOADED how a test can run it"
            self.bash(line)

    def bash(self, line: str) -> str:
        for place in ("/data/", "/mnt/"):
            line = line.replace(f" {place}", f" {self.around}{place}")
        done = self.pipe.sh("bash", "-ec", line)
        assert done.returncode == 0, (line, done.stderr[-2000:], done.stdout[-2000:])
        return done.stdout


def installed(line: str) -> None:
    """What a requirements file asks for is there, in a version that it allows; CI runs the line itself."""
    assert line.replace(" -r", " -q -r") in (ROOT / ".ci/run").read_text()
    wanted = [w.split("#")[0].strip() for w in (ROOT / INSTALL[line]).read_text().splitlines()]
    for text in (w for w in wanted if w and not w.startswith("-r")):
        need = Requirement(text)
        if need.marker and not need.marker.evaluate():
            continue
        assert need.specifier.contains(importlib.metadata.version(need.name)), text


def loaded(path: str) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(f"of_the_docs_{Path(path).stem}", ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # as dataclasses want it
    spec.loader.exec_module(module)
    return module


def photographs(pipe: Pipeline, into: Path, count: int) -> list[Path]:
    """Some of the demo's scenes as JPEGs."""
    into.mkdir(parents=True)
    drawn = sorted((pipe.root / "data/raw/demo/images").glob("*.png"))[:count]
    for photo in drawn:
        Pillow.open(photo).save(into / f"{photo.stem}.jpg")
    return drawn


@pytest.fixture
def home(pipe: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """~/pictures, ~/new, few/, ../another-run; the working directory is the toy run."""
    home = Home(pipe)
    photographs(pipe, tmp_path / "home/pictures/holiday 1", 8)
    drawn = photographs(pipe, tmp_path / "home/new", 2)
    shutil.copy(tmp_path / f"home/new/{drawn[0].stem}.jpg", tmp_path / "home/new/photo.jpg")
    shutil.copy(tmp_path / "home/new/photo.jpg", pipe.root)
    photographs(pipe, pipe.root / "few/photos", 2)
    (pipe.root / "few/masks").mkdir()
    for photo in drawn:
        pixels = np.asarray(Pillow.open(photo))
        Pillow.fromarray((pixels.mean(2) > pixels.mean()).astype(np.uint8)).save(pipe.root / f"few/masks/{photo.stem}.png")
    (pipe.root / "few/masks/classes.txt").write_text("background\nbright\n")
    (tmp_path / "another-run").symlink_to(pipe.root)
    pipe.env |= {"HOME": str(tmp_path / "home"), "UNSEG_DEVICE": "cpu"}
    for key, value in pipe.env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(timm_weights, "is_available", lambda _: False)  # `unseg fit` pre-trains, as without a network
    listen = serve.listen
    monkeypatch.setattr(serve, "listen", lambda _: listen(0))  # the default port may be in use
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_: None)  # as if Ctrl-C was pressed at once
    monkeypatch.chdir(pipe.root)
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost")
    for words in (("add", "-A"), ("commit", "-q", "-m", "all"), ("branch", "BRANCH")):
        assert pipe.sh(*git, *words).returncode == 0
    return home


def toy(profile: Path) -> None:
    """A profile at the size of the toy run."""
    tree = yaml.safe_load(profile.read_text())
    for group, values in TINY.items():
        node = tree
        for part in group.split("."):
            node = node.setdefault(part, {})
        node.update(values)
    tree["cluster"] |= {"k": 2, "whiten": "pca"}  # K as `unseg fit` has it for so few photographs
    tree["segmenter"]["lr_milestone"] = 0
    profile.write_text(yaml.safe_dump(tree))


def is_dry(home: Home) -> None:
    """All stages would run on ~/pictures, as params.yaml now has it; `prepare` does. Then back to the finished toy run."""
    stages = set(home.pipe.repro("--dry", "--force-downstream"))
    assert stages == set(home.pipe.stages()) - {"demo"}
    assert "croc" in stages
    assert home.pipe.repro("prepare") in (["prepare"], [])  # from the run-cache, the second time
    assert len(yaml.safe_load(Path("data/images.json").read_text())["images"]) == 8
    assert home.pipe.sh("git", "checkout", "params.yaml").returncode == 0
    home.pipe.repro("prepare")


def test_my_own_folder(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/folder.md, then README's section: pipelines are dry runs, the rest runs on the toy run's models."""
    monkeypatch.setattr(fit, "repro", lambda: is_dry(home))
    monkeypatch.setattr(
        export, "to_onnx", lambda path, *_: (0.0, float(Path(path).write_text("as tests/serving/test_verbs.py has it")))
    )
    linked = []  # whether the photographs are a link, at each `dvc repro`
    for line in [*commands("docs/folder.md"), *commands("README.md", MINE)]:
        remove_photos_before(line, home)
        if line == "dvc repro":
            linked.append(Path("data/raw/photos").is_symlink())
            is_dry(home)
        else:
            home.follow(line)
    assert linked == [True, False]
    said_in_folder_md(home)


def remove_photos_before(line: str, home: Home) -> None:
    """Before a line that links or copies the photographs: remove those of the lines above; the profile is written once more."""
    photos = Path("data/raw/photos")
    if line.endswith("data/raw/photos") or line.startswith("mkdir -p data/raw/photos"):
        photos.unlink() if photos.is_symlink() else shutil.rmtree(photos, ignore_errors=True)
        home.ran.discard("unseg profile folder")


def said_in_folder_md(home: Home) -> None:
    """The blocks of docs/folder.md that are no commands, and the files that its commands made."""
    said, regroup = blocks("docs/folder.md", "yaml")
    Path("said.yaml").write_text(said)
    assert naming.read("said.yaml", 3).names() == {0: "background", 1: "dog"}
    for key, value in yaml.safe_load(regroup).items():
        home.pipe.set(key, value)
    assert home.pipe.repro("regroup@0") == ["regroup@0"]
    (code,) = blocks("docs/folder.md", "python")
    exec(compile(code, "docs/folder.md", "exec"), {})
    for made in ("results/clusters.html", "out/predictions.json", "out-crf/overlays/photo.jpg.png", "out-mine/summary.tsv",
                 "voted.yaml", "model.onnx", "compare.html", "overlay.png", "labels.png"):  # fmt: skip
        assert Path(made).stat().st_size, made


@pytest.mark.slow
def test_my_own_folder_to_the_end(home: Home, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """docs/folder.md: `unseg fit` runs the pipeline; by hand nothing is left to run, and with copies only the report is."""
    toy(Path("profiles/folder.yaml"))
    for name in ("PRETRAIN_STEPS", "SEGMENTER_STEPS"):
        monkeypatch.setattr(fit, name, 2)  # the toy profile's own: what one does by hand is then the same run
    reran = []  # at each `dvc repro`
    for line in commands("docs/folder.md"):
        remove_photos_before(line, home)
        if line == "ln -s ~/pictures data/raw/photos":
            Path("params.yaml").unlink()
        if line == "dvc repro":
            reran.append(home.pipe.repro())
        home.follow(line)
        if line == "unseg fit ~/pictures":
            assert "models/segmenter-r1.safetensors" in capfd.readouterr().out
            assert len(yaml.safe_load(Path("data/images.json").read_text())["images"]) == 8
    assert reran == [[], ["report"]]  # in between the clusters got names
    assert not Path("data/raw/photos").is_symlink()
    said_in_folder_md(home)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page) and page != "docs/folder.md"])
def test_the_other_readers(home: Home, page: str) -> None:
    """README but for two sections, and the other pages, on the finished demo."""
    pipe, shipped = home.pipe, Path("params.yaml").read_bytes()
    voc(pipe, home.around / "data/VOCdevkit/VOC2012")
    mine = set(commands("README.md", MINE)) if page == "README.md" else set()
    for line in commands(page):
        if line.startswith(SHARED) or line in mine:
            continue
        if Path("params.yaml").read_bytes() != shipped and line == "dvc repro":
            assert pipe.repro("prepare") in (["prepare"], [])
            assert len(yaml.safe_load(Path("data/images.json").read_text())["images"]) == 4
            assert "train_detector" in home.bash("dvc dag")
            Path("params.yaml").write_bytes(shipped)
            pipe.repro("prepare")  # back to the demo
            continue
        home.follow(line)
        if line == GPU and find_spec("pydensecrf") is None:  # the paper's CRF: docs/papers.md
            pipe.set("crf.method", "conv")
        if line == GPU:
            home.ran -= {"dvc repro", GPU}
    if page == "docs/evaluation.md":
        assert Path("compared.html").stat().st_size


def test_backbones_md_says_how_backbones_are_listed() -> None:
    (text,) = blocks("docs/backbones.md", "yaml")
    assert set(yaml.safe_load(text)) == {"backbones", "sets", "videos"}


@pytest.mark.parametrize("line", HELP)
def test_a_benchmark_has_help(warm: Pipeline, line: str) -> None:
    done = warm.sh("bash", "-ec", f"{line} --help")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", LOADED)
def test_a_benchmark_can_be_loaded(line: str) -> None:
    loaded(LOADED[line])


@pytest.mark.parametrize("line", SHRUNK)
def test_a_benchmark_runs(home: Home, line: str) -> None:
    path, sizes, given = SHRUNK[line]
    module = loaded(path)
    for key, value in sizes.items():
        assert hasattr(module, key)
        setattr(module, key, value)
    module.main(*given)


def test_every_page_and_every_exception_is_there() -> None:
    """What is listed above is still in the pages; no page has a kind of block that is not looked at."""
    lines = {line for page in PAGES for line in commands(page)}
    assert {*INSTALL, *ELSEWHERE, *HELP, *LOADED, *SHRUNK, GPU} <= lines
    assert commands("README.md", MINE)
    assert {line for line in lines if line.startswith(SHARED)} <= set(commands("README.md", "Change, sweep, share"))
    for page in PAGES:
        kinds = re.findall(r"^```(\w*)\n.*?^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
        assert set(kinds) <= {"sh", "yaml", "python"}, page


def voc(pipe: Pipeline, root: Path) -> None:
    """PASCAL VOC's layout, of scenes."""
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    drawn = sorted((pipe.root / "data/raw/demo/images").glob("*.png"))[:4]
    for photo in drawn:
        image = Pillow.open(photo)
        image.save(root / f"JPEGImages/{photo.stem}.jpg")
        Pillow.new("P", image.size).save(root / f"SegmentationClass/{photo.stem}.png")
    for name, part in (("trainaug", drawn[:2]), ("train", drawn[:2]), ("val", drawn[2:])):
        (root / f"ImageSets/Segmentation/{name}.txt").write_text("".join(f"{p.stem}\n" for p in part))


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py")))
def test_a_benchmark_runs_as_a_file(name: str) -> None:
    """`python benchmarks/x.py` has benchmarks/, not its parent, on sys.path: the parent is put there first."""
    tree = ast.parse((ROOT / f"benchmarks/{name}.py").read_text())
    lines = [ast.unparse(node) for node in tree.body]
    asked = [i for i, text in enumerate(lines) if re.match(r"(from|import) (unseg|benchmarks)\b", text)]
    assert asked or name == "scenes", "every benchmark measures unseg"  # scenes imports it from the checkout of --tree
    if asked:
        assert lines.index("sys.path.insert(0, str(ROOT))") < asked[0]
