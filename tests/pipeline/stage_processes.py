"""The stages of test_stage_processes.py: `python stage_processes.py FOLDER`.

Each stage that unseg.engine.distributed starts runs at toy size on the outputs of the stages before it: in one process
(FOLDER/one) and in two with gloo (FOLDER/two). mine also runs in a process that kills itself, and in one that resumes
(FOLDER/again). They are forks of this process, which has imported torch and the stages and runs no thread of torch.
"""

import json
import os
import signal
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # by optimizers, else in each fork
from PIL import Image as Pillow
from ruamel.yaml import YAML
from safetensors.torch import save_file

from tests.processes import free_port, start
from unseg.core import image_index, instances, label_maps, masks, params, storage
from unseg.data import demo
from unseg.engine import checkpoint, distributed
from unseg.mining import miner
from unseg.segmentation import segmenter

ROOT = Path(__file__).parents[2]
SIZES = [(64, 64), (64, 64), (64, 64), (64, 64), (64, 64), (96, 64), (96, 64), (96, 64), (64, 80), (64, 80)]  # H, W
K, KILLED_AT = 3, 5  # clusters; masks that the killed run has put down
TINY = {
    "cluster": {"k": K},
    "backbone": {"weights": "models/fresh", "width": 32, "depth": 2, "heads": 2},
    "embedder": {"weights": "models/fresh", "patch": 8, "width": 32, "depth": 2, "heads": 2},
    "mine": {"resize": 64, "precision": "auto"},
    "embed": {"resize": 32, "longest": 64},
    "detector": {"width": 8, "fpn": 16, "hidden": 16, "short_sides": [64, 96], "long_side": 96, "rois": 8, "proposals": 20,
                 "iterations": 6, "batch": 4, "lr_steps": [4], "warmup_iterations": 2},
    "detect": {"short_side": 64, "max_detections": 3, "min_score": 0.0, "pixels": 64 * 64 * 2},
    "segmenter": {"width": 8, "size": 64, "epochs": 6, "batch": 8, "lr": 0.0005, "precision": "fp32", "ema": 0.5},
    "predict": {"pixels": 64 * 64 * 2},
    "crf": {"iterations": 2},
    "relabel": {"flip": True, "scales": [1.0, 1.25], "threshold": 0.7},
}  # fmt: skip
STAGES = {  # the outputs are the words with a {}
    "mine": "images.json photos models/fresh {}/masks.json",
    "embed": "images.json one/masks.json photos models/fresh {}/cls_tokens.npz",
    "train_detector": "images.json instances.json photos {}/detector.safetensors {}/detector.tsv",
    "detect": "images.json photos one/detector.safetensors {}/detections.json",
    "train_segmenter": "images.json labels.zip photos {}/segmenter.safetensors {}/segmenter.tsv",
    "relabel": "images.json photos one/segmenter.safetensors {}/labels.zip r1",
    "predict": "images.json photos one/segmenter.safetensors {}/predictions.zip",
    "gradients": "{}/gradients.safetensors",
    "student": "images.json labels.zip photos {}/student.safetensors {}/student.tsv",
}


def prepare(folder: Path) -> None:
    """Photographs of three sizes, their index, objects and label maps, and the params."""
    index, objects, maps = [], [], []
    (folder / "photos").mkdir()
    (folder / "models").mkdir()
    (folder / "models/fresh").touch()
    for i, (h, w) in enumerate(SIZES):
        pixels, shapes = demo.scene(np.random.default_rng([1, i]), 96)
        Pillow.fromarray(pixels[:h, :w]).save(folder / f"photos/{i}.png")
        index.append(image_index.ImageRecord(i + 1, f"{i}.png", h, w, "both"))
        labels = np.zeros((h, w), np.uint8)
        for j, (c, mask) in enumerate(shapes[: 1 + i % 2]):
            if mask[:h, :w].any():
                objects.append(instances.instance(10 * i + j, i + 1, c % K, masks.encode(mask[:h, :w])).to_coco())
                labels[mask[:h, :w]] = 1 + c % K
        maps.append((f"{i}.png", labels))
    storage.write_json(folder / "images.json", {"images": [vars(i) for i in index]})
    storage.write_json(folder / "instances.json", {"annotations": objects})
    label_maps.write_label_maps(folder / "labels.zip", maps)
    content = YAML().load((ROOT / "params.yaml").read_text())
    for group, values in TINY.items():
        content[group].update(values)
    with (folder / "params.yaml").open("w") as file:
        YAML().dump(content, file)


MAINS = {name: import_module(f"stages.{name}").main for name in STAGES if name not in ("gradients", "student")}


def end(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def gradients(out: str) -> None:
    """The gradients of DeepLab's loss in double precision, because batch norm of few pixels amplifies rounding errors."""
    distributed.start()
    torch.manual_seed(0)
    net = segmenter.DeepLab("resnet18", 8, 8, [1, 2, 4], 4).double().to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    distributed.sync_norms(net)
    x, labels = torch.randn(8, 3, 64, 64).double(), torch.randint(0, 4, (8, 64, 64))
    labels[:3, :40] = label_maps.IGNORE_LABEL
    shard = distributed.local_shard(x).contiguous(memory_format=torch.channels_last)
    shared = distributed.wrap_ddp(net)
    torch.manual_seed(1)
    loss = segmenter.hard_pixel_loss(shared(shard), distributed.local_shard(labels), 0.2)
    loss.backward()
    tensors = {name: p.grad for name, p in net.named_parameters()} | dict(net.named_buffers())
    if distributed.rank() == 0:
        Path(out).parent.mkdir(exist_ok=True)
        save_file({name: x.detach().contiguous() for name, x in tensors.items()}, out)


def student(*words: str) -> None:
    """train_segmenter for a ViT student, one of whose blocks is tuned."""
    shape, read = {"arch": "vit", "tuned_blocks": 1, "lr": 0.02}, params.group
    params.group = lambda key, kind: replace(read(key, kind), **(shape if key == "segmenter" else {}))  # type: ignore[assignment]
    MAINS["train_segmenter"](*words)


def stage(name: str, into: str) -> None:
    os.environ["UNSEG_SCRATCH"] = f"scratch-{into}"
    main = {"gradients": gradients, "student": student}.get(name) or MAINS[name]
    main(*(word.format(into) for word in STAGES[name].split()))


def ranked(name: str, rank: int, port: int) -> None:
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    stage(name, "two")


def mine_again(kill: bool) -> None:
    put, done = checkpoint.ResultStore.put, []

    def deadly(results: checkpoint.ResultStore, number: int, content: bytes) -> None:
        put(results, number, content)
        done.append(number)
        if kill and len(done) == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint.ResultStore.put = deadly  # type: ignore[method-assign]
    os.environ["UNSEG_CHECKPOINT_SECONDS"] = "0"
    stage("mine", "again")
    Path("again.json").write_text(json.dumps(done))


def main(folder: Path) -> None:
    prepare(folder)
    os.chdir(folder)
    miner.PIXELS = import_module("stages.embed").PIXELS = 64 * 64 * 2  # two images a batch
    ends = {}
    for name in STAGES:
        port = free_port()
        ends[f"{name} one"] = end(start(lambda n=name: stage(n, "one")))  # type: ignore[misc]
        both = [start(lambda r=rank, n=name, p=port: ranked(n, r, p)) for rank in range(2)]  # type: ignore[misc]
        ends |= {f"{name} two, rank {rank}": end(pid) for rank, pid in enumerate(both)}
    ends["killed"] = end(start(lambda: mine_again(kill=True)))
    ends["again"] = end(start(lambda: mine_again(kill=False)))
    Path("ends.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
