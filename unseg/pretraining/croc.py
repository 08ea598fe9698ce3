"""CrOC: self-supervised pre-training that clusters two views jointly and matches the clusters.

Stegmueller, Lebailly et al., arXiv:2303.13245; "spec" is docs/spec/croc.md. `join_locate_split` is the paper's clustering
(teacher only), `centroids` pools the tokens of each cluster, `cross_entropy` is DINO's loss for CLS tokens and centroids.

Shapes: B images, 2 views, H heads, N patches of a view, T = 2 N tokens of both, d channels of a head, D of a token,
G = B H clusterings (one for each head of each image), K clusters, O outputs of a head.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from unseg.core.params import NonNegativeFloat, PositiveFloat, PositiveInt
from unseg.engine import distributed


@dataclass(frozen=True)
class CrocClustering:
    """The `croc.clustering` group of params.yaml."""

    features: Literal["queries", "keys", "values", "tokens"]  # of the teacher's last block, by head; tokens: final ones, one head
    tokens: PositiveInt  # K at the start: tokens drawn as seeds
    centroids_max: Annotated[int, Ge(2)]  # largest K that may be chosen
    position_weight: NonNegativeFloat  # of the distance in the image, relative to the similarity of features
    sharpness: PositiveFloat  # Sinkhorn's lambda; the cost is scaled to 0..1
    iterations: PositiveInt  # of Sinkhorn
    token_temperature: PositiveFloat  # of the tokens' marginals and of drawing the seeds
    cluster_temperature: PositiveFloat  # of the clusters' marginals
    cost_norm: Literal["batch", "sample"]  # min and max over the batch (as published) or over each clustering

    def __post_init__(self) -> None:
        if self.centroids_max > self.tokens:
            raise ValueError(f"croc.clustering.centroids_max is {self.centroids_max}; it must be at most tokens, {self.tokens}")


class ClusterAssignment(NamedTuple):
    weights: Tensor  # [2, B, H, N, K], at most one non-zero cluster per token
    valid: Tensor  # [B, H, K] bool: the cluster has tokens in both views
    chosen: Tensor  # [B, H] int64: K of each clustering


def join_locate_split(
    features: Tensor, positions: Tensor, p: CrocClustering, seeds: Tensor | None = None, noise: Tensor | None = None
) -> ClusterAssignment:
    """Cluster the tokens of both views together, separately for each head of each image (spec section 3).

    Args:
        features: [2, B, H, 1 + N, d], the teacher's, CLS first (H = 1 and d = D for whole tokens).
        positions: [B, 2, N, 2] xy in pixels of the image.
        seeds: [G, p.tokens] int64, tokens to start from; if None, they are drawn by their similarity to the CLS token.
        noise: [G, T] exponentially distributed, to draw the seeds with; if None, it is drawn here.

    Returns:
        The clusters. An image whose views have nothing in common has no valid cluster.
    """
    _, b, h, n, d = features.shape
    z = F.normalize(features.float(), dim=-1).permute(1, 2, 0, 3, 4).reshape(b * h, 2, n, d)  # [G, 2, 1 + N, d]
    scores = (z[:, :, 1:] @ z[:, :, 0, :, None]).reshape(b * h, -1)  # [G, T], similarity to the CLS token of the same view
    z = z[:, :, 1:].reshape(b * h, -1, d)  # [G, T, d]
    x = positions.float().reshape(b, 1, -1, 2).expand(-1, h, -1, -1).reshape(b * h, -1, 2)  # [G, T, 2]
    rho = (scores / p.token_temperature).softmax(-1)  # [G, T]
    if seeds is None:
        noise = torch.empty_like(rho).exponential_() if noise is None else noise
        # The same draw as torch.multinomial without replacement, which would wait for the GPU to check its input.
        seeds = (rho / noise).topk(min(p.tokens, rho.shape[1])).indices  # [G, K]
    gamma = (scores.gather(1, seeds) / p.cluster_temperature).softmax(-1)  # [G, K]
    centres, centre_xy = z.take_along_dim(seeds[..., None], 1), x.take_along_dim(seeds[..., None], 1)  # [G, K, d], [G, K, 2]

    costs, plans = [], []
    for k in range(seeds.shape[1], 1, -1):
        cost = transport_cost(z, x, centres, centre_xy, p)  # [G, T, K]
        plan = sinkhorn(cost, rho, gamma, p.sharpness, p.iterations)  # [G, T, K]
        if k <= p.centroids_max:
            costs.append((plan * cost).sum((1, 2)))  # [G]
            views = normalise_columns(plan.unflatten(1, (2, -1)))  # [G, 2, N, K]
            plans.append(F.pad(views, (0, p.centroids_max - k)))
        if k > 2:
            plan = merge(plan, normalise_columns(plan).transpose(1, 2) @ z)  # [G, T, K - 1]
            weights = normalise_columns(plan)
            centres, centre_xy = weights.transpose(1, 2) @ z, weights.transpose(1, 2) @ x
            gamma = (rho[:, None] @ weights).squeeze(1)
            gamma = gamma / gamma.sum(1, keepdim=True)

    best = torch.stack(costs, 1).argmin(1)  # [G]; of equal costs the first, i.e. the larger K
    split = torch.stack(plans, 1)[torch.arange(len(best), device=best.device), best]  # [G, 2, N, K]
    largest, index = split.max(-1, keepdim=True)
    hard = torch.zeros_like(split).scatter(-1, index, largest)  # [G, 2, N, K]
    valid = (hard.sum(2) > 0).all(1)  # [G, K]
    chosen = min(p.centroids_max, seeds.shape[1]) - best
    weights = hard.unflatten(0, (b, h)).permute(2, 0, 1, 3, 4)
    return ClusterAssignment(weights, valid.unflatten(0, (b, h)), chosen.unflatten(0, (b, h)))


def normalise_columns(plan: Tensor) -> Tensor:
    """Scale the column of each cluster to sum 1: [..., T, K]."""
    return plan / plan.sum(-2, keepdim=True).clamp_min(1e-12)


def transport_cost(z: Tensor, x: Tensor, centres: Tensor, centre_xy: Tensor, p: CrocClustering) -> Tensor:
    """M = -similarity + weight * distance, scaled to 0..1 (spec 3.6 a to c). [G, T, K]"""
    similarity = z @ F.normalize(centres, dim=-1).transpose(1, 2)  # [G, T, K]
    distance = torch.cdist(x, centre_xy)  # [G, T, K]
    distance = distance / distance.amax((1, 2), keepdim=True).clamp_min(1e-12)
    cost = p.position_weight * distance - similarity
    if p.cost_norm == "batch":
        low, high = cost.aminmax()
        bounds = distributed.all_reduce_max(torch.stack([-low, high]))  # over the batches of all processes
        low, high = -bounds[0], bounds[1]
    else:
        low, high = cost.amin((1, 2), keepdim=True), cost.amax((1, 2), keepdim=True)
    return (cost - low) / (high - low).clamp_min(1e-12)


def sinkhorn(cost: Tensor, rho: Tensor, gamma: Tensor, sharpness: float, iterations: int) -> Tensor:
    """The plan [G, T, K] of entropy-regularised optimal transport (spec 3.6 d).

    Its columns sum to gamma, because they are scaled last, its rows approximately to rho.

    Args:
        cost: [G, T, K] in 0..1.
        rho: [G, T] marginal of the tokens, sums to 1.
        gamma: [G, K] marginal of the clusters, sums to 1.
    """
    kernel = (-sharpness * cost).exp()  # [G, T, K]
    u, v = torch.ones_like(rho), torch.ones_like(gamma)  # the plan is diag(u) kernel diag(v); an iteration costs two products
    for _ in range(iterations):
        u = rho / (kernel @ v[..., None]).squeeze(2).clamp_min(1e-30)
        v = gamma / (u[:, None] @ kernel).squeeze(1).clamp_min(1e-30)
    return u[..., None] * kernel * v[:, None]


def merge(plan: Tensor, centres: Tensor) -> Tensor:
    """Join the two clusters with the largest inner product of centres [G, K, d]; their sum becomes the last column."""
    k = plan.shape[2]
    similarity = centres @ centres.transpose(1, 2)  # [G, K, K]
    similarity = similarity.masked_fill(torch.eye(k, dtype=torch.bool, device=plan.device), -torch.inf)
    pair = similarity.flatten(1).argmax(1)  # [G]
    first, second = pair // k, pair % k
    index = torch.arange(k, device=plan.device)
    in_pair = (index == first[:, None]) | (index == second[:, None])  # [G, K]
    order = in_pair.int().argsort(dim=1, stable=True)[:, None].expand_as(plan)  # the others keep their order
    plan = plan.gather(2, order)  # [G, T, K], the pair in the last two columns
    return torch.cat([plan[..., : k - 2], plan[..., k - 2 :].sum(2, keepdim=True)], 2)


def centroids(tokens: Tensor, weights: Tensor, norm: Tensor) -> Tensor:
    """Pool the patch tokens of each cluster (spec section 4): [2, B, H, K, D], each of length `norm`.

    Args:
        tokens: [2, B, N, D], after the final LayerNorm.
        weights: [2, B, H, N, K].
        norm: scalar, the mean norm of the CLS tokens of the same network.
    """
    pooled = torch.einsum("vbhnk,vbnd->vbhkd", weights.to(tokens.dtype), tokens)
    return F.normalize(pooled.float(), dim=-1) * norm


def cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Teacher [2, M, O] (probabilities) of a view against student [2, M, O] (logits) of the other: [M], the mean of both."""
    logs = (student.float() / temperature).log_softmax(-1)
    return -(teacher * logs.flip(0)).sum(-1).mean(0)


