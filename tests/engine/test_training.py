"""The training loop: order of examples, checkpoints, histories, weights (unseg/engine/training.py); precision."""

import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import factories
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from stages import pretrain, train_detector, train_segmenter
from unseg.core.console import InputError
from unseg.core.label_maps import write_label_maps
from unseg.core.storage import write_json
from unseg.detection import detector
from unseg.engine import distributed, training
from unseg.engine.precision import autocast, check_not_emulated
from unseg.engine.training import Checkpoint, EpochSampler, fit, mix_seeds, steps_per_epoch, write_history, write_weights
from unseg.pretraining import croc_training
from unseg.segmentation import segmenter

COUNT, BATCH, STEPS = 10, 4, 7


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSEG_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("UNSEG_WORKERS", "0")
    monkeypatch.setenv("UNSEG_CHECKPOINT_SECONDS", "0")  # after every step


class Noisy(Dataset[Any]):
    """(index, seed) to a vector that depends on both, like an augmented image."""

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, draw: tuple[int, int]) -> Tensor:
        index, seed = draw
        return index + torch.randn(4, generator=torch.Generator().manual_seed(seed))


class Killed(BaseException):
    pass


def learn(
    kill_at: int | None = None, steps: int = STEPS, poison: int | None = None
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """A small training with momentum, batch norm, dropout and augmentation."""
    with Checkpoint("toy", [1], []) as checkpoint:
        torch.manual_seed(5)
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)

        def step(number: int, batch: Tensor) -> dict[str, Tensor]:
            if number == kill_at:
                raise Killed
            loss = (net(batch) - batch.sum(1, keepdim=True)).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss * (math.nan if number == poison else 1), "twice": 2 * loss}

        values = fit("toy", checkpoint, {"net": net, "optimizer": optimizer}, Noisy(), BATCH, steps, 3, step)
    return {k: v.clone() for k, v in net.state_dict().items()}, values


def scratch_files(tmp_path: Path) -> list[Path]:
    return [p for p in (tmp_path / "scratch").rglob("*") if p.is_file()]


@pytest.mark.parametrize("kill_at", [1, 2, 3, 6])
def test_a_killed_run_resumes_with_the_same_result(tmp_path: Path, kill_at: int) -> None:
    weights, values = learn()
    assert not scratch_files(tmp_path)  # removed at the end
    with pytest.raises(Killed):
        learn(kill_at)
    assert [p.name for p in scratch_files(tmp_path) if p.suffix == ".pt"] == ["checkpoint.pt"]
    again, resumed = learn()
    assert resumed == values
    assert len(values) == STEPS
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[k], weights[k]) for k in weights)


def test_a_resumed_run_skips_finished_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Killed):
        learn(5)
    with pytest.raises(Killed):
        learn(5)  # resumes at this step
    assert capsys.readouterr().err.count("toy 5/7") == 2


def test_checkpoints_are_rare_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNSEG_CHECKPOINT_SECONDS")
    with pytest.raises(Killed):
        learn(5)
    assert [p.name for p in scratch_files(tmp_path)] == ["lock"]
    assert learn()[1] == learn()[1]


def test_randomness_does_not_depend_on_the_global_generator() -> None:
    torch.manual_seed(1)
    first = learn()
    torch.manual_seed(2)
    torch.rand(7)
    second = learn()
    assert first[1] == second[1]


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half a checkpoint"])
def test_a_damaged_checkpoint_starts_again(tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes) -> None:
    weights, values = learn()
    with pytest.raises(Killed):
        learn(4)
    (file,) = (tmp_path / "scratch").rglob("checkpoint.pt")
    file.write_bytes(damage or file.read_bytes()[:-200])
    again, resumed = learn()
    assert "checkpoint.pt cannot be read" in capsys.readouterr().out
    assert resumed == values
    assert all(torch.equal(again[k], weights[k]) for k in weights)


def test_the_same_run_twice_at_once(tmp_path: Path) -> None:
    with (
        Checkpoint("toy", [1], []),
        pytest.raises(InputError, match="in use: another run computes the same"),
        Checkpoint("toy", [1], []),
    ):
        pass
    with Checkpoint("toy", [1], []):  # unlocked
        pass
    with Checkpoint("toy", [1], []), Checkpoint("toy", [2], []), Checkpoint("other", [1], []):
        pass


