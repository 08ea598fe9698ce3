"""What a stage says to the person who runs it: one-line errors, and progress with rate and time left."""

import ctypes
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")
LOG_SECONDS = 15  # between two lines of progress where there is no terminal


class InputError(Exception):
    """Something the user gave cannot be used. The message names the file, the value and the remedy."""


def keep_freed_memory() -> None:
    """Have the C library (glibc) keep the memory that is freed, for what is asked for next.

    It would give blocks of over 32 MB back to the kernel at once. A network frees and asks for the same ones each batch, and
    the kernel then fills them with zeros again, page by page: a third of mining's time on the CPU.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD, bytes
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def run(main: Callable[..., None]) -> None:
    """Call main with the words of the command line; an InputError, or SIGTERM, ends it with one line and status 1."""

    def stop(*_: object) -> None:
        raise SystemExit("error: ended by SIGTERM; the same command goes on where this one was")

    signal.signal(signal.SIGTERM, stop)  # as an exception, so that nothing half written stays
    keep_freed_memory()
    try:
        main(*sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")


class Rate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


class Meter:
    """A progress bar on a terminal; elsewhere a line each LOG_SECONDS, so that a log file stays readable.

    Use as a context manager; `step(note)` counts one up. `start` are the steps that an earlier run had done.
    """

    def __init__(self, total: int, what: str, start: int = 0) -> None:
        self.total, self.what, self.start, self.done, self.note = total, what, start, start, ""
        self.live = sys.stderr.isatty()

    def __enter__(self) -> "Meter":
        self.begin = self.spoken = time.monotonic()
        if self.live:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
            self.bar = Progress(*columns, TextColumn("{task.fields[note]}"))
            self.bar.start()
            self.task = self.bar.add_task(self.what, total=self.total, completed=self.start, note="")
        return self

    def step(self, note: str = "") -> None:
        self.done, self.note = self.done + 1, note
        if self.live:
            self.bar.update(self.task, completed=self.done, note=note)
        elif time.monotonic() - self.spoken >= LOG_SECONDS:
            self.say()

    def say(self) -> None:
        self.spoken = time.monotonic()
        rate = (self.done - self.start) / max(self.spoken - self.begin, 1e-9)
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate and self.done < self.total else ""
        print(f"{self.what} {self.done}/{self.total}, {rate:.1f}/s{left}  {self.note}".rstrip(), file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.bar.stop()
        else:
            self.say()


def track(items: Iterable[T], what: str, total: int | None = None, start: int = 0) -> Iterator[T]:
    """Iterate over items with a Meter; total is needed where items has no length, start is what an earlier run had done."""
    count = total if total is not None else len(items)  # type: ignore[arg-type]
    with Meter(count, what, start) as meter:
        for item in items:
            yield item
            meter.step()
