from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from histolight.config.schema import DataConfig
from histolight.data.splits import deal, make_split
from histolight.errors import RequestError


def table(count: int = 1000, slides: int = 0, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame({"id": [f"t{row:05d}" for row in range(count)]})
    frame["split"] = pd.Series([None] * count, dtype=object)
    if not slides:
        frame["group"] = pd.Series([None] * count, dtype=object)
        return frame.assign(label=(generator.random(count) < 0.4).astype(np.int8))
    slide = generator.integers(0, slides, count)
    prevalence = generator.uniform(0.1, 0.8, slides)
    frame["group"] = [f"{'tumor' if number % 2 else 'normal'}_{number // 2:03d}" for number in slide]
    return frame.assign(label=(generator.random(count) < prevalence[slide]).astype(np.int8))


def given(count: int = 600, slides: int = 0) -> pd.DataFrame:
    return table(count, slides).assign(split=np.repeat(["train", "val", "test"], count // 3))


def split_of(tiles: pd.DataFrame, config: DataConfig) -> tuple[pd.Series, str]:
    """Split tiles of which none overlap."""
    return make_split(tiles.assign(cluster=tiles["group"].where(tiles["group"].notna(), tiles["id"])), config)


def test_the_random_split_is_scikit_learns():
    tiles = table()
    split, kind = split_of(tiles, DataConfig(seed=3, split="random"))
    train, val = train_test_split(tiles["id"], test_size=0.2, stratify=tiles["label"], random_state=3)
    assert kind == "random"
    assert set(tiles["id"][split == "val"]) == set(val)
    assert set(tiles["id"][split == "train"]) == set(train)


@pytest.mark.parametrize("slides", [0, 30])
@pytest.mark.parametrize("values", [{}, {"test_fraction": 0.2}, {"fold": 1}, {"fold": 0, "test_fraction": 0.25}])
def test_the_order_of_the_rows_has_no_influence(slides, values):
    tiles, config = table(slides=slides), DataConfig(seed=5, **values)
    shuffled = tiles.sample(frac=1, random_state=1)
    split, _ = split_of(tiles, config)
    other, _ = split_of(shuffled, config)
    assert other.index.equals(shuffled.index)
    pd.testing.assert_series_equal(split, other.sort_index())
    different, _ = split_of(tiles, DataConfig(seed=6, **values))
    assert not different.equals(split)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("values", [{}, {"test_fraction": 0.2}, {"fold": 2}, {"fold": 0, "test_fraction": 0.2}])
def test_no_slide_lies_on_two_sides_and_parts_are_as_asked(seed, values):
    tiles = table(4000, slides=60, seed=seed)
    split, kind = split_of(tiles, DataConfig(seed=seed, **values))
    assert kind == "slide"
    assert (split.groupby(tiles["group"]).nunique() == 1).all()
    shares = split.value_counts(normalize=True)
    rest = 1 - values.get("test_fraction", 0)
    assert shares["val"] == pytest.approx(rest / 5 if "fold" in values else 0.2, abs=0.05)
    assert shares.get("test", 0) == pytest.approx(1 - rest, abs=0.05)
    prevalence = tiles["label"].groupby(split).mean()
    assert (prevalence - tiles["label"].mean()).abs().max() < 0.06


def test_a_test_part_is_taken_before_validation():
    tiles = table()
    split, _ = split_of(tiles, DataConfig(test_fraction=0.3))
    assert split.value_counts().to_dict() == {"train": 500, "test": 300, "val": 200}
    without, _ = split_of(tiles, DataConfig(test_fraction=0.3, fold=1))
    assert (without[split == "test"] == "test").all()


@pytest.mark.parametrize("slides", [0, 30])
@pytest.mark.parametrize("test_fraction", [0, 0.2])
def test_folds_validate_every_tile_once(slides, test_fraction):
    tiles = table(slides=slides)
    splits = [split_of(tiles, DataConfig(fold=fold, folds=4, test_fraction=test_fraction))[0] for fold in range(4)]
    validated = sum((split == "val").astype(int) for split in splits)
    tested = splits[0] == "test"
    assert all(((split == "test") == tested).all() for split in splits)
    assert (validated[~tested] == 1).all()
    assert (validated[tested] == 0).all()
    assert tested.any() == bool(test_fraction)


def test_a_given_split_is_used_as_it_is():
    tiles = given()
    split, kind = split_of(tiles, DataConfig(val_fraction=0.5))
    assert kind == "given"
    assert split.tolist() == tiles["split"].tolist()


@pytest.mark.parametrize(("slides", "expected"), [(0, "overlap"), (20, "slide")])
def test_folds_of_a_given_split_leave_its_test_part_alone(slides, expected):
    tiles = given(slides=slides)
    splits = []
    for fold in range(5):
        split, kind = split_of(tiles, DataConfig(fold=fold))
        assert kind == expected
        assert ((split == "test") == (tiles["split"] == "test")).all()
        splits.append(split)
    validated = sum((split == "val").astype(int) for split in splits)
    assert (validated == (tiles["split"] != "test")).all()


def test_validation_is_split_off_where_the_source_gives_none():
    tiles = given().query("split != 'val'")
    split, kind = split_of(tiles, DataConfig())
    assert kind == "overlap"
    assert split.value_counts().to_dict() == {"test": 200, "train": 160, "val": 40}
    assert ((split == "test") == (tiles["split"] == "test")).all()


@pytest.mark.parametrize("values", [{}, {"test_fraction": 0.2}, {"fold": 0}])
def test_tiles_without_a_slide_train_and_are_counted(values, caplog):
    tiles = table(slides=30)
    tiles.loc[::10, "group"] = None
    split, kind = split_of(tiles, DataConfig(**values))
    assert kind == "slide"
    assert (split[::10] == "train").all()
    assert "100 tiles have no known slide" in caplog.text


@pytest.mark.parametrize(
    ("tiles", "values", "message"),
    [
        (table(slides=1), {}, "needs two slides and two tiles of each class"),
        (given(), {"test_fraction": 0.2}, r"data\.test_fraction=0\.2 has no place here.* brings its own split"),
        (table(slides=3), {"fold": 0, "folds": 4}, r"data\.folds=4 needs 4 slides, and there are 3"),
        (table(20).assign(label=[1] * 3 + [0] * 17), {"fold": 0}, "5 tiles of each class, and one has 3"),
        (
            table(20).assign(label=[1] + [0] * 19),
            {"split": "random"},
            r"data\.val_fraction=0\.2 cannot be split off 20 tiles",
        ),
        (table(20).assign(label=[1] + [0] * 19), {}, "the val part has no tile of class 1|the train part has no tile"),
        (given().assign(label=[0] * 200 + [0, 1] * 200), {}, "the train part has no tile of class 1"),
        (given().assign(label=[0, 1] * 100 + [1] * 200 + [0, 1] * 100), {}, "the val part has no tile of class 0"),
        (given().assign(label=[0, 1] * 200 + [1] * 200), {}, "the test part has no tile of class 0"),
        (given().query("split == 'val'"), {}, "the train part has no tile of class 0"),
        *(
            (
                given().assign(label=[0] * 400 + [0, 1] * 100).query("split != 'val'"),
                {"split": split},
                "all tiles of class 1",
            )
            for split in ("auto", "random")
        ),
    ],
)
def test_a_split_that_cannot_be_is_refused(tiles, values, message):
    with pytest.raises(RequestError, match=message) as caught:
        split_of(tiles, DataConfig(**values))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(8))
def test_slides_of_one_class_each_still_give_both_classes_to_each_part(seed):
    """Four folds share two slides with tumour: two of them have none."""
    tiles = table(80).assign(group=[f"slide_{row // 10}" for row in range(80)], label=[1] * 20 + [0] * 60)
    split, _ = split_of(tiles, DataConfig(val_fraction=0.25, seed=seed))
    assert (tiles["label"].groupby(split).nunique() == 2).all()
    assert (split == "val").mean() == 0.25


@pytest.mark.parametrize(
    ("slides", "fraction", "expected"),
    [
        (60, 0.4, 0.4),
        (60, 0.15, 0.15),
        (60, 0.03, 0.03),
        (20, 0.03, 0.05),
        (3, 0.2, 0.33),
        (40, 0.5, 0.5),
        (4, 0.95, 0.75),
        (20, 0.9, 0.9),
    ],
)
def test_whole_slides_come_as_near_to_the_fraction_as_they_can(slides, fraction, expected):
    tiles = table(6000, slides=slides)
    split, _ = split_of(tiles, DataConfig(val_fraction=fraction))
    assert (split == "val").mean() == pytest.approx(expected, abs=0.02)
    assert (split.groupby(tiles["group"]).nunique() == 1).all()


@pytest.mark.parametrize("seed", range(6))
def test_a_slide_larger_than_the_part_is_not_drawn(seed):
    tiles = table(100).assign(label=[0, 1] * 50, group=["large"] * 50 + [f"small_{row // 10}" for row in range(50)])
    split, _ = split_of(tiles, DataConfig(val_fraction=0.1, seed=seed))
    assert (split == "val").sum() == 10


def test_as_many_folds_as_there_are_tiles_of_the_rarer_class():
    tiles = table(20).assign(label=[1] * 5 + [0] * 15)
    for fold in range(5):
        split, _ = split_of(tiles, DataConfig(fold=fold))
        assert tiles["label"][split == "val"].tolist().count(1) == 1


def test_slides_on_several_sides_of_a_given_split_are_warned_of(caplog):
    tiles = given().assign(group=[f"s{row % 7 if row < 400 else 7}" for row in range(600)])
    assert split_of(tiles, DataConfig())[1] == "given"
    assert "7 slides lie on several sides of the given split" in caplog.text


def with_clusters(count: int, sizes: list[int], seed: int = 0) -> pd.DataFrame:
    """Tiles of unknown slides, the first of them in clusters of the given sizes, each mostly of one class."""
    random = np.random.default_rng(seed)
    clusters = np.concatenate([np.full(size, number) for number, size in enumerate(sizes)])
    names = [f"c{number}" for number in clusters] + [f"t{row:05d}" for row in range(len(clusters), count)]
    tumour = np.concatenate(
        [random.random(len(clusters)) < 0.2 + 0.6 * (clusters % 2), random.random(count - len(clusters)) < 0.4]
    )
    return table(count).assign(cluster=names, label=tumour.astype(np.int8)).sample(frac=1, random_state=seed)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("values", [{}, {"val_fraction": 0.35}, {"test_fraction": 0.3}, {"fold": 3}])
def test_no_cluster_of_overlapping_tiles_lies_on_two_sides_and_parts_are_as_asked(seed, values):
    tiles = with_clusters(3000, [90, 60, 60, 40, *[12] * 40, *[2] * 300], seed)
    split, kind = make_split(tiles, DataConfig(seed=seed, **values))
    assert kind == "overlap"
    assert (split.groupby(tiles["cluster"]).nunique() == 1).all()
    expected = {"val": values.get("val_fraction", 0.2), "test": values.get("test_fraction", 0)}
    for part, share in expected.items():
        assert (split == part).mean() == pytest.approx(share, abs=0.002)
    prevalence = tiles["label"].groupby(split).mean()
    assert (prevalence - tiles["label"].mean()).abs().max() < 0.005
    other, _ = make_split(tiles, DataConfig(seed=seed + 1, **values))
    assert not other.equals(split)
    again, _ = make_split(tiles.sample(frac=1, random_state=5), DataConfig(seed=seed, **values))
    pd.testing.assert_series_equal(again.sort_index(), split.sort_index())


def test_a_cluster_as_large_as_a_fold_and_two_slides_are_enough():
    tiles = with_clusters(1000, [200])
    assert (make_split(tiles, DataConfig(fold=0))[0] == "val").mean() == pytest.approx(0.2, abs=0.01)
    two = table(100, slides=2)
    assert (split_of(two, DataConfig())[0].groupby(two["group"]).nunique() == 1).all()


def test_folds_of_clusters_validate_every_tile_once():
    tiles = with_clusters(1000, [100, 50, *[5] * 60])
    splits = [make_split(tiles, DataConfig(fold=fold, folds=4))[0] for fold in range(4)]
    assert (sum((split == "val").astype(int) for split in splits) == 1).all()
    assert all((split == "val").mean() == pytest.approx(0.25, abs=0.003) for split in splits)


@pytest.mark.parametrize(
    ("sizes", "values", "message"),
    [
        ([300], {"fold": 0}, r"data\.folds=5 of 1000 tiles: 300 of them hang together .* use at most data\.folds=3"),
        ([450], {"fold": 0}, r"data\.folds=5 of 1000 tiles: 450 of them .* use at most data\.folds=2"),
        ([600], {"fold": 0}, r"data\.folds=5 of 1000 tiles: 600 of them .* no number of folds works"),
        ([500, 500], {}, r"the val part has no tile of class 0: use data\.val_fraction=0\.4"),
        ([500, 500], {"val_fraction": 0.7}, r"the train part has no tile of class 0: use data\.val_fraction=0\.5"),
        ([850], {}, r"data\.val_fraction=0\.2 of 1000 tiles: 850 of them .* use at most 0\.15"),
        ([996], {}, r"data\.val_fraction=0\.2 of 1000 tiles: 996 of them .* no fraction works"),
    ],
)
def test_a_cluster_too_large_for_its_part_is_refused_with_what_works(sizes, values, message):
    tiles = with_clusters(1000, sizes)
    with pytest.raises(RequestError, match=message) as caught:
        make_split(tiles, DataConfig(**values))
    assert "\n" not in str(caught.value)
    if match := re.search(r"at most data.folds=(\d)", str(caught.value)):
        make_split(tiles, DataConfig(fold=0, folds=int(match[1])))
    elif match := re.search(r"at most (0\.\d+)", str(caught.value)):
        make_split(tiles, DataConfig(val_fraction=float(match[1])))


def test_a_random_split_heeds_neither_slides_nor_clusters_nor_the_source():
    tiles = with_clusters(1000, [100] * 8).assign(group="one", split="val")
    split, kind = make_split(tiles, DataConfig(split="random"))
    assert kind == "random"
    assert split.value_counts().to_dict() == {"train": 800, "val": 200}
    tested = tiles.assign(split=np.where(np.arange(1000) < 300, "test", "train"))
    split, _ = make_split(tested, DataConfig(split="random"))
    assert ((split == "test") == (tested["split"] == "test")).all()


def test_a_tile_of_unknown_slide_goes_where_its_cluster_goes():
    tiles = table(1000, slides=20)
    cluster = tiles["group"].copy()
    tiles.loc[::5, "group"] = None
    cluster[::10] = tiles["id"][::10]  # these have no relation to a slide
    for seed in range(3):
        split, kind = make_split(tiles.assign(cluster=cluster), DataConfig(seed=seed))
        assert kind == "slide"
        assert (split[::10] == "train").all()
        assert (split[5::10] == "val").any()
        assert (split.groupby(cluster).nunique() == 1).all()


def written_out(labels: np.ndarray, components: np.ndarray, shares: np.ndarray, seed: int) -> list[set[int]]:
    """Deal components as the docstring has it: one by one with loops, single tiles by largest remainders."""
    random = np.random.default_rng(seed)
    members = [np.flatnonzero(components == name) for name in dict.fromkeys(components)]
    several = random.permutation([number for number, tiles in enumerate(members) if len(tiles) > 1])
    wanted = {(part, label): share * (labels == label).sum() for part, share in enumerate(shares) for label in (0, 1)}
    filled, dealt = dict.fromkeys(wanted, 0), [set() for _ in shares]

    def take(part: int, number: int) -> None:
        dealt[part] |= set(members[number])
        for tile in members[number]:
            filled[part, labels[tile]] += 1

    for number in sorted(several, key=lambda number: -int(np.log2(len(members[number])))):
        counts = np.bincount(labels[members[number]], minlength=2)
        sums = [
            sum(((filled[p, k] + counts[k] * (p == part)) ** 2) / wanted[p, k] for p, k in wanted)
            for part in range(len(shares))
        ]
        take(random.choice([part for part, total in enumerate(sums) if total < min(sums) + 1e-7]), number)
    for label in (0, 1):
        alone = [number for number, tiles in enumerate(members) if len(tiles) == 1 and labels[tiles[0]] == label]
        numbers = list(random.permutation(alone))
        first = [int(filled[part, label] == 0) for part in range(len(shares))]
        first = first if len(numbers) >= sum(first) else [0] * len(shares)
        lack = [max(wanted[part, label] - filled[part, label] - first[part], 0) for part in range(len(shares))]
        rest = len(numbers) - sum(first)
        exact = [rest * one / sum(lack) if rest else 0 for one in lack]
        quota = [int(one) for one in exact]
        for part in sorted(range(len(shares)), key=lambda part: quota[part] - exact[part])[: rest - sum(quota)]:
            quota[part] += 1
        for part, count in enumerate(quota):
            for _ in range(count + first[part]):
                take(part, numbers.pop(0))
    return dealt


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("shares", "alone"),
    [([0.2, 0.8], 1), ([0.2, 0.8], 2), ([0.5, 0.3, 0.2], 2), ([0.5, 0.3, 0.2], 30), ([0.25] * 4, 0)],
)
def test_components_are_dealt_as_it_is_written(seed: int, shares: list[float], alone: int) -> None:
    random = np.random.default_rng(seed)
    sizes = [*random.integers(2, 9, 12), *[1] * alone]
    components = random.permutation(np.repeat([f"c{number}" for number in range(len(sizes))], sizes)).astype(object)
    labels = (random.random(len(components)) < 0.3).astype(np.int8)
    found = deal(np.arange(len(labels)), labels, components, np.array(shares), seed)
    assert [set(part) for part in found] == written_out(labels, components, np.array(shares), seed)


def test_single_tiles_are_shared_by_largest_remainders_and_a_part_without_any_comes_first():
    labels, alone = np.array([0] * 7 + [1] * 3, np.int8), np.arange(10).astype(str).astype(object)
    parts = deal(np.arange(10), labels, alone, np.array([0.5, 0.3, 0.2]), 0)
    # Of seven 3.5, 2.1 and 1.4 are wanted. Of three each part has one.
    assert [np.bincount(labels[part]).tolist() for part in parts] == [[4, 1], [2, 1], [1, 1]]
    two = deal(np.arange(2), np.array([0, 1], np.int8), alone[:2], np.array([0.5, 0.3, 0.2]), 0)
    assert [len(part) for part in two] == [2, 0, 0]  # too few for each to have one


@pytest.mark.parametrize(
    ("positives", "values", "named"),
    [
        (3, {"fold": 0}, "data.folds=3"),
        (3, {"fold": 4}, "data.folds=3 data.fold=0"),
        (2, {"fold": 1}, "data.folds=2"),
        (3, {"fold": 0, "folds": 100}, "data.folds=3"),
        (2, {"fold": 2}, "data.folds=2 data.fold=0"),
        (2, {"test_fraction": 0.2}, "data.test_fraction=0"),
        (2, {"test_fraction": 0.3, "fold": 0}, "data.test_fraction=0 data.folds=2"),
        (1, {}, "give more tiles of it, from several slides"),
    ],
)
def test_what_is_named_instead_is_the_nearest_that_works(positives: int, values: dict, named: str) -> None:
    tiles = table(20).assign(label=[1] * positives + [0] * (20 - positives))
    with pytest.raises(RequestError, match=rf"[: ]{re.escape(named)}$"):
        split_of(tiles, DataConfig(**values))


def nearest_slides(tiles: pd.DataFrame, fraction: float, seed: int, count: int, taken: int) -> set[str]:
    """The stratified folds, some of them taken together, that are nearest to a fraction; else slides one by one."""
    labels, slides = tiles["label"].to_numpy(), tiles["group"].to_numpy(dtype=object)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    folds = [set(slides[fold]) for _, fold in splitter.split(labels, labels, slides)]
    windows = [set().union(*(folds + folds)[first : first + taken]) for first in range(count)]

    def miss(held: set[str]) -> float:
        inside = np.isin(slides, list(held))
        if min(len(set(labels[part])) for part in (inside, ~inside)) < 2:
            return np.inf
        return abs(inside.mean() - fraction) + abs(labels[inside].mean() - labels.mean())

    best = min(windows, key=miss)
    if miss(best) < np.inf:
        return best
    rare = int(labels.mean() < 0.5)
    holding = {name: (labels[slides == name] == rare).sum() for name in sorted(set(slides))}
    held = [min((name for name in holding if holding[name]), key=holding.__getitem__)]
    others = np.array([name for name in holding if name != held[0]], dtype=object)
    for name in np.random.default_rng(seed).permutation(others):
        rest = ~np.isin(slides, [*held, name])
        if (~rest).mean() <= fraction and len(set(labels[rest])) == 2:
            held.append(name)
    return set(held)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("fraction", "count", "taken"), [(0.2, 5, 1), (0.4, 5, 2), (0.3, 10, 3), (0.9, 10, 9)])
