"""Keras 3 on TensorFlow, as the courses have it: arrays of floats, `compile`, `fit`. Runs in the peers' environment.

python -m benchmarks.training.peers.keras_fit JOB.json
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.training.layers import Layer, layers
from benchmarks.training.turns import Turns


def network(plan: list[Layer], image: dict[str, Any]) -> keras.Model:
    """The recipe's network; Keras' defaults are channels-last and Glorot's uniform initial weights."""
    stack: list[Any] = [keras.Input((image["height"], image["width"], image["channels"]))]
    for layer in plan:
        match layer.kind:
            case "conv":
                padding = "same" if layer.same else "valid"
                stack.append(keras.layers.Conv2D(layer.outputs, layer.size, padding=padding))
            case "relu":
                stack.append(keras.layers.ReLU())
            case "norm":
                stack.append(
                    keras.layers.BatchNormalization(momentum=1 - layer.momentum, epsilon=layer.epsilon),
                )
            case "max_pool":
                stack.append(keras.layers.MaxPooling2D(layer.size))
            case "dropout":
                stack.append(keras.layers.Dropout(layer.rate))
            case "flatten":
                stack.append(keras.layers.Flatten())
            case "dense":
                stack.append(keras.layers.Dense(layer.outputs))
    stack.append(keras.layers.Softmax())
    return keras.Sequential(stack)


def optimizer(config: dict[str, Any]) -> Any:
    if config["name"] == "rmsprop":
        return keras.optimizers.RMSprop(config["lr"], rho=config["smoothing"], epsilon=config["epsilon"])
    first, second = config["betas"]
    return keras.optimizers.Adam(config["lr"], beta_1=first, beta_2=second, epsilon=config["epsilon"])


def callbacks(recipe: dict[str, Any]) -> list[Any]:
    found: list[Any] = []
    schedule, stopping = recipe["schedule"], recipe["fit"]["early_stopping"]
    names = {"validation/loss": "val_loss", "validation/accuracy": "val_accuracy"}
    if schedule["name"] == "plateau":
        found.append(
            keras.callbacks.ReduceLROnPlateau(
                monitor=names[schedule["monitor"]],
                factor=schedule["factor"],
                patience=schedule["patience"],
                min_delta=schedule["min_delta"],
                min_lr=schedule["min_lr"],
            )
        )
    if stopping is not None:
        found.append(
            keras.callbacks.EarlyStopping(
                monitor=names[stopping["monitor"]],
                mode="max" if stopping["monitor"].endswith("accuracy") else "min",
                patience=stopping["patience"],
                min_delta=stopping["min_delta"],
                restore_best_weights=recipe["fit"]["restore_best"],
            )
        )
    return found


class TakesTurns(keras.callbacks.Callback):  # type: ignore[misc]
    """Stands last, so that the epoch that it reports holds what the others do."""

    def __init__(self, turns: Turns, test: tuple[Any, Any]) -> None:
        super().__init__()
        self.turns, self.test = turns, test

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002 - Keras' own
        found = logs or {}
        metrics = {"train_loss": found["loss"], "validation_accuracy": found["val_accuracy"]}
        self.turns.epoch(
            {key: float(value) for key, value in metrics.items()}, judge=lambda: accuracy(self.model, self.test)
        )


def accuracy(model: keras.Model, split: tuple[Any, Any]) -> float:
    return float(model.evaluate(*split, batch_size=512, verbose=0, return_dict=True)["accuracy"])


def main() -> None:
    turns = Turns()
    job = json.loads(Path(sys.argv[1]).read_text())
    recipe, folder = job["recipe"], Path(job["data"])
    tf.config.threading.set_intra_op_parallelism_threads(job["threads"])
    tf.config.threading.set_inter_op_parallelism_threads(job["threads"])
    keras.utils.set_random_seed(recipe["fit"]["seed"])

    def split(name: str) -> tuple[Any, Any]:
        images = np.load(folder / f"{name}-images.npy").astype("float32") / 255
        return images, np.load(folder / f"{name}-labels.npy")

    train, validation, test = split("train"), split("validation"), split("test")
    image = recipe["data"]["image"]
    model = network(layers(recipe["model"], image, job["classes"]), image)
    model.compile(
        optimizer=optimizer(recipe["optimizer"]), loss="sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    turns.ready(
        parameters=model.count_params(),
        images=len(train[1]),
        versions={name: version(name) for name in ("tensorflow-cpu", "keras", "numpy")},
        how=f"fp32, channels-last, {job['threads']} threads",
    )
    model.fit(
        *train,
        epochs=recipe["fit"]["epochs"],
        batch_size=recipe["fit"]["batch_size"],
        validation_data=validation,
        callbacks=[*callbacks(recipe), TakesTurns(turns, test)],
    )
    turns.done(test_accuracy=accuracy(model, test))


if __name__ == "__main__":
    main()
