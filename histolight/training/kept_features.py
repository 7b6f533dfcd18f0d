"""Which kept features a probe may read: those of its backbone, weights, preprocessing, precision and tiles."""

from __future__ import annotations

import dataclasses

from histolight.config.schema import Config
from histolight.data.features import FeatureCache, features_key
from histolight.data.pack import Tiles
from histolight.files import cache_folder
from histolight.models.classifier import Classifier

# Of the model's keys, what its weights don't tell of the features.
SHAPE = ("name", "architecture", "kwargs", "features", "pooling", "interpolation")


def kept_features(classifier: Classifier, config: Config, tiles: Tiles, precision: str) -> FeatureCache:
    """Say where the features of a frozen backbone are kept."""
    key = features_key(
        classifier.backbone,
        classifier.head,
        {
            "model": {key: value for key, value in dataclasses.asdict(config.model).items() if key in SHAPE},
            "network": [
                f"{name} {type(module).__name__} {module.extra_repr()}"
                for name, module in classifier.backbone.named_modules()
                if not f"{name}.".startswith(f"{classifier.head}.")
            ],
            "mean": classifier.mean.flatten().tolist(),
            "std": classifier.std.flatten().tolist(),
            "size": [classifier.image_size, classifier.input_size],
            "stain": classifier.stain,
            "precision": precision,
        },
    )
    folder = cache_folder(config.data.cache) / "features" / f"{tiles.folder.name[:32]}-{key}"
    return FeatureCache(folder, len(tiles))
