#!/usr/bin/env python3
"""The outside witness of single layers: what PyTorch makes of every layer of stdlib/nn, forward and backward, in f64.

usage: layers.py             (needs torch, numpy, safetensors)

Writes `fixtures/layers.safetensors` and `fixtures/layers.json`. A case of the JSON holds `axes` (name -> size), `call` (an `.mdl`
expression of the inputs, and of the layer `it` when there is one), `use` (what of the library it needs besides the prelude), `layer` (how `it` is built, or null), `training` where it is true,
and the axes of each input, weight and result in the order in which the tensors store them. Tensors of case C: `C/in.x`, `C/w.PATH`, `C/out`, `C/seed` (what the
result is multiplied by before it is summed), `C/d.in.x` and `C/d.w.PATH` (the derivatives of that sum).
"""
import json
import pathlib

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.numpy import save_file

OUT = pathlib.Path(__file__).resolve().parent.parent / "fixtures"
CASES, TENSORS = {}, {}
RNG = np.random.default_rng(7)


def draw(*shape, std=0.5):
    return torch.tensor(RNG.standard_normal(shape) * std, dtype=torch.float64)


def store(name, value):
    value = value.detach().numpy()
    TENSORS[name] = np.ascontiguousarray(value).reshape(value.shape)


def case(name, axes, call, inputs, out_axes, run, layer=None, weights=None, use=None):
    """`inputs` and `weights`: name -> (axes, tensor). `run` gets tensors by name, as keyword arguments in, w."""
    weights = weights or {}
    leaves = {**{f"in.{k}": v[1] for k, v in inputs.items()}, **{f"w.{k}": v[1] for k, v in weights.items()}}
    for value in leaves.values():
        if value.dtype.is_floating_point:
            value.requires_grad_(True)
    out = run({k: v[1] for k, v in inputs.items()}, {k: v[1] for k, v in weights.items()})
    seed = draw(*out.shape, std=1.0)
    (out * seed).sum().backward()
    for key, value in leaves.items():
        store(f"{name}/{key}", value if value.dtype.is_floating_point else value.to(torch.int32))
        if value.dtype.is_floating_point:
            store(f"{name}/d.{key}", torch.zeros_like(value) if value.grad is None else value.grad)
    store(f"{name}/out", out)
    store(f"{name}/seed", seed)
    CASES[name] = (dict(use=use) if use else {}) | dict(axes=axes, layer=layer, call=call, inputs={k: v[0] for k, v in inputs.items()},
                       weights={k: v[0] for k, v in weights.items()}, out=out_axes)


def pointwise():
    x = dict(a=3, b=5)
    for name, function in dict(relu=F.relu, sigmoid=torch.sigmoid, silu=F.silu, softplus=F.softplus, log_sigmoid=F.logsigmoid,
                               gelu=lambda v: F.gelu(v, approximate="tanh"), gelu_erf=F.gelu, tanh=torch.tanh).items():
        case(name, x, f"{name}(x)", dict(x=(["a", "b"], draw(3, 5, std=2.0))), ["a", "b"], lambda i, w, f=function: f(i["x"]))


def rows():
    axes = dict(a=3, b=5)
    hole = draw(3, 5, std=2.0)
    hole[1, 2:] = -torch.inf
    for name in ("softmax", "log_softmax"):
        case(name, axes, f"{name}[b](x)", dict(x=(["a", "b"], draw(3, 5, std=2.0))), ["a", "b"], lambda i, w, n=name: getattr(F, n)(i["x"], -1))
    case("softmax_masked", axes, "softmax[b](x)", dict(x=(["a", "b"], hole)), ["a", "b"], lambda i, w: F.softmax(i["x"], -1))
    case("logsumexp", axes, "logsumexp[b](x)", dict(x=(["a", "b"], draw(3, 5, std=2.0))), ["a"], lambda i, w: torch.logsumexp(i["x"], -1))
    label = torch.tensor([4, 0, 2])
    for name, smooth in (("cross_entropy", 0.0), ("cross_entropy_smooth", 0.1)):
        case(name, axes, f"cross_entropy[b](x, label, smooth: {smooth})", dict(x=(["a", "b"], draw(3, 5)), label=(["a"], label)), ["a"],
             lambda i, w, s=smooth: F.cross_entropy(i["x"], i["label"], reduction="none", label_smoothing=s))


