from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import metadata, version
from pathlib import Path

import pytest
import torch

from histolight.cli import main
from histolight.config.compose import compose_config, typed
from histolight.data.prepare import load_tiles
from histolight.data.sources import load_source
from histolight.diagnosis import machine
from histolight.diagnosis.packages import EXTRAS
from histolight.diagnosis.storage import examine_disk, weights_folder


@pytest.mark.skipif(not version("hydra-core").startswith("1.3."), reason="the doctor refuses this version of Hydra")
def test_it_says_what_there_is(small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = typed(compose_config([*small, f"data.cache={tmp_path / 'a cache'}"])).data
    pack = load_tiles(load_source(config), config).pack
    size = sum(path.stat().st_size for path in pack.folder.rglob("*") if path.is_file())
    capsys.readouterr()
    status = main(["doctor", f"data.cache={tmp_path / 'a cache'}"])
    lines = capsys.readouterr().out.splitlines()
    assert status == 0, lines
    packs = next(line for line in lines if str(pack.folder.parent) in line)
    assert f"packs     {size / 1e6:>5,.0f} MB" in packs
    assert "(tiles of 1 source)" in packs
    assert any(line.startswith("torch") and torch.__version__ in line for line in lines)
    assert any(line.startswith("device") for line in lines)
    assert lines[-1] == "ready: histolight train"


def test_every_extra_says_what_it_is_for() -> None:
    assert set(EXTRAS) | {"dev"} >= set(metadata("histolight").get_all("Provides-Extra") or []) >= set(EXTRAS)


def test_the_folder_of_weights_is_that_of_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("TORCH_HOME", "XDG_CACHE_HOME", "NO_SUCH_VARIABLE"):
        monkeypatch.delenv("TORCH_HOME", raising=False)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv(name, str(tmp_path))
        assert weights_folder() == Path(torch.hub.get_dir(), "checkpoints")


def test_what_is_known_to_be_bad_is_named_with_what_to_do(tmp_path: Path) -> None:
    """A malicious release would run where it is imported; this one leaves a mark if it is."""
    _package(tmp_path, "lightning", "2.6.3", "open('imported', 'w')")
    _package(tmp_path, "omegaconf", "2.4.0", "open('imported', 'w')")
    _package(tmp_path, "timm", "0.9.0")
    result = _doctor(tmp_path)
    assert result.returncode == 1, result.stderr
    assert "lightning 2.6.3 is a malicious release" in result.stdout
    assert "renew the passwords and tokens" in result.stdout
    assert "omegaconf 2.4.0 is not a version that histolight works with (<2.4,>=2.3)" in result.stdout
    assert "timm 0.9.0 (>=1.0" in result.stdout
    assert "not examined beside a malicious lightning" in result.stdout
    assert not (tmp_path / "imported").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="there a script with #! is no program")
def test_packages_that_do_not_fit_and_a_gpu_that_torch_cannot_use(tmp_path: Path) -> None:
    _package(tmp_path, "torchvision", version("torchvision"), "raise RuntimeError('operator torchvision::nms missing')")
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA Old, Card, 470.82.01'\n")
    program.chmod(0o755)
    result = _doctor(tmp_path, PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}", CUDA_VISIBLE_DEVICES="")
    assert result.returncode == 1, result.stderr
    assert "operator torchvision::nms missing" in result.stdout
    assert "--force-reinstall torch torchvision" in result.stdout
    assert "though there is an NVIDIA Old, Card (driver 470.82.01)" in result.stdout
    remedy = "unset CUDA_VISIBLE_DEVICES" if torch.version.cuda else "this torch was built without CUDA"
    assert remedy in result.stdout


@pytest.mark.gpu
def test_a_gpu_is_named_with_its_precision() -> None:
    findings = {finding.topic: finding for finding in machine.examine_torch()}
    assert torch.cuda.get_device_name(0) in findings["device"].text
    assert not findings["device"].serious
    assert ("bf16-mixed" in findings["precision"].text) == torch.cuda.is_bf16_supported(including_emulation=False)


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    findings = list(examine_disk(str(tmp_path / "cache")))
    assert [finding.serious for finding in findings] == [False, True]
    assert "data.cache=FOLDER" in findings[1].remedy


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dat.cache=x"], "dat.cache is not a key of histolight doctor: did you mean data.cache?"),
        (["data.cache"], "data.cache is not KEY=VALUE"),
    ],
)
def test_wrong_requests(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 2
    assert message in capsys.readouterr().err


def _package(folder: Path, name: str, number: str, code: str = "") -> None:
    """Put a package before the installed one."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)
    info = folder / f"{name}-{number}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n")


def _doctor(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "histolight", "doctor", "data.cache=cache"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(folder), **environment},
        check=False,
    )
