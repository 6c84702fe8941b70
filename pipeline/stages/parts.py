"""Parts of a stage's output: files in a folder beside it, made by one process or by many, then put together.

A part is complete or absent and carries a key of its own, so that a killed stage, and one that several jobs share,
makes only what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.cost import Cost, Meter, total_cost
from pipeline.errors import InputError
from pipeline.schema import CONTENT_KEY, PROVENANCE, STAGE
from pipeline.store import content_key, read_cost, read_key

Share = tuple[int, int]
"""(I, N): the parts i with i % N == I, for one of N jobs."""


def share_of(text: str) -> Share:
    """Read `I/N`.

    Raises:
        InputError: not of that form, or I is not below N.

    Examples:
        >>> share_of("0/4")
        (0, 4)
    """
    first, slash, second = text.partition("/")
    if not (slash and first.isdecimal() and second.isdecimal()) or int(first) >= int(second):
        raise InputError(f"{text}: expected I/N with I from 0 to N-1, such as 0/16")
    return int(first), int(second)


@dataclass(frozen=True)
class Parts:
    """The parts of one output.

    Attributes:
        output: path of the whole.
        stage: name of the stage.
        key: content key of the whole.
        names: what tells the content of each part from the others, in order, such as its rows.
        meter: what this session costs.
    """

    output: Path
    stage: str
    key: str
    names: tuple[str, ...]
    meter: Meter = field(default_factory=Meter, compare=False)

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.output.with_name(f"{self.output.name}.parts")

    @property
    def paths(self) -> tuple[Path, ...]:
        """Their files, in order."""
        return tuple(self.folder / f"part-{i:05d}.h5" for i in range(len(self.names)))

    def attributes(self, index: int) -> dict[str, Any]:
        """Root attributes of a part that is done; its cost is all that this session has cost since the part before."""
        cost = self.meter.lap().text()
        return {STAGE: f"{self.stage}-part", CONTENT_KEY: self._key_of(index), PROVENANCE: cost}

    @property
    def cost(self) -> Cost:
        """Of all parts, whoever made them."""
        return total_cost(read_cost(path) for path in self.paths)

    def _key_of(self, index: int) -> str:
        return content_key(f"{self.stage}-part", 1, {"key": self.key, "part": self.names[index]}, {})

    def mine(self, share: Share | None) -> Iterator[tuple[int, bool]]:
        """Index of each part of a share (None: all), and whether it is missing."""
        first, step = share or (0, 1)
        for index in range(first, len(self.names), step):
            yield index, read_key(self.paths[index]) != self._key_of(index)

    def remove(self) -> None:
        """Delete them, once they are put together; and those of another output that stopped halfway."""
        for part in self.folder.glob("part-*.h5"):
            part.unlink()
        with suppress(OSError):  # something else lies there: it is not ours
            self.folder.rmdir()
