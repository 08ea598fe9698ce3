"""The built distribution, once for each worker."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of this working tree, and the wheel that is built of that sdist."""
    out = tmp_path_factory.mktemp("built")
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", ".", str(ROOT)]
    done = subprocess.run(words, cwd=out, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return out
