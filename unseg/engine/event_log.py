"""Curves and pictures of a training as TensorBoard event files; only where UNSEG_LOGDIR names a folder for them.

A training writes into UNSEG_LOGDIR/NAME/KEY. NAME is that of its history, results/NAME.tsv. KEY is of its params and inputs: with
others it is another run in TensorBoard, and the same training again replaces its own curves. A resumed training continues them.

A log changes no result: while pictures are drawn, the networks are in evaluation mode, without gradients and with random states
of their own, and then everything is as it was. Only the first process writes, and drawing calls no other process.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np
import torch
import yaml
from torch import nn

from unseg.core.console import InputError
from unseg.engine import distributed, environment
from unseg.engine.checkpoint import Checkpoint

Draw = Callable[[], Mapping[str, np.ndarray]]  # pictures [H, W, 3] uint8 by name
IMAGES = 4  # photographs of which a training draws pictures
SIDE = 128  # pixels, both sides of a photograph in a picture
TIMES = 9  # pictures are drawn before training and this often in it: TensorBoard shows ten of a name
LEAST_STEPS = 50  # between two times, so that short trainings do not spend their time on pictures


class EventLog:
    """The log of one training, as a context manager. It does nothing without UNSEG_LOGDIR, and in all processes but the first.

    Args:
        name: of the training, e.g. segmenter-r0.
        batch: images a step, in all processes together.
        steps, start: of the training, and those that an earlier run has done, whose curves stay.
        interval: steps between two points of a curve, which are the rows of the history.
        state: networks and optimisers.
        draw: the pictures; called in evaluation mode.

    Raises:
        InputError: TensorBoard is not installed, or the folder cannot be written.
    """

    def __init__(
        self,
        name: str,
        checkpoint: Checkpoint,
        batch: int,
        steps: int,
        start: int,
        interval: int,
        state: Mapping[str, Any],
        draw: Draw | None,
    ) -> None:
        folder = environment.log_folder() if distributed.rank() == 0 else None
        self.path = folder and folder / name / checkpoint.key[:8]
        self.settings, self.batch, self.steps, self.interval, self.draw = checkpoint.settings, batch, steps, interval, draw
        self.start, self.written, self.counted = start, start // interval * interval, start
        self.networks = [x for x in state.values() if isinstance(x, nn.Module)]
        self.optimizer = next((x for x in state.values() if isinstance(x, torch.optim.Optimizer)), None)
        self.rates: dict[int, float] = {}  # learning rates, by step
        self.between = max(LEAST_STEPS, -(-steps // TIMES))  # steps between two times of pictures

    def __enter__(self) -> "EventLog":
        self.clock = time.monotonic()
        if self.path:
            from torch.utils.tensorboard import SummaryWriter

            with self.writing():
                self.path.mkdir(parents=True, exist_ok=True)
                # TensorBoard leaves out what an earlier run has written of these steps
                self.writer = SummaryWriter(str(self.path), purge_step=self.start + 1 if self.start else 0)
                if not self.start:
                    self.writer.add_text("params", code_block(self.settings))
            if not self.start:
                self.pictures(0)
        return self

    def step(self, done: int, values: Sequence[Mapping[str, float]]) -> None:
        """After each step. done: the steps that are done; values: the metrics of all steps that are known by now."""
        if not self.path:
            return
        if self.optimizer and (done % self.interval == 0 or done == self.steps):
            self.rates[done] = self.optimizer.param_groups[0]["lr"]
        self.write(values)
        if done % self.between == 0 or done == self.steps:
            self.pictures(done)

    def write(self, values: Sequence[Mapping[str, float]]) -> None:
        """New points of the curves: means over intervals, as in the history, and the images a second since the last points."""
        if not self.path or len(values) == self.counted:
            return
        with self.writing():
            while self.written < (end := min(self.written + self.interval, self.steps)) <= len(values):
                rows = values[self.written : end]
                for key in rows[0]:
                    self.writer.add_scalar(key, sum(row[key] for row in rows) / len(rows), end)
                if end in self.rates:
                    self.writer.add_scalar("learning_rate", self.rates.pop(end), end)
                self.written = end
            images, seconds = self.batch * (len(values) - self.counted), time.monotonic() - self.clock
            self.writer.add_scalar("images_per_second", images / max(seconds, 1e-9), len(values))
        self.counted, self.clock = len(values), time.monotonic()

    def flush(self) -> None:
        """Put all that was written on disk; before a checkpoint, from which a later run goes on."""
        if self.path:
            with self.writing():
                self.writer.flush()

    def pictures(self, done: int) -> None:
        began = time.monotonic()
        if self.draw:
            with evaluation(self.networks):
                drawn = self.draw()
            with self.writing():
                for name, picture in drawn.items():
                    self.writer.add_image(f"pictures/{name}", picture, done, dataformats="HWC")
        self.clock += time.monotonic() - began

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # no right, no room
            raise InputError(f"{self.path} cannot be written ({error}); correct that, or change UNSEG_LOGDIR") from None

    def __exit__(self, *_: object) -> None:
        if self.path:
            with self.writing():
                self.writer.close()


@contextlib.contextmanager
def evaluation(networks: Sequence[nn.Module]) -> Iterator[None]:
    """The networks in evaluation mode, without gradients; afterwards each part's mode and the random states are as before."""
    modes = [(part, part.training) for network in networks for part in network.modules()]
    device = environment.device()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(0)
        for network in networks:
            network.eval()
        try:
            yield
        finally:
            for part, mode in modes:
                part.training = mode


def code_block(settings: Sequence[Any]) -> str:
    """Params as Markdown: groups under the names of their dataclasses, and single values."""
    groups = {type(s).__name__.lower(): asdict(s) for s in settings if is_dataclass(s) and not isinstance(s, type)}
    values = [s for s in settings if not is_dataclass(s) and s is not None]
    plain = json.loads(json.dumps({**groups, "other values": values}))  # as `checkpoint.run_hash` reads them
    text = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return "".join(f"    {line}\n" for line in text.splitlines())
