"""The fenced blocks of README.md and docs/, as the tests run them."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", *(p.relative_to(ROOT).as_posix() for p in sorted((ROOT / "docs").glob("*.md"))))


def blocks(page: str, kind: str, under: str = "") -> list[str]:
    """The blocks of one kind (sh, yaml, python) of a page, or of one of its sections."""
    text = (ROOT / page).read_text()
    if under:
        (text,) = re.findall(rf"^## {re.escape(under)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(page: str, under: str = "") -> list[str]:
    """The lines of the sh blocks, without comments."""
    lines = [re.sub(r"(^|\s+)# .*", "", line).strip() for block in blocks(page, "sh", under) for line in block.splitlines()]
    return [line for line in lines if line]