@pytest.mark.parametrize("positives", [[20, 10, 5, 5, 3, 2], [9, 4], [6, 6]])
def test_whole_slides_are_held_out_as_it_is_written(
    seed: int, fraction: float, count: int, taken: int, positives: list[int]
) -> None:
    random = np.random.default_rng(seed)
    sizes = random.integers(10, 40, 12)
    tiles = table(int(sizes.sum())).assign(group=np.repeat([f"s{number:02d}" for number in range(12)], sizes), label=0)
    for number, of_slide in enumerate(random.permutation([*positives, *[0] * (12 - len(positives))])):
        tiles.loc[tiles.index[tiles["group"] == f"s{number:02d}"][:of_slide], "label"] = 1
    for labels in (tiles["label"], 1 - tiles["label"]):
        turned = tiles.assign(label=labels)
        held = nearest_slides(turned, fraction, seed, count, taken)
        inside = turned["group"].isin(held)
        if turned["label"].groupby(inside).nunique().tolist() == [2, 2]:
            split, _ = split_of(turned, DataConfig(val_fraction=fraction, seed=seed))
            assert set(turned["group"][split == "val"]) == held


def test_a_hold_out_far_from_what_was_asked_for_is_told(caplog) -> None:
    make_split(with_clusters(1000, [300]), DataConfig(val_fraction=0.2))
    assert caplog.text == ""
    tiles = with_clusters(1000, [360, 340, 300])
    held = (make_split(tiles, DataConfig(val_fraction=0.3))[0] == "val").mean()
    assert held == 0.36
    told = (
        "data.val_fraction=0.3: 36 % of the tiles are held out, as overlapping tiles stay together, up to 360 of them"
    )
    assert told in caplog.text
