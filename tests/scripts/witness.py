#!/usr/bin/env python3
"""The outside witness of whole runs: PyTorch trains a tiny Gpt and a tiny Llama, and writes down what it saw.

usage: witness.py            (needs torch, numpy, safetensors)

Writes, beside the tests, `fixtures/{gpt,llama}.safetensors` (initial weights under their `.mdl` paths, stacked along `layer`, and the
100 batches) and `fixtures/{gpt,llama}.json` (hyper-parameters, the loss and the gradient norm of every step, before clipping).
The models are written with torch's own layers, optimizer and clipping, so nothing here shares code or formulas with stdlib/.
"""
import json
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

OUT = pathlib.Path(__file__).resolve().parent.parent / "fixtures"
VOCAB, CONTEXT, WIDTH, HEADS, LAYERS, BATCH, STEPS, HIDDEN = 37, 16, 24, 3, 2, 4, 100, 40
KEY = WIDTH // HEADS
HYPER = dict(steps=STEPS, peak=3e-3, floor=3e-4, warmup=10, b1=0.9, b2=0.95, eps=1e-8, decay=0.1, clip=1.0)


def draw(rng, *shape, std=0.05, mean=0.0):
    return (mean + std * rng.standard_normal(shape)).astype(np.float32)


def gpt_weights(rng):
    """Biases and gains are drawn too, so that a swapped or forgotten one shows."""
    w = {"tokens.w": draw(rng, VOCAB, WIDTH), "positions.w": draw(rng, CONTEXT, WIDTH)}
    for name in ("norm1", "norm2"):
        w[f"blocks.{name}.gain"] = draw(rng, LAYERS, WIDTH, mean=1.0)
        w[f"blocks.{name}.bias"] = draw(rng, LAYERS, WIDTH)
    w["blocks.attn.q.w"] = draw(rng, LAYERS, WIDTH, HEADS, 1, KEY, std=0.2)
    w["blocks.attn.q.b"] = draw(rng, LAYERS, HEADS, 1, KEY)
    for name in "kv":
        w[f"blocks.attn.{name}.w"] = draw(rng, LAYERS, WIDTH, HEADS, KEY, std=0.2)
        w[f"blocks.attn.{name}.b"] = draw(rng, LAYERS, HEADS, KEY)
    w["blocks.attn.o.w"] = draw(rng, LAYERS, HEADS, 1, KEY, WIDTH, std=0.2)
    w["blocks.attn.o.b"] = draw(rng, LAYERS, WIDTH)
    w["blocks.mlp.up.w"] = draw(rng, LAYERS, WIDTH, 4 * WIDTH, std=0.2)
    w["blocks.mlp.up.b"] = draw(rng, LAYERS, 4 * WIDTH)
    w["blocks.mlp.down.w"] = draw(rng, LAYERS, 4 * WIDTH, WIDTH, std=0.1)
    w["blocks.mlp.down.b"] = draw(rng, LAYERS, WIDTH)
    w["norm.gain"] = draw(rng, WIDTH, mean=1.0)
    w["norm.bias"] = draw(rng, WIDTH)
    return w


def gpt_logits(w, ids):
    batch, t = ids.shape
    x = F.embedding(ids, w["tokens.w"]) + w["positions.w"][:t]
    for i in range(LAYERS):
        p = {name[7:]: value[i] for name, value in w.items() if name.startswith("blocks.")}
        y = F.layer_norm(x, (WIDTH,), p["norm1.gain"], p["norm1.bias"], 1e-5)

        def heads(name):
            z = F.linear(y, p[f"attn.{name}.w"].reshape(WIDTH, WIDTH).T, p[f"attn.{name}.b"].reshape(WIDTH))
            return z.view(batch, t, HEADS, KEY).transpose(1, 2)

        a = F.scaled_dot_product_attention(heads("q"), heads("k"), heads("v"), is_causal=True)
        a = a.transpose(1, 2).reshape(batch, t, WIDTH)
        x = x + F.linear(a, p["attn.o.w"].reshape(WIDTH, WIDTH).T, p["attn.o.b"])
        y = F.layer_norm(x, (WIDTH,), p["norm2.gain"], p["norm2.bias"], 1e-5)
        h = F.gelu(F.linear(y, p["mlp.up.w"].T, p["mlp.up.b"]), approximate="tanh")
        x = x + F.linear(h, p["mlp.down.w"].T, p["mlp.down.b"])
    return F.linear(F.layer_norm(x, (WIDTH,), w["norm.gain"], w["norm.bias"], 1e-5), w["tokens.w"])


def llama_weights(rng):
    w = {"tokens.w": draw(rng, VOCAB, WIDTH, std=0.3)}
    for name in ("norm1", "norm2"):
        w[f"blocks.{name}.gain"] = draw(rng, LAYERS, WIDTH, mean=1.0)
    w["blocks.attn.q.w"] = draw(rng, LAYERS, WIDTH, 1, HEADS, KEY, std=0.2)
    w["blocks.attn.k.w"] = draw(rng, LAYERS, WIDTH, 1, KEY, std=0.2)
    w["blocks.attn.v.w"] = draw(rng, LAYERS, WIDTH, 1, KEY, std=0.2)
    w["blocks.attn.o.w"] = draw(rng, LAYERS, 1, HEADS, KEY, WIDTH, std=0.2)
    w["blocks.mlp.gate.w"] = draw(rng, LAYERS, WIDTH, HIDDEN, std=0.2)
    w["blocks.mlp.up.w"] = draw(rng, LAYERS, WIDTH, HIDDEN, std=0.2)
    w["blocks.mlp.down.w"] = draw(rng, LAYERS, HIDDEN, WIDTH, std=0.2)
    w["norm.gain"] = draw(rng, WIDTH, mean=1.0)
    w["head.w"] = draw(rng, WIDTH, VOCAB, std=0.1)
    return w


