"""Files as torch.save writes them, written by hand."""

import pickle
import re
import zipfile

import numpy as np


class StorageWriter(pickle._Pickler):
    """Writes arrays as torch.save does: a call of _rebuild_tensor_v2 on a storage by number."""

    def __init__(self, file):
        super().__init__(file, protocol=2)
        self.storages = []

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, np.ndarray):
            flat = np.ascontiguousarray(obj, np.float32)
            strides = tuple(step // flat.itemsize for step in flat.strides)
            self.storages.append(flat.tobytes())
            self.write_tensor(str(len(self.storages) - 1), flat.size, flat.shape, strides)
        elif isinstance(obj, Tensor):
            self.write_tensor(obj.key, obj.count, obj.size, obj.stride, obj.offset)
        else:
            super().save(obj, save_persistent_id)

    def write_tensor(self, key, count, size, stride, offset=0):
        self.write(b"ctorch._utils\n_rebuild_tensor_v2\n((")
        self.save("storage")
        self.write(b"ctorch\nFloatStorage\n")
        for part in (key, "cpu", count):
            self.save(part)
        self.write(b"tQ")
        for part in (offset, size, stride, False):
            self.save(part)
        self.write(b"ccollections\nOrderedDict\n)RtR")


class Tensor:
    """A tensor that claims whatever it is told to, for a storage that is written or not."""

    def __init__(self, size, stride, *, count, key="0", offset=0):
        self.size, self.stride, self.count = size, stride, count
        self.key, self.offset = key, offset


def write_checkpoint(path, state):
    """{"model": state, "epoch": 3} with arrays as float32 tensors; returns the path."""
    with zipfile.ZipFile(path, "w") as archive:
        with archive.open("checkpoint/data.pkl", "w") as file:
            writer = StorageWriter(file)
            writer.dump({"model": state, "epoch": 3})
        for key, data in enumerate(writer.storages):
            archive.writestr(f"checkpoint/data/{key}", data)
    return str(path)


def write_zip(path, pickled, storages=(), compression=zipfile.ZIP_STORED):
    """A zip archive of torch.save with this pickle and these storages; returns the path."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("checkpoint/data.pkl", pickled)
        for key, data in enumerate(storages):
            archive.writestr(f"checkpoint/data/{key}", data)
    return str(path)


def torch_state(encoder):
    """The weights of a ResNet under SupContrast's names."""
    state = {}
    for layer in encoder.layers:
        found = re.fullmatch(r"group(\d)_block(\d+)_(conv|batch_normalization)(\d)", layer.name)
        if found:
            group, block, kind, part = found.groups()
            kind = {"conv": "conv", "batch_normalization": "bn"}[kind]
            name = f"shortcut.{int(kind == 'bn')}" if part == "0" else f"{kind}{part}"
            name = f"encoder.layer{int(group) + 1}.{block}.{name}"
        elif layer.name in ("stem_conv", "stem_batch_normalization"):
            name = "encoder.conv1" if layer.name == "stem_conv" else "encoder.bn1"
        else:
            continue
        weights = layer.get_weights()
        if len(weights) == 1:
            state[f"{name}.weight"] = weights[0].transpose(3, 2, 0, 1)
        else:
            names = ("weight", "bias", "running_mean", "running_var")
            state |= {f"{name}.{part}": w for part, w in zip(names, weights, strict=True)}
            state[f"{name}.num_batches_tracked"] = np.array(5.0)
    return state
