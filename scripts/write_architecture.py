#!/usr/bin/env python3
"""Write docs/architecture.svg, the picture of the package's rooms, or print figures of its structure.

    python scripts/write_architecture.py [--figures] [--root DIR]

A room is a module or package at the top level of `mm_spine`; files that hold only a docstring or re-exports are none.
An arrow is an import between two rooms, found with `ast`: imports inside functions and under TYPE_CHECKING count.
tests/test_architecture.py checks that the picture is what this script writes and that nothing imports in a circle.
"""

from __future__ import annotations

import argparse
import ast
import io
import itertools
import os
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import NamedTuple

PACKAGE = "mm_spine"
ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "architecture.svg"

Graph = Mapping[str, set[str]]
"""Importer -> what it imports."""

# --- Reading the package ------------------------------------------------------------------------------------------


class Module(NamedTuple):
    """A source file: its dotted name, its text, and whether it is a package's `__init__`."""

    name: str
    text: str
    is_package: bool

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def is_empty(self) -> bool:
        """Whether it holds nothing but a docstring, imports and `__all__`."""
        return all(_is_re_export(node) for node in self.tree.body)


def _is_re_export(node: ast.stmt) -> bool:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"


def read_modules(root: Path) -> dict[str, Module]:
    """Read every module of the package under `root`, by name. Links to folders are followed."""
    found = {}
    for folder, _, files in os.walk(root / PACKAGE, followlinks=True):
        for path in (Path(folder) / name for name in sorted(files) if name.endswith(".py")):
            parts = path.relative_to(root).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            found[name] = Module(name, path.read_text(), is_package)
    return dict(sorted(found.items()))


def import_graph(modules: Mapping[str, Module]) -> dict[str, set[str]]:
    """Return which modules of the package each module imports."""
    return {name: set(_imported(module, modules)) - {name} for name, module in modules.items()}


def _imported(module: Module, modules: Mapping[str, Module]) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.name.split(".")[: None if module.is_package else -1]
                start = ".".join(package[: len(package) - node.level + 1])
                base = f"{start}.{base}".rstrip(".")
            for alias in node.names:
                # `from package import name` imports the module of that name where there is one.
                inner = f"{base}.{alias.name}"
                if inner in modules or base in modules:
                    yield inner if inner in modules else base


def room_graph(modules: Mapping[str, Module], imports: Graph) -> dict[str, set[str]]:
    """Return which rooms each room imports."""
    rooms = {room(name) for name, module in modules.items() if name != PACKAGE and not module.is_empty}
    graph: dict[str, set[str]] = {name: set() for name in sorted(rooms)}
    for name, targets in imports.items():
        if room(name) in rooms:
            graph[room(name)] |= {room(target) for target in targets} & rooms - {room(name)}
    return graph


def room(module: str) -> str:
    """Return the room of a module; of the package itself, the package's name."""
    return module.split(".")[1] if "." in module else module


def circles(graph: Graph) -> list[list[str]]:
    """Return the groups of nodes that import each other, directly or through others."""
    reached = {node: reachable(graph, node) for node in graph}
    groups = {tuple(sorted(other for other in reached[node] if node in reached[other])) for node in graph}
    return sorted(list(group) for group in groups if len(group) > 1)


def reachable(graph: Graph, start: str) -> set[str]:
    """Return everything that `start` imports, directly or through others."""
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += graph[node]
    return seen


def all_circles(modules: Mapping[str, Module], imports: Graph) -> list[list[str]]:
    """Return the circles between rooms, and those between the modules and packages inside each package."""
    found = circles(room_graph(modules, imports))
    for package in (name for name, module in modules.items() if module.is_package and name != PACKAGE):
        depth = package.count(".") + 2
        inside = [name for name in modules if name == package or name.startswith(f"{package}.")]
        graph: dict[str, set[str]] = {".".join(name.split(".")[:depth]): set() for name in inside}
        for name in inside:
            child = ".".join(name.split(".")[:depth])
            graph[child] |= {".".join(target.split(".")[:depth]) for target in imports[name]} & graph.keys() - {child}
        found += circles(graph)
    return found


# --- Figures ------------------------------------------------------------------------------------------------------