def test_another_process_holds_the_lock(tmp_path: Path) -> None:
    code = "from unseg.engine.checkpoint import Checkpoint\nwith Checkpoint('toy', [1], []):\n print('in', flush=True)\n input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(InputError, match="in use"), Checkpoint("toy", [1], []):
            pass
        other.kill()  # as kill -9: the system releases the lock
        other.wait()
        with Checkpoint("toy", [1], []):
            pass


def test_the_folder_depends_on_settings_and_inputs(tmp_path: Path) -> None:
    file, folder = tmp_path / "a.json", tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    file.write_text("1")
    (folder / "deep" / "x.png").write_text("1")

    def key(*settings: Any, stage: str = "toy") -> Path:
        return Checkpoint(stage, settings, [file, folder]).path

    first = key({"lr": 0.1}, 3)
    assert first == key({"lr": 0.1}, 3)
    others = {key({"lr": 0.2}, 3), key({"lr": 0.1}, 4), key({"lr": 0.1}, 3, stage="other")}
    file.write_text("2")
    others.add(key({"lr": 0.1}, 3))
    file.write_text("1")
    assert key({"lr": 0.1}, 3) == first
    (folder / "deep" / "y.png").write_text("1")
    others.add(key({"lr": 0.1}, 3))
    assert len(others | {first}) == 6


def test_an_input_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json cannot be read: No such file"):
        Checkpoint("toy", [], [tmp_path / "none.json"])


@pytest.mark.parametrize(
    ("stage", "module"), [(train_detector, detector), (train_segmenter, segmenter), (pretrain, croc_training)]
)
def test_initial_weights_of_other_content_start_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: ModuleType, module: ModuleType
) -> None:
    """The file of a checkpoint's initial weights may have been fetched or trained again."""
    monkeypatch.chdir(tmp_path)
    params, weights = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text()), Path("init.safetensors")
    for group in ("detector", "segmenter", "croc"):
        params[group]["init"] = str(weights)
    Path("params.yaml").write_text(yaml.safe_dump(params))
    Path("photos").mkdir()
    write_json("images.json", {"images": [{"id": 1, "file_name": "a.png", "height": 1, "width": 1, "split": "train"}]})
    write_json("instances.json", {"annotations": [factories.instance(np.ones((1, 1), bool)).to_coco()]})
    write_label_maps("labels.zip", [])
    second = {train_detector: ["instances.json"], train_segmenter: ["labels.zip"], pretrain: []}
    paths: list[Path] = []

    def begin(*given: Any) -> None:
        paths.extend(x.path for x in given if isinstance(x, Checkpoint))
        raise Killed

    monkeypatch.setattr(module, "train", begin)
    monkeypatch.setattr(croc_training, "starting_point", lambda _: None)  # no ViT is in the file
    for content in (1, 2, 1):
        save_file({"x": torch.tensor(content)}, weights)
        with pytest.raises(Killed):
            stage.main("images.json", *second[stage], "photos", "w", "h.tsv")
    assert paths[0] == paths[2] != paths[1]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="toy: the loss is nan at step 4; lower its lr"):
        learn(poison=4)
    (file,) = (tmp_path / "scratch").rglob("checkpoint.pt")
    assert len(torch.load(file, weights_only=True)["values"]) == 4  # of the steps before


def test_the_step_of_a_bad_loss_is_named_though_losses_are_read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSEG_CHECKPOINT_SECONDS", "1000")
    with pytest.raises(InputError, match="loss is nan at step 3;"):
        learn(poison=3)
    with pytest.raises(InputError, match="loss is nan at step 23;"):
        learn(poison=23, steps=50)


