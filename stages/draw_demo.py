"""Draw the demo's scenes. DVC runs this only if data.root in params.yaml is data/raw/demo."""

from pathlib import Path

from unseg.core import params
from unseg.core.console import run
from unseg.data import demo


def main(output: str) -> None:
    demo.write(Path(output), params.group("demo", demo.Demo), params.value("seed", int))


if __name__ == "__main__":
    run(main)
