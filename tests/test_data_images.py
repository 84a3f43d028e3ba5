"""Every kind of odd image that the sets hold: the right pixels, upright, or BadImage with the file's name."""

import io
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
