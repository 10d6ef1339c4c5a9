"""The loop of timm's train.py, which its wheel lacks, made of timm's public functions, with its best flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import NativeScaler, dispatch_clip_grad

from backends.torch.precision import autocast, resolved
from benchmarks.torch_cases import CLASSES, JITTER, LEAST, Case


class Timm:
    """timm's train.py as its public functions make it, with the flags that are best for it on the device: channels
    last, its fused AdamW, its prefetcher, and on CUDA the precision of `train.precision auto` and torch.compile."""

    def __init__(self, case: Case, paths: list[Path]):
        self.case, device = case, case.device
        fixed = {"img_size": case.size} if "vit" in case.name or "swin" in case.name else {}
        model = timm.create_model(case.name, num_classes=CLASSES, **fixed).to(device)
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True
        model = model.to(memory_format=torch.channels_last)
        self.optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.05, fused=True)
        self.model = torch.compile(model, mode=case.compile) if isinstance(case.compile, str) else model
        self.loss = LabelSmoothingCrossEntropy(0.1).to(device)
        self.precision = resolved("auto", device)
        self.scaler = NativeScaler() if self.precision == "fp16" else None
        self.loader = self._of_files(paths) if paths else None

    def on_synthetic(self, updates: int) -> float:
        """Images a second with the same batch for every update, normalised and on the device."""
        case = self.case
        images = torch.randn(case.batch, 3, case.size, case.size, device=case.device)
        return self._rate([(images, torch.arange(case.batch, device=case.device) % CLASSES)] * updates)

    def on_files(self) -> float:
        """Images a second of an epoch over the files."""
        return self._rate(self.loader)

    def _of_files(self, paths: list[Path]) -> Any:
        """timm's training loader over the files."""
        case = self.case
        return create_loader(
            create_dataset("", paths[0].parents[1]),
            input_size=(3, case.size, case.size),
            batch_size=case.batch,
            is_training=True,
            scale=(LEAST, 1.0),
            hflip=0.5,
            color_jitter=JITTER,
            num_workers=case.workers,
            device=case.device,
            pin_memory=case.device.type == "cuda",
        )

    def _rate(self, loader: Any) -> float:
        """Images a second of an epoch of train.py's loop, not distributed, at most `updates` updates long."""
        seen = 0
        self.model.train()
        start = self.case.clock()
        for number, (images, target) in enumerate(loader):
            if number == self.case.updates:
                break
            seen += self._update(images, target)
        return seen / (self.case.clock() - start)

    def _update(self, images: torch.Tensor, target: torch.Tensor) -> int:
        images = images.contiguous(memory_format=torch.channels_last)
        with autocast(self.precision, self.case.device):
            loss = self.loss(self.model(images), target)
        if self.scaler:
            self.scaler(loss, self.optimizer, clip_grad=1.0, clip_mode="norm", parameters=self.model.parameters())
        else:
            loss.backward()
            dispatch_clip_grad(self.model.parameters(), value=1.0, mode="norm")
            self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()  # for its average of the losses
        return len(images)
