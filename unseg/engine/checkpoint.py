"""The progress of an unfinished run, so that a killed run loses at most its last minute.

It is stored in `.scratch/<stage>/<code>-<key>/` (UNSEG_SCRATCH moves it). code is a hash of unseg's modules, key is a hash of
the stage's params and inputs. A lock prevents a second run with the same folder. The folder is removed when the outputs are
written. A training stores a checkpoint in it, an extraction (one result for each image or object) a `ResultStore`.

When a stage starts, it removes runs of another version of the code, because nothing can resume them. Runs with other params or
inputs stay, so that an experiment can return to them.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from unseg.core import storage
from unseg.core.console import InputError
from unseg.engine import distributed, environment

T = TypeVar("T")
RUN_NAME = re.compile(r"([0-9a-f]{12}-)?[0-9a-f]{16}")  # early versions of unseg had no <code> in it
RUN_FILE = re.compile(r"lock|checkpoint\.pt|\.checkpoint\.pt\.\d+\.part|results-\d+\.sqlite(-journal)?")


@cache
def code_hash() -> str:
    """A hash of unseg's modules and of the stages, 12 hexadecimal digits."""
    key = hashlib.blake2b(digest_size=6)
    package = Path(__file__).parents[1]
    for file in sorted([*package.rglob("*.py"), *(package.parent / "stages").glob("*.py")]):
        key.update(file.read_bytes())
    return key.hexdigest()


def run_hash(settings: Iterable[Any], inputs: Iterable[str | Path]) -> str:
    """A hash of params and inputs, see `Checkpoint`."""
    key = hashlib.blake2b(digest_size=8)
    for s in settings:
        key.update(json.dumps(asdict(s) if is_dataclass(s) and not isinstance(s, type) else s, sort_keys=True).encode())
    for path in map(Path, inputs):
        if path.is_dir():
            for file in sorted(p for p in path.rglob("*") if p.is_file()):
                stat = file.stat()
                key.update(f"{file.relative_to(path)} {stat.st_size} {stat.st_mtime_ns}".encode())
            continue
        try:
            with path.open("rb") as stream:
                key.update(hashlib.file_digest(stream, hashlib.blake2b).digest())
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}; correct that, or its name in params.yaml") from None
    return key.hexdigest()


def remove_stale(stage: Path) -> None:
    """Remove unfinished runs of another version of the code from a stage's folder, and print one line if there are any.

    Runs in progress, links, and folders with other files stay.
    """
    removed = size = 0
    for run in sorted(stage.iterdir()) if not stage.is_symlink() else []:
        if not RUN_NAME.fullmatch(run.name) or run.name.startswith(f"{code_hash()}-") or run.is_symlink():
            continue
        with contextlib.suppress(OSError):  # locked, or no right to remove it: the stage goes on
            files = list(run.iterdir())
            if not all(RUN_FILE.fullmatch(f.name) and f.is_file() and not f.is_symlink() for f in files):
                continue
            with (run / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                size += sum(f.stat().st_size for f in files)
                shutil.rmtree(run)
                removed += 1
    if removed:
        runs = f"{removed} unfinished run{'s' * (removed > 1)} of another version of the code"
        print(f"{stage}: {runs} removed ({size / 1e6:.1f} MB)", flush=True)


class Checkpoint:
    """The folder of an unfinished run, locked against a second run.

    Args:
        stage: name of the folder; does not enter the hash.
        settings: params (dataclasses, numbers, text) that the result depends on.
        inputs: files (hashed by content) and folders (hashed by names, sizes and dates) that it depends on.

    Raises:
        InputError: another process works on the same run, or an input cannot be read.
    """

    def __init__(self, stage: str, settings: Sequence[Any], inputs: Iterable[str | Path]) -> None:
        environment.log_folder()  # raises before the stage's work
        scratch = Path(os.environ.get("UNSEG_SCRATCH", ".scratch"))
        self.settings, self.key = settings, run_hash(settings, inputs)
        self.path = scratch / stage / f"{code_hash()}-{self.key}"
        self.file = self.path / "checkpoint.pt"

    def __enter__(self) -> "Checkpoint":
        distributed.start()  # before `rank` is called
        if distributed.rank() == 0:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self.lock = (self.path / "lock").open("w")
            except OSError as error:
                raise InputError(f"{self.path} cannot be written: {error.strerror}; correct that, or set UNSEG_SCRATCH") from None
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.lock.close()
                raise InputError(f"{self.path} is in use: another run computes the same; wait for it, or end it") from None
            remove_stale(self.path.parent)
        distributed.barrier()
        return self

    def load(self) -> dict[str, Any] | None:
        """The last complete checkpoint, or None."""
        if not self.file.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.file, map_location="cpu", weights_only=True)
            return state
        except Exception as error:  # a damaged file is computed again
            print(f"{self.file} cannot be read ({error}); starting again")
            return None

    def save(self, state: dict[str, Any]) -> None:
        try:
            with storage.atomic_write(self.file) as part:
                torch.save(state, part)
        except RuntimeError as error:  # torch's, for a full disk
            reason = str(error).splitlines()[0]
            raise InputError(f"{self.file} cannot be written: {reason}; correct that and run again") from None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if distributed.rank() == 0:
            if kind is None:
                shutil.rmtree(self.path)
            self.lock.close()


