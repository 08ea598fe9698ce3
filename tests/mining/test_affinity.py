"""Mining objects from the keys of an image (unseg/mining/affinity.py), against a plain implementation with the N x N graph."""

import math
from typing import Any

import factories
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from torch import Tensor

from unseg.core.console import InputError
from unseg.mining.affinity import Mining, ObjectMasks, connected_region, mine, mine_attention, otsu, to_pixels
from unseg.mining.methods import mine_all, mine_first

PROPERTY = settings(max_examples=60, deadline=None)
GRIDS = ((1, 6), (3, 4), (5, 5))


def plain(query: Tensor, keys: Tensor, keep: float, center: bool, rank: str) -> tuple[np.ndarray, int]:
    """One image at a time, with the graph: query [H, d], keys [H, N, d] float64 to mask [N] bool and source."""
    heads = (query[:, None] * keys).sum(2)  # [H, N]
    attention = heads.mean(0)  # [N], Eq. 1
    if center:
        keys = keys - keys.mean(1, keepdim=True)
    similarity = torch.stack([k @ k.T for k in keys]).mean(0)  # [N, N], Eq. 2
    if rank == "softmax":
        weights = (heads / keys.shape[2] ** 0.5).exp()
        attention = (weights / weights.sum(1, keepdim=True)).mean(0)
    elif rank == "degree":
        attention = torch.tensor([-sum(float(x) >= 0 for x in row) for row in similarity])
    order = sorted(range(keys.shape[1]), key=lambda j: (-float(attention[j]), j))
    proposals = order[: max(1, math.floor(keep * keys.shape[1]))]
    voters = [j for j in proposals if similarity[proposals[0], j] > 0]
    return (similarity[voters].sum(0) > 0).numpy(), proposals[0]


def draw(seed: int, images: int, heads: int, patches: int, width: int) -> tuple[Tensor, Tensor]:
    """Query [B, H, d] and keys [B, H, N, d], float64; keys have a common part, so that signs are not random."""
    g = torch.Generator().manual_seed(seed)
    query = torch.randn(images, heads, width, generator=g, dtype=torch.float64)
    keys = torch.randn(images, heads, patches, width, generator=g, dtype=torch.float64)
    return query, keys + 0.5 * torch.randn(images, heads, 1, width, generator=g, dtype=torch.float64)


def row(*keys: float, keep: float, center: bool = False) -> tuple[list[int], int]:
    """One head of one channel, query 1: the patches in the mask, and the source."""
    mined = mine(torch.ones(1, 1, 1), torch.tensor(keys, dtype=torch.float32).view(1, 1, -1, 1), keep, center)
    return mined.masks[0].int().tolist(), int(mined.source)


def test_a_row_of_five_patches() -> None:
    #   key            2  1 -1  1 -2      query 1, so attention is the key itself
    #   2 of 5 kept    s  v               the source's similarity to its voter is 2 > 0
    #   votes          6  3 -3  3 -6      rows 0 and 1 of k k^T, added
    #   similar        1  1  0  1  0      patch 3 is similar but not connected
    mask, source = row(2, 1, -1, 1, -2, keep=0.4)
    assert (mask, source) == ([1, 1, 0, 1, 0], 0)
    assert connected_region(np.array([mask], bool), source).tolist() == [[True, True, False, False, False]]


def test_a_vote_of_zero_is_no_vote() -> None:
    # key 0 has an affinity of 0 with all patches: it neither votes nor is in the mask
    assert row(2, 0, -1, keep=1) == ([1, 0, 0], 0)
    # patch 1 is proposed, but has an affinity of 0 with the source and must not vote; patch 3 is similar to patch 1 alone
    keys = torch.tensor([[2.0, 0], [0, 3], [-1, 0], [0, 1]]).view(1, 1, 4, 2)
    mined = mine(torch.tensor([[[1.0, 0.5]]]), keys, 0.5, False)
    assert mined.masks[0].int().tolist() == [1, 0, 0, 0]


