"""Labels by the centre rule, against a count of pixels that knows nothing of shapely."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
import tifffile
from made_slides import Ellipse
from PIL import Image

from histolight.slides.annotations import find_annotation, label_cells, read_tumour
from histolight.slides.grid import Grid, lay_grid
from histolight.slides.reader import Slide, SlideError

WIDTH, HEIGHT, MPP = 800, 640, 0.486
Ring = list[tuple[float, float]]


def blank_slide(width: int = WIDTH, height: int = HEIGHT) -> Slide:
    """A slide of whose pixels nobody asks: two pixels of it are one of a tile."""

    def region(*place: int) -> np.ndarray:
        raise AssertionError("annotations need no pixels")

    return Slide("a", MPP, ((width, height),), (1.0,), region, lambda: None)


SLIDE = blank_slide()
GRID = lay_grid(SLIDE, 0.972, 0.1, 96, 32)
CELLS = np.argwhere(np.ones((GRID.rows, GRID.columns), bool))


def winding(ring: Ring) -> np.ndarray:
    """How often an outline goes about the middle of each pixel, int (HEIGHT, WIDTH)."""
    x, y = np.arange(WIDTH)[None, :] + 0.5, np.arange(HEIGHT)[:, None] + 0.5
    count = np.zeros((HEIGHT, WIDTH), int)
    for (x0, y0), (x1, y1) in zip(ring, [*ring[1:], ring[0]], strict=True):
        left = (x1 - x0) * (y - y0) - (x - x0) * (y1 - y0)
        count += ((y0 <= y) & (y1 > y) & (left > 0)).astype(int) - ((y0 > y) & (y1 <= y) & (left < 0))
    return count


def counted_labels(mask: np.ndarray, grid: Grid = GRID) -> np.ndarray:
    """Whether any pixel of the centre is tumour, tile by tile."""
    side, labels = round(32 * grid.pixel), []
    for row, column in CELLS:
        y, x = (round((place * 32 + 32) * grid.pixel) for place in (row, column))
        labels.append(mask[y : y + side, x : x + side].any())
    return np.array(labels)


def feature(polygons: list[list[Ring]], name: str | None = "Tumor", kind: str = "annotation") -> dict:
    closed = [[[*ring, ring[0]] for ring in polygon] for polygon in polygons]
    geometry = {"type": "Polygon", "coordinates": closed[0]}
    if len(closed) > 1:
        geometry = {"type": "MultiPolygon", "coordinates": closed}
    properties: dict = {"objectType": kind}
    if name is not None:
        properties["classification"] = {"name": name, "color": [200, 0, 0]}
    return {"type": "Feature", "id": "x", "geometry": geometry, "properties": properties}


def geojson(path: Path, *features: dict) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": list(features)}))
    return path


def labels_of(path: Path, positive: list[str] | None = None, units: str = "px", slide: Slide = SLIDE) -> np.ndarray:
    tumour, _ = read_tumour(path, slide, positive, units)
    return label_cells(tumour, GRID, CELLS, slide.sizes[0])


def circle(x: float, y: float, rx: float, ry: float, count: int) -> Ring:
    angles = np.linspace(0, 2 * np.pi, count, endpoint=False)
    return [(float(x + rx * np.cos(a)), float(y + ry * np.sin(a))) for a in angles]


SQUARE: Ring = [(200, 150), (451, 150), (451, 389), (200, 389)]
HOLE: Ring = [(260, 200), (390, 200), (390, 325), (260, 325)]
ANGLE: Ring = [(50, 50), (350, 50), (350, 127), (130, 127), (130, 550), (50, 550)]
STAR: Ring = [(400 + 200 * math.sin(a), 320 - 200 * math.cos(a)) for a in (4 * math.pi / 5 * n for n in range(5))]
BOW: Ring = [(150, 150), (550, 450), (550, 150), (150, 450)]
# Slanted ones are met nowhere by less than the middle of a pixel, which is what is counted.
SHAPES = {
    "a square": [[SQUARE]],
    "an angle": [[ANGLE]],
    "a hole": [[SQUARE, HOLE]],
    "two pieces": [[SQUARE], [[(550, 100), (750, 100), (650, 430)]]],
    "a disc": [[circle(400, 320, 166, 111, 60)]],
    "a star that crosses itself": [[STAR]],
    "a bow that crosses itself": [[BOW]],
    "a pixel": [[[(501, 401), (502, 401), (502, 402), (501, 402)]]],
    "over the border": [[[(-50, 250), (150, 250), (150, 450), (-50, 450)]]],
}


def mask_of(polygons: list[list[Ring]]) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for outline, *holes in polygons:
        inside = winding(outline) != 0
        for hole in holes:
            inside &= winding(hole) == 0
        mask |= inside
    return mask


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", ["geojson", "xml", "png", "um", "level"])
def test_labels_are_exact_on_every_shape(tmp_path: Path, name: str, kind: str) -> None:
    polygons = SHAPES[name]
    mask = mask_of(polygons)
    expected = counted_labels(mask)
    assert 0 < expected.sum() < len(expected)
    units = {"um": "um", "level": "4"}.get(kind, "px")
    factor = {"um": MPP, "level": 0.25}.get(kind, 1.0)
    scaled = [[[(float(x * factor), float(y * factor)) for x, y in ring] for ring in polygon] for polygon in polygons]
    if kind == "png":
        Image.fromarray(mask).save(tmp_path / "a.png")
        path = tmp_path / "a.png"
    elif kind == "xml":
        holes = [("Stroma", hole) for polygon in scaled for hole in polygon[1:]]
        path = asap(tmp_path / "a.xml", [*(("Tumor", polygon[0]) for polygon in scaled), *holes])
    else:
        path = geojson(tmp_path / "a.geojson", feature(scaled))
    np.testing.assert_array_equal(labels_of(path, units=units), expected)


def asap(path: Path, outlines: list[tuple[str, Ring]], kind: str = "Polygon") -> Path:
    """Corners out of order, as nothing forbids."""
    texts = []
    for name, ring in outlines:
        corners = [f'<Coordinate Order="{order}" X="{x!r}" Y="{y!r}"/>' for order, (x, y) in enumerate(ring)]
        body = f"<Coordinates>{''.join(reversed(corners))}</Coordinates>"
        texts.append(f'<Annotation Name="n" PartOfGroup={quoteattr(name)} Type="{kind}">{body}</Annotation>')
    path.write_text(f"<ASAP_Annotations><Annotations>{''.join(texts)}</Annotations></ASAP_Annotations>")
    return path


def test_an_ellipse_is_met_where_its_formula_says(tmp_path: Path) -> None:
    """The nearest place of the centre to the ellipse's middle, in units of its half axes, lies inside."""
    shape = Ellipse(377, 300, 250, 150)
    labels = labels_of(geojson(tmp_path / "a.geojson", feature([[circle(377, 300, 250, 150, 20_000)]])))
    low = (CELLS * 32 + 32) * GRID.pixel
    nearest = np.clip([300, 377], low, low + 64)
    np.testing.assert_array_equal(labels, shape.contains(nearest[:, 1], nearest[:, 0]))


