#!/usr/bin/env python3
"""Make a weaker start for studies: add Gaussian noise to the matrices of a model's language model.

    python scripts/study/noisy_start.py MODEL_FOLDER NEW_FOLDER --sigma 0.3 --seed 1

The noise has `sigma` standard deviations of the matrix that it is added to. The vision tower stays as it is.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def add_noise(folder: Path, sigma: float, seed: int) -> None:
    """Change the weights of the model in `folder`, which has one file of them."""
    path, generator = folder / "model.safetensors", torch.Generator().manual_seed(seed)
    weights = load_file(path)
    for name in sorted(weights):
        weight = weights[name]
        if "visual" not in name and weight.dim() == 2:
            noise = torch.randn(weight.shape, generator=generator).to(weight.dtype)
            weights[name] = weight + sigma * weight.std() * noise
    save_file(weights, path, metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--sigma", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    given = parser.parse_args()
    shutil.copytree(given.model, given.new)
    add_noise(given.new, given.sigma, given.seed)


if __name__ == "__main__":
    main()
