"""What helps a training that ran out of a GPU's memory: smaller batches, whose gradients are added up."""

from __future__ import annotations

import dataclasses

from histolight.config.schema import Config


def halved(config: Config) -> Config:
    """Take half the batch and twice as many batches a step, which is about the same training in half the memory."""
    trainer = config.trainer
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch_size=config.data.batch_size // 2),
        trainer=dataclasses.replace(
            trainer,
            accumulate=2 * trainer.accumulate,
            compile="default" if trainer.compile == "reduce-overhead" else trainer.compile,
        ),
    )


def out_of_memory(config: Config) -> str:
    """Say what ran out, and with which keys it may fit."""
    what = f"out of GPU memory with data.batch_size={config.data.batch_size}"
    tiles = "" if config.data.residency == "memmap" else ", or data.residency=memmap"
    if config.data.batch_size == 1:
        return f"{what}: use model.checkpointing=true or a smaller network{tiles}"
    half = halved(config)
    keys = f"data.batch_size={half.data.batch_size} trainer.accumulate={half.trainer.accumulate}"
    if half.trainer.compile != config.trainer.compile:
        keys += f" trainer.compile={half.trainer.compile}"
    return f"{what}: use {keys} for the same optimizer steps{tiles}"
