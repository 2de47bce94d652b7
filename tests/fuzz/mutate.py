"""Ways to damage a file: any bytes, the header fields of each format with its checksums mended, and texts.

Every function takes the random generator first and depends on it alone, so that a seed is a case.
"""

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from random import Random
from typing import Any

import yaml

NUMBERS = (0, 1, 2, 3, 7, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, -1)
WORDS = (
    *("", " ", "0", "-1", "1e400", "-1e400", "NaN", ".nan", "Infinity", "-.inf", "9" * 400, "9" * 5000, "0x1F", "1_0"),
    *("null", "~", "true", "True", "None", "[]", "{}", "[[]]", '""', "'", '"', "\\", "\t", "\r", "\n", "\n\n", "\x00"),
    *(";", ",", ":", "- ", "#", "|", "%", "&a", "*a", "!!python/object/apply:os.system [id]", "!!binary x", "? "),
    *("é", "雲", "🌩", "\u202e", "\ufeff", "\u2028", "\x1b[2J", "e\u0301", "\udcff"),
    *("..", "../..", "../outside", "../../outside/canary.txt", "/", "/etc/hostname", "~/x", "C:\\x", "file:///x", "."),
    *("2001-13-45", "12:99:99", "1970-01-01", "<b>x</b>", "$(id)", "x" * 300, "x/" * 300, "(", "(a+)+$", "[", "\\1"),
)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 255, 256, 2**31, 2**63, 2**64, 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308),
    *(float("nan"), float("inf"), float("-inf"), "", "x", "0", "nan", "雲", "\x00", "../outside", "x" * 2000),
    *([], [[]], [None], [0], [0, 0], [1e308, -1e308], ["x"] * 3, {}, {"x": 1}, {"": {}}, [{}], [float("nan")] * 3),
)
DEEP = (60, 1500, 20_000)  # levels of nesting: more than is sensible, than Python's stack, and than C's


