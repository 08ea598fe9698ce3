"""The training loop: order of examples, checkpoints, resuming, history, progress; and files of weights.

All randomness depends on (seed, step) only: the order of an epoch, the augmentation of an example, the dropout of a step. So
a resumed run gives the same result as an uninterrupted one, and the number of loader processes has no influence.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from unseg.core import storage
from unseg.core.console import InputError, Meter
from unseg.engine import distributed, environment
from unseg.engine.checkpoint import Checkpoint
from unseg.engine.event_log import Draw, EventLog

Metrics = dict[str, Tensor]
HISTORY_ROWS = 400  # at most
FORMAT = 1  # of the files of `write_weights`; increased when older files can no longer be read


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """This process's part of each batch, from step `start` on: (index, seed of the augmentation) of its examples."""

    def __init__(self, count: int, batch: int, seed: int, start: int, steps: int) -> None:
        self.count, self.batch, self.seed, self.start, self.steps = count, min(batch, count), seed, start, steps

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        per_epoch = self.count // self.batch
        epoch, order = -1, np.empty(0, np.int64)
        for step in range(self.start, self.steps):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = np.random.default_rng([self.seed, epoch]).permutation(self.count)
            begin = step % per_epoch * self.batch
            shard = order[begin : begin + self.batch][distributed.rank() :: distributed.world()]
            yield [(int(i), mix_seeds(self.seed, epoch, int(i))) for i in shard]


def mix_seeds(*numbers: int) -> int:
    """One seed below 2^63 from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def steps_per_epoch(count: int, batch: int) -> int:
    """The last, incomplete batch of an epoch is dropped, unless it is the only one."""
    return max(1, count // batch)


def fit(
    what: str,
    checkpoint: Checkpoint,
    state: dict[str, Any],
    dataset: Dataset[Any],
    batch: int,
    steps: int,
    seed: int,
    step: Callable[[int, Any], Metrics],
    collate: Callable[[list[Any]], Any] | None = None,
    draw: Draw | None = None,
) -> list[dict[str, float]]:
    """Run `step(number, batch)` for each step, from the last checkpoint on.

    Args:
        what: the name on the progress bar, and in TensorBoard.
        state: modules and optimisers (with `state_dict`) that a checkpoint holds.
        dataset: its index is (index, seed); len() is the number of examples.
        batch: examples a step, in all processes together.
        step: computes one step on this process's part of the batch and returns scalars, "loss" among them.
        draw: pictures of how far the training is, for TensorBoard; the modules of `state` are in evaluation mode.

    Returns:
        The metrics of all steps.

    Raises:
        InputError: the loss is not finite, or the batch is not a multiple of the number of processes.
    """
    if (size := min(batch, len(dataset))) % distributed.world():  # type: ignore[arg-type]
        raise InputError(
            f"{what}: a batch of {size} images cannot be shared by {distributed.world()} processes; "
            "set its batch in params.yaml to a multiple, or set UNSEG_PROCESSES"
        )
    values: list[dict[str, float]] = []
    if saved := checkpoint.load():
        for name, part in state.items():
            part.load_state_dict(saved[name])
        values = saved["values"]
    start = len(values)
    sampler = EpochSampler(len(dataset), batch, seed, start, steps)  # type: ignore[arg-type]
    pin = environment.device().type == "cuda"
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=environment.workers(), collate_fn=collate, pin_memory=pin)
    pending: list[Metrics] = []
    saved_at = time.monotonic()
    log = EventLog(what, checkpoint, size, steps, start, history_interval(steps), state, draw)
    with Meter(steps, what, start) as meter, log:
        for number, examples in zip(range(start, steps), loader, strict=True):
            torch.manual_seed(mix_seeds(seed, number, 0))  # the same in all processes, which draw for the whole batch
            pending.append(step(number, examples))
            if len(pending) == 20 or number == steps - 1:
                values += flush(pending, what, number)
            meter.step(" ".join(f"{k} {v:.3f}" for k, v in values[-1].items()) if values else "")
            log.step(number + 1, values)
            due = time.monotonic() - saved_at > environment.checkpoint_seconds()
            if distributed.rank() == 0 and due and number < steps - 1:
                values += flush(pending, what, number)
                log.write(values)
                log.flush()
                checkpoint.save({name: part.state_dict() for name, part in state.items()} | {"values": values})
                saved_at = time.monotonic()
    return values


def flush(pending: list[Metrics], what: str, number: int) -> list[dict[str, float]]:
    """The pending metrics as numbers, in one transfer from the device; empties the list. number: of the last step."""
    if not pending:
        return []
    table = torch.stack([torch.stack([v.detach().float() for v in m.values()]) for m in pending]).cpu()
    rows = [dict(zip(m, row, strict=True)) for m, row in zip(pending, table.tolist(), strict=True)]
    pending.clear()
    for step, row in enumerate(rows, number + 1 - len(rows)):
        if not math.isfinite(row["loss"]):
            raise InputError(f"{what}: the loss is {row['loss']} at step {step}; lower its lr in params.yaml")
    return rows


def history_interval(steps: int) -> int:
    """Steps of a row of the history."""
    return max(1, math.ceil(steps / HISTORY_ROWS))


def write_history(path: str | Path, values: list[dict[str, float]]) -> None:
    """Write a TSV with the mean of each metric over intervals of equal length; the column `step` has the end of the interval."""
    if distributed.rank() != 0:
        return
    interval = history_interval(len(values))
    with storage.atomic_write(path) as part, part.open("w") as file:
        print("step", *values[0], sep="\t", file=file)
        for begin in range(0, len(values), interval):
            rows = values[begin : begin + interval]
            means = (f"{sum(r[k] for r in rows) / len(rows):.6g}" for k in rows[0])
            print(begin + len(rows), *means, sep="\t", file=file)


def write_weights(path: str | Path, model: nn.Module, metadata: dict[str, Any]) -> None:
    """The model's state as safetensors, with the metadata and FORMAT as JSON under the key `unseg`."""
    if distributed.rank() != 0:
        return
    tensors = {k: v.detach().cpu().contiguous() for k, v in sorted(model.state_dict().items())}
    about = {"unseg": json.dumps({"format": FORMAT, **metadata}, sort_keys=True)}
    with storage.atomic_write(path) as part:
        part.write_bytes(save(tensors, about))  # save_file would leave a temporary file when killed


