#!/usr/bin/env python3
"""A second reader of the Hugging Face directories that `lq quantize` writes: the published packages.

    make_hf_second_reader.py LQ MODEL [SCHEME or recipe:FILE ...]
    make_hf_second_reader.py --golden MODEL > tests/golden/hf_write.txt
        (needs numpy, safetensors, torch, transformers, bitsandbytes, compressed-tensors)

MODEL (a directory of floats) is written with every scheme of directories, then opened by transformers, whose weights are
compared: bit by bit with what the files say by the published formulas; and NF4 with what bitsandbytes itself makes of the
floats. Prints one line per scheme; ends 1 when anything differs. GPTQ and AWQ have no reader among these packages: their
words are taken apart here, as the published kernels do; make_hf_logits.py has another package read them.
"""
import json
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
from safetensors import safe_open

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
failures = 0


def tensors_of(path):
    out = {}
    for name in sorted(os.listdir(path)):
        if name.endswith(".safetensors"):
            with safe_open(os.path.join(path, name), "pt") as f:
                out.update({k: f.get_tensor(k) for k in f.keys()})
    return out


def check(what, ok):
    global failures
    failures += not ok
    print(f"  {'ok' if ok else 'FAILED'}: {what}")


def same(a, b):
    return a.shape == b.shape and torch.equal(a.float(), b.float())


def matrices(source):
    return sorted(k for k, v in source.items() if ".layers." in k and v.dim() == 2)


def bnb_dequantize(t, name):
    import bitsandbytes.functional as F
    state = {k[len(name) + 1:]: v for k, v in t.items() if k.startswith(name + ".")}
    qs = F.QuantState.from_dict(state, device=torch.device("cpu"))
    return F.dequantize_4bit(t[name], qs), qs


def check_bnb(path, source, dq):
    import bitsandbytes.functional as F
    t = tensors_of(path)
    codes = absmax = values = nested = 0
    for name in matrices(source):
        w = source[name]
        q, s = F.quantize_4bit(w, compress_statistics=False, quant_type="nf4")
        codes += int((q != t[name]).sum())
        y, qs = bnb_dequantize(t, name)
        if dq:
            a = s.absmax.double()
            offset = np.float32(a.mean().item())
            check_offset = np.float32(json.loads(bytes(t[name + ".quant_state.bitsandbytes__nf4"].tolist()))["nested_offset"])
            absmax += int(offset != check_offset)
            # the rule of the CUDA kernel; the CPU's looks x up in a coarser table
            code = t[name + ".nested_quant_map"]
            b = s.absmax - torch.tensor(offset)
            n = b.numel()
            b = torch.cat([b, torch.zeros(-n % 256)]).reshape(-1, 256)
            top = b.abs().max(1)[0]
            x = (b * (1 / top).view(-1, 1)).reshape(-1)[:n]
            want = torch.bucketize(x, (code[:-1] + code[1:]) / 2).to(torch.uint8)
            nested += int((want != t[name + ".absmax"]).sum()) + int((top != t[name + ".nested_absmax"]).sum())
            ulps = (code.view(torch.int32) - F.create_dynamic_map().float().view(torch.int32)).abs().max()
            nested += int(ulps > 2)  # torch.linspace differs so much between processors
            scale = code[t[name + ".absmax"].long()] * t[name + ".nested_absmax"].repeat_interleave(256)[:n] + offset
        else:
            absmax += int((s.absmax != t[name + ".absmax"]).sum())
            scale = t[name + ".absmax"]
        levels = t[name + ".quant_map"]
        nib = torch.stack([t[name].reshape(-1) >> 4, t[name].reshape(-1) & 15], 1).reshape(-1).long()
        mine = (levels[nib].reshape(-1, 64) * scale.view(-1, 1)).reshape(w.shape).to(w.dtype)
        values += int((mine != y).sum())
    check(f"bytes of codes that differ from bitsandbytes' own: {codes}", codes == 0)
    check(f"{'offsets' if dq else 'absmax'} that differ: {absmax}", absmax == 0)
    if dq:
        check(f"nested codes, scales and levels that differ from the CUDA kernel's rule: {nested}", nested == 0)
    check(f"values that bitsandbytes decodes otherwise than the formula: {values}", values == 0)


def load(path, **more):
    from transformers import AutoModelForCausalLM
    return AutoModelForCausalLM.from_pretrained(path, **more)


def logits(model):
    with torch.no_grad():
        return model(torch.arange(1, 33).reshape(1, 32)).logits.float()


