"""Extracts the English text that the benchmark uses: Jane Austen's novels, as Debian's r-cran-janeaustenr ships them.

    python tools/make_text.py PACKAGE_FOLDER OUT_FOLDER

PACKAGE_FOLDER is the package, unpacked (`dpkg-deb -x`). A novel has one use only, so that no sentence is in both:
  calibration.txt        Emma: what the quantiser measures activations on
  perplexity.txt         Persuasion: the whole novel
  perplexity-short.txt   its first 24,000 characters or so, for the shortened benchmark
The novels are in the public domain. A paragraph becomes one line, paragraphs are parted by an empty line.
"""

import pathlib
import struct
import sys
import zlib

CALIBRATION_BOOK = "EMMA"
PERPLEXITY_BOOK = "PERSUASION"
SHORT_CHARACTERS = 24_000  # about 5,500 tokens: two minutes at 50 tokens/s, seconds on most machines

# R's serialisation: the type is the low byte of a flag word; sizes are big-endian 32-bit.
R_STRING_VECTOR = 16
R_STRING = 9
R_MISSING_STRING = -1


def compressed_objects(data):
    """R's lazy-load database: each object is its inflated size (big-endian) and a zlib stream."""
    position = 0
    while position < len(data):
        (size,) = struct.unpack_from(">I", data, position)
        inflater = zlib.decompressobj()
        content = inflater.decompress(data[position + 4:])
        if len(content) != size:
            raise ValueError(f"an object at byte {position} inflates to {len(content)} bytes, expected {size}")
        yield content
        position = len(data) - len(inflater.unused_data)


def string_vector(content):
    """The lines of one serialised R character vector; None if the object is something else."""
    if content[:2] != b"X\n":
        return None
    (version,) = struct.unpack_from(">i", content, 2)
    position = 14  # "X\n", then the version, the writer's version, the oldest reader's version
    if version == 3:
        position += 4 + struct.unpack_from(">i", content, position)[0]  # the name of the native encoding
    flags, count = struct.unpack_from(">ii", content, position)
    if flags & 0xFF != R_STRING_VECTOR:
        return None
    position += 8
    lines = []
    for _ in range(count):
        flags, length = struct.unpack_from(">ii", content, position)
        position += 8
        if flags & 0xFF != R_STRING:
            raise ValueError(f"expected a string of R at byte {position - 8}, found type {flags & 0xFF}")
        if length != R_MISSING_STRING:
            lines.append(content[position:position + length].decode("utf-8"))
            position += length
    return lines


def paragraphs(lines):
    """Lines of running text joined to paragraphs, which empty lines part."""
    found, current = [], []
    for line in lines + [""]:
        if line.strip():
            current.append(line.strip())
        elif current:
            found.append(" ".join(current))
            current = []
    return found


def first_characters(parts, limit):
    taken, length = [], 0
    for part in parts:
        if length >= limit:
            break
        taken.append(part)
        length += len(part) + 2
    return taken


def main(package, out):
    database = next(pathlib.Path(package).rglob("janeaustenr/data/Rdata.rdb"), None)
    if database is None:
        raise SystemExit(f"{package}: expected janeaustenr/data/Rdata.rdb in it, found none; "
                         "is this Debian's r-cran-janeaustenr, unpacked?")
    books = {}
    for content in compressed_objects(database.read_bytes()):
        lines = string_vector(content)
        if lines:
            books[lines[0].strip().upper()] = paragraphs(lines)
    missing = {CALIBRATION_BOOK, PERPLEXITY_BOOK} - books.keys()
    if missing:
        raise SystemExit(f"{database}: expected the books {sorted(missing)}, found {sorted(books)}")
    texts = {
        "calibration.txt": books[CALIBRATION_BOOK],
        "perplexity.txt": books[PERPLEXITY_BOOK],
        "perplexity-short.txt": first_characters(books[PERPLEXITY_BOOK], SHORT_CHARACTERS),
    }
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for name, parts in texts.items():
        text = "\n\n".join(parts) + "\n"
        (out / name).write_text(text, encoding="utf-8")
        print(f"{out / name}: {len(text)} characters")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: make_text.py PACKAGE_FOLDER OUT_FOLDER")
    main(sys.argv[1], sys.argv[2])
