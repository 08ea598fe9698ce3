"""Projects: folders of the user's with all that `dvc repro` needs beside the installed package.

The wheel has these files in `unseg/project`; in a clone they are the top-level files that pyproject.toml lists. No code of unseg
lies in a project, so its dvc.yaml names `.unseg/core` where the repository's has `unseg/core`: one line, a hash of that folder of
the installed package. After an upgrade exactly the stages run again whose code has changed. `.unseg/files` has the hash of each
file as it was laid out (`sha256sum -c` reads it), so that an upgrade overwrites no edits.
"""

import hashlib
import re
import tomllib
from pathlib import Path

from unseg.core.console import InputError

PACKAGE = Path(__file__).parents[1]
CODE, RECORD, GRAPH = ".unseg", ".unseg/files", "dvc.yaml"
USERS = ("params.yaml", "clusters.yaml", ".dvc/config", ".dvcignore", ".gitignore")  # theirs once they are laid out
NO_GIT = b"    no_scm = true\n"  # ends .dvc/config, as `dvc init --no-scm` has it


def template_folder() -> Path:
    """The folder with the files of a project: in the installed package, or the clone."""
    installed = PACKAGE / "project"
    return installed if installed.is_dir() else PACKAGE.parent


def template() -> dict[str, bytes]:
    """The content of each file of a project, by its path there, sorted."""
    root = template_folder()
    tops = list(root.iterdir())
    if root == PACKAGE.parent:
        settings = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["hatch"]["build"]
        tops = [root / name for name in settings["targets"]["wheel"]["force-include"]]
    files = [f for top in tops for f in (top.rglob("*") if top.is_dir() else [top]) if f.is_file()]
    names = {f.relative_to(root).as_posix(): f for f in files if f.suffix != ".pyc"}
    return {name: content(names[name]) for name in sorted(names)}


def content(file: Path) -> bytes:
    """A file as a project has it: deps on `unseg/X` become `.unseg/X`."""
    text = file.read_bytes()
    return re.sub(rb"(?<=[\s,\[])unseg/(?=\w)", f"{CODE}/".encode(), text) if file.name == GRAPH else text


def code_hashes() -> dict[str, str]:
    """A hash of each folder of the package that a stage depends on, by its name: of the names and contents of all files in it."""
    graphs = b"".join(data for name, data in template().items() if Path(name).name == GRAPH)
    hashes = {}
    for name in sorted({match.decode() for match in re.findall(rf"{re.escape(CODE)}/(\w+)".encode(), graphs)}):
        folder, key = PACKAGE / name, hashlib.sha256()
        for file in sorted(f for f in folder.rglob("*") if f.is_file() and f.suffix != ".pyc"):
            key.update(f"{file.relative_to(folder).as_posix()} {sha256(file.read_bytes())}\n".encode())
        hashes[name] = key.hexdigest()
    return hashes


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_project(root: Path) -> bool:
    """Whether `unseg init` made this folder. A clone of unseg is no project."""
    return (root / RECORD).exists()


def is_empty(root: Path) -> bool:
    """Whether there is nothing in a folder but a Git repository, or no such folder."""
    return not root.exists() or (root.is_dir() and all(p.name == ".git" for p in root.iterdir()))


def check_new(root: Path) -> None:
    """Raises InputError if a project cannot be laid out here."""
    if is_project(root):
        raise InputError(f"{root} is a project already; `unseg init --upgrade {root}` renews its stages and profiles")
    if not is_empty(root):
        raise InputError(f"{root} is not empty; name a new folder")


def create(root: Path) -> None:
    """Lay out a project in a new or empty folder. Raises InputError if there are files; then nothing is written."""
    check_new(root)
    in_git = any((folder / ".git").exists() for folder in (root.absolute(), *root.absolute().parents))
    files = template()
    for name, data in files.items():
        write(root / name, data if in_git or name != ".dvc/config" else data + NO_GIT)
    refresh_code(root)
    write_record(root, files)


def refresh_code(root: Path) -> list[str]:
    """Bring `.unseg/` up to the installed package; the names of the folders of unseg that have changed."""
    changed = []
    for name, digest in code_hashes().items():
        file, data = root / CODE / name, f"{digest}\n".encode()
        if not file.exists() or file.read_bytes() != data:
            write(file, data)
            changed.append(name)
    return changed


def is_outdated(root: Path) -> bool:
    """Whether the installed package would lay out other stages, profiles or graphs."""
    return read_record(root) != {name: sha256(data) for name, data in template().items() if name not in USERS}


def upgrade(root: Path, force: bool) -> list[str]:
    """Renew all files but the user's own (USERS, data, models, results), and `.unseg/`.

    Returns:
        The files that were written or removed, without those in `.unseg/`.

    Raises:
        InputError: no project of `unseg init`, or (without force) a file has edits that would be lost; nothing is written.
    """
    if not is_project(root):
        raise InputError(f"{root / RECORD}: no such file; name a project of `unseg init` (a clone of unseg: `git pull`)")
    before, files = read_record(root), {name: data for name, data in template().items() if name not in USERS}
    present = {name: sha256((root / name).read_bytes()) for name in before | files if (root / name).is_file()}
    after = {name: sha256(data) for name, data in files.items()}
    edited = [name for name, digest in present.items() if digest not in (before.get(name), after.get(name))]
    if edited and not force:
        raise InputError(f"{', '.join(edited)}: edits of yours; commit or copy them, then use --force")
    changed = [name for name in before | files if present.get(name) != after.get(name)]
    for name in changed:
        if name in files:
            write(root / name, files[name])
        else:
            (root / name).unlink()
    refresh_code(root)
    write_record(root, files)
    return changed


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_record(root: Path, files: dict[str, bytes]) -> None:
    lines = [f"{sha256(data)}  {name}\n" for name, data in files.items() if name not in USERS]
    write(root / RECORD, "".join(lines).encode())


def read_record(root: Path) -> dict[str, str]:
    """The hash of each file as it was laid out. Raises InputError if the record names a file outside the project."""
    lines = (line.split("  ", 1) for line in (root / RECORD).read_text("utf-8").splitlines())
    try:
        record = {name: digest for digest, name in lines}
    except ValueError:
        raise InputError(f"{root / RECORD} is damaged; lay out a new project and copy params.yaml and clusters.yaml") from None
    for name in record:
        if not (root / name).resolve().is_relative_to(root.resolve()):
            raise InputError(f"{root / RECORD} names {name}, which is outside the project; remove that line")
    return record
