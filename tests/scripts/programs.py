#!/usr/bin/env python3
"""The outside witness of the design's hard programs: what PyTorch and plain loops make of them, forward and backward, in f64.

usage: programs.py           (needs torch)

Writes `fixtures/programs.json`. A case holds the `program` (a file of `lang/tests/golden/check`, whose functions and layers it uses), the `text`
that comes with it, what is called (`callee`) on which `inputs`, and of each result the products with three vectors (`dots`); of
the sum of the first products, the derivative by each weight, multiplied with one vector (`slopes`). Weights, vectors and inputs without data are
made by `fill`, a function of a name and a place, so that nothing large is recorded; so are the numbers that a program draws.
"""
import json
import math
import pathlib

import torch
import torch.nn.functional as F

OUT = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "programs.json"
CASES = {}
INF = float("inf")


def fill(name, count, scale=1.0):
    """Numbers in [-scale/2, scale/2), by name and place."""
    phase = sum(name.encode()) % 97
    values = [math.sin((i + 1) * 12.9898 + phase * 78.233) * 43758.5453 for i in range(count)]
    return torch.tensor([scale * (v - math.floor(v) - 0.5) for v in values], dtype=torch.float64)


class Model:
    """Weights by path, made on first use; of a stack, one copy."""

    def __init__(self, root, prefix="", made=None, copy=None):
        self.root, self.prefix, self.made, self.copy = root, prefix, {} if made is None else made, copy

    def __call__(self, path, *shape, scale=0.8):
        full = f"{self.root}:{self.prefix}{path}"
        if full not in self.made:
            shape = shape if self.copy is None else (self.copy[1], *shape)
            self.made[full] = fill(full, math.prod(shape), scale).reshape(shape).requires_grad_(True)
        return self.made[full] if self.copy is None else self.made[full][self.copy[0]]

    def at(self, prefix, copy=None):
        return Model(self.root, f"{self.prefix}{prefix}.", self.made, copy or self.copy)

    def copies(self, prefix, n):
        return [self.at(prefix, (i, n)) for i in range(n)]

    def lin(self, path, x, *out, n=1, bias=True):
        w = self(f"{path}.w", *x.shape[-n:], *out)
        y = torch.tensordot(x, w, n)
        return y + self(f"{path}.b", *out) if bias else y

    def rms(self, path, x, eps=1e-6, n=1):
        over = tuple(range(-n, 0))
        return x * torch.rsqrt((x * x).mean(over, keepdim=True) + eps) * self(f"{path}.gain", *x.shape[-n:])

    def norm(self, path, x):
        return F.layer_norm(x, x.shape[-1:], self(f"{path}.gain", x.shape[-1]), self(f"{path}.bias", x.shape[-1]), 1e-5)


def gelu(x):
    return F.gelu(x, approximate="tanh")


def case(name, program, text, callee, inputs, results, models, training=False, losses=None):
    """`inputs`: name -> (axes, tensor); `results`: name -> (axes or None for those of the weight of that path, tensor)."""
    total = 0.0
    recorded = {}
    for key, (axes, value) in {**results, **{k: ([], v) for k, v in (losses or {}).items()}}.items():
        value = value.double()
        dots = [(value.reshape(-1) * fill(f"dot {key} {k}", value.numel())).sum() for k in range(3)]
        total = total + dots[0]
        recorded[key] = dict(axes=axes, dots=[float(torch.as_tensor(dot).detach()) for dot in dots])
    made = {k: v for model in models for k, v in model.made.items()}
    if isinstance(total, torch.Tensor) and total.requires_grad:
        grads = torch.autograd.grad(total, list(made.values()), allow_unused=True)
    else:
        grads = [None] * len(made)
    slopes = {k: 0.0 if g is None else float((g.reshape(-1) * fill(f"slope {k}", g.numel())).sum()) for k, g in zip(made, grads)}
    shown = {}
    for key, (axes, value) in inputs.items():
        kind = "bool" if value.dtype == torch.bool else "f32" if value.dtype.is_floating_point else "i32"
        shown[key] = dict(axes=axes, shape=list(value.shape), dtype=kind)
        if kind != "f32":
            shown[key]["data"] = [int(v) for v in value.reshape(-1)]
    CASES[name] = dict(program=program, text=text, callee=callee, training=training, inputs=shown, results=recorded, slopes=slopes)


def floats(name, axes, *shape, scale=2.0):
    return axes, fill(f"in {name}", math.prod(shape), scale).reshape(shape)


def draw(k, *shape):
    """The draws of the program's `k`-th call of `uniform`: its axes in the order of their names."""
    return fill(f"draw {k}", math.prod(shape)).reshape(shape) + 0.5


def normal(k, *shape):
    """As `normal` makes them of its two draws (Box and Muller)."""
    return torch.sqrt(-2 * torch.log(1 - draw(k, *shape))) * torch.cos(2 * math.pi * draw(k + 1, *shape))


def ids(*shape, below=11, by=7, plus=3):
    return torch.tensor([(i * by + plus) % below for i in range(math.prod(shape))]).reshape(shape)