def test_a_shared_edge_is_no_tumour_in_the_centre(tmp_path: Path) -> None:
    edge = (3 * 32 + 32) * 2  # where the centres of row 3 begin
    ring = [(0, 0), (WIDTH, 0), (WIDTH, edge), (0, edge)]
    labels = labels_of(geojson(tmp_path / "a.geojson", feature([[ring]]))).reshape(GRID.rows, GRID.columns)
    assert labels[:3].all()
    assert not labels[3:].any()


def test_what_is_of_another_class_is_no_tumour_and_inside_it_is_taken_out(tmp_path: Path) -> None:
    box = [(0, 0), (WIDTH, 0), (WIDTH, HEIGHT), (0, HEIGHT)]
    others = [feature([[HOLE]], "Stroma"), feature([[box]], "Tissue"), feature([[HOLE]], "Region*")]
    path = geojson(tmp_path / "a.geojson", feature([[SQUARE]], "Metastasis"), *others, feature([[ANGLE]], "Other"))
    np.testing.assert_array_equal(labels_of(path), counted_labels(mask_of([[SQUARE, HOLE]])))
    np.testing.assert_array_equal(labels_of(path, ["Stroma"]), counted_labels(mask_of([[HOLE]])))
    both = labels_of(path, ["Metastasis", "Other"])
    np.testing.assert_array_equal(both, counted_labels(mask_of([[SQUARE, HOLE], [ANGLE]])))
    assert not labels_of(path, ["Nothing"]).any()
    assert read_tumour(path, SLIDE, None, "px")[1] == {
        "Metastasis": 1,
        "Stroma": 1,
        "Tissue": 1,
        "Region*": 1,
        "Other": 1,
    }


