"""Which model to take for which card: what `mm-spine adapt FOLDER` says where no model is named.

All is arithmetic, by `mm_spine.commands.card`, from the shapes of public models; nothing is measured or loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

from mm_spine.commands.card import CARDS, USABLE, Card, shortage
from mm_spine.commands.estimate import Described, describe
from mm_spine.config import RunConfig
from mm_spine.policy.public_models import PUBLIC_MODELS, write_config
from mm_spine.runs.plan import load_config

Train = Literal["lora", "full"]


class Choice(NamedTuple):
    """A public model, what is read of it, and a folder's configuration for it by what trains."""

    name: str
    model: Described
    configs: dict[Train, RunConfig]

    def fits(self, card: Card, train: Train) -> bool:
        """Whether a run fits on the card, by arithmetic."""
        return shortage(self.configs[train], self.model, card) is None


def choices(target: str, overrides: Sequence[str] = ()) -> list[Choice]:
    """Return the public models, the smallest first, with the configurations that own.yaml gives them for a folder.

    `overrides` apply as in the run. Raises ConfigError for a wrong one.
    """
    found = []
    for name in PUBLIC_MODELS:
        with TemporaryDirectory() as folder:
            model = describe(write_config(name, Path(folder)))
        trained: tuple[Train, ...] = ("lora", "full")
        configs = {
            train: load_config(target, [*overrides, f"model.path={name}", f"model.train={train}"]) for train in trained
        }
        found.append(Choice(name, model, configs))
    return sorted(found, key=lambda choice: sum(choice.model.counts.values()))


def largest(found: Sequence[Choice], card: Card, train: Train) -> str | None:
    """Return the name of the largest model that fits on the card, None where none does."""
    return next((choice.name for choice in reversed(found) if choice.fits(card, train)), None)


def choice_lines(target: str, overrides: Sequence[str] = (), own: tuple[str, int] | None = None) -> Iterator[str]:
    """Yield lines on the largest model that fits on each card, and on the card of this machine.

    `own` is the name of that card and its bytes; None: there is none.
    """
    found = choices(target, overrides)
    yield (
        "set model.path to a model folder or hub id. The largest public models that fit on one card, by arithmetic "
        "from their config.json and the values of own.yaml (nothing measured; a smaller model is faster):"
    )
    rows = [
        (name, *(largest(found, card, train) or "none" for train in ("lora", "full"))) for name, card in CARDS.items()
    ]
    titles = ("card (GB)", "low-rank adapters", "model.train=full")
    widths = [max(len(row[i]) for row in (titles, *rows)) for i in range(2)]
    for row in (titles, *rows):
        yield f"  {row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]}"
    nowhere = [choice.name for choice in found if not any(choice.fits(card, "lora") for card in CARDS.values())]
    if nowhere:
        yield f"On none of these cards: {', '.join(nowhere)}. With several cards: docs/hosts.md."
    yield _own_line(found, target, own)


def _own_line(found: Sequence[Choice], target: str, own: tuple[str, int] | None) -> str:
    if own is None:
        return "This machine has no GPU that torch can use."
    name, count = own
    # Only the memory decides what fits.
    card = Card(int(count / 1e9), 0, 0)
    chosen = largest(found, card, "lora")
    if chosen is None:
        return f"This machine's {name} with {count / 1e9:.0f} GB has room for none of them."
    return (
        f"This machine has {name} with {count / 1e9:.0f} GB, of which a run may take {USABLE:.0%}: "
        f"mm-spine adapt {target} --output runs/mine model.path={chosen}"
    )


def card_here() -> tuple[str, int] | None:
    """Return the name and the bytes of the first GPU that torch can use, None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return found.name, found.total_memory