def turn(x, base=10_000.0, scale=lambda f: f, position=None, at=1):
    """Rotary positions: `at` is the place of the positions, the last axis holds the pairs as two halves."""
    half = x.shape[-1] // 2
    freq = scale(torch.tensor([base ** (-i / half) for i in range(half)], dtype=torch.float64))
    position = torch.arange(x.shape[at]) if position is None else position
    angle = position.double().reshape([-1 if k == at else 1 for k in range(x.ndim - 1)] + [1]) * freq
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()), -1)


def masked(score, seen):
    return torch.where(seen, score, torch.tensor(-INF, dtype=torch.float64)).softmax(-1)


# ---------- p1

def llama3(f):
    turns = f * 8192 / (2 * math.pi)
    keep = ((turns - 1.0) / (4.0 - 1.0)).clamp(0, 1)
    return f * (keep + (1 - keep) / 8.0)


def llama():
    m = Model("m")
    x, doc = ids(2, 6), torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 2]])
    seen = (torch.arange(6)[:, None] >= torch.arange(6)[None]) & (doc[:, :, None] == doc[:, None, :])
    h = m("tokens.w", 11, 16)[x]
    for b in m.copies("blocks", 3):
        y = b.rms("norm1", h, 1e-5)
        q = turn(b.lin("attn.q", y, 2, 2, 4, bias=False), 500_000.0, llama3)
        k = turn(b.lin("attn.k", y, 2, 4, bias=False), 500_000.0, llama3)
        v = b.lin("attn.v", y, 2, 4, bias=False)
        p = masked(torch.einsum("btghk,bsgk->bghts", q, k) / 2.0, seen[:, None, None])
        h = h + b.lin("attn.o", torch.einsum("bghts,bsgk->btghk", p, v), 16, n=3, bias=False)
        y = b.rms("norm2", h, 1e-5)
        y = F.silu(b.lin("mlp.gate", y, 20, bias=False)) * b.lin("mlp.up", y, 20, bias=False)
        h = h + b.lin("mlp.down", y, 16, bias=False)
    y = m.lin("head", m.rms("norm", h, 1e-5), 11, bias=False)
    case("llama", 1, "axis t = 6\nmodel m = Llama[vocab: 11, width: 16, hidden: 20](4, 2, 3, scale: llama3())", "m",
         dict(ids=(["batch", "t"], x), document=(["batch", "t"], doc)), dict(y=(["batch", "t", "vocab"], y)), [m])


def mla():
    m = Model("m")
    axes, x = floats("x", ["batch", "t", "width"], 2, 6, 16)
    q = m.rms("norm_q", m.lin("down_q", x, 24, bias=False))
    c = m.rms("norm", m.lin("down", x, 16, bias=False))
    r = turn(m.lin("turn", x, 4, bias=False))
    score = torch.einsum("bthk,bshk->bhts", m.lin("up_q", q, 4, 8, bias=False), m.lin("up_k", c, 4, 8, bias=False))
    score = score + torch.einsum("bthk,bsk->bhts", turn(m.lin("turn_q", q, 4, 4, bias=False)), r)
    p = masked(score / math.sqrt(12), torch.ones(6, 6).tril().bool())
    y = m.lin("o", torch.einsum("bhts,bshv->bthv", p, m.lin("up_v", c, 4, 8, bias=False)), 16, n=2, bias=False)
    case("latent attention", 1, "model m = LatentAttention[width: 16, head: 4]()", "m", dict(x=(axes, x)),
         dict(y=(["batch", "t", "width"], y)), [m])


def moe():
    for capacity in ("none", "1.25"):
        m = Model("m")
        axes, x = floats("x", ["batch", "t", "width"], 2, 6, 16)
        p = m.lin("router", x, 4, bias=False).softmax(-1)
        gate, up = m("experts.gate.w", 4, 16, 8), m("experts.up.w", 4, 16, 8)
        down = m("experts.down.w", 4, 8, 16)
        rows, hits = [], torch.zeros(2, 6, 4, dtype=torch.float64)
        for b in range(2):
            used, row = [0] * 4, []
            for t in range(6):
                best = sorted(range(4), key=lambda e: -p[b, t, e].item())[:2]
                total = sum(p[b, t, e] for e in best)
                y = 0.0
                for e in best:
                    hits[b, t, e] = 1.0
                    used[e] += 1
                    if capacity == "none" or used[e] <= 1.25 * 6 * 2 / 4:
                        y = y + p[b, t, e] / total * ((F.silu(x[b, t] @ gate[e]) * (x[b, t] @ up[e])) @ down[e])
                row.append(y if isinstance(y, torch.Tensor) else torch.zeros(16, dtype=torch.float64))
            rows.append(torch.stack(row))
        balance = 0.01 * 4 * (hits.mean((0, 1)) * p.mean((0, 1))).sum()
        text = f"axis width = 16, hidden = 8, expert = 4\nmodel m = Moe[width, hidden, expert](capacity: {capacity})"
        case(f"mixture, capacity {capacity}", 1, text, "m", dict(x=(axes, x)), dict(y=(["batch", "t", "width"], torch.stack(rows))), [m], True,
             {"loss balance": balance})


def bucket(d, both):
    half = 16 if both else 32
    n = abs(d) if both else max(-d, 0)
    exact = half // 2
    far = exact + int(math.log(max(n, 1) / exact) / math.log(128 / exact) * (half - exact))
    return (n if n < exact else min(far, half - 1)) + (half if both and d > 0 else 0)


