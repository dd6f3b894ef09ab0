#!/usr/bin/env python3
"""Records what `transformers` makes of chats with templates: tests/fixtures/chat_templates.json.

usage: chat_templates.py FOLDER     (a folder of *.jinja; the templates of the project's shared data)

For each template and each chat: the text, or that the template refuses it. Needs transformers (recorded with 5.23.0).
"""
import datetime
import json
import pathlib
import sys

import transformers.utils.chat_template_utils as utils

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a day, in °C & words.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Which city"}, "days": {"type": "integer", "default": 1}},
            "required": ["city"],
        },
    },
}
ASK = {"role": "user", "content": "What is 2 < 3 & why?"}
SAY = {"role": "assistant", "content": "It is true: 'two' is \"less\".\n\nReally."}
CHATS = {
    "short": ([ASK, SAY], None),
    "question": ([ASK], None),
    "system": ([{"role": "system", "content": "Answer briefly."}, ASK, SAY], None),
    "long": ([{"role": "system", "content": "Be kind."}, ASK, SAY, {"role": "user", "content": " Und jetzt? 好 "}, {"role": "assistant", "content": "Ja. 好"}], None),
    "tools": (
        [ASK,
         {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "id": "abcdefghi", "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}}}]},
         {"role": "tool", "name": "weather", "tool_call_id": "abcdefghi", "content": "[17.5, 18.0]"},
         {"role": "assistant", "content": "Mild."}],
        [TOOL]),
    "reasoning": ([ASK, {"role": "assistant", "reasoning_content": "Two is before three.", "content": "True."}], None),
    "two questions": ([ASK, ASK], None),
}


class Day(datetime.datetime):
    """The day that our templates take for today."""

    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


def main():
    utils.datetime = Day
    rows = []
    for path in sorted(pathlib.Path(sys.argv[1]).glob("*.jinja")):
        template = path.read_text()
        for name, (messages, tools) in CHATS.items():
            for prompt in (False, True):
                row = {"template": path.stem, "chat": name, "prompt": prompt}
                try:
                    texts, _ = utils.render_jinja_template([messages], tools=tools, chat_template=template, add_generation_prompt=prompt, **SPECIAL)
                    row["text"] = texts[0]
                except Exception as error:  # whatever a template refuses with
                    row["refused"] = str(error).splitlines()[0][:120]
                rows.append(row)
    chats = {name: {"messages": messages, "tools": tools} for name, (messages, tools) in CHATS.items()}
    path = ROOT / "tests" / "fixtures" / "chat_templates.json"
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text('{"special": %s,\n"chats": %s,\n"rows": [\n%s\n]}\n' % (json.dumps(SPECIAL), json.dumps(chats, ensure_ascii=False), lines))
    print(len(rows), "rows,", sum("text" in row for row in rows), "texts,", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