def norms():
    axes = dict(a=3, b=4, c=5)
    gain, bias = (["c"], draw(5)), (["c"], draw(5))
    case("rms_norm", axes, "it(x)", dict(x=(["a", "b", "c"], draw(3, 4, 5))), ["a", "b", "c"],
         lambda i, w: F.rms_norm(i["x"], (5,), w["gain"], 1e-6), "RmsNorm[c]()", dict(gain=gain))
    case("rms_norm_two", axes, "it(x)", dict(x=(["a", "b", "c"], draw(3, 4, 5))), ["a", "b", "c"],
         lambda i, w: F.rms_norm(i["x"], (4, 5), w["gain"], 1e-6), "RmsNorm[b, c]()", dict(gain=(["b", "c"], draw(4, 5))))
    case("layer_norm", axes, "it(x)", dict(x=(["a", "b", "c"], draw(3, 4, 5))), ["a", "b", "c"],
         lambda i, w: F.layer_norm(i["x"], (5,), w["gain"], w["bias"], 1e-5), "LayerNorm[c]()", dict(gain=(["c"], draw(5)), bias=bias))


def batch_norm():
    """While training: statistics of the batch, and running ones that move by `rate` (torch moves the variance by the unbiased one, so
    only outputs and gradients are compared); outside training: the running ones."""
    axes = dict(a=6, b=3, c=4)
    weights = lambda: dict(gain=(["c"], draw(4)), bias=(["c"], draw(4)))
    x = lambda: dict(x=(["a", "b", "c"], draw(6, 3, 4)))
    case("batch_norm", axes, "it(x)", x(), ["a", "b", "c"],
         lambda i, w: F.batch_norm(i["x"].permute(0, 2, 1), None, None, w["gain"], w["bias"], True, 0.1, 1e-5).permute(0, 2, 1),
         "BatchNorm[c]()", weights())
    CASES["batch_norm"]["training"] = True
    case("batch_norm_frozen", axes, "it(x)", x(), ["a", "b", "c"],
         lambda i, w: i["x"] / (1 + 1e-5) ** 0.5 * w["gain"] + w["bias"], "BatchNorm[c]()", weights())


def tables():
    case("linear", dict(a=3, b=4, c=5, d=2), "it(x)", dict(x=(["a", "b", "c"], draw(3, 4, 5))), ["a", "d"],
         lambda i, w: torch.tensordot(i["x"], w["w"], 2) + w["b"], "Linear[b, c -> d]()",
         {"w": (["b", "c", "d"], draw(4, 5, 2)), "b": (["d"], draw(2))})
    ids = torch.tensor([[0, 3, 3], [6, 1, 0]])
    case("embedding", dict(a=2, b=3, word=7, c=4), "it(i)", dict(i=(["a", "b"], ids)), ["a", "b", "c"],
         lambda i, w: F.embedding(i["i"], w["w"]), "Embedding[word -> c]()", {"w": (["word", "c"], draw(7, 4))})
    case("attend", dict(a=2, word=7, c=4), "it.attend(x)", dict(x=(["a", "c"], draw(2, 4))), ["a", "word"],
         lambda i, w: i["x"] @ w["w"].T, "Embedding[word -> c]()", {"w": (["word", "c"], draw(7, 4))})


def turn(x, position):
    """x: [..., t, key]; the halves of key are the real and the imaginary parts."""
    half = x.shape[-1] // 2
    angle = position[..., None].double() * 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    z = torch.complex(x[..., :half].contiguous(), x[..., half:].contiguous()) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((z.real, z.imag), -1)