class ResultStore:
    """The results of an unfinished extraction: bytes by number, in one SQLite file a process.

    Use within a Checkpoint, as a context manager; `map_batches` does. `done` has the numbers of the results of earlier runs.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.folder = checkpoint.path

    def __enter__(self) -> "ResultStore":
        self.done: set[int] = set()
        damaged = []
        for file in self.files():
            try:
                with contextlib.closing(sqlite3.connect(file)) as results:
                    if results.execute("pragma quick_check").fetchone() != ("ok",):
                        raise sqlite3.DatabaseError("it is damaged")
                    self.done |= {row[0] for row in results.execute("select number from results")}
            except sqlite3.DatabaseError as error:  # a damaged file is computed again
                print(f"{file} cannot be read ({error}); computing its results again")
                damaged.append(file)
        distributed.barrier()  # no process writes while another reads
        if distributed.rank() == 0:
            for file in damaged:
                file.unlink()
                file.with_name(f"{file.name}-journal").unlink(missing_ok=True)
        distributed.barrier()
        self.connection: sqlite3.Connection | None = None  # `put` opens it, after the fork of loaders, which must not share it
        self.committed = time.monotonic()
        return self

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("results-*.sqlite"))

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # no room or no right
            raise InputError(f"{self.folder} cannot be written ({error}); correct that and run again to resume") from None

    def remaining(self, batches: Sequence[list[T]], key: Callable[[T], int]) -> list[list[T]]:
        """This process's part of the unfinished batches."""
        undone = [b for b in batches if not all(key(item) in self.done for item in b)]
        return undone[distributed.rank() :: distributed.world()]

    def put(self, number: int, content: bytes) -> None:
        with self.writing():
            if self.connection is None:
                self.connection = sqlite3.connect(self.folder / f"results-{distributed.rank()}.sqlite")
                self.connection.execute("create table if not exists results (number integer primary key, content blob)")
            self.connection.execute("insert or replace into results values (?, ?)", (number, content))
            if time.monotonic() - self.committed > environment.checkpoint_seconds():
                self.connection.commit()
                self.committed = time.monotonic()

    def complete(self) -> bool:
        """Wait until all processes have finished their part. Returns whether this process writes the outputs."""
        with self.writing():
            if self.connection is not None:
                self.connection.commit()
        distributed.barrier()
        return distributed.rank() == 0

    def read(self, numbers: Iterable[int]) -> Iterator[bytes]:
        """The results of these numbers, in their order, one at a time; call `complete` first."""
        with contextlib.ExitStack() as stack:
            stores = [stack.enter_context(contextlib.closing(sqlite3.connect(file))) for file in self.files()]
            for number in numbers:
                rows = (s.execute("select content from results where number = ?", (number,)).fetchone() for s in stores)
                yield next(row[0] for row in rows if row)

    def __exit__(self, *_: object) -> None:
        if self.connection is not None:
            self.connection.close()
