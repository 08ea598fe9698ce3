"""The progress of an unfinished run, so that a kill costs no more than the last minute.

It lives in `.scratch/<stage>/<code>-<key>/` (UNSEG_SCRATCH moves it), where code hashes unseg's modules, and key the stage's
params and inputs. A lock holds it against a second run; it is removed when the outputs are written. Trainings keep a
checkpoint in it, extractions (a result for each photograph or object) a `ResultStore`.

What other code has begun can never be gone on with: the stage removes it when it starts. What this code has begun with other
params or inputs stays, so that an experiment that goes back to them goes on.
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
RUN = re.compile(r"([0-9a-f]{12}-)?[0-9a-f]{16}")  # the folder of a run; without its code, of an unseg before that was noted
FILE = re.compile(r"lock|checkpoint\.pt|\.checkpoint\.pt\.\d+\.part|results-\d+\.sqlite(-journal)?")  # what is in one


@cache
def code_hash() -> str:
    """A hash of unseg's modules and of the stages, 12 hexadecimal digits."""
    key = hashlib.blake2b(digest_size=6)
    package = Path(__file__).parents[1]
    for file in sorted([*package.rglob("*.py"), *(package.parent / "stages").glob("*.py")]):
        key.update(file.read_bytes())
    return key.hexdigest()