def test_history_of_more_steps_than_a_flush_holds() -> None:
    assert len(learn(steps=47)[1]) == 47


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 99), st.integers(0, 5), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_order(count: int, batch: int, seed: int, start: int, more: int) -> None:
    steps = start + more
    batches = list(EpochSampler(count, batch, seed, 0, steps))
    assert len(EpochSampler(count, batch, seed, start, steps)) == more
    assert list(EpochSampler(count, batch, seed, start, steps)) == batches[start:]  # a resumed run
    per_epoch = steps_per_epoch(count, batch)
    for epoch in range(steps // per_epoch):
        drawn = [i for b in batches[epoch * per_epoch : (epoch + 1) * per_epoch] for i, _ in b]
        assert len(set(drawn)) == len(drawn) == per_epoch * min(batch, count)
        assert set(drawn) <= set(range(count))
        if count % min(batch, count) == 0:
            assert set(drawn) == set(range(count))  # each example once in an epoch
    seeds = [s for b in batches for _, s in b]
    assert len(set(seeds)) == len(seeds)  # no augmentation is repeated


def test_epochs_and_seeds_shuffle_differently() -> None:
    orders = [[i for b in EpochSampler(20, 20, seed, epoch, epoch + 1) for i, _ in b] for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(o) for o in orders}) == 4
    assert all(sorted(o) == list(range(20)) for o in orders)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_batch(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    alone = list(EpochSampler(20, 6, 1, 2, 9))
    monkeypatch.setattr(distributed, "world", lambda: world)
    parts = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda r=rank: r)
        parts.append(list(EpochSampler(20, 6, 1, 2, 9)))
    for step, whole in enumerate(alone):
        assert sorted(x for p in parts for x in p[step]) == sorted(whole)
        assert {len(p[step]) for p in parts} == {6 // world}


def test_steps_of_an_epoch() -> None:
    assert [steps_per_epoch(n, 4) for n in (1, 3, 4, 7, 8)] == [1, 1, 1, 1, 2]


def test_mix_seeds() -> None:
    drawn = {mix_seeds(a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(drawn) == 125
    assert all(0 <= x < 2**63 for x in drawn)
    assert mix_seeds(1, 2, 3) == mix_seeds(1, 2, 3) != mix_seeds(1, 3, 2)


def test_history_has_means_of_equal_stretches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "HISTORY_ROWS", 3)
    write_history(tmp_path / "h.tsv", [{"loss": float(i), "other": 1.0} for i in range(7)])
    rows = [line.split("\t") for line in (tmp_path / "h.tsv").read_text().splitlines()]
    assert rows == [["step", "loss", "other"], ["3", "1", "1"], ["6", "4", "1"], ["7", "6", "1"]]
    write_history(tmp_path / "short.tsv", [{"loss": 0.123456789}])
    assert (tmp_path / "short.tsv").read_text() == "step\tloss\n1\t0.123457\n"


def test_weights_are_written_the_same_each_time(tmp_path: Path) -> None:
    net = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for name in ("a", "b"):
        write_weights(tmp_path / name, net, {"kind": "toy", "k": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with safe_open(tmp_path / "a", "pt") as file:
        assert json.loads(file.metadata()["unseg"]) == {"format": training.FORMAT, "k": 1, "kind": "toy"}
        assert torch.equal(file.get_tensor("weight"), net.weight)


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    write_history(tmp_path / "h.tsv", [{"loss": 1.0}])
    write_weights(tmp_path / "w", nn.Linear(1, 1), {})
    assert not list(tmp_path.iterdir())


def test_cosine() -> None:
    assert [training.cosine_schedule(1, 0.2, s) for s in (0, 0.5, 1, 1.5)] == pytest.approx([1, 0.6, 0.2, 0.2])


def test_autocast_to_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    def kind(precision: str) -> torch.dtype:
        with autocast(torch.device("cpu"), precision):
            return nn.functional.linear(torch.ones(1, 2), torch.ones(2, 2)).dtype

    assert [kind("fp32"), kind("bf16")] == [torch.float32, torch.bfloat16]
    for name, able, allowed in (
        ("avx512_bf16", 0, "AVX512"),
        ("avx512_bf16", 1, "AVX512"),
        ("avx512_bf16", 1, "AVX2"),
        ("bf16", 1, "SVE256"),
    ):
        set_cpu(monkeypatch, {name: bool(able), "avx2": True}, allowed)
        assert kind("auto") == (torch.bfloat16 if able and allowed != "AVX2" else torch.float32)


def set_cpu(monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], allowed: str = "AVX512") -> None:
    """A CPU with these capabilities, of which torch may use those of `allowed` (ATEN_CPU_CAPABILITY)."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: allowed)


def test_emulated_bf16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    precisions, cpu = {"croc.precision": "auto", "mine.precision": "bf16", "segmenter.precision": "fp32"}, torch.device("cpu")
    set_cpu(monkeypatch, {"avx512_bf16": False, "avx2": True})
    with pytest.raises(InputError, match=r"^mine\.precision: bf16 is emulated on this CPU"):
        check_not_emulated(precisions, cpu)
    check_not_emulated(precisions | {"mine.precision": "auto"}, cpu)
    check_not_emulated(precisions, torch.device("cuda"))
    set_cpu(monkeypatch, {"avx512_bf16": True})
    check_not_emulated(precisions, cpu)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc gives freed memory back at once")
def test_freed_memory_is_used_again() -> None:
    script = """
import resource
from unseg.core import console
console.run(lambda: None)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (64 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000  # of 16,384 pages
