"""TensorBoard event files (unseg/engine/event_log.py): curves, pictures, resuming, and that they change no training."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import factories
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from unseg.core.console import InputError
from unseg.engine import distributed, environment, event_log, training
from unseg.engine.checkpoint import Checkpoint

COUNT, BATCH = 6, 2


@pytest.fixture(autouse=True)
def _here(scratch_on_cpu: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNSEG_LOGDIR", str(tmp_path / "logs"))
    monkeypatch.setenv("UNSEG_CHECKPOINT_SECONDS", "0")  # after every step


class Numbers(Dataset[Any]):
    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, draw: tuple[int, int]) -> Tensor:
        return torch.full((4,), draw[0] / COUNT)


class Killed(BaseException):
    pass


def learn(steps: int, kill_at: int | None = None, lr: float = 0.1) -> tuple[nn.Sequential, list[dict[str, float]]]:
    """A small training with batch norm and dropout. Its pictures are drawn with random numbers, as bright as the output."""
    settings = [factories.image(), lr, None]
    with Checkpoint("toy", settings, []) as checkpoint:
        torch.manual_seed(5)
        net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))
        net[1].eval()  # as frozen stages are
        optimizer = torch.optim.SGD(net.parameters(), lr)

        def step(number: int, batch: Tensor) -> dict[str, Tensor]:
            if number == kill_at:
                raise Killed
            training.set_lr(optimizer, lr / (1 + number))
            loss = (net(batch) - batch.sum(1, keepdim=True)).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss, "twice": 2 * loss}

        def draw() -> dict[str, np.ndarray]:
            assert not any(part.training for part in net.modules())
            assert not torch.is_grad_enabled()
            value = net(torch.randn(1, 4))
            return {"a": np.full((2, 3, 3), int(value.clamp(0, 1) * 255), np.uint8)}

        state = {"net": net, "optimizer": optimizer}
        values = training.fit("toy", checkpoint, state, Numbers(), BATCH, steps, 3, step, draw=draw)
    assert [part.training for part in net] == [True, False, True, True]
    return net, values


def test_curves_have_the_points_of_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "HISTORY_ROWS", 4)
    _, values = learn(7)
    training.write_history(tmp_path / "h.tsv", values)
    head, *rows = [line.split("\t") for line in (tmp_path / "h.tsv").read_text().splitlines()]
    curves = factories.curves(tmp_path / "logs")
    assert set(curves) == {"loss", "twice", "learning_rate", "images_per_second"}
    for column, name in enumerate(head[1:], 1):
        assert [step for step, _ in curves[name]] == [int(row[0]) for row in rows] == [2, 4, 6, 7]
        assert [value for _, value in curves[name]] == pytest.approx([float(row[column]) for row in rows], rel=1e-5)
    assert curves["learning_rate"] == [(n, pytest.approx(0.1 / n)) for n in (2, 4, 6, 7)]  # of the last step of each row
    assert [step for step, _ in curves["images_per_second"]] == list(range(1, 8))  # one for each checkpoint here
    assert all(0 < value < 1e6 for _, value in curves["images_per_second"])


def test_images_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two images in half a second, in all steps; pictures of 100 seconds do not count."""
    monkeypatch.setenv("UNSEG_CHECKPOINT_SECONDS", "1000")
    monkeypatch.setattr(event_log, "LEAST_STEPS", 5)
    clock, set_lr, evaluation = [0.0], training.set_lr, event_log.evaluation

    def lasting(seconds: float, fn: Any) -> Any:
        return lambda *given: (clock.append(clock[-1] + seconds), fn(*given))[1]

    monkeypatch.setattr(event_log, "time", SimpleNamespace(monotonic=lambda: clock[-1]))
    monkeypatch.setattr(training, "set_lr", lasting(0.5, set_lr))
    monkeypatch.setattr(event_log, "evaluation", lasting(100.0, evaluation))
    learn(45)
    assert clock[-1] == 45 * 0.5 + 10 * 100
    assert factories.curves(tmp_path / "logs")["images_per_second"] == [(20, 4.0), (40, 4.0), (45, 4.0)]