def test_heads_sum_their_affinities() -> None:
    # the affinity of patches 0 and 1 is 1 in head a, -2 in head b: the sum, -1, must decide
    keys = torch.tensor([[[1.0], [1.0]], [[math.sqrt(2)], [-math.sqrt(2)]]])[None]  # [1, 2, 2, 1]
    assert mine(torch.tensor([[[1.0], [0.1]]]), keys, 1, False).masks[0].tolist() == [True, False]
    # two heads with affinity 1 do not outvote one with -4
    keys = torch.tensor([[[1.0], [1.0]], [[1.0], [1.0]], [[2.0], [-2.0]]])[None]
    assert mine(torch.tensor([[[1.0], [1.0], [0.1]]]), keys, 1, False).masks[0].tolist() == [True, False]


def test_the_mean_key_hides_the_object_unless_it_is_subtracted() -> None:
    assert row(12, 11, 9, 8, keep=0.5) == ([1, 1, 1, 1], 0)
    assert row(12, 11, 9, 8, keep=0.5, center=True) == ([1, 1, 0, 0], 0)


def test_equal_attention_goes_to_the_lower_patch() -> None:
    # 200 patches tie for two places; the two that are kept point apart from all the others in their second channel
    keys = torch.ones(1, 1, 200, 2)
    keys[0, 0, :, 1] = -2.0
    keys[0, 0, 3:5, 1] = 2.0
    keys[0, 0, :3, 0] = 0.0  # the first three have less attention
    mined = mine(torch.tensor([[[1.0, 0.0]]]), keys, 2 / 200, False)
    assert mined.source.tolist() == [3]
    assert mined.masks[0].nonzero().flatten().tolist() == [3, 4]


def test_at_least_one_patch_is_proposed_and_no_fraction_is_rounded_up() -> None:
    assert row(3, 2, 1, keep=0.01) == ([1, 1, 1], 0)
    # 2 of 5 patches are proposed: the third, which would change the result, does not vote
    keys = torch.tensor([[3.0, 0], [2, 1], [1, 9], [-9, 1], [-9, -9]]).view(1, 1, 5, 2)
    assert mine(torch.tensor([[[1.0, 0.0]]]), keys, 0.5, False).masks[0].int().tolist() == [1, 1, 1, 0, 0]


def test_a_source_with_a_zero_key_is_the_whole_object() -> None:
    assert row(0, 0, keep=1) == ([1, 0], 0)


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 5])
def test_1000_key_sets_give_the_plain_implementations_masks(step: int) -> None:
    """The fast one compares a fifth of them."""
    seen, positive, cases = 0, 0, range(0, 350, step)
    for case in cases:
        rng = np.random.default_rng(case)
        heads, width, patches = (int(rng.integers(*r)) for r in ((1, 7), (1, 17), (2, 120)))
        keep, center = float(rng.choice([0.05, 0.2, 0.4, 0.73, 1.0])), bool(case % 2)
        rank = "logits" if case < 250 else ("softmax", "degree")[case // 2 % 2]  # 1,000 sets for the paper's
        query, keys = draw(case, 4, heads, patches, width)
        mined = mine(query, keys, keep, center, rank)
        for image in range(4):
            mask, source = plain(query[image], keys[image], keep, center, rank)
            assert mined.masks[image].numpy().tolist() == mask.tolist(), (case, image)
            assert int(mined.source[image]) == source
            seen, positive = seen + 1, positive + float(mask.mean())
    assert seen == 4 * len(cases)
    assert 0.2 < positive / seen < 0.9  # masks worth comparing


@PROPERTY
@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from(GRIDS), st.floats(0.05, 1), st.booleans())
def test_properties(seed: int, heads: int, grid: tuple[int, int], keep: float, center: bool) -> None:
    patches = grid[0] * grid[1]
    query, keys = draw(seed, 3, heads, patches, 4)
    mined = mine(query, keys, keep, center)
    assert mined.masks.gather(1, mined.source[:, None]).all()  # the source is in its mask
    for mask, source in zip(mined.masks.numpy(), mined.source.tolist(), strict=True):
        region = connected_region(mask.reshape(grid), source)
        assert region.flat[source]
        assert ndimage.label(region)[1] == 1
        assert not (region & ~mask.reshape(grid)).any()

    def same(query: Tensor, keys: Tensor) -> bool:
        return torch.equal(mine(query, keys, keep, center).masks, mined.masks)

    assert same(query, 8 * keys)  # signs and order are all that matters
    assert same(0.25 * query, keys)
    order = torch.randperm(heads, generator=torch.Generator().manual_seed(seed))
    assert same(query[:, order], keys[:, order])
    mirrored = keys.unflatten(2, grid).flip(3).flatten(2, 3)
    assert torch.equal(mine(query, mirrored, keep, center).masks, mined.masks.unflatten(1, grid).flip(2).flatten(1))
    alone = mine(query[1:2], keys[1:2], keep, center)  # the mask of an image does not depend on the other images
    assert torch.equal(alone.masks[0], mined.masks[1])


