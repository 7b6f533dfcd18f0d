"""``histolight download``: PatchCamelyon's files, checked; what to do for Kaggle's."""

from __future__ import annotations

from histolight.config.keys import read_path
from histolight.data import download as data
from histolight.errors import RequestError

USAGE = """\
histolight download pcam DIR
  PatchCamelyon's six files, 7.7 GB, into DIR; given again, it continues, and checks what is there
histolight download kaggle DIR
  says how to get Kaggle's tiles, which need an account there
"""


def main(overrides: list[str]) -> int:
    """Run the command; return the exit status."""
    if len(overrides) != 2:
        raise RequestError("give the data set and the folder: histolight download pcam DIR")
    name, folder = overrides[0], read_path(overrides[1])
    if name == "kaggle":
        raise RequestError(
            "Kaggle's tiles need an account that has accepted the competition's rules: kaggle competitions download -c "
            f"histopathologic-cancer-detection -p '{folder}', unzip it there, then use data=kaggle data.root='{folder}'"
        )
    if name != "pcam":
        raise RequestError(f"{name} can't be downloaded: give pcam or kaggle")
    print(data.LICENCE)
    data.download(folder, data.FILES, data.PCAM)
    print(f"whole and checked; use it with data=pcam data.root='{folder}'")
    return 0