def figures(root: Path) -> dict[str, str]:
    """Measure the structure of the package under `root`."""
    modules = read_modules(root)
    imports = import_graph(modules)
    rooms = room_graph(modules, imports)
    found = all_circles(modules, imports)
    lines = {name: module.text.count("\n") for name, module in modules.items()}
    functions = {
        f"{name}.{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for name, module in modules.items()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    longest_file, longest_function = max(lines, key=lines.__getitem__), max(functions, key=functions.__getitem__)
    comments = sum(map(_comment_lines, (module.text for module in modules.values())))
    return {
        "rooms": str(len(rooms)),
        "arrows between rooms": str(sum(map(len, rooms.values()))),
        "circles": "; ".join([str(len(found)), *(" <-> ".join(circle) for circle in found)]),
        "modules": str(len(modules)),
        "lines": str(sum(lines.values())),
        "longest file": f"{lines[longest_file]} ({longest_file})",
        "functions": str(len(functions)),
        "median function": f"{median(functions.values()):g} lines",
        "longest function": f"{functions[longest_function]} lines ({longest_function})",
        "comment lines": f"{100 * comments / sum(lines.values()):.1f} %",
    }


def _comment_lines(text: str) -> int:
    """Count the lines that hold a comment and nothing else."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip() for token in tokens)


# --- The picture --------------------------------------------------------------------------------------------------

BOX_HEIGHT, LAYER_GAP, BOX_GAP, ARROW_GAP, MARGIN = 34, 56, 24, 16, 28
CHARACTER = 8.0
"""Width of a character of the labels' monospaced font at 13 pixels, rounded up."""

COLOURS = ("#4c6a92", "#b0662b", "#4f7f52", "#8d4f8a", "#a8464e", "#3c8289", "#7a6a2f")
"""Colours of the arrows: arrows to the same room have the same one, so that an eye can follow them."""


class Node(NamedTuple):
    """A room in its layer, or a point where an arrow passes through a layer; `key` is unique."""

    key: str
    label: str

    @property
    def width(self) -> float:
        return len(self.label) * CHARACTER + 26 if self.label else 0.0


def reduced(graph: Graph) -> dict[str, set[str]]:
    """Leave out the imports that follow from others: a -> c where a -> b and b -> c."""
    return {node: targets - {x for t in targets for x in reachable(graph, t)} for node, targets in graph.items()}


def layer_of(graph: Graph) -> dict[str, int]:
    """Return each room's layer, counted from the top: one below the lowest room that imports it."""
    importers = {node: {name for name, targets in graph.items() if node in targets} for node in graph}
    layers: dict[str, int] = {}

    def place(node: str) -> int:
        if node not in layers:
            layers[node] = 1 + max((place(name) for name in importers[node]), default=-1)
        return layers[node]

    for node in graph:
        place(node)
    return layers


def layered(graph: Graph) -> tuple[list[list[Node]], list[tuple[str, str]]]:
    """Put the rooms into layers, with a point for each layer that an arrow passes; return layers and arrow pieces."""
    depth = layer_of(graph)
    layers: list[list[Node]] = [[] for _ in range(max(depth.values()) + 1)]
    pieces: list[tuple[str, str]] = []
    for name in graph:
        layers[depth[name]].append(Node(name, name))
    for target in graph:
        above = sorted(name for name in graph if target in graph[name])
        # Arrows to the same room join at their first common layer, so that long ones run as one line.
        joints: dict[int, str] = {}
        for name in sorted(above, key=lambda n: (depth[n], n)):
            last = name
            for level in range(depth[name] + 1, depth[target]):
                known = level in joints
                joint = joints.setdefault(level, f"{target}@{level}")
                pieces.append((last, joint))
                last = joint
                if known:
                    break
                layers[level].append(Node(joint, ""))
            else:
                pieces.append((last, target))
    return layers, pieces


def arranged(layers: Sequence[Sequence[Node]], pieces: Iterable[tuple[str, str]]) -> dict[str, float]:
    """Order each layer by its neighbours and return the x of every node's centre."""
    neighbours: dict[str, list[str]] = {node.key: [] for layer in layers for node in layer}
    for a, b in pieces:
        neighbours[a].append(b)
        neighbours[b].append(a)
    rows = [list(layer) for layer in layers]
    x = {node.key: 90.0 * i for layer in rows for i, node in enumerate(layer)}
    for sweep in range(60):
        for row in rows if sweep % 2 else reversed(rows):
            wanted = {n.key: _mean([x[k] for k in neighbours[n.key]], x[n.key]) for n in row}
            if sweep < 40:
                row.sort(key=lambda n: (wanted[n.key], n.key))
            for node, place in zip(row, _spread(row, [wanted[n.key] for n in row]), strict=True):
                x[node.key] = place
    left = min(x[n.key] - n.width / 2 for row in rows for n in row)
    return {key: value - left + MARGIN for key, value in x.items()}


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _spread(row: Sequence[Node], wanted: Sequence[float]) -> list[float]:
    """Return the places nearest to `wanted` (least squares) that keep the order and the gaps."""
    offsets = [0.0]
    for a, b in itertools.pairwise(row):
        gap = BOX_GAP if a.label and b.label else ARROW_GAP
        offsets.append(offsets[-1] + (a.width + b.width) / 2 + gap)
    # Pool neighbours that would overlap until their common mean is in order (isotonic regression).
    pools: list[tuple[float, int]] = []
    for want, offset in zip(wanted, offsets, strict=True):
        pools.append((want - offset, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m), (b, n) = pools[-2:]
            pools[-2:] = [((a * m + b * n) / (m + n), m + n)]
    places = [value for value, count in pools for _ in range(count)]
    return [place + offset for place, offset in zip(places, offsets, strict=True)]


CAPTION = (
    "A box is a module or package at the top level of mm_spine; an arrow leads from it to what it imports.",
    "Imports that follow from other arrows are left out. Arrows to the same box have the same colour.",
)


def picture(root: Path) -> str:
    """Draw the rooms of the package under `root` as SVG. Raises ValueError naming rooms that import in a circle."""
    modules = read_modules(root)
    whole = room_graph(modules, import_graph(modules))
    if found := circles(whole):
        raise ValueError(f"rooms import in a circle: {' <-> '.join(found[0])}")
    layers, pieces = layered(reduced(whole))
    x = arranged(layers, pieces)
    y = {node.key: MARGIN + i * (BOX_HEIGHT + LAYER_GAP) for i, layer in enumerate(layers) for node in layer}
    boxes = [node for layer in layers for node in layer if node.label]
    names = {node.key for node in boxes}
    right = max(x[node.key] + node.width / 2 for layer in layers for node in layer)
    width = round(max(right, 7.0 * max(map(len, CAPTION))) + MARGIN)
    height = len(layers) * (BOX_HEIGHT + LAYER_GAP) + 2 * MARGIN + 4
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="The rooms of {PACKAGE} and their imports">',
        "<defs>",
        *(_arrow_head(number, colour) for number, colour in enumerate(COLOURS)),
        "</defs>",
        f'<rect width="{width}" height="{height}" rx="10" fill="#fafaf7"/>',
        '<g fill="none" stroke-width="1.4">',
    ]
    colour_of = _colours([node.key for node in boxes])
    for start, end in pieces:
        top = y[start] + BOX_HEIGHT
        bottom = y[end] - (2 if end in names else 0)
        bend = (bottom - top) / 2
        # The key of a point where an arrow passes a layer starts with the name of the room that it leads to.
        colour = colour_of[end.partition("@")[0]]
        head = f' marker-end="url(#head{colour})"' if end in names else ""
        curve = f"M{x[start]:.1f} {top} C{x[start]:.1f} {top + bend} {x[end]:.1f} {bottom - bend} {x[end]:.1f} {bottom}"
        passing = "" if end in names else f" V{bottom + BOX_HEIGHT}"
        parts.append(f'<path d="{curve}{passing}" stroke="{COLOURS[colour]}"{head}/>')
    parts += ["</g>", '<g font-family="ui-monospace, Menlo, Consolas, monospace" font-size="13" text-anchor="middle">']
    for node in boxes:
        left = x[node.key] - node.width / 2
        parts.append(
            f'<rect x="{left:.1f}" y="{y[node.key]}" width="{node.width:.1f}" height="{BOX_HEIGHT}" rx="6" '
            'fill="#ffffff" stroke="#33475b"/>'
            f'<text x="{x[node.key]:.1f}" y="{y[node.key] + 22}" fill="#1b2733">{escape(node.label)}</text>'
        )
    parts += ["</g>", '<g font-family="system-ui, sans-serif" font-size="13" fill="#4a5a6a">']
    parts += [f'<text x="{MARGIN}" y="{height - MARGIN - 18 + 20 * i}">{line}</text>' for i, line in enumerate(CAPTION)]
    return "\n".join([*parts, "</g>", "</svg>"]) + "\n"


def _colours(rooms: Sequence[str]) -> dict[str, int]:
    """Return room -> place in `COLOURS`. Rooms that follow each other in the picture get different ones."""
    return {name: number % len(COLOURS) for number, name in enumerate(rooms)}


def _arrow_head(number: int, colour: str) -> str:
    return (
        f'<marker id="head{number}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0.5 8 4 0 7.5z" fill="{colour}"/></marker>'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/architecture.svg, or print figures of the package.")
    parser.add_argument("--figures", action="store_true", help="print a table of figures, write nothing")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout to read (default: this one)")
    options = parser.parse_args()
    if options.figures:
        rows = figures(options.root).items()
        print("\n".join(["| figure | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]))
    else:
        PICTURE.write_text(picture(options.root))


if __name__ == "__main__":
    main()
