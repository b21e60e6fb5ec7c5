"""Damaged and odd image folders: what each of them is, and what the command owes to it."""

import io
import os
import socket
import struct
import zlib

import numpy as np
from PIL import Image

READ = ("GIF", "BMP", "WEBP")
NOT_READ = ("TIFF", "ICO", "PPM")


def encode(kind="JPEG", size=(24, 20), mode="RGB", seed=0, **options):
    noise = np.random.default_rng(seed).integers(0, 255, [size[1], size[0], 3]).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, kind, **options)
    return file.getvalue()


JPEG, PNG = encode(), encode("PNG")


def png_of(width, height):
    """A PNG of a few bytes that claims a size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return PNG[:8] + chunk + PNG[33:]


def jpeg_of(width, height):
    """The JPEG with another size in its frame header."""
    at = JPEG.index(b"\xff\xc0")
    return JPEG[: at + 5] + struct.pack(">HH", height, width) + JPEG[at + 9 :]


def write_good(root):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(4):
                kind = ("JPEG", "PNG")[index % 2]
                (folder / f"{index}.{kind.lower()}").write_bytes(encode(kind, seed=index))


def a_file(content):
    return lambda root: (root / "train/cat/odd.jpg").write_bytes(content)


def _link(target):
    return lambda root: os.symlink(target, root / "train/cat/odd.jpg")


def _socket(root):
    os.chdir(root)  # A socket's path is short.
    server = socket.socket(socket.AF_UNIX)
    server.bind("train/cat/odd.jpg")
    server.close()


def _named(name, content=JPEG, place="train/cat"):
    def write(root):
        path = os.path.join(os.fsencode(root / place), os.fsencode(name))
        with open(path, "wb") as file:
            file.write(content)

    return write


def _class(name):
    def write(root):
        for split in ("train", "test"):
            folder = os.path.join(os.fsencode(root / split), os.fsencode(name))
            os.mkdir(folder)
            with open(os.path.join(folder, b"0.jpg"), "wb") as file:
                file.write(JPEG)

    return write


def _remove(*names):
    def remove(root):
        for name in names:
            os.remove(root / name)

    return remove


def _renamed(old, new):
    return lambda root: os.rename(root / old, root / new)


def _emptied(name):
    def empty(root):
        for path in (root / name).iterdir():
            path.unlink()

    return empty


# Refused by the first bytes or by the kind of the file, before training: the message names it.
REFUSED = {
    "empty file": a_file(b""),
    "one byte": a_file(b"\xff"),
    "text": a_file(b"not an image"),
    "html": a_file(b"<!DOCTYPE html><html>not found</html>"),
    "zeros": a_file(bytes(1000)),
    "npy": a_file(b"\x93NUMPY\x01\x00"),
    "a newline": a_file(b"\n"),
    "git-lfs pointer": a_file(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
    "zip": a_file(b"PK\x03\x04"),
    "pdf": a_file(b"%PDF-1.7"),
    "svg": a_file(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "JPEG with a byte before": a_file(b"\x00" + JPEG),
    "PNG with text line ends": a_file(PNG.replace(b"\r\n", b"\n", 1)),
    "JPEG 2000": a_file(b"\x00\x00\x00\x0cjP  \r\n\x87\n"),
    "AVIF": a_file(b"\x00\x00\x00\x1cftypavif"),
    "HEIC": a_file(b"\x00\x00\x00\x18ftypheic"),
    **{f"{kind} named jpg": a_file(encode(kind)) for kind in NOT_READ},
    "pipe": lambda root: os.mkfifo(root / "train/cat/odd.jpg"),
    "socket": _socket,
    "device": _link("/dev/zero"),
    "null device": _link("/dev/null"),
    "terminal": _link("/dev/tty"),
    "broken link": _link("nowhere"),
    "link to itself": _link("odd.jpg"),
    "link to a folder": _link("../dog"),
    "link to a parent": _link("../.."),
    "folder among images": lambda root: (root / "train/cat/odd.jpg").mkdir(),
    "name not UTF-8": _named(b"odd\xff.jpg"),
    "PNG of many pixels": a_file(png_of(100_000, 100_000)),
    "PNG of the largest size": a_file(png_of(2**31 - 1, 2**31 - 1)),
    "PNG wider than the format": a_file(png_of(2**32 - 1, 2**32 - 1)),
    "test file of text": _named("odd.jpg", b"text", "test/dog"),
    "test pipe": lambda root: os.mkfifo(root / "test/dog/odd.jpg"),
}
# Found when it is decoded: the message names it, also with --skip_broken_images.
UNDECODABLE = {
    **{f"JPEG of {n} bytes": a_file(JPEG[:n]) for n in (3, 4, 10, 21, 25, 100, 200, 400)},
    **{f"WebP of {n} bytes": a_file(encode("WEBP")[:n]) for n in (16, 40, 200)},
    "GIF of 40 bytes": a_file(encode("GIF")[:40]),
    "BMP of 100 bytes": a_file(encode("BMP")[:100]),
    **{f"PNG of {n} bytes": a_file(PNG[:n]) for n in (8, 15, 20, 24, 33, 40, 60, 200)},
    "JPEG start and zeros": a_file(JPEG[:3] + bytes(300)),
    "JPEG start and noise": a_file(JPEG[:3] + bytes(range(256))),
    "PNG start and zeros": a_file(PNG[:8] + bytes(300)),
    "PNG with a flipped header bit": a_file(PNG[:18] + bytes([PNG[18] ^ 1]) + PNG[19:]),
    "PNG of no pixels": a_file(png_of(0, 0)),
    "JPEG of no height": a_file(jpeg_of(24, 0)),
    "JPEG of no width": a_file(jpeg_of(0, 20)),
    "JPEG of many pixels": a_file(jpeg_of(60_000, 60_000)),
    "PNG without pixels": a_file(PNG[:33] + PNG[-12:]),
}
# No dataset: the message names the folder.
LAYOUT = {
    "no train": _renamed("train", "training"),
    "empty training class": _emptied("train/cat"),
    "no test images": lambda root: (_emptied("test/cat")(root), _emptied("test/dog")(root)),
    "train is a file": lambda root: (
        _renamed("train", "old")(root), (root / "train").write_text("")
    ),
    "class unknown to train": _renamed("test/cat", "test/owl"),
    "class name not UTF-8": _class(b"ow\xffl"),
    "class name with a line break": _class("a\nb"),
    "classes are files": lambda root: (
        _renamed("train", "old")(root), (root / "train").mkdir(),
        (root / "train/cat").write_bytes(JPEG), (root / "train/dog").write_bytes(JPEG),
    ),
}  # fmt: skip
# Odd, but images: the run is what was asked for.
RUNS = {
    "nothing odd": lambda root: None,
    "one pixel": a_file(encode(size=(1, 1))),
    "one row": a_file(encode("PNG", size=(900, 1))),
    "one column": a_file(encode(size=(1, 900))),
    "gray": a_file(encode(mode="L")),
    "black and white": a_file(encode("PNG", mode="1")),
    "palette": a_file(encode("PNG", mode="P")),
    "alpha": a_file(encode("PNG", mode="RGBA")),
    "gray and alpha": a_file(encode("PNG", mode="LA")),
    "CMYK": a_file(encode(mode="CMYK")),
    "16 bits": a_file(encode("PNG", mode="I;16")),
    "progressive": a_file(encode(progressive=True)),
    "upper case name": _named("ODD.JPEG"),
    "no extension": _named("odd"),
    "PNG named jpg": a_file(PNG),
    "name with spaces": _named(" odd image .jpg"),
    "name in another script": _named("Кошка 猫.jpg"),
    "name of 250 characters": _named(250 * "x"),
    "name with a line break": _named("odd\nimage.jpg"),
    "name like a flag": _named("--odd=image.jpg"),
    "hidden file": _named(".DS_Store", b"\x00"),
    "hidden twin": _named("._odd.jpg", b"\x00\x05\x16\x07"),
    "thumbnail database": _named("Thumbs.db", b"\xd0\xcf\x11\xe0"),
    "desktop.ini": _named("desktop.ini", b"[.ShellClassInfo]"),
    "no test": _renamed("test", "testing"),
    **{f"{kind} named jpg": a_file(encode(kind)) for kind in READ},
    "hidden class": lambda root: (root / "train/.git").mkdir(),
    "class like a formula": _class("=1+1"),
    "class with a space": _class("a cat"),
    "class in another script": _class("猫"),
    "same image twice": a_file(encode(seed=0)),
    "hard link": lambda root: os.link(root / "train/cat/0.jpeg", root / "train/cat/odd.jpg"),
    "link to an image": _link("0.jpeg"),
    "bytes after the end": a_file(JPEG + b"more"),
    "one empty test class": _emptied("test/dog"),
    "different sizes": a_file(encode(size=(300, 200))),
}
