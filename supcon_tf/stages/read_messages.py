"""What is printed about the files of a source that are left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from supcon_tf.data.folder_layout import printable
from supcon_tf.data.sources import Source


def listed(parts: Sequence[str]) -> str:
    """Returns the parts as a list in words: "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def say_ignored(all_sources: Iterable[Source]) -> None:
    """Prints how many hidden and system files the sources ignored, if any."""
    ignored = [name for source in all_sources for name in getattr(source, "ignored", ())]
    if ignored:
        names = ", ".join(map(printable, sorted(set(ignored))[:5]))
        more = ", ..." if len(set(ignored)) > 5 else ""
        print(
            f"Ignored {len(ignored):,} hidden or system files and repeated links ({names}{more})."
        )


def say_skipped(source: Source, split: str = "") -> None:
    """Prints which files of a source cannot be read as images, if any."""
    skipped = getattr(source, "skipped", {})
    if skipped:
        print(f"Skipped {len(skipped):,} {split}files that cannot be read as images:")
        print("\n".join(f"  {printable(path)}: {reason}" for path, reason in skipped.items()))
