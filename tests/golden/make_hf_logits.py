#!/usr/bin/env python3
"""Logits of quantized Hugging Face directories by the published packages, beside libquant's.

    make_hf_logits.py LIBQUANT.SO DIR...
        (needs numpy, torch, transformers; for gptq and awq gptqmodel and optimum, for others bitsandbytes and
        compressed-tensors)

Each DIR, as `lq quantize` or another program wrote it, is opened by transformers on the processor in float32, and by
libquant with float32 activations (tools/bindings/libquant.py). Both run the same 32 tokens. Prints the class of the
layers, the largest difference of logits as a share of the largest logit, the mean KL divergence, and, where the layers
say what they decode, how many values differ from libquant's of the same tensor. Ends 1 when the logits of a
directory are further apart than their arithmetic explains, or a value is another.
"""
import os
import sys

import numpy as np
import torch

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools", "bindings"))
import libquant  # noqa: E402

IDS = list(range(1, 33))
LIMIT = 2e-3  # of the largest logit: halves on the way make 1e-3; another code or scale makes 1e-2 and more
failures = 0


def ours(ctx, path):
    with ctx.open(path, no_pack=True) as model, model.session(max_logits=len(IDS), activations="f32") as session:
        session.decode(IDS, logits_from=0)
        rows = [session.logits(i) for i in range(len(IDS))]
        decoded = {t.name: i for i, t in enumerate(model.tensors()) if ".layers.0." in t.name and t.rank == 2}
        shapes = {t.name: t.shape[1] for t in model.tensors() if t.name in decoded}
        weights = {n: np.array([model.tensor_row(i, r) for r in range(shapes[n])], np.float32)
                   for n, i in decoded.items()}
    return torch.tensor(rows), weights


def theirs(path):
    from transformers import AutoConfig, AutoModelForCausalLM, AwqConfig, GPTQConfig
    q = AutoConfig.from_pretrained(path).quantization_config
    more = {}
    if q["quant_method"] == "gptq":  # the kernels of plain torch: no compiling, and they say what they decode
        more["quantization_config"] = GPTQConfig(bits=q["bits"], backend="torch")
    if q["quant_method"] == "awq":
        more["quantization_config"] = AwqConfig(bits=q["bits"], backend="torch_awq")
    model = AutoModelForCausalLM.from_pretrained(path, device_map="cpu", dtype=torch.float32, **more)
    for layer in model.modules():  # inputs in float32, as ours: not in the file's 16 bits, not rounded to 8
        if hasattr(layer, "compute_dtype"):
            layer.compute_dtype = torch.float32
            layer.support_avx512bf16_for_cpu = False
        if getattr(layer, "quantization_scheme", None):
            layer.quantization_scheme.input_activations = None
    with torch.no_grad():
        return model, model(torch.tensor([IDS])).logits[0].float()


def decoded_by(layer):
    """The weights as the package decodes them, one output after the other; None where it does not say."""
    if hasattr(layer, "dequantize_weight"):
        return layer.dequantize_weight().T
    if type(layer).__name__ == "Linear4bit":
        from bitsandbytes.functional import dequantize_4bit
        return dequantize_4bit(layer.weight, layer.weight.quant_state)
    return None


def values_that_differ(model, weights):
    differ = total = 0
    for name, mine in weights.items():
        with torch.no_grad():
            w = decoded_by(model.get_submodule(name[: -len(".weight")]))
        if w is None:
            continue
        if w.dtype == torch.float16:  # they round products of scale and code to halves, we do not
            mine = mine.astype(np.float16).astype(np.float32)
        differ += int((w.detach().float().numpy().reshape(mine.shape) != mine).sum())
        total += mine.size
    return differ, total


def main():
    global failures
    torch.set_num_threads(1)
    libquant.load(sys.argv[1])
    with libquant.Context(threads=1) as ctx:
        for path in sys.argv[2:]:
            a, weights = ours(ctx, path)
            model, b = theirs(path)
            p, q = torch.log_softmax(b.double(), -1), torch.log_softmax(a.double(), -1)
            kld = float((p.exp() * (p - q)).sum(-1).mean())
            far = float((a - b).abs().max() / b.abs().max())
            differ, total = values_that_differ(model, weights)
            failures += far > LIMIT or differ > 0
            same = int((a.argmax(-1) == b.argmax(-1)).sum())
            values = f", {differ} of {total} values of layer 0 differ" if total else ""
            print(f"{path}: {type(model.model.layers[0].mlp.up_proj).__name__}, logits differ by {far:.2e} of the "
                  f"largest, mean KL divergence {kld:.2e}, same top token {same} of {len(IDS)}{values}")
    sys.exit(1 if failures else 0)


main()
