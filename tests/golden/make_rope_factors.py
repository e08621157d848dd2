#!/usr/bin/env python3
"""make_rope_factors.py: what Llama 3's scaling divides RoPE's frequencies by, as transformers computes it.

Writes rope_factors.txt, a case in three lines: a name; the configuration as config.json has it; the rot / 2 factors
that a GGUF file has as its tensor rope_freqs.weight, each the plain frequency over the scaled one. Needs torch and
transformers (5.x); run by hand, the tests read what it wrote.
"""
import json
import sys

import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def config(context, theta, head, factor, original, low=1.0, high=4.0):
    return dict(max_position_embeddings=context, rope_theta=theta, head_dim=head, hidden_size=4 * head,
                num_attention_heads=4,
                rope_scaling=dict(rope_type="llama3", factor=factor, low_freq_factor=low, high_freq_factor=high,
                                  original_max_position_embeddings=original))


cases = [
    ("tiny", config(512, 10000.0, 16, 8.0, 64)),  # the model of the tests
    ("Llama 3.1 8B", config(131072, 500000.0, 128, 8.0, 8192)),
    ("Llama 3.2 1B", config(131072, 500000.0, 64, 32.0, 8192)),
    ("other ends", config(65536, 1e6, 96, 5.5, 4096, 0.5, 16.0)),
]

with open(sys.argv[1] if len(sys.argv) > 1 else "tests/golden/rope_factors.txt", "w") as out:
    for name, c in cases:
        made = LlamaConfig(**json.loads(json.dumps(c)))
        scaled, attention = ROPE_INIT_FUNCTIONS["llama3"](made, "cpu")
        assert attention == 1.0
        d = c["head_dim"]
        plain = 1.0 / (c["rope_theta"] ** (torch.arange(0, d, 2).float() / d))
        factors = plain.double() / scaled.double()
        out.write(f"{name}\n{json.dumps(c)}\n" + " ".join(f"{x:.9g}" for x in factors.tolist()) + "\n")