def t5():
    m = Model("m")
    source, x = ids(2, 5), ids(2, 6, by=5)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    near, back = m("near.w", 32, 2), m("back.w", 32, 2)

    def attend(w, x, memory, bias):
        q, k, v = (w.lin(n, y, 2, 8, bias=False) for n, y in (("q", x), ("k", memory), ("v", memory)))
        p = (torch.einsum("bthk,bshk->bhts", q, k) + bias).softmax(-1)
        return w.lin("o", torch.einsum("bhts,bshk->bthk", p, v), 16, n=2, bias=False)

    def mlp(w, x):
        return w.lin("down", gelu(w.lin("up", x, 24)), 16)

    place = torch.tensor([[bucket(s2 - s, True) for s2 in range(5)] for s in range(5)])
    hole = torch.tensor(-INF, dtype=torch.float64)
    bias = torch.where(mask[:, None, None, :], near[place].permute(2, 0, 1)[None], hole)
    h = m("tokens.w", 11, 16)[source]
    for b in m.copies("encoder", 2):
        y = b.rms("norm1", h)
        h = h + attend(b.at("attn"), y, y, bias)
        h = h + mlp(b.at("mlp"), b.rms("norm2", h))
    memory = m.rms("norm1", h)
    place = torch.tensor([[bucket(t2 - t, False) for t2 in range(6)] for t in range(6)])
    bias = torch.where(torch.ones(6, 6).tril().bool(), back[place].permute(2, 0, 1), hole)[None]
    hide = torch.where(mask[:, None, None, :], torch.tensor(0.0, dtype=torch.float64), hole)
    h = m("tokens.w", 11, 16)[x]
    for b in m.copies("decoder", 2):
        y = b.rms("norm1", h)
        h = h + attend(b.at("attn"), y, y, bias)
        h = h + attend(b.at("cross"), b.rms("norm2", h), memory, hide)
        h = h + mlp(b.at("mlp"), b.rms("norm3", h))
    y = m.lin("head", m.rms("norm2", h), 11, bias=False)
    case("t5", 1, "model m = T5[vocab: 11, width: 16, head: 2, key: 8, hidden: 24](layers: 2)", "m",
         dict(source=(["batch", "s"], source), ids=(["batch", "t"], x), mask=(["batch", "s"], mask)),
         dict(y=(["batch", "t", "vocab"], y)), [m])


# ---------- p2

def bert_block(b, x, seen):
    q, k, v = (b.lin(f"attn.{n}", x, 2, 8) for n in "qkv")
    p = masked(torch.einsum("bthk,bshk->bhts", q, k) / math.sqrt(8), seen)
    x = b.norm("norm1", x + b.lin("attn.o", torch.einsum("bhts,bshk->bthk", p, v), 16, n=2))
    return b.norm("norm2", x + b.lin("mlp.down", gelu(b.lin("mlp.up", x, 64)), 16))


def bert_model(m, x, segment, mask):
    words = m("words.w", 11, 16)
    h = m.norm("norm", words[x] + m("places.w", 6, 16) + m("kinds.w", 2, 16)[segment])
    for b in m.copies("blocks", 2):
        h = bert_block(b, h, mask[:, None, None, :])
    y = m.norm("after", gelu(m.lin("turn", h, 16))) @ words.T
    return y, m.lin("next", torch.tanh(m.lin("pool", h[:, 0], 16)), 2)