def rotate(x):
    """Rotary positions on [batch, head, t, key] through complex numbers: component i pairs with i + key/2, base 10,000."""
    t, key = x.shape[-2:]
    inverse = 10_000.0 ** (-torch.arange(key // 2, dtype=torch.float64) / (key // 2))
    angle = torch.outer(torch.arange(t, dtype=torch.float64), inverse)
    turn = torch.polar(torch.ones_like(angle), angle).to(torch.complex64 if x.dtype == torch.float32 else torch.complex128)
    z = torch.complex(x[..., : key // 2], x[..., key // 2:]) * turn
    return torch.cat((z.real, z.imag), -1)


def llama_logits(w, ids):
    batch, t = ids.shape
    x = F.embedding(ids, w["tokens.w"])
    for i in range(LAYERS):
        p = {name[7:]: value[i] for name, value in w.items() if name.startswith("blocks.")}
        y = F.rms_norm(x, (WIDTH,), p["norm1.gain"], 1e-5)
        q = (y @ p["attn.q.w"].reshape(WIDTH, WIDTH)).view(batch, t, HEADS, KEY).transpose(1, 2)
        k = (y @ p["attn.k.w"].reshape(WIDTH, KEY)).view(batch, t, 1, KEY).transpose(1, 2)
        v = (y @ p["attn.v.w"].reshape(WIDTH, KEY)).view(batch, t, 1, KEY).transpose(1, 2)
        a = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True, enable_gqa=True)
        x = x + a.transpose(1, 2).reshape(batch, t, WIDTH) @ p["attn.o.w"].reshape(WIDTH, WIDTH)
        y = F.rms_norm(x, (WIDTH,), p["norm2.gain"], 1e-5)
        x = x + (F.silu(y @ p["mlp.gate.w"]) * (y @ p["mlp.up.w"])) @ p["mlp.down.w"]
    return F.rms_norm(x, (WIDTH,), w["norm.gain"], 1e-5) @ w["head.w"]


def batches(rng):
    """Rows of a noisy rule (next = 5 · token + 3), so that there is something to learn."""
    rows = np.zeros((STEPS, BATCH, CONTEXT + 1), np.int32)
    rows[..., 0] = rng.integers(0, VOCAB, (STEPS, BATCH))
    for t in range(CONTEXT):
        chance = rng.integers(0, VOCAB, (STEPS, BATCH))
        rows[..., t + 1] = np.where(rng.random((STEPS, BATCH)) < 0.2, chance, (5 * rows[..., t] + 3) % VOCAB)
    return rows


def rate(n):
    """The learning rate of step n, counted from 1: a warm-up along a line, then half a cosine."""
    h = HYPER
    if n < h["warmup"]:
        return h["peak"] * n / h["warmup"]
    done = (n - h["warmup"]) / (h["steps"] - h["warmup"])
    return h["floor"] + (h["peak"] - h["floor"]) * 0.5 * (1 + math.cos(math.pi * done))


def train(initial, logits, rows, dtype):
    w = {name: torch.tensor(value, dtype=dtype, requires_grad=True) for name, value in initial.items()}
    last = lambda name: name.rsplit(".", 1)[1]
    maps = [value for name, value in w.items() if last(name) == "w"]
    rest = [value for name, value in w.items() if last(name) != "w"]
    groups = [dict(params=maps, weight_decay=HYPER["decay"]), dict(params=rest, weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(HYPER["b1"], HYPER["b2"]), eps=HYPER["eps"])
    losses, norms = [], []
    for n in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = rate(n)
        ids = torch.tensor(rows[n - 1], dtype=torch.long)
        loss = F.cross_entropy(logits(w, ids[:, :-1]).reshape(-1, VOCAB), ids[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(w.values(), HYPER["clip"])))
        losses.append(float(loss.detach()))
        optimizer.step()
    return losses, norms


def record(name, weights, logits, shape):
    rng = np.random.default_rng({"gpt": 1, "llama": 2}[name])
    initial, rows = weights(rng), batches(rng)
    losses, norms = train(initial, logits, rows, torch.float32)
    exact, exact_norms = train(initial, logits, rows, torch.float64)
    drift = max(abs(a - b) / b for a, b in zip(losses + norms, exact + exact_norms))
    print(f"{name}: loss {losses[0]:.4f} -> {losses[-1]:.4f}, norm {norms[0]:.3f} -> {norms[-1]:.3f}, f32 against f64 {drift:.1e}")
    tensors = {**initial, "batch.ids": np.ascontiguousarray(rows[..., :-1]), "batch.next": np.ascontiguousarray(rows[..., 1:])}
    save_file(tensors, OUT / f"{name}.safetensors")
    note = dict(model=name, shape=shape, optimizer=HYPER, torch=torch.__version__, losses=losses, grad_norms=norms)
    (OUT / f"{name}.json").write_text(json.dumps(note, indent=1) + "\n")


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    common = dict(vocab=VOCAB, context=CONTEXT, width=WIDTH, heads=HEADS, layers=LAYERS, batch=BATCH)
    record("gpt", gpt_weights, gpt_logits, common)
    record("llama", llama_weights, llama_logits, {**common, "kv_heads": 1, "hidden": HIDDEN})
