"""``histolight COMMAND key=value …``: parse, run the command, turn errors into one line and an exit status.

Nothing heavy is imported here: torch only once a command really runs, Hydra only once something is composed.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence

from histolight.errors import HistolightError, RequestError, nearest, one_line, system_reason
from histolight.interrupts import signals_interrupt

COMMANDS = {
    "download": "get PatchCamelyon's files, continued where it stopped and checked",
    "explore": "look at a set of tiles before training: classes, slides, colours, copies, what is damaged",
    "train": "train, validate and (where there is a test part) test: writes a run directory",
    "compare": "rank runs, with intervals and paired tests: table, figures and report.html",
    "evaluate": "measure a finished run on its own tiles, or on other labelled ones",
    "predict": "score unlabelled tiles, or whole slides, with one run or an ensemble",
    "embed": "write the features of every tile, as a network without its last layer computes them, as Parquet",
    "explain": "show where in its tiles a trained network looks and how much of that is the centre: Grad-CAM",
    "export": "write a trained network as ONNX, or for WSInfer and QuPath, checked against torch on real tiles",
    "doctor": "say what this machine has and lacks: devices, packages, extras, caches, room; and what to do",
    "bench": "measure what the input path, the training step and an epoch cost on this machine",
}

HELP = """\
usage: histolight COMMAND [key=value ...]

commands:
{commands}

options:
  --help             this page; after a command, its groups and keys
  --cfg job          print the composed configuration and stop
  -m, --multirun     train one run for every combination of comma-separated values
  --debug            show the traceback of an error
  --version          print the version

exit status: 0 done; 1 it failed while working; 2 the request, or the data it names, was wrong

examples:
  histolight explore data=kaggle data.root=FOLDER
  histolight train
  histolight train data=kaggle data.root=FOLDER model=resnet34 trainer.max_epochs=3
  histolight train run=outputs/runs/NAME             continue an interrupted run
  histolight train -m model=resnet18,resnet34 data.fold=0,1,2,3,4 name=folds
  histolight compare runs=outputs/sweeps/folds
  histolight evaluate run=outputs/runs/NAME data=folder data.root=FOLDER calibrate=true
  histolight predict runs=outputs/sweeps/folds data=kaggle data.root=FOLDER tta=dihedral
  histolight predict run=outputs/runs/NAME data=slides data.root=FOLDER
  histolight embed data=kaggle data.root=FOLDER model=phikon_v2
  histolight bench data=kaggle data.root=FOLDER model=densenet121
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status: 0 done, 1 failed while working, 2 a wrong request."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    for name in ("stdout", "stderr"):  # closed by a service: what is opened next would be taken for it
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  # until the end
    for stream in (sys.stdout, sys.stderr):  # a narrow one, as in a pipe on Windows, shows what it lacks in ASCII
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    try:
        with signals_interrupt():
            return _run([argument for argument in arguments if argument != "--debug"])
    except HistolightError as error:
        if debug:
            raise
        print(f"histolight: {error}", file=sys.stderr)
        return error.exit_status
    except argparse.ArgumentError as error:
        print(f"histolight: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output, head or less, has gone
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # the interpreter flushes it at exit
        return 1
    except OSError as error:
        if error.errno is None or debug:
            raise
        where = f"{error.filename} can't be used: " if error.filename else ""
        print(f"histolight: {one_line(where + system_reason(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("histolight: interrupted: the same command does it again", file=sys.stderr)
        return 1
    finally:
        if files := sys.modules.get("histolight.files"):  # not imported for --help
            files.give_back_folders()


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(HELP.format(commands="\n".join(f"  {name:<10} {text}" for name, text in COMMANDS.items())), end="")
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"histolight {version('histolight')}")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        raise RequestError(f"{command} is not a command: {nearest(command, COMMANDS)}")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--cfg")
    parser.add_argument("--multirun", "-m", action="store_true")
    options, overrides = parser.parse_known_args(rest)
    if unknown := [argument for argument in overrides if argument.startswith("-")]:
        raise RequestError(f"{unknown[0]} is not an option; keys are KEY=VALUE: see histolight {command} --help")
    if options.cfg not in (None, "job", "hydra", "all"):
        raise RequestError(f"--cfg takes job, hydra or all, not {options.cfg}")
    if options.help:
        return _print_command_help(command)
    if options.multirun and command != "train":
        raise RequestError(f"-m sweeps over trainings: histolight {command} takes no -m, use it with histolight train")
    if options.cfg and command != "train":
        raise RequestError(f"--cfg prints the configuration of a training; see histolight {command} --help")
    if options.cfg:
        return _print_config(options.cfg, overrides)
    module = importlib.import_module(f"histolight.commands.{command}")
    return int(module.main(overrides, multirun=True) if options.multirun else module.main(overrides))


def _print_command_help(command: str) -> int:
    print(f"histolight {command}: {COMMANDS[command]}\n")
    if command != "train":
        print(importlib.import_module(f"histolight.commands.{command}").USAGE, end="")
        return 0
    from histolight.config.compose import config_groups
    from histolight.config.schema import RequestedConfig, valid_keys

    print("groups (GROUP=NAME):")
    for group, names in config_groups().items():
        print(f"  {group:<10} {', '.join(names)}")
    print("\nkeys (KEY=VALUE; `--cfg job` shows their values):")
    for key in valid_keys(RequestedConfig):
        print(f"  {key}")
    return 0


def _print_config(which: str, overrides: list[str]) -> int:
    from omegaconf import OmegaConf

    from histolight.config.compose import to_yaml, typed
    from histolight.config.request import requested_config

    config = requested_config(overrides)
    typed(config)
    if which in ("job", "all"):
        print(to_yaml(config), end="")
    if which in ("hydra", "all") and "hydra" in config:  # a saved configuration has no such node
        print(OmegaConf.to_yaml(config.hydra), end="")
    return 0