def remove_stale(stage: Path) -> None:
    """Remove from a stage's folder the unfinished runs of other code, and say so in a line.

    Left alone are runs that a process works on (their lock is held), links, and folders with a file that is not a run's.
    """
    removed = size = 0
    for run in sorted(stage.iterdir()) if not stage.is_symlink() else []:
        if not RUN.fullmatch(run.name) or run.name.startswith(f"{code_hash()}-") or run.is_symlink():
            continue
        with contextlib.suppress(OSError):  # held, or not ours to remove: no reason to end the stage
            files = list(run.iterdir())
            if not all(FILE.fullmatch(f.name) and f.is_file() and not f.is_symlink() for f in files):
                continue
            with (run / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                size += sum(f.stat().st_size for f in files)
                shutil.rmtree(run)
                removed += 1
    if removed:
        print(f"{stage}: {removed} unfinished run{'s' * (removed > 1)} of other code removed ({size / 1e6:.1f} MB)", flush=True)


class Checkpoint:
    """The folder of one unfinished run, locked against a second one.

    Args:
        stage: its name, for people.
        settings: params (dataclasses, numbers, text) that the result depends on.
        inputs: files (hashed whole) and folders (hashed by names, sizes and dates) it depends on.

    Raises:
        InputError: another process works on the same run, or an input that cannot be read.
    """

    def __init__(self, stage: str, settings: Iterable[Any], inputs: Iterable[str | Path]) -> None:
        key = hashlib.blake2b(digest_size=8)
        for s in settings:
            key.update(json.dumps(asdict(s) if is_dataclass(s) and not isinstance(s, type) else s, sort_keys=True).encode())
        for path in map(Path, inputs):
            if path.is_dir():
                for file in sorted(p for p in path.rglob("*") if p.is_file()):
                    stat = file.stat()
                    key.update(f"{file.relative_to(path)} {stat.st_size} {stat.st_mtime_ns}".encode())
            else:
                try:
                    with path.open("rb") as stream:
                        key.update(hashlib.file_digest(stream, hashlib.blake2b).digest())
                except OSError as error:
                    raise InputError(f"{path} cannot be read: {error.strerror}; mend that, or its name in params.yaml") from None
        self.path = Path(os.environ.get("UNSEG_SCRATCH", ".scratch")) / stage / f"{code_hash()}-{key.hexdigest()}"
        self.file = self.path / "checkpoint.pt"

    def __enter__(self) -> "Checkpoint":
        distributed.start()  # before anything asks which process this is
        if distributed.rank() == 0:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self.lock = (self.path / "lock").open("w")
            except OSError as error:
                raise InputError(f"{self.path} cannot be written: {error.strerror}; mend that, or set UNSEG_SCRATCH") from None
            try:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.lock.close()
                raise InputError(f"{self.path} is in use: another run makes this very thing; wait for it, or end it") from None
            remove_stale(self.path.parent)
        distributed.barrier()
        return self

    def load(self) -> dict[str, Any] | None:
        """The last whole checkpoint, or None."""
        if not self.file.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(self.file, map_location="cpu", weights_only=True)
            return state
        except Exception as error:  # a damaged file costs the progress it held, not the run
            print(f"{self.file} cannot be read ({error}); starting again")
            return None

    def save(self, state: dict[str, Any]) -> None:
        try:
            with storage.atomic_write(self.file) as part:
                torch.save(state, part)
        except RuntimeError as error:  # torch's, of a full disk
            raise InputError(f"{self.file} cannot be written: {str(error).splitlines()[0]}; mend that and run again") from None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if distributed.rank() == 0:
            if kind is None:
                shutil.rmtree(self.path)
            self.lock.close()


class ResultStore:
    """What an extraction has found so far: bytes by the number of an image or an object, in an SQLite file a process.

    Use within a Checkpoint, as a context manager; `map_batches` does.

    before: how many there were at the start.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.folder = checkpoint.path

    def __enter__(self) -> "ResultStore":
        self.done: set[int] = set()
        damaged = []
        for file in self.files():
            try:
                with contextlib.closing(sqlite3.connect(file)) as found:
                    if found.execute("pragma quick_check").fetchone() != ("ok",):
                        raise sqlite3.DatabaseError("it is damaged")
                    self.done |= {row[0] for row in found.execute("select number from results")}
            except sqlite3.DatabaseError as error:  # costs the progress it held, not the run
                print(f"{file} cannot be read ({error}); doing its part again")
                damaged.append(file)
        distributed.barrier()  # no process writes while another reads what there is
        if distributed.rank() == 0:
            for file in damaged:
                file.unlink()
                file.with_name(f"{file.name}-journal").unlink(missing_ok=True)
        distributed.barrier()
        self.own: sqlite3.Connection | None = None  # opened by the first `put`: loader processes, forked before, must not have it
        self.spoken, self.before = time.monotonic(), len(self.done)
        return self

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("results-*.sqlite"))

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # no room, or not ours to write
            raise InputError(f"{self.folder} cannot be written ({error}); mend that and run again to go on") from None

    def remaining(self, batches: Sequence[list[T]], key: Callable[[T], int]) -> list[list[T]]:
        """This process's part of the batches that are not done."""
        undone = [b for b in batches if not all(key(item) in self.done for item in b)]
        return undone[distributed.rank() :: distributed.world()]

    def put(self, number: int, content: bytes) -> None:
        with self.writing():
            if self.own is None:
                self.own = sqlite3.connect(self.folder / f"results-{distributed.rank()}.sqlite")
                self.own.execute("create table if not exists results (number integer primary key, content blob)")
            self.own.execute("insert or replace into results values (?, ?)", (number, content))
            if time.monotonic() - self.spoken > environment.checkpoint_seconds():
                self.own.commit()
                self.spoken = time.monotonic()

    def complete(self) -> bool:
        """Wait until every process has done its share; whether this is the one that writes the outputs."""
        with self.writing():
            if self.own is not None:
                self.own.commit()
        distributed.barrier()
        return distributed.rank() == 0

    def of(self, numbers: Iterable[int]) -> Iterator[bytes]:
        """The results of these, in their order, one at a time; call `complete` before."""
        with contextlib.ExitStack() as stack:
            found = [stack.enter_context(contextlib.closing(sqlite3.connect(file))) for file in self.files()]
            for number in numbers:
                rows = (f.execute("select content from results where number = ?", (number,)).fetchone() for f in found)
                yield next(row[0] for row in rows if row)

    def __exit__(self, *_: object) -> None:
        if self.own is not None:
            self.own.close()
