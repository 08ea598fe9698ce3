"""How fast a stage is: images per second, operations, waiting for data, memory of the GPU. `gpu.py` uses it.

The stage itself runs, with a stand-in for the loop of its training, or for the loop over its batches, that ends after some
seconds. torch is imported inside functions, because gpu.py forks before a GPU is touched.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from unseg.engine import environment

WARM_UP = 3  # steps before the clock starts
REPEATS = 12  # steps without loading, at most


class Measured(Exception):
    """Leaves a stage whose speed is known."""


@dataclass
class Speed:
    """What `probe` measured."""

    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0  # seconds of those
    flops: float = 0.0  # per image
    memory: float | None = None  # GiB

    def to_record(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "images_per_second": round(self.images / self.seconds, 3),
            "waiting_for_data": round(self.waited / self.seconds, 4),
            "gflop_per_image": round(self.flops / 1e9, 3),
            "memory_gib": self.memory,
        }


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def now() -> float:
    """Seconds, after all work on the GPU."""
    synchronize()
    return time.perf_counter()


def memory() -> float | None:
    """Peak of torch's allocations on the GPU, GiB."""
    import torch

    return round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else None


def count_flops(way: Callable[[], object]) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        way()
    return float(counter.get_total_flops())


def fit_for(seconds: float, speed: Speed) -> Callable[..., None]:
    """A stand-in for `training.fit`: the same steps on the same batches for so many seconds, then steps on batches at hand.

    The time that a step waits for data is what a step with loading takes longer than one without.
    """

    def fit(
        what: str,
        checkpoint: object,
        state: object,
        dataset: Any,
        batch: int,
        steps: int,
        seed: int,
        step: Callable[[int, Any], object],
        collate: Any = None,
    ) -> None:
        batches = load(dataset, batch, seed, collate)
        kept: list[Any] = []  # the last batches
        for number in range(WARM_UP):
            step(number, next(batches))
        done, start = 0, now()
        while time.perf_counter() - start < seconds or not done:
            kept = [*kept[-3:], next(batches)]
            step(WARM_UP + done, kept[-1])
            done += 1
            if done % 20 == 0:  # as training.fit reads the metrics of so many steps
                synchronize()
        total = now() - start
        speed.memory = memory()
        repeats = min(done, REPEATS)
        start = now()
        for n in range(repeats):
            step(WARM_UP, kept[n % len(kept)])
        alone = (now() - start) / repeats
        size = min(batch, len(dataset))
        speed.images, speed.seconds = done * size, total
        speed.waited = max(0.0, total - done * alone)
        speed.flops = sum(count_flops(lambda x=x: step(WARM_UP, x)) for x in kept) / len(kept) / size  # type: ignore[misc]
        raise Measured

    return fit


def load(dataset: Any, batch: int, seed: int, collate: Any) -> Iterator[Any]:
    """Batches without end, as `training.fit` loads them."""
    import torch
    from torch.utils.data import DataLoader

    from unseg.engine import training

    sampler = training.EpochSampler(len(dataset), batch, seed, 0, 10**9)
    pin = torch.cuda.is_available()
    return iter(DataLoader(dataset, batch_sampler=sampler, num_workers=environment.workers(), collate_fn=collate, pin_memory=pin))


def iterate_for(seconds: float, speed: Speed, original: Callable[[Any], Iterator[Any]]) -> Callable[[Any], Iterator[Any]]:
    """A stand-in for `Batches.__iter__`: the same batches for so many seconds, with the time that each is waited for.

    The first batch warms up and is counted for its floating-point operations; the others need as many per pixel. The clock
    stands still while a batch is handed over, so what the stage does with its results is part of its time.
    """

    def iterate(self: Any) -> Iterator[Any]:
        from torch.utils.flop_counter import FlopCounterMode

        batches = iter(original(self))
        items, x = next(batches)
        start = now()
        with FlopCounterMode(display=False) as counter:
            yield items, x
        per_pixel = counter.get_total_flops() / (len(x) * math.prod(x.shape[2:]))
        first, start, pixels = (len(items), now() - start, x.shape), now(), 0
        while (begin := now()) - start < seconds and (batch := next(batches, None)) is not None:
            speed.waited += now() - begin
            yield batch
            speed.images += len(batch[0])
            pixels += len(batch[1]) * math.prod(batch[1].shape[2:])
        speed.seconds = now() - start
        if not speed.images:  # all photographs are in one batch
            speed.images, speed.seconds, pixels = first[0], first[1], first[0] * math.prod(first[2][2:])
        speed.flops, speed.memory = per_pixel * pixels / speed.images, memory()
        raise Measured

    return iterate


def probe(seconds: float, training_only: bool, stage: Callable[[], None]) -> Speed:
    """Run a stage until its speed is known: of its training, or of the first pass over batches."""
    from unseg.engine import training
    from unseg.engine.batching import Batches

    speed = Speed()
    patch: Any
    if training_only:
        patch = mock.patch.object(training, "fit", fit_for(seconds, speed))
    else:
        patch = mock.patch.object(Batches, "__iter__", iterate_for(seconds, speed, Batches.__iter__))
    try:
        with patch:
            stage()
    except Measured:
        return speed
    raise RuntimeError("the stage ended before it was measured")


def fit_until(end: float) -> Callable[..., list[dict[str, float]]]:
    """A stand-in for `training.fit` that stops at time.time() `end`, without checkpoints."""
    import torch

    from unseg.engine import training

    def fit(
        what: str,
        checkpoint: object,
        state: object,
        dataset: Any,
        batch: int,
        steps: int,
        seed: int,
        step: Callable[[int, Any], Any],
        collate: Any = None,
    ) -> list[dict[str, float]]:
        batches, values, pending = load(dataset, batch, seed, collate), [], []
        for number in range(steps):
            torch.manual_seed(training.mix_seeds(seed, number, 0))
            pending.append(step(number, next(batches)))
            over = time.time() > end
            if len(pending) == 20 or number == steps - 1 or over:
                values += training.flush(pending, what, number)
            if over:
                print(f"{what}: stopped at step {number + 1} of {steps}", flush=True)
                break
        return values

    return fit
