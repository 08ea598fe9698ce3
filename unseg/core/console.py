"""What a stage says to the person who runs it: one-line errors, and progress with rate and time left; and how it is ended."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

T = TypeVar("T")
LOG_SECONDS = 15  # between two lines of progress where there is no terminal
WATCH_SECONDS = 0.5  # between two looks at whether dvc is alive
GRACE_SECONDS = 30.0  # for a stage to end cleanly after dvc has ended
RESUME = "the same command goes on where this one was"


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
    """Call main with the words of the command line; an InputError, or what `guard` looks for, ends it with one line."""
    guard()
    keep_freed_memory()
    try:
        main(*sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")


def guard(importing: bool = False) -> None:
    """End this process with one line on SIGTERM, SIGHUP, Ctrl-C or the death of dvc.

    It ends by an exception, so that nothing half written stays. While a stage is importing, which takes seconds, nothing is
    written yet, and some packages lose exceptions: it ends at once. A signal that is ignored (nohup) stays so. A second
    SIGTERM does not break off the cleaning up. Loaders, and all but the first of several processes, end without a word.
    """
    pid, first = os.getpid(), os.environ.get("RANK", "0") == "0"

    def line(number: int) -> str:
        return f"error: ended by {'Ctrl-C' if number == signal.SIGINT else signal.Signals(number).name}; {RESUME}"

    def stop(number: int, _: object) -> None:
        if os.getpid() != pid:  # a loader; when a terminal is closed, its parent ends it
            if number == signal.SIGTERM:
                raise SystemExit(1)
            return
        if importing:
            os.write(2, f"{line(number)}\n".encode() if first else b"")
            os._exit(1)
        for other in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(line(number) if first else 1)

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
        elif first:
            print(line(signal.SIGINT), file=sys.stderr)

    sys.excepthook = hook
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) != signal.SIG_IGN:
            by_exception = number == signal.SIGINT and not importing  # loaders know what to do of a KeyboardInterrupt
            signal.signal(number, signal.default_int_handler if by_exception else stop)
    if "DVC_STAGE" in os.environ and all(thread.name != "watch" for thread in threading.enumerate()):
        threading.Thread(target=watch, args=(up_to_dvc(),), name="watch", daemon=True).start()


def up_to_dvc() -> dict[int, int]:
    """The parent of this process and, on Linux, of each shell and launcher between it and dvc, by process id.

    DVC sets DVC_STAGE for what it starts and not for itself. Without /proc (macOS) only this process's own parent is known:
    that is dvc where the shell replaces itself by the stage, as zsh and bash do.
    """
    mark = f"\0DVC_STAGE={os.environ['DVC_STAGE']}\0".encode()
    parents: dict[int, int] = {}
    pid = os.getpid()
    with contextlib.suppress(OSError):  # no /proc, or another user's process
        while mark in b"\0" + Path(f"/proc/{pid}/environ").read_bytes():
            pid = parents.setdefault(pid, parent_of(pid))
    return parents or {os.getpid(): os.getppid()}


def parent_of(pid: int) -> int:
    """The id of a process's parent; 0 where the process has ended."""
    if pid == os.getpid():
        return os.getppid()
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def watch(parents: dict[int, int]) -> None:
    """Send SIGTERM to this process as soon as one of the processes above it has lost its parent; then end it by force."""
    while all(parent_of(pid) == parent for pid, parent in parents.items()):
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)  # some computations look at no signal before they end
    os._exit(1)


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