def bert():
    x, segment = ids(2, 6), torch.tensor([[0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]).bool()
    m = Model("m")
    y, z = bert_model(m, x, segment, mask)
    case("bert", 2, "axis t = 6\nmodel m = Bert[vocab: 11, context: 6, width: 16](heads: 2, layers: 2)", "m",
         dict(ids=(["batch", "t"], x), segment=(["batch", "t"], segment), mask=(["batch", "t"], mask)),
         {"y.0": (["batch", "t", "vocab"], y), "y.1": (["batch", "answer"], z)}, [m])


def masked_words():
    x, segment = ids(8, 6), (torch.arange(6) > 2).long().expand(8, 6)
    mask, follows = torch.arange(6) < torch.tensor([6, 6, 5, 4, 6, 3, 6, 5])[:, None], torch.arange(8) % 2
    m = Model("m")
    pick, dice, other = (draw(0, 8, 6) < 0.5) & mask, draw(1, 8, 6), (draw(2, 8, 6) * 11).long()
    kinds = [pick & (dice < 0.8), pick & (dice >= 0.8) & (dice < 0.9), pick & (dice >= 0.9)]
    assert all(bool(kind.any()) for kind in kinds), "a word is hidden, one is another, one stays"
    y, z = bert_model(m, torch.where(kinds[0], torch.tensor(10), torch.where(kinds[1], other, x)), segment, mask)
    mlm = mean(F.cross_entropy(y.transpose(1, 2), x, reduction="none"), pick)
    nsp = F.cross_entropy(z, follows)
    batch = {f"batch.{k}": (["batch", "t"], v) for k, v in dict(ids=x, segment=segment, mask=mask).items()}
    case("bert, masked", 2, """model m = Bert[vocab: 11, context: 6, width: 16](heads: 2, layers: 2)
fn f(model, batch) = masked(10, 50%)(model, batch)""", "f", {**batch, "batch.follows": (["batch"], follows)},
         {"y.loss": ([], mlm + nsp), "y.mlm": ([], mlm), "y.nsp": ([], nsp)}, [m])


def resnet():
    for training in (True, False):
        m = Model("m")
        axes, x = floats("x", ["batch", "row", "column", "channel"], 2, 32, 32, 3)

        def conv(w, path, x, to, taps, stride=1):
            kernel = w(f"{path}.w", taps, taps, x.shape[1], to).permute(3, 2, 0, 1)
            return F.conv2d(x, kernel, stride=stride, padding=taps // 2)

        def norm(w, path, x):
            c = x.shape[1]
            return F.batch_norm(x, torch.zeros(c, dtype=torch.float64), torch.ones(c, dtype=torch.float64), w(f"{path}.gain", c), w(f"{path}.bias", c), training,
                                0.1, 1e-5)

        def bottleneck(w, x, narrow, to, stride):
            y = F.relu(norm(w, "norm1", conv(w, "conv1", x, narrow, 1)))
            y = F.relu(norm(w, "norm2", conv(w, "conv2", y, narrow, 3, stride)))
            y = norm(w, "norm3", conv(w, "conv3", y, to, 1))
            if stride > 1 or x.shape[1] != to:
                x = norm(w, "norm", conv(w, "skip", x, to, 1, stride))
            return F.relu(y + x)

        h = F.relu(norm(m, "norm", conv(m, "conv", x.permute(0, 3, 1, 2), 4, 7, 2)))
        h = F.max_pool2d(h, 3, 2, 1)
        for i in range(4):
            h = bottleneck(m.at(f"body.{i}.first"), h, 4 * 2 ** i, 16 * 2 ** i, 1 if i == 0 else 2)
            for b in m.copies(f"body.{i}.rest", 1):
                h = bottleneck(b, h, 4 * 2 ** i, 16 * 2 ** i, 1)
        y = m.lin("head", h.mean((2, 3)), 10)
        case("resnet, training" if training else "resnet", 2, "model m = ResNet[channel: 3 -> label: 10](depths: [2, 2, 2, 2], base: 4)", "m",
             dict(x=(axes, x)), dict(y=(["batch", "label"], y)), [m], training)


def rotary_block(b, x, heads=2):
    """The block of `std.mdl`: RmsNorm, rotary causal attention, a perceptron with gelu."""
    width = x.shape[-1]
    key = width // heads
    y = b.rms("norm1", x)
    q, k = (turn(b.lin(f"attn.{n}", y, *shape, bias=False)) for n, shape in (("q", (heads, 1, key)), ("k", (heads, key))))
    v = b.lin("attn.v", y, heads, key, bias=False)
    p = masked(torch.einsum("btghk,bsgk->bghts", q, k) / math.sqrt(key), torch.ones(x.shape[1], x.shape[1]).tril().bool())
    x = x + b.lin("attn.o", torch.einsum("bghts,bsgk->btghk", p, v), width, n=3, bias=False)
    return x + b.lin("mlp.down", gelu(b.lin("mlp.up", b.rms("norm2", x), 4 * width)), width)


def clip():
    m = Model("m")
    (axes, image), x = floats("batch.image", ["batch", "row", "column", "channel"], 3, 8, 8, 3), ids(3, 5)
    v = m.at("vision")
    cells = image.reshape(3, 2, 4, 2, 4, 3).permute(0, 1, 3, 2, 4, 5).reshape(3, 4, 4, 4, 3)
    cells = v.lin("embed", cells, 16, n=3)
    h = torch.cat((v("first", 16).expand(3, 1, 16), cells), 1) + v("spot", 5, 16)
    for b in v.copies("blocks", 2):
        h = bert_block(b, h, torch.tensor(True))
    picture = m.lin("from_image", v.norm("norm", h[:, 0]), 12, bias=False)
    w = m.at("words")
    h = w("tokens.w", 11, 16)[x] + w("positions.w", 5, 16)
    for b in w.copies("blocks", 2):
        h = rotary_block(b, h)
    text = m.lin("from_text", h[:, -1], 12, bias=False)
    unit = lambda x: x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-12)
    score = m("log_scale").exp() * unit(picture) @ unit(text).T
    where = torch.arange(3)
    loss = (F.cross_entropy(score, where) + F.cross_entropy(score.T, where)) / 2
    text = "axis batch = 3, embed = 12\nmodel m = Clip[row: 8, column: 8, channel: 3, vocab: 11, context: 5, width: 16, embed: 12]()"
    case("clip", 2, text, "clip", {"batch.image": (axes, image), "batch.ids": (["batch", "t"], x)},
         {"y.loss": ([], loss), "y.accuracy": ([], (score.argmax(1) == where).double().mean())}, [m])


def past(v, w):
    """A causal convolution of each channel by itself."""
    taps = w.shape[0]
    return F.silu(torch.stack([sum(v[:, t + i - taps + 1] * w[i] for i in range(taps) if t + i - taps + 1 >= 0) for t in range(v.shape[1])], 1))


def mamba():
    m = Model("m")
    axes, u = floats("u", ["batch", "t", "width"], 2, 6, 16)
    z, x = m.lin("z", u, 2, 16, bias=False), m.lin("x", u, 2, 16, bias=False)
    b, c = m.lin("b", u, 16, bias=False), m.lin("c", u, 16, bias=False)
    dt = F.softplus(m.lin("step", u, 2))
    x = past(x, m("mix_x", 4, 2, 16))
    b, c = past(b, m("mix_b", 4, 16)), past(c, m("mix_c", 4, 16))
    decay = torch.exp(-m("log_a", 2).exp() * dt)
    h, rows = torch.zeros(2, 2, 16, 16, dtype=torch.float64), []
    for t in range(6):
        h = decay[:, t, :, None, None] * h + torch.einsum("bhk,bs->bhks", dt[:, t, :, None] * x[:, t], b[:, t])
        rows.append(torch.einsum("bhks,bs->bhk", h, c[:, t]))
    y = torch.stack(rows, 1) + m("skip", 2)[:, None] * x
    y = m.lin("o", m.rms("norm", y * F.silu(z), n=2), 16, n=2, bias=False)
    case("mamba", 2, "model m = Mamba2[width: 16](heads: 2)", "m", dict(u=(axes, u)), dict(y=(["batch", "t", "width"], y)), [m])


# ---------- p3

def lstm():
    m = Model("m")
    axes, x = floats("x", ["batch", "t", "from"], 2, 6, 5)

    def run(path, x):
        w, u, b = m(f"{path}.w", 5, 7, 4), m(f"{path}.u", 7, 7, 4), m(f"{path}.b", 7, 4)
        args = [w.permute(2, 1, 0).reshape(28, 5), u.permute(2, 1, 0).reshape(28, 7), b.T.reshape(28), torch.zeros(28, dtype=torch.float64)]
        start = torch.zeros(1, 2, 7, dtype=torch.float64)
        return torch.lstm(x, (start, start), args, True, 1, 0.0, False, False, True)[0]

    y = torch.stack((run("ahead", x), run("back", x.flip(1)).flip(1)), 2)
    case("lstm", 3, "model m = Both[from: 5 -> hidden: 7]()", "m", dict(x=(axes, x)), dict(y=(["batch", "t", "way", "hidden"], y)), [m])


def ctc():
    axes, raw = floats("logp", ["batch", "t", "over"], 2, 9, 5)
    label, frames, length = torch.tensor([[1, 1, 3], [4, 2, 0]]), torch.tensor([9, 7]), torch.tensor([3, 2])
    # PyTorch does not ask whether these are logarithms of probabilities.
    y = F.ctc_loss(raw.permute(1, 0, 2), label, frames, length, reduction="none")
    text = """axis over = 5
fn f(logp: [.., t, over], label: int[.., u], frames: int[..], length: int[..]) -> [..] = ctc[over](logp, label, frames, length)"""
    case("ctc", 3, text, "f", dict(logp=(axes, raw), label=(["batch", "u"], label), frames=(["batch"], frames), length=(["batch"], length)),
         dict(y=(["batch"], y)), [])


def full_attention(w, x, memory, seen):
    """Attention with biases on queries and values."""
    q, k, v = w.lin("q", x, 2, 8), w.lin("k", memory, 2, 8, bias=False), w.lin("v", memory, 2, 8)
    p = masked(torch.einsum("bthk,bshk->bhts", q, k) / math.sqrt(8), seen)
    return w.lin("o", torch.einsum("bhts,bshk->bthk", p, v), 16, n=2)


def whisper():
    m = Model("m")
    (axes, audio), x = floats("audio", ["batch", "s", "mel"], 2, 12, 4), ids(2, 6)

    def conv(path, x, stride):
        w = m(f"{path}.w", 3, x.shape[-1], 16).permute(2, 1, 0)
        return F.conv1d(x.transpose(1, 2), w, m(f"{path}.b", 16), stride, 1).transpose(1, 2)

    h = gelu(conv("conv2", gelu(conv("conv1", audio, 1)), 2))
    angle = torch.arange(6)[:, None] * torch.exp(-math.log(10_000) * torch.arange(8, dtype=torch.float64) / 7)
    h = h + torch.cat((angle.sin(), angle.cos()), 1)
    for b in m.copies("listen", 2):
        h = bert_block(b, h, torch.tensor(True))
    memory = h
    tokens = m("tokens.w", 11, 16)
    h = tokens[x] + m("positions.w", 6, 16)
    for b in m.copies("speak", 2):
        y = b.norm("norm1", h)
        h = h + full_attention(b.at("attn"), y, y, torch.ones(6, 6).tril().bool())
        h = h + full_attention(b.at("cross"), b.norm("norm2", h), memory, torch.tensor(True))
        h = h + b.lin("mlp.down", gelu(b.lin("mlp.up", b.norm("norm3", h), 64)), 16)
    case("whisper", 3, "model m = Whisper[mel: 4, vocab: 11, context: 6, width: 16](heads: 2, layers: 2)", "m",
         dict(audio=(axes, audio), ids=(["batch", "t"], x)), dict(y=(["batch", "t", "vocab"], h @ tokens.T)), [m])


def longformer():
    m = Model("m")
    axes, x = floats("x", ["batch", "t", "width"], 2, 9, 16)
    wide = torch.zeros(2, 9).bool()
    wide[0, 0] = wide[0, 5] = wide[1, 8] = True
    q, k, v, wq, wk, wv = (m.lin(n, x, 2, 8) for n in ("q", "k", "v", "wide_q", "wide_k", "wide_v"))
    far = (torch.arange(9)[:, None] - torch.arange(9)[None]).abs()

    def attend(q, k, v, seen):
        p = masked(torch.einsum("bthk,bshk->bhts", q, k) / math.sqrt(8), seen)
        return torch.einsum("bhts,bshk->bthk", p, v)

    near = attend(q, k, v, ((far <= 2)[None] | wide[:, None, :])[:, None])
    y = torch.where(wide[:, :, None, None], attend(wq, wk, wv, torch.tensor(True)), near)
    case("longformer", 3, "model m = Longformer[width: 16](heads: 2, window: 2)", "m", dict(x=(axes, x), wide=(["batch", "t"], wide)),
         dict(y=(["batch", "t", "width"], m.lin("o", y, 16, n=2))), [m])


def universal():
    m = Model("m")
    axes, x = floats("x", ["batch", "t", "width"], 2, 6, 16)
    h, y = x, torch.zeros(2, 6, 16, dtype=torch.float64)
    total = n = torch.zeros(2, 6, dtype=torch.float64)
    for step in range(8):
        if bool((total > 0.99).all()):
            break
        p = torch.sigmoid(m.lin("halt", h))
        on = total <= 0.99
        ends = (total + p > 0.99) | torch.tensor(step == 7)
        zero = torch.zeros_like(total)
        w = torch.where(on, torch.where(ends, 1 - total, p), zero)
        h = torch.where(on[..., None], rotary_block(m.at("block"), h), h)
        y, total = y + w[..., None] * h, total + w
        n = n + torch.where(on, torch.where(ends, 1 + w, torch.ones_like(w)), zero)
    case("universal", 3, "model m = Universal[width: 16](heads: 2)", "m", dict(x=(axes, x)), dict(y=(["batch", "t", "width"], y)), [m], True,
         {"loss ponder": 0.001 * n.mean()})


# ---------- p4

def adapters():
    axes, x = floats("x", ["batch", "t", "width"], 2, 6, 16)
    head = "axis width = 16, hidden = 8\n"
    m = Model("m")
    y = m.lin("base", x, 8) + 32.0 / 4 * (x @ m("a", 16, 4) @ m("b", 4, 8))
    case("lora", 4, f"{head}model m = Lora(Linear[width -> hidden](), rank: 4)", "m", dict(x=(axes, x)), dict(y=(["batch", "t", "hidden"], y)), [m])
    m = Model("m")
    w = m("base.w", 16, 8) + 32.0 / 4 * m("a", 16, 4) @ m("b", 4, 8)
    m("base.b", 8)
    y = x @ (w * (m("size_", 8) / w.norm(dim=0)))
    case("dora", 4, f"{head}model m = Dora(Linear[width -> hidden](), rank: 4)", "m", dict(x=(axes, x)), dict(y=(["batch", "t", "hidden"], y)), [m])
    m = Model("m")
    b = m.at("base")
    y = b.lin("down", F.silu(b.lin("gate", x, 8, bias=False)) * b.lin("up", x, 8, bias=False), 16, bias=False)
    y = y + m.lin("up", gelu(m.lin("down", y, 4)), 16)
    text = head + """model m = Houlsby(GatedMlp[width, hidden](), rank: 4)
layer GatedMlp[width, hidden]() {
  gate = Linear[width -> hidden](bias: false)
  up = Linear[width -> hidden](bias: false)
  down = Linear[hidden -> width](bias: false)
  fn call(x: [.., width]) -> [.., width] = down(silu(gate(x)) * up(x))
}"""
    case("houlsby", 4, text, "m", dict(x=(axes, x)), dict(y=(["batch", "t", "width"], y)), [m])


def gpt(m, x, width=16):
    tokens = m("tokens.w", 11, width)
    h = tokens[x] + m("positions.w", 6, width)[: x.shape[1]]
    for b in m.copies("blocks", 2):
        h = rotary_block(b, h)
    return m.norm("norm", h) @ tokens.T


GPT = "model m = Gpt[vocab: 11, context: 6, width: 16](heads: 2, layers: 2)\n"
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]).bool()


