"""Faults planted one at a time, and the test that must turn red: `python tests/mutations.py [word ...]`.

Each is a text of a module that is replaced in a copy of the repository; then the test that is to notice it runs there. The
first five are DESIGN's own list. With words, only the faults in whose name one of them occurs.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Fault(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    tests: str  # words for pytest


SIGNS = """heads = rows.unflatten(2, (query.shape[1], -1)).transpose(1, 2)
    source_keys = heads.take_along_dim(source[:, None, :, None], 2).transpose(2, 3)
    affinity = (heads @ source_keys).sign().sum(1)  # [B, N, 1]"""
AFFINITY = "affinity = rows @ rows.take_along_dim(source[..., None], 1).transpose(1, 2)  # [B, N, 1], A_I[s, j]"
PROCESSES = "tests/pipeline/test_stage_processes.py"
FAULTS = [
    Fault(
        "affinity: > to >= in the vote",
        "unseg/mining/affinity.py",
        "votes > bound",
        "votes >= bound",
        "tests/mining/test_affinity.py",
    ),
    Fault(
        "affinity: > to >= in the similarity",
        "unseg/mining/affinity.py",
        "affinity > bound",
        "affinity >= bound",
        "tests/mining/test_affinity.py",
    ),
    Fault(
        "otsu: the split after the best one",
        "unseg/mining/affinity.py",
        "ordered.gather(1, split) + ordered.gather(1, split + 1)",
        "2 * ordered.gather(1, split + 1)",
        "tests/mining/test_affinity.py -k otsu",
    ),
    Fault(
        "averaging: mirror images stay mirrored",
        "unseg/mining/averaging.py",
        "maps = maps.flip(3) if mirrored else maps",
        "maps = maps",
        "tests/mining/test_averaging.py",
    ),
    Fault(
        "foreground: background is a region",
        "unseg/mining/foreground.py",
        "np.bincount(labels.ravel())[1:]",
        "np.bincount(labels.ravel())",
        "tests/mining/test_foreground.py -k masks",
    ),
    Fault("affinity: heads summed after the sign", "unseg/mining/affinity.py", AFFINITY, SIGNS, "tests/mining/test_affinity.py"),
    Fault(
        "imports: torchvision where a segmenter is",
        "unseg/segmentation/deeplab.py",
        "from unseg.models import resnet",
        "import torchvision  # noqa\nfrom unseg.models import resnet",
        "tests/test_imports.py",
    ),
    Fault(
        "imports: scipy where label maps are scored",
        "unseg/evaluation/metrics.py",
        "import numpy as np",
        "import numpy as np\nimport scipy  # noqa",
        "tests/test_imports.py",
    ),
    Fault(
        "ResNet: the block that dilates is dilated whole",
        "unseg/models/resnet.py",
        "(before, dilation), downsample",
        "(dilation, dilation), downsample",
        "tests/segmentation/test_segmenter.py",
    ),
    Fault(
        "background: no + 1 in label maps",
        "unseg/segmentation/pseudo_labels.py",
        "labels[mask] = d.category_id + 1",
        "labels[mask] = d.category_id",
        "tests/segmentation/test_pseudo_labels.py",
    ),
    Fault(
        "background: no + 1 in the detector",
        "unseg/detection/examples.py",
        "[o.category_id + 1 for",
        "[o.category_id for",
        "tests/detection/test_detector.py",
    ),
    Fault(
        "confusion: axes swapped",
        "unseg/evaluation/metrics.py",
        "truth.astype(np.uint16) * LEVELS + prediction",
        "prediction.astype(np.uint16) * LEVELS + truth",
        "tests/evaluation/test_metrics.py",
    ),
    Fault("dvc.yaml: a dep dropped", "dvc.yaml", "unseg/mining, ", "", "tests/pipeline/test_contract.py"),
    Fault(
        "processes: batch norm of each",
        "unseg/engine/distributed.py",
        "part.__class__ = SyncedBatchNorm",
        "pass",
        f"{PROCESSES} -k learn",
    ),
    Fault(
        "processes: dropout of each",
        "unseg/engine/distributed.py",
        "part.__class__ = SyncedDropout",
        "pass",
        f"{PROCESSES} -k learn",
    ),
    Fault(
        "processes: hard pixels of each",
        "unseg/segmentation/segmenter.py",
        "batch_losses = distributed.gather(losses.detach()).flatten()",
        "batch_losses = losses.detach().repeat(distributed.world())",
        f"{PROCESSES} -k learn",
    ),
    Fault(
        "processes: unweighted losses",
        "unseg/detection/distributed_mask_rcnn.py",
        "    if distributed.world() == 1:\n        return parts",
        "    return parts",
        f"{PROCESSES} -k learn",
    ),
    Fault(
        "processes: a seed of each",
        "unseg/engine/training.py",
        "mix_seeds(seed, number, 0)",
        "mix_seeds(seed, number, distributed.rank())",
        f"{PROCESSES} -k learn",
    ),
    Fault(
        "resume: parts of a batch",
        "unseg/engine/checkpoint.py",
        "undone = [b for b in batches if not all(key(item) in self.done for item in b)]",
        "undone = [[i for i in b if key(i) not in self.done] for b in batches]",
        "tests/pipeline/test_faults.py -k results",
    ),
    Fault(
        "resume: nothing kept",
        "unseg/engine/checkpoint.py",
        "                self.connection.commit()\n                self.committed",
        "                self.committed",
        "tests/pipeline/test_faults.py -k results",
    ),
    Fault(
        "resume: progress of other code",
        "unseg/engine/checkpoint.py",
        'f"{code_hash()}-{self.key',
        'f"000000000000-{self.key',
        "tests/pipeline/test_faults.py -k not_resumed",
    ),
    Fault(
        "scratch: runs in progress are removed",
        "unseg/engine/checkpoint.py",
        "                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n                size",
        "                size",
        "tests/pipeline/test_faults.py -k other_code",
    ),
    Fault(
        "scratch: runs with other params are removed",
        "unseg/engine/checkpoint.py",
        'or run.name.startswith(f"{code_hash()}-")',
        "",
        "tests/pipeline/test_faults.py -k other_code",
    ),
    Fault(
        "scratch: foreign files are removed",
        "unseg/engine/checkpoint.py",
        "RUN_FILE.fullmatch(f.name) and f.is_file()",
        "f.is_file()",
        "tests/pipeline/test_faults.py -k other_code",
    ),
    Fault(
        "faults: no temporary file",
        "unseg/core/storage.py",
        "        yield part\n",
        "        part.unlink(missing_ok=True)\n        yield path\n        path.rename(part)\n",
        "tests/pipeline/test_faults.py -k full",
    ),
    Fault(
        "faults: SIGTERM as the system has it",
        "unseg/core/console.py",
        "for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):",
        "for number in (signal.SIGHUP, signal.SIGINT):",
        "tests/pipeline/test_faults.py -k sigterm",
    ),
    Fault(
        "ending: dvc's shell is not looked through",
        "unseg/core/console.py",
        "    return parents\n",
        "    return {psutil.Process(): os.getppid()}\n",
        "tests/core/test_ending.py -k killing",
    ),
    Fault(
        "ending: while importing, by an exception",
        "unseg/core/console.py",
        "        if importing:",
        "        if False:",
        "tests/core/test_ending.py -k not_lost",
    ),
    Fault(
        "faults: half files of the dead stay",
        "unseg/core/storage.py",
        "if not psutil.pid_exists(",
        "if False and psutil.pid_exists(",
        "tests/pipeline/test_faults.py -k killed",
    ),
    Fault(
        "instances: runs of lines not sorted",
        "unseg/core/instances.py",
        'table[np.argsort(table[:, 0], kind="stable")]',
        "table",
        "tests/core/test_instances.py",
    ),
    Fault(
        "fuzz: any size of a label map",
        "unseg/core/label_maps.py",
        "if file.size == image.size[::-1] else",
        "if True else",
        "tests/pipeline/test_faults.py -k bombs",
    ),
    Fault(
        "attention: scores not scaled",
        "unseg/models/vit.py",
        "q = q * self.scale",
        "q = q * 1",
        "tests/models/test_weights.py -k explicit",
    ),
    Fault(
        "attention: explicit in training, too",
        "unseg/models/vit.py",
        " and not torch.is_grad_enabled()",
        "",
        "tests/models/test_weights.py -k explicit",
    ),
    Fault(
        "labels: the lowest score wins",
        "unseg/segmentation/pseudo_labels.py",
        "kept[::-1] if",
        "kept if",
        "tests/segmentation/test_pseudo_labels.py",
    ),
    Fault(
        "labels: skip paints all",
        "unseg/segmentation/pseudo_labels.py",
        "(painted & mask).any()",
        "False",
        "tests/segmentation/test_pseudo_labels.py",
    ),
    Fault(
        "labels: a box one row lower",
        "unseg/segmentation/pseudo_labels.py",
        "slice(top, bottom)",
        "slice(top + 1, bottom + 1)",
        "tests/segmentation/test_pseudo_labels.py",
    ),
    Fault(
        "run lengths: differences as they are",
        "unseg/core/masks.py",
        "every_other.cumsum(out=every_other)",
        "pass",
        "tests/data/test_datasets.py -k run",
    ),
    Fault(
        "precision: auto is fp32",
        "unseg/engine/precision.py",
        'fastest_precision(device) if precision == "auto" else',
        "False and",
        "tests/engine/test_training.py -k bfloat16",
    ),
    Fault(
        "precision: embed in fp32",
        "stages/embed.py",
        "autocast(device, p.precision)",
        'autocast(device, "fp32")',
        "tests/mining/test_mine.py",
    ),
    Fault(
        "descriptors: registers are patches",
        "unseg/mining/descriptors.py",
        "tokens[:, model.num_prefix_tokens :]",
        "tokens[:, 1 : tokens.shape[1] - model.num_prefix_tokens + 1]",
        "tests/mining/test_descriptors.py",
    ),
    Fault(
        "overclusters: uncertain ones are merged too",
        "unseg/clustering/algorithms.py",
        "x[members[:inner]].mean(0)",
        "x[members].mean(0)",
        "tests/clustering/test_clustering.py -k scipy",
    ),
    Fault(
        "overclusters: uncertain masks are kept",
        "stages/cluster.py",
        "~(uncertain & chosen)",
        "np.ones(len(chosen), bool)",
        "tests/evaluation/test_quality.py -k uncertain",
    ),
    Fault(
        "nodes: one of them works",
        "unseg/engine/distributed.py",
        'os.environ.get("UNSEG_LAUNCHER", "").strip()',
        '""',
        f"{PROCESSES} -m slow -k nodes",
    ),
    Fault(
        "archives: a name is there",
        "unseg/data/readers.py",
        'm.filename.endswith("/")',
        "m.is_dir()",
        "tests/data/test_datasets.py -k name",
    ),
    Fault(
        "croc: centroids at the temperature of CLS",
        "unseg/pretraining/croc_training.py",
        "teacher, clusters, temperature_centroid)",
        "teacher, clusters, temperature)",
        "tests/pretraining/test_croc.py -k temperatures",
    ),
    Fault(
        "croc: whole tokens fall back to keys",
        "unseg/models/facets.py",
        'tokens[:, None] if facet == "tokens" else project(block.attn, block.norm1(x), facet)',
        'project(block.attn, block.norm1(x), "keys" if facet == "tokens" else facet)',
        "tests/pretraining/test_croc.py -k whole_tokens",
    ),
    Fault(
        "croc: registers are clustered",
        "unseg/pretraining/croc_training.py",
        "x[..., prefix:, :]], -2)",
        "x[..., 1:, :]], -2)",
        "tests/pretraining/test_croc_init.py -k tokens_and_features",
    ),
    Fault(
        "croc: views in ImageNet's normalisation for every ViT",
        "unseg/pretraining/croc_training.py",
        "vit.normalisation(self.student.vit), strict",
        "((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), strict",
        "tests/pretraining/test_croc_init.py -k tokens_and_features",
    ),
    Fault(
        "croc: stochastic depth in the teacher",
        "unseg/pretraining/croc_training.py",
        "        self.student.drop_paths(p.drop_path)",
        "        self.student.drop_paths(p.drop_path)\n        self.teacher.drop_paths(p.drop_path)",
        "tests/pretraining/test_croc_init.py -k stochastic_depth",
    ),
    Fault(
        "croc: kl of the wrong sign",
        "unseg/pretraining/croc_training.py",
        '"kl": cls - entropy',
        '"kl": entropy - cls',
        "tests/pretraining/test_croc.py -k gradients",
    ),
    Fault(
        "croc: a constant is made in a step",
        "unseg/pretraining/croc_training.py",
        "(pixels - self.mean) / self.std",
        "(pixels - torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)) / self.std",
        "tests/pretraining/test_croc.py -k waits",
    ),
    Fault(
        "DINOv3: the authors' names are taken for timm's",
        "unseg/models/vit.py",
        "if vit_files.is_dinov3(state) else state",
        "if False else state",
        "tests/models/test_vit_files.py -k dinov3_as_its_authors",
    ),
    Fault(
        "fetch: weights that are not listed are not noticed",
        "unseg/core/fetched.py",
        "match[1] not in fetch and",
        "match[1] in fetch and",
        "tests/core/test_fetched.py",
    ),
    Fault(
        "environment: prepare looks at nothing",
        "stages/prepare.py",
        "    environment.check()",
        "    pass",
        "tests/data/test_datasets.py -k environment",
    ),
    Fault(
        "environment: an infinite number",
        "unseg/engine/environment.py",
        'not 0 <= seconds < float("inf")',
        "seconds < 0",
        "tests/engine/test_environment.py",
    ),
    Fault(
        "voc: the augmented masks come first",
        "unseg/data/readers.py",
        ' and not (root / standard / f"{stem}.png").is_file()',
        "",
        "tests/data/test_datasets.py -k augmented",
    ),
    Fault(
        "student: the moving average stands still",
        "unseg/segmentation/segmenter.py",
        "            average.update_parameters(trained)",
        "            average.n_averaged.add_(1)",
        "tests/segmentation/test_segmenter.py -k moving",
    ),
    Fault(
        "student: one threshold for all labels",
        "unseg/segmentation/teacher.py",
        "bins < thresholds[labels]",
        "bins < thresholds.min()",
        "tests/segmentation/test_teacher.py -k by_hand",
    ),
    Fault(
        "student: an earlier block's tokens pass the last block's norm",
        "unseg/models/facets.py",
        "nn.init.ones_(norm.weight)",
        "pass",
        "tests/segmentation/test_vit_student.py -k earlier_block",
    ),
    Fault(
        "student: tuned blocks learn as fast as the head",
        "unseg/segmentation/vit_student.py",
        '"lr_scale": BLOCKS_LR',
        '"lr_scale": 1.0',
        "tests/segmentation/test_vit_student.py -k only_the_tuned",
    ),
    Fault(
        "report: backbones of earlier runs",
        "unseg/report/backbones.py",
        "for c in columns for b in backbones}",
        'for c in ("linear-old", *columns) for b in backbones}',
        "tests/report/test_report.py -k side_by_side",
    ),
    Fault(
        "benchmarks: photographs of one shape share facets",
        "benchmarks/voc_project.py",
        "return tuple(x.shape), hashlib.blake2b(x.contiguous().cpu().numpy().data, digest_size=16).digest()",
        "return (tuple(x.shape),)",
        "tests/test_voc_benchmark.py",
    ),
    Fault(
        "benchmarks: void counts where masks are scored",
        "benchmarks/truth_scores.py",
        "valid = labels != IGNORE_LABEL",
        "valid = labels >= 0",
        "tests/test_voc_benchmark.py",
    ),
    Fault(
        "benchmarks: each part of gpu.py takes its most",
        "benchmarks/gpu.py",
        "min(left * weights[0] / sum(weights), MOST.get(name, 35.0))",
        "MOST.get(name, 35.0)",
        "tests/test_gpu_benchmark.py -k in_time",
    ),
    Fault(
        "export-labels: a run's merges are not applied",
        "unseg/serving/labels/source.py",
        "labels: np.ndarray = self.lut[values]",
        "labels: np.ndarray = values",
        "tests/serving/test_labels.py -k coco_is",
    ),
    Fault(
        "export-labels: a hole of a polygon is dropped",
        "unseg/serving/labels/polygons.py",
        "bridge(mask, points, inside)",
        "points",
        "tests/serving/test_labels.py -k yolo",
    ),
    Fault(
        "push: the scores of another model",
        "unseg/serving/hub/card.py",
        "            if md5.get(path) != dvc_md5(run / path):",
        "            if False:",
        "tests/serving/test_hub.py -k writes_nothing",
    ),
    Fault(
        "push: pictures of an earlier push stay",
        "unseg/serving/hub/client.py",
        "delete_patterns=patterns",
        "delete_patterns=[]",
        "tests/serving/test_hub.py -k stays_in_the_cache",
    ),
    Fault(
        "hub: every file of a repository is downloaded",
        "unseg/serving/hub/client.py",
        ", allow_patterns=list(files)",
        "",
        "tests/serving/test_hub.py -k hostile",
    ),
    Fault(
        "import-labels: the first class of a brush is all",
        "unseg/serving/labels/label_studio.py",
        "made.value(names[0])",
        "1",
        "tests/serving/test_labels.py -k round_trip",
    ),
    Fault(
        "project: an upgrade overwrites edits",
        "unseg/serving/project.py",
        "if edited and not force:",
        "if edited and force is None:",
        "tests/serving/test_project.py -k no_edits",
    ),
    Fault(
        "project: a hash of the code without its text",
        "unseg/serving/project.py",
        "{sha256(file.read_bytes())}\\n",
        "\\n",
        "tests/serving/test_project.py -k change_of_the_code",
    ),
    Fault(
        "fit: a project among the photographs",
        "unseg/serving/cli/fit.py",
        "if link.parent.resolve().is_relative_to(folder.resolve()):",
        "if link == folder:",
        "tests/serving/test_fit.py -k lays_nothing_out",
    ),
    Fault(
        "serve: another web site's edits are taken",
        "unseg/serving/server/app.py",
        """!= f"http://{request.headers.get('host')}\"""",
        "is None",
        "tests/serving/test_server.py -k another_page",
    ),
    Fault(
        "serve: a photograph is decoded before its size is known",
        "unseg/serving/server/uploads.py",
        "if width * height > MAX_PIXELS:",
        "if False:",
        "tests/serving/test_server.py -k bad_upload",
    ),
    Fault(
        "serve: an edit does not reach the model",
        "unseg/serving/server/app.py",
        "self.model = self.model.rename(await run_in_threadpool(self.edit, edits))",
        "await run_in_threadpool(self.edit, edits)",
        "tests/serving/test_server.py -k edits_are_saved",
    ),
    Fault(
        "label maps: workers share the place in the zip",
        "unseg/core/label_maps.py",
        "self._zip is None or self._process != os.getpid()",
        "self._zip is None",
        "tests/core/test_label_maps.py",
    ),
    Fault(
        "event log: parts stay in evaluation mode",
        "unseg/engine/event_log.py",
        "part.training = mode",
        "part.training = False",
        "tests/engine/test_event_log.py -k same_weights",
    ),
    Fault(
        "event log: a resumed run purges nothing",
        "unseg/engine/event_log.py",
        "purge_step=self.start + 1 if self.start else 0",
        "purge_step=None",
        "tests/engine/test_event_log.py -k beyond",
    ),
    Fault(
        "event log: a detector keeps the settings of its pictures",
        "unseg/detection/detector.py",
        "prepared(copy.deepcopy(model), p, q, k)",
        "prepared(model, p, q, k)",
        "tests/detection/test_detector.py -k shows_detections",
    ),
    Fault(
        "export-labels: polygons lie on pixels, not on their edges",
        "unseg/serving/labels/polygons.py",
        "(points + 1) // 2",
        "points // 2",
        "tests/serving/test_labels.py -k outlines",
    ),
    Fault(
        "correct: the round forgets what people corrected",
        "stages/correct.py",
        "lut[(human if image in human else maps)[image]]",
        "lut[maps[image]]",
        "tests/core/test_rounds.py",
    ),
    Fault(
        "view: the most typical masks of a cluster are odd",
        "unseg/serving/fiftyone_view/fields.py",
        'np.argsort(cosines[members], kind="stable")',
        'np.argsort(-cosines[members], kind="stable")',
        "tests/serving/test_view.py",
    ),
]


def verdict(fault: Fault, folder: Path) -> tuple[bool, str]:
    """Whether a test turned red, and which."""
    copy = folder / re.sub(r"\W+", "-", fault.name)
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    text = (copy / fault.file).read_text()
    assert fault.old in text, f"{fault.name}: {fault.file} has no {fault.old!r}"
    (copy / fault.file).write_text(text.replace(fault.old, fault.new))
    env = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    command = f"{sys.executable} -m pytest -n 0 -q -x {fault.tests}"
    done = subprocess.run(command, shell=True, cwd=copy, env=env, capture_output=True, text=True)
    red = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    shutil.rmtree(copy)
    return done.returncode == 1 and bool(red), red[0] if red else done.stdout[-300:]


def main(words: list[str]) -> None:
    chosen = [f for f in FAULTS if not words or any(w in f.name for w in words)]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        for fault in chosen:
            red, which = verdict(fault, Path(folder))
            missed += not red
            print(f"{'red ' if red else 'GREEN'} {fault.name:<42} {which}", flush=True)
    print(f"{len(chosen)} faults, {missed} not seen")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main(sys.argv[1:])
