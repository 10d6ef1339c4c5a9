"""Times the networks and estimates the time of all members and views: adaptive inference saves the difference."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(eq=False)
class Timings:
    """Measures the passes of each member: `(images, seconds)` of every call, images that only fill a batch included."""

    passes: dict[int, list[tuple[int, float]]] = field(default_factory=dict)

    @contextmanager
    def measured(self, member: int, images: int) -> Iterator[None]:
        """Time the block, one pass of `images` through a member."""
        start = time.perf_counter()
        yield
        self.passes.setdefault(member, []).append((images, time.perf_counter() - start))

    @property
    def spent(self) -> float:
        """Seconds of all passes."""
        return sum(seconds for calls in self.passes.values() for _, seconds in calls)

    def everything(self, images: int, members: int, views: int) -> float | None:
        """Seconds that all members and views would have taken for so many images, at each member's median pace; None
        where a member was never asked."""
        if len(self.passes) < members:
            return None
        pace = [statistics.median(seconds / count for count, seconds in calls) for calls in self.passes.values()]
        return images * views * sum(pace)

    def text(self, images: int, members: int, views: int) -> str:
        """The time spent and saved, as text."""
        everything = self.everything(images, members, views)
        if not everything:
            return f"{self.spent:.1f} s in the networks; members that no image needed were not measured"
        saved = 1 - self.spent / everything
        words = f"{saved:.0%} saved" if saved >= 0 else f"{-saved:.0%} more"
        return f"{self.spent:.1f} s in the networks in place of about {everything:.1f} s, {words}"