def mean(x, where):
    return (x * where).sum() / where.sum()


def objectives():
    texts = {k: dict(ids=ids(2, 6, plus=p), next=ids(2, 6, plus=p + 7)) for k, p in (("chosen", 3), ("rejected", 5))}
    m, r = Model("m"), Model("r")

    def logp(model, text):
        return (gpt(model, text["ids"]).log_softmax(-1).gather(-1, text["next"][..., None])[..., 0] * MASK).sum(1)

    gain = {k: logp(m, text) - logp(r, text).detach() for k, text in texts.items()}
    margin = 0.1 * (gain["chosen"] - gain["rejected"])
    inputs = {}
    for k, text in texts.items():
        inputs |= {f"batch.{k}_{f}": (["batch", "t"], v) for f, v in text.items()}
    inputs["batch.mask"] = (["batch", "t"], MASK)
    text = GPT + """model r = Gpt[vocab: 11, context: 6, width: 16](heads: 2, layers: 2)
fn f(model, batch) = {
  let chosen = (ids: batch.chosen_ids, next: batch.chosen_next, mask: batch.mask)
  let rejected = (ids: batch.rejected_ids, next: batch.rejected_next, mask: batch.mask)
  dpo(0.1, r)(model, (chosen: chosen, rejected: rejected))
}"""
    case("dpo", 4, text, "f", inputs, {"y.loss": ([], -F.logsigmoid(margin).mean()), "y.accuracy": ([], (margin > 0).double().mean())}, [m, r])

    m, r = Model("m"), Model("r")
    x = ids(2, 6)
    p, q = (gpt(r, x, 24).detach() / 2.0).softmax(-1), (gpt(m, x) / 2.0).log_softmax(-1)
    text = GPT + "model r = Gpt[vocab: 11, context: 6, width: 24](heads: 2, layers: 2)\nfn f(model, batch) = distill(r)(model, batch)"
    batch = {"batch.ids": (["batch", "t"], x), "batch.mask": (["batch", "t"], MASK)}
    case("distill", 4, text, "f", batch, dict(y=([], -4.0 * mean((p * q).sum(-1), MASK))), [m, r])

    m, r = Model("m"), Model("r")
    mine, theirs = [], []
    h = m("tokens.w", 11, 16)[x] + m("positions.w", 6, 16)
    for b in m.copies("blocks", 2):
        h = rotary_block(b, h)
        mine.append(h)
    h = r("tokens.w", 11, 24)[x] + r("positions.w", 6, 24)
    for b in r.copies("blocks", 4):
        h = rotary_block(b, h)
        theirs.append(h)
    o = Model("o")
    loss = sum(((o.lin("lift", a, 24) - theirs[2 * i + 1].detach()) ** 2).mean() for i, a in enumerate(mine)) / 2
    text = GPT + """model r = Gpt[vocab: 11, context: 6, width: 24](heads: 2, layers: 4)
model o = Match(m, r)
fn f(model, batch) = o(model, batch)"""
    case("match", 4, text, "f", {"batch.ids": (["batch", "t"], x)}, dict(y=([], loss)), [m, r, o])

    axes = ["batch", "t"]
    (_, reward), (_, value) = floats("reward", axes, 2, 6), floats("value", axes, 2, 6)
    alive = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 0, 1, 1, 1]]).double()
    rows = []
    for b in range(2):
        a, row = 0.0, [0.0] * 6
        for t in reversed(range(6)):
            after = float(value[b, t + 1]) if t < 5 else 0.0
            on = float(alive[b, t])
            a = float(reward[b, t]) + 0.99 * on * after - float(value[b, t]) + 0.99 * 0.95 * on * a
            row[t] = a
        rows.append(row)
    text = "axis t = 6\nfn f(reward: [.., t], value: [.., t], alive: int[.., t]) -> [.., t] = gae[t](reward, value, float(alive))"
    case("gae", 4, text, "f", dict(reward=(axes, reward), value=(axes, value), alive=(axes, alive.long())), dict(y=(axes, torch.tensor(rows))), [])

    m, c = Model("m"), Model("c")
    x, after = ids(2, 6), ids(2, 6, plus=10)
    (_, old), (_, advantage), (_, target) = (floats(f"batch.{n}", axes, 2, 6) for n in ("logp", "advantage", "target"))
    logp = gpt(m, x).log_softmax(-1)
    ratio = (logp.gather(-1, after[..., None])[..., 0] - old).exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    worth = c.lin("score", c("tokens.w", 11, 16)[x])
    spread = -(logp.exp() * logp).sum(-1)
    text = GPT + """layer Critic[vocab, width]() {
  tokens = Embedding[vocab -> width]()
  score = Linear[width -> ]()
  fn call(ids: int[.., t]) -> [.., t] = score(tokens(ids))
}
model c = Critic[vocab: 11, width: 16]()
fn f(model, batch) = ppo()((policy: model, critic: c), batch)"""
    batch = {f"batch.{k}": (axes, v) for k, v in dict(ids=x, next=after, mask=MASK, logp=old, advantage=advantage, target=target).items()}
    case("ppo", 4, text, "f", batch, dict(y=([], mean(0.5 * (worth - target) ** 2 - gain - 0.01 * spread, MASK))), [m, c])