def attention():
    case("rope", dict(a=2, t=5, key=6), "rope[t, key](x)", dict(x=(["a", "t", "key"], draw(2, 5, 6))), ["a", "t", "key"],
         lambda i, w: turn(i["x"], torch.arange(5)))
    at = torch.tensor([[0, 1, 2, 0, 1], [7, 8, 9, 10, 11]])
    case("rope_position", dict(a=2, t=5, key=6), "rope[t, key](x, position: p)",
         dict(x=(["a", "t", "key"], draw(2, 5, 6)), p=(["a", "t"], at)), ["a", "t", "key"], lambda i, w: turn(i["x"], i["p"]))

    def weights(group, head, key, width, bias):
        made = {"q.w": (["width", "group", "head", "key"], draw(width, group, head, key))}
        for n in "kv":
            made[f"{n}.w"] = (["width", "group", "key"], draw(width, group, key))
        made["o.w"] = (["group", "head", "key", "width"], draw(group, head, key, width))
        if bias:
            made["q.b"] = (["group", "head", "key"], draw(group, head, key))
            made["k.b"], made["v.b"] = (["group", "key"], draw(group, key)), (["group", "key"], draw(group, key))
            made["o.b"] = (["width"], draw(width))
        return made

    def run(i, w, window, rotary, group, head):
        x = i["x"]
        t = x.shape[1]
        q = torch.einsum("btw,wghk->bghtk", x, w["q.w"])
        k, v = torch.einsum("btw,wgk->bgtk", x, w["k.w"]), torch.einsum("btw,wgk->bgtk", x, w["v.w"])
        if "q.b" in w:
            q, k, v = q + w["q.b"][None, :, :, None], k + w["k.b"][None, :, None], v + w["v.b"][None, :, None]
        if rotary:
            q, k = turn(q, torch.arange(t)), turn(k, torch.arange(t))
        far = torch.arange(t)[:, None] - torch.arange(t)
        seen = (far >= 0) & (far < window)
        b, key = x.shape[0], q.shape[-1]
        a = F.scaled_dot_product_attention(q.reshape(b, group * head, t, key), k, v, attn_mask=seen, enable_gqa=True)
        y = torch.einsum("bghtk,ghkw->btw", a.view(b, group, head, t, key), w["o.w"])
        return y + w["o.b"] if "o.b" in w else y

    axes = dict(a=2, t=5, width=12)
    x = lambda: dict(x=(["a", "t", "width"], draw(2, 5, 12)))
    case("attention", axes, "it(x, causal[t]())", x(), ["a", "t", "width"], lambda i, w: run(i, w, 99, False, 3, 1),
         "Attention[width](3)", weights(3, 1, 4, 12, True))
    case("attention_grouped", axes, "it(x, causal[t]())", x(), ["a", "t", "width"], lambda i, w: run(i, w, 99, True, 2, 3),
         "Attention[width](6, kv_heads: 2, bias: false, rotary: true)", weights(2, 3, 2, 12, False))
    case("attention_window", axes, "it(x, causal[t](window: 2))", x(), ["a", "t", "width"], lambda i, w: run(i, w, 2, False, 3, 1),
         "Attention[width](3)", weights(3, 1, 4, 12, True))


def networks():
    axes = dict(a=3, width=4, hidden=6)
    x = lambda: dict(x=(["a", "width"], draw(3, 4)))
    case("mlp", axes, "it(x)", x(), ["a", "width"],
         lambda i, w: F.gelu(i["x"] @ w["up.w"] + w["up.b"], approximate="tanh") @ w["down.w"] + w["down.b"], "Mlp[width, hidden]()",
         {"up.w": (["width", "hidden"], draw(4, 6)), "up.b": (["hidden"], draw(6)),
          "down.w": (["hidden", "width"], draw(6, 4)), "down.b": (["width"], draw(4))})
    case("swiglu", axes, "it(x)", x(), ["a", "width"],
         lambda i, w: (F.silu(i["x"] @ w["gate.w"]) * (i["x"] @ w["up.w"])) @ w["down.w"], "SwiGlu[width, hidden]()",
         {"gate.w": (["width", "hidden"], draw(4, 6)), "up.w": (["width", "hidden"], draw(4, 6)), "down.w": (["hidden", "width"], draw(6, 4))})