def test_cells_points_and_outlines_without_a_class_are_no_tumour(tmp_path: Path, caplog) -> None:
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [5, 5]}, "properties": {}}
    features = [feature([[SQUARE]], None), feature([[SQUARE]], "Tumor", "detection"), point, feature([[HOLE]])]
    (tmp_path / "a.geojson").write_text(json.dumps(features))
    np.testing.assert_array_equal(labels_of(tmp_path / "a.geojson"), counted_labels(mask_of([[HOLE]])))
    assert "1 points and lines have no area" in caplog.text
    assert read_tumour(tmp_path / "a.geojson", SLIDE, None, "px")[1] == {"unclassified": 1, "Tumor": 1}
    assert labels_of(tmp_path / "a.geojson", ["unclassified"]).sum() > labels_of(tmp_path / "a.geojson").sum()


def test_camelyons_groups_are_known(tmp_path: Path) -> None:
    path = asap(tmp_path / "a.xml", [("_0", SQUARE), ("_2", HOLE), ("None", ANGLE)])
    np.testing.assert_array_equal(labels_of(path), counted_labels(mask_of([[SQUARE, HOLE]])))


@pytest.mark.parametrize("factor", [1, 4, 7])
def test_a_picture_is_stretched_over_the_slide(tmp_path: Path, factor: int) -> None:
    small = np.zeros((HEIGHT // factor, WIDTH // factor), np.uint8)
    small[150 // factor : 350 // factor, 100 // factor : 225 // factor] = 2
    small[-1, -1] = 1
    tifffile.imwrite(tmp_path / "a.tif", small)
    ys, xs = ((np.arange(n) * small.shape[axis]) // n for axis, n in enumerate((HEIGHT, WIDTH)))
    full = small[np.ix_(ys, xs)]
    for positive, mask in ((None, full > 0), (["2", "Tumor"], full == 2), (["Tumor"], full > 0)):
        labels, expected = labels_of(tmp_path / "a.tif", positive), counted_labels(mask)
        if factor == 7:  # its pixels lie across those of the slide: a part of one is enough
            assert (labels >= expected).all()
            assert (labels != expected).sum() <= 0.02 * len(labels)
        else:
            np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.geojson", b"{", "can't be read as annotations"),
        ("a.geojson", b'{"features": [{"geometry": {"type": "Polygon"}}]}', "can't be read as annotations"),
        ("a.geojson", b'{"features": 7}', "can't be read as annotations"),
        ("a.geojson", b"[" * 100_000, "can't be read as annotations"),
        ("a.xml", b"<a>", "can't be read as annotations"),
        ("a.xml", b"<a/>", "its root is a, not ASAP_Annotations"),
        ("a.xml", b'<!DOCTYPE a [<!ENTITY b "c">]><ASAP_Annotations/>', "it declares entities"),
        ("a.png", b"no picture", "can't be read as a picture of the tumour"),
        ("a.tif", b"no picture", "can't be read as a picture of the tumour"),
    ],
)
def test_a_damaged_annotation_is_one_line(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SlideError, match=f"^{name} .*{said}") as raised:
        read_tumour(tmp_path / name, SLIDE, None, "px")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("ring", "said"),
    [
        (
            [(3000, 100), (4000, 100), (4000, 900)],
            r"annotation 1 \(Tumor\) lies outside a: it reaches to x=4,000, y=900",
        ),
        ([(0, 0), (9000, 0), (9000, 5000), (0, 5000)], "lies outside a"),
        ([(5, 5), (9, 9)], r"annotation 1 \(Tumor\) has 3 points: an outline needs three"),
        ([(5, 5), (9, 9), (7, 7)], "has no area"),
        ([(5, 5), (float("nan"), 9), (7, 17)], "has coordinates that are no numbers"),
    ],
)
def test_an_annotation_that_can_not_be_meant_is_one_line(tmp_path: Path, ring: Ring, said: str) -> None:
    with pytest.raises(SlideError, match=said):
        read_tumour(geojson(tmp_path / "a.geojson", feature([[ring]])), SLIDE, None, "px")


def test_a_picture_of_another_shape_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((100, 100), np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(SlideError, match="b.png has another shape than a: 100x100"):
        read_tumour(tmp_path / "b.png", SLIDE, None, "px")


def test_the_annotation_of_a_slide_is_found_beside_it_or_in_its_own_folder(tmp_path: Path) -> None:
    assert find_annotation(tmp_path, "a", beside=True) is None
    (tmp_path / "a.png").touch()  # beside the slides it is one
    assert find_annotation(tmp_path, "a", beside=True) is None
    assert find_annotation(tmp_path, "a", beside=False) == tmp_path / "a.png"
    (tmp_path / "b_mask.png").touch()
    assert find_annotation(tmp_path, "b", beside=True) == tmp_path / "b_mask.png"
    (tmp_path / "b.xml").touch()
    with pytest.raises(SlideError, match=r"b has several annotations \(b.xml, b_mask.png\)"):
        find_annotation(tmp_path, "b", beside=True)
