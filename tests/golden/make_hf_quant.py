#!/usr/bin/env python3
"""make_hf_quant.py: tiny quantized Hugging Face directories, and the weights that they hold by independent code.

    make_hf_quant.py tests/golden        # numpy, safetensors; torch, bitsandbytes, compressed-tensors for some

Writes fuzz-hf/quant-NAME, which are seeds of that fuzz target too: a byte, config.json, NUL, model.safetensors; and
hf_quant.txt: "NAME TENSOR format rows inputs hash", the hash being FNV-1a (64 bits) over the decoded weights as float32, row
by row. Packing follows the published layouts (AutoGPTQ's
and AutoAWQ's modules, which need a GPU to be imported, are written out here; AutoAWQ 0.2.9's dequantize_gemm decodes these files to the same
values, and AutoGPTQ 0.7.1's QuantLinear.pack makes the same words of the same codes), or is the packages' own where they run on a
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
    form = "i4_row" if g == inputs and bits < 8 else f"i{8 if bits == 8 else 4}_g%d" % max(b for b in (32, 64, 128) if g % b == 0)
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
gptq("gptq8", 8, 64, inputs=64, outputs=8)
gptq("gptq8-row-sym-act", 8, -1, inputs=128, outputs=8, sym=True, act=True)
gptq("gptq2-act", 2, 64, act=True)


def awq(name, group, inputs=128, outputs=16, zero=None, names=("bits", "group_size"), **more):
    """AutoAWQ's WQLinear_GEMM: nibble i of a word is output order[i]; zero points as they are."""
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    g = inputs if group < 0 else group
    n = inputs // g
    q = rng.integers(0, 16, (inputs, outputs))
    z = rng.integers(0, 16, (n, outputs))
    s = scales(n, outputs)

    def pack(v):
        v = v.reshape(v.shape[0], -1, 8)[:, :, order].astype(np.uint32)
        return (v << np.arange(0, 32, 4, dtype=np.uint32)).sum(axis=2).astype(np.uint32).view(np.int32)

    idx = np.arange(inputs) // g
    w = (s.astype(np.float32)[idx] * (q - z[idx]).astype(np.float32)).T
    config = {"quant_method": "awq", names[0]: 4, names[1]: group, "zero_point": True, "version": "gemm",
              "modules_to_not_convert": None, **more}
    form = "i4_row" if g == inputs else "i4_g%d" % max(b for b in (32, 64, 128) if g % b == 0)
    cases.append((name, config, {"m.qweight": pack(q), "m.qzeros": pack(z), "m.scales": s}, {"m.weight": (form, w)}))


awq("awq-g64", 64, outputs=24)
awq("awq-row", -1, inputs=96, names=("w_bit", "q_group_size"), version="GEMM", backend="autoawq")


def dynamic_map():
    """bitsandbytes' signed 8-bit map, with each step rounded to float32: what torch.linspace gave before it was vectorized (now
    42 of the 256 entries differ in the last bit)."""
    f = np.float32
    values = [f(0), f(1)]
    for i in range(7):
        n = 1 << i
        step = (f(1) - f(0.1)) / f(n)
        p = [f(0.1) + step * f(j) if 2 * j < n else f(1) - step * f(n - j) for j in range(n + 1)]
        values += [s * f(10 ** (i - 6)) * ((p[j] + p[j + 1]) * f(0.5)) for j in range(n) for s in (f(1), f(-1))]
    return np.sort(np.array(values, np.float32))


