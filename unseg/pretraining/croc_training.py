"""The training of CrOC: student, EMA teacher, centres, schedules (arXiv:2303.13245; docs/spec/croc.md, 1, 5, 6).

Shapes: B images, 2 views, D channels of a token, O outputs.
"""

import contextlib
import copy
import os
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.layers.drop import DropPath
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.engine import batching, distributed, environment, training
from unseg.engine.checkpoint import Checkpoint
from unseg.engine.precision import autocast, check_precision
from unseg.models import vit
from unseg.models.weights import RANDOM_INIT
from unseg.pretraining import croc, views

SHORT = 128  # tokens, below which explicit attention beats the fused kernel on CPU (step 0.7 s against 1.0 s at 64)


@dataclass(frozen=True)
class Croc:
    """The `croc` group of params.yaml."""

    init: str  # self-supervised ViT weights that student and teacher start from, or RANDOM_INIT
    epochs: int
    batch: int  # images, over all processes
    accumulate: int  # parts of a batch whose gradients are added up: less memory; each is clustered and normalised for itself
    lr: float  # at batch 256; scaled linearly
    min_lr: float  # at the end, not scaled
    warmup_epochs: float
    weight_decay: float
    weight_decay_end: float
    ema: float  # of the teacher at the start; 1 at the end
    clip: float  # gradient norm of each parameter; 0 for none
    freeze_epochs: float  # without training the last layers
    drop_path: float
    alpha: float  # weight of the centroid loss; 0 leaves DINO's loss alone
    outputs: int  # of the CLS layer
    outputs_centroid: int
    hidden: int
    bottleneck: int
    head_batch_norm: bool  # DINO's option; clusters that are not valid count in its statistics, as rows of the batch
    norm_last: bool  # rows of the last layers keep length 1
    center_momentum: float  # of the running mean of the teacher's logits, a step
    student_temperature: float  # of the CLS outputs
    teacher_temperature: float
    teacher_temperature_end: float
    student_temperature_centroid: float
    teacher_temperature_centroid: float
    teacher_temperature_centroid_end: float
    teacher_warmup_epochs: float  # of both teacher temperatures, linear
    precision: str  # fp32 | bf16 | auto
    views: views.Augmentation
    clustering: croc.CrocClustering

    def __post_init__(self) -> None:
        check_precision("croc.precision", self.precision)
        if self.epochs < 1 or self.batch < 1 or self.accumulate < 1:
            raise ValueError("croc.epochs, croc.batch and croc.accumulate must be at least 1")


def initial_state(p: Croc, backbone: vit.Backbone) -> dict[str, Tensor]:
    """The ViT of p.init, its position embeddings [1, 1 + N, D] interpolated to the grid of a view, as timm does at run time.

    Raises:
        InputError: no such file, not a ViT's weights, or a ViT of another shape than backbone's.
    """
    try:
        state = vit.load(replace(backbone, weights=p.init)).state_dict()
    except InputError as error:
        raise InputError(f"croc.init: {error}") from None
    side = p.views.size // backbone.patch
    return state | {"pos_embed": resample_abs_pos_embed(state["pos_embed"], [side, side])}


