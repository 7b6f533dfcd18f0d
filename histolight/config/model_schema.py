"""The part of the schema that says what is trained and how: network, optimizer, learning rate and loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from histolight.config.fields import choice, number


@dataclass
class ModelConfig:
    """The network.

    Attributes:
        name: A classification network of torchvision, ``p4m_densenet`` (Veeling et al. 2018), ``timm/NAME``, a model of
            a hub in timm's form (``timm/hf-hub:ORG/NAME``) or in that of transformers (``hf/ORG/NAME``), or the folder
            of one (``timm/local-dir:FOLDER``, ``hf/local-dir:FOLDER``).
        weights: ``imagenet``, ``hub`` (what a hub's model comes with), null (random), or the path of a file of weights;
            ``auto`` is null for synthetic tiles, else ``imagenet`` or ``hub``.
        architecture: What a hub's model is made of: a network of timm, or a model type of transformers; null reads it,
            and what it is built with, from the model's own configuration.
        kwargs: What timm builds a network with, or transformers' configuration of a model; layers by name, such as
            ``mlp_layer: SwiGLUPacked``.
        features: What enters the last layer: ``pooled`` as the network itself pools; of a transformer also ``cls``,
            ``mean`` (of the patches), or ``cls+mean``. Register tokens are in none of them.
        trust_remote_code: Run the code that a model of ``hf/`` brings along.
        card: Of the pretrained backbone, for pages and exports: ``url``, ``width`` of
            its features, ``licence``, ``gate``, ``citation``, ``mpp``.
        freeze: ``backbone`` trains the last layer only: with ``augment=none``, and where one process trains, on
            features that are computed once.
        probe: A last layer on a frozen backbone that is fitted at once, without optimizer and epochs: ``linear`` is a
            logistic regression, its L2 penalty chosen on validation; ``knn`` a vote of the nearest training tiles, and
            how many vote is chosen on validation.
        lora_rank: Train low-rank adapters of a transformer's attention, of this rank, and the last layer; everything
            else stays as it is. Networks of ``timm/`` and ``hf/``; null trains the weights themselves.
        checkpointing: Activations of a transformer's blocks are computed again for the gradients: less memory, and
            about a third more time. Networks of ``timm/`` and ``hf/``.
        freeze_epochs: The last layer alone learns for so many epochs, then everything; one schedule spans both.
        dropout: Probability in front of the last layer.
        normalize: ``imagenet`` uses ImageNet's mean and standard deviation, ``none`` leaves pixels in [0, 1], ``auto``
            follows the weights, or ``model.mean`` and ``model.std``.
        mean: Subtracted from pixels in [0, 1], one a channel; null follows the weights.
        std: Pixels are then divided by it, one a channel; null follows the weights.
        pooling: ``mean`` averages the last feature map, ``centre`` only over the centre third, where the label lies.
        input_size: Tiles are enlarged to this height and width in pixels in front of the network; null leaves them as
            they are, but for a hub's model, which has its own.
        interpolation: How they are enlarged; ``auto`` is what a hub's model names, else ``bilinear``.
    """

    name: str = "densenet121"
    weights: str | None = "auto"
    architecture: str | None = None
    kwargs: dict[str, Any] = field(default_factory=dict)
    features: str = choice("pooled", "cls", "mean", "cls+mean")
    trust_remote_code: bool = False
    card: dict[str, Any] = field(default_factory=dict)
    freeze: str = choice("none", "backbone")
    probe: str = choice("none", "linear", "knn")
    lora_rank: int | None = number(None, least=1)
    checkpointing: bool = False
    freeze_epochs: int = number(0, least=0)
    dropout: float = number(0.0, least=0, below=1)
    normalize: str = choice("auto", "imagenet", "none")
    mean: list[float] | None = None
    std: list[float] | None = None
    pooling: str = choice("mean", "centre")
    input_size: int | None = number(None, least=32, most=1024)
    interpolation: str = choice("auto", "bilinear", "bicubic")


@dataclass
class OptimizerConfig:
    """The optimizer.

    Attributes:
        name: ``adam`` (weight decay as an L2 term), ``adamw`` (decoupled, and none on biases and normalisation layers)
            or ``sgd`` (Nesterov momentum).
        lr: The peak learning rate, whatever the schedule.
        weight_decay: Strength of the weight decay.
        momentum: Momentum of ``sgd``; the others ignore it.
        backbone_lr_factor: The backbone's learning rate is this times ``lr``, that of the last layer ``lr``.
        layer_decay: Each block of a transformer has this times the learning rate of the next one, such as 0.75.
    """

    name: str = choice("adam", "adamw", "sgd")
    lr: float = number(1e-3, above=0, most=100)
    weight_decay: float = number(1e-5, least=0)
    momentum: float = number(0.9, least=0, below=1)
    backbone_lr_factor: float = number(1.0, above=0)
    layer_decay: float = number(1.0, above=0, most=1)


@dataclass
class SchedulerConfig:
    """The learning rate over time; it steps every batch.

    one_cycle also lowers the first beta of adam and adamw from 0.95 to 0.85 and back, as PyTorch's does.

    Attributes:
        name: ``one_cycle``, ``cosine`` (from the peak to zero) or ``constant``.
        pct_start: Part of the steps in which one_cycle rises.
        div_factor: one_cycle starts at lr / div_factor ...
        final_div_factor: ... and ends at lr / div_factor / final_div_factor.
        total_epochs: Lay the schedule out for so many epochs instead of ``trainer.max_epochs``. A fault of the
            notebook (20 laid out, 1 run), kept for ``experiment=notebook``.
    """

    name: str = choice("one_cycle", "cosine", "constant")
    pct_start: float = number(0.3, above=0, below=1)
    div_factor: float = number(25.0, least=1)
    final_div_factor: float = number(1e4, least=1)
    total_epochs: int | None = number(None, least=1)


@dataclass
class LossConfig:
    """Binary cross-entropy with logits.

    Attributes:
        pos_weight: Weight of positive tiles: ``balanced`` is negatives / positives of the training part, null is 1, a
            number is itself; ``inverse`` is positives / negatives, the notebook's fault.
        label_smoothing: Labels become ``label * (1 - s) + s / 2``.
    """

    pos_weight: str | None = "balanced"
    label_smoothing: float = number(0.0, least=0, below=1)
