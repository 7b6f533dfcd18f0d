"""The process in which histolight is called from Python: whatever a call changes in it is given back as it was."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any, cast

from histolight.config.hydra_adapter import own_hydra
from histolight.files import give_back_folders


@contextlib.contextmanager
def unchanged(*packages: str) -> Iterator[None]:
    """Give the process back as it was, also after a failure or an interruption.

    That is: environment, working directory, signal handlers, loggers and warning filters, Hydra's globals, random
    states, PyTorch's flags, Matplotlib's settings, and threads of progress bars. What the caller has set in PyTorch for
    its own work, such as ``no_grad``, or in Pillow, does not reach the call. It also decorates a function.

    Args:
        packages: Imported beforehand, as what their import itself changes stays.

    >>> with unchanged():
    ...     os.environ["HISTOLIGHT_EXAMPLE"] = "1"
    >>> "HISTOLIGHT_EXAMPLE" in os.environ
    False
    """
    for name in packages:
        importlib.import_module(name)
    with contextlib.ExitStack() as kept:
        kept.enter_context(warnings.catch_warnings())
        for part in (_streams, _environment, _place, _signals, _logging, _resolvers, own_hydra):
            kept.enter_context(part())
        for part in (_random, _torch, _plain_torch, _strict_pillow, _matplotlib, _monitors):
            kept.enter_context(part())
        kept.callback(give_back_folders)
        yield


@contextlib.contextmanager
def _streams() -> Iterator[None]:
    """Let what is printed go nowhere where the caller has no stream, as a service or a program with windows."""
    with contextlib.ExitStack() as kept:
        for name, redirect in (("stdout", contextlib.redirect_stdout), ("stderr", contextlib.redirect_stderr)):
            if getattr(sys, name) is None:
                kept.enter_context(redirect(kept.enter_context(open(os.devnull, "w"))))
        yield


@contextlib.contextmanager
def _resolvers() -> Iterator[None]:
    """Keep the resolvers of OmegaConf, which Hydra registers; a composed configuration needs them while it is used."""
    from omegaconf.basecontainer import BaseContainer

    before = dict(BaseContainer._resolvers)
    try:
        yield
    finally:
        BaseContainer._resolvers = before


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if os.environ.get(name) != value})


@contextlib.contextmanager
def _place() -> Iterator[None]:
    before = os.getcwd()
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None and signal.getsignal(number) is not handler:  # None: not set by Python
                signal.signal(number, handler)


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    """Keep loggers and handlers; those of the caller are hidden from logging.config, which would close them."""
    manager, private = logging.root.manager, cast(Any, logging)
    loggers = [logging.root, *(it for it in manager.loggerDict.values() if isinstance(it, logging.Logger))]
    handlers = {handler for logger in loggers for handler in logger.handlers}
    settings = [(logger, logger.level, logger.propagate, logger.disabled) for logger in loggers]
    formats = [(handler, handler.level, handler.formatter) for handler in handlers]
    attached = [(logger, list(logger.handlers)) for logger in loggers]
    filters = [(each, list(each.filters)) for each in (*loggers, *handlers)]
    disabled, known, named = manager.disable, list(private._handlerList), dict(private._handlers)
    private._handlerList.clear()
    try:
        yield
    finally:
        private._handlerList[:0] = known
        private._handlers.clear()
        private._handlers.update(named)
        manager.disable = disabled
        for logger, its_handlers in attached:
            logger.handlers[:] = its_handlers
        for each, its_filters in filters:
            each.filters[:] = its_filters
        for handler, handler_level, formatter in formats:
            handler.setLevel(handler_level)
            handler.setFormatter(formatter)
        for logger, level, propagate, off in settings:
            logger.setLevel(level)
            logger.propagate, logger.disabled = propagate, off


@contextlib.contextmanager
def _random() -> Iterator[None]:
    import numpy as np

    before, of_numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(of_numpy)


@contextlib.contextmanager
def _torch() -> Iterator[None]:
    """Keep random states and flags of PyTorch, where it is imported."""
    if "torch" not in sys.modules:
        yield
        return
    import torch

    cudnn = torch.backends.cudnn
    state, on_gpus = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    precision, dtype, threads = torch.get_float32_matmul_precision(), torch.get_default_dtype(), torch.get_num_threads()
    flags = cudnn.benchmark, cudnn.deterministic, cudnn.enabled
    exact = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if on_gpus is not None:
            torch.cuda.set_rng_state_all(on_gpus)
        elif torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(torch.initial_seed())  # as if they were first used now
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        cudnn.benchmark, cudnn.deterministic, cudnn.enabled = flags
        if (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ) != exact:
            torch.use_deterministic_algorithms(exact[0], warn_only=exact[1])


@contextlib.contextmanager
def _plain_torch() -> Iterator[None]:
    """Compute as from the command line, whatever the caller has set for its own work; ``_torch`` gives it back."""
    if "torch" not in sys.modules:
        yield
        return
    import torch

    with contextlib.ExitStack() as kept:
        torch.set_default_dtype(torch.float32)
        kept.enter_context(torch.inference_mode(False))
        kept.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            kept.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                kept.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextlib.contextmanager
def _strict_pillow() -> Iterator[None]:
    """Refuse images that are cut short, also where the caller lets Pillow fill them up: a pack is for every process."""
    from PIL import ImageFile

    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


@contextlib.contextmanager
def _matplotlib() -> Iterator[None]:
    """Keep the settings of Matplotlib, where it is imported; its backend is chosen at its first use, as before."""
    if "matplotlib" not in sys.modules:
        yield
        return
    import matplotlib

    before = {name: dict.__getitem__(matplotlib.rcParams, name) for name in matplotlib.rcParams}
    try:
        yield
    finally:
        dict.update(matplotlib.rcParams, before)


@contextlib.contextmanager
def _monitors() -> Iterator[None]:
    """End the thread with which tqdm watches its progress bars, unless it was there."""
    before = set(threading.enumerate())
    try:
        yield
    finally:
        if tqdm := sys.modules.get("tqdm"):
            for thread in set(threading.enumerate()) - before:
                if isinstance(thread, tqdm.TMonitor):
                    thread.exit()
