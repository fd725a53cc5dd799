import json, sys, math, time, itertools
from dataclasses import dataclass
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

@dataclass(frozen=True)
class Standin:
    name: str; kind: str; size: int; blocks: int; slots: tuple; table: tuple; parameters: int
    def slices(self, i): return [(n, d, list(range(i*w, (i+1)*w))) for n, d, w in self.table]

class Groups(dict):
    def __init__(self, model, kinds=("head","query","ffn")):
        c = model.config; self.c = c
        self.total = sum(p.numel() for p in model.parameters())
        hd = c.hidden_size // c.num_attention_heads; rep = c.num_attention_heads // c.num_key_value_heads
        self.hd, self.rep = hd, rep
        for l in range(c.num_hidden_layers):
            a = f"model.layers.{l}.self_attn."; m = f"model.layers.{l}.mlp."
            t = ((a+"q_proj.weight",0,rep*hd),(a+"k_proj.weight",0,hd),(a+"v_proj.weight",0,hd),(a+"o_proj.weight",1,rep*hd))
            def mk(name, kind, size, blocks, t):
                if kind in kinds:
                    self[name] = Standin(name, kind, size, blocks, tuple(x[:2] for x in t), t, sum(x[2] for x in t)*c.hidden_size)
            mk(f"layers.{l}.head","head",c.num_key_value_heads,1,t)
            if rep > 1:
                mk(f"layers.{l}.query","query",c.num_attention_heads,c.num_key_value_heads,((a+"q_proj.weight",0,hd),(a+"o_proj.weight",1,hd)))
            mk(f"layers.{l}.ffn","ffn",c.intermediate_size,1,((m+"gate_proj.weight",0,1),(m+"up_proj.weight",0,1),(m+"down_proj.weight",1,1)))
    def count(self, widths):
        c = self.c; n = self.total
        for l in range(c.num_hidden_layers):
            kv = widths.get(f"layers.{l}.head", c.num_key_value_heads); q = widths.get(f"layers.{l}.query", self.rep)
            f = widths.get(f"layers.{l}.ffn", c.intermediate_size)
            n -= c.hidden_size*self.hd*2*(c.num_attention_heads - kv*q + c.num_key_value_heads - kv)
            n -= c.hidden_size*3*(c.intermediate_size - f)
        return n

def texts(path):
    return [json.loads(l)["text"] for l in open(path)]

def packed(tok, docs, L, n, bos):
    ids = []
    for d in docs:
        ids += [bos] + tok(d, add_special_tokens=False)["input_ids"]
        if len(ids) >= L*n: break
    return torch.tensor(ids[:L*n]).reshape(-1, L)

def batches(tok, docs, L, n, bos, size=16, single=False):
    if not single:
        return [{"input_ids": b, "use_cache": False} for b in packed(tok, docs, L, n, bos).split(size)]
    rows = [([bos] + tok(d, add_special_tokens=False)["input_ids"])[:L] for d in docs[:n]]
    out = []
    for i in range(0, len(rows), size):
        part = rows[i:i+size]; w = max(map(len, part))
        out.append({"input_ids": torch.tensor([r+[0]*(w-len(r)) for r in part]), "attention_mask": torch.tensor([[1]*len(r)+[0]*(w-len(r)) for r in part]), "use_cache": False})
    return out

SETUP = {"stories260k": (256, False), "tinystories-656k": (256, True), "babyllama-105": (256, False)}

def load(models, text, name, calib=128, nvalid=96, ntest=160):
    L, single = SETUP[name]
    model = AutoModelForCausalLM.from_pretrained(f"{models}/{name}").eval()
    tok = AutoTokenizer.from_pretrained(f"{models}/{name}")
    bos = model.config.bos_token_id
    sets = [batches(tok, texts(f"{text}/{s}.jsonl"), L, n, bos, single=single) for s, n in (("train", calib), ("valid", nvalid), ("test", ntest))]
    return model, sets
