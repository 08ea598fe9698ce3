"""The training of CrOC: student, EMA teacher, centres, schedules (arXiv:2303.13245; docs/spec/croc.md, 1, 5, 6).

Shapes: B images, 2 views, H heads, N patches, D channels of a token, M rows of a head's input, O outputs.
"""

import contextlib
import copy
import os
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Interval
from timm.layers.drop import DropPath, calculate_drop_path_rates
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unseg.core.console import InputError
from unseg.core.image_index import ImageRecord
from unseg.core.params import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt, Precision
from unseg.engine import distributed, environment, training
from unseg.engine.checkpoint import Checkpoint
from unseg.engine.precision import autocast
from unseg.models import facets, vit
from unseg.models.vit import ViT
from unseg.models.weights import RANDOM_INIT
from unseg.pretraining import croc, log_pictures, views

SHORT = 128  # patches; below, explicit attention is faster on a CPU than the fused kernel (at 64 a step takes 0.7 s, not 1.0 s)


@dataclass(frozen=True)
class Croc:
    """The `croc` group of params.yaml."""

    init: str  # weights of any ViT that `vit.load` reads, which student and teacher start from, or RANDOM_INIT
    epochs: PositiveInt
    batch: PositiveInt  # images, over all processes
    accumulate: PositiveInt  # parts of a batch whose gradients are added up, to save memory; each is clustered separately
    lr: PositiveFloat  # at batch 256; scaled linearly
    min_lr: NonNegativeFloat  # at the end, not scaled
    warmup_epochs: NonNegativeFloat
    weight_decay: NonNegativeFloat
    weight_decay_end: NonNegativeFloat
    ema: Fraction  # momentum of the teacher at the start; 1 at the end
    clip: NonNegativeFloat  # gradient norm of each parameter; 0: no clipping
    freeze_epochs: NonNegativeFloat  # at the start, in which the last layers are not trained
    drop_path: Annotated[float, Interval(ge=0, lt=1)]
    alpha: NonNegativeFloat  # weight of the centroid loss; 0: DINO's loss alone
    outputs: PositiveInt  # of the CLS layer
    outputs_centroid: PositiveInt
    hidden: PositiveInt
    bottleneck: PositiveInt
    head_batch_norm: bool  # DINO's option; invalid clusters count in its statistics, as rows of the batch
    norm_last: bool  # rows of the last layers keep norm 1
    center_momentum: Fraction  # of the running mean of the teacher's logits, per step
    student_temperature: PositiveFloat  # of the CLS outputs
    teacher_temperature: PositiveFloat
    teacher_temperature_end: PositiveFloat
    student_temperature_centroid: PositiveFloat
    teacher_temperature_centroid: PositiveFloat
    teacher_temperature_centroid_end: PositiveFloat
    teacher_warmup_epochs: NonNegativeFloat  # of both teacher temperatures, linear
    precision: Precision
    views: views.Augmentation
    clustering: croc.CrocClustering


def starting_point(init: vit.Backbone) -> ViT | vit.Shape:
    """The ViT of croc.init, or the shape of one with random weights. Raises InputError for a file that does not fit.

    Position embeddings stay those of the file's grid, and are interpolated to that of the views in each step.

    Args:
        init: croc.init, and the shape that the group `backbone` of params.yaml asks for; null is the file's.
    """
    if init.weights == RANDOM_INIT:
        return init.shape()
    try:
        return vit.load(init)
    except InputError as error:
        raise InputError(f"croc.init: {error}") from None


