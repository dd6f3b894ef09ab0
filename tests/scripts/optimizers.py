#!/usr/bin/env python3
"""The outside witness of optimizers: what PyTorch's do to a matrix and a bias over five steps of given gradients, in f64.

usage: optimizers.py         (needs torch, numpy, safetensors)

Writes `fixtures/optimizers.safetensors` and `fixtures/optimizers.json` (case -> the `.mdl` expression). Tensors of case C: `C/w` and `C/b`,
the first values (`w: [a -> b]` has an arrow, `b: [b]` none); `C/g.w`, `C/g.b`, gradients `[n, …]`; `C/next.w`, `C/next.b`, the weights after
each step. Torch has no lion and no LAMB, and computes Muon's polynomial in bf16; these are computed here from the papers' formulas (Muon's
differs from torch's by what bf16 rounds, which is checked).
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


class Lamb(torch.optim.Optimizer):
    """Algorithm 2 of arXiv:1904.00962, the size of a weight as it is."""

    def __init__(self, groups, lr, betas, eps):
        super().__init__(groups, dict(lr=lr, betas=betas, eps=eps, weight_decay=0.0))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                state["n"] = state.get("n", 0) + 1
                m = state.setdefault("m", torch.zeros_like(p))
                v = state.setdefault("v", torch.zeros_like(p))
                m.mul_(b1).add_((1 - b1) * p.grad)
                v.mul_(b2).add_((1 - b2) * p.grad**2)
                r = (m / (1 - b1 ** state["n"])) / ((v / (1 - b2 ** state["n"])).sqrt() + group["eps"])
                u = r + group["weight_decay"] * p
                p.sub_(group["lr"] * p.norm() / u.norm() * u)


class Muon(torch.optim.Optimizer):
    """As https://kellerjordan.github.io/posts/muon has it, in f64; `w` is `[from, to]` here, the transpose of torch's."""

    def __init__(self, groups, lr, momentum, nesterov):
        super().__init__(groups, dict(lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=0.0))

    @staticmethod
    def orthogonal(x, rounds=5):
        x = x / (x.norm() + 1e-7)
        flip = x.shape[0] > x.shape[1]
        x = x.T if flip else x
        for _ in range(rounds):
            a = x @ x.T
            x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
        return x.T if flip else x

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - group["momentum"])
                u = p.grad.lerp(m, group["momentum"]) if group["nesterov"] else m
                if p.dim() < 2:
                    continue
                u = self.orthogonal(u) * max(1, p.shape[1] / p.shape[0]) ** 0.5
                p.sub_(group["lr"] * (u + group["weight_decay"] * p))


def muon_is_torchs():
    """Five steps of torch's on the transpose come to the same, within bf16."""
    rng = np.random.default_rng(5)
    ours = torch.tensor(rng.standard_normal(SHAPE), requires_grad=True)
    theirs = ours.detach().T.clone().requires_grad_(True)
    one, other = Muon([ours], 0.02, 0.95, True), torch.optim.Muon([theirs], lr=0.02, momentum=0.95, weight_decay=0.0)
    for _ in range(STEPS):
        ours.grad = torch.tensor(rng.standard_normal(SHAPE))
        theirs.grad = ours.grad.T.clone()
        one.step(), other.step()
    assert (ours.T - theirs).abs().max() < 0.02 * STEPS * 0.02, (ours.T - theirs).abs().max()


def sgd(nesterov):
    return lambda groups: torch.optim.SGD([dict(g, weight_decay=0.0) for g in groups], lr=0.05, momentum=0.9, nesterov=nesterov)


MADE = {
    "adamw(lr: 0.01, b1: 0.9, b2: 0.95, eps: 1e-8, decay: 0.1)": lambda g: torch.optim.AdamW(g, lr=0.01, betas=(0.9, 0.95), eps=1e-8),
    "adamw(lr: 0.01, b1: 0.8, b2: 0.999, eps: 1e-3, decay: 0.1)": lambda g: torch.optim.AdamW(g, lr=0.01, betas=(0.8, 0.999), eps=1e-3),
    "sgd(lr: 0.05)": lambda g: torch.optim.SGD([dict(x, weight_decay=0.0) for x in g], lr=0.05),
    "sgd(lr: 0.05, momentum: 0.9)": sgd(False),
    "sgd(lr: 0.05, momentum: 0.9, nesterov: true)": sgd(True),
    "lion(lr: 0.01, b1: 0.9, b2: 0.99, decay: 0.1)": lambda g: Lion(g, 0.01, (0.9, 0.99)),
    "adamw8(lr: 0.01, b1: 0.9, b2: 0.95, eps: 1e-8, decay: 0.1)": lambda g: torch.optim.AdamW(g, lr=0.01, betas=(0.9, 0.95), eps=1e-8),
    "lamb(lr: 0.01, b1: 0.9, b2: 0.999, eps: 1e-6, decay: 0.1)": lambda g: Lamb(g, 0.01, (0.9, 0.999), 1e-6),
    "adafactor(lr: 0.05, decay: 0.1, eps: 1e-30)": lambda g: torch.optim.Adafactor(g, lr=0.05, eps=(1e-15, 1e-3)),
    "adafactor(lr: 0.9, fade: 0.7, least: 0.1, most: 1.1, decay: 0.1, eps: 1e-30)": lambda g: torch.optim.Adafactor(g, lr=0.9, beta2_decay=-0.7, eps=(1e-15, 0.1), d=1.1),
    "muon(lr: 0.02, momentum: 0.95, decay: 0.1)": lambda g: Muon(g, 0.02, 0.95, True),
    "muon(lr: 0.02, momentum: 0.9, nesterov: false, decay: 0.1)": lambda g: Muon(g, 0.02, 0.9, False),
}


def main():
    muon_is_torchs()
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
