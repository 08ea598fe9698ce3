"""A stage ends when its dvc ends, with one line and an unlocked folder, and the next `dvc repro` resumes.

The stage is a small script without a network that uses unseg.core.console.run, in a repository for it.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 3.0  # after which a stage must have ended
STAGE = """
import fcntl, os, pathlib, sys, time
from unseg.core import console

def main():
    with open(".scratch/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        begun = pathlib.Path(".scratch/begun")
        if begun.exists():
            pathlib.Path("out").write_text("resumed")
            return
        try:
            begun.write_text(f"{os.getpid()} {os.getppid()}")
            time.sleep(120)
        finally:
            pathlib.Path(".scratch/cleaned").touch()

console.run(main)
"""
pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")


def wait(until: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not (reached := until()) and time.monotonic() < end:
        time.sleep(0.05)
    return reached


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # a zombie: in a container it may stay
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


def environment(shell: str) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {k: v for k, v in os.environ.items() if not k.startswith("DVC_")}
    return {**kept, "PATH": path, "SHELL": shell, "PYTHONPATH": str(ROOT), "DVC_NO_ANALYTICS": "1"}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repository")
    subprocess.run(["dvc", "init", "--no-scm", "-q"], cwd=root, env=environment("/bin/sh"), check=True)
    (root / "stage.py").write_text(STAGE)
    (root / "dvc.yaml").write_text("stages: {toy: {cmd: python stage.py, outs: [out]}}\n")
    return root


@pytest.fixture(params=["sh", "bash"])
def shell(request: pytest.FixtureRequest) -> str:
    """sh (dash) may stay between dvc and the stage; bash replaces itself by the stage."""
    return shutil.which(request.param) or pytest.skip(f"no {request.param}")


@contextlib.contextmanager
def running(root: Path, shell: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`dvc repro` while its stage runs. Yields dvc and the stage's process id."""
    for name in (".scratch", "out", "dvc.lock"):
        shutil.rmtree(root / name, ignore_errors=True) if name == ".scratch" else (root / name).unlink(missing_ok=True)
    (root / ".scratch").mkdir()
    begun = root / ".scratch/begun"
    log = (root / "log").open("w")
    command = ["dvc", "repro", "--no-run-cache"]
    with log, subprocess.Popen(command, cwd=root, env=environment(shell), stdout=log, stderr=log, start_new_session=True) as dvc:
        try:
            assert wait(lambda: begun.exists() and begun.read_text() != "", 60), (root / "log").read_text()
            yield dvc, int(begun.read_text().split()[0])
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(dvc.pid, signal.SIGKILL)


def resumes(root: Path, shell: str) -> bool:
    done = subprocess.run(["dvc", "repro", "--no-run-cache"], cwd=root, env=environment(shell), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return (root / "out").read_text() == "resumed"


def test_killing_dvc_ends_its_stage(repository: Path, shell: str) -> None:
    with running(repository, shell) as (dvc, stage):
        assert alive(stage)
        dvc.kill()
        dvc.wait()
        assert wait(lambda: not alive(stage), SECONDS)
    assert (repository / ".scratch/cleaned").exists()  # by an exception
    assert "error: ended by SIGTERM; the same command resumes it" in (repository / "log").read_text()
    assert resumes(repository, shell)


@pytest.mark.slow
def test_killing_dvc_ends_all_processes_of_a_stage(tmp_path: Path) -> None:
    env = environment("/bin/sh") | {"UNSEG_PROCESSES": "2", "UNSEG_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    (tmp_path / "two.py").write_text(
        "import os, pathlib, time\nfrom unseg.core import console\n"
        "def main():\n    pathlib.Path('pids-' + os.environ['RANK']).write_text(f'{os.getpid()} {os.getppid()} ')\n"
        "    time.sleep(120)\nif __name__ == '__main__':\n    console.run(main)\n"
    )
    (tmp_path / "dvc.yaml").write_text("stages: {two: {cmd: python -m unseg.engine.distributed two, outs: [out]}}\n")
    subprocess.run(["dvc", "init", "--no-scm", "-q"], cwd=tmp_path, env=env, check=True)
    pids: list[int] = []

    def begun() -> bool:
        pids[:] = [int(pid) for file in tmp_path.glob("pids-*") for pid in file.read_text().split()]
        return len(pids) == 4  # two of two processes, and of torchrun twice

    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(["dvc", "repro"], cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True) as dvc,
    ):
        assert wait(begun, 120), (tmp_path / "log").read_text()
        dvc.kill()
    assert wait(lambda: not any(map(alive, pids)), 15)  # torchrun ends them first
    log_text = (tmp_path / "log").read_text()
    assert "Traceback" not in log_text
    assert log_text.count("error: ended by SIGTERM") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_or_a_closed_terminal_ends_without_a_traceback(repository: Path, number: signal.Signals) -> None:
    with running(repository, "/bin/sh") as (dvc, stage):
        os.killpg(dvc.pid, number)
        assert wait(lambda: not alive(stage), SECONDS)
        dvc.wait(60)
    log_text = (repository / "log").read_text()
    name = "Ctrl-C" if number == signal.SIGINT else "SIGHUP"
    assert log_text.count("error: ended by") == log_text.count(f"error: ended by {name}; the same command resumes it") == 1
    assert "Traceback" not in log_text
    assert (repository / ".scratch/cleaned").exists()


def test_without_dvc_a_stage_outlives_its_parent(tmp_path: Path) -> None:
    """As with `nohup python -m stages.mine ... &`."""
    (tmp_path / ".scratch").mkdir()
    (tmp_path / "stage.py").write_text(STAGE)
    begun = tmp_path / ".scratch/begun"
    subprocess.run(["sh", "-c", f"{sys.executable} stage.py & :"], cwd=tmp_path, env=environment("/bin/sh"), check=True)
    assert wait(lambda: begun.exists() and begun.read_text() != "", 60)
    stage = int(begun.read_text().split()[0])
    try:
        assert not wait(lambda: not alive(stage), 1.5)
    finally:
        os.kill(stage, signal.SIGKILL)


SWALLOWS = """
import time
from unseg.core import console

console.guard(importing=True)
for _ in range(3):
    try:
        print("in", flush=True)
        time.sleep(60)
    except BaseException:
        pass
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_imports_is_not_lost_in_the_package(number: signal.Signals) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", SWALLOWS], cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as stage:
        assert stage.stdout is not None
        assert stage.stdout.readline() == "in\n"
        stage.send_signal(number)
        assert wait(lambda: stage.poll() is not None, SECONDS)
        stage.kill()
        text = stage.communicate()[1]
    assert text == f"error: ended by {'Ctrl-C' if number == signal.SIGINT else 'SIGTERM'}; the same command resumes it\n"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("module", [["unseg.engine.distributed", "stages.mine"], ["stages.choose_k"]])
def test_a_stage_is_guarded_before_its_imports(module: list[str], tmp_path: Path) -> None:
    for name in ("torch", "sklearn"):  # packages whose import takes very long
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-m", *module], cwd=ROOT, stdout=subprocess.PIPE, text=True, env=env) as stage:
        assert stage.stdout is not None
        assert stage.stdout.readline() == "importing\n"
        status = Path(f"/proc/{stage.pid}/status").read_text()
        stage.kill()
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    assert int(caught, 16) >> (signal.SIGHUP - 1) & 1