def recurrent():
    """torch keeps gates in rows of one matrix and two biases; ours have an axis `gate` and one bias (two for Gru)."""
    batch, t, n_in, n = 2, 5, 3, 4

    def build(kind, gates, w):
        cell = kind(n_in, n, batch_first=True).double()
        names = dict(weight_ih_l0=w["w"], weight_hh_l0=w["u"])
        flat = {k: v.reshape(v.shape[0], n, -1).permute(2, 1, 0).reshape(-1, v.shape[0]) for k, v in names.items()}
        flat["bias_ih_l0"] = w["b"].reshape(n, -1).T.reshape(-1)
        flat["bias_hh_l0"] = w["c"].reshape(n, -1).T.reshape(-1) if "c" in w else torch.zeros(n * gates, dtype=torch.float64)
        return lambda x: torch.func.functional_call(cell, flat, (x,))[0]

    axes = {"batch": batch, "t": t, "from": n_in, "hidden": n}
    for name, kind, gates in (("rnn", nn.RNN, 1), ("lstm", nn.LSTM, 4), ("gru", nn.GRU, 3)):
        for backwards in (False, True):
            tail = [gates] if gates > 1 else []
            axis = ["gate"] if gates > 1 else []
            weights = {"w": (["from", "hidden", *axis], draw(n_in, n, *tail)), "u": (["hidden'", "hidden", *axis], draw(n, n, *tail)),
                       "b": (["hidden", *axis], draw(n, *tail))}
            if name == "gru":
                weights["c"] = (["hidden", *axis], draw(n, *tail))

            def run(i, w, kind=kind, gates=gates, backwards=backwards):
                cell = build(kind, gates, w)
                return cell(i["x"].flip(1)).flip(1) if backwards else cell(i["x"])

            option = "backwards: true" if backwards else ""
            case(name + ("_backwards" if backwards else ""), axes, "it(x)", dict(x=(["batch", "t", "from"], draw(batch, t, n_in))),
                 ["batch", "t", "hidden"], run, f"{name.capitalize()}[from -> hidden]({option})", weights)


def convolution():
    for name, stride, pad, size in (("conv1d", 1, 1, 7), ("conv1d_stride", 2, 1, 7)):
        case(name, dict(a=2, t=size, c=3, d=4), "it(x)", dict(x=(["a", "t", "c"], draw(2, size, 3))), ["a", "t", "d"],
             lambda i, w, s=stride, p=pad: F.conv1d(i["x"].mT, w["w"].permute(2, 1, 0), w["b"], s, p).mT,
             f"Conv1d[c -> d](taps: 3, stride: {stride})", {"w": (["tap", "c", "d"], draw(3, 3, 4)), "b": (["d"], draw(4))})
    for name, taps, stride, pad in (("conv2d", 3, 1, 1), ("conv2d_stride", 3, 2, 1), ("conv2d_valid", 2, 1, 0)):
        case(name, dict(a=2, row=6, column=5, c=3, d=4), "it(x)", dict(x=(["a", "row", "column", "c"], draw(2, 6, 5, 3))),
             ["a", "row", "column", "d"],
             lambda i, w, s=stride, p=pad: F.conv2d(i["x"].permute(0, 3, 1, 2), w["w"].permute(3, 2, 0, 1), w["b"], s, p).permute(0, 2, 3, 1),
             f"Conv2d[c -> d](taps: {taps}, stride: {stride}, pad: {pad})",
             {"w": (["i", "j", "c", "d"], draw(taps, taps, 3, 4)), "b": (["d"], draw(4))})
    for name, pool in (("max_pool", F.max_pool2d), ("mean_pool", F.avg_pool2d)):
        case(name, dict(a=2, row=6, column=5), f"{name}(x)", dict(x=(["a", "row", "column"], draw(2, 6, 5))), ["a", "row", "column"],
             lambda i, w, f=pool: f(i["x"], 2))