def gradients():
    x, after = ids(2, 6), ids(2, 6, plus=10)
    batch = {"batch.ids": (["batch", "t"], x), "batch.next": (["batch", "t"], after), "batch.mask": (["batch", "t"], MASK)}

    def next_token(model, rows):
        loss = F.cross_entropy(gpt(model, x[rows]).transpose(1, 2), after[rows], reduction="none")
        return mean(loss, MASK[rows])

    def of_rows(m):
        each = []
        for row in range(2):
            loss = next_token(m, slice(row, row + 1))
            each.append(dict(zip(m.made, torch.autograd.grad(loss, list(m.made.values())))))
        return each

    short = lambda name: "y." + name.split(":")[1]
    m = Model("m")
    each = of_rows(m)
    text = "axis batch = 2\n" + GPT
    squares = {short(k): (None, sum(g[k] ** 2 for g in each) / 2) for k in m.made}
    case("fisher", 4, text + "fn f(model, batch) = fisher(next_token)(model, batch)", "f", batch, squares, [])
    clipped = []
    for g in each:
        size = torch.sqrt(sum((v ** 2).sum() for v in g.values()))
        clipped.append({k: v * min(1.0, 0.5 / float(size.detach())) for k, v in g.items()})
    private = {short(k): (None, sum(g[k] for g in clipped) / 2) for k in m.made}
    case("private", 4, text + "fn f(model, batch) = private(0.5, 0.0)(next_token, model, batch)", "f", batch, private, [])
    m, r = Model("m"), Model("r")
    loss = next_token(m, slice(0, 2))
    next_token(r, slice(0, 2))
    for k, w in m.made.items():
        anchor = r.made["r" + k[1:]]
        loss = loss + 0.5 / 2 * (anchor * (w - anchor) ** 2).sum()
    text = GPT + """model r = Gpt[vocab: 11, context: 6, width: 16](heads: 2, layers: 2)
fn f(model, batch) = ewc(next_token, r, weights(r), 0.5)(model, batch)"""
    case("ewc", 4, text, "f", batch, dict(y=([], loss)), [m, r])


