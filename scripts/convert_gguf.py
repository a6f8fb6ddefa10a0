"""Turn a GGUF file into an ordinary folder of a model, with weights that can be trained.

    python scripts/convert_gguf.py FILE.gguf FOLDER [--about TEXT]

transformers reads the file and undoes its quantisation, but refuses to save a model that it has read in this way. The
weights are copied into a fresh model of the same configuration, which is saved in fp32 with the tokenizer and the chat
template of the file. A FOLDER that has a config.json is left alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mm_spine import compat, files


def convert(source: Path, folder: Path, about: str = "") -> None:
    """Write the model of `source` into `folder`, whole or not at all.

    Raises ValueError for a source that is no GGUF file or lacks weights, and for a folder that holds something.
    """
    if not is_gguf(source):
        raise ValueError(f"{source}: not a GGUF file")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: in the way, and holds no model; move it, or choose another folder")
    # A build of torchvision that does not fit torch would keep transformers from its own models.
    compat.heal_torchvision()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read, loaded = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32, output_loading_info=True
    )
    # Weights that are not in the file would be random.
    if loaded["missing_keys"]:
        raise ValueError(f"{source}: no weight {min(loaded['missing_keys'])}")
    config = read.config
    # Says that the weights are quantised, which they no longer are.
    del config.quantization_config
    fresh = type(read)(config)
    fresh.load_state_dict(read.state_dict())
    fresh.generation_config = read.generation_config
    with files.atomic_folder(folder, folder.with_name(f".{folder.name}.unfinished")) as unfinished:
        fresh.save_pretrained(unfinished)
        AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(unfinished)
        (unfinished / "README.md").write_text(f"Converted from {source.name} to fp32 by mm-spine.\n\n{about}\n")


def is_gguf(path: Path) -> bool:
    """Whether the file begins with the four bytes by which GGUF files are known."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="FILE.gguf")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument(
        "--about", default="", metavar="TEXT", help="where the file is from, for the folder's README.md"
    )
    options = parser.parse_args(arguments)
    if (options.folder / "config.json").is_file():
        print(f"{options.folder} is there already")
        return 0
    try:
        convert(options.source, options.folder, options.about)
    except (ValueError, ImportError) as error:
        print(f"convert_gguf: {error}", file=sys.stderr)
        return 2
    print(f"{options.folder}: written from {options.source.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