def test_a_block_of_alike_keys_around_the_source_is_the_object() -> None:
    # specification B.9, acceptance test 1: block A is 3 x 3, all else resembles the opposite
    inside = torch.zeros(6, 6, dtype=torch.bool)
    inside[1:4, 2:5] = True
    keys = torch.where(inside.flatten()[:, None], torch.tensor([1.0, 0.2]), torch.tensor([-1.0, 0.2]))  # [36, 2]
    keys[2 * 6 + 3] *= 2  # the CLS token's maximum, in the middle of A
    mined = mine(torch.tensor([[[1.0, 0.0]]]), keys[None, None], 0.2, False)
    assert int(mined.source) == 15
    assert np.array_equal(connected_region(mined.masks[0].view(6, 6).numpy(), 15), inside.numpy())


def test_of_two_blobs_the_one_with_the_source_is_the_object() -> None:
    # specification B.9, acceptance test 2: the blobs meet at a corner, which is no connection
    mask = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]], bool)
    assert connected_region(mask, 5).tolist() == [[True, True, False, False], [True, True, False, False], [False] * 4]
    assert connected_region(mask, 10).tolist() == [[False] * 4, [False] * 4, [False, False, True, True]]


def test_attention_that_is_negative_everywhere_still_has_a_maximum() -> None:
    # specification B.9, acceptance test 3: the least negative patch is the source, nothing is arbitrary
    assert row(-3, -1, -2, -9, keep=0.5) == ([1, 1, 1, 1], 1)


def test_a_head_that_attends_to_the_large_background_is_overruled_after_the_softmax() -> None:
    # one head's logits: 0 on the object (patch 0), 3 on the 9 others; the other's: 2 on the object
    keys = torch.zeros(1, 2, 10, 1)
    keys[0, 0, 1:], keys[0, 1, 0] = 3, 2
    query = torch.ones(1, 2, 1)
    assert mine(query, keys, 0.1, False, "logits").source.tolist() == [1]  # 1.5 against 1
    assert mine(query, keys, 0.1, False, "softmax").source.tolist() == [0]  # (0.01 + 0.45) / 2 against (0.11 + 0.06) / 2


def test_the_patch_with_the_fewest_similar_ones_is_the_source_by_degree() -> None:
    keys = torch.tensor([1.0, 2, 3, -1, -2]).view(1, 1, 5, 1)  # degrees 3, 3, 3, 2, 2: itself counts
    assert mine(torch.ones(1, 1, 1), keys, 0.4, False, "degree").source.tolist() == [3]
    assert mine(torch.ones(1, 1, 1), keys, 0.4, False, "degree").masks[0].int().tolist() == [0, 0, 0, 1, 1]
    # a zero key is similar to all, by LOST's definition (not below 0)
    keys = torch.tensor([0.0, 1, 1, -1]).view(1, 1, 4, 1)
    assert mine(torch.ones(1, 1, 1), keys, 0.4, False, "degree").source.tolist() == [3]


def slow(query: Tensor, keys: Tensor, features: Tensor, p: Mining) -> np.ndarray:
    """`plain` with another facet, cosines and a threshold: query [H, d], keys [H, N, d], features [G, N, e] to mask [N]."""
    if p.center:
        features = features - features.mean(1, keepdim=True)
    rows = features.transpose(0, 1).flatten(1)  # [N, G e]
    n = len(rows)
    similarity = torch.stack([k @ k.T for k in features]).mean(0)
    if p.normalize:
        similarity = torch.tensor([[float(a @ b / (a.norm() * b.norm())) for b in rows] for a in rows], dtype=rows.dtype)
    attention = (query[:, None] * keys).sum(2).mean(0)
    if p.rank == "degree":
        attention = torch.tensor([-sum(float(x) >= p.threshold for x in row) for row in similarity])
    order = sorted(range(n), key=lambda j: (-float(attention[j]), j))
    proposals = order[: max(1, math.floor(p.keep * n))]
    voters = [j for j in proposals if similarity[proposals[0], j] > p.threshold]
    votes = similarity[voters].mean(0) if voters else torch.full((n,), -1.0)
    return np.array([j == order[0] or float(votes[j]) > p.threshold for j in range(n)])


