"""Lightning's Trainer at its defaults, a DataLoader and torchvision's transforms, as its tutorials have them.

    python -m benchmarks.training.peers.lightning_fit JOB.json

Runs in the peers' environment. The job says the Trainer's precision; all else is its default.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import ToTensor

from benchmarks.training.layers import Layer, layers
from benchmarks.training.turns import Turns

NAMES = {"validation/loss": "val_loss", "validation/accuracy": "val_acc"}


class Images(Dataset[tuple[Any, int]]):
    """As torchvision's own data sets: an array of bytes, a PIL image of each, then the transform."""

    def __init__(self, folder: Path, split: str) -> None:
        self.images = np.load(folder / f"{split}-images.npy")
        self.labels = np.load(folder / f"{split}-labels.npy").tolist()
        self.transform = ToTensor()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[index].squeeze())), self.labels[index]


def network(plan: list[Layer]) -> nn.Sequential:
    """The recipe's network, in torch's default memory format."""
    stack: list[nn.Module] = []
    for layer in plan:
        match layer.kind:
            case "conv":
                padding = layer.size // 2 if layer.same else 0
                stack.append(nn.Conv2d(layer.inputs, layer.outputs, layer.size, padding=padding))
            case "relu":
                stack.append(nn.ReLU())
            case "norm":
                stack.append(nn.BatchNorm2d(layer.outputs, eps=layer.epsilon, momentum=layer.momentum))
            case "max_pool":
                stack.append(nn.MaxPool2d(layer.size))
            case "dropout":
                stack.append(nn.Dropout(layer.rate))
            case "flatten":
                stack.append(nn.Flatten())
            case "dense":
                stack.append(nn.Linear(layer.inputs, layer.outputs))
        if layer.kind in ("conv", "dense"):
            nn.init.xavier_uniform_(stack[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(stack[-1].bias)  # type: ignore[arg-type]
    return nn.Sequential(*stack)


class Classifier(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self, recipe: dict[str, Any], classes: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.network = network(layers(recipe["model"], recipe["data"]["image"], classes))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        images, labels = batch
        loss = nn.functional.cross_entropy(self(images), labels)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        images, labels = batch
        logits = self(images)
        self.log("val_loss", nn.functional.cross_entropy(logits, labels), prog_bar=True)
        self.log("val_acc", (logits.argmax(1) == labels).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> dict[str, Any]:
        config, schedule = self.recipe["optimizer"], self.recipe["schedule"]
        optimizer: torch.optim.Optimizer
        if config["name"] == "rmsprop":  # torch adds epsilon to the root, Keras under it: a user takes what torch has
            optimizer = torch.optim.RMSprop(
                self.parameters(), lr=config["lr"], alpha=config["smoothing"], eps=config["epsilon"]
            )
        else:
            optimizer = torch.optim.Adam(
                self.parameters(), lr=config["lr"], betas=tuple(config["betas"]), eps=config["epsilon"]
            )
        if schedule["name"] != "plateau":
            return {"optimizer": optimizer}
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer,
            mode="max" if schedule["monitor"].endswith("accuracy") else "min",
            factor=schedule["factor"],
            patience=schedule["patience"] - 1,  # torch acts when the patience is passed, Keras when it is reached
            threshold=schedule["min_delta"],
            threshold_mode="abs",
            min_lr=schedule["min_lr"],
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": NAMES[schedule["monitor"]]}}


class TakesTurns(Callback):  # type: ignore[misc]
    def __init__(self, turns: Turns, test: tuple[Tensor, Tensor]) -> None:
        self.turns, self.test = turns, test

    def on_train_epoch_end(self, trainer: Any, module: Classifier) -> None:
        found = trainer.callback_metrics
        metrics = {"train_loss": found["train_loss"], "validation_accuracy": found["val_acc"]}
        self.turns.epoch(
            {key: float(value) for key, value in metrics.items()}, judge=lambda: accuracy(module, self.test)
        )


@torch.no_grad()
def accuracy(module: Classifier, test: tuple[Tensor, Tensor]) -> float:
    training = module.training
    module.eval()
    images, labels = test
    spans = [slice(start, start + 512) for start in range(0, len(labels), 512)]
    right = [int((module(images[span]).argmax(1) == labels[span]).sum()) for span in spans]
    module.train(training)
    return sum(right) / len(labels)


def main() -> None:
    turns = Turns()
    job = json.loads(Path(sys.argv[1]).read_text())
    recipe, folder = job["recipe"], Path(job["data"])
    config = recipe["fit"]
    lightning.seed_everything(config["seed"])
    torch.set_num_threads(job["threads"])
    size = config["batch_size"]
    train = DataLoader(Images(folder, "train"), batch_size=size, shuffle=True)
    validation = DataLoader(Images(folder, "validation"), batch_size=size)
    pixels = torch.from_numpy(np.load(folder / "test-images.npy")).permute(0, 3, 1, 2).float() / 255
    test = pixels, torch.from_numpy(np.load(folder / "test-labels.npy"))
    module = Classifier(recipe, job["classes"])
    extra: list[Any] = [TakesTurns(turns, test)]
    stopping, best = config["early_stopping"], None
    if stopping is not None:
        mode = "max" if stopping["monitor"].endswith("accuracy") else "min"
        monitor = NAMES[stopping["monitor"]]
        extra.append(
            EarlyStopping(monitor=monitor, mode=mode, patience=stopping["patience"], min_delta=stopping["min_delta"])
        )
        if config["restore_best"]:
            best = ModelCheckpoint(monitor=monitor, mode=mode)
            extra.append(best)
    trainer = lightning.Trainer(
        max_epochs=config["epochs"],
        precision=job["precision"],
        callbacks=extra,
        default_root_dir=job["scratch"],
    )
    turns.ready(
        parameters=sum(value.numel() for value in module.state_dict().values() if value.ndim),
        images=len(train.dataset),  # type: ignore[arg-type]
        versions={name: version(name) for name in ("lightning", "torch", "torchvision", "numpy")},
        how=f"{job['precision']}, the Trainer's and the DataLoader's defaults, {torch.get_num_threads()} threads",
    )
    trainer.fit(module, train, validation)
    if best is not None and best.best_model_path:
        state = torch.load(best.best_model_path, weights_only=True)["state_dict"]
        module.load_state_dict(state)
    turns.done(test_accuracy=accuracy(module, test))


if __name__ == "__main__":
    main()
