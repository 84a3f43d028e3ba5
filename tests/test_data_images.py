"""Every kind of odd image that the sets hold: the right pixels, upright, or BadImage with the file's name."""

import io
import os
import random
import struct
import zlib
from functools import partial

import numpy as np
import pytest
from PIL import Image

import data

RED = (250, 10, 20)
BLUE = (10, 20, 240)
WHITE = (255, 255, 255)
ORIENTATION = 0x0112  # the EXIF tag


def scene() -> Image.Image:
    """48 x 32: the upper left quarter red, the rest blue; quarters are whole blocks of a JPEG."""
    image = Image.new("RGB", (48, 32), BLUE)
    image.paste(RED, (0, 0, 24, 16))
    return image


def noise() -> Image.Image:
    """64 x 64, which no format stores in a few bytes."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def check(path, size=(48, 32), corner=RED, tolerance=12):
    """RGB of that size, and the pixel at (4, 4) no further from `corner` than the tolerance."""
    image = data.read_image(path)
    assert image.mode == "RGB", path.name
    assert image.size == size, path.name
    difference = np.abs(np.asarray(image, int)[4, 4] - corner)
    assert difference.max() <= tolerance, path.name


def test_modes_and_false_names(tmp_path):
    scene().save(tmp_path / "plain.jpg", quality=95)
    scene().save(tmp_path / "png.jpg", "PNG")
    scene().save(tmp_path / "webp.jpg", "WEBP", lossless=True)
    scene().convert("P").save(tmp_path / "gif.jpg", "GIF")
    scene().quantize(8).save(tmp_path / "palette.png")
    scene().convert("RGBA").save(tmp_path / "opaque.png")
    for file in sorted(tmp_path.iterdir()):
        check(file, tolerance=30 if file.name == "gif.jpg" else 12)
    scene().convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    check(tmp_path / "cmyk.jpg", tolerance=25)
    scene().convert("L").save(tmp_path / "grey.jpg", quality=95)
    luma = round(.299 * 250 + .587 * 10 + .114 * 20)  # of RED
    check(tmp_path / "grey.jpg", corner=[luma] * 3)
    scene().convert("1").save(tmp_path / "bits.png")
    assert set(data.read_image(tmp_path / "bits.png").get_flattened_data()) <= {(0, 0, 0), WHITE}


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    ramp = np.array([[0, 257 * 10, 257 * 200, 65535]] * 4, np.uint16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    Image.fromarray(ramp).save(tmp_path / "ramp.tif")
    Image.fromarray(ramp.astype(np.int32)).save(tmp_path / "wide.tif")
    for name in ("ramp.png", "ramp.tif", "wide.tif"):
        row = np.asarray(data.read_image(tmp_path / name))[0].tolist()
        assert row == [[value] * 3 for value in (0, 10, 200, 255)]


def first_row(path, values) -> list[int]:
    """What becomes of four rows of grey."""
    Image.fromarray(np.array([values] * 4)).save(path)
    row = np.asarray(data.read_image(path))[0]  # (width, 3)
    assert (row == row[:, :1]).all()
    return row[:, 0].tolist()


@pytest.mark.parametrize("values, expected", [
    (np.float32([0, .2, .5, 1]), [0, 51, 128, 255]),           # 0 to 1, as microscopes and renderers write
    (np.float32([0, 10, 200, 255]), [0, 10, 200, 255]),        # 0 to 255
    (np.float32([0, 2570, 51400, 65535]), [0, 10, 200, 255]),  # 0 to 65535
    (np.float32([-1, 0, .5, 1]), [0, 128, 191, 255]),          # no usual range: its own
    (np.float32([0, np.nan, np.inf, 1]), [0, 0, 255, 255]),
    (np.float32([-3, -3, -3, -3]), [0, 0, 0, 0]),
    # 0 to 1, but for a pixel in a hundred at either end: resampling overshoots
    (np.float32([0] * 80 + [1] * 118 + [-.1, 1.2]), [0] * 80 + [255] * 118 + [0, 255]),
    (np.int32([0, 10, 200, 255]), [0, 10, 200, 255]),
    (np.int32([0, 0, 1, 1]), [0, 0, 255, 255]),                # a mask
    (np.int32([0, 2 ** 29, 2 ** 30, 2 ** 31 - 1]), [0, 64, 128, 255]),
    (np.int32([0, 50_000, 100_000, 100_000]), [0, 128, 255, 255])])
def test_32_bit_grey_is_neither_black_nor_clipped(tmp_path, values, expected):
    assert first_row(tmp_path / "grey.tif", values) == expected


def test_unsigned_integers_of_32_bits(tmp_path):
    """Pillow writes none. Above 2 ** 31 its own array is negative."""
    row = struct.pack("<4I", 0, 2 ** 30, 2 ** 31, 2 ** 32 - 1)
    tags = [(256, 4), (257, 2), (258, 32), (259, 1), (262, 1), (273, 8), (277, 1), (278, 2), (279, 32),
            (339, 1)]
    content = b"II*\0" + struct.pack("<I", 8 + 32) + row + row + struct.pack("<H", len(tags))
    for tag, value in tags:
        content += struct.pack("<HHII", tag, 4, 1, value)
    (tmp_path / "large.tif").write_bytes(content + bytes(4))
    assert np.asarray(data.read_image(tmp_path / "large.tif"))[0, :, 0].tolist() == [0, 64, 128, 255]


def test_what_is_transparent_is_white(tmp_path):
    clear = Image.new("RGBA", (8, 8), (*RED, 0))
    clear.save(tmp_path / "clear.png")
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    half.save(tmp_path / "half.png")
    half.convert("LA").save(tmp_path / "half-la.png")
    Image.new("L", (8, 8), 9).save(tmp_path / "key.png", transparency=9)
    gif = Image.new("P", (8, 8), 1)
    gif.putpalette([0, 0, 0, *RED])
    gif.save(tmp_path / "clear.gif", transparency=1)
    gif.save(tmp_path / "red.gif", transparency=0)
    for name, colour in [("clear.png", WHITE), ("half.png", (127,) * 3), ("half-la.png", (127,) * 3),
                         ("key.png", WHITE), ("clear.gif", WHITE), ("red.gif", RED)]:
        check(tmp_path / name, (8, 8), colour, tolerance=1)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])  # a TIFF is turned by Pillow itself
@pytest.mark.parametrize("orientation, red_corner", [(1, "top left"), (2, "top right"), (3, "bottom right"),
                                                     (4, "bottom left"), (5, "top left"), (6, "top right"),
                                                     (7, "bottom right"), (8, "bottom left")])
def test_exif_turns_it_upright(tmp_path, orientation, red_corner, suffix):
    """Orientation names where the stored row 0 and column 0 are shown: 6 is right and top, so top right."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    scene().save(tmp_path / f"turned.{suffix}", exif=exif, quality=95)
    image = data.read_image(tmp_path / f"turned.{suffix}")
    assert image.size == ((48, 32) if orientation < 5 else (32, 48))

    y = 3 if "top" in red_corner else image.height - 4
    x = 3 if "left" in red_corner else image.width - 4
    assert image.getpixel((x, y))[0] > 200
    corners = [(u, v) for u in (3, image.width - 4) for v in (3, image.height - 4)]
    assert sum(image.getpixel(corner)[0] > 200 for corner in corners) == 1


