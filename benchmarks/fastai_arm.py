"""fastai's `fine_tune` with its defaults, for `benchmarks.finetune`; run by an interpreter that has fastai.

Arguments: the data set, timm's name of the model, its state dict, the file of the answers, pixels, epochs, seed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import timm
import torch
from fastai.vision.all import ImageDataLoaders, Resize, aug_transforms, set_seed, vision_learner


def main() -> None:
    """Train on `train/`, a fifth of it held out, and write the probabilities of `test/`'s images in order."""
    root, name, state, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    size, epochs, seed = map(int, sys.argv[5:8])
    torch.set_num_threads(1)
    set_seed(seed, reproducible=True)
    data = ImageDataLoaders.from_folder(
        root / "train",
        valid_pct=0.2,
        seed=seed,
        item_tfms=Resize(max(size, 2 * size)),
        batch_tfms=aug_transforms(size=size, min_scale=0.75),
        bs=64 if size <= 64 else 16,
        num_workers=0,
    )
    create = timm.create_model

    def offline(*words: object, pretrained: bool = False, **options: object) -> torch.nn.Module:
        """timm's network with the weights at hand in place of the hub's."""
        model = create(*words, pretrained=False, **options)
        if pretrained:
            model.load_state_dict(torch.load(state, weights_only=True), strict=False)
        return model

    timm.create_model = offline
    learner = vision_learner(data, name, pretrained=True)
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(epochs)
        tests = data.test_dl(sorted((root / "test").rglob("*.jpg")))
        np.save(out, learner.get_preds(dl=tests)[0].numpy())


if __name__ == "__main__":
    main()
