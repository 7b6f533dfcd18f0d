from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from made_slides import Ellipse, MadeSlide
from PIL import Image

from histolight.errors import RequestError
from histolight.slides.reader import SlideError, list_slides, open_slide, slide_name

MADE = MadeSlide((600, 400), [Ellipse(300, 200, 280, 180)], [Ellipse(300, 200, 100, 80)], mpp=0.25)


def read_all(path: Path, level: int = 0, mpp: float | None = None) -> np.ndarray:
    slide = open_slide(path, mpp)
    pixels = slide.read(level, 0, 0, *slide.sizes[level])
    slide.close()
    return pixels


@pytest.mark.parametrize("name", ["a.tif", "a.ome.tif", "ome_by_content.tif"])
def test_every_level_of_a_pyramid_is_read_as_it_was_written(tmp_path: Path, name: str) -> None:
    path = MADE.write(tmp_path / name, compression="zlib", ome="ome" in name)
    slide = open_slide(path)
    assert slide.mpp == pytest.approx(0.25, rel=1e-5)
    assert slide.sizes == ((600, 400), (300, 200), (150, 100))
    assert slide.downsamples == pytest.approx((1, 2, 4))
    for level, factor in enumerate((1, 2, 4)):
        expected = MADE.pixels(0, 0, 256, 100, factor)[: slide.sizes[level][1], : slide.sizes[level][0]]
        found = slide.read(level, 0, 0, min(256, slide.sizes[level][0]), 100)
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(slide.read(0, 256, 256, 256, 144), MADE.pixels(256, 256, 256, 144))
    slide.close()


@pytest.mark.parametrize("name", ["a.png", "plain.tif", "palette.png"])
def test_plain_pictures_are_read_where_their_pixel_size_is_given(tmp_path: Path, name: str) -> None:
    pixels = MADE.pixels(0, 0, 256, 256)
    picture = Image.fromarray(pixels)
    if name == "palette.png":
        picture = picture.quantize(16)
        pixels = np.asarray(picture.convert("RGB"))
    picture.save(tmp_path / name)
    np.testing.assert_array_equal(read_all(tmp_path / name, mpp=0.972), pixels)


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    pixels = np.zeros((40, 50, 4), np.uint8)
    pixels[:20] = (100, 50, 150, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = read_all(tmp_path / "a.png", mpp=1)
    assert (found[:20] == (100, 50, 150)).all()
    assert (found[20:] == 255).all()


@pytest.mark.parametrize(("dpi", "said"), [(None, "does not say its pixel size"), (72, "says 352.7 µm a pixel")])
def test_a_missing_or_impossible_pixel_size_is_asked_for(tmp_path: Path, dpi: int | None, said: str) -> None:
    options = {"dpi": (dpi, dpi)} if dpi else {}
    Image.new("RGB", (50, 50)).save(tmp_path / "a.png", **options)
    with pytest.raises(SlideError, match=rf"a.png {said}.*: give it, data.mpp=MICRONS .*for every slide of the folder"):
        open_slide(tmp_path / "a.png")
    given = open_slide(tmp_path / "a.png", 0.5)
    assert (given.mpp, given.stated_mpp) == (0.5, None)


def test_a_pixel_size_in_the_tags_of_a_picture_is_taken(tmp_path: Path) -> None:
    Image.new("RGB", (50, 50)).save(tmp_path / "a.png", dpi=(25400 / 0.972, 25400 / 0.972))
    assert open_slide(tmp_path / "a.png").mpp == pytest.approx(0.972, rel=1e-3)


def test_a_given_pixel_size_goes_before_the_file_and_says_so(tmp_path: Path, caplog) -> None:
    path = MADE.write(tmp_path / "a.tif")
    given = open_slide(path, 0.5)
    assert (given.mpp, given.stated_mpp) == (0.5, pytest.approx(0.25, rel=1e-5))
    assert "a.tif says 0.25 µm a pixel, and data.mpp=0.5 is taken" in caplog.text


def test_pixels_that_are_not_square_are_refused(tmp_path: Path) -> None:
    options = {"resolution": (20000, 40000), "resolutionunit": "CENTIMETER", "tile": (256, 256)}
    tifffile.imwrite(tmp_path / "a.tif", MADE.pixels(0, 0, 256, 256), photometric="rgb", **options)
    with pytest.raises(SlideError, match=r"a.tif has pixels of 0.5 x 0.25 µm"):
        open_slide(tmp_path / "a.tif")


def _truncated(path: Path, name: str, part: float) -> Path:
    data = path.read_bytes()
    (path.parent / name).write_bytes(data[: int(len(data) * part)])
    return path.parent / name


@pytest.mark.parametrize(
    "name", ["empty.svs", "empty.png", "text.svs", "text.tif", "text.png", "text.mrxs", "cut.tif", "cut.ome.tif"]
)
def test_a_file_that_is_no_slide_is_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"" if "empty" in name else b"no slide at all\n" * 100)
    if name.startswith("cut"):
        _truncated(MADE.write(tmp_path / "whole.tif", ome="ome" in name), name, 0.4)
    with pytest.raises(SlideError, match=rf"^{name} (is empty|is cut short|can't be read as a slide)") as raised:
        open_slide(path, 0.5)
    assert "\n" not in str(raised.value)


