"""Train Mask R-CNN in W processes with the same result as in one: same random draws, same padding, same losses.

torchvision samples sizes, anchors and proposals per image, pads each batch to its largest image, and averages over the
samples. Here each process samples for all images of the batch and keeps its own part, so all must start from the same
seed. `weight_losses` turns the mean over processes into the mean over the batch. With one process nothing changes.

Shapes: B images of the whole batch, distributed as in `training.EpochSampler`.
"""

import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from unseg.engine import distributed


class DistributedBalancedSampler(BalancedPositiveNegativeSampler):  # type: ignore[misc]
    """torchvision's sampler of positives and negatives, sampling for the images of all processes."""

    def __init__(self, like: BalancedPositiveNegativeSampler) -> None:
        super().__init__(like.batch_size_per_image, like.positive_fraction)
        self.samples, self.positives = torch.zeros(()), torch.zeros(())  # counts for this process's images, in the last call

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Sample as torchvision does. matched_idxs has one tensor per image: > 0 positive, 0 negative, < 0 ignored."""
        device = matched_idxs[0].device
        local_counts = torch.stack([torch.stack([(m >= 1).sum(), (m == 0).sum()]) for m in matched_idxs])  # [B / W, 2]
        batch_counts = distributed.gather(local_counts).transpose(0, 1).flatten(0, 1).tolist()  # [B, 2], in batch order
        masks: tuple[list[Tensor], list[Tensor]] = ([], [])
        for image, counts in enumerate(batch_counts):
            positives = min(counts[0], int(self.batch_size_per_image * self.positive_fraction))
            sizes = positives, min(counts[1], self.batch_size_per_image - positives)
            samples = [torch.randperm(n, device=device)[:size] for n, size in zip(counts, sizes, strict=True)]
            if image % distributed.world() == distributed.rank():
                matched = matched_idxs[image // distributed.world()]
                for mask, candidates, sample in zip(masks, (matched >= 1, matched == 0), samples, strict=True):
                    at = candidates.nonzero()[:, 0][sample]
                    mask.append(torch.zeros_like(matched, dtype=torch.uint8).index_fill_(0, at, 1))
        self.positives = torch.cat(masks[0]).sum().float()
        self.samples = self.positives + torch.cat(masks[1]).sum()
        return masks


class DistributedRCNNTransform(GeneralizedRCNNTransform):  # type: ignore[misc]
    """torchvision's resizing and padding, with sizes sampled and padding computed over the images of all processes."""

    def torch_choice(self, k: list[int]) -> int:
        draws = [super(DistributedRCNNTransform, self).torch_choice(k) for _ in range(distributed.world())]
        return int(draws[distributed.rank()])

    def max_by_axis(self, the_list: list[list[int]]) -> list[int]:
        size = torch.tensor(super().max_by_axis(the_list), device=self.device)
        return [int(n) for n in distributed.all_reduce_max(size).tolist()]

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> object:
        self.device = images[0].device  # collectives need tensors on the accelerator
        return super().forward(images, targets)


def distribute(model: MaskRCNN) -> None:
    """Make training in several processes equal to training in one process. Does nothing with one process."""
    distributed.sync_norms(model)
    if distributed.world() > 1:
        model.transform.__class__ = DistributedRCNNTransform
        for part in (model.rpn, model.roi_heads):
            part.fg_bg_sampler = DistributedBalancedSampler(part.fg_bg_sampler)


def weight_losses(model: MaskRCNN, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weight each loss by this process's fraction of the samples, so that the mean over processes is the batch's mean."""
    if distributed.world() == 1:
        return parts
    rpn, heads = model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler
    counts = {"objectness": rpn.samples, "rpn_box_reg": rpn.samples, "mask": heads.positives}
    counts |= {"classifier": heads.samples, "box_reg": heads.samples}
    fractions = {name: n / distributed.all_reduce_mean(n).clamp_min(1e-9) for name, n in counts.items()}
    return {name: x * fractions[name] for name, x in parts.items()}
