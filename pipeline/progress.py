"""Progress bars with time left, and the safe points at which a run may stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from pipeline.interrupt import stop_if_asked

console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)

Advance = Callable[..., None]


_live: list[Progress] = []


@contextmanager
def progress_bar(description: str, total: int, *, completed: int = 0, safe: bool = True) -> Iterator[Advance]:
    """A bar on the terminal; yields `advance(count, note=None, total=None)`.

    A bar within another is a line below it, which goes when it ends. Nothing is drawn where the output is not a
    terminal. Every call of `advance` is a safe point unless `safe` is false: a signal that has come stops the run
    there.
    """
    with _display() as bar:
        inner = len(_live) > 1
        task = bar.add_task(description, total=total, completed=completed, note="")

        def advance(count: int = 1, note: str | None = None, total: int | None = None) -> None:
            bar.update(task, advance=count, total=total)
            if note is not None:
                bar.update(task, note=note)
            if safe:
                stop_if_asked()

        try:
            yield advance
        finally:
            if inner:
                bar.remove_task(task)


@contextmanager
def _display() -> Iterator[Progress]:
    """The display that is up already, or a new one: rich allows one at a time."""
    if _live:
        _live.append(_live[0])
        try:
            yield _live[0]
        finally:
            _live.pop()
        return
    bar = Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )
    _live.append(bar)
    try:
        with bar:
            yield bar
    finally:
        _live.pop()