def test_an_ome_set_over_several_files_is_one_line(tmp_path: Path) -> None:
    """Each plane in a file of its own; of the files but the first, the metadata lie elsewhere."""
    plane = np.full((64, 64, 3), 200, np.uint8)
    tifffile.imwrite(tmp_path / "set_0.ome.tif", plane, photometric="rgb", metadata={"axes": "YXS"})
    with tifffile.TiffFile(tmp_path / "set_0.ome.tif") as file:
        text = file.ome_metadata
    assert text is not None
    first = '<TiffData IFD="0" PlaneCount="1"><UUID FileName="set_0.ome.tif">urn:uuid:0</UUID></TiffData>'
    second = '<TiffData IFD="0" FirstZ="1" PlaneCount="1"><UUID FileName="set_1.ome.tif">urn:uuid:1</UUID></TiffData>'
    start, end = text.index("<TiffData"), text.index("</Pixels>")
    text = text[:start] + first + second + text[end:]
    text = text.replace('SizeZ="1"', 'SizeZ="2"')
    text = re.sub(r'(<OME [^>]*UUID=")[^"]*', r"\1urn:uuid:0", text)
    elsewhere = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">'
        '<BinaryOnly MetadataFile="set_0.ome.tif" UUID="urn:uuid:0"/></OME>'
    )
    for name, description in (("set_0.ome.tif", text), ("set_1.ome.tif", elsewhere)):
        tifffile.imwrite(tmp_path / name, plane, photometric="rgb", description=description.encode(), metadata=None)
        with pytest.raises(SlideError, match=rf"^{name} is spread over several files: join them into one$"):
            open_slide(tmp_path / name, 0.5)


def test_damage_inside_a_slide_is_one_line_where_it_is_read(tmp_path: Path) -> None:
    path = MADE.write(tmp_path / "a.tif", levels=1)
    with tifffile.TiffFile(path) as file:
        offset, count = file.pages[0].dataoffsets[4], file.pages[0].databytecounts[4]
    data = bytearray(path.read_bytes())
    data[offset : offset + count] = b"\xff" * count
    path.write_bytes(data)
    slide = open_slide(path)
    with pytest.raises(SlideError, match=r"^a is damaged near x=256, y=256 \("):
        slide.read(0, 256, 256, 100, 100)


