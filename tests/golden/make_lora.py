#!/usr/bin/env python3
"""make_lora.py: an adapter that PEFT wrote for bench/data/pocket, and what PEFT makes of the model's weights with it.

    make_lora.py bench/data/pocket tests/golden        # torch, transformers, peft (0.21.2)

Writes lora/adapter_config.json and lora/adapter_model.safetensors, as save_pretrained does, and lora.txt: "TENSOR hash", the
hash being FNV-1a (64 bits) over the merged matrix (merge_and_unload) as float32, row by row in Hugging Face's order. A and B
are of small multiples of 1/16 and the factors powers of two, so that every order of summation gives the same bits.
"""
import json
import os
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from safetensors.torch import load_file


def fnv(t):
    h = 14695981039346656037
    for b in t.detach().to(torch.float32).contiguous().numpy().tobytes():
        h = (h ^ b) * 1099511628211 & (1 << 64) - 1
    return h


def base(path):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path), dtype=torch.float32)
    model.load_state_dict({k: v.to(torch.float32) for k, v in load_file(os.path.join(path, "model.safetensors")).items()})
    return model


src, out = sys.argv[1:3]
torch.manual_seed(20261130)
config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "o_proj", "down_proj"],
                    layers_to_transform=[0, 5], rank_pattern={"k_proj": 2, "model.layers.5.mlp.down_proj": 1},
                    alpha_pattern={"o_proj": 4}, lora_dropout=0.0, bias="none")
model = get_peft_model(base(src), config)
for name, p in model.named_parameters():
    if "lora_" in name:
        p.data = torch.randint(-4, 5, p.shape).to(torch.float32) / 16
model.to(torch.float16).save_pretrained(os.path.join(out, "lora"))
for name in os.listdir(os.path.join(out, "lora")):
    if not name.startswith("adapter_"):
        os.remove(os.path.join(out, "lora", name))
path = os.path.join(out, "lora", "adapter_config.json")
text = json.load(open(path))
text["base_model_name_or_path"] = "pocket"
json.dump(text, open(path, "w"), indent=2, sort_keys=True)

merged = get_peft_model(base(src), config)
merged.load_state_dict({k: v.to(torch.float32) for k, v in model.state_dict().items() if "lora_" in k}, strict=False)
changed = sorted({n[:n.index(".lora_A")].removeprefix("base_model.model.") for n, _ in merged.named_parameters() if "lora_A" in n})
merged = merged.merge_and_unload()
with open(os.path.join(out, "lora.txt"), "w") as f:
    for name in changed:
        f.write(f"{name}.weight {fnv(merged.get_submodule(name).weight):016x}\n")
