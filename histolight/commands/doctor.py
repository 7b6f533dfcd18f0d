"""``histolight doctor``: what this machine has, what it lacks, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator

from histolight.config.keys import own_keys, read_path
from histolight.diagnosis.finding import Finding
from histolight.diagnosis.machine import examine_machine, examine_torch
from histolight.diagnosis.packages import MALICIOUS, examine_packages, is_malicious
from histolight.diagnosis.storage import examine_caches, examine_disk
from histolight.errors import RequestError, nearest, one_line

KEYS = ("data.cache",)
USAGE = """\
keys (KEY=VALUE):
  data.cache=DIR     another cache folder than the user's

Nothing is written, and nothing is asked of the network. Exit status: 0, or 1 where something keeps trainings from
working, or makes them unsafe.
"""


def main(overrides: list[str]) -> int:
    """Run the command; return the exit status."""
    values, others = own_keys(overrides, KEYS)
    if others:
        key = others[0].partition("=")[0]
        raise RequestError(f"{key} is not a key of histolight doctor: {nearest(key, KEYS)}")
    cache = str(read_path(values["data.cache"])) if "data.cache" in values else None
    findings = []
    topic = ""
    for finding in examine(cache):
        label = finding.topic if finding.topic != topic else ""
        mark = "!" if finding.serious else " "
        print(one_line(f"{label:<11}{mark} {finding.text}"), flush=True)  # the import of torch takes seconds
        if finding.remedy:
            print(one_line(f"{'':<13}-> {finding.remedy}"), flush=True)
        findings.append(finding)
        topic = finding.topic
    faults = [finding for finding in findings if finding.serious]
    if faults:
        print(f"\n{len(faults)} to mend before a training: the lines with !")
        return 1
    print("\nready: histolight train")
    return 0


def examine(cache: str | None) -> Iterator[Finding]:
    """Examine everything; PyTorch is not imported beside a malicious package, which it might run."""
    yield from examine_machine()
    yield from examine_packages()
    if malicious := [name for name in MALICIOUS if is_malicious(name)]:
        yield Finding("device", f"not examined beside a malicious {malicious[0]}")
    else:
        yield from examine_torch()
    yield from examine_caches(cache)
    yield from examine_disk(cache)
