#!/usr/bin/env python3
"""A training step of PyTorch on the card: the peer of `tests/bench/gpu.sh`. Prints one line of JSON.

usage: gpu_peer.py LAYERS HEADS WIDTH CONTEXT BATCH VOCAB {eager|compile} STEPS

The model of `examples/bench.mdl`: GPT-2 with a tied head, biases, tanh GELU, no dropout; bf16 by autocast, attention by
`scaled_dot_product_attention` (its flash kernel), fused AdamW. Tokens per second are of the median step, the first quarter left out; memory is the
most that the allocator had reserved.
"""
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(c, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Gpt(nn.Module):
    def __init__(self, layers, heads, width, context, vocab):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def forward(self, ids, labels):
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.view(-1, logits.shape[-1]).float(), labels.view(-1))


def main():
    layers, heads, width, context, batch, vocab = map(int, sys.argv[1:7])
    mode, steps = sys.argv[7], int(sys.argv[8])
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    began = time.perf_counter()
    model = Gpt(layers, heads, width, context, vocab).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1, fused=True)
    forward = torch.compile(model) if mode == "compile" else model
    times, first = [], None
    for _ in range(steps):
        ids = torch.randint(vocab, (batch, context + 1), device="cuda")
        torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = forward(ids[:, :-1], ids[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        first = first or time.perf_counter() - began
    seconds = statistics.median(times[len(times) // 4 :])
    peak = torch.cuda.max_memory_reserved() / 2**20
    print(json.dumps(dict(tokens_per_s=batch * context / seconds, step_ms=seconds * 1e3, mib=peak, first_step_s=first, loss=loss.item())))


main()
