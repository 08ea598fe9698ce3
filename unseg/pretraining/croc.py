"""CrOC: self-supervised pre-training by clustering two views jointly and matching the clusters.

Stegmueller, Lebailly et al., arXiv:2303.13245; "spec" is docs/spec/croc.md. `join_locate_split` is the paper's
clustering (teacher only), `centroids` pools the tokens of each cluster, `cross_entropy` is DINO's loss, used for the
CLS tokens and for the centroids.

Shapes: B images, 2 views, H heads, N patches of a view, T = 2 N tokens of both, d channels of a head, D of a token,
G = B H clusterings (each head of each image is one), K clusters, O outputs of a head.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unseg.engine import distributed


@dataclass(frozen=True)
class CrocClustering:
    """The `croc.clustering` group of params.yaml."""

    features: str  # queries | keys | values of the teacher's last block, head by head | tokens: the final ones, as one head
    tokens: int  # K at the start: tokens drawn as seeds
    centroids_max: int  # clusters at the most; fewer may be chosen, down to 2
    position_weight: float  # of the distance in the image, against the similarity of features
    sharpness: float  # Sinkhorn's lambda; the cost is scaled to 0..1
    iterations: int  # of Sinkhorn
    token_temperature: float  # of the tokens' marginals and of drawing the seeds
    cluster_temperature: float  # of the clusters' marginals
    cost_norm: str  # batch: min and max over the batch (as published) | sample: over each clustering

    def __post_init__(self) -> None:
        if self.features not in FEATURES:
            raise ValueError(f"croc.clustering.features is {self.features!r}; it must be one of {', '.join(FEATURES)}")
        if self.cost_norm not in ("batch", "sample"):
            raise ValueError(f"croc.clustering.cost_norm is {self.cost_norm!r}; it must be batch or sample")
        if not 2 <= self.centroids_max <= self.tokens:
            raise ValueError(f"croc.clustering.centroids_max is {self.centroids_max}; it must be from 2 to tokens, {self.tokens}")


FEATURES = ("queries", "keys", "values", "tokens")  # the first three in the order of timm's qkv


class ClusterAssignment(NamedTuple):
    weights: Tensor  # [2, B, H, N, K], one non-zero cluster a token at the most
    valid: Tensor  # [B, H, K] bool: found in both views
    chosen: Tensor  # [B, H] int64: K of each clustering


def join_locate_split(
    features: Tensor, positions: Tensor, p: CrocClustering, seeds: Tensor | None = None, noise: Tensor | None = None
) -> ClusterAssignment:
    """Cluster the tokens of both views together, each head of each image for itself (spec section 3).

    Args:
        features: [2, B, H, 1 + N, d], the teacher's, CLS first (H = 1 and d = D of whole tokens).
        positions: [B, 2, N, 2] xy in pixels of the image.
        seeds: [G, p.tokens] int64, tokens to start from; drawn by the CLS token's scores where None.
        noise: [G, T] exponentially distributed, to draw them with; drawn here where None.

    Returns:
        The clusters; images in which the views share nothing have no valid one.
    """
    _, b, h, n, d = features.shape
    z = F.normalize(features.float(), dim=-1).permute(1, 2, 0, 3, 4).reshape(b * h, 2, n, d)  # [G, 2, 1 + N, d]
    scores = (z[:, :, 1:] @ z[:, :, 0, :, None]).reshape(b * h, -1)  # [G, T], similarity to the view's own CLS
    z = z[:, :, 1:].reshape(b * h, -1, d)  # [G, T, d]
    x = positions.float().reshape(b, 1, -1, 2).expand(-1, h, -1, -1).reshape(b * h, -1, 2)  # [G, T, 2]
    rho = (scores / p.token_temperature).softmax(-1)  # [G, T]
    if seeds is None:
        noise = torch.empty_like(rho).exponential_() if noise is None else noise
        # Without replacement, as torch.multinomial draws (it would make the host wait for a GPU, to check its input).
        seeds = (rho / noise).topk(min(p.tokens, rho.shape[1])).indices  # [G, K]
    gamma = (scores.gather(1, seeds) / p.cluster_temperature).softmax(-1)  # [G, K]
    centres, places = gather_rows(z, seeds), gather_rows(x, seeds)  # [G, K, d], [G, K, 2]

    costs, plans = [], []
    for k in range(seeds.shape[1], 1, -1):
        cost = transport_cost(z, x, centres, places, p)  # [G, T, K]
        plan = sinkhorn(cost, rho, gamma, p.sharpness, p.iterations)  # [G, T, K]
        if k <= p.centroids_max:
            costs.append((plan * cost).sum((1, 2)))  # [G]
            views = plan.unflatten(1, (2, -1))  # [G, 2, N, K]
            views = views / views.sum(2, keepdim=True).clamp_min(1e-12)
            plans.append(F.pad(views, (0, p.centroids_max - k)))
        if k > 2:
            plan = merge(plan, normalise_columns(plan).transpose(1, 2) @ z)  # [G, T, K - 1]
            share = normalise_columns(plan)
            centres, places = share.transpose(1, 2) @ z, share.transpose(1, 2) @ x
            gamma = (rho[:, None] @ share).squeeze(1)
            gamma = gamma / gamma.sum(1, keepdim=True)

    best = torch.stack(costs, 1).argmin(1)  # [G]; the first, so the larger K, of equal ones
    split = torch.stack(plans, 1)[torch.arange(len(best), device=best.device), best]  # [G, 2, N, K]
    top, which = split.max(-1, keepdim=True)
    hard = torch.zeros_like(split).scatter(-1, which, top)  # [G, 2, N, K]
    valid = (hard.sum(2) > 0).all(1)  # [G, K]
    chosen = min(p.centroids_max, seeds.shape[1]) - best
    weights = hard.unflatten(0, (b, h)).permute(2, 0, 1, 3, 4)
    return ClusterAssignment(weights, valid.unflatten(0, (b, h)), chosen.unflatten(0, (b, h)))


def gather_rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x [G, T, c] by index [G, K]: [G, K, c]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2]))


def normalise_columns(plan: Tensor) -> Tensor:
    """Each cluster's column scaled to sum 1: [G, T, K]."""
    return plan / plan.sum(1, keepdim=True).clamp_min(1e-12)