class SharedDropPath(DropPath):
    """timm's, which draws for the whole batch and keeps this process's part: x is [2 B, ...], view by view."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.drop_prob or not self.training:
            return x
        every = x.new_empty(2, len(x) // 2 * distributed.world()).bernoulli_(1 - self.drop_prob)
        kept = distributed.local_shard(every, 1).reshape(-1, *[1] * (x.ndim - 1))
        return x * kept.div(1 - self.drop_prob)


class Network(nn.Module):
    """A ViT and its head; one forward gives all that the losses need."""

    def __init__(self, backbone: VisionTransformer, head: croc.ProjectionHead) -> None:
        super().__init__()
        self.vit, self.head = backbone, head

    def forward(self, pixels: Tensor) -> Tensor:
        """[2 B, 3, S, S] to tokens [2, B, 1 + N, D]."""
        out: Tensor = vit.tokens(self.vit, pixels).unflatten(0, (2, -1))
        return out


class Step(nn.Module):
    """Student, teacher and centres; `forward` gives the student's losses, `follow` moves the teacher."""

    center: Tensor  # [O], running mean of the teacher's CLS logits
    center_centroid: Tensor  # [O]
    mean: Tensor  # [3, 1, 1]; here, since a constant that is made in a step makes the host wait for a GPU
    std: Tensor

    def __init__(self, p: Croc, backbone: vit.Backbone) -> None:
        super().__init__()
        outputs = (p.outputs, p.outputs_centroid)

        def make(drop_path: float) -> Network:
            head = croc.ProjectionHead(backbone.width, p.hidden, p.bottleneck, outputs, p.head_batch_norm, p.norm_last)
            return Network(vit.build(backbone, p.views.size, drop_path), head)

        self.p, self.side = p, p.views.size // backbone.patch
        self.student, self.teacher = make(p.drop_path), make(0.0)
        if p.init != RANDOM_INIT:
            self.student.vit.load_state_dict(initial_state(p, backbone))
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        for block in self.student.vit.blocks:
            for name in ("drop_path1", "drop_path2"):
                if isinstance(part := getattr(block, name), DropPath):
                    setattr(block, name, SharedDropPath(part.drop_prob))
        self.register_buffer("mean", torch.tensor(batching.MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(batching.STD).view(3, 1, 1), persistent=False)
        self.register_buffer("center", torch.zeros(p.outputs))
        self.register_buffer("center_centroid", torch.zeros(p.outputs_centroid))

    def forward(self, batch: views.Views, temperature: float, temperature_centroid: float) -> dict[str, Tensor]:
        """The losses of a batch on this process's device: loss, cls, centroid (scalars), and what tells of a collapse.

        That is the mean entropy of the teacher's CLS outputs (nats; ln(outputs): each says nothing, 0: each is sure of one
        output), kl, their divergence from the student's (cls less entropy), and clusters, the mean K.
        """
        p, device = self.p, self.center.device
        pixels = batch.pixels.to(device, non_blocking=True).float().div(255)  # [B, 2, 3, S, S]
        pixels = ((pixels - self.mean) / self.std).transpose(0, 1).flatten(0, 1)  # [2 B, 3, S, S]
        with autocast(device, p.precision):
            with torch.no_grad():
                features: list[Tensor] = []
                hook = vit.last(self.teacher.vit).attn.qkv.register_forward_hook(lambda m, i, o: features.append(o))
                told = self.teacher(pixels)  # [2, B, 1 + N, D]
                hook.remove()
            seen = self.student(pixels)
            target = self.target(self.teacher.head(told[:, :, 0], 0), "center", temperature)
            loss = cls = croc.cross_entropy(self.student.head(seen[:, :, 0], 0), target, p.student_temperature).mean()
            entropy = torch.special.entr(target).sum(-1).mean()
            centroid = chosen = torch.zeros((), device=device)
            if p.alpha:
                found = self.clusters(features[0], told, batch)
                centroid, chosen = self.centroid_loss(seen, told, found, temperature_centroid), found.chosen.float().mean()
                loss = cls + p.alpha * centroid
        return {"loss": loss, "cls": cls, "centroid": centroid, "entropy": entropy, "kl": cls - entropy, "clusters": chosen}

    @torch.no_grad()
    def clusters(self, qkv: Tensor, told: Tensor, batch: views.Views) -> croc.ClusterAssignment:
        """Cluster the teacher's features: of qkv [2 B, 1 + N, 3 D], its last block's, or told [2, B, 1 + N, D], its tokens."""
        if (kind := self.p.clustering.features) == "tokens":
            features = told[:, :, None]  # [2, B, 1, 1 + N, D]
        else:
            parts = qkv.unflatten(2, (3, vit.last(self.teacher.vit).attn.num_heads, -1))[:, :, croc.FEATURES.index(kind)]
            features = parts.transpose(1, 2).unflatten(0, (2, -1))  # [2, B, H, 1 + N, d]
        boxes, flipped = (x.to(qkv.device, non_blocking=True) for x in (batch.boxes_xywh, batch.flipped))
        where = views.positions(boxes, flipped, self.side)
        loaded, heads, tokens = features.shape[1], features.shape[2], 2 * (features.shape[3] - 1)
        every = torch.empty(loaded * distributed.world(), heads, tokens, device=qkv.device).exponential_()
        with torch.autocast(qkv.device.type, enabled=False):
            return croc.join_locate_split(features, where, self.p.clustering, noise=distributed.local_shard(every).flatten(0, 1))

    def centroid_loss(self, seen: Tensor, told: Tensor, found: croc.ClusterAssignment, temperature: float) -> Tensor:
        """Mean cross-entropy over the valid clusters (0 where there is none); student [2, B, 1 + N, D], teacher alike.

        Of several processes each gives such a part that the mean over them is the mean over the clusters of all.
        """

        def logits(net: Network, tokens: Tensor) -> Tensor:
            norm = distributed.all_reduce_sum(tokens[:, :, 0].float().norm(dim=-1).mean()) / distributed.world()
            out: Tensor = net.head(croc.centroids(tokens[:, :, 1:], found.weights, norm).flatten(1, 3), 1)
            return out  # [2, M, O], M = B H K

        valid = found.valid.flatten().float()  # [M]
        with torch.no_grad():
            target = self.target(logits(self.teacher, told), "center_centroid", temperature, valid)
        each = croc.cross_entropy(logits(self.student, seen), target, self.p.student_temperature_centroid)  # [M]
        return (each * valid).sum() / distributed.all_reduce_mean(valid.sum()).clamp_min(1 / distributed.world())

    @torch.no_grad()
    def target(self, logits: Tensor, center: str, temperature: float, valid: Tensor | None = None) -> Tensor:
        """Centred, sharpened probabilities of the teacher's logits [2, M, O]; then the centre moves."""
        logits = logits.float()
        running: Tensor = getattr(self, center)
        probabilities = ((logits - running) / temperature).softmax(-1)
        weight = torch.ones(logits.shape[1], device=logits.device) if valid is None else valid  # [M]
        total = distributed.all_reduce_mean(torch.cat([torch.einsum("vmo,m->o", logits, weight), 2 * weight.sum()[None]]))
        moved = torch.lerp(total[:-1] / total[-1].clamp_min(1e-6), running, self.p.center_momentum ** (1 / self.p.accumulate))
        running.copy_(torch.where(total[-1] > 0, moved, running))
        return probabilities

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Teacher = momentum * teacher + (1 - momentum) * student."""
        for t, s in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            t.lerp_(s, 1 - momentum)


def clip_each(parameters: list[nn.Parameter], largest: float) -> None:
    """Scale each parameter's gradient to the norm `largest` at the most, as published (not the norm of all)."""
    for x in parameters:
        if x.grad is not None:
            x.grad.mul_((largest / (x.grad.norm() + 1e-6)).clamp(max=1))


def compile_blocks(net: Step, backend: str = "inductor") -> None:
    """torch.compile the ViTs' blocks; not the teacher's last one, which is listened to."""
    blocks = [*net.student.vit.blocks, *net.teacher.vit.blocks[:-1]]
    torch._dynamo.config.recompile_limit = 2 * len(blocks)  # each has its own drop-path; beyond the limit they run uncompiled
    for block in blocks:
        block.compile(backend=backend)


def check(p: Croc, backbone: vit.Backbone, count: int) -> None:
    """Raises: InputError, where the batch or the view cannot be divided as asked, or there is no image."""
    if not count:
        raise InputError("no image to learn from; put photographs into data.images, or change data in params.yaml")
    batch, parts = min(p.batch, count), distributed.world() * p.accumulate
    if batch % parts:
        what = f"processes ({distributed.world()}) times croc.accumulate ({p.accumulate})"
        raise InputError(f"params.yaml: croc.batch is {p.batch}, of {count} images; the smaller must be a multiple of {what}")
    if p.views.size % backbone.patch:
        raise InputError(
            f"params.yaml: croc.views.size is {p.views.size}; it must be a multiple of backbone.patch, {backbone.patch}"
        )


def accumulate(shared: nn.Module, batch: views.Views, temperatures: tuple[float, float], parts: int) -> dict[str, Tensor]:
    """Add up the gradients of the parts of a batch; returns their mean metrics, over all processes."""
    rows = []
    for part in range(parts):
        last = part == parts - 1
        wait = contextlib.nullcontext() if last or not isinstance(shared, DistributedDataParallel) else shared.no_sync()
        with wait:
            metrics: dict[str, Tensor] = shared(views.Views(*(x.chunk(parts)[part] for x in batch)), *temperatures)
            (metrics["loss"] / parts).backward()
        rows.append(torch.stack([x.detach().float() for x in metrics.values()]))
    means = distributed.all_reduce_mean(torch.stack(rows).mean(0))
    return dict(zip(metrics, means, strict=True))


def train(
    p: Croc, backbone: vit.Backbone, root: str, records: list[ImageRecord], seed: int, checkpoint: Checkpoint
) -> tuple[VisionTransformer, list[dict[str, float]]]:
    """Pre-train a ViT on the images.

    Returns:
        The teacher's ViT, and the metrics of each step, of the whole batch.

    Raises:
        InputError: sizes that do not divide, or no image.
    """
    check(p, backbone, len(records))
    torch.manual_seed(seed)
    device = environment.device()
    net = Step(p, backbone).to(device).train()
    if device.type == "cpu" and net.side**2 < SHORT:
        for block in (*net.student.vit.blocks, *net.teacher.vit.blocks):
            block.attn.fused_attn = False
    if os.environ.get("UNSEG_COMPILE") == "1":
        compile_blocks(net)
    decayed = [x for x in net.student.parameters() if x.requires_grad and x.ndim > 1]
    others = [x for x in net.student.parameters() if x.requires_grad and x.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
    shared = distributed.wrap_ddp(net, unused=True)
    per_epoch = training.steps_per_epoch(len(records), p.batch)
    steps = p.epochs * per_epoch
    last = [x for x in net.student.head.last.parameters() if x.requires_grad]
    peak = p.lr * min(p.batch, len(records)) / 256

    def step(number: int, batch: views.Views) -> dict[str, Tensor]:
        epoch, share = number / per_epoch, number / steps
        after = (epoch - p.warmup_epochs) / max(p.epochs - p.warmup_epochs, 1e-9)
        warming = epoch < p.warmup_epochs
        training.set_lr(optimizer, peak * epoch / p.warmup_epochs if warming else training.cosine_schedule(peak, p.min_lr, after))
        optimizer.param_groups[0]["weight_decay"] = training.cosine_schedule(p.weight_decay, p.weight_decay_end, share)
        ramp = min(1.0, epoch / p.teacher_warmup_epochs) if p.teacher_warmup_epochs else 1.0
        temperatures = (
            p.teacher_temperature + ramp * (p.teacher_temperature_end - p.teacher_temperature),
            p.teacher_temperature_centroid + ramp * (p.teacher_temperature_centroid_end - p.teacher_temperature_centroid),
        )
        torch.manual_seed(training.mix_seeds(seed, number, 0))  # the same in every process: each draws for the whole batch
        optimizer.zero_grad(set_to_none=True)
        metrics = accumulate(shared, batch, temperatures, p.accumulate)
        if p.clip:
            clip_each(decayed + others, p.clip)
        if epoch < p.freeze_epochs:
            for x in last:
                x.grad = None
        optimizer.step()
        net.follow(training.cosine_schedule(p.ema, 1.0, share))
        return metrics

    dataset = views.ViewPairs(root, records, p.views)
    state: dict[str, Any] = {"net": net, "optimizer": optimizer}
    values = training.fit("croc", checkpoint, state, dataset, p.batch, steps, seed, step, views.collate)
    return copy.deepcopy(net.teacher.vit).cpu(), values
