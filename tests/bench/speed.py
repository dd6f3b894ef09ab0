#!/usr/bin/env python3
"""Tokens per second of a training step, `mdlc` and PyTorch by turns on the same machine in the same minutes.

usage: speed.py PYTHON TORCH_GPT [SHAPE…]

PYTHON is an interpreter that has torch, TORCH_GPT the peer script (`torch_gpt.py SHAPE fp32 eager STEPS` prints a line of JSON), SHAPE one of
char, mid, gpt2 (default: char mid). `mdlc` is taken from target/release, or from $MDLC. Prints a line of JSON per shape: the median step of
each side over three turns, and the ratio of tokens per second (above 1: mdlc is faster).
"""
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MDLC = os.environ.get("MDLC", str(ROOT / "target" / "release" / "mdlc"))
SHAPES = {  # layers, heads, width, context, batch, vocab, steps
    "char": (4, 4, 128, 64, 12, 65, 120),
    "mid": (6, 6, 384, 256, 16, 65, 10),
    "gpt2": (12, 12, 768, 512, 2, 50304, 6),
}


def mdlc(shape):
    layers, heads, width, context, batch, vocab, steps = SHAPES[shape]
    with tempfile.TemporaryDirectory() as out:
        flags = dict(layers=layers, heads=heads, width=width, context=context, batch=batch, vocab=vocab, steps=steps, out=out)
        command = [MDLC, "run", str(ROOT / "examples" / "bench.mdl"), "--quiet"]
        subprocess.run(command + [text for key, value in flags.items() for text in (f"--{key}", str(value))], check=True)
        lines = [json.loads(line) for line in (pathlib.Path(out) / "base" / "metrics.jsonl").read_text().splitlines()]
    times = [line["step_ms"] for line in lines if "step_ms" in line]
    times = times[max(2, len(times) // 4):]
    return statistics.median(times), lines[-1].get("peak_bytes", 0) / 2**20


def torch(python, script, shape):
    steps = SHAPES[shape][-1]
    done = subprocess.run([python, script, shape, "fp32", "eager", str(steps)], check=True, capture_output=True, text=True)
    line = json.loads(done.stdout.splitlines()[-1])
    return line["ms"], line["rss_mib"]


def main():
    python, script, *shapes = sys.argv[1:]
    for shape in shapes or ["char", "mid"]:
        turns = [(mdlc(shape), torch(python, script, shape)) for _ in range(3)]
        ours, theirs = (statistics.median(turn[side][0] for turn in turns) for side in (0, 1))
        tokens = SHAPES[shape][3] * SHAPES[shape][4]
        print(json.dumps(dict(shape=shape, mdlc_ms=round(ours, 2), torch_ms=round(theirs, 2), ratio=round(theirs / ours, 3),
                              mdlc_tok_s=round(tokens / ours * 1e3), torch_tok_s=round(tokens / theirs * 1e3),
                              mdlc_plan_mib=round(turns[0][0][1]), torch_rss_mib=turns[0][1][1], load=os.getloadavg()[0])), flush=True)


if __name__ == "__main__":
    main()
