"""Label Studio's brush masks: the run lengths of rle-pack, of RGBA pixels whose four channels are 0 or 255.

A bit stream: 32 bits, the number of values; 5 bits, the bits of a value - 1; four times 4 bits, the sizes of run lengths - 1.
Then runs until all values are there: 1 bit, whether one value is repeated; 2 bits, which size the length has; the length - 1;
and the value, or as many values as the length says. Source: the format's own description, github.com/thi-ng/umbrella, rle-pack.

Shapes: H rows, W columns of a photograph.
"""

import numpy as np

WORD = 8  # bits of a value
SIZES = (3, 4, 8, 16)  # bits of a run length
CHANNELS = 4
MAX_RUN = 1 << SIZES[-1]


def encode(mask: np.ndarray) -> list[int]:
    """[H, W] bool to bytes, row by row."""
    flat = mask.ravel()
    edges = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]])
    bits = [f"{CHANNELS * flat.size:032b}{WORD - 1:05b}", *(f"{size - 1:04b}" for size in SIZES)]
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        value = f"{255 if flat[begin] else 0:08b}"
        left = CHANNELS * (end - begin)
        while left:
            run = min(left, MAX_RUN)
            which = next(i for i, size in enumerate(SIZES) if run <= 1 << size)
            bits.append(f"1{which:02b}{run - 1:0{SIZES[which]}b}{value}")
            left -= run
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def decode(rle: list[int], size: tuple[int, int]) -> np.ndarray:
    """Bytes to [H, W] bool: where the last channel is not 0.

    Raises:
        ValueError: no bytes, cut short, or of another number of pixels than `size` (H, W).
    """
    try:
        data = bytes(rle)
    except (TypeError, ValueError):
        raise ValueError("its rle is no list of bytes") from None
    text = "".join(f"{byte:08b}" for byte in data)
    place = 0

    def read(count: int) -> int:
        nonlocal place
        place += count
        if place > len(text):
            raise ValueError("its rle is cut short")
        return int(text[place - count : place], 2)

    total, word = read(32), read(5) + 1
    sizes = [read(4) + 1 for _ in range(4)]
    if total != CHANNELS * size[0] * size[1]:
        raise ValueError(f"its rle has {total / CHANNELS:.10g} pixels, not {size[0]} x {size[1]}")
    out, done = np.zeros(total, bool), 0
    while done < total:
        repeated, end = read(1), done
        end += 1 + read(sizes[read(2)])
        if end > total:
            raise ValueError("its rle is longer than it says")
        if repeated:
            out[done:end] = read(word) != 0
        else:
            out[done:end] = [read(word) != 0 for _ in range(end - done)]
        done = end
    return out.reshape(*size, CHANNELS)[..., CHANNELS - 1]