def distance(a, b):
    p, q = torch.log_softmax(a, -1), torch.log_softmax(b, -1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def check_i4(path, source, awq):
    t = tensors_of(path)
    config = json.load(open(os.path.join(path, "config.json")))["quantization_config"]
    g = config["group_size"]
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    error = norm = 0.0
    for name in matrices(source):
        base = name[: -len("weight")]
        qw, qz, sc = (t[base + x].numpy() for x in ("qweight", "qzeros", "scales"))
        sc = sc.astype(np.float32)
        k, n = source[name].shape[1], source[name].shape[0]
        q = np.zeros((k, n), np.int32)
        z = np.zeros((k // g, n), np.int32)
        for i in range(8):
            if awq:
                q[:, order[i]::8] = (qw.view(np.uint32) >> (4 * i)) & 15
                z[:, order[i]::8] = (qz.view(np.uint32) >> (4 * i)) & 15
            else:
                q[i::8] = (qw.view(np.uint32) >> (4 * i)) & 15
                z[:, i::8] = ((qz.view(np.uint32) >> (4 * i)) & 15) + 1
        group = np.arange(k) // g if awq else t[base + "g_idx"].numpy()
        w = (sc[group] * (q - z[group])).T
        x = source[name].float().numpy()
        error += float(((w - x) ** 2).sum())
        norm += float((x ** 2).sum())
    print(f"  relative error of the decoded weights {np.sqrt(error / norm):.5f}")
    check("the decoded weights are near the floats", error / norm < 0.02)


def fnv64(t):
    h = 14695981039346656037
    for b in t.contiguous().view(torch.uint8).reshape(-1).tolist():
        h = (h ^ b) * 1099511628211 & (1 << 64) - 1
    return h


def golden(src):
    """Hashes of the tensors of some matrices: what bitsandbytes makes of the floats, and of 8 bits the formula."""
    import bitsandbytes.functional as F
    source = tensors_of(src)
    print("# SCHEME TENSOR FNV-64: made by make_hf_second_reader.py --golden bench/data/pocket")
    rows = {"nf4": [], "nf4-dq": [], "int8": []}
    for name in [matrices(source)[i] for i in (0, 8, 19, 40)]:
        w = source[name]
        q, s = F.quantize_4bit(w, compress_statistics=False, quant_type="nf4")
        rows["nf4"] += [(name, q), (name + ".absmax", s.absmax), (name + ".quant_map", s.code)]
        offset = torch.tensor(np.float32(s.absmax.double().mean().item()))
        b = s.absmax - offset
        b = torch.cat([b, torch.zeros(-b.numel() % 256)]).reshape(-1, 256)
        top = b.abs().max(1)[0]
        code = F.create_dynamic_map().float()
        nested = torch.bucketize((b * (1 / top).view(-1, 1)).reshape(-1), (code[:-1] + code[1:]) / 2)[: s.absmax.numel()]
        rows["nf4-dq"] += [(name, q), (name + ".absmax", nested.to(torch.uint8)), (name + ".nested_absmax", top)]
        scale = (w.float().abs().amax(1, keepdim=True) / 127).half()
        rows["int8"] += [(name, (w.float() / scale.float()).round().clamp(-127, 127).to(torch.int8)), (name + "_scale", scale)]
    for scheme, tensors in rows.items():
        for name, t in tensors:
            print(scheme, name, f"{fnv64(t):016x}")


def main():
    if sys.argv[1] == "--golden":
        return golden(sys.argv[2])
    lq, src = sys.argv[1:3]
    source = tensors_of(src)
    reference = logits(load(src, dtype=torch.float32))
    with tempfile.TemporaryDirectory() as tmp:
        for scheme in sys.argv[3:] or ["f16", "bf16", "f32", "nf4", "nf4-dq", "int8"]:
            path = os.path.join(tmp, scheme)
            args = ["-s", scheme]
            if scheme.startswith("recipe:"):
                path, args = os.path.join(tmp, "recipe"), ["--recipe", scheme[7:]]
            subprocess.run([lq, "quantize", src, path + "/", "--force"] + args, check=True, capture_output=True)
            print(scheme)
            t = tensors_of(path)
            method = json.load(open(os.path.join(path, "config.json"))).get("quantization_config", {}).get("quant_method")
            if method in ("gptq", "awq"):
                check_i4(path, source, method == "awq")
                continue
            model = load(path)
            mine = model.state_dict()
            if method is None:
                check("transformers' weights are the file's", all(same(mine[k], v) for k, v in t.items()))
            if method == "bitsandbytes":
                check_bnb(path, source, "dq" in scheme)
                check("linear layers are bitsandbytes'", type(model.model.layers[0].mlp.up_proj).__name__ == "Linear4bit")
            if method == "compressed-tensors":
                layer = model.model.layers[0].mlp.up_proj
                print(f"  layer {type(layer).__name__}, weight {layer.weight.dtype}, scale {layer.weight_scale.dtype}")
                differ = 0
                for name in matrices(source):
                    q, s = t[name], t[name + "_scale"]
                    differ += int(((source[name].float() / s.float()).round().clamp(-128, 127) != q.float()).sum())
                check(f"codes that are not the nearest: {differ}", differ == 0)
                check("transformers' codes and scales are the file's",
                      all(same(mine[k], v) for k, v in t.items() if k in mine and v.dim() == 2))
                from compressed_tensors.compressors import BaseCompressor
                values = 0
                for name in matrices(source):
                    module = model.get_submodule(name[: -len(".weight")])
                    state = {"weight": t[name], "weight_scale": t[name + "_scale"]}
                    y = BaseCompressor.get_value_from_registry("int-quantized").decompress(state, module.quantization_scheme)
                    want = t[name].to(t[name + "_scale"].dtype) * t[name + "_scale"]
                    values += int((y["weight"] != want).sum())
                check(f"values that compressed-tensors decodes otherwise than the formula: {values}", values == 0)
            print(f"  mean KL divergence from the floats over 32 tokens {distance(reference, logits(model)):.6f}")
    sys.exit(1 if failures else 0)


main()
