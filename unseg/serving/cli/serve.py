"""`unseg serve`: a page on this machine that segments photographs and edits the clusters."""

import argparse
import contextlib
import socket
from functools import partial
from pathlib import Path

from unseg.clustering import naming
from unseg.core import optional
from unseg.core.console import InputError
from unseg.serving.cli import clusters

HOST = "127.0.0.1"  # this machine only
GRACE_SECONDS = 2  # for answers under way, after Ctrl-C


def run(options: argparse.Namespace) -> None:
    """Serve until Ctrl-C. Raises InputError, before the model is loaded, if a package is missing or the port is in use."""
    optional.check_extra("serve", "starlette", "uvicorn")
    with listen(options.port) as listener:
        import uvicorn

        from unseg.serving.api import load
        from unseg.serving.server import app

        is_pushed = not options.run.params.exists() and (options.run / "config.json").is_file()  # by `unseg push`
        path = options.model or (options.run.root if is_pushed else options.run.segmenter)
        named = clusters.clusters_file(options)  # a new file of --clusters is written by the first edit
        model = load(path, named if named and named.exists() else None, device=options.device)
        about, edit = {"model": Path(path).resolve().name}, None
        if file := options.clusters or (None if options.model else options.run / naming.FILE):
            clustering = options.run / "data/instances.json"
            is_of_run = not (options.model or options.clusters) and clustering.exists()
            empty = naming.ClusterNames(model.clusters.count, {}, naming.fingerprint(clustering) if is_of_run else None)
            about["file"], edit = file.name, partial(clusters.edit_file, file, empty)
        config = uvicorn.Config(
            app.create_app(app.Server(model, edit, about)),
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        print(f"http://{HOST}:{listener.getsockname()[1]} shows the page; Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn has ended in order, and passes the signal on
            uvicorn.Server(config).run([listener])


def listen(port: int) -> socket.socket:
    """A socket of this machine only; port 0 takes a free one. Raises InputError if the port cannot be had."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port that has just been closed
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise InputError(f"port {port} cannot be used ({error.strerror}); give another one by --port") from None
    return listener
