"""A fork server for the tests: the commands of a toy run without the seconds that their imports take.

    python tests/pipeline/forkserver.py FOLDER PID

imports torch, DVC and all that the stages take from third parties (nothing of unseg: each toy run has its own copy), writes
FOLDER/bin/python and FOLDER/bin/dvc, and waits at FOLDER/socket until process PID has ended. With FOLDER/bin first in PATH,
`python -m x`, `python x.py` and `dvc` are run in a fork of this process, in the caller's directory, with its environment and
its standard streams, and end with its status. Every other call of `python` is one of the real Python.

Only tests use it. `pytest -m slow tests/pipeline/test_share.py` makes a toy run by the real commands: its bytes are the same.
"""

import ast
import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import socket
import sys
import threading
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[2]
ALSO = ("dvc.cli.parser", "dvc.repo", "dvc.stage.run", "torch._dynamo")  # imported late by dvc and by torch.optim
CLIENT = """#!{python} -IS
import json, os, socket, sys
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
if name == "python" and not (words and (words[0] == "-m" or words[0].endswith(".py"))):
    os.execv({python!r}, [{python!r}, *words])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    socket.send_fds(server, [b"3"], [0, 1, 2])
    server.sendall(json.dumps([name, words, os.getcwd(), dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    status = int(server.recv(16) or 70)
if status < 0:
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


def preload() -> None:
    """Import every third-party module that a stage can import; what is not installed is left out.

    A fork of a process with threads may wait for one of them for ever; onnxruntime, of the command line alone, starts one.
    """
    names = set(ALSO)
    for file in [*ROOT.glob("stages/*.py"), *ROOT.glob("unseg/*.py"), *ROOT.glob("unseg/*/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            names |= {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            names |= {node.module} if isinstance(node, ast.ImportFrom) and node.module else set()
    for name in sorted(names):
        if name.split(".")[0] not in ("unseg", "stages", "onnx", "onnxruntime"):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a module that is imported here started a thread"


def command(name: str, words: list[str]) -> None:
    """What the real `python` or `dvc` would do with these words."""
    if name == "dvc":
        from dvc.cli import main

        sys.argv = ["dvc", *words]
        sys.exit(main(words))
    elif words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, str(Path(words[0]).parent.absolute())
        runpy.run_path(words[0], run_name="__main__")


def become(connection: socket.socket) -> None:
    """In a fork: take over the caller's streams, directory and environment, and do its command."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    with connection.makefile("rb") as file:
        name, words, directory, environment = json.loads(file.read())
    connection.close()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    status = 1
    try:
        command(name, words)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # to take all those modules apart, as Python does, would copy them first


def answer(connection: socket.socket) -> None:
    """In a fork: wait for the fork that does the command, and send its status."""
    if child := os.fork():
        connection.sendall(b"%d" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os._exit(0)
    become(connection)


def serve(folder: Path, pid: int) -> None:
    address = str(folder / "socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen(64)
        (folder / "bin").mkdir()
        for name in ("dvc", "python"):
            client = folder / "bin" / name
            client.write_text(CLIENT.format(python=sys.executable, address=address))
            client.chmod(0o755)
        (folder / "ready").touch()
        gc.collect()
        gc.freeze()
        while Path(f"/proc/{pid}").exists():
            if not select.select([server], [], [], 1)[0]:
                continue
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                answer(connection)
            connection.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


if __name__ == "__main__":
    preload()
    serve(Path(sys.argv[1]), int(sys.argv[2]))
