"""A throw-away clone of the pipeline at toy size, in which one thing is changed and the stages that run are read back."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from filelock import FileLock
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
PYTHON = Path(sys.executable)
SERVERS: list[subprocess.Popen[bytes]] = []  # kept, or Python warns that they still run
TINY = {
    "demo": {"train": 10, "val": 4, "size": 64},
    "backbone": {"width": 32, "depth": 2, "heads": 2},
    "embedder": {"width": 32, "depth": 2, "heads": 2},
    "croc": {"epochs": 1, "batch": 4, "outputs": 16, "outputs_centroid": 16, "hidden": 32, "bottleneck": 16, "precision": "fp32"},
    "croc.views": {"size": 32},
    "croc.clustering": {"tokens": 6},
    "mine": {"resize": 64, "head": "models/foreground.safetensors"},
    "foreground": {"heads": ["foreground"], "size": 32, "iterations": 3, "batch": 4},
    "embed": {"resize": 32, "longest": 64},
    "cluster": {"k": 3, "starts": 1, "components": 4, "neighbors": 2},
    "detector": {"width": 8, "fpn": 16, "hidden": 16, "short_sides": [64], "long_side": 64, "rois": 8, "proposals": 10,
                 "iterations": 2, "batch": 2, "lr_steps": [1]},
    "detect": {"short_side": 64, "max_detections": 3},
    "segmenter": {"width": 8, "size": 32, "epochs": 1, "batch": 4, "precision": "fp32"},
    "linear": {"epochs": 1, "batch": 4, "crf": True},
    "crf": {"iterations": 2},
    "choose": {"ks": [2], "repeats": 2},
    "report": {"pictures": 2, "exemplars": 2},
}  # fmt: skip


class Pipeline:
    def __init__(self, root: Path, commands: Path = PYTHON.parent) -> None:
        """commands: the folder of the `python` and `dvc` that are run, here and by DVC: the real ones, or a fork server's."""
        self.root = root
        self.env = {
            **os.environ,
            "PATH": os.pathsep.join([str(commands), str(PYTHON.parent), os.environ["PATH"]]),
            "OMP_NUM_THREADS": "1",
            "UNSEG_WORKERS": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def sh(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True, env=self.env)

    def repro(self, *arguments: str) -> list[str]:
        """`dvc repro`; the names of the stages that ran (--dry: would run), in their order."""
        done = self.sh("dvc", "repro", *arguments)
        assert done.returncode == 0, done.stderr + done.stdout
        return re.findall(r"Running stage '(?:[^':]*:)?([^']+)'", done.stdout + done.stderr)

    def set(self, key: str, value: object) -> None:
        self.update({key: value})

    def update(self, values: Mapping[str, object]) -> None:
        """Change values of params.yaml, by dotted keys that it has."""
        yaml = YAML()
        file = self.root / "params.yaml"
        document = yaml.load(file.read_text())
        for key, value in values.items():
            node = document
            *head, last = key.split(".")
            for part in head:
                node = node[part]
            assert last in node, key
            node[last] = value
        with file.open("w") as out:
            yaml.dump(document, out)

    def stages(self) -> list[str]:
        """All stages that `dvc repro` knows, without the names of their files."""
        listed = self.sh("dvc", "stage", "list", "--all", "--name-only")
        assert listed.returncode == 0, listed.stderr
        return [name.split(":")[-1] for name in listed.stdout.split()]


def clone(into: Path, commands: Path = PYTHON.parent) -> Pipeline:
    """The files of this working tree that Git knows or would take, at toy size, outputs not included."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not re.match(r"tests/|results/(?!backbones/)", name) and not name.endswith("dvc.lock"):
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, into / name)
    pipeline = Pipeline(into, commands)
    pipeline.update({f"{group}.{key}": value for group, values in TINY.items() for key, value in values.items()})
    assert pipeline.sh("git", "init", "-q").returncode == 0
    return pipeline


def fork_server(folder: Path) -> Path:
    """Start tests/pipeline/forkserver.py, which ends with these tests; the folder of its commands."""
    if sys.platform != "linux":
        return PYTHON.parent
    folder.mkdir(parents=True)
    tests = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    words = [PYTHON, ROOT / "tests/pipeline/forkserver.py", folder, str(tests)]
    with (folder / "log").open("w") as log:
        SERVERS.append(subprocess.Popen(words, stdout=log, stderr=log, stdin=subprocess.DEVNULL))
    while not (folder / "ready").exists():
        assert SERVERS[-1].poll() is None, (folder / "log").read_text()
        time.sleep(0.05)
    return folder / "bin"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of pytest-xdist have in common."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def forked(shared: Path) -> Path:
    """The commands of a fork server, one for all workers."""
    with FileLock(shared / "forks.lock"):
        commands = shared / "forks/bin"
        return commands if commands.exists() else fork_server(shared / "forks")


@pytest.fixture(scope="session")
def warm(shared: Path, forked: Path) -> Pipeline:
    """Every stage has run once. Shared by the workers of pytest-xdist; not to be changed."""
    root = shared / "warm"
    with FileLock(f"{root}.lock"):
        if not (root / "done").exists():
            shutil.rmtree(root, ignore_errors=True)
            pipeline = clone(root, forked)
            assert sorted(pipeline.repro()) == sorted(pipeline.stages())
            (root / "done").touch()
    return Pipeline(root, forked)


@pytest.fixture
def pipe(warm: Pipeline, forked: Path, tmp_path: Path) -> Pipeline:
    root = tmp_path / "repo"
    shutil.copytree(warm.root, root, symlinks=True)
    return Pipeline(root, forked)
