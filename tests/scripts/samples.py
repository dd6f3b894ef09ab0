#!/usr/bin/env python3
"""Makes the small data sets that the examples ship: `reviews`, `reviews-zh`, `digits`, `shapes`, `tones` and `chat` in `examples/data`.

usage: samples.py

They are generated, so that they are small, free, and the same everywhere. They have the layouts of SST-2 (`label sentence` lines), of
ChnSentiCorp (tab-separated, with names), of MNIST (IDX files), of a folder of pictures for each class, of the free spoken digits
(`digit_speaker_take.wav`) and of Alpaca (`instruction`, `input`, `output`), so flags can point an example at the real ones.
"""
import gzip
import json
import math
import pathlib
import random
import struct
import zlib

OUT = pathlib.Path(__file__).resolve().parent.parent.parent / "examples" / "data"

GOOD = "warm clever funny moving graceful thrilling honest charming rich bright tender sharp inventive delightful gripping".split()
BAD = "dull clumsy tedious hollow lazy stale shallow noisy bland confused tiresome forced lifeless predictable messy".split()
THINGS = "film story script cast plot dialogue ending pace music camera first half second act director lead".replace(
    "first half", "first-half").replace("second act", "second-act").split()
OPEN = ["the {t} is {a} and {b}", "a {a} , {b} {t}", "{a} from start to finish , with a {b} {t}", "i found the {t} {a} , even {b}",
        "it has a {a} {t} and a {b} {u}", "the {t} and the {u} are {a}", "what a {a} {t} !", "never less than {a} , often {b}"]
TURN = ["not {x} but {a}", "it is not {x} at all : the {t} is {a}", "others call it {x} ; the {t} is {a} , the {u} {b}"]


def sentence(rng, label):
    mine, other = (GOOD, BAD) if label else (BAD, GOOD)
    a, b = rng.sample(mine, 2)
    t, u = rng.sample(THINGS, 2)
    form = rng.choice(OPEN if rng.random() < 0.8 else TURN)
    return form.format(a=a, b=b, t=t, u=u, x=rng.choice(other))


def reviews():
    rng = random.Random(1)
    folder = OUT / "reviews"
    folder.mkdir(parents=True, exist_ok=True)
    seen = set()
    for part, count in (("train", 600), ("dev", 100), ("test", 100)):
        rows = []
        while len(rows) < count:
            label = rng.randrange(2)
            row = f"{label} {sentence(rng, label)}"
            if row not in seen:
                seen.add(row)
                rows.append(row)
        (folder / f"{part}.txt").write_text("\n".join(rows) + "\n")


GOOD_ZH = "干净 舒适 安静 方便 热情 周到 便宜 清楚 流畅 结实 漂亮 满意".split()
BAD_ZH = "肮脏 拥挤 吵闹 麻烦 冷淡 马虎 昂贵 模糊 卡顿 松动 难看 失望".split()
THINGS_ZH = "房间 服务 位置 早餐 价格 屏幕 键盘 电池 包装 内容 翻译 印刷".split()
OPEN_ZH = ["{t}很{a}，{u}也{b}。", "{t}{a}，{u}让人觉得{b}。", "总的来说{t}比较{a}，{u}{b}。", "住了两天，{t}{a}，{u}非常{b}！", "买了一个月，{t}{a}，{u}{b}。"]
TURN_ZH = ["{t}一点也不{x}，{u}也不{y}。", "{t}并不{x}，{u}不{y}。", "住了两天，{t}不{x}，{u}也并不{y}！", "有人说{t}{x}，我觉得不{x}，{u}也不{y}。"]


def sentence_zh(rng, label):
    mine, other = (GOOD_ZH, BAD_ZH) if label else (BAD_ZH, GOOD_ZH)
    a, b = rng.sample(mine, 2)
    x, y = rng.sample(other, 2)
    t, u = rng.sample(THINGS_ZH, 2)
    # A `不` turns a word around, so that to count words is not enough.
    form = rng.choice(OPEN_ZH if rng.random() < 0.5 else TURN_ZH)
    return form.format(t=t, u=u, a=a, b=b, x=x, y=y)


def reviews_zh():
    rng = random.Random(3)
    folder = OUT / "reviews-zh"
    folder.mkdir(parents=True, exist_ok=True)
    seen = set()
    for part, count in (("train", 800), ("dev", 100), ("test", 100)):
        rows = []
        while len(rows) < count:
            label = rng.randrange(2)
            row = f"{label}\t{sentence_zh(rng, label)}"
            if row not in seen:
                seen.add(row)
                rows.append(row)
        (folder / f"{part}.tsv").write_text("\n".join(["label\ttext_a", *rows]) + "\n", encoding="utf-8")


FONT = """
.###. ..#.. .###. .###. ...#. ##### .###. ##### .###. .###.
#...# .##.. #...# #...# ..##. #.... #.... ....# #...# #...#
#..## ..#.. ....# ....# .#.#. ####. #.... ...#. #...# #...#
#.#.# ..#.. ...#. ..##. #..#. ....# ####. ..#.. .###. .####
##..# ..#.. ..#.. ....# ##### ....# #...# ..#.. #...# ....#
#...# ..#.. .#... #...# ...#. #...# #...# .#... #...# ....#
.###. .###. ##### .###. ...#. .###. .###. .#... .###. .###.
""".split()
SIDE = 28