class ProjectionHead(nn.Module):
    """DINO's projection head: a shared MLP to a bottleneck, then one weight-normalised layer for CLS, one for centroids."""

    def __init__(
        self, width: int, hidden: int, bottleneck: int, outputs: tuple[int, int], batch_norm: bool, norm_last: bool
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (width, hidden):
            layers += [nn.Linear(inputs, hidden), *([HeadBatchNorm(hidden)] if batch_norm else []), nn.GELU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last = nn.ModuleList(prototypes(bottleneck, count, norm_last) for count in outputs)

    def forward(self, x: Tensor, layer: int) -> Tensor:
        """x [2, M, D] to logits [2, M, O] of the last layer 0 (CLS tokens) or 1 (centroids)."""
        z = self.mlp(x.flatten(0, 1)).unflatten(0, (2, -1))
        logits: Tensor = self.last[layer](F.normalize(z, dim=-1))
        return logits


class HeadBatchNorm(nn.BatchNorm1d):
    """Batch norm with the statistics of the rows [M, D] of all processes (nn.SyncBatchNorm does not run on a CPU)."""

    def forward(self, x: Tensor) -> Tensor:
        if distributed.world() == 1 or not self.training:
            return super().forward(x)
        rows = len(x) * distributed.world()
        centred = x.float() - distributed.all_reduce_sum(x.float().sum(0)) / rows  # [M, D]
        variance = distributed.all_reduce_sum(centred.square().sum(0)) / rows  # [D]
        return (centred * (variance + self.eps).rsqrt() * self.weight + self.bias).to(x.dtype)


def prototypes(width: int, outputs: int, fixed: bool) -> nn.Module:
    """A weight-normalised linear layer without bias; its rows start with norm 1, and keep it if `fixed`."""
    layer = nn.Linear(width, outputs, bias=False)
    norms = weight_norm(layer).parametrizations.weight.original0
    nn.init.ones_(norms).requires_grad_(not fixed)
    return layer