def some_bytes(rng: Random, content: bytes, other: bytes) -> bytes:
    """One to four changes anywhere: bits, special numbers, chunks deleted, doubled, moved or zeroed, a splice."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4))):
        rng.choice(BYTES)(rng, changed, other)
    return bytes(changed)


def _place(rng: Random, content: bytearray) -> int:
    """Headers are short and matter most: half of the changes are there."""
    return rng.randrange(min(len(content), 96) if rng.random() < 0.5 else len(content)) if content else 0


def _span(rng: Random, content: bytearray) -> slice:
    start = _place(rng, content)
    return slice(start, start + rng.choice((1, 2, 4, 8, 16, 64, 256, 1 + len(content) // 3)))


def _flip(rng: Random, content: bytearray, _: bytes) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 64)) if content else 0):
        content[_place(rng, content)] ^= 1 << rng.randrange(8)


def _number(rng: Random, content: bytearray, _: bytes) -> None:
    width, place = rng.choice((1, 2, 4, 8)), _place(rng, content)
    value = rng.choice(NUMBERS) % 256**width
    content[place : place + width] = value.to_bytes(width, rng.choice(("little", "big")))


def _float(rng: Random, content: bytearray, _: bytes) -> None:
    place, value = _place(rng, content), rng.choice((float("nan"), float("inf"), -1.0, 1e300, 0.0))
    content[place : place + 8] = struct.pack(rng.choice("<>") + "d", value)


def _truncate(rng: Random, content: bytearray, _: bytes) -> None:
    del content[rng.choice((_place(rng, content), rng.randrange(len(content) + 1), 0, max(0, len(content) - 1))) :]


def _delete(rng: Random, content: bytearray, _: bytes) -> None:
    del content[_span(rng, content)]


def _double(rng: Random, content: bytearray, _: bytes) -> None:
    part, place = content[_span(rng, content)], _place(rng, content)
    content[place:place] = part * rng.choice((1, 1, 2, 50))


def _fill(rng: Random, content: bytearray, _: bytes) -> None:
    span = _span(rng, content)
    length = len(content[span])
    content[span] = rng.choice((bytes(length), b"\xff" * length, rng.randbytes(length)))


def _splice(rng: Random, content: bytearray, other: bytes) -> None:
    if rng.random() < 0.5:
        content[_place(rng, content) :] = other[rng.randrange(len(other) + 1) :]
    else:
        start = rng.randrange(len(other) + 1)
        content[_span(rng, content)] = other[start : start + rng.choice((4, 32, 256))]


def _append(rng: Random, content: bytearray, other: bytes) -> None:
    content += rng.choice((b"\x00" * 512, other, bytes(content), rng.randbytes(64)))


BYTES: tuple[Callable[[Random, bytearray, bytes], None], ...] = (
    *(_flip, _flip, _number, _number, _float, _truncate, _delete, _double, _fill, _splice, _append),
)


# ---- headers


def _set(rng: Random, content: bytearray, place: int, width: int, order: str = "little") -> None:
    """Put a special number, or one near the old one, into a field."""
    old = int.from_bytes(content[place : place + width], order)  # type: ignore[arg-type]
    value = rng.choice((*NUMBERS, old + 1, old - 1, old * 2, old // 2)) % 256**width
    content[place : place + width] = value.to_bytes(width, order)  # type: ignore[arg-type]


def png(rng: Random, content: bytes, other: bytes) -> bytes:
    """Fields of IHDR, contents of chunks, chunks moved, doubled or dropped; all checksums are right again."""
    chunks: list[tuple[bytes, bytearray]] = []
    place = 8
    while place + 8 <= len(content):
        length, kind = struct.unpack(">I4s", content[place : place + 8])
        chunks.append((kind, bytearray(content[place + 8 : place + 8 + length])))
        place += 12 + length
    for _ in range(rng.choice((1, 1, 2))):
        way, i = rng.randrange(5), rng.randrange(len(chunks))
        if way < 2 and len(header := chunks[0][1]) >= 13:
            field, width = rng.choice(((0, 4), (4, 4), (8, 1), (9, 1), (10, 1), (11, 1), (12, 1)))
            _set(rng, header, field, width, "big")
        elif way == 2:
            chunks[i] = (chunks[i][0], bytearray(some_bytes(rng, bytes(chunks[i][1]), other)))
        elif way == 3:
            chunks.insert(rng.randrange(len(chunks) + 1), chunks[i])
        elif len(chunks) > 1:
            del chunks[i]
    parts = [content[:8]]
    for kind, data in chunks:
        parts += [struct.pack(">I", len(data)), kind, data, struct.pack(">I", zlib.crc32(kind + data))]
    return b"".join(parts)


def tiff(rng: Random, content: bytes, _: bytes) -> bytes:
    """Tag, type, count or value of entries of the first directory, of a classic TIFF or a BigTIFF."""
    changed = bytearray(content)
    order = "little" if content[:2] == b"II" else "big"
    big = int.from_bytes(content[2:4], order) == 43  # type: ignore[arg-type]
    wide, step, head = (8, 20, 8) if big else (4, 12, 2)
    start = int.from_bytes(content[2 * wide - 4 : 3 * wide - 4] if not big else content[8:16], order)  # type: ignore[arg-type]
    count = int.from_bytes(content[start : start + head], order)  # type: ignore[arg-type]
    for _ in range(rng.choice((1, 1, 2, 3))):
        entry = start + head + step * rng.randrange(max(1, count))
        field, width = rng.choice(((0, 2), (2, 2), (4, wide), (4 + wide, wide), (4 + wide, 2), (4 + wide, wide)))
        if entry + field + width <= len(changed):
            _set(rng, changed, entry + field, width, order)
    return bytes(changed)


def bmp(rng: Random, content: bytes, _: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2))):
        field, width = rng.choice(
            ((2, 4), (10, 4), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), (30, 4), (34, 4), (46, 4))
        )
        _set(rng, changed, field, width)
    return bytes(changed)


def jpeg(rng: Random, content: bytes, other: bytes) -> bytes:
    """Length or content of one of the segments before the picture, such as its size or its tables."""
    changed, place, segments = bytearray(content), 2, []
    while place + 4 <= len(content) and content[place] == 0xFF and content[place + 1] != 0xDA:
        segments.append(place)
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    for _ in range(rng.choice((1, 1, 2)) if segments else 0):
        start = rng.choice(segments)
        _set(rng, changed, start + rng.choice((2, 4, 5, 7, 9, 10, 11, 12)), rng.choice((1, 2)), "big")
    return bytes(changed) if rng.random() < 0.8 else some_bytes(rng, bytes(changed), other)


def envi(rng: Random, content: bytes, _: bytes) -> bytes:
    """The value of one of the lines `key = value`."""
    lines = content.decode("latin-1").split("\n")
    fields = [i for i, line in enumerate(lines) if "=" in line]
    for i in rng.sample(fields, min(len(fields), rng.choice((1, 1, 2)))):
        key = lines[i].split("=")[0]
        lines[i] = f"{key}= {rng.choice((*map(str, NUMBERS), *WORDS, '{', '{1,2'))}"
    return "\n".join(lines).encode("utf-8", "replace")


def archive(rng: Random, content: bytes, other: bytes) -> bytes:
    """A member of a zip archive changed, or renamed, so that the archive itself is sound."""
    with zipfile.ZipFile(io.BytesIO(content)) as old:
        members = [[info.filename, old.read(info)] for info in old.infolist()]
    pickles = [i for i, (name, _) in enumerate(members) if name.endswith("data.pkl")]
    i = pickles[0] if pickles and rng.random() < 0.8 else rng.randrange(len(members))
    way = rng.randrange(8)
    if way == 0:
        del members[i]
    elif way == 1:
        members[i][0] = rng.choice(("../outside/evil", "/evil", "", "data/0", str(members[i][0]) + "x"))
    else:
        members[i][1] = some_bytes(rng, members[i][1], other[:4096])
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as new:
        for name, data in members:
            new.writestr(zipfile.ZipInfo(name), data)
    return packed.getvalue()


def safetensors(rng: Random, content: bytes, other: bytes) -> bytes:
    """The JSON header changed as a tree, with its length put right; in half of the cases what its metadata hold."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    metadata = header.get("__metadata__", {})
    if metadata and rng.random() < 0.6:
        key = rng.choice(sorted(metadata))
        try:
            metadata[key] = dumped(rng, tree(rng, json.loads(metadata[key])))
        except ValueError:
            metadata[key] = rng.choice(WORDS)
    else:
        header = tree(rng, header)
    text = dumped(rng, header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


# ---- trees and texts


def tree(rng: Random, value: Any) -> Any:
    """A JSON-like value with one to three of its parts replaced, dropped, doubled, renamed or moved."""
    value = deepcopy(value)
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = _changed(rng, value)
    return value


def _changed(rng: Random, value: Any) -> Any:
    holders = [place for place in _containers(value) if place]
    if not holders or rng.random() < 0.03:
        return deepcopy(rng.choice(VALUES))
    holder = rng.choice(holders)
    keys = sorted(holder, key=str) if isinstance(holder, dict) else range(len(holder))
    key, way = rng.choice(list(keys)), rng.randrange(7)
    if way == 0:
        del holder[key]
    elif way == 1 and isinstance(holder, dict):
        holder[rng.choice(("x", "", str(key) + "x", "../outside", "雲", "__class__"))] = holder.pop(key)
    elif way == 1:
        holder.insert(key, holder[key])
    elif way == 2:
        holder[key] = _near(rng, holder[key])
    elif way == 3:
        other = rng.choice(holders)
        holder[key] = deepcopy(other if other is not holder else [holder[key]])
    else:
        holder[key] = deepcopy(rng.choice(VALUES))  # a later change must not change the constant
    return value


def _near(rng: Random, value: Any) -> Any:
    """A value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return rng.choice((value + 1, -value, 0, value * 10**6, value // 2, type(value)(1), 10**9))
    if isinstance(value, str):
        return rng.choice((value + "x", value.upper(), value[:-1], rng.choice(WORDS), value + "/.."))
    return rng.choice(([value], value and list(value)[:1], {"x": value}))


def _containers(value: Any) -> list[Any]:
    found = [value] if isinstance(value, dict | list) else []
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        found += _containers(part)
    return found


def dumped(rng: Random, value: Any) -> str:
    """JSON, once in a while of a depth that no reader needs."""
    text = json.dumps(value)
    if rng.random() < 0.04:
        depth = rng.choice(DEEP)
        deep = rng.choice(("[" * depth, "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth))
        text = text.replace(":", f": {deep},", 1) if rng.random() < 0.5 else deep
    return text


def json_text(rng: Random, content: bytes, other: bytes) -> bytes:
    if rng.random() < 0.3:
        return text(rng, content, other)
    return dumped(rng, tree(rng, json.loads(content))).encode()


def json_lines(rng: Random, content: bytes, other: bytes) -> bytes:
    lines = content.decode().splitlines()
    i = rng.randrange(len(lines))
    lines[i] = json_text(rng, lines[i].encode(), other).decode("utf-8", "surrogateescape")
    return "\n".join(lines).encode("utf-8", "surrogateescape") + b"\n"


def yaml_text(rng: Random, content: bytes, other: bytes) -> bytes:
    """The tree changed, or the text; or what only YAML has: tags that would run code, aliases that multiply."""
    way = rng.random()
    if way < 0.45:
        return yaml.safe_dump(tree(rng, yaml.safe_load(content)), sort_keys=False).encode()
    if way < 0.55:
        layers = rng.choice((4, 9, 30))
        first, layer = rng.choice((("[x, x, x]", "[{}]"), ("{x: 1}", "{{<<: [{}]}}")))
        bomb = "\n".join(f"a{i + 1}: &a{i + 1} {layer.format(', '.join([f'*a{i}'] * 9))}" for i in range(layers))
        place = rng.choice(("net: {mean: *LAST}", "source: {root: *LAST}", "teacher: *LAST", "x: *LAST", "out: *LAST"))
        return f"a0: &a0 {first}\n{bomb}\n".encode() + place.replace("LAST", f"a{layers}").encode() + b"\n" + content
    if way < 0.6:
        depth = rng.choice(DEEP)
        deep = rng.choice(("[" * depth, "{a: " * depth, "- " * depth, "? " * depth, "[" * depth + "]" * depth))
        return b"out: " * rng.randrange(2) + deep.encode() + b"\n" + content * rng.randrange(2)
    return text(rng, content, other)


def text(rng: Random, content: bytes, other: bytes) -> bytes:
    """Lines dropped, doubled, swapped, cut or taken from another file; words replaced; at times bytes."""
    if rng.random() < 0.1:
        return some_bytes(rng, content, other)
    lines = content.decode("utf-8", "surrogateescape").split("\n")
    for _ in range(rng.choice((1, 1, 2, 4))):
        i, way = rng.randrange(len(lines)), rng.randrange(9)
        if way == 0 and len(lines) > 1:
            del lines[i]
        elif way == 1:
            lines.insert(rng.randrange(len(lines) + 1), lines[i])
        elif way == 2:
            lines.insert(i, rng.choice(other.decode("utf-8", "surrogateescape").split("\n")))
        elif way == 3:
            lines[i] = lines[i][: rng.randrange(len(lines[i]) + 1)]
        elif way == 4:
            lines[i] = rng.choice(("  ", "\t", "- ", "# ", "")) + lines[i].lstrip()
        else:
            lines[i] = _words(rng, lines[i])
    joined = rng.choice(("\n", "\n", "\n", "\r\n", "\r")).join(lines)
    encoding = "utf-8" if rng.random() < 0.95 else "utf-16"
    return joined.encode(encoding, "surrogatepass" if encoding == "utf-16" else "surrogateescape")


def _words(rng: Random, line: str) -> str:
    """One word of a line replaced, glued to another or doubled; separators are those of lists, CSV, YAML and JSON."""
    separators = [i for i, sign in enumerate(line) if sign in ' \t,:={}[]"/_.']
    starts = [0, *(i + 1 for i in separators)]
    start = rng.choice(starts)
    stop = min((i for i in separators if i >= start), default=len(line))
    word = line[start:stop]
    new = rng.choice(
        (*[rng.choice(WORDS)] * 4, word * 2, word[::-1], word + rng.choice(WORDS), rng.choice(WORDS) + word)
    )
    return line[:start] + new + line[stop:]


def csv_text(rng: Random, content: bytes, other: bytes) -> bytes:
    """Cells replaced."""
    if rng.random() < 0.3:
        return text(rng, content, other)
    rows = [line.split(",") for line in content.decode().splitlines()]
    for _ in range(rng.choice((1, 1, 3))):
        row = rng.choice(rows)
        row[rng.randrange(len(row))] = rng.choice(WORDS)
    return "\n".join(",".join(row) for row in rows).encode("utf-8", "surrogateescape") + b"\n"


HEADERS: dict[str, Callable[[Random, bytes, bytes], bytes]] = {
    **{".png": png, ".jpg": jpeg, ".bmp": bmp, ".tif": tiff, ".hdr": envi},
    **{".pt": archive, ".pth": archive, ".safetensors": safetensors},
    **{".json": json_text, ".jsonl": json_lines, ".yaml": yaml_text, ".csv": csv_text, ".txt": text, ".xml": text},
}


def mutated(rng: Random, name: str, content: bytes, others: Sequence[bytes]) -> bytes:
    """A valid file, damaged: by what its kind has, or anywhere; once in a while left as it is."""
    other = rng.choice(others)
    way = rng.random()
    if way < 0.02:
        return content
    suffix = name[name.rfind(".") :]
    share = 0.9 if suffix in (".json", ".jsonl", ".yaml", ".csv", ".txt") else 0.5
    if suffix in HEADERS and way < share:
        return HEADERS[suffix](rng, content, other)
    return some_bytes(rng, content, other)
