#!/usr/bin/env python3
"""Training steps of `mdlc` and of PyTorch, by turns on the same machine in the same minutes: tokens per second, memory, time to the first step.

usage: speed.py [--torch SCRIPT] [--python PYTHON] [--shapes char,mid,gpt2] [--turns 3] [--steps N] [--modes f32,bf16,…] [--write FILE]

SCRIPT is the peer (`torch_gpt.py SHAPE {fp32|bf16} {eager|compile} STEPS` prints a line of JSON), PYTHON an interpreter that has torch (default:
the one that runs this). `mdlc` is taken from target/release, or from $MDLC. Each turn runs every contender once, one after the other; a figure is the
median over the turns of the median step, the first quarter of the steps left out. Memory is the largest that the process ever had resident,
as the kernel counts it; the time to the first step runs from the start of the process to the end of that step.

With `--write`, the tables go to FILE as well (Markdown: `docs/bench.md` is one), and as they stand after each shape, so that a run which is cut short
leaves what it measured. A contender that fails is named, with the last line that it said, and the others go on.
"""
import argparse
import datetime
import json
import os
import pathlib
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
MDLC = os.environ.get("MDLC", str(ROOT / "target" / "release" / "mdlc"))
SHAPES = {  # layers, heads, width, context, batch, vocab, steps
    "char": (4, 4, 128, 64, 12, 65, 200),
    "mid": (6, 6, 384, 256, 16, 65, 12),
    "gpt2": (12, 12, 768, 512, 2, 50304, 8),
}
OURS = ["f32", "bf16"]
THEIRS = ["fp32 eager", "fp32 compile", "bf16 eager", "bf16 compile"]


class Failed(Exception):
    pass


