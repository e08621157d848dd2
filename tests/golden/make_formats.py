#!/usr/bin/env python3
"""make_formats.py FOLDER > formats.txt: golden blocks of every format, decoded without our code.

FOLDER holds GGUF files; of each tensor type in them a few blocks from different tensors are taken, and decoded by the
Python package `gguf`. bf16 and the formats that such files lack are made from their definitions with numpy. A line is:
format, number of weights, the blocks in hexadecimal, 64-bit FNV-1a of the decoded little-endian float32 values.
"""
import pathlib
import sys

import gguf
import numpy as np

WANTED = ["F32", "F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
          "IQ4_NL", "IQ4_XS"]
TENSORS, WEIGHTS = 4, 256
LEVELS = np.array([-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                   -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
                   0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
                   0.7229568362236023, 1.0], dtype=np.float32)


def line(name, raw, values):
    values = np.ascontiguousarray(values, dtype="<f4").reshape(-1)
    digest = 14695981039346656037
    for byte in values.tobytes():
        digest = (digest ^ byte) * 1099511628211 % 2**64
    print(name, values.size, raw.hex(), f"{digest:016x}")


def from_files(folder):
    found = {}
    for path in sorted(pathlib.Path(folder).glob("*.gguf")):
        for tensor in gguf.GGUFReader(path).tensors:
            kind = tensor.tensor_type
            taken = found.setdefault(kind.name, [])
            if kind.name not in WANTED or len(taken) >= TENSORS:
                continue
            block, size = gguf.GGML_QUANT_SIZES[kind]
            count = max(1, WEIGHTS // 4 // block)
            raw = np.ascontiguousarray(tensor.data).view(np.uint8).reshape(-1)
            at = (raw.size // size // 3 + 7 * len(taken)) * size
            taken.append(raw[at:at + count * size])
    for name in WANTED:
        kind = gguf.GGMLQuantizationType[name]
        for raw in found[name]:
            line(name.lower(), raw.tobytes(), gguf.quants.dequantize(raw, kind))


def from_definitions():
    rng = np.random.default_rng(1)
    half = rng.integers(0, 65536, 64, dtype=np.uint16)
    half = half[(half & 0x7F80) != 0x7F80][:60]
    line("bf16", half.astype("<u2").tobytes(), (half.astype(np.uint32) << 16).view(np.float32))
    for scale in (0.0371, 1e-40, 3.0e38):
        absmax = np.array([scale], dtype="<f4")
        codes = rng.integers(0, 256, 32, dtype=np.uint8)
        both = np.stack([codes >> 4, codes & 15], axis=1).reshape(-1)
        line("nf4", absmax.tobytes() + codes.tobytes(), absmax[0] * LEVELS[both])
    from_cards(rng)


def dynamic_map():
    """The signed 8-bit dynamic map: per decade, means of neighbouring points of linspace(0.1, 1), in float32."""
    f = np.float32
    values = [f(0), f(1)]
    for i in range(7):
        n = 2**i
        step = (f(1) - f(0.1)) / f(n)
        points = [f(0.1) + step * f(k) if k < (n + 1) // 2 else f(1) - step * f(n - k) for k in range(n + 1)]
        for a, b in zip(points, points[1:]):
            mean = f(10.0 ** (i - 6)) * ((a + b) / f(2))
            values += [mean, -mean]
    return np.array(sorted(values), dtype=np.float32)


def from_cards(rng):
    """Formats of model cards, in our own layout of rows."""
    for _ in range(2):
        scale = np.float32(rng.normal())
        codes = rng.integers(-128, 128, 96, dtype=np.int8)
        line("i8_row", scale.astype("<f4").tobytes() + codes.tobytes(), scale * codes.astype(np.float32))
        head = np.array([rng.normal(), rng.normal()], dtype="<f4")
        nested = np.array(rng.integers(0, 256, 4), dtype=np.uint8)
        codes = rng.integers(0, 256, 128, dtype=np.uint8)
        absmax = head[1] * dynamic_map()[nested] + head[0]
        both = np.stack([codes >> 4, codes & 15], axis=1).reshape(4, 64)
        line("nf4_dq", head.tobytes() + nested.tobytes() + codes.tobytes(), absmax[:, None] * LEVELS[both])
    for name, group, zero in (("i4_g32", 32, 16), ("i4_g64", 64, 0), ("i4_g128", 128, 7), ("i4_row", 192, 8)):
        scale = np.float16(rng.normal())
        codes = rng.integers(0, 256, group // 2, dtype=np.uint8).reshape(-1, 16)
        q = np.concatenate([codes & 15, codes >> 4], axis=1).astype(np.float32)
        raw = scale.astype("<f2").tobytes() + bytes([zero, 0]) + codes.tobytes()
        line(name, raw, np.float32(scale) * (q - np.float32(zero)))


def from_package(rng):
    """Types of which we have no files: random bytes, decoded by the package; and its own encoding of ternary weights."""
    for name, at in (("TQ1_0", 52), ("TQ2_0", 64), ("MXFP4", None), ("NVFP4", None)):
        kind = gguf.GGMLQuantizationType[name]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        for turn in range(2):
            raw = rng.integers(0, 256, (256 // block, size), dtype=np.uint8)
            if at:
                raw[:, at:] = np.array([(0.0371, -1.75)[turn]], dtype="<f2").view(np.uint8)
            elif name == "MXFP4":
                raw[:, 0] = (0, 1, 2, 120, 127, 130, 252, 7) if turn else rng.integers(100, 140, len(raw))
            elif turn:
                raw[:, :4] = np.array([0, 1, 7, 8, 9, 126, 127, 128, 255, 56, 57, 64, 240, 120, 3, 15]).reshape(-1, 4)
            line(name.lower(), raw.tobytes(), gguf.quants.dequantize(raw.reshape(-1), kind))
        if at:
            values = rng.integers(-1, 2, 256).astype(np.float32) * np.float32(0.25)
            raw = gguf.quants.quantize(values, kind)
            line(name.lower(), raw.tobytes(), values)


def from_checkpoints(rng):
    """Formats that other checkpoints are read into, in our own layout of rows."""
    fp4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], dtype=np.float32) / np.float32(12)
    fp4 = np.concatenate([fp4, -fp4])
    fp4[8] = 0  # as in the table that files bring
    for scale in (0.0371, 1e-40, 3.0e38):
        absmax = np.array([scale], dtype="<f4")
        codes = np.concatenate([np.arange(0, 256, 17), rng.integers(0, 256, 16)]).astype(np.uint8)
        both = np.stack([codes >> 4, codes & 15], axis=1).reshape(-1)
        line("fp4", absmax.tobytes() + codes.tobytes(), absmax[0] * fp4[both])
    for group, zero, scale in ((32, 0, 0.0371), (64, 255, -1.75), (128, 131, 1e-6)):
        scale = np.float16(scale)
        q = rng.integers(0, 256, group, dtype=np.uint8)
        raw = scale.astype("<f2").tobytes() + bytes([zero, 0]) + (q ^ 128).astype(np.uint8).tobytes()
        line(f"i8_g{group}", raw, np.float64(scale) * (q.astype(np.float64) - zero))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    from_files(sys.argv[1])
    from_definitions()
    from_checkpoints(np.random.default_rng(2))
    from_package(np.random.default_rng(3))