def chance():
    m = Model("m")
    axes, x = floats("batch.x", ["batch", "width"], 2, 16)
    noise, time = normal(0, 2, 16), draw(2, 2)[:, None]
    y = m.lin("up", time * x + (1 - time) * noise, 16) + time
    text = """layer Net[width]() {
  up = Linear[width -> width]()
  fn call(x: [.., width], time: [..]) -> [.., width] = up(x) + time
}
model m = Net[width: 16]()"""
    case("flow", 4, text, "flow", {"batch.x": (axes, x)}, dict(y=([], ((y - (x - noise)) ** 2).mean())), [m])

    m, j = Model("m"), Model("j")
    w, b = m("w", 4, 16), m("b", 16)
    fake = normal(0, 2, 4) @ w + b
    w, b = j("w", 16), j("b")
    judge = lambda x: x @ w + b
    maker = -F.logsigmoid(judge(fake)).mean()
    loss = -F.logsigmoid(judge(x)).mean() - F.logsigmoid(-judge(fake.detach())).mean()
    text = """axis z = 4, width = 16
model m = Linear[z -> width]()
model j = Linear[width -> ]()
fn f(model, batch) = gan(4)((maker: model, judge: j), batch)"""
    case("gan", 4, text, "f", {"batch.x": (axes, x)}, {"y.maker": ([], maker), "y.judge": ([], loss)}, [m, j])


