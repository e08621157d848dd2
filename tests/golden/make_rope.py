#!/usr/bin/env python3
"""make_rope.py: RoPE frequencies of every kind of scaling, as transformers computes them, into rope.txt.

Needs torch and transformers (5.x); run by hand, the tests read what it wrote. A case is four lines: a name; the
configuration as config.json has it; the length of the text and the factor of cosines and sines; the frequencies. For
"ntk", which transformers has no name for, the base is scaled and the default rule taken.
"""
import json
import sys

import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def config(context, scaling, theta=10000.0, head=64, **more):
    return dict(max_position_embeddings=context, rope_theta=theta, head_dim=head, hidden_size=4 * head,
                num_attention_heads=4, rope_scaling=scaling, **more)


short = [1.0 + i / 40 for i in range(32)]
long = [1.0 + i * i / 16 for i in range(32)]
llama3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=8192)
cases = [
    ("none", config(2048, dict(rope_type="default")), 2048),
    ("linear", config(2048, dict(type="linear", factor=4.0)), 2048),
    ("dynamic, within", config(2048, dict(type="dynamic", factor=2.0)), 1000),
    ("dynamic, beyond", config(2048, dict(rope_type="dynamic", factor=2.0)), 4096),
    ("dynamic, far beyond", config(2048, dict(rope_type="dynamic", factor=4.0), head=128), 8000),
    ("yarn", config(4096, dict(type="yarn", factor=4.0, original_max_position_embeddings=4096)), 16384),
    ("yarn, factor by context", config(32768, dict(rope_type="yarn", factor=None,
                                                   original_max_position_embeddings=4096), theta=1e6, head=128), 32768),
    ("yarn, betas and attention", config(4096, dict(rope_type="yarn", factor=16.0, beta_fast=20.0, beta_slow=2.0,
                                                    attention_factor=1.25, original_max_position_embeddings=4096)),
     65536),
    ("yarn, mscale", config(4096, dict(rope_type="yarn", factor=40.0, mscale=1.0, mscale_all_dim=0.7,
                                       original_max_position_embeddings=4096)), 163840),
    ("yarn, not truncated", config(4096, dict(rope_type="yarn", factor=32.0, truncate=False,
                                              original_max_position_embeddings=4096), theta=150000.0), 131072),
    ("llama3", config(131072, llama3, theta=500000.0, head=128), 131072),
    ("llama3, small", config(131072, dict(llama3, factor=32.0), theta=500000.0), 131072),
    ("longrope, short", config(131072, dict(type="longrope", short_factor=short, long_factor=long),
                               original_max_position_embeddings=4096), 4096),
    ("longrope, long", config(131072, dict(type="longrope", short_factor=short, long_factor=long),
                              original_max_position_embeddings=4096), 4097),
    ("longrope, attention", config(131072, dict(rope_type="longrope", short_factor=short, long_factor=long, factor=8.0,
                                                attention_factor=1.1, original_max_position_embeddings=4096)), 9000),
]


def frequencies(c, length):
    c = json.loads(json.dumps(c))
    made = LlamaConfig(**c)
    kind = made.rope_parameters["rope_type"]
    if kind == "default":
        d = c["head_dim"]
        return 1.0 / (c["rope_theta"] ** (torch.arange(0, d, 2).float() / d)), 1.0
    return ROPE_INIT_FUNCTIONS[kind](made, "cpu", seq_len=length)


def put(out, name, c, length, f, attention):
    c = json.loads(json.dumps(c))
    c["rope_scaling"] = {k: v for k, v in c["rope_scaling"].items() if v is not None}
    out.write(f"{name}\n{json.dumps(c)}\n{length} {attention:.9g}\n")
    out.write(" ".join(f"{x:.9g}" for x in f.double().tolist()) + "\n")


with open(sys.argv[1] if len(sys.argv) > 1 else "tests/golden/rope.txt", "w") as out:
    for name, c, length in cases:
        f, attention = frequencies(c, length)
        put(out, name, c, length, f, attention)
    for factor, head in ((2.0, 64), (8.0, 128)):
        c = config(2048, dict(rope_type="ntk", factor=factor), head=head)
        base = c["rope_theta"] * factor ** (head / (head - 2))
        f = 1.0 / (base ** (torch.arange(0, head, 2).float() / head))
        put(out, "ntk", c, 2048, f, 1.0)
