"""Metadata for the build: the dependencies are requirements.txt, the extra `dev` is requirements-dev.txt."""

from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Requirements(MetadataHookInterface):
    def update(self, metadata: dict[str, Any]) -> None:
        metadata["dependencies"] = self.read("requirements.txt")
        metadata["optional-dependencies"] = self.config["extras"] | {"dev": self.read("requirements-dev.txt")}

    def read(self, name: str) -> list[str]:
        """The requirements of a file, without comments and without those of files that it includes."""
        lines = (line.split("#")[0].strip() for line in (Path(self.root) / name).read_text("utf-8").splitlines())
        return [line for line in lines if line and not line.startswith("-")]