# ---------- optimizers: four steps on a weight of two copies, [layer, a, b, c] with the arrow a, b -> c

def newton(u, rounds=5):
    flip = u.shape[0] > u.shape[1]
    x = (u.T if flip else u) / (u.norm() + 1e-7)
    for _ in range(rounds):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if flip else x


def muon(w, g, s, n):
    s["m"] = 0.95 * s.get("m", 0.0) + g
    u = newton((g + 0.95 * s["m"]).reshape(6, 4)).reshape(2, 3, 4) * math.sqrt(max(1, 4 / 6))
    return w - 0.02 * (u + 0.1 * w)


def adafactor(w, g, s, n):
    keep = 1 - n ** -0.8
    sq = (g * g + 1e-30).reshape(6, 4)
    s["r"] = keep * s.get("r", 0.0) + (1 - keep) * sq.mean(1)
    s["c"] = keep * s.get("c", 0.0) + (1 - keep) * sq.mean(0)
    u = g / torch.sqrt(torch.outer(s["r"] / s["r"].mean(), s["c"])).reshape(2, 3, 4)
    return w - 0.01 * u / max(1.0, float((u * u).mean().sqrt()))


def lamb(w, g, s, n):
    s["m"] = 0.9 * s.get("m", 0.0) + 0.1 * g
    s["v"] = 0.999 * s.get("v", 0.0) + 0.001 * g * g
    u = (s["m"] / (1 - 0.9 ** n)) / (torch.sqrt(s["v"] / (1 - 0.999 ** n)) + 1e-6) + 0.01 * w
    return w - 0.001 * w.norm() / u.norm() * u


def averaged(w, g, s, n):
    mean_ = s.get("mean_", w)
    w = lamb(w, g, s, n)
    s["mean_"] = 0.9 * mean_ + 0.1 * w
    return w


def optimizers():
    found = {}
    for text, step in {"muon(decay: 0.1)": muon, "adafactor()": adafactor, "lamb()": lamb, "averaged(lamb(), rate: 0.9)": averaged}.items():
        copies = list(fill("w", 48, 0.8).reshape(2, 2, 3, 4))
        states = [{}, {}]
        for n in range(1, 5):
            g = fill(f"g {n}", 48, 1.0).reshape(2, 2, 3, 4)
            copies = [step(w, g[k], states[k], n) for k, w in enumerate(copies)]
        dots = lambda x: [float((x.reshape(-1) * fill(f"dot {k}", x.numel())).sum()) for k in range(3)]
        found[text] = dict(w=dots(torch.stack(copies)))
        if "mean_" in states[0]:
            found[text]["mean_"] = dots(torch.stack([s["mean_"] for s in states]))
    return found


def main():
    torch.manual_seed(0)
    for make in (llama, mla, moe, t5, bert, masked_words, resnet, clip, mamba, lstm, ctc, whisper, longformer, universal, adapters, objectives, gradients, chance):
        make()
    OUT.write_text(json.dumps(dict(cases=CASES, optimizers=optimizers()), indent=1) + "\n")


if __name__ == "__main__":
    main()
