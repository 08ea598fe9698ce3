"""Arguments and help texts of the command line, and the check of output files. It imports nothing slow."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from unseg.core.console import InputError
from unseg.serving.run import Run

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
FILE: dict[str, Any] = {"type": Path, "metavar": "FILE"}
SIZE: dict[str, Any] = {"type": lambda text: int(text) if text.isdigit() else text, "metavar": "SIZE"}
SHARED: dict[str, dict[str, Any]] = {  # options of several commands
    "run": {"type": lambda text: Run(Path(text)), "default": Run(Path()), "metavar": "FOLDER", "help":
            "Folder in which `dvc repro` ran. Its model, params.yaml and clusters.yaml are used (default: this folder)."},
    "model": {"type": lambda text: text if text.startswith("hf://") else Path(text), "metavar": "MODEL", "help":
              "Segmenter to use: a file, hf://owner/name[@revision], or a folder of `unseg push` (default: the final one of the "
              "run)."},
    "clusters": {**FILE, "help": "Names, colours and merges of clusters (default: clusters.yaml of the run)."},
    "device": {"metavar": "NAME", "help": "cpu, cuda or mps (default: $UNSEG_DEVICE, or the best available)."},
}  # fmt: skip
EDITS = {
    "name": ("3=dog", "Name cluster 3 dog."),
    "colour": ("3=#e69f00", "Draw cluster 3 in this colour."),
    "merge": ("5=3", "Merge cluster 5 into cluster 3; 5=background merges it into the background."),
    "ignore": ("7", "Give the pixels of cluster 7 the ignore label, 255."),
    "reset": ("3|all", "Remove all edits of cluster 3, or of all clusters."),
}


def parser() -> argparse.ArgumentParser:
    """The parser; it stores the name of the command in `command`."""
    top = argparse.ArgumentParser(
        "unseg",
        description="Unsupervised semantic segmentation: train a model from a folder of unlabelled photographs, and use it.",
        epilog="`unseg COMMAND --help` shows the options of a command. Documentation: docs/folder.md",
    )
    commands = top.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    add_training(commands)
    add_use(commands)
    add_exchange(commands)
    return top


def add_command(
    commands: Commands, name: str, help: str, details: str, *shared: str, force: str = "Overwrite FILE if it exists."
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help, description=f"{help} {details}")
    for option in shared:
        command.add_argument(f"--{option}", **SHARED[option])
    if force:
        command.add_argument("--force", action="store_true", help=force)
    return command


def add_training(commands: Commands) -> None:
    init = add_command(commands, "init", "Lay out a project in a folder.",
                       "A project has dvc.yaml, params.yaml, profiles and stages; unseg itself stays where it is installed.",
                       force="With --upgrade: overwrite your edits of dvc.yaml, stages and profiles.")  # fmt: skip
    init.add_argument("folder", type=Path, nargs="?", default=Path(), metavar="FOLDER",
                      help="New or empty folder (default: this folder).")  # fmt: skip
    init.add_argument("--upgrade", action="store_true", help="After an upgrade of unseg: renew dvc.yaml, stages and profiles of "
                      "a project, not params.yaml, clusters.yaml and data.")  # fmt: skip

    fit = add_command(commands, "fit", "Train a model from a folder of photographs.",
                  "Run it in a project (`unseg init`), in a clone of unseg or in an empty folder; elsewhere it makes the project "
                  "unseg-NAME of a folder NAME. It links FOLDER, writes params.yaml with sizes that fit the number of "
                  "photographs, and runs `dvc repro`. The same command resumes an interrupted run. See docs/folder.md.",
                  "device", force="Overwrite your edits of params.yaml.")  # fmt: skip
    fit.add_argument("folder", type=Path, metavar="FOLDER", help="Photographs, also in sub-folders. No labels are needed.")
    fit.add_argument("--weights", metavar="FILE", help="A pre-trained ViT (docs/weights.md), instead of one that is fetched.")
    fit.add_argument("--profile", metavar="NAME",
                     help="Profile to start from (default: photos, or folder if no pre-trained weights can be had).")  # fmt: skip
    fit.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                     help="Change a value of params.yaml, e.g. croc.epochs=3. Can be repeated.")  # fmt: skip
    fit.add_argument("--no-run", action="store_true", help="Only link FOLDER and write params.yaml.")

    profile = add_command(commands, "profile", "Write params.yaml for a profile.",
                      "Run it in a project or a clone of unseg. params.yaml gets the values of profiles/base.yaml, with the "
                      "changes of profiles/NAME.yaml.", force="Overwrite your edits of params.yaml.")  # fmt: skip
    profile.add_argument("name", metavar="NAME", help="A file of profiles/: demo, folder, voc, coco20k, ...")


def add_use(commands: Commands) -> None:
    predict = add_command(commands, "predict", "Segment photographs or videos.",
                      "Writes label maps (OUT/labels), overlays (OUT/overlays), COCO annotations (OUT/predictions.json), a table "
                      "(OUT/summary.tsv) and the list of files that could not be read (OUT/skipped.json).",
                      "run", "model", "clusters", "device", force="Write into OUT even if it is not empty.")  # fmt: skip
    predict.add_argument("input", type=Path, metavar="INPUT", help="A photograph, a video, or a folder of them.")
    predict.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="Output folder.")
    predict.add_argument("--instances", action="store_true",
                         help="Also run the detector of the run: writes OUT/instances and OUT/instances.json.")  # fmt: skip
    predict.add_argument("--crf", action="store_true", help="Refine outlines by a CRF with the settings of the run (slow).")
    predict.add_argument("--size", **SIZE, help="How to resize a photograph for the network: original (not at all), square (to "
                         "the training size), or the pixels of its shorter side (default: predict.input of the model's run). "
                         "Give a number for photographs that are much larger than those of the training.")  # fmt: skip

    clusters = add_command(commands, "clusters", "Show the clusters; name, merge, colour or ignore them.",
                       "Edits clusters.yaml of the run and writes a page with typical masks of each cluster. You can also edit "
                       "clusters.yaml by hand. `unseg predict` uses it at once, the report after `dvc repro`.",
                       "run", force="")  # fmt: skip
    clusters.add_argument("-o", "--out", **FILE, help="Page to write (default: results/clusters.html of the run).")
    clusters.add_argument("--no-page", action="store_true", help="Do not write the page.")
    for key, (example, help) in EDITS.items():
        clusters.add_argument(f"--{key}", action="append", type=partial(lambda key, text: (key, text), key), dest="edits",
                              metavar=example, default=[], help=help)  # fmt: skip

    probe = add_command(commands, "probe", "Learn your own classes from a few labelled photographs.",
                    "Trains a linear head on the frozen segmenter.", "run", "model", "device")  # fmt: skip
    probe.add_argument("photos", type=Path, metavar="PHOTOS", help="Folder of photographs.")
    probe.add_argument("masks", type=Path, metavar="MASKS", help="Folder of masks: NAME.png for NAME.jpg, grey or palette, "
                       "0 background, 1, 2, ... classes, 255 unknown.")  # fmt: skip
    probe.add_argument("-o", "--out", required=True, **FILE, help="Segmenter to write; with --vote, clusters.yaml to write.")
    probe.add_argument("--classes", metavar="NAMES",
                       help="Class names, e.g. background,dog,cat (default: the lines of MASKS/classes.txt).")  # fmt: skip
    probe.add_argument("--size", **SIZE, help="As for `unseg predict`, which then uses this size for the new segmenter.")
    probe.add_argument("--vote", action="store_true",
                       help="Do not train: name and merge the clusters by the majority of their labelled pixels.")  # fmt: skip

    serve = add_command(commands, "serve", "Open a page that segments photographs and edits the clusters.",
                        "Prints the address of the page, which only this machine can open. Edits go to clusters.yaml of the "
                        "run. Needs `pip install '.[serve]'` in a clone.", "model", "clusters", "device", force="")  # fmt: skip
    serve.add_argument("run", **SHARED["run"] | {"nargs": "?", "metavar": "RUN"})
    serve.add_argument("--port", type=port, default=7870, metavar="N", help="Port of the page; 0: any free one (default: 7870).")


def port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 1 << 16):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port; give a number from 0 to 65535")
    return int(text)


def add_exchange(commands: Commands) -> None:
    export = add_command(commands, "export", "Export the model to ONNX or torch.export.",
                     "The exported model takes any batch and image size. It is kept only if its output agrees with PyTorch's. "
                     "The key `unseg` of its metadata has the pre- and postprocessing and the names of the labels.",
                     "run", "model", "clusters")  # fmt: skip
    export.add_argument("--onnx", **FILE, help="ONNX file to write. Needs `pip install '.[onnx]'` in a clone.")
    export.add_argument(
        "--patch-tokens", action="store_true", help="The ONNX file of a ViT student also returns its patch tokens."
    )
    export.add_argument("--torch", **FILE, help=".pt2 file to write, for torch.export.load.")

    labels = add_command(commands, "export-labels", "Write labels for annotation tools and trainers.",
                         "Writes the label maps and the detections of a finished run, or of a folder that `unseg predict` wrote. "
                         "docs/labels.md says what each format keeps.", "clusters", force="")  # fmt: skip
    labels.add_argument("input", **SHARED["run"] | {"default": None, "metavar": "RUN", "help":
                        "Folder in which `dvc repro` ran, or one that `unseg predict` wrote."})  # fmt: skip
    labels.add_argument("--format", required=True, choices=("coco", "yolo-seg", "voc", "label-studio", "cvat", "png"))
    labels.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="Folder to write, new or empty.")
    labels.add_argument("--score", type=float, default=0.5, metavar="S", help="Least score of a detection (default: 0.5).")
    labels.add_argument("--no-instances", action="store_true", help="Leave the detections out.")

    corrected = add_command(commands, "import-labels", "Read corrected labels.",
                            "Writes label maps that the pipeline trains on (`corrections` of params.yaml), and masks for "
                            "`unseg probe`. See docs/labels.md.", "run")  # fmt: skip
    corrected.add_argument("input", type=Path, metavar="LABELS", help="JSON of COCO or Label Studio; for cvat, "
                           "an archive; for png, a folder.")  # fmt: skip
    corrected.add_argument("--format", required=True, choices=("coco", "cvat", "label-studio", "png"))
    corrected.add_argument(
        "-o", "--out", **FILE, help="Zip of the corrected label maps to write, with the cluster numbers of the run."
    )
    corrected.add_argument("--masks", type=Path, metavar="MASKS", help="Folder to write for `unseg probe`, new or empty; any "
                           "classes.")  # fmt: skip
    corrected.add_argument("--photos", type=Path, metavar="FOLDER",
                           help="Folder of the labelled photographs (default: the photographs of the run).")  # fmt: skip

    push = add_command(commands, "push", "Publish the model on the Hugging Face hub.",
                       "Uploads the final segmenter, its parameters, clusters.yaml and a model card that is filled from the run. "
                       "`unseg.load(\"hf://NAME\")` takes it. Log in with `hf auth login` first. See docs/share.md.",
                       "run", force="")  # fmt: skip
    push.add_argument("name", metavar="NAME", help="Repository, owner/name. It is created if there is none.")
    push.add_argument("--to", type=Path, metavar="FOLDER", help="Write the files into FOLDER, new or empty; upload nothing.")
    push.add_argument("--private", action="store_true", help="Only you and your organisation can see the repository.")
    push.add_argument("--pictures", action=argparse.BooleanOptionalAction, help="Whether the card shows contact sheets of the "
                      "results, which have photographs in them. A public upload must say which (else: --pictures).")  # fmt: skip
    push.add_argument("--detector", action="store_true", help="Add the detector of the run.")
    push.add_argument("--license", metavar="ID", help="Licence of the card, e.g. apache-2.0, if no weights of others were used, "
                      "or if their files have no licence (default: the licence of those weights).")  # fmt: skip
    view = add_command(commands, "view", "Look at a run in FiftyOne.",
                       "Opens the photographs with the mined masks, detections, label maps and clusters, and saved views of what "
                       "is uncertain, odd, or changed. Needs `pip install '.[view]'` in a clone.", force="")  # fmt: skip
    view.add_argument("input", **SHARED["run"] | {"nargs": "?", "metavar": "RUN"})
    view.add_argument("--against", type=lambda text: Run(Path(text)), metavar="RUN",
                      help="An earlier run, to show what changed (default: the round before the final one).")  # fmt: skip
    view.add_argument("--predict", action="store_true", help="Run the final segmenter on every photograph: label maps of all, "
                      "and its own uncertainty, instead of the disagreement of the steps.")  # fmt: skip
    view.add_argument("--name", metavar="NAME", help="Name of the dataset; one of that name is replaced (default: unseg-RUN).")
    view.add_argument("--port", type=int, default=5151, metavar="N", help="Of the app, on this machine only (default: 5151).")
    view.add_argument("--no-app", action="store_true", help="Only write the dataset; `fiftyone app launch NAME` opens it.")

    compare = add_command(commands, "compare", "Show what changed between runs.", "Prints the parameters and scores that differ.")
    compare.add_argument("runs", type=Path, metavar="RUN", nargs="+",
                         help="Folders in which `dvc repro` ran. All are compared with the first.")  # fmt: skip
    compare.add_argument("--round", metavar="NAME",
                         help="Compare a round of one run, e.g. r1, with its final one.")  # fmt: skip
    compare.add_argument("-o", "--out", **FILE, help="Also write a page with the pictures that changed most.")


def check_output(path: Path, force: bool) -> None:
    """Raises InputError if the path is a folder, or a file that exists (unless force is set)."""
    if path.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file")
    if path.exists() and not force:
        raise InputError(f"{path} exists already; give another name, or --force")
