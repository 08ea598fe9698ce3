"""The generated data set. (Runs only when params.yaml's data.root is data/raw/demo.)"""

from pathlib import Path

from unseg.core import params
from unseg.core.console import run
from unseg.data import demo


def main(root: str) -> None:
    demo.write(Path(root), params.group("demo", demo.Demo), params.value("seed", int))


if __name__ == "__main__":
    run(main)
