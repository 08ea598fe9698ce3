"""Inference over many items: resuming, distribution over processes and progress."""

from collections.abc import Callable, Iterable, Iterator, Sequence
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
    settings: Sequence[Any],
    inputs: Iterable[str | Path],
    batches: Batches[T],
    fn: Callable[[Batches[T]], Iterable[tuple[T, bytes]]],
    key: Callable[[T], int],
) -> Iterator[Callable[[Iterable[int]], Iterator[bytes]] | None]:
    """Run fn over this process's part of the batches that are not done yet, and save each result at once.

    Only whole batches are skipped or assigned to a process. So a result depends neither on the number of processes nor on
    where an earlier run ended.

    Args:
        stage: the name on the progress bar and of the checkpoint.
        settings, inputs: what the results depend on, see `Checkpoint`.
        fn: takes batches and yields each item with its result, in any order.
        key: the number of an item, unique.

    Yields:
        In the first process, when all are done: a function from keys to their results, in that order. In the others: None.
        Leaving the block without an error removes the checkpoint, so write the outputs inside it.
    """
    with Checkpoint(stage, settings, inputs) as checkpoint, ResultStore(checkpoint) as results:
        remaining = Batches(results.remaining(batches.plan, key), batches.load)
        with Meter(len(batches), stage, len(results.done)) as meter:
            for item, content in fn(remaining):
                results.put(key(item), content)
                meter.step()
        yield results.read if results.complete() else None
