"""Pre-trainings in separate processes, for test_croc_processes.py: `python croc_processes.py FOLDER`.

One process; two with gloo on the same batches; one that kills itself by SIGKILL in the middle of an epoch; and one that
resumes it. Each writes FOLDER/<name>.pt. They are forks of this process, which has imported torch and has no threads.
"""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # optimizers import it, otherwise in each fork
import torch.utils.tensorboard  # for the logs
from PIL import Image as Pillow

from tests.processes import free_port, start
from unseg.core.image_index import ImageRecord
from unseg.engine import distributed
from unseg.engine.checkpoint import Checkpoint
from unseg.models import vit
from unseg.models.weights import RANDOM_INIT
from unseg.pretraining import croc, croc_training, views

IMAGES, BATCH, EPOCHS = 16, 8, 4  # 8 steps
KILLED_AT = 5  # of the steps, from 0: the second of its epoch
LOOK = views.Augmentation(32, 0.25, 0.8, 0.4, 0.4, 0.2, 0.1, 0.2, [1.0, 0.1], 0.6, [0.0, 0.2])
CLUSTERS = croc.CrocClustering("keys", 8, 4, 4.0, 20.0, 5, 2.0, 2.0, "batch")
SETTINGS = croc_training.Croc(
    init=RANDOM_INIT, epochs=EPOCHS, batch=BATCH, accumulate=1, lr=0.01, min_lr=1e-5, warmup_epochs=1, weight_decay=0.04,
    weight_decay_end=0.4, ema=0.9, clip=3.0, freeze_epochs=0.5, drop_path=0.1, alpha=1.0,
    outputs=32, outputs_centroid=16, hidden=32, bottleneck=16, head_batch_norm=True, norm_last=False, center_momentum=0.9,
    student_temperature=0.1, teacher_temperature=0.04, teacher_temperature_end=0.07,
    student_temperature_centroid=0.1, teacher_temperature_centroid=0.04, teacher_temperature_centroid_end=0.07,
    teacher_warmup_epochs=2, precision="fp32", views=LOOK, clustering=CLUSTERS,
)  # fmt: skip


def learn(folder: Path, name: str, checkpoint: str, kill: bool = False) -> None:
    os.environ |= {"UNSEG_SCRATCH": str(folder / checkpoint), "UNSEG_CHECKPOINT_SECONDS": "0" if checkpoint == "killed" else "60"}
    if name != "one":  # which has the same weights without a log
        os.environ["UNSEG_LOGDIR"] = str(folder / "logs" / checkpoint)
    if kill:
        update, steps = croc_training.StudentTeacher.update_teacher, []

        def deadly(net: croc_training.StudentTeacher, momentum: float) -> None:
            steps.append(momentum)
            if len(steps) > KILLED_AT:
                os.kill(os.getpid(), signal.SIGKILL)
            update(net, momentum)

        croc_training.StudentTeacher.update_teacher = deadly  # type: ignore[method-assign]
    records = [ImageRecord(i + 1, f"{i}.png", 40, 48, "train") for i in range(IMAGES)]
    with Checkpoint("croc", [], []) as opened:
        saved = opened.load()
        model, values = croc_training.train(SETTINGS, vit.Shape(8, 24, 2, 3), str(folder), records, 0, opened)
        if distributed.rank() == 0:
            resumed = len(saved["values"]) if saved else 0
            torch.save({"values": values, "weights": model.state_dict(), "resumed": resumed}, folder / f"{name}.pt")


def main(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        small = Pillow.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
        small.resize((48, 40), Pillow.Resampling.BICUBIC).save(folder / f"{i}.png")
    port = free_port()

    def ranked(rank: int) -> None:
        os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        learn(folder, "two", "two")

    first = {
        "one": start(lambda: learn(folder, "one", "one")),
        "rank 0": start(lambda: ranked(0)),
        "rank 1": start(lambda: ranked(1)),
        "killed": start(lambda: learn(folder, "killed", "killed", kill=True)),
    }
    ends = {name: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for name, pid in first.items()}
    ends["resumed"] = os.waitstatus_to_exitcode(os.waitpid(start(lambda: learn(folder, "resumed", "killed")), 0)[1])
    (folder / "ends.json").write_text(json.dumps(ends))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