def picture(rng, digit):
    """A digit of 5 by 7 dots, drawn 2 to 3 pixels a dot, leaning, somewhere in 28 by 28."""
    wide, tall = rng.choice((2, 3)), rng.choice((2, 3))
    lean = rng.choice((-0.2, 0.0, 0.2))
    ink = rng.choice((160, 200, 240))
    rows = [FONT[10 * r + digit] for r in range(7)]
    top, left = rng.randrange(2, SIDE - 7 * tall - 1), rng.randrange(6, SIDE - 5 * wide - 5)
    pixels = bytearray(SIDE * SIDE)
    for r in range(7 * tall):
        for c in range(5 * wide):
            if rows[r // tall][c // wide] == "#" and rng.random() > 0.05:
                column = left + c + round(lean * (7 * tall / 2 - r))
                pixels[(top + r) * SIDE + column] = ink
    return bytes(pixels)


def pack(path, header, body):
    with open(path, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as out:
        out.write(header + body)


def digits():
    rng = random.Random(2)
    folder = OUT / "digits"
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", 1000), ("t10k", 200)):
        labels = bytes(i % 10 for i in range(count))
        images = b"".join(picture(rng, label) for label in labels)
        pack(folder / f"{part}-images-idx3-ubyte.gz", struct.pack(">IIII", 0x0803, count, SIDE, SIDE), images)
        pack(folder / f"{part}-labels-idx1-ubyte.gz", struct.pack(">II", 0x0801, count), labels)


COLOURS = {"grass": "green", "snow": "white", "coal": "black", "a lemon": "yellow", "the sky": "blue", "blood": "red", "a carrot": "orange",
           "milk": "white", "a plum": "purple", "sand": "yellow", "soot": "black", "a leaf": "green"}
SOUNDS = {"cat": "meows", "dog": "barks", "cow": "moos", "duck": "quacks", "frog": "croaks", "owl": "hoots", "bee": "buzzes", "lion": "roars",
          "sheep": "bleats", "horse": "neighs", "pig": "grunts", "wolf": "howls"}
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen".split()


def chat():
    rows = []
    for thing, colour in COLOURS.items():
        rows.append(("What colour is it?", thing, f"{thing[0].upper() + thing[1:]} is {colour}."))
        rows.append((f"Tell me the colour of {thing}.", "", f"It is {colour}."))
    for animal, sound in SOUNDS.items():
        rows.append((f"What does a {animal} do?", "", f"A {animal} {sound}."))
        rows.append((f"Which animal {sound}?", "", f"The {animal} does."))
    for a in range(10):
        for b in range(10):
            rows.append((f"What is {NUMBERS[a]} plus {NUMBERS[b]}?", "", f"It is {NUMBERS[a + b]}."))
    for hello in ("Hello", "Hi", "Good morning", "Good evening"):
        rows.append((hello, "", f"{hello}! What would you like to know?"))
    random.Random(3).shuffle(rows)
    (OUT / "chat").mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(("instruction", "input", "output"), row)) for row in rows]
    (OUT / "chat" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


SHAPES = {
    "disc": lambda r, c: r * r + c * c < 1,
    "ring": lambda r, c: 0.4 < r * r + c * c < 1,
    "square": lambda r, c: max(abs(r), abs(c)) < 0.85,
    "cross": lambda r, c: min(abs(r), abs(c)) < 0.3 and max(abs(r), abs(c)) < 1,
}


def png(rows):
    """Rows of (red, green, blue) as the bytes of a PNG file."""
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    raw = b"".join(b"\0" + bytes(value for point in row for value in point) for row in rows)
    head = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")


def shapes():
    """A shape in one colour on a ground of another, 32 by 32."""
    rng = random.Random(4)
    for part, count in (("train", 40), ("test", 10)):
        for name, inside in SHAPES.items():
            folder = OUT / "shapes" / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for n in range(count):
                ink, ground = ([rng.randrange(8) * 32 for _ in range(3)] for _ in range(2))
                while sum(abs(a - b) for a, b in zip(ink, ground)) < 150:
                    ink = [rng.randrange(8) * 32 for _ in range(3)]
                size = rng.uniform(6, 13)
                row, column = rng.uniform(size, 32 - size), rng.uniform(size, 32 - size)
                rows = [[ink if inside((r + 0.5 - row) / size, (c + 0.5 - column) / size) else ground for c in range(32)] for r in range(32)]
                (folder / f"{n:04}.png").write_bytes(png(rows))


def tones():
    """The keys of a telephone: each digit is two tones at once, said by three voices, 8,000 samples a second of 8 bits."""
    rng = random.Random(5)
    folder = OUT / "tones" / "recordings"
    folder.mkdir(parents=True, exist_ok=True)
    low, high = (697, 770, 852, 941), (1209, 1336, 1477)
    keys = {str(1 + 3 * r + c): (low[r], high[c]) for r in range(3) for c in range(3)} | {"0": (low[3], high[1])}
    for digit, (a, b) in sorted(keys.items()):
        for voice in ("ann", "ben", "cleo"):
            for take in range(4):
                n, start, loud = rng.randrange(1600, 2400), rng.randrange(200, 700), rng.uniform(20, 45)
                wave = bytearray()
                for i in range(n):
                    seconds = i / 8000
                    sound = loud * (math.sin(2 * math.pi * a * seconds) + math.sin(2 * math.pi * b * seconds)) if start < i < n - 200 else 0
                    wave.append(128 + round(max(-127, min(127, sound + rng.gauss(0, 3)))))
                head = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8) + b"data" + struct.pack("<I", n)
                pad = b"\0" * (n % 2)
                body = head + bytes(wave) + pad
                (folder / f"{digit}_{voice}_{take}.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)


if __name__ == "__main__":
    reviews()
    reviews_zh()
    digits()
    chat()
    shapes()
    tones()
