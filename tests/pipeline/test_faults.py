"""Full disk, folders without write access, damaged progress, SIGTERM, jumping clocks: one line, and no incomplete file.

tests/pipeline/kills.py kills the whole pipeline at random moments.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests import fuzz, mutations
from unseg.core import console, image_index, label_maps, storage
from unseg.core.console import InputError
from unseg.engine import training
from unseg.engine.checkpoint import Checkpoint, ResultStore, code_hash

ROOT = Path(__file__).parents[2]
WRITERS: dict[str, Callable[[Path], None]] = {
    "json": lambda path: storage.write_json(path, [{"a": 1}] * 9999),
    "labels": lambda path: label_maps.write_label_maps(path, [("a", np.zeros((4, 4), np.uint8))] * 1),
    "arrays": lambda path: storage.write_npz(path, a=np.zeros(9999)),
    "weights": lambda path: training.write_weights(path, nn.Linear(99, 99), {"kind": "toy"}),
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSEG_SCRATCH", str(tmp_path / "scratch"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, Linux's disk that is full")
@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    out.write_text("before")
    part = tmp_path / f".out.{os.getpid()}.part"
    part.symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"out cannot be written: .*No space left on device.*; free space and run again"):
        WRITERS[kind](out)
    assert out.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, Linux's disk that is full")
def test_a_full_disk_under_a_checkpoint() -> None:
    full = pytest.raises(InputError, match=r"checkpoint\.pt cannot be written")
    with full, Checkpoint("toy", [], []) as checkpoint:
        checkpoint.save({"step": 1})
        (checkpoint.path / f".checkpoint.pt.{os.getpid()}.part").symlink_to("/dev/full")
        checkpoint.save({"step": torch.zeros(9999)})
    with Checkpoint("toy", [], []) as checkpoint:
        assert checkpoint.load() == {"step": 1}  # the previous one


def test_no_room_for_results() -> None:
    full = pytest.raises(InputError, match=r"cannot be written \(.*full\); correct that")
    with full, Checkpoint("toy", [], []) as checkpoint, ResultStore(checkpoint) as results:
        results.put(1, b"one")
        results.complete()
        results.connection.execute("pragma max_page_count = 3")
        results.put(2, b"x" * 99999)
    with Checkpoint("toy", [], []) as checkpoint, ResultStore(checkpoint) as results:
        assert results.done == {1}


@pytest.mark.skipif(not Path("/sys/kernel").exists(), reason="no /sys, a folder that not even root can write in")
@pytest.mark.parametrize("folder", ["/sys", "/sys/new"])
@pytest.mark.parametrize("kind", WRITERS)
def test_a_folder_that_cannot_be_written(kind: str, folder: str) -> None:
    with pytest.raises(InputError, match=f"{folder}/out cannot be written: (Permission|Operation) "):
        WRITERS[kind](Path(folder) / "out")


def test_scratch_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNSEG_SCRATCH", str(tmp_path / "file"))
    with (
        pytest.raises(InputError, match="cannot be written: Not a directory; correct that, or set UNSEG_SCRATCH"),
        Checkpoint("t", [], []),
    ):
        pass


def test_other_errors_are_not_hidden(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="photograph"), storage.atomic_write(tmp_path / "out"):
        (tmp_path / "photograph").read_bytes()


def test_temporary_files_of_killed_processes_only_are_removed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    dead, alive = tmp_path / f".out.json.{gone.pid}.part", tmp_path / f".out.json.{os.getppid()}.part"
    other = tmp_path / f".out.json.gz.{gone.pid}.part"
    for file in (dead, alive, other):
        file.touch()
    storage.write_json(tmp_path / "out.json", [])
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([alive.name, other.name, "out.json"])


def test_sigterm(tmp_path: Path) -> None:
    program = (
        "import time\nfrom unseg.core import console\nfrom unseg.core import storage\n"
        "def main():\n    with storage.atomic_write('out') as part:\n        part.touch()\n"
        "        print('in', flush=True)\n        time.sleep(60)\nconsole.run(main)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stdout=pipe, stderr=pipe, text=True, env=env) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "in\n"
        run.send_signal(signal.SIGTERM)
        text = run.communicate(timeout=60)[1]
    assert run.returncode == 1
    assert text == "error: ended by SIGTERM; the same command resumes it\n"
    assert not list(tmp_path.glob(".*"))


def extract(numbers: list[int], stop: int | None = None) -> tuple[list[int], list[bytes]]:
    """Batches of two, ended before the number `stop`. Returns the numbers of this run and all results."""
    done = []
    with Checkpoint("toy", [], []) as checkpoint, ResultStore(checkpoint) as results:
        for batch in results.remaining([numbers[i : i + 2] for i in range(0, len(numbers), 2)], lambda n: n):
            for n in batch:
                if n == stop:
                    raise KeyboardInterrupt
                results.put(n, f"result {n}".encode())
                done.append(n)
        results.complete()
        return done, list(results.read(numbers))


NUMBERS = [5, 3, 11, 7, 2, 13]
WANT = [f"result {n}".encode() for n in NUMBERS]


def test_results_resume_by_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSEG_CHECKPOINT_SECONDS", "0")
    assert extract(NUMBERS) == (NUMBERS, WANT)
    assert not list((tmp_path / "scratch").rglob("*.sqlite"))
    with pytest.raises(KeyboardInterrupt):
        extract(NUMBERS, 7)
    assert extract(NUMBERS) == ([11, 7, 2, 13], WANT)  # the whole batch, so that its results are the same


def test_results_are_safe_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSEG_CHECKPOINT_SECONDS", "60")
    with pytest.raises(KeyboardInterrupt):
        extract(NUMBERS, 13)
    assert extract(NUMBERS) == (NUMBERS, WANT)


@pytest.mark.parametrize("damage", [b"", b"SQLite format 3\0 and no more", None])
def test_damaged_results_are_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: bytes | None
) -> None:
    monkeypatch.setenv("UNSEG_CHECKPOINT_SECONDS", "0")
    with pytest.raises(KeyboardInterrupt):
        extract(NUMBERS, 2)
    (file,) = (tmp_path / "scratch").rglob("*.sqlite")
    file.with_name("results-1.sqlite").write_bytes(file.read_bytes()[:5000])  # of a second process
    if damage is not None:
        file.write_bytes(damage)
    assert extract(NUMBERS) == (NUMBERS if damage is not None else [2, 13], WANT)
    assert "computing its results again" in capsys.readouterr().out


def test_progress_of_other_code_is_not_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Checkpoint("toy", [], []).path
    monkeypatch.setattr("unseg.engine.checkpoint.code_hash", lambda: code_hash()[::-1])
    assert Checkpoint("toy", [], []).path != before


def unfinished(stage: str, settings: list[int]) -> Path:
    """The folder of a run that ended after its first checkpoint."""
    checkpoint = Checkpoint(stage, settings, [])
    checkpoint.__enter__()
    checkpoint.save({"step": 1})
    checkpoint.__exit__(KeyboardInterrupt)
    return checkpoint.path


def test_progress_of_other_code_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as older:
        older.setattr("unseg.engine.checkpoint.code_hash", lambda: "0123456789ab")
        gone = [unfinished("toy", [1]), unfinished("toy", [2])]
        held = Checkpoint("toy", [3], [])
        held.__enter__()
        other_stage, foreign, link = unfinished("other", [1]), unfinished("toy", [4]), unfinished("toy", [5])
    (foreign / "notes.txt").write_text("mine")
    outside = tmp_path / "outside"
    link.rename(outside)
    link.symlink_to(outside)
    linked_file = link.with_name("0123456789ab-" + "0" * 16)
    linked_file.mkdir()
    (linked_file / "checkpoint.pt").symlink_to(outside / "checkpoint.pt")
    unnamed = link.with_name("f" * 16)  # of an early version of unseg
    unnamed.mkdir()
    (unnamed / "lock").touch()
    stranger = link.with_name("photographs")
    stranger.mkdir()
    experiment = unfinished("toy", [6])
    text = capsys.readouterr().out
    assert text.startswith(f"{link.parent}: 3 unfinished runs of another version of the code removed (0.0 MB)\n")
    assert text.count("\n") == 1
    assert not any(folder.exists() for folder in (*gone, unnamed))
    kept = (held.path, other_stage, foreign / "notes.txt", foreign / "checkpoint.pt", link, linked_file, stranger, experiment)
    assert all(path.exists() for path in (*kept, outside / "checkpoint.pt"))
    held.__exit__(KeyboardInterrupt)
    with Checkpoint("toy", [7], []):
        assert "1 unfinished run of another version of the code" in capsys.readouterr().out
    assert not held.path.exists()
    with Checkpoint("toy", [6], []) as checkpoint:  # other params, same code
        assert checkpoint.load() == {"step": 1}


def test_a_stage_folder_that_is_a_link_is_not_cleaned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "elsewhere" / ("f" * 16)).mkdir(parents=True)
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch/toy").symlink_to(tmp_path / "elsewhere")
    with Checkpoint("toy", [], []):
        pass
    assert (tmp_path / "elsewhere" / ("f" * 16)).exists()
    assert capsys.readouterr().out == ""


def test_jumping_clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter(range(10**9, 0, -(10**6)))
    monkeypatch.setattr(time, "time", lambda: float(next(jumps)))
    monkeypatch.setattr(time, "time_ns", lambda: next(jumps) * 10**9)
    monkeypatch.setenv("UNSEG_CHECKPOINT_SECONDS", "0")
    with pytest.raises(KeyboardInterrupt):
        extract(NUMBERS, 13)
    assert extract(NUMBERS) == ([2, 13], WANT)
    with console.Meter(3, "toy") as meter:
        meter.step()
    for name in ("a", "b"):
        storage.write_npz(tmp_path / name, a=np.zeros(3))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_bombs_among_label_maps(tmp_path: Path) -> None:
    """Members too large for the image are not decoded: the first has no pixels, the second is 3 MB of zeros."""
    image = image_index.ImageRecord(1, "a", 16, 16, "train")
    png = bytearray(storage.encode_png(np.zeros((16, 16), np.uint8)))
    png[16:24] = (9000).to_bytes(4, "big") * 2
    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.png", bytes(png))
    with pytest.raises(InputError, match=r"a\.png is \(9000, 9000\), its image \(16, 16\)"):
        label_maps.LabelMaps(tmp_path / "x.zip")[image]
    with zipfile.ZipFile(tmp_path / "y.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(3_000_000))
    with pytest.raises(InputError, match=r"a\.png cannot be read \(3000000 bytes are no label map\)"):
        label_maps.LabelMaps(tmp_path / "y.zip")[image]


@pytest.mark.filterwarnings("ignore")
def test_some_hundred_mutated_inputs() -> None:
    """`python -m tests.fuzz` tries 20,000."""
    assert fuzz.run(350, 1) == {}


def test_the_code_hash_covers_every_module_and_stage(tmp_path: Path) -> None:
    for name in ("unseg", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    program = """
from pathlib import Path
from unseg.engine.checkpoint import code_hash
hashes = [code_hash()]
for file in ("unseg/core/masks.py", "unseg/serving/cli/fit.py", "unseg/engine/training.py", "stages/mine.py"):
    Path(file).write_text(Path(file).read_text() + "#")
    code_hash.cache_clear()
    hashes.append(code_hash())
assert len(set(hashes)) == 5, hashes
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_texts_of_planted_faults_occur() -> None:
    assert [f.name for f in mutations.FAULTS if f.old not in (ROOT / f.file).read_text()] == []