def objectives():
    """Objectives on logits as they are: the model is a function of the batch, whose derivative is recorded."""
    batch, t, vocab = 3, 5, 7
    axes = dict(batch=batch, t=t, vocab=vocab)
    whole = lambda high, *shape: torch.tensor(RNG.integers(0, high, shape))
    mask = torch.tensor(RNG.integers(0, 2, (batch, t)))
    mask[:, 0] = 1
    counted = lambda loss, m: (loss * m).sum() / m.sum()
    ce = lambda logits, label, **k: F.cross_entropy(logits.movedim(-1, 1), label.long(), reduction="none", **k)
    inputs = lambda: dict(x=(["batch", "t", "vocab"], draw(batch, t, vocab)), next=(["batch", "t"], whole(vocab, batch, t)), mask=(["batch", "t"], mask))
    fields = "(ids: x, next: next, mask: mask > 0)"
    case("seq2seq", axes, f"seq2seq(smooth: 0.1, read: fn(model, batch) = batch.ids)(0, {fields})", inputs(), [],
         lambda i, w: counted(ce(i["x"], i["next"], label_smoothing=0.1), i["mask"]))
    hidden = dict(teacher=(["batch", "t", "vocab"], draw(batch, t, vocab)))

    def distilled(i, w):
        p, q = F.softmax(i["teacher"].detach() / 3, -1), F.log_softmax(i["x"] / 3, -1)
        return 0.7 * 9 * counted(-(p * q).sum(-1), i["mask"]) + 0.3 * counted(ce(i["x"], i["next"]), i["mask"])

    case("distill", axes, f"distill(fn(ids) = teacher, temperature: 3.0, share: 0.7)(fn(ids) = x, {fields}).loss", inputs() | hidden, [], distilled)
    label = dict(x=(["batch", "t", "label"], draw(batch, t, 4)), tags=(["batch", "t"], whole(5, batch, t) - 1))
    case("tag", dict(batch=batch, t=t, label=4), "tag(read: fn(model, batch) = x)(0, (tags: tags)).loss", label, [],
         lambda i, w: F.cross_entropy(i["x"].movedim(-1, 1), i["tags"].long(), ignore_index=-1))
    pair = dict(x=(["batch", "answer"], draw(batch, 2)), label=(["batch"], torch.tensor([0, -1, 1])))
    case("nsp", dict(batch=batch, answer=2), "nsp(read: fn(model, batch) = x)(0, (label: label)).loss", pair, [],
         lambda i, w: F.cross_entropy(i["x"], i["label"].long(), ignore_index=-1))
    pair = dict(a=(["row", "embed"], draw(4, 6)), b=(["row", "embed"], draw(4, 6)))

    def clip(i, w):
        score = 5.0 * F.normalize(i["a"], dim=-1) @ F.normalize(i["b"], dim=-1).T
        return (F.cross_entropy(score, torch.arange(4)) + F.cross_entropy(score.T, torch.arange(4))) / 2

    case("contrast", dict(row=4, embed=6), "contrast[row, embed](a, b, scale: 5.0)", pair, [], clip)
    frames, length = torch.tensor([9, 7, 8]), torch.tensor([3, 1, 4])
    speech = dict(x=(["batch", "t", "vocab"], draw(batch, 9, vocab)), label=(["batch", "u"], torch.tensor([[1, 1, 2, 0], [3, 0, 0, 0], [4, 5, 5, 6]])),
                  frames=(["batch"], frames), length=(["batch"], length))
    case("ctc", dict(batch=batch, t=9, vocab=vocab, u=4), "ctc[t, vocab, u](log_softmax[vocab](x), where(index[u] < length, label, -1), frames)", speech, ["batch"],
         lambda i, w: F.ctc_loss(F.log_softmax(i["x"], -1).movedim(1, 0), i["label"].long(), frames, length, reduction="none"))


def sounds():
    """`torch.stft`, and the triangles of torchaudio's `MelSpectrogram` and of `librosa` with `htk=True`."""
    rate, taps, hop, mels = 8000, 64, 24, 9
    sound = dict(sound=(["batch", "sample"], draw(2, 300)))

    def power(i, pad=True):
        z = torch.stft(i["sound"], taps, hop, window=torch.hann_window(taps, dtype=torch.float64), center=pad, pad_mode="constant", return_complex=True)
        return z.abs().square().movedim(-1, -2)

    edges = torch.linspace(0, 1, mels + 2, dtype=torch.float64) * 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (edges / 2595) - 1)
    slope = edges[None, :] - torch.linspace(0, rate / 2, taps // 2 + 1, dtype=torch.float64)[:, None]
    width = edges[1:] - edges[:-1]
    bands = torch.minimum(-slope[:, :-2] / width[:-1], slope[:, 2:] / width[1:]).clamp(min=0)
    axes = dict(batch=2, sample=300)
    case("spectrogram", axes, f"spectrogram(sound, {taps}, {hop})", sound, ["batch", "frame", "bin"], lambda i, w: power(i, False),
         use="std.audio")
    case("log_mel", axes | dict(mel=mels), f"log_mel[mel](sound, {rate}.0, {taps}, {hop}, pad: {taps // 2})", dict(sound=(["batch", "sample"], draw(2, 300))),
         ["batch", "frame", "mel"], lambda i, w: torch.log(power(i) @ bands + 1e-6), use="std.audio")


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for make in (pointwise, rows, norms, batch_norm, tables, attention, networks, recurrent, convolution, objectives, sounds):
        make()
    save_file(TENSORS, OUT / "layers.safetensors")
    (OUT / "layers.safetensors").chmod(0o644)
    (OUT / "layers.json").write_text(json.dumps(CASES, indent=1) + "\n")
    print(f"{len(CASES)} cases, {sum(t.nbytes for t in TENSORS.values()) // 1024} KiB")