def read_weights(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state, on the CPU, and the metadata of a file of `write_weights`.

    Raises:
        InputError: no such file, or weights of another kind, another program or another version of unseg.
    """
    try:
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {}).get("unseg", "{}"))
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"{path} cannot be read (no such file); make it with `dvc repro`, or name another") from None
    except Exception as error:  # a damaged header raises many types
        reason = storage.one_line(error)
        raise InputError(f"{path} cannot be read ({reason}); name a {kind}, or train it again with `dvc repro`") from None
    if not isinstance(about, dict) or "kind" not in about:
        raise InputError(f"{path} has no metadata of unseg, so it is no {kind} of unseg; name another file")
    if about["kind"] != kind:
        raise InputError(f"{path} is a {about['kind']} of unseg, not a {kind}; name another file")
    if about.get("format") != FORMAT:
        versions = f"its format is {about.get('format', 'older than 1')}, this one reads {FORMAT}"
        raise InputError(f"{path} is of another version of unseg ({versions}); train it again with `dvc repro`")
    return state, about


# Schedules are functions of the step, not torch.optim.lr_scheduler objects: they have no state to save and resume, and serve
# weight decay and EMA, too. CosineAnnealingLR's recursion would also change the rates in their last digits.


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """As in timm, a group of parameters with the key lr_scale has that many times lr."""
    for g in optimizer.param_groups:
        g["lr"] = lr * g.get("lr_scale", 1.0)


def step_decay(lr: float, lr_milestone: int, epoch: int) -> float:
    """lr up to and including epoch lr_milestone, counted from 0; then a tenth."""
    return lr if epoch <= lr_milestone else lr * 0.1


def cosine_schedule(start: float, end: float, progress: float) -> float:
    """From start (progress 0) to end (progress 1) along half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
