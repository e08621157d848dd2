#!/usr/bin/env python3
"""make_hf_quant.py: tiny quantized Hugging Face directories, and the weights that they hold by independent code.

    make_hf_quant.py tests/golden        # numpy, safetensors; torch, bitsandbytes, compressed-tensors for some

Writes fuzz-hf/quant-NAME, which are seeds of that fuzz target too: a byte, config.json, NUL, model.safetensors; and
hf_quant.txt: "NAME TENSOR format rows inputs hash", the hash being FNV-1a (64 bits) over the decoded weights as float32, row
by row. Packing follows the published layouts (AutoGPTQ's
and AutoAWQ's modules, which need a GPU to be imported, are written out here), or is the packages' own where they run on a
processor.
"""
import json
import os
import sys

import numpy as np
from safetensors.numpy import save

rng = np.random.default_rng(20261129)
cases = []


def fnv(a):
    h = 14695981039346656037
    for b in np.ascontiguousarray(a, dtype=np.float32).tobytes():
        h = (h ^ b) * 1099511628211 & (1 << 64) - 1
    return h


def stream(codes, bits):
    """codes [n, m] -> words [n * bits / 32, m]: one little-endian bit stream down each column."""
    n, m = codes.shape
    b = ((codes[:, None, :].astype(np.uint32) >> np.arange(bits, dtype=np.uint32)[None, :, None]) & 1).reshape(-1, 32, m)
    return (b << np.arange(32, dtype=np.uint32)[None, :, None]).sum(axis=1).astype(np.uint32).view(np.int32)


def scales(*shape):
    return (0.01 + 0.05 * rng.random(shape)).astype(np.float16)


def gptq(name, bits, group, inputs=128, outputs=16, sym=False, act=False, v2=False, label=None, zeros=None, dtype=None):
    """w[o, i] = s[g, o] * (q[i, o] - z[g, o])."""
    g = inputs if group < 0 else group
    n = inputs // g
    q = rng.integers(0, 1 << bits, (inputs, outputs))
    z = np.full((n, outputs), 1 << bits - 1) if sym else rng.integers(1, 1 << bits, (n, outputs))
    if zeros is not None:
        z[0, :len(zeros)] = zeros
    s = scales(n, outputs)
    idx = np.arange(inputs) // g
    if act:
        idx = rng.permutation(idx)
    form = "i4_row" if g == inputs else "i4_g%d" % max(b for b in (32, 64, 128) if g % b == 0)
    w = (s.astype(np.float32)[idx] * (q - z[idx]).astype(np.float32)).T
    stored = z - (0 if v2 else 1)
    t = {"m.qweight": stream(q, bits), "m.qzeros": stream(stored.T, bits).T.copy(), "m.scales": s,
         "m.g_idx": idx.astype(np.int32)}
    config = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": act, "sym": sym, "damp_percent": 0.01,
              "static_groups": False, "true_sequential": True, "model_name_or_path": None, "meta": {"quantizer": ["x:1"]}}
    if label or v2:
        config["checkpoint_format"] = label or "gptq_v2"
    if dtype:
        t["m.scales"] = s.astype(dtype)
    cases.append((name, config, t, {"m.weight": (form, w)}))


gptq("gptq4", 4, 32)
gptq("gptq4-g64-sym-act", 4, 64, sym=True, act=True)
gptq("gptq4-g128-v2", 4, 128, inputs=256, v2=True)
gptq("gptq4-mislabelled", 4, 64, sym=True, label="gptq_v2")
gptq("gptq4-mislabelled-v2", 4, 64, sym=True, v2=True, label="gptq")
gptq("gptq4-zero16", 4, 64, zeros=[16, 1, 16])
gptq("gptq4-row", 4, -1, inputs=96, act=True, dtype=np.float32)
gptq("gptq3", 3, 96, inputs=192, outputs=32)
gptq("gptq2-act", 2, 64, act=True)

if __name__ == "__main__":
    out = sys.argv[1]
    with open(os.path.join(out, "hf_quant.txt"), "w") as f:
        for name, config, tensors, weights in cases:
            with open(os.path.join(out, "fuzz-hf", "quant-" + name), "wb") as c:
                c.write(b"\x10" + json.dumps({"quantization_config": config}).encode() + b"\0" + save(tensors))
            for key, (form, w) in weights.items():
                print(name, key, form, *w.shape, f"{fnv(w):016x}", file=f)
