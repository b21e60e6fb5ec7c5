"""The identity of a dataset: what its training batches are made of, and how two of them differ."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os

import tensorflow as tf

from supcon_tf.data import many_files, sources

NUM_SHOWN = 5


@dataclasses.dataclass(frozen=True)
class DataIdentity:
    """The identity of a split of a dataset. Equal descriptions mean equal training examples.

    Attributes:
        description: a JSON object with the class names in the order of their labels, and the
            version of the data. For image files, the version is the number of files and a hash
            per class, and the rule of the validation split; for a CSV file, hashes of its files
            and labels.
        files: for folders of image files, "class/name" and the size in bytes of each, in order.
            The size of remote files is -1, because asking for it takes one request per file.
    """

    description: dict
    files: tuple[tuple[str, int], ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of the description."""
        return _hash(json.dumps(self.description, sort_keys=True))


def identity_of(source: sources.Source) -> DataIdentity:
    """The identity of a source, without reading its images."""
    names = list(source.class_names)
    if isinstance(source, sources.FileSource):
        return _describe_files(source, names)
    if isinstance(source, sources.ArraySource):
        digest = hashlib.sha256(source.images.tobytes() + source.labels.tobytes()).hexdigest()
        return DataIdentity({"class_names": names, "arrays": digest})
    info = source.builder.info
    split = info.splits[source.split]
    description = {
        "class_names": names,
        "name": info.full_name,
        "split": source.split,
        "examples": source.num_examples,
        "shards": list(split.shard_lengths or ()),
    }
    if source.label_type != "class":
        description |= {"label_type": source.label_type, "labels": "/".join(source.label_place)}
    return DataIdentity(description)


def _describe_files(source, names):
    sizes = many_files.for_each(_size, source.paths)
    more = {}
    if source.held_out is not None:
        more["validation_split"] = dataclasses.asdict(source.held_out)
    if source.names:
        lines = [f"{name}\t{size}" for name, size in zip(source.names, sizes, strict=True)]
        return DataIdentity(
            {
                "class_names": names,
                "label_type": source.label_type,
                "level_names": [list(level) for level in source.level_names],
                "examples": source.num_examples,
                "files": _hash("\n".join(lines)),
                "labels": hashlib.sha256(source.labels.tobytes()).hexdigest(),
                **more,
            }
        )
    files = tuple(
        (f"{names[label]}/{os.path.basename(path)}", size)
        for path, size, label in zip(source.paths, sizes, source.labels, strict=True)
    )
    description = {"class_names": names, "classes": _describe_classes(files), **more}
    return DataIdentity(description, files)


def _describe_classes(files):
    classes = {}
    for path, size in files:
        name, _, file = path.rpartition("/")
        classes.setdefault(name, []).append(f"{file}\t{size}")
    return {
        name: {"files": len(lines), "sha256": _hash("\n".join(lines))}
        for name, lines in classes.items()
    }


def _size(path):
    return -1 if "://" in path else os.stat(path).st_size


def to_lines(files: tuple[tuple[str, int], ...]) -> str:
    """Writes the files of a `DataIdentity` as text, one per line; `read` reads it."""
    return "".join(f"{size}\t{name}\n" for name, size in files)


def read(description: dict, path: str) -> DataIdentity:
    """Reads the identity that a run recorded.

    Args:
        description: of the recorded `DataIdentity`.
        path: its list of files. If it is missing or damaged, the identity has no files.
    """
    try:
        with tf.io.gfile.GFile(path) as file:
            pairs = (line.rstrip("\n").split("\t", 1) for line in file)
            files = tuple((name, int(size)) for size, name in pairs)
    except (ValueError, tf.errors.OpError):  # Missing or damaged.
        files = ()
    is_whole = _describe_classes(files) == description.get("classes")
    return DataIdentity(description, files if is_whole else ())


def differences(old: DataIdentity, new: DataIdentity) -> list[str]:
    """Lists what changed from one identity to another, one line per change.

    Of many changes of one kind, only the first few are listed.
    """
    lines = _renamed_classes(old.description, new.description)
    names = [set(identity.description["class_names"]) for identity in (old, new)]
    if not lines:
        lines += _shown("class removed", names[0] - names[1])
        lines += _shown("class added", names[1] - names[0])
        same_names = names[0] == names[1]
        if same_names and old.description["class_names"] != new.description["class_names"]:
            lines.append("the classes are in another order")
    rules = [identity.description.get("validation_split") for identity in (old, new)]
    if rules[0] != rules[1]:
        lines.append(f"the validation split: {rules[0]} -> {rules[1]}")
    if old.files and new.files:
        lines += _changed_files(dict(old.files), dict(new.files), names[0] & names[1])
    else:
        lines += _changed_values(old.description, new.description)
    return lines or ["the content of the data"]


def _renamed_classes(old, new):
    """Classes whose files are all present under another class name."""
    if "classes" not in old or "classes" not in new:
        return []
    removed = {value["sha256"]: name for name, value in old["classes"].items()
               if name not in new["class_names"]}  # fmt: skip
    added = {value["sha256"]: name for name, value in new["classes"].items()
             if name not in old["class_names"]}  # fmt: skip
    pairs = [f"{removed[key]} -> {added[key]}" for key in removed if key in added]
    if len(pairs) < max(len(removed), len(added)):
        return []
    return _shown("class renamed", pairs)


def _changed_files(old, new, classes):
    """Changed files of the classes that both identities have."""
    old, new = (
        {name: size for name, size in files.items() if name.rpartition("/")[0] in classes}
        for files in (old, new)
    )
    removed, added = old.keys() - new.keys(), new.keys() - old.keys()
    renamed = []
    by_size = {(name.rpartition("/")[0], new[name]): name for name in sorted(added, reverse=True)}
    for name in sorted(removed):
        other = by_size.pop((name.rpartition("/")[0], old[name]), None)
        if other is not None and old[name] >= 0:
            renamed.append((name, other))
    removed -= {name for name, _ in renamed}
    added -= {name for _, name in renamed}
    changed = [name for name in old.keys() & new.keys() if old[name] != new[name]]
    return [
        *_shown("file removed", removed),
        *_shown("file added", added),
        *_shown("file renamed", [f"{one} -> {other}" for one, other in renamed]),
        *_shown("file of another size", changed),
    ]


def _changed_values(old, new):
    """What changed if a list of files is missing: the number of files per class, or versions."""
    if "classes" in old and "classes" in new:
        one, other = old["classes"], new["classes"]
        return _shown(
            "class with other files",
            [
                f"{name} ({one[name]['files']} -> {other[name]['files']} files)"
                for name in one.keys() & other.keys()
                if one[name] != other[name]
            ],
        )
    names = [name for name in {**old, **new} if name not in ("class_names", "validation_split")]
    return [
        f"{name}: {_short(old.get(name))} -> {_short(new.get(name))}"
        for name in names
        if old.get(name) != new.get(name)
    ]


def _short(value):
    text = str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _shown(what, values):
    values = sorted(values)
    more = [f"{what}: and {len(values) - NUM_SHOWN:,} more"] if len(values) > NUM_SHOWN else []
    return [f"{what}: {value}" for value in values[:NUM_SHOWN]] + more


def _hash(text):
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
