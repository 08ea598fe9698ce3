"""Downloads from the Hugging Face hub and uploads to it, by huggingface_hub; its errors become one line with a remedy.

The hub's variables apply: HF_HOME is the cache, HF_ENDPOINT another hub, HF_HUB_OFFLINE=1 reads only the cache, HF_TOKEN is used
instead of the login of `hf auth login`.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from unseg.core.console import InputError
from unseg.core.storage import one_line

SCHEME = "hf://"
ADDRESS = re.compile(r"hf://(?P<name>[^/@]+/[^/@]+)(@(?P<revision>.+))?")
NAME = re.compile(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)
LOG_IN = "log in with `hf auth login`"


def check_name(name: str) -> None:
    """Raises InputError unless this is owner/name as the hub allows it."""
    if not NAME.fullmatch(name) or ".." in name or "--" in name:
        raise InputError(f"{name} is no name of a repository; write it like owner/name, in letters, digits, `-`, `_` and `.`")


def download(address: str, files: Sequence[str]) -> Path:
    """The folder of the hub's cache with these files of a repository, as far as it has them; what is missing is downloaded.

    Args:
        address: hf://owner/name or hf://owner/name@revision; the revision is a branch, a tag or a commit.

    Raises:
        InputError: no such repository or revision, no right to read it, or no network and nothing in the cache.
    """
    match = ADDRESS.fullmatch(address)
    if not match:
        raise InputError(f"{address} is not understood; write it like hf://owner/name or hf://owner/name@revision")
    check_name(match["name"])
    from huggingface_hub import snapshot_download

    with one_line_errors(match["name"], f"{LOG_IN} if it is private"):
        return Path(snapshot_download(match["name"], revision=match["revision"], allow_patterns=list(files)))


def upload(folder: Path, name: str, private: bool, replaced: Sequence[str]) -> str:
    """Commit the files of a folder to a repository, which is created if there is none; returns the address of the commit.

    Args:
        private: create it as a private one; a public one that exists already is refused, and nothing is uploaded.
        replaced: patterns of earlier files to delete if the folder does not have them.

    Raises:
        InputError: no login, no right to write, no network.
    """
    from huggingface_hub import HfApi

    api = HfApi(library_name="unseg")
    with one_line_errors(name, f"{LOG_IN} with a token that may write, or write the files into a folder by --to"):
        api.create_repo(name, private=private or None, exist_ok=True)
        if private and not api.model_info(name).private:
            raise InputError(f"{name} is public; make it private in its settings on the hub, or leave --private out")
        message, patterns = "Push by unseg", list(replaced)
        info = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message, delete_patterns=patterns)
    return str(info.commit_url)


@contextmanager
def one_line_errors(name: str, remedy: str) -> Iterator[None]:
    """Replace the errors of the hub and of its HTTP client by an InputError; remedy: for a request that the hub refuses."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except InputError:
        raise
    except GatedRepoError:
        raise InputError(f"{name} is gated; accept its terms on {constants.ENDPOINT}/{name}, and {LOG_IN}") from None
    except RevisionNotFoundError:
        raise InputError(f"{name} has no such revision; name a branch, a tag or a commit of it") from None
    except RepositoryNotFoundError:
        raise InputError(f"{constants.ENDPOINT} has no repository {name} that you may see; check the name; {remedy}") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if constants.HF_HUB_OFFLINE:
            raise InputError(f"{name} is not in the hub's cache, and HF_HUB_OFFLINE is set; unset it") from None
        reason = one_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)[:200]
        raise InputError(f"{constants.ENDPOINT} cannot be reached ({reason}); check the network, and run it again") from None
    except Exception as error:  # of the hub, of its client for HTTP, or of the system
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            raise InputError(f"{constants.ENDPOINT} refuses access to {name} ({status}); {remedy}") from None
        reason = one_line(error)[:200]
        raise InputError(f"{constants.ENDPOINT} failed for {name} ({reason}); check the network, and run it again") from None
