"""Inference over many items: resuming, sharing between processes and progress, which the method itself knows nothing of."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from unseg.core.console import Meter
from unseg.engine.batching import Batches
from unseg.engine.checkpoint import Checkpoint, ResultStore

T = TypeVar("T")


@contextmanager
def map_batches(
    stage: str,
    settings: Iterable[Any],
    inputs: Iterable[str | Path],
    batches: Batches[T],
    fn: Callable[[Batches[T]], Iterable[tuple[T, bytes]]],
    key: Callable[[T], int],
) -> Iterator[Callable[[Iterable[int]], Iterator[bytes]] | None]:
    """Run fn over the batches that are not done yet, this process's part of them, and keep each result at once.

    A result does not depend on the number of processes, nor on where an earlier run was interrupted: whole batches are skipped
    or assigned to a process, never parts of one.

    Args:
        stage: its name, on the progress bar and for its checkpoint.
        settings, inputs: what the results depend on, see `Checkpoint`.
        fn: takes batches and yields each of their items with its result, in any order.
        key: the number of an item, different for each.

    Yields:
        In the first process, when all are done: a function from keys to their results, in that order. In the others: None.
        Leaving the block without an error removes the checkpoint, so write the outputs inside it.
    """
    with Checkpoint(stage, settings, inputs) as checkpoint, ResultStore(checkpoint) as results:
        remaining = Batches(results.remaining(batches.plan, key), batches.load)
        with Meter(len(batches), stage, results.before) as meter:
            for item, content in fn(remaining):
                results.put(key(item), content)
                meter.step()
        yield results.of if results.complete() else None
