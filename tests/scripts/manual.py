#!/usr/bin/env python3
"""Writes docs/stdlib.md: every item of stdlib/ with its signature and the text of its `///` comment.

usage: manual.py [--check]     (--check: exit 1 when the file is not up to date)
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
FILES = ["core", "init", "losses", "objectives", "optim", "schedules", "adapters", "nn/activations", "nn/linear", "nn/embedding", "nn/norm", "nn/dropout", "nn/rope",
         "nn/attend", "nn/attention", "nn/mlp", "nn/moe", "nn/block", "nn/recurrent", "nn/convolution", "models/gpt", "models/llama", "models/lstm", "models/classifier",
         "models/gpt_neox", "models/opt", "models/bloom", "models/phi3", "models/gemma2", "models/bert", "models/albert", "models/t5", "models/universal", "models/deepseek", "models/switch",
         "models/labels", "models/pretrained"]
# What is not in the order above comes after it.
FILES += sorted(name for name in (str(path.relative_to(ROOT / "stdlib"))[:-4] for path in (ROOT / "stdlib").rglob("*.mdl")) if name not in FILES + ["prelude"])


def items(lines):
    """(signature, comment lines) of each item: a signature ends where its body begins."""
    comment = []
    for at, line in enumerate(lines):
        if line.startswith("///"):
            comment.append(line[3:].strip())
            continue
        if re.match(r"(fn|layer|optimizer) ", line):
            text = line
            for more in lines[at + 1:]:
                is_open = sum(text.count(a) for a in "([") > sum(text.count(b) for b in ")]")
                if not (is_open or more.startswith("  ->")):
                    break
                text += (" " if text[-1] != "(" and more.strip()[0] != ")" else "") + more.strip()
            yield cut(text), comment
        comment = []


def cut(text):
    """Up to the `=` or `{` of the body, that is outside of brackets."""
    depth = 0
    for at, letter in enumerate(text):
        depth += (letter in "([") - (letter in ")]")
        if depth == 0 and (letter == "{" or text[at:at + 3] == " = "):
            return text[:at].strip()
    return text.removesuffix("=").strip()


def main():
    out = ["# The standard library", "", "Made from `stdlib/` by `tests/scripts/manual.py`. All but the models is visible in every file;",
           "a model is taken with `use std.models.Gpt`.", ""]
    for name in FILES:
        lines = (ROOT / "stdlib" / f"{name}.mdl").read_text().splitlines()
        head = [line[3:].strip() for line in lines if line.startswith("//!")]
        out += [f"## {name}", "", *head, ""]
        for signature, comment in items(lines):
            out += ["```mdl", signature, "```", "", *comment, ""]
    text = "\n".join(out).rstrip() + "\n"
    path = ROOT / "docs" / "stdlib.md"
    if "--check" in sys.argv:
        sys.exit(path.read_text() != text)
    path.write_text(text)


if __name__ == "__main__":
    main()
