"""Messages of a stage: one-line errors, and progress with rate and remaining time, and handling of signals."""

import argparse
import contextlib
import ctypes
import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import TypeVar

import psutil
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")
LOG_SECONDS = 15  # between two lines of progress without a terminal
WATCH_SECONDS = 0.5  # between two checks that dvc is alive
GRACE_SECONDS = 30.0  # for a stage to end cleanly after dvc has ended
RESUME = "the same command resumes it"


class InputError(Exception):
    """The user's input cannot be used. The message names the file, the value and the remedy."""


def keep_freed_memory() -> None:
    """Let the C library (glibc) keep freed memory for later allocations.

    By default it returns blocks of over 32 MB to the kernel at once. A network allocates the same blocks for each batch, and
    the kernel fills them with zeros again, page by page, which is a third of mining's time on the CPU.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD, bytes
        libc.mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


def run(main: Callable[..., None]) -> None:
    """Call a stage's main with one option for each of its parameters: `--index FILE` for `index`.

    An InputError or a signal ends the process with one line.
    """
    guard()
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=sys.modules[main.__module__].__doc__, allow_abbrev=False)
    for name in inspect.signature(main).parameters:
        parser.add_argument(f"--{name.replace('_', '-')}", required=True)
    try:
        main(**vars(parser.parse_args()))
    except InputError as error:
        sys.exit(f"error: {error}")


def guard(importing: bool = False) -> None:
    """End this process with one line on SIGTERM, SIGHUP, Ctrl-C or the death of dvc.

    It ends by an exception, so that temporary files are removed. While a stage imports packages, which takes seconds, nothing
    is written yet, and some packages swallow exceptions: it ends at once. An ignored signal (nohup) stays ignored. A second
    SIGTERM does not interrupt the cleanup. Loaders, and all but the first of several processes, print nothing.
    """
    pid, is_first = os.getpid(), os.environ.get("RANK", "0") == "0"

    def message(number: int) -> str:
        return f"error: ended by {'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name}; {RESUME}"

    def stop(number: int, _: object) -> None:
        if os.getpid() != pid:  # a loader; its parent ends it when a terminal is closed
            if number == signal.SIGTERM:
                raise SystemExit(1)
            return
        if importing:
            os.write(2, f"{message(number)}\n".encode() if is_first else b"")
            os._exit(1)
        for other in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(message(number) if is_first else 1)

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        elif is_first:
            print(message(signal.SIGINT), file=sys.stderr)

    sys.excepthook = hook
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:
            by_exception = number == signal.SIGINT and not importing  # loaders handle KeyboardInterrupt
            signal.signal(number, signal.default_int_handler if by_exception else stop)
    if "DVC_STAGE" in os.environ and all(thread.name != "watch" for thread in threading.enumerate()):
        threading.Thread(target=watch, args=(parents_up_to_dvc(),), name="watch", daemon=True).start()


def parents_up_to_dvc() -> dict[psutil.Process, int]:
    """The parent's id of this process and of each shell and launcher between it and dvc.

    DVC sets DVC_STAGE for the processes that it starts, not for itself.
    """
    process = psutil.Process()
    parents = {process: os.getppid()}
    with contextlib.suppress(psutil.Error):  # another user's process
        while psutil.Process(parents[process]).environ().get("DVC_STAGE") == os.environ["DVC_STAGE"]:
            process = psutil.Process(parents[process])
            parents[process] = process.ppid()
    return parents


def has_parent(process: psutil.Process, parent: int) -> bool:
    try:
        return bool(process.ppid() == parent)
    except psutil.Error:
        return False


def watch(parents: dict[psutil.Process, int]) -> None:
    """Send SIGTERM to this process when one of the processes has lost its parent; after GRACE_SECONDS, end it by force."""
    while all(has_parent(process, parent) for process, parent in parents.items()):
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)  # some computations handle no signal before they end
    os._exit(1)


class Rate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


class Meter:
    """A progress bar on a terminal; elsewhere a line each LOG_SECONDS, so that a log file stays readable.

    Use as a context manager; `step(note)` counts up by one. start: the steps that an earlier run has done.
    """

    # rich has no log mode: without a terminal it prints nothing until the end

    def __init__(self, total: int, description: str, start: int = 0) -> None:
        self.total, self.description, self.start, self.done, self.note = total, description, start, start, ""
        self.is_live = sys.stderr.isatty()

    def __enter__(self) -> "Meter":
        self.begin = self.logged = time.monotonic()
        if self.is_live:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
            self.bar = Progress(*columns, TextColumn("{task.fields[note]}"))
            self.bar.start()
            self.task = self.bar.add_task(self.description, total=self.total, completed=self.start, note="")
        return self

    def step(self, note: str = "") -> None:
        self.done, self.note = self.done + 1, note
        if self.is_live:
            self.bar.update(self.task, completed=self.done, note=note)
        elif time.monotonic() - self.logged >= LOG_SECONDS:
            self.log()

    def log(self) -> None:
        self.logged = time.monotonic()
        rate = (self.done - self.start) / max(self.logged - self.begin, 1e-9)
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate and self.done < self.total else ""
        line = f"{self.description} {self.done}/{self.total}, {rate:.1f}/s{left}  {self.note}"
        print(line.rstrip(), file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        self.bar.stop() if self.is_live else self.log()


def track(items: Iterable[T], description: str, total: int | None = None, start: int = 0) -> Iterator[T]:
    """Iterate over items with a Meter. total is needed if items has no length."""
    count = total if total is not None else len(items)  # type: ignore[arg-type]
    with Meter(count, description, start) as meter:
        for item in items:
            yield item
            meter.step()
