#!/usr/bin/env python3
"""The outside witness of optimizers: what PyTorch's do to a matrix and a bias over five steps of given gradients, in f64.

usage: optimizers.py         (needs torch, numpy, safetensors)

Writes `fixtures/optimizers.safetensors` and `fixtures/optimizers.json` (case -> the `.mdl` expression). Tensors of case C: `C/w` and `C/b`,
the first values (`w: [a -> b]` has an arrow, `b: [b]` none); `C/g.w`, `C/g.b`, gradients `[n, …]`; `C/next.w`, `C/next.b`, the weights after
each step. Torch has no lion; it is computed here from the paper's formulas.
"""
import json
import pathlib

import numpy as np
import torch
from safetensors.numpy import save_file

OUT = pathlib.Path(__file__).resolve().parent.parent / "fixtures"
STEPS, SHAPE = 5, (3, 4)


class Lion(torch.optim.Optimizer):
    def __init__(self, groups, lr, betas):
        super().__init__(groups, dict(lr=lr, betas=betas, weight_decay=0.0))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            fast, slow = group["betas"]
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                update = torch.sign(m.lerp(p.grad, 1 - fast))
                p.sub_(group["lr"] * (update + group["weight_decay"] * p))
                m.lerp_(p.grad, 1 - slow)


def sgd(nesterov):
    return lambda groups: torch.optim.SGD([dict(g, weight_decay=0.0) for g in groups], lr=0.05, momentum=0.9, nesterov=nesterov)


MADE = {
    "adamw(lr: 0.01, b1: 0.9, b2: 0.95, eps: 1e-8, decay: 0.1)": lambda g: torch.optim.AdamW(g, lr=0.01, betas=(0.9, 0.95), eps=1e-8),
    "adamw(lr: 0.01, b1: 0.8, b2: 0.999, eps: 1e-3, decay: 0.1)": lambda g: torch.optim.AdamW(g, lr=0.01, betas=(0.8, 0.999), eps=1e-3),
    "sgd(lr: 0.05)": lambda g: torch.optim.SGD([dict(x, weight_decay=0.0) for x in g], lr=0.05),
    "sgd(lr: 0.05, momentum: 0.9)": sgd(False),
    "sgd(lr: 0.05, momentum: 0.9, nesterov: true)": sgd(True),
    "lion(lr: 0.01, b1: 0.9, b2: 0.99, decay: 0.1)": lambda g: Lion(g, 0.01, (0.9, 0.99)),
}


def main():
    rng = np.random.default_rng(11)
    cases, tensors = {}, {}
    for idx, (text, make) in enumerate(MADE.items()):
        name = f"{text.split('(')[0]}_{idx}"
        w = torch.tensor(rng.standard_normal(SHAPE), requires_grad=True)
        b = torch.tensor(rng.standard_normal(SHAPE[1]), requires_grad=True)
        gw, gb = rng.standard_normal((STEPS, *SHAPE)), rng.standard_normal((STEPS, SHAPE[1]))
        tensors |= {f"{name}/w": w.detach().numpy().copy(), f"{name}/b": b.detach().numpy().copy(), f"{name}/g.w": gw, f"{name}/g.b": gb}
        optimizer = make([dict(params=[w], weight_decay=0.1), dict(params=[b], weight_decay=0.0)])
        after = {"w": [], "b": []}
        for n in range(STEPS):
            w.grad, b.grad = torch.tensor(gw[n]), torch.tensor(gb[n])
            optimizer.step()
            after["w"].append(w.detach().numpy().copy())
            after["b"].append(b.detach().numpy().copy())
        tensors |= {f"{name}/next.{key}": np.stack(values) for key, values in after.items()}
        cases[name] = text
    save_file(tensors, OUT / "optimizers.safetensors")
    (OUT / "optimizers.safetensors").chmod(0o644)
    (OUT / "optimizers.json").write_text(json.dumps(cases, indent=1) + "\n")
    print(f"{len(cases)} cases")


if __name__ == "__main__":
    main()
