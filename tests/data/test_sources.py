from __future__ import annotations

import re
from pathlib import Path

import pytest

import histolight
from histolight.config.schema import Config, DataConfig
from histolight.data.sources import find_kind, is_artificial, load_source, source_names
from histolight.errors import RequestError
from histolight.training.fit import check_request


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig("kagle", "x"), "data.source=kagle is not known: did you mean kaggle?"),
        (DataConfig("kaggle"), "data=kaggle needs data.root=FOLDER, the folder with the tiles"),
    ],
)
def test_an_unknown_kind_and_a_missing_folder_are_refused_before_anything_is_done(config, message) -> None:
    for refuse in (load_source, lambda data: check_request(Config(data))):
        with pytest.raises(RequestError, match=re.escape(message)):
            refuse(config)


def test_a_kind_without_tiles_to_predict_names_those_that_have_some() -> None:
    with pytest.raises(RequestError, match="synthetic has no unlabelled tiles to predict: use data=folder or kaggle"):
        load_source(DataConfig("synthetic"), labelled=False)


def test_every_kind_has_its_yaml_and_only_its_own_module_names_it() -> None:
    package = Path(histolight.__file__).parent
    assert set(source_names()) <= {path.stem for path in (package.parent / "conf/data").glob("*.yaml")}
    assert [name for name in source_names() if is_artificial(name)] == ["synthetic"]
    assert not is_artificial("of another version")
    assert not is_artificial(None)
    compared = re.compile(rf"source ?[=!]= ?[\"']({'|'.join(source_names())})[\"']|source in \(")
    for path in package.rglob("*.py"):
        if path.parent.name != "sources":
            assert not compared.search(path.read_text(encoding="utf-8")), path
    assert find_kind("kaggle").find_groups is not None