def transport_cost(z: Tensor, x: Tensor, centres: Tensor, places: Tensor, p: CrocClustering) -> Tensor:
    """M = -similarity + weight * distance, scaled to 0..1 (spec 3.6 a to c). [G, T, K]"""
    similarity = z @ F.normalize(centres, dim=-1).transpose(1, 2)  # [G, T, K]
    distance = torch.cdist(x, places)  # [G, T, K]
    distance = distance / distance.amax((1, 2), keepdim=True).clamp_min(1e-12)
    cost = p.position_weight * distance - similarity
    if p.cost_norm == "batch":
        low, high = cost.aminmax()
        bounds = distributed.all_reduce_max(torch.stack([-low, high]))  # of the whole batch, whatever the number of processes
        low, high = -bounds[0], bounds[1]
    else:
        low, high = cost.amin((1, 2), keepdim=True), cost.amax((1, 2), keepdim=True)
    return (cost - low) / (high - low).clamp_min(1e-12)


def sinkhorn(cost: Tensor, rho: Tensor, gamma: Tensor, sharpness: float, iterations: int) -> Tensor:
    """The transport plan of entropy-regularised optimal transport (spec 3.6 d).

    Args:
        cost: [G, T, K] in 0..1.
        rho: [G, T] marginal of the tokens, sums to 1.
        gamma: [G, K] marginal of the clusters, sums to 1.

    Returns:
        [G, T, K]; the columns sum to gamma (the last thing done), the rows nearly to rho.
    """
    kernel = (-sharpness * cost).exp()  # [G, T, K]
    u, v = torch.ones_like(rho), torch.ones_like(gamma)  # the plan is diag(u) kernel diag(v): no T x K work but two products
    for _ in range(iterations):
        u = rho / (kernel @ v[..., None]).squeeze(2).clamp_min(1e-30)
        v = gamma / (u[:, None] @ kernel).squeeze(1).clamp_min(1e-30)
    return u[..., None] * kernel * v[:, None]