@pytest.mark.parametrize("kind", ["sixteen.tif", "sixteen.png", "five_channels.ome.tif"])
def test_other_than_8_bit_rgb_is_refused(tmp_path: Path, kind: str) -> None:
    if kind == "five_channels.ome.tif":
        pixels = np.zeros((5, 64, 64), np.uint8)
        tifffile.imwrite(tmp_path / kind, pixels, photometric="minisblack", metadata={"axes": "CYX"})
    elif kind == "sixteen.tif":
        tifffile.imwrite(tmp_path / kind, np.zeros((64, 64, 3), np.uint16), photometric="rgb")
    else:
        Image.fromarray(np.zeros((64, 64), np.uint16)).save(tmp_path / kind)
    with pytest.raises(SlideError, match=f"^{kind} "):
        open_slide(tmp_path / kind, 0.5)


def test_a_folder_is_looked_through(tmp_path: Path) -> None:
    for name in ("b.svs", "a.ome.tif", "twice.svs", "twice.tif", "notes.txt", "film.mp4", ".hidden.svs"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "b").mkdir()
    slides, problems, others = list_slides(tmp_path)
    assert [path.name for path in slides] == ["a.ome.tif", "b.svs"]
    assert [slide_name(path) for path in slides] == ["a", "b"]
    assert problems == {
        "twice.svs": "has the name of twice.tif: rename one of them",
        "twice.tif": "has the name of twice.svs: rename one of them",
        "film.mp4": "is no slide by its name: move it elsewhere, or convert it to a pyramidal TIFF",
    }
    assert others == ["notes.txt"]


def test_the_files_that_hold_a_vms_are_no_slides_of_their_own(tmp_path: Path) -> None:
    pixels = MADE.pixels(0, 0, 256, 256)
    for name in ("a.jpg", "a(1,0).jpg"):
        Image.fromarray(pixels).save(tmp_path / name, subsampling=0, quality=95, restart_marker_blocks=4)
    for name in ("a_macro.jpg", "a_map2.jpg"):
        Image.fromarray(pixels[:64, :128]).save(tmp_path / name, subsampling=0, restart_marker_blocks=4)
    (tmp_path / "a.opt").write_bytes(b"\0" * 40)
    Image.fromarray(pixels).save(tmp_path / "b.jpg")
    index = {"NoLayers": 1, "NoJpegColumns": 2, "NoJpegRows": 1, "ImageFile": "a.jpg", "ImageFile(1,0)": "a(1,0).jpg"}
    index |= {"MapFile": "a_map2.jpg", "OptimisationFile": "a.opt", "MacroImage": "a_macro.jpg"}
    index |= {"PhysicalWidth": 128000, "PhysicalHeight": 64000}  # nanometres
    lines = ["[Virtual Microscope Specimen]", *(f"{key}={value}" for key, value in index.items())]
    (tmp_path / "a.vms").write_text("\r\n".join(lines))
    assert list_slides(tmp_path) == ([tmp_path / "a.vms", tmp_path / "b.jpg"], {}, [])
    slide = open_slide(tmp_path / "a.vms")
    assert (slide.mpp, slide.sizes[0]) == (0.25, (512, 256))
    assert np.abs(slide.read(0, 256, 0, 256, 256).astype(int) - pixels).max() < 30
    slide.close()


def test_a_folder_without_slides_or_none_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="can't be read .*: give the slides' folder, data.root=FOLDER"):
        list_slides(tmp_path / "nowhere")
    with pytest.raises(RequestError, match="holds no slide"):
        list_slides(tmp_path)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    assert list_slides(tmp_path)[0] == [tmp_path / "a.png"]


def test_the_real_svs_and_ome_tiff_open(real_slides: Path) -> None:
    svs = open_slide(real_slides / "CMU-1-Small-Region.svs")
    assert (svs.mpp, svs.sizes) == (0.499, ((2220, 2967),))
    pixels = svs.read(0, 1000, 1000, 200, 100)
    assert pixels.shape == (100, 200, 3)
    assert pixels.std() > 10
    ome = open_slide(real_slides / "OS-1-detail.ome.tif")
    assert ome.mpp == pytest.approx(0.2271, rel=1e-3)
    red, green, blue = ome.read(0, 0, 0, *ome.sizes[0]).mean(axis=(0, 1))
    assert green < red < blue  # haematoxylin and eosin: a file read as YCbCr would be green
