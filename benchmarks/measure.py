"""Clocks: seconds of calls that take turns, processor seconds, peak memory of this process."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from clipviz.training.loop import versions

Work = Callable[[], object]


def seconds(work: Work, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call."""
    begun = clock()
    work()
    return clock() - begun


def taking_turns(works: Mapping[str, Callable[[], Work]], rounds: int) -> dict[str, list[float]]:
    """Wall seconds of several kinds of work, one after the other in each of the rounds.

    What slows the machine down slows all of them. Each work is made anew, outside the clock, and done once to warm up.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    for i in range(rounds + 1):
        for name, make in works.items():
            took = seconds(make())
            if i:
                taken[name].append(took)
    return taken


def median_ratio(taken: Mapping[str, list[float]], one: str, other: str) -> float:
    """Median over the rounds of time(one) / time(other)."""
    return statistics.median(a / b for a, b in zip(taken[one], taken[other], strict=True))


def processor_seconds(work: Work, repeats: int = 5) -> float:
    """Median processor seconds of this process, after a call to warm up: what else the machine does counts little."""
    work()
    return statistics.median(seconds(work, time.process_time) for _ in range(repeats))


def forget_peak() -> None:
    """From now on `peak_mb` speaks of what comes."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mb() -> float:
    """Largest resident memory since `forget_peak`, in units of 10^6 bytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / 1e6


def machine() -> str:
    """The machine, in words."""
    return f"{os.cpu_count()} CPUs {platform.machine()}, {torch.get_num_threads()} threads"


def libraries() -> str:
    """Versions of what does the work."""
    return " ".join(f"{name} {version}" for name, version in versions().items())