def reap(process):
    """Waits, and gives the exit status and the peak of resident memory in MiB."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss / 1024


def mdlc(shape, precision, steps):
    layers, heads, width, context, batch, vocab, _ = SHAPES[shape]
    flags = dict(layers=layers, heads=heads, width=width, context=context, batch=batch, vocab=vocab, precision=precision, steps=steps)
    times, first, last = [], None, ""
    with tempfile.TemporaryDirectory() as out:
        command = [MDLC, "run", str(ROOT / "examples" / "bench.mdl"), "--json", "--out", out]
        command += [text for key, value in flags.items() for text in (f"--{key}", str(value))]
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for last in process.stdout:
            event = json.loads(last) if last.startswith("{") else {}
            if event.get("event") == "step":
                first = first or time.perf_counter() - began
                times.append(event["step_ms"])
                if len(times) == steps:
                    # The peer saves nothing either.
                    process.send_signal(signal.SIGKILL)
        process.stdout.close()
        _, rss = reap(process)
    if len(times) < steps:
        raise Failed(last.strip())
    return dict(ms=median_step(times), rss=rss, first=first)


def median_step(times):
    return statistics.median(times[max(2, len(times) // 4):] or times)


def torch(python, script, shape, mode, steps):
    errors = tempfile.TemporaryFile("w+")
    process = subprocess.Popen([python, script, shape, *mode.split(), str(steps)], stdout=subprocess.PIPE, stderr=errors, text=True)
    said = process.stdout.read()
    process.stdout.close()
    code, rss = reap(process)
    if code != 0 or not said.strip():
        errors.seek(0)
        raise Failed((errors.read().strip().splitlines() or [f"exit status {code}"])[-1])
    line = json.loads(said.splitlines()[-1])
    # Its own clock starts when the script does, a little after the process: to its favour.
    return dict(ms=line["ms"], rss=rss, first=line["first_step_s"])


def measure(shape, contenders, turns, steps):
    """Of each contender the median over the turns; None where it failed, and why."""
    seen, failures = {name: [] for name, _ in contenders}, {}
    for turn in range(turns):
        for name, run in contenders:
            if name in failures:
                continue
            try:
                found = run(shape, steps)
            except Failed as error:
                failures[name] = str(error)
                print(json.dumps(dict(shape=shape, turn=turn, contender=name, failed=str(error))), flush=True)
                continue
            seen[name].append(found)
            print(json.dumps(dict(shape=shape, turn=turn, contender=name, load=os.getloadavg()[0], **{k: round(v, 3) for k, v in found.items()})), flush=True)
    merged = {}
    for name, all_found in seen.items():
        if name not in failures and all_found:
            merged[name] = dict(ms=statistics.median(f["ms"] for f in all_found), rss=max(f["rss"] for f in all_found),
                                first=statistics.median(f["first"] for f in all_found))
    return merged, failures


def best(merged, names):
    found = [(merged[name]["ms"], name) for name in names if name in merged]
    return min(found)[1] if found else None


def ratio(a, b):
    return f"{a / b:.2f}"


def tables(shape, merged, failures):
    layers, heads, width, context, batch, vocab, _ = SHAPES[shape]
    tokens = context * batch
    lines = [f"## {shape}: {layers} layers of width {width}, {heads} heads, batch {batch} × {context}, vocabulary {vocab}", "",
             "| | ms a step | tokens/s | peak memory, MiB | first step after, s |", "|---|---|---|---|---|"]
    for name, found in merged.items():
        lines.append(f"| {name} | {found['ms']:.1f} | {tokens / found['ms'] * 1e3:,.0f} | {found['rss']:,.0f} | {found['first']:.2f} |")
    lines += [f"| {name} | failed: {why} | | | |" for name, why in failures.items()]
    ours = {kind: f"mdlc {kind}" for kind in OURS if f"mdlc {kind}" in merged}
    every = [name for name in merged if name.startswith("PyTorch")]
    exact = [name for name in every if "fp32" in name]
    lines += ["", "| ratio | value | the peer |", "|---|---|---|"]
    peer, peer32 = best(merged, every), best(merged, exact)
    for kind, name in ours.items():
        if peer:
            lines.append(f"| tokens/s, {kind}, to the best of PyTorch | {ratio(merged[peer]['ms'], merged[name]['ms'])} | {peer} |")
        if kind == "f32" and peer32:
            lines.append(f"| tokens/s, f32, to the best f32 of PyTorch | {ratio(merged[peer32]['ms'], merged[name]['ms'])} | {peer32} |")
        same = f"PyTorch {'fp32' if kind == 'f32' else 'bf16'} eager"
        if same in merged:
            lines.append(f"| peak memory, {kind} | {ratio(merged[name]['rss'], merged[same]['rss'])} | {same} |")
            lines.append(f"| time to the first step, {kind} | {ratio(merged[name]['first'], merged[same]['first'])} | {same} |")
    return lines + [""]


def machine(python):
    model, flags = platform.machine(), set()
    try:
        for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            if key.strip() == "flags":
                flags = set(value.split())
    except OSError:
        pass
    units = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    version = lambda command: subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    torch_version = version([python, "-c", "import torch; print(torch.__version__)"])
    return [f"{model}, {os.cpu_count()} cores ({', '.join(units)}), {memory:.0f} GiB; {datetime.date.today()}; "
            f"mdlc {version(['git', 'rev-parse', '--short', 'HEAD'])}, PyTorch {torch_version}; load at the end {os.getloadavg()[0]:.1f}."]


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("\n\n")[1][len("usage: "):])
    parser.add_argument("--torch", default=os.environ.get("TORCH_GPT"))
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--shapes", default="char,mid,gpt2")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--modes", default=",".join(OURS + THEIRS))
    parser.add_argument("--write")
    args = parser.parse_args()
    modes = args.modes.split(",")
    contenders = []
    for mode in modes:
        if mode in OURS:
            contenders.append((f"mdlc {mode}", lambda shape, steps, mode=mode: mdlc(shape, mode, steps)))
        elif mode in THEIRS and args.torch:
            contenders.append((f"PyTorch {mode}", lambda shape, steps, mode=mode: torch(args.python, args.torch, shape, mode, steps)))
        elif mode not in THEIRS:
            parser.error(f"there is no mode `{mode}`; there are {', '.join(OURS + THEIRS)}")
    lines = ["# Training steps beside PyTorch", "",
             f"Made by `tests/bench/speed.py --shapes {args.shapes} --turns {args.turns}`; its head says what is measured and how. "
             "A ratio of tokens/s above 1 means that `mdlc` is faster; of memory and time, below 1 that it needs less.", ""]
    for shape in args.shapes.split(","):
        merged, failures = measure(shape, contenders, args.turns, args.steps or SHAPES[shape][-1])
        lines += tables(shape, merged, failures)
        print("\n".join(tables(shape, merged, failures)), flush=True)
        if args.write:
            whole = lines[:2] + machine(args.python) + [""] + lines[2:]
            pathlib.Path(args.write).write_text("\n".join(whole))


if __name__ == "__main__":
    main()
