#!/usr/bin/env python3
"""Embeddings of bench/data/pocket by transformers, in float64: tests/golden/embeddings.json.

    make_embeddings.py MODEL_DIR LOGITS.json > embeddings.json         (needs torch, transformers)

The texts and ids are those of logits.json (BOS first). The last hidden state, behind the final norm, is pooled in three
ways: mean over all tokens, last token, first token. Kept of each vector: its length before it is normalized, and every
fifth value after.
"""
import json
import sys

import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float64).model
cases = []
for case in json.load(open(sys.argv[2]))["cases"]:
    with torch.no_grad():
        rows = model(torch.tensor([case["prompt_ids"]])).last_hidden_state[0]
    out = {"text": case["text"], "prompt_ids": case["prompt_ids"]}
    for name, v in (("mean", rows.mean(0)), ("last", rows[-1]), ("first", rows[0])):
        length = v.norm().item()
        out[name] = {"length": float(f"{length:.9g}"), "values": [float(f"{x:.9g}") for x in (v / length)[::5].tolist()]}
    cases.append(out)
print('{"about":"float64 embeddings of bench/data/pocket by transformers: make_embeddings.py","cases":[')
print(",\n".join(json.dumps(c, separators=(",", ":")) for c in cases))
print("]}")
