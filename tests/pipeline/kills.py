"""Kill -9 at random moments of the demo's pipeline, at a small size, each time run again; the artefacts must not know of it.

    python tests/pipeline/kills.py [kills] [seed] [seconds]

An undisturbed `dvc repro` in one folder; in another, `dvc repro` with all its processes killed after a random part of `seconds`,
again and again, and at last left alone. Whenever it gets to the end, every dvc.lock must be that of the undisturbed run (it
holds the hashes of all artefacts), nothing half written may be left, and it starts over from an empty folder, until there
were so many kills. Trainings and extractions save their work each INTERVAL seconds here; what a kill costs them is the time
since the last save, and no kill may cost more than that, a step, and the writing of it (SLACK). (That the next run begins
there is what tests/pipeline/test_stage_processes.py and test_croc_processes.py look at.)
A script, not a test: it takes minutes, and it needs the clone that the pipeline's tests use.
"""

import contextlib
import fcntl
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conftest import Pipeline, clone

LOCKS = ("dvc.lock", "models/dvc.lock", "data/dvc.lock")
INTERVAL, SLACK = 1.0, 2.0  # seconds
LONGER = {  # than in the tests, so that kills fall into the middle of the work
    "demo.train": 120,
    "croc.epochs": 12,
    "detector.iterations": 120,
    "detector.lr_steps": [80],
    "segmenter.epochs": 12,
}


def locks(pipe: Pipeline) -> list[bytes]:
    return [(pipe.root / name).read_bytes() for name in LOCKS]


def strays(pipe: Pipeline) -> list[Path]:
    """Files that only a broken run would leave."""
    checkpoint = [p for p in (pipe.root / ".scratch").rglob("*") if p.is_file()] if (pipe.root / ".scratch").exists() else []
    return checkpoint + [p for p in pipe.root.rglob(".*.part") if ".dvc" not in p.parts]


def lost(pipe: Pipeline, now: float) -> float | None:
    """Seconds since the stage that is at work saved its work or began it; None where none that saves it is at work."""
    with contextlib.suppress(FileNotFoundError):  # it has just ended
        for lock in (pipe.root / ".scratch").rglob("lock"):
            with lock.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    saved = [lock, *lock.parent.glob("*.pt"), *lock.parent.glob("*.sqlite")]
                    return now - max(p.stat().st_mtime for p in saved)
    return None


def attempt(pipe: Pipeline, seconds: float | None) -> tuple[bool, str, float | None]:
    """`dvc repro`, killed after so many seconds; whether it came to its end, the stage it was in, and what the kill cost."""
    log = (pipe.root / "log").open("w+")
    child = subprocess.Popen(
        ["dvc", "repro"], cwd=pipe.root, env=pipe.env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    cost = None
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        cost = lost(pipe, time.time())
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    log.seek(0)
    text = log.read()
    log.close()
    if child.returncode > 0:
        sys.exit(f"dvc repro ended with status {child.returncode}:\n{text[-3000:]}")
    stages = re.findall(r"Running stage '(?:[^':]*:)?([^']+)'", text)
    return child.returncode == 0, stages[-1] if stages else "-", cost


def longer(folder: Path) -> Pipeline:
    pipe = clone(folder)
    for key, value in LONGER.items():
        pipe.set(key, value)
    return pipe


def main(kills: int = 30, seed: int = 0, seconds: float = 20.0) -> None:
    rng, begin, costs = random.Random(seed), time.monotonic(), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        calm = longer(Path(folder) / "calm")
        assert attempt(calm, None)[0]
        want = locks(calm)
        print(f"undisturbed: {time.monotonic() - begin:.0f} s", flush=True)
        done, met, runs, fresh = 0, set(), 0, True
        while done < kills or not fresh:
            if fresh:
                shutil.rmtree(Path(folder) / "killed", ignore_errors=True)
                pipe, fresh = longer(Path(folder) / "killed"), False
                pipe.env["UNSEG_CHECKPOINT_SECONDS"] = str(INTERVAL)
            moment = rng.uniform(0, seconds) if done < kills else None
            ended, stage, cost = attempt(pipe, moment)
            if ended:
                runs, fresh = runs + 1, True
                assert locks(pipe) == want, "artefacts differ from those of the undisturbed run"
                assert not strays(pipe), strays(pipe)
                print(f"run {runs} is the undisturbed one to the byte", flush=True)
            else:
                done += 1
                met.add(stage)
                said = "" if cost is None else f", {cost:.1f} s after the last save"
                print(f"kill {done} after {moment:.1f} s, in {stage}{said}", flush=True)
                costs += [] if cost is None else [cost]
                assert cost is None or cost <= INTERVAL + SLACK, "a kill cost more than what is done between two saves"
    print(f"{len(costs)} of them in work that is saved each {INTERVAL:g} s, at most {max(costs, default=0):.1f} s after that")
    print(f"{done} kills in {len(met)} stages ({', '.join(sorted(met))}), {runs} runs: all artefacts byte-equal")


if __name__ == "__main__":
    main(*(kind(word) for kind, word in zip((int, int, float), sys.argv[1:], strict=False)))
