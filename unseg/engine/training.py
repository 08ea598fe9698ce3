"""What every training has in common: the order of examples, checkpoints, resuming, history, a bar.

Randomness is a function of (seed, step): each epoch's order, each example's augmentation and each step's
dropout are drawn from generators seeded by where they stand. So a run that resumes goes on exactly as an
unbroken one, and the number of loader processes changes nothing.

`unseg.engine.checkpoint` keeps the checkpoints of an unfinished run.
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

Metrics = dict[str, Tensor]
HISTORY_ROWS = 400  # of a TSV of metrics, at the most
FORMAT = 1  # of the weights that `write_weights` writes: raised when older ones can no longer be read


class EpochSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (index, seed of its augmentation), from a step on: this process's share of each global batch."""

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
            at = step % per_epoch * self.batch
            mine = order[at : at + self.batch][distributed.rank() :: distributed.world()]
            yield [(int(i), mix_seeds(self.seed, epoch, int(i))) for i in mine]


def mix_seeds(*numbers: int) -> int:
    """Numbers into one seed below 2^63."""
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
) -> list[dict[str, float]]:
    """Run `step(number, batch)` for each step, from the last checkpoint on.

    Args:
        what: the name on the progress bar.
        state: modules and optimisers (whatever has `state_dict`) that a checkpoint holds.
        dataset: its items are asked for as (index, seed); len() is the number of examples.
        batch: examples a step, over all processes.
        step: does the whole step, on this process's share of the batch, and returns scalars, "loss" among them.

    Returns:
        The metrics of every step.

    Raises:
        InputError: a loss that is not finite, or a batch that the processes cannot share evenly.
    """
    if (drawn := min(batch, len(dataset))) % distributed.world():  # type: ignore[arg-type]
        raise InputError(
            f"{what}: a batch of {drawn} images cannot be shared by {distributed.world()} processes; "
            "give its batch in params.yaml a multiple of them, or set UNSEG_PROCESSES"
        )
    values: list[dict[str, float]] = []
    if saved := checkpoint.load():
        for name, part in state.items():
            part.load_state_dict(saved[name])
        values = saved["values"]
    start = len(values)
    order = EpochSampler(len(dataset), batch, seed, start, steps)  # type: ignore[arg-type]
    pinned = environment.device().type == "cuda"
    loader = DataLoader(dataset, batch_sampler=order, num_workers=environment.workers(), collate_fn=collate, pin_memory=pinned)
    pending: list[Metrics] = []
    spoken = time.monotonic()
    with Meter(steps, what, start) as meter:
        for number, examples in zip(range(start, steps), loader, strict=True):
            torch.manual_seed(mix_seeds(seed, number, 0))  # alike in every process: each draws for the whole batch
            pending.append(step(number, examples))
            if len(pending) == 20 or number == steps - 1:
                values += flush(pending, what, number)
            meter.step(" ".join(f"{k} {v:.3f}" for k, v in values[-1].items()) if values else "")
            if distributed.rank() == 0 and time.monotonic() - spoken > environment.checkpoint_seconds() and number < steps - 1:
                values += flush(pending, what, number)
                checkpoint.save({name: part.state_dict() for name, part in state.items()} | {"values": values})
                spoken = time.monotonic()
    return values


def flush(pending: list[Metrics], what: str, number: int) -> list[dict[str, float]]:
    """Metrics on the device to numbers, in one transfer; empties the list."""
    if not pending:
        return []
    table = torch.stack([torch.stack([v.detach().float() for v in m.values()]) for m in pending]).cpu()
    rows = [dict(zip(m, row, strict=True)) for m, row in zip(pending, table.tolist(), strict=True)]
    pending.clear()
    for back, row in enumerate(reversed(rows)):
        if not math.isfinite(row["loss"]):
            raise InputError(f"{what}: the loss is {row['loss']} at step {number - back}; lower its lr in params.yaml")
    return rows


def write_history(path: str | Path, values: list[dict[str, float]]) -> None:
    """Means over equal stretches of steps, as TSV: a column `step` (the last of the stretch) and one a metric."""
    if distributed.rank() != 0:
        return
    stretch = max(1, math.ceil(len(values) / HISTORY_ROWS))
    with storage.atomic_write(path) as part, part.open("w") as file:
        print("step", *values[0], sep="\t", file=file)
        for at in range(0, len(values), stretch):
            rows = values[at : at + stretch]
            means = (f"{sum(r[k] for r in rows) / len(rows):.6g}" for k in rows[0])
            print(at + len(rows), *means, sep="\t", file=file)


def write_weights(path: str | Path, model: nn.Module, metadata: dict[str, Any]) -> None:
    """The model's state as safetensors; metadata and the FORMAT are stored as JSON text under `unseg`."""
    if distributed.rank() != 0:
        return
    tensors = {k: v.detach().cpu().contiguous() for k, v in sorted(model.state_dict().items())}
    about = {"unseg": json.dumps({"format": FORMAT, **metadata}, sort_keys=True)}
    with storage.atomic_write(path) as part:
        part.write_bytes(save(tensors, about))  # save_file has a temporary file of its own, which a kill would leave


def read_weights(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state and the metadata of a file of `write_weights`, on the CPU.

    Raises:
        InputError: no such file, or weights of another kind, of another program or of another version of unseg.
    """
    try:
        with safe_open(path, "pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {}).get("unseg", "{}"))
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"{path} cannot be read (no such file); make it with `dvc repro`, or name another") from None
    except Exception as error:  # whatever a damaged header raises
        what = storage.one_line(error)
        raise InputError(f"{path} cannot be read ({what}); name a {kind}, or train it again with `dvc repro`") from None
    if not isinstance(about, dict):
        raise InputError(f"{path} is not a {kind} of unseg; its metadata says {about!r}; name another file")
    if about.get("kind") != kind:
        said = f"that it is a {about['kind']}" if "kind" in about else "nothing"
        raise InputError(f"{path} is not a {kind} of unseg; its metadata says {said}; name another file")
    if about.get("format") != FORMAT:
        versions = f"its format is {about.get('format', 'older than 1')}, this one reads {FORMAT}"
        raise InputError(f"{path} is of another version of unseg ({versions}); train it again with `dvc repro`")
    return state, about


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for g in optimizer.param_groups:
        g["lr"] = lr


def step_decay(lr: float, lr_milestone: int, epoch: int) -> float:
    """lr up to and including lr_milestone, counted from 0; a tenth of it after that."""
    return lr if epoch <= lr_milestone else lr * 0.1


def cosine_schedule(start: float, end: float, share: float) -> float:
    """From start (share 0) to end (share 1) along half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
