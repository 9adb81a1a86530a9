"""A small network that says by how many quarter turns a picture was turned, in NumPy alone."""

from __future__ import annotations

import numpy as np


class Network:
    """Each layer folds n x n neighbours into one vector and multiplies it by a matrix.

    The side of the picture shrinks from 96 to 12, 6, 2 and 1; the last layer's four channels score
    the four turns.
    """

    folds = ((8, 3, 32), (2, 32, 64), (3, 64, 128), (2, 128, 4))  # n, channels in, channels out

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self.weights = [
            draw.normal(0, (2 / (n * n * c)) ** 0.5, (n * n * c, d)).astype(np.float32)
            for n, c, d in self.folds
        ]
        self.biases = [np.zeros(d, np.float32) for _, _, d in self.folds]
        parameters = self.weights + self.biases
        self.moments = [(p, np.zeros_like(p), np.zeros_like(p)) for p in parameters]
        self.steps = 0

    def train(self, batch: dict[str, np.ndarray]) -> tuple[float, float]:
        """One step of Adam on the cross-entropy.

        Args:
            batch: "image": (B, 96, 96, 3) uint8, "turns": (B,) integers from 0 to 3.

        Returns:
            The loss, and the share of the batch that was right.
        """
        x = batch["image"].astype(np.float32) / 127.5 - 1
        inputs = []
        for (n, _, channels), weight, bias in zip(
            self.folds, self.weights, self.biases, strict=True
        ):
            inputs.append(x := fold(x, n))
            x = x @ weight + bias
            if channels > 4:
                x = np.maximum(x, 0)
        rows, turns = np.arange(len(x)), batch["turns"]
        scores = x.reshape(len(x), 4)
        chances = np.exp(scores - scores.max(axis=1, keepdims=True))
        chances /= chances.sum(axis=1, keepdims=True)
        loss = -np.log(chances[rows, turns] + 1e-9).mean()

        slope = chances.copy()
        slope[rows, turns] -= 1
        slope = (slope / len(x)).reshape(x.shape)
        weight_slopes: list[np.ndarray] = []
        bias_slopes: list[np.ndarray] = []
        for layer in reversed(range(len(self.folds))):
            n, c, d = self.folds[layer]
            flat = slope.reshape(-1, d)
            weight_slopes.insert(0, inputs[layer].reshape(-1, n * n * c).T @ flat)
            bias_slopes.insert(0, flat.sum(axis=0))
            if layer:
                # This layer's input is the output of the one before: its ReLU passed what is > 0.
                slope = unfold((slope @ self.weights[layer].T) * (inputs[layer] > 0), n)
        self.update(weight_slopes + bias_slopes)
        return float(loss), float((chances.argmax(axis=1) == turns).mean())

    def update(self, slopes: list[np.ndarray], rate: float = 1e-3) -> None:
        self.steps += 1
        for (parameter, mean, square), slope in zip(self.moments, slopes, strict=True):
            mean += 0.1 * (slope - mean)
            square += 0.001 * (slope * slope - square)
            corrected = np.sqrt(square / (1 - 0.999**self.steps)) + 1e-8
            parameter -= rate * mean / (1 - 0.9**self.steps) / corrected


def fold(x: np.ndarray, n: int) -> np.ndarray:
    """(B, H, W, C) to (B, H/n, W/n, n*n*C)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // n, n, w // n, n, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // n, w // n, n * n * c)


def unfold(x: np.ndarray, n: int) -> np.ndarray:
    """The inverse of fold."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, n, n, c // (n * n)).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h * n, w * n, c // (n * n))