@pytest.mark.parametrize("rank", ["logits", "degree"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 0.2, -0.1])
def test_other_facets_cosines_and_thresholds(rank: str, normalize: bool, threshold: float) -> None:
    total: list[float] = []
    for seed in range(24):
        p = setting(rank=rank, normalize=normalize, threshold=threshold, center=bool(seed % 2), keep=0.3, component=False)
        query, keys = draw(seed, 2, 3, 24, 5)
        _, features = draw(seed + 100, 2, (1, 4)[seed // 2 % 2], 24, 6)
        got = mine_first(query, keys, p, features)
        for i in range(2):
            want = slow(query[i], keys[i], features[i], p)
            assert got.masks[i].tolist() == want.tolist(), seed
            total.append(want.mean())
        masks = mine_all(
            query[:1],
            keys[:1],
            ObjectMasks(*(x[:1] for x in got)),
            (4, 6),
            setting(**vars(p) | {"objects": 2, "stop": 1.0}),
            features[:1],
        )
        if len(masks) > 1:
            left = ~masks[0].ravel()
            assert masks[1].ravel()[left].tolist() == slow(query[0], keys[0][:, left], features[0][:, left], p).tolist()
    assert 0.1 < np.mean(total) < 0.9


def test_a_threshold_and_cosines_by_hand() -> None:
    # keys 2, 1, -1: affinities with the source 4, 2, -2; both patches vote, and the mean votes are 3, 1.5, -1.5
    keys, query = torch.tensor([2.0, 1, -1]).view(1, 1, 3, 1), torch.ones(1, 1, 1)
    for threshold, want in ((0.0, [1, 1, 0]), (1.4, [1, 1, 0]), (1.6, [1, 0, 0])):
        assert mine(query, keys, 0.7, False, threshold=threshold).masks[0].int().tolist() == want
    # of two equal heads the mean is that of one
    twice = keys.expand(1, 2, 3, 1)
    assert mine(torch.ones(1, 2, 1), twice, 0.7, False, threshold=1.4).masks[0].int().tolist() == [1, 1, 0]
    # the cosines are 1, 1, -1, whatever the lengths; a key of length 0 is like none
    short = torch.tensor([2.0, 1e-3, -1, 0]).view(1, 1, 4, 1)
    assert mine(query, short, 0.5, False, normalize=True, threshold=0.9).masks[0].int().tolist() == [1, 1, 0, 0]
    assert mine(query, short, 0.5, False, threshold=0.9).masks[0].int().tolist() == [1, 0, 0, 0]


def test_otsu_splits_where_the_variance_between_the_classes_is_largest() -> None:
    assert otsu(torch.tensor([[0.0, 0.1, 0.9, 1.0], [5.0, 5.0, 5.0, 9.0]])).tolist() == [0.5, 7.0]
    assert otsu(torch.tensor([[3.0, 3.0, 3.0], [0.0, 1.0, 2.0]])).tolist() == [3.0, 0.5]  # none above; the lower of equal splits
    assert otsu(torch.tensor([[4.0]])).tolist() == [4.0]
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = np.sort(rng.normal(size=30) + 3 * (rng.random(30) < 0.3))
        between = [i * (30 - i) * (values[:i].mean() - values[i:].mean()) ** 2 for i in range(1, 30)]
        split = 1 + int(np.argmax(between))
        want = (values[split - 1] + values[split]) / 2
        assert float(otsu(torch.from_numpy(rng.permutation(values))[None])) == pytest.approx(want)


@pytest.mark.parametrize("rank", ["logits", "degree"])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_threshold_of_otsu_is_the_images_own(rank: str, normalize: bool) -> None:
    query, keys = draw(3, 2, 3, 24, 5)
    choice: dict[str, Any] = {"keep": 0.3, "center": False, "rank": rank, "normalize": normalize}
    got = mine(query, keys, **choice, threshold="otsu")
    for i in range(2):
        rows = keys[i].transpose(0, 1).flatten(1)
        rows = torch.nn.functional.normalize(rows, dim=1) if normalize else rows
        source = int(mine(query, keys, **choice).source[i])  # as at 0
        bound = float(otsu((rows @ rows[source])[None])) / (1 if normalize else 3)
        at = mine(query[i : i + 1], keys[i : i + 1], **choice | {"rank": "logits"}, threshold=bound) if rank == "logits" else None
        assert int(got.source[i]) == source
        assert at is None or torch.equal(got.masks[i], at.masks[0])
    assert not torch.equal(got.masks, mine(query, keys, **choice).masks)


def nearest(mask: np.ndarray, resized: tuple[int, int], size: tuple[int, int], patch: int) -> np.ndarray:
    """The patch that contains the centre of each pixel, in whole numbers and pixel by pixel."""
    out = np.zeros(size, bool)
    for y in range(size[0]):
        for x in range(size[1]):
            row = (2 * y + 1) * resized[0] // (2 * size[0]) // patch
            out[y, x] = mask[row, (2 * x + 1) * resized[1] // (2 * size[1]) // patch]
    return out


@settings(max_examples=60, deadline=None)
@given(st.data(), *[st.integers(1, 40)] * 4, st.sampled_from([1, 3, 8]))
def test_to_pixels_takes_the_nearest_patch(data: st.DataObject, h: int, w: int, rh: int, rw: int, patch: int) -> None:
    mask = data.draw(arrays(bool, (-(-rh // patch) + 1, -(-rw // patch))))  # one row of padding more than needed
    assert np.array_equal(to_pixels(mask, (rh, rw), (h, w), patch), nearest(mask, (rh, rw), (h, w), patch))


def test_to_pixels_at_every_size() -> None:
    # the centres of pixels lie on the borders of patches: rounding must not decide
    for resized in range(1, 97):
        mask = np.arange(96) % 2 == 0
        for size in range(1, 97):
            want = mask[(2 * np.arange(size) + 1) * resized // (2 * size)]
            assert np.array_equal(to_pixels(mask[None], (1, resized), (1, size), 1)[0], want), (resized, size)


def test_padding_falls_away() -> None:
    mask = np.zeros((2, 3), bool)
    mask[1], mask[:, 2] = True, True  # 16 x 24 pixels, of which the photograph has 8 x 16
    assert not to_pixels(mask, (8, 16), (4, 8), 8).any()
    mask[0, 1] = True
    assert to_pixels(mask, (8, 16), (4, 8), 8).tolist() == [[False] * 4 + [True] * 4] * 4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("resize", 0), ("keep", 0.0), ("keep", 1.1), ("rank", "loudest"), ("precision", "fp16"), ("method", "eigen")),
        *(("mass", 0.0), ("mass", 1.1), ("stop", 0.0), ("stop", 1.1), ("objects", 0), ("patches", 0)),
        *(("threshold", "otso"), ("threshold", True), ("threshold", None), ("method", "head")),
    ],
)
def test_settings_out_of_range(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"mine\.{key}"):
        setting(**{key: value})


# ---- several objects, and the baselines


def setting(**changed: Any) -> Mining:
    values = {"method": "maskdistill", "mass": 0.75, "patches": 400, "objects": 1, "stop": 0.5, "resize": 640, "keep": 0.4}
    values |= {"rank": "logits", "center": False, "component": True, "precision": "fp32"}
    return factories.group("mine", Mining, **(values | changed))


def two_objects() -> tuple[Tensor, Tensor, np.ndarray]:
    """A grid of 4 x 6 with object a (most attention), object b and background, whose keys have three directions.

    CLS attends to a patch by the fourth channel of its key. Returns query [1, 1, 4], keys [1, 1, 24, 4] and the classes [4, 6].
    """
    classes = np.array([[0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 2, 0], [0, 1, 1, 0, 2, 0], [0, 0, 0, 0, 0, 0]])
    keys = torch.tensor([[-0.2, -0.2, 1.0, 0.0], [1.0, -0.2, -0.2, 0.9], [-0.2, 1.0, -0.2, 0.5]])[classes.ravel()]
    keys = keys * torch.tensor([1.0, 1.0, 1.0, 0.1])  # the channel of CLS is too small to change a similarity
    return torch.tensor([[[0.0, 0.0, 0.0, 1.0]]]), keys[None, None], classes


def mined_masks(p: Mining) -> list[np.ndarray]:
    query, keys, classes = two_objects()
    return mine_all(query, keys, mine_first(query, keys, p), classes.shape, p)


def test_an_object_is_masked_out_and_the_rest_mined_again() -> None:
    _, _, classes = two_objects()
    assert [m.tolist() for m in mined_masks(setting())] == [(classes == 1).tolist()]  # the paper: one object
    assert [m.tolist() for m in mined_masks(setting(objects=2))] == [(classes == 1).tolist(), (classes == 2).tolist()]
    # the third source would be background, which is similar to all remaining patches, 18 of 18
    assert len(mined_masks(setting(objects=9))) == 2
    third = mined_masks(setting(objects=3, stop=1.0))
    assert len(third) == 3
    assert third[2].tolist() == (classes == 0).tolist()
    assert np.sum(mined_masks(setting(objects=9, stop=1.0)), 0).max() == 1  # disjoint; it ends when no patch remains
    # b is similar to 2 of the 20 remaining patches, a tenth
    assert len(mined_masks(setting(objects=2, stop=0.11))) == 2
    assert len(mined_masks(setting(objects=2, stop=0.09))) == 1


def test_the_first_object_is_what_mining_one_gives() -> None:
    for seed in range(30):
        query, keys = draw(seed, 2, 3, 24, 5)
        p = setting(objects=4, stop=1.0, component=bool(seed % 2), rank=("logits", "degree")[seed % 3 % 2])
        mined = mine(query, keys, p.keep, p.center, p.rank)
        for i in range(2):
            masks = mine_all(query[i : i + 1], keys[i : i + 1], ObjectMasks(*(x[i : i + 1] for x in mined)), (4, 6), p)
            whole = mined.masks[i].numpy().reshape(4, 6)
            assert masks[0].tolist() == (connected_region(whole, int(mined.source[i])) if p.component else whole).tolist()
            assert np.sum(masks, 0).max() == 1
            if len(masks) > 1 and not p.component:  # the second, by the plain implementation on the remaining patches
                left = ~masks[0].ravel()
                mask, _ = plain(query[i], keys[i][:, left], p.keep, p.center, p.rank)
                assert masks[1].ravel()[left].tolist() == mask.tolist()


def test_attention_holds_three_quarters_of_the_mass() -> None:
    # one head, scale 1: softmax of log(8, 4, 2, 1, 1) is 8, 4, 2, 1, 1 of 16; three quarters are the first two, exactly
    keys = torch.log(torch.tensor([2.0, 8, 1, 4, 1])).view(1, 1, 5, 1)
    assert mine_attention(torch.ones(1, 1, 1), keys, 0.74).masks[0].int().tolist() == [0, 1, 0, 1, 0]
    assert mine_attention(torch.ones(1, 1, 1), keys, 0.76).masks[0].int().tolist() == [1, 1, 0, 1, 0]
    assert mine_attention(torch.ones(1, 1, 1), keys, 1.0).masks[0].all()
    assert mine_attention(torch.ones(1, 1, 1), keys, 0.01).source.tolist() == [1]
    for seed in range(20):
        query, keys = draw(seed, 1, 4, 30, 6)
        total = sum((query[0, h] @ keys[0, h].T / math.sqrt(6)).softmax(0) for h in range(4)) / 4  # type: ignore[arg-type]
        kept, mass = set(), 0.0
        for j in sorted(range(30), key=lambda j: -float(total[j])):  # type: ignore[index]
            if mass < 0.75:
                kept.add(j)
            mass += float(total[j])  # type: ignore[index]
        assert set(mine_attention(query, keys, 0.75).masks[0].nonzero().flatten().tolist()) == kept


def test_lost_has_a_fixed_number_of_proposals_and_one_region() -> None:
    for seed in range(20):
        query, keys = draw(seed, 1, 2, 24, 5)
        p = setting(method="lost", patches=7, component=False, keep=1.0)
        mask, source = plain(query[0], keys[0], 7 / 24 + 1e-9, False, "degree")
        (got,) = mine_all(query, keys, mine_first(query, keys, p), (4, 6), p)
        assert got.tolist() == connected_region(mask.reshape(4, 6), source).tolist()
    many = mine_first(query, keys, setting(method="lost", patches=400))  # more than there are
    assert torch.equal(many.masks, mine(query, keys, 1.0, False, "degree").masks)
