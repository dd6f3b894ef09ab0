#!/usr/bin/env python3
"""The outside witness of stored dtypes: what bitsandbytes makes of numbers in blocks.

usage: blocks.py             (needs torch, numpy, safetensors, bitsandbytes)

Writes `fixtures/blocks.safetensors`: `x`, numbers `[rows, columns]`; `nf4`, its packed codes, and `nf4.scale`, for blocks of 64; `q8` and
`q8.scale` for blocks of 256; `nf4.x` and `q8.x`, the numbers that these say.
"""
import pathlib

import bitsandbytes.functional as bnb
import numpy as np
import torch
from safetensors.numpy import save_file

OUT = pathlib.Path(__file__).resolve().parent.parent / "fixtures"


def main():
    x = torch.tensor(np.random.default_rng(3).standard_normal((12, 512)) ** 3, dtype=torch.float32)
    x[0, :64] = 0.0
    x[1, 7] = 1e-4
    codes, state = bnb.quantize_4bit(x, blocksize=64, quant_type="nf4")
    # Its kernel for processors takes shortcuts (0 becomes code 131); what it publishes is the map, and the nearest number of it.
    book = bnb.create_dynamic_map()
    scale8 = x.reshape(12, 2, 256).abs().amax(-1)
    shares = (x.reshape(12, 2, 256) / scale8.clamp(min=1e-30)[..., None]).double()
    bytes8 = (shares[..., None] - book.double()).abs().argmin(-1)
    tensors = {
        "x": x, "nf4": codes.reshape(12, 256), "nf4.scale": state.absmax.reshape(12, 8), "nf4.x": bnb.dequantize_4bit(codes, state),
        "q8": bytes8.to(torch.uint8).reshape(12, 512), "q8.scale": scale8, "q8.x": (book[bytes8] * scale8[..., None]).reshape(12, 512),
    }
    save_file({name: np.ascontiguousarray(value.numpy()) for name, value in tensors.items()}, OUT / "blocks.safetensors")
    (OUT / "blocks.safetensors").chmod(0o644)
    print({name: tuple(value.shape) for name, value in tensors.items()})


if __name__ == "__main__":
    main()