def test_the_same_weights_with_and_without_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "LEAST_STEPS", 1)
    net, values = learn(30)
    pictures = factories.logged_pictures(tmp_path / "logs")["pictures/a"]
    assert [step for step, _ in pictures] == [0, 4, 8, 12, 16, 20, 24, 28, 30]
    assert pictures[0][1].shape == (2, 3, 3)
    monkeypatch.delenv("UNSEG_LOGDIR")
    plain, again = learn(30)
    assert values == again
    assert all(torch.equal(x, plain.state_dict()[key]) for key, x in net.state_dict().items())


def test_a_short_training_has_pictures_of_its_start_and_end(tmp_path: Path) -> None:
    learn(30)
    assert [step for step, _ in factories.logged_pictures(tmp_path / "logs")["pictures/a"]] == [0, 30]


@pytest.mark.parametrize("kill_at", [1, 4, 5, 8])
def test_a_resumed_training_continues_its_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int) -> None:
    monkeypatch.setattr(training, "HISTORY_ROWS", 5)  # a point each second step
    monkeypatch.setattr(event_log, "LEAST_STEPS", 1)
    monkeypatch.setenv("UNSEG_LOGDIR", str(tmp_path / "whole"))
    learn(9)
    monkeypatch.setenv("UNSEG_LOGDIR", str(tmp_path / "logs"))
    with pytest.raises(Killed):
        learn(9, kill_at)
    time.sleep(1)  # TensorBoard orders the files by the seconds in their names
    learn(9)
    assert len(list((tmp_path / "logs").rglob("events.*"))) == 2
    whole, resumed = factories.curves(tmp_path / "whole"), factories.curves(tmp_path / "logs")
    for name in ("loss", "twice", "learning_rate"):
        assert resumed[name] == whole[name]
    a, b = (factories.logged_pictures(tmp_path / name)["pictures/a"] for name in ("whole", "logs"))
    assert [step for step, _ in a] == [step for step, _ in b] == list(range(10))
    assert all((x == y).all() for (_, x), (_, y) in zip(a, b, strict=True))


def test_points_beyond_the_checkpoint_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed run has logged more steps than its last checkpoint has: TensorBoard shows those of the resumed run."""
    save = Checkpoint.save
    monkeypatch.setattr(Checkpoint, "save", lambda self, state: save(self, state) if len(state["values"]) <= 3 else None)
    with pytest.raises(Killed):
        learn(9, 6)
    learn(9)
    assert [step for step, _ in factories.curves(tmp_path / "logs")["loss"]] == list(range(1, 10))


def test_each_setting_is_a_run_and_the_same_one_again_replaces_its_curves(tmp_path: Path) -> None:
    learn(3)
    learn(2)
    assert [step for step, _ in factories.curves(tmp_path / "logs")["loss"]] == [1, 2]  # steps is no setting of this toy
    learn(2, lr=0.2)
    assert len(list((tmp_path / "logs/toy").iterdir())) == 2


def test_the_log_says_the_params(tmp_path: Path) -> None:
    learn(1)
    (event,) = factories.accumulator(tmp_path / "logs").Tensors("params/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert "    imagerecord:\n      id: 1\n" in text  # indented: a block of code in Markdown
    assert "    other values:\n    - 0.1\n" in text


def test_only_the_first_process_writes_and_only_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint("toy", [1], [])

    def log() -> Any:
        with event_log.EventLog("toy", checkpoint, 1, 1, 0, 1, {}, lambda: pytest.fail("it draws")) as log:
            log.step(1, [{"loss": 1.0}])
            log.write([{"loss": 1.0}])
            log.flush()
        return log.path

    monkeypatch.setattr(distributed, "rank", lambda: 1)
    assert log() is None
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    monkeypatch.setenv("UNSEG_LOGDIR", " ")
    assert log() is None
    assert not (tmp_path / "logs").exists()


def test_tensorboard_is_imported_only_for_a_log() -> None:
    code = "import sys; from unseg.engine import training; print('tensorboard' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_tensorboard_nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "find_spec", lambda _: None)
    message = "^UNSEG_LOGDIR is set, and TensorBoard is not installed; pip install tensorboard, or unset UNSEG_LOGDIR$"
    with pytest.raises(InputError, match=message):
        Checkpoint("toy", [], [])
    with pytest.raises(InputError, match=message):
        environment.check()
    monkeypatch.delenv("UNSEG_LOGDIR")
    environment.check()


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNSEG_LOGDIR", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"file/toy/\w{8} cannot be written \(.*\); correct that, or change UNSEG_LOGDIR"):
        learn(2)