def merge(plan: Tensor, centres: Tensor) -> Tensor:
    """Join the two clusters with the largest inner product of centres [G, K, d]; the sum becomes the last column."""
    k = plan.shape[2]
    similarity = centres @ centres.transpose(1, 2)  # [G, K, K]
    similarity = similarity.masked_fill(torch.eye(k, dtype=torch.bool, device=plan.device), -torch.inf)
    pair = similarity.flatten(1).argmax(1)  # [G]
    first, second = pair // k, pair % k
    number = torch.arange(k, device=plan.device)
    gone = (number == first[:, None]) | (number == second[:, None])  # [G, K]
    order = gone.int().argsort(dim=1, stable=True)[:, None].expand_as(plan)  # the others keep their order
    plan = plan.gather(2, order)  # [G, T, K], the pair in the last two columns
    return torch.cat([plan[..., : k - 2], plan[..., k - 2 :].sum(2, keepdim=True)], 2)


def centroids(tokens: Tensor, weights: Tensor, norm: Tensor) -> Tensor:
    """Pool the patch tokens of each cluster (spec section 4).

    Args:
        tokens: [2, B, N, D], after the final LayerNorm.
        weights: [2, B, H, N, K].
        norm: scalar, the mean norm of the CLS tokens of the same network.

    Returns:
        [2, B, H, K, D], each of length `norm`.
    """
    pooled = torch.einsum("vbhnk,vbnd->vbhkd", weights.to(tokens.dtype), tokens)
    return F.normalize(pooled.float(), dim=-1) * norm


def cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Teacher of one view against student of the other (spec section 5).

    Args:
        student: [2, M, O] logits.
        teacher: [2, M, O] probabilities.

    Returns:
        [M], the mean over the two cross-view pairs.
    """
    logs = (student.float() / temperature).log_softmax(-1)
    return -(teacher * logs.flip(0)).sum(-1).mean(0)


class ProjectionHead(nn.Module):
    """DINO's projection: a shared MLP to a bottleneck, then one weight-normalised layer for CLS, one for centroids."""

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
        self.last = nn.ModuleList(Prototypes(bottleneck, count, norm_last) for count in outputs)

    def forward(self, x: Tensor, which: int) -> Tensor:
        """x [2, M, D] to logits [2, M, O] of layer `which`: 0 for CLS tokens, 1 for centroids."""
        z = self.mlp(x.flatten(0, 1)).unflatten(0, (2, -1))
        out: Tensor = self.last[which](F.normalize(z, dim=-1))
        return out


class HeadBatchNorm(nn.BatchNorm1d):
    """Batch norm whose statistics are of the rows [M, D] of all processes (nn.SyncBatchNorm knows no CPU)."""

    def forward(self, x: Tensor) -> Tensor:
        if distributed.world() == 1 or not self.training:
            return super().forward(x)
        rows = len(x) * distributed.world()
        mean = distributed.all_reduce_sum(x.float().sum(0)) / rows  # [D]
        apart = x.float() - mean  # [M, D]
        variance = distributed.all_reduce_sum(apart.square().sum(0)) / rows  # [D]
        return (apart * (variance + self.eps).rsqrt() * self.weight + self.bias).to(x.dtype)


class Prototypes(nn.Module):
    """A linear layer without bias whose rows have norm `gain`: 1 and fixed (norm_last), or learned."""

    def __init__(self, width: int, outputs: int, fixed: bool) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(outputs, width))
        self.gain = nn.Parameter(torch.ones(outputs, 1), requires_grad=not fixed)
        nn.init.kaiming_uniform_(self.direction, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.direction, dim=1) * self.gain)