def bnb4(name, kind, nested, block=64, shape=(16, 256), dtype=None, nmap=False):
    """bitsandbytes' own code, on the processor; the decoded weights before they are rounded to the model's type."""
    import torch
    import bitsandbytes.functional as F
    w = torch.from_numpy(rng.standard_normal(shape).astype(np.float32))
    codes, state = F.quantize_4bit(w, blocksize=block, compress_statistics=nested, quant_type=kind)
    t = {"m.weight": codes.numpy()}
    if nested:  # nmap: as this version of torch makes it
        assert np.allclose(state.state2.code.numpy(), dynamic_map(), rtol=2e-7, atol=0)
        if not nmap:
            state.state2.code = torch.from_numpy(dynamic_map())
    for k, v in state.as_dict(packed=True).items():
        t["m.weight." + k] = v.numpy()
    y = F.dequantize_4bit(codes, state).numpy()
    absmax = state.absmax
    if nested:
        absmax = F.dequantize_blockwise(state.absmax, state.state2) + state.offset
    flat = codes.numpy().reshape(-1)
    q = np.stack([flat >> 4, flat & 15], axis=1).reshape(-1, block)
    own = (absmax.numpy().astype(np.float32)[:, None] * state.code.numpy()[q]).reshape(shape)
    if block <= shape[1]:
        assert np.array_equal(own, y)
    else:  # blocks over several rows: the package's code for processors (0.50) takes other blocks' absmax, its GPU code does not
        assert np.abs(own - w.numpy()).mean() < np.abs(y - w.numpy()).mean()
        y = own
    config = {"quant_method": "bitsandbytes", "_load_in_4bit": True, "load_in_4bit": True, "load_in_8bit": False,
              "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": nested, "bnb_4bit_compute_dtype": "bfloat16",
              "bnb_4bit_quant_storage": "uint8", "llm_int8_threshold": 6.0, "llm_int8_skip_modules": None}
    form = "nf4_dq" if nested and kind == "nf4" and shape[1] % 256 == 0 and not nmap else kind
    cases.append((name, config, t, {"m.weight": (form, y)}))


def bnb8(name, shape=(8, 64)):
    import torch
    import bitsandbytes.functional as F
    w = torch.from_numpy(rng.standard_normal(shape).astype(np.float16))
    q, scb, _ = F.int8_vectorwise_quant(w)
    y = (scb.numpy() / np.float32(127))[:, None] * q.numpy().astype(np.float32)
    theirs = F.int8_vectorwise_dequant(q, scb).numpy()  # q * scb * (1 / 127): other roundings
    assert np.allclose(y, theirs, rtol=3e-7, atol=0)
    config = {"quant_method": "bitsandbytes", "_load_in_8bit": True, "load_in_8bit": True, "load_in_4bit": False}
    cases.append((name, config, {"m.weight": q.numpy(), "m.SCB": scb.numpy(), "m.weight_format": np.zeros((), np.uint8)},
                  {"m.weight": ("i8_row", y)}))


bnb4("bnb-nf4", "nf4", False, shape=(16, 64))
bnb4("bnb-nf4-dq", "nf4", True)
bnb4("bnb-nf4-dq-128", "nf4", True, block=128, shape=(8, 64))
bnb4("bnb-nf4-map", "nf4", True, nmap=True)
bnb4("bnb-fp4-256", "fp4", False, block=256, shape=(16, 64))
bnb8("bnb-int8")


