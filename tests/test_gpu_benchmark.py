"""benchmarks/gpu.py at toy size on the CPU: it ends in time, survives a part that fails, and keeps weights that load."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from unseg.engine import training
from unseg.models import vit, vit_files

ROOT = Path(__file__).parents[1]


def run(out: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "benchmarks/gpu.py", "--small", "--minutes", "2", "--out", str(out), *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=170)
    assert (out / "gpu.json").exists(), done.stderr[-2000:]
    return done.returncode, json.loads((out / "gpu.json").read_text()), (out / "gpu.txt").read_text()


def check_speed(record: dict[str, Any]) -> None:
    assert record["images_per_second"] > 0
    assert record["gflop_per_image"] > 0
    assert 0 <= record["waiting_for_data"] <= 1


@pytest.mark.slow
def test_a_part_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    archive = tmp_path / "broken.zip"
    archive.write_bytes(b"no zip")
    code, results, text = run(tmp_path / "out", "--parts", "pretrain", "mine", "student", "--zips", str(archive))
    assert code == 1
    assert "BadZipFile" in results["pretrain"]["error"]
    for name in ("mine", "student"):
        check_speed(results[name])
    assert "FAILED" in text
    assert "BadZipFile" in (tmp_path / "out/log.txt").read_text()


@pytest.mark.slow
def test_all_parts(tmp_path: Path) -> None:
    code, results, _ = run(tmp_path)
    assert code == 0, results
    assert list(results) == ["tests", *gpu.PARTS]
    for name in gpu.SPEED:
        check_speed(results[name])
    assert results["tests"]["passed"] > 0
    gpu.main(["--join", str(tmp_path), str(tmp_path / "vit.safetensors")])
    vit.load(vit.Backbone(str(tmp_path / "vit.safetensors"), None, None, None, None))


def test_weights_in_several_files_are_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "MAX_FILE", 30_000)
    shape = vit.Shape(patch=8, width=32, depth=2, heads=2)
    net = vit.build(shape, 32)
    training.write_weights(tmp_path / "croc.safetensors", net, {"kind": "vit", "backbone": vars(shape)})
    names = gpu.split_weights(tmp_path / "croc.safetensors", tmp_path)
    assert len(names) > 1
    assert all((tmp_path / name).stat().st_size < 34_000 for name in names)
    joined = str(tmp_path / "joined.safetensors")
    gpu.join(tmp_path, Path(joined))
    state = vit.load(vit.Backbone(joined, None, None, None, None)).state_dict()
    for key, x in net.state_dict().items():
        torch.testing.assert_close(state[key], x.half().float(), rtol=0, atol=0)
    assert vit_files.read_metadata(joined)["backbone"] == vars(shape)
    (tmp_path / names[0]).unlink()
    with pytest.raises(SystemExit, match="not all"):
        gpu.join(tmp_path, Path(joined))


@pytest.mark.parametrize("minutes", [1, 4, 9])
def test_parts_that_use_all_their_time_end_in_time(minutes: float) -> None:
    parts, left = ["tests", *gpu.PARTS], 60.0 * minutes - gpu.RESERVE
    for name in parts:
        limit, seconds = gpu.part_time(name, parts, left, False)
        assert seconds < limit <= left
        left -= limit
    assert left >= 0
    assert limit > 100 or minutes < 9  # pretrain, after all others took all they may
