"""A hub on 127.0.0.1 with the few routes that `unseg push` and `unseg.load` use; it stores what is committed."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_good"
Files = dict[str, bytes]


@dataclass
class Repo:
    private: bool
    commits: dict[str, Files] = field(default_factory=dict)  # by commit; the last one is main

    def commit(self, files: Files) -> str:
        sha = sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[sha] = files
        return sha

    def sha(self, revision: str) -> str | None:
        return next(reversed(self.commits), None) if revision == "main" else revision if revision in self.commits else None


class FakeHub(ThreadingHTTPServer):
    """`repos` by name; `requests` has a line for each request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serve() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append(f"{self.command} {path}")
        is_logged_in = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if path == "/api/repos/create":
            self.create(json.loads(body), is_logged_in)
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif m := re.fullmatch(r"/api/models/(\w+/\w+)(?:/(revision|tree|preupload|commit)/(.+))?", path):
            self.api(m[1], m[2], m[3] or "main", body, is_logged_in)
        elif m := re.fullmatch(r"/(\w+/\w+)/resolve/([^/]+)/(.+)", path):
            repo = self.server.repos[m[1]]
            sha = repo.sha(m[2])
            assert sha
            content = repo.commits[sha][m[3]]
            self.answer(content, X_Repo_Commit=sha, ETag=f'"{sha1(content).hexdigest()}"')
        else:
            self.answer({"error": "no such route"}, 404)

    do_GET = do_HEAD = do_POST = handle_request

    def create(self, wanted: dict[str, Any], is_logged_in: bool) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        if not is_logged_in:
            self.answer({"error": "Invalid username or password."}, 401)
        elif wanted["organization"] != "jane":
            self.answer({"error": "no right"}, 403)
        else:
            there = name in self.server.repos
            self.server.repos.setdefault(name, Repo(wanted.get("visibility") == "private" or bool(wanted.get("private"))))
            self.answer({"url": f"{self.server.url}/{name}"}, 409 if there else 200)

    def api(self, name: str, what: str | None, revision: str, body: bytes, is_logged_in: bool) -> None:
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and not is_logged_in):
            self.answer({"error": "Repository not found"}, 404 if is_logged_in else 401, X_Error_Code="RepoNotFound")
            return
        sha = repo.sha(revision)
        files = repo.commits.get(sha or "", {})
        if what == "preupload":
            asked = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]})
        elif what == "commit":
            files = dict(files)
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            sha = repo.commit(files)
            self.answer({"commitUrl": f"{self.server.url}/{name}/commit/{sha}", "commitOid": sha})
        elif sha is None and (repo.commits or revision != "main"):
            self.answer({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
        elif what == "tree":
            self.answer([{"type": "file", "path": p, "size": len(x), "oid": sha1(x).hexdigest()} for p, x in files.items()])
        else:
            self.answer({"id": name, "sha": sha, "private": repo.private, "siblings": [{"rfilename": p} for p in files]})