def ct(name, fmt, shape, bits=4, kind="int", strategy="group", group=None, sym=True, dtype="bfloat16", form=None, block=None,
       acts=None):
    """compressed-tensors' own compressors."""
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    args = QuantizationArgs(num_bits=bits, type=kind, strategy=strategy, group_size=group, symmetric=sym, block_structure=block)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    w = torch.from_numpy(0.1 * rng.standard_normal(shape).astype(np.float32))
    cells = {"group": (shape[0], shape[1] // (group or 1)), "channel": (shape[0], 1), "tensor": (1,)}.get(strategy)
    if block:
        cells = (-(-shape[0] // block[0]), -(-shape[1] // block[1]))
    top = 448.0 if kind == "float" else 2.0 ** (bits - 1)
    scale = torch.from_numpy(((0.2 + 0.2 * rng.random(cells)) / top).astype(np.float32)).to(getattr(torch, dtype))
    state = {"weight": w, "weight_scale": scale}
    if not sym:
        state["weight_zero_point"] = torch.from_numpy(rng.integers(-(1 << bits - 1), 1 << bits - 1, cells).astype(np.int8))
    comp = BaseCompressor.get_value_from_registry(fmt)
    packed = comp.compress(state, scheme)
    back = comp.decompress(packed, scheme)["weight"]
    if bits == 8 and kind == "float":
        y = back.to(torch.bfloat16).float().numpy()
    else:  # in float32, without rounding to the type of the scales
        state32 = dict(packed, weight_scale=packed["weight_scale"].float())
        y = comp.decompress(state32, scheme)["weight"].float().numpy()
        assert np.allclose(y, back.float().numpy(), rtol=1e-2)
    from safetensors.torch import save as save_torch
    weights = json.loads(args.model_dump_json())
    config = {"quant_method": "compressed-tensors", "format": fmt, "quantization_status": "compressed",
              "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": acts,
                                            "output_activations": None}},
              "ignore": ["lm_head"], "kv_cache_scheme": None, "sparsity_config": {}, "version": "0.20.1"}
    if kind == "int" and strategy == "channel" and bits == 8 and sym:  # says nothing
        packed["weight_zero_point"] = torch.zeros(cells, dtype=torch.int8)
    cases.append((name, config, save_torch({"m." + k: v.contiguous() for k, v in packed.items()}), {"m.weight": (form, y)}))


ct("ct-int4", "pack-quantized", (16, 128), group=64, form="i4_g64")
ct("ct-int4-asym", "pack-quantized", (24, 64), group=32, sym=False, form="i4_g32", dtype="float16")
ct("ct-int3-asym-row", "pack-quantized", (44, 32), bits=3, strategy="channel", sym=False, form="i4_row")
ct("ct-int8-packed", "pack-quantized", (8, 64), bits=8, group=32, form="i8_g32")
ct("ct-w8a8", "int-quantized", (8, 64), bits=8, strategy="channel", form="i8_row", dtype="float32",
   acts={"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token", "symmetric": True})
ct("ct-fp8", "float-quantized", (8, 64), bits=8, kind="float", strategy="channel", form="bf16")
ct("ct-fp8-tensor", "float-quantized", (8, 64), bits=8, kind="float", strategy="tensor", form="bf16", dtype="float32")


ct("ct-fp8-block", "float-quantized", (24, 40), bits=8, kind="float", strategy="block", block=[16, 16], form="bf16")


def ct_act(name, rows=8, inputs=64, group=32):
    """weight_g_idx, which earlier versions wrote with actorder "group": codes by input, scales by group."""
    idx = rng.permutation(np.arange(inputs) // group)
    q = rng.integers(0, 16, (rows, inputs))
    s = scales(rows, inputs // group).astype(np.float32)  # halves, stored wide
    w = s[:, idx] * (q - 8).astype(np.float32)
    config = {"quant_method": "compressed-tensors", "format": "pack-quantized", "quantization_status": "compressed",
              "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
                  "num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": group,
                  "actorder": "group", "dynamic": False}}}}
    cases.append((name, config, {"m.weight_packed": stream(q.T, 4).T.copy(), "m.weight_scale": s, "m.weight_g_idx": idx.astype(np.int32),
                                 "m.weight_shape": np.array([rows, inputs])}, {"m.weight": ("i4_g32", w)}))


ct_act("ct-int4-act")
for case in cases:  # tensors that say nothing
    if case[0] == "gptq4":
        case[2]["m.bias"] = np.zeros(16, np.float16)


def fp8(name, shape, block, dtype="float32"):
    """As transformers decodes what its kernels cannot take: float32 product, rounded to bf16."""
    import torch
    from safetensors.torch import save as save_torch
    codes = torch.from_numpy(rng.integers(0, 256, shape).astype(np.uint8))
    codes[codes & 127 == 127] = 0  # no NaN
    w = codes.view(torch.float8_e4m3fn)
    grid = (-(-shape[0] // block[0]), -(-shape[1] // block[1])) if block else ()
    s = torch.from_numpy(np.asarray(rng.random(grid) * 0.01, dtype=np.float32))
    full = s.repeat_interleave(block[0], 0)[:shape[0]].repeat_interleave(block[1], 1)[:, :shape[1]] if block else s
    y = (w.float() * full).to(torch.bfloat16).float().numpy()
    config = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": block,
              "modules_to_not_convert": ["lm_head"]}
    cases.append((name, config, save_torch({"m.weight": w, "m.weight_scale_inv": s}), {"m.weight": ("bf16", y)}))


fp8("fp8", (24, 40), [16, 16])
fp8("fp8-tensor", (8, 32), None)

def awq_rows(name, group, inputs, outputs, seed, fast, zeros="qzeros", **config):
    """AutoAWQ's WQLinear_GEMV, and WQLinear_GEMVFast, which is llm-awq's WQLinear: both lay out codes by output."""
    own = np.random.default_rng(seed)
    g = inputs if group < 0 else group
    n = inputs // g
    q = own.integers(0, 16, (outputs, inputs))
    z = own.integers(0, 16, (outputs, n))
    z[:2, 0] = 0, 15
    s = (0.01 + 0.05 * own.random((outputs, n))).astype(np.float16)
    s[-1, -1] = 1e-5  # the least: a half with few bits
    idx = np.arange(inputs) // g
    w = s.astype(np.float32)[:, idx] * (q - z[:, idx]).astype(np.float32)
    unit = max(128 // g, 1)
    words = -(-(-(-n // 8)) // unit) * unit  # of zero points, by output
    room = np.zeros((outputs, words * 8), np.float16)
    room[:, :n] = s
    padded = np.zeros((outputs, words * 8), np.int64)
    padded[:, :n] = z
    if fast:
        pairs = [8 * a + 2 * b + c for b in range(4) for a in range(4) for c in range(2)]  # of inputs, from each eight in turn
        order = [pairs[8 * e + i] for e in range(4) for i in (0, 2, 4, 6, 1, 3, 5, 7)]  # evens first
        lines = []
        for r in range(0, outputs, 4):  # 64 inputs of each of four outputs, then the next; four nibbles to a word
            line = [q[o, c + h + k] for c in range(0, inputs, 64) for o in range(r, r + 4) for h in (0, 32) for k in order]
            lines.append([line[i] | line[i + 1] << 4 | line[i + 2] << 8 | line[i + 3] << 12 for i in range(0, len(line), 4)])
        t = {"m.qweight": np.array(lines, np.uint16).view(np.int16), "m.scales": room.T.copy(),
             "m." + zeros: (-(room.astype(np.float32) * padded)).astype(np.float16).T.copy()}
    else:
        t = {"m.qweight": stream(q.T, 4).T.copy(), "m.scales": room, "m.qzeros": stream(padded.T, 4).T.copy()}
    form = "i4_row" if g == inputs else "i4_g%d" % max(b for b in (32, 64, 128) if g % b == 0)
    cases.append((name, {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, **config}, t,
                  {"m.weight": (form, w)}))


awq_rows("awq-llm", 64, 192, 24, 1, True, "scaled_zeros", version="gemm", backend="llm-awq")
awq_rows("awq-fast", 128, 256, 16, 2, True, version="gemv_fast")
awq_rows("awq-fast-row", -1, 128, 8, 3, True, format="llm-awq", pack_dtype="int16")
awq_rows("awq-gemv", 32, 96, 16, 4, False, version="GEMV")



def bf16(x):
    """float32 to bfloat16, to nearest even, as bits."""
    b = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((b + 0x7fff + (b >> 16 & 1)) >> 16).astype(np.uint16)


def unbf16(b):
    return (b.astype(np.uint32) << 16).view(np.float32)


NF4 = [-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1]
FP4 = [x / 12 for x in (0, 0.0625, 8, 12, 4, 6, 2, 3)]


def check_bnb(codes, absmax, levels, block, shape, dtype, nested, kind, y):
    """That bitsandbytes decodes so: the matrix as one row, since its code for processors (0.50) takes wrong absmax values where
    rows are no multiple of a block."""
    import torch
    import bitsandbytes.functional as F
    inner = None
    if nested:
        inner = F.QuantState(absmax=torch.from_numpy(nested[0]), code=torch.from_numpy(dynamic_map()), blocksize=256, dtype=torch.float32)
    state = F.QuantState(absmax=torch.from_numpy(absmax), shape=torch.Size((1, shape[0] * shape[1])), code=torch.from_numpy(levels),
                         blocksize=block, quant_type=kind, dtype=getattr(torch, dtype),
                         offset=torch.tensor(nested[1]) if nested else None, state2=inner)
    theirs = F.dequantize_4bit(torch.from_numpy(codes.reshape(-1, 1)), state).float().numpy().reshape(shape)
    assert np.array_equal(theirs, y)


def bnb4_cut(name, kind, nested, block, shape, dtype, seed):
    """Blocks of the flattened matrix that cross its rows; decoded to the model's type, as the package does."""
    own = np.random.default_rng(seed)
    n = shape[0] * shape[1]
    levels = np.array(NF4 if kind == "nf4" else FP4 + [-x for x in FP4], np.float32)
    q = own.integers(0, 16, n)
    padded = np.append(q, np.zeros(n % 2, q.dtype)).reshape(-1, 2)
    blocks = -(-n // block)
    t = {"m.weight": (padded[:, 0] << 4 | padded[:, 1]).astype(np.uint8).reshape(-1, 1)}
    about = {"quant_type": kind, "blocksize": block, "dtype": dtype, "shape": list(shape)}
    if nested:
        absmax = own.integers(0, 256, blocks).astype(np.uint8)
        inner, offset = (0.1 + own.random(-(-blocks // 256))).astype(np.float32), np.float32(2.5)
        t["m.weight.nested_absmax"], t["m.weight.nested_quant_map"] = inner, dynamic_map()
        about.update(nested_blocksize=256, nested_dtype="float32", nested_offset=float(offset))
        d = inner[np.arange(blocks) // 256] * dynamic_map()[absmax] + offset
    else:
        d = absmax = (0.5 + own.random(blocks)).astype(np.float32)
    t["m.weight.absmax"], t["m.weight.quant_map"] = absmax, levels
    t["m.weight.quant_state.bitsandbytes__" + kind] = np.frombuffer(json.dumps(about).encode(), np.uint8)
    y = d[np.arange(n) // block] * levels[q]
    y = (unbf16(bf16(y)) if dtype == "bfloat16" else y.astype(dtype).astype(np.float32)).reshape(shape)
    check_bnb(t["m.weight"], absmax, levels, block, shape, dtype, nested and (inner, offset), kind, y)
    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    cases.append((name, config, t, {"m.weight": ({"bfloat16": "bf16", "float16": "f16", "float32": "f32"}[dtype], y)}))


bnb4_cut("bnb-nf4-cut", "nf4", False, 64, (16, 36), "bfloat16", 5)
bnb4_cut("bnb-nf4-dq-cut", "nf4", True, 64, (13, 100), "float16", 6)
bnb4_cut("bnb-fp4-cut", "fp4", True, 128, (33, 33), "float32", 7)
bnb4_cut("bnb-nf4-32", "nf4", False, 32, (8, 64), "bfloat16", 8)


def check_ct(fmt, t, config, y):
    """That compressed-tensors decodes so."""
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    args = QuantizationArgs(**config["config_groups"]["group_0"]["weights"])
    parts = {k[2:]: torch.from_numpy(v) for k, v in t.items()}
    back = BaseCompressor.get_value_from_registry(fmt).decompress(dict(parts, weight_scale=parts["weight_scale"].float()),
                                                                  QuantizationScheme(targets=["Linear"], weights=args))
    assert np.array_equal(back["weight"].float().numpy(), y)


def ct_int8(name, form, shape, strategy, sym, seed, group=None):
    """int-quantized: w = scale * (q - zero)."""
    own = np.random.default_rng(seed)
    cells = {"group": (shape[0], shape[1] // (group or 1)), "channel": (shape[0], 1), "tensor": (1,)}[strategy]
    s = (0.001 + 0.002 * own.random(cells)).astype(np.float16)
    q = own.integers(-128, 128, shape).astype(np.int8)
    z = own.integers(-128, 128, cells).astype(np.int8)
    z.reshape(-1)[:2] = [-128, 127][:z.size]
    t = {"m.weight": q, "m.weight_scale": s}
    if not sym:
        t["m.weight_zero_point"] = z
    full = [v.reshape(-1, 1) if strategy == "tensor" else np.repeat(v, shape[1] // cells[1], 1) for v in (s, z)]
    y = full[0].astype(np.float32) * (q.astype(np.float32) - (0 if sym else full[1].astype(np.float32)))
    config = {"quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed",
              "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
                  "num_bits": 8, "type": "int", "symmetric": sym, "strategy": strategy, "group_size": group, "dynamic": False}}}}
    check_ct("int-quantized", t, config, y)
    cases.append((name, config, t, {"m.weight": (form, y)}))


ct_int8("ct-int8-asym", "i8_g32", (8, 96), "channel", False, 9)
ct_int8("ct-int8-asym-tensor", "i8_g64", (6, 64), "tensor", False, 10)
ct_int8("ct-int8-asym-group", "i8_g128", (8, 256), "group", False, 11, 128)
ct_int8("ct-int8-group", "i8_g32", (4, 64), "group", True, 12, 32)

if __name__ == "__main__":
    out = sys.argv[1]
    with open(os.path.join(out, "hf_quant.txt"), "w") as f:
        for name, config, tensors, weights in cases:
            with open(os.path.join(out, "fuzz-hf", "quant-" + name), "wb") as c:
                c.write(b"\x10" + json.dumps({"quantization_config": config}).encode() + b"\0" +
                        (tensors if isinstance(tensors, bytes) else save(tensors)))
            for key, (form, w) in weights.items():
                print(name, key, form, *w.shape, f"{fnv(w):016x}", file=f)