# Whole pixels beside something broken or long


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


LONG = zlib.compress(b"x" * 3_000_000)  # unpacked it is longer than Pillow allows


def odd_png(odd: bytes, place: bytes, **options) -> bytes:
    """The scene with something odd before the chunks of this kind."""
    content = encoded(scene(), "PNG", **options)
    at = content.index(place) - 4
    return content[:at] + odd + content[at:]


@pytest.mark.parametrize("place", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("odd", [
    chunk(b"zTXt", b"key\0\0" + LONG), chunk(b"iTXt", b"key\0\1\0\0\0" + LONG),
    chunk(b"iCCP", b"name\0\0" + LONG), chunk(b"zTXt", b"key\0\0" + zlib.compress(b"x" * 1_000_000)) * 70,
    chunk(b"zTXt", b"key\0\1?"), chunk(b"iCCP", b"?"), chunk(b"pHYs", b"?"), chunk(b"gAMA", b"?"),
    chunk(b"acTL", b"?"), b"\0\0\0\4tEXta\0cd\0\0\0\0"],
    ids=["zTXt", "iTXt", "iCCP", "many texts", "no compression", "no profile", "no size", "no gamma",
         "no animation", "checksum"])
def test_a_png_with_a_long_or_broken_text(tmp_path, odd, place):
    """Its pixels are read, and turned by the EXIF tag that stands beside it."""
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    (tmp_path / "odd.png").write_bytes(odd_png(odd, place, exif=exif))
    image = data.read_image(tmp_path / "odd.png")
    assert image.getpixel((44, 28)) == RED
    assert image.getpixel((4, 4)) == BLUE


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damage
@pytest.mark.parametrize("place", [b"IDAT", b"IEND"])
@pytest.mark.parametrize("odd", [
    chunk(b"eXIf", b"Exif\0\0garbage"), chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"), chunk(b"eXIf", b""),
    chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 10\nno hex\n")],
    ids=["garbage", "cut off", "empty", "in a text"])
def test_a_png_with_broken_exif(tmp_path, odd, place):
    (tmp_path / "odd.png").write_bytes(odd_png(odd, place))
    check(tmp_path / "odd.png", tolerance=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("exif, cut", [(b"garbage!", 0), (b"II*\0\xff\xff\xff\xff", 0), (b"II*\0....", 5)])
def test_a_webp_with_broken_exif(tmp_path, exif, cut):
    """cut: so many bytes of it are missing."""
    whole = encoded(scene(), "WEBP", lossless=True, exif=b"Exif\0\0MM")
    pixels = whole[8:whole.index(b"EXIF")]
    body = pixels + b"EXIF" + struct.pack("<I", len(exif)) + exif
    content = b"RIFF" + struct.pack("<I", len(body)) + body
    (tmp_path / "odd.webp").write_bytes(content[:len(content) - cut])
    check(tmp_path / "odd.webp", tolerance=0)


def test_tiny_animated_and_odd_tags(tmp_path):
    Image.new("RGB", (1, 1), RED).save(tmp_path / "one.png")
    assert data.read_image(tmp_path / "one.png").getpixel((0, 0)) == RED
    black = Image.new("RGB", (8, 8))
    Image.new("RGB", (8, 8), RED).save(tmp_path / "two.gif", save_all=True, append_images=[black])
    check(tmp_path / "two.gif", (8, 8))  # the first frame
    exif = Image.Exif()
    exif[ORIENTATION] = 77
    Image.new("RGB", (8, 8), RED).save(tmp_path / "tag.jpg", exif=exif)
    check(tmp_path / "tag.jpg", (8, 8))  # no such orientation: as it is


def test_as_thin_as_the_image_processor_takes(tmp_path):
    Image.new("RGB", (400, 2), RED).save(tmp_path / "thin.png")
    assert data.read_image(tmp_path / "thin.png").size == (400, 2)
    Image.new("RGB", (2, 401), RED).save(tmp_path / "thread.png")
    with pytest.raises(data.BadImage, match="2 x 401 pixels are too thin for a grid of patches"):
        data.read_image(tmp_path / "thread.png")


def test_unreadable_images_raise_bad_image_with_their_name(tmp_path):
    for suffix in ("jpg", "png", "gif", "webp"):
        noise().save(tmp_path / f"whole.{suffix}")
        content = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(content[:len(content) // 2])
    png = io.BytesIO()
    noise().save(png, "PNG")
    (tmp_path / "damaged.png").write_bytes(png.getvalue()[:200] + bytes(100) + png.getvalue()[300:])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("<html>not found</html>")
    (tmp_path / "folder.jpg").mkdir()
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)  # ten gigabytes, it says
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    Image.new("RGB", (3000, 2)).save(tmp_path / "thread.png")  # no patch grid fits an aspect ratio above 200
    for name in ("cut.jpg", "cut.png", "cut.gif", "cut.webp", "damaged.png", "empty.jpg", "text.jpg",
                 "absent.jpg", "folder.jpg", "bomb.png", "thread.png"):
        with pytest.raises(data.BadImage, match=name) as e:
            data.read_image(tmp_path / name)
        assert "\n" not in str(e.value)


def test_a_pipe_or_a_device_is_no_picture_whatever_its_name(tmp_path):
    """To open a pipe would wait for a writer, to read /dev/zero would never end."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "zero.jpg"):
        with pytest.raises(data.BadImage, match=f"{name}: it is a pipe or a device, no file"):
            data.read_image(tmp_path / name)


def test_a_program_named_as_a_picture_is_not_run(tmp_path):
    """Pillow hands PostScript to another program, which this would keep busy for ever."""
    (tmp_path / "loop.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{ } loop\n")
    with pytest.raises(data.BadImage, match="loop.jpg: cannot identify"):
        data.read_image(tmp_path / "loop.jpg")


def spoilt(content: bytes, rng: random.Random) -> bytes:
    """With a few bytes changed, most of them in the header, put in or cut off."""
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 3, 12])):
        at = rng.randrange(len(content) + 1)
        kind = rng.randrange(5)
        if kind == 0:
            content[at:at + rng.randrange(8)] = rng.randbytes(rng.randrange(8))
        elif kind == 1 and rng.random() < .3:
            content = content[:at]
        elif content:
            at = min(at, len(content) - 1) if kind == 2 else rng.randrange(min(64, len(content)))
            content[at] = rng.choice([0, 1, 127, 128, 255, rng.randrange(256)])
    return bytes(content)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damage
def test_thousands_of_spoilt_pictures_are_read_or_named(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    small = noise().resize((12, 10))
    whole = [encoded(small, "PNG", exif=exif), encoded(small.quantize(8), "PNG", transparency=3),
             encoded(small, "JPEG", exif=exif), encoded(small.convert("CMYK"), "JPEG"), encoded(small, "GIF"),
             encoded(small, "WEBP", exif=exif), encoded(small, "TIFF", exif=exif), encoded(small, "BMP"),
             encoded(small.convert("F"), "TIFF"), encoded(small.convert("I"), "TIFF"), encoded(small, "PPM"),
             encoded(small, "JPEG2000"), encoded(small, "ICO"), encoded(small, "TGA"), encoded(small, "PCX")]
    rng = random.Random(0)
    read = 0
    for number in range(2000):
        file = tmp_path / f"{number}.jpg"
        file.write_bytes(spoilt(rng.choice(whole), rng))
        try:
            assert data.read_image(file).mode == "RGB"
            read += 1
        except data.BadImage as error:
            assert file.name in str(error)
            assert "\n" not in str(error)
    assert 300 < read < 1700  # neither all nor nothing


def test_the_readable_examples_their_images_and_a_line_for_each_other(tmp_path):
    Image.new("RGB", (3, 5), RED).save(tmp_path / "red.png")
    Image.new("RGB", (7, 5), BLUE).save(tmp_path / "blue.png")
    examples = []
    for name in ("red.png", "absent.png", "blue.png"):
        examples.append(data.Example(name, "label", "domain", partial(data.read_image, tmp_path / name)))
    readable, images, unreadable = data.read_images(examples)
    assert [example.id for example in readable] == ["red.png", "blue.png"]
    assert [image.size for image in images] == [(3, 5), (7, 5)]
    assert len(unreadable) == 1
    assert unreadable[0].startswith(f"cannot read the image {tmp_path}/absent.png: ")
    assert data.read_images([]) == ([], [], [])