class SharedDropPath(DropPath):
    """timm's DropPath, drawn for the batch of all processes; x is this process's part [2 B, ...], view by view."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.drop_prob or not self.training:
            return x
        draws = x.new_empty(2, len(x) // 2 * distributed.world()).bernoulli_(1 - self.drop_prob)
        return x * distributed.local_shard(draws, 1).reshape(-1, *[1] * (x.ndim - 1)).div(1 - self.drop_prob)


class Network(nn.Module):
    """A ViT and its projection head."""

    def __init__(self, p: Croc, start: ViT | vit.Shape) -> None:
        super().__init__()
        shape = start if isinstance(start, vit.Shape) else vit.describe(start)
        outputs = (p.outputs, p.outputs_centroid)
        head = croc.ProjectionHead(shape.width, p.hidden, p.bottleneck, outputs, p.head_batch_norm, p.norm_last)
        self.vit = vit.build(start, p.views.size) if isinstance(start, vit.Shape) else start  # after the head, as ever: one seed
        self.head = head

    def forward(self, pixels: Tensor) -> Tensor:
        """[2 B, 3, S, S] to tokens [2, B, 1 + N, D]: CLS and patches, without registers."""
        return torch.unflatten(self.without_registers(vit.tokens(self.vit, pixels)), 0, (2, -1))

    def read(self, pixels: Tensor, facet: str) -> tuple[Tensor, Tensor]:
        """Tokens as from `forward`, and a facet of the last block: [2, B, H, 1 + N, d]."""
        tokens, features = (self.without_registers(x).unflatten(0, (2, -1)) for x in facets.last_block(self.vit, pixels, facet))
        return tokens, features

    def without_registers(self, x: Tensor) -> Tensor:
        """[..., P + N, d] to [..., 1 + N, d]."""
        prefix = self.vit.num_prefix_tokens
        return x if prefix == 1 else torch.cat([x[..., :1, :], x[..., prefix:, :]], -2)

    def drop_paths(self, rate: float) -> None:
        """Stochastic depth, linear from 0 in the first block to `rate` in the last (timm's drop_path_rate)."""
        blocks: list[Any] = list(self.vit.blocks)
        rates: Any = calculate_drop_path_rates(rate, len(blocks))
        for block, drop_prob in zip(blocks, rates, strict=True):
            block.drop_path1, block.drop_path2 = SharedDropPath(drop_prob), SharedDropPath(drop_prob)


class StudentTeacher(nn.Module):
    """Student, teacher and centres. `forward` computes the losses of the student, `update_teacher` moves the teacher."""

    center: Tensor  # [O], running mean of the teacher's CLS logits
    center_centroid: Tensor  # [O]
    mean: Tensor  # [3, 1, 1]; a buffer, because creating a constant in a step would make the host wait for the GPU
    std: Tensor

    def __init__(self, p: Croc, start: ViT | vit.Shape) -> None:
        """start: as from `starting_point`; the ViT becomes the student's."""
        super().__init__()
        self.student = Network(p, start)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.student.drop_paths(p.drop_path)
        self.p, self.side = p, p.views.size // vit.patch_size(self.student.vit)
        for name, values in zip(("mean", "std"), vit.normalisation(self.student.vit), strict=True):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)
        self.register_buffer("center", torch.zeros(p.outputs))
        self.register_buffer("center_centroid", torch.zeros(p.outputs_centroid))

    def forward(self, batch: views.Views, temperature: float, temperature_centroid: float) -> dict[str, Tensor]:
        """The losses of this process's part of a batch, scalars: loss, cls, centroid. Other metrics show a collapse.

        entropy: of the teacher's CLS outputs, nats; from 0, one output, to ln(outputs), uniform. kl: their divergence from
        the student's, cls - entropy. clusters: the mean K.
        """
        p, device = self.p, self.center.device
        pixels = batch.pixels.to(device, non_blocking=True).float().div(255)  # [B, 2, 3, S, S]
        pixels = ((pixels - self.mean) / self.std).transpose(0, 1).flatten(0, 1)  # [2 B, 3, S, S]
        with autocast(device, p.precision):
            with torch.no_grad():
                teacher, features = self.teacher.read(pixels, p.clustering.features)  # [2, B, 1 + N, D], [2, B, H, 1 + N, d]
            student = self.student(pixels)  # [2, B, 1 + N, D]
            target = self.probabilities(self.teacher.head(teacher[:, :, 0], 0), "center", temperature)
            loss = cls = croc.cross_entropy(self.student.head(student[:, :, 0], 0), target, p.student_temperature).mean()
            entropy = torch.special.entr(target).sum(-1).mean()
            centroid = chosen = torch.zeros((), device=device)
            if p.alpha:
                clusters = self.cluster(features, batch)
                chosen = clusters.chosen.float().mean()
                centroid = self.centroid_loss(student, teacher, clusters, temperature_centroid)
                loss = cls + p.alpha * centroid
        return {"loss": loss, "cls": cls, "centroid": centroid, "entropy": entropy, "kl": cls - entropy, "clusters": chosen}

    @torch.no_grad()
    def cluster(self, features: Tensor, batch: views.Views) -> croc.ClusterAssignment:
        """Cluster the teacher's features [2, B, H, 1 + N, d]."""
        device = features.device
        boxes, flipped = (x.to(device, non_blocking=True) for x in (batch.boxes_xywh, batch.flipped))
        positions = views.positions(boxes, flipped, self.side)
        images, heads, patches = features.shape[1], features.shape[2], features.shape[3] - 1
        noise = torch.empty(images * distributed.world(), heads, 2 * patches, device=device).exponential_()
        noise = distributed.local_shard(noise).flatten(0, 1)  # [B H, 2 N]
        with torch.autocast(device.type, enabled=False):
            return croc.join_locate_split(features, positions, self.p.clustering, noise=noise)

    def centroid_loss(self, student: Tensor, teacher: Tensor, clusters: croc.ClusterAssignment, temperature: float) -> Tensor:
        """Mean cross-entropy over the valid clusters (0 if there are none), from tokens [2, B, 1 + N, D] of both networks.

        Each process returns its part, such that the mean over the processes is the mean over the clusters of all of them.
        """

        def logits(net: Network, tokens: Tensor) -> Tensor:
            norm = distributed.all_reduce_sum(tokens[:, :, 0].float().norm(dim=-1).mean()) / distributed.world()
            pooled = croc.centroids(tokens[:, :, 1:], clusters.weights, norm)  # [2, B, H, K, D]
            return torch.as_tensor(net.head(pooled.flatten(1, 3), 1))  # [2, M, O], M = B H K

        valid = clusters.valid.flatten().float()  # [M]
        with torch.no_grad():
            target = self.probabilities(logits(self.teacher, teacher), "center_centroid", temperature, valid)
        losses = croc.cross_entropy(logits(self.student, student), target, self.p.student_temperature_centroid)  # [M]
        return (losses * valid).sum() / distributed.all_reduce_mean(valid.sum()).clamp_min(1 / distributed.world())

    @torch.no_grad()
    def probabilities(self, logits: Tensor, center: str, temperature: float, valid: Tensor | None = None) -> Tensor:
        """Centred, sharpened probabilities of the teacher's logits [2, M, O]. Then the centre moves to the mean of valid rows."""
        logits = logits.float()
        running: Tensor = getattr(self, center)
        probabilities = ((logits - running) / temperature).softmax(-1)
        weight = torch.ones(logits.shape[1], device=logits.device) if valid is None else valid  # [M]
        total = distributed.all_reduce_mean(torch.cat([torch.einsum("vmo,m->o", logits, weight), 2 * weight.sum()[None]]))
        moved = torch.lerp(total[:-1] / total[-1].clamp_min(1e-6), running, self.p.center_momentum ** (1 / self.p.accumulate))
        running.copy_(torch.where(total[-1] > 0, moved, running))
        return probabilities

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Teacher = momentum * teacher + (1 - momentum) * student."""
        for t, s in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            t.lerp_(s, 1 - momentum)


def clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> None:
    """Scale the gradient of each parameter separately (as published) to at most this norm."""
    for x in parameters:
        if x.grad is not None:
            x.grad.mul_((max_norm / (x.grad.norm() + 1e-6)).clamp(max=1))


def compile_blocks(net: StudentTeacher, backend: str = "inductor") -> None:
    """torch.compile the blocks of both ViTs."""
    blocks: list[Any] = [*net.student.vit.blocks, *net.teacher.vit.blocks]
    torch._dynamo.config.recompile_limit = 2 * len(blocks)  # each block has its drop-path; beyond the limit it runs uncompiled
    for block in blocks:
        block.compile(backend=backend)


def check_sizes(p: Croc, patch: int, count: int) -> None:
    """Raises InputError if there is no image, or the batch or the view cannot be divided as params.yaml asks."""
    if not count:
        raise InputError("no image to learn from; put photographs into data.images, or change data in params.yaml")
    if min(p.batch, count) % (distributed.world() * p.accumulate):
        divisor = f"processes ({distributed.world()}) times croc.accumulate ({p.accumulate})"
        raise InputError(f"params.yaml: croc.batch is {p.batch}, of {count} images; the smaller must be a multiple of {divisor}")
    if p.views.size % patch:
        raise InputError(f"params.yaml: croc.views.size is {p.views.size}; it must be a multiple of the ViT's patch, {patch}")


def accumulate(net: nn.Module, batch: views.Views, temperatures: tuple[float, float], parts: int) -> dict[str, Tensor]:
    """Add up the gradients of the parts of a batch. Returns their mean metrics over all processes."""
    rows = []
    for part in range(parts):
        delayed = isinstance(net, DistributedDataParallel) and part < parts - 1
        with net.no_sync() if delayed else contextlib.nullcontext():  # type: ignore[operator]
            metrics: dict[str, Tensor] = net(views.Views(*(x.chunk(parts)[part] for x in batch)), *temperatures)
            (metrics["loss"] / parts).backward()
        rows.append(torch.stack([x.detach().float() for x in metrics.values()]))
    return dict(zip(metrics, distributed.all_reduce_mean(torch.stack(rows).mean(0)), strict=True))


def train(
    p: Croc, start: ViT | vit.Shape, root: str, records: list[ImageRecord], seed: int, checkpoint: Checkpoint
) -> tuple[ViT, list[dict[str, float]]]:
    """Pre-train from `starting_point` on the images: the ViT of the teacher, and the metrics of each step.

    Raises InputError as `check_sizes`, before any work.
    """
    check_sizes(p, start.patch if isinstance(start, vit.Shape) else vit.patch_size(start), len(records))
    torch.manual_seed(seed)
    device = environment.device()
    net = StudentTeacher(p, start).to(device).train()
    if device.type == "cpu" and net.side**2 < SHORT:
        blocks: list[Any] = [*net.student.vit.blocks, *net.teacher.vit.blocks]
        for block in blocks:
            block.attn.fused_attn = False
    if os.environ.get("UNSEG_COMPILE") == "1":
        compile_blocks(net)
    parameters = [x for x in net.student.parameters() if x.requires_grad]
    last_layers = [x for x in net.student.head.last.parameters() if x.requires_grad]
    decayed, others = [x for x in parameters if x.ndim > 1], [x for x in parameters if x.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
    ddp = distributed.wrap_ddp(net, unused=True)
    per_epoch = training.steps_per_epoch(len(records), p.batch)
    steps = p.epochs * per_epoch
    peak = p.lr * min(p.batch, len(records)) / 256

    # Functions of the step: torch.optim.lr_scheduler schedules no weight decay, momentum or temperature.
    def step(number: int, batch: views.Views) -> dict[str, Tensor]:
        epoch, progress = number / per_epoch, number / steps
        after_warmup = (epoch - p.warmup_epochs) / max(p.epochs - p.warmup_epochs, 1e-9)
        in_warmup = epoch < p.warmup_epochs
        lr = peak * epoch / p.warmup_epochs if in_warmup else training.cosine_schedule(peak, p.min_lr, after_warmup)
        training.set_lr(optimizer, lr)
        optimizer.param_groups[0]["weight_decay"] = training.cosine_schedule(p.weight_decay, p.weight_decay_end, progress)
        ramp = min(1.0, epoch / p.teacher_warmup_epochs) if p.teacher_warmup_epochs else 1.0
        temperatures = (
            p.teacher_temperature + ramp * (p.teacher_temperature_end - p.teacher_temperature),
            p.teacher_temperature_centroid + ramp * (p.teacher_temperature_centroid_end - p.teacher_temperature_centroid),
        )
        optimizer.zero_grad(set_to_none=True)
        metrics = accumulate(ddp, batch, temperatures, p.accumulate)
        if p.clip:
            clip_gradients(parameters, p.clip)
        if epoch < p.freeze_epochs:
            for x in last_layers:
                x.grad = None
        optimizer.step()
        net.update_teacher(training.cosine_schedule(p.ema, 1.0, progress))
        return metrics

    dataset = views.ViewPairs(root, records, p.views)
    draw = log_pictures.drawing(net.teacher.vit, p.views.size, p.precision, root, records)
    state = {"net": net, "optimizer": optimizer}
    values = training.fit("croc", checkpoint, state, dataset, p.batch, steps, seed, step, views.collate, draw=draw)
    return copy.deepcopy(net.teacher.vit).cpu(), values
