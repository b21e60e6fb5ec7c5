"""Every damaged or odd image folder ends in one message that names the file, or runs."""

import os
import threading

import pytest
import tensorflow as tf
from helpers import image_folders
from helpers.command import run_inside

from supcon_tf.data import decode, pipeline, sources
from supcon_tf.data.folder_layout import printable
from supcon_tf.stages import inputs

HANGS_AFTER_SECONDS = 300
SMALL = (
    "--dataset=folder", "--mode=preview", "--preview_examples=2",
    "--image_size=16", "--augmentation_type=identity",
)  # fmt: skip


def write(tmp_path, change):
    root = tmp_path / "data"
    image_folders.write_good(root)
    change(root)
    return root


def message_of(function, *arguments, **options):
    """What the function says as it refuses; None if it accepts. Fails if it hangs."""
    results = []

    def call():
        try:
            function(*arguments, **options)
            results.append(None)
        except (ValueError, OSError) as error:
            results.append(str(error))
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(HANGS_AFTER_SECONDS)
    assert results, "hangs"
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def load(root, **options):
    sources.load_splits("folder", str(root), **options)


def refused_names(message):
    return "odd" in message


NAMED_AT_ONCE = 10  # A message names the first ten files.


def groups(cases):
    """Groups the cases so that one folder holds their odd files and one message names them all."""
    in_test = [name for name in cases if name.startswith("test ")]
    alone = [[name] for name in cases if name in ("link to itself", "name not UTF-8")]
    rest = [name for name in cases if name not in in_test and [name] not in alone]
    ends = range(0, len(rest), NAMED_AT_ONCE)
    together = [rest[start : start + NAMED_AT_ONCE] for start in ends]
    return [*together, *alone, *([in_test] if in_test else [])]


def write_together(tmp_path, changes):
    """Writes all odd files, each with its own name, into one folder; returns them."""
    root = write(tmp_path, lambda root: None)
    paths = []
    for number, change in enumerate(changes):
        change(root)
        for odd in (root / "train/cat/odd.jpg", root / "test/dog/odd.jpg"):
            if os.path.lexists(odd):
                name = f"odd{number:02}.jpg" if len(changes) > 1 else odd.name
                paths.append(odd.rename(odd.with_name(name)))
    return root, paths


@pytest.mark.parametrize("names", groups(image_folders.REFUSED), ids=lambda names: names[0])
def test_what_is_no_image_is_named_before_training(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root, paths = write_together(tmp_path, [image_folders.REFUSED[name] for name in names])
    message = message_of(load, root)
    assert [path for path in paths if path.name not in message] == []
    assert len(paths) == len(names) or names == ["name not UTF-8"]
    assert refused_names(message) and "--skip_broken_images" in message
    assert printable(message.replace("\n", "")) == message.replace("\n", "")
    assert message_of(load, root, skip_broken_images=True) is None
    part = "test" if names[0].startswith("test ") else "train"
    source = sources.load_source("folder", part, str(root), skip_broken_images=True)
    assert (source.num_examples, len(source.skipped)) == (8, len(names))


@pytest.mark.parametrize("names", groups(image_folders.UNDECODABLE), ids=lambda names: names[0])
def test_what_cannot_be_decoded_is_left_out_and_named(names, tmp_path):
    root, paths = write_together(tmp_path, [image_folders.UNDECODABLE[name] for name in names])
    message = message_of(load, root)  # Some are found by their first bytes.
    assert message is None or refused_names(message)
    source = sources.load_source("folder", "train", str(root), skip_broken_images=True)
    assert sorted(source.skipped) == sorted(map(str, paths)) and len(paths) == len(names)
    assert source.num_examples == 8


@pytest.mark.parametrize("name", image_folders.LAYOUT)
def test_another_layout_is_refused_with_the_folder(name, tmp_path):
    root = write(tmp_path, image_folders.LAYOUT[name])
    message = message_of(load, root)
    assert str(root) in message and "\udcff" not in message


def test_a_loop_of_links_lists_an_image_once(tmp_path):
    root = write(tmp_path, lambda root: (root / "train/cat/back").symlink_to(root))
    source = sources.load_unlabeled(str(root))
    assert source.num_examples == len(set(source.paths)) == 16


def test_a_file_deleted_while_it_is_used_is_named(tmp_path):
    root = write(tmp_path, image_folders.RUNS["nothing odd"])
    source = sources.load_source("folder", "train", str(root))
    batches = pipeline.create_eval_batches(source, batch_size=8, image_size=16)
    gone = root / "train/dog/3.png"
    gone.unlink()
    message = pytest.raises(ValueError, match=f"{gone}: cannot be read: No such file")
    with message, inputs.naming_broken_images(source):
        list(batches)


def test_a_larger_limit_of_pixels_accepts_an_image(tmp_path):
    root = write(tmp_path, image_folders.RUNS["different sizes"])
    options = {"skip_broken_images": True}
    source = sources.load_source("folder", "train", str(root), max_pixels=50_000, **options)
    ((path, reason),) = source.skipped.items()
    assert path.endswith("odd.jpg") and "300 x 200 pixels, more than the limit of 0.05" in reason
    source = sources.load_source("folder", "train", str(root), max_pixels=60_000, **options)
    assert source.skipped == {} and source.num_examples == 9


# Through the command: a preview reads and decodes the training images.


def preview(root, monkeypatch):
    """The message of the command; None if it runs. All training images are in its first batch."""
    monkeypatch.chdir(root)
    count = sum(path.is_file() for path in root.glob("train/*/*"))
    arguments = (f"--batch_size={max(2, count)}", f"--data_dir={root}")
    return message_of(run_inside, *SMALL, *arguments, f"--model_dir={root.parent / 'run'}")


@pytest.mark.slow
def test_the_command_refuses_every_odd_file_in_one_message(tmp_path_factory, monkeypatch):
    cases = image_folders.REFUSED
    assert len(cases) >= 35
    for names in groups(cases):
        root, paths = write_together(
            tmp_path_factory.mktemp("folder"), [cases[name] for name in names]
        )
        message = preview(root, monkeypatch)
        assert message and refused_names(message), names
        assert [path for path in paths if path.name not in message] == []


@pytest.mark.slow
def test_the_command_refuses_every_odd_layout_with_the_folder(tmp_path_factory, monkeypatch):
    cases = image_folders.LAYOUT
    assert len(cases) >= 8
    for name, change in cases.items():
        root = write(tmp_path_factory.mktemp("folder"), change)
        message = preview(root, monkeypatch)
        assert message and str(root) in message, (name, message)


@pytest.mark.slow
def test_the_command_names_every_file_that_it_cannot_decode(tmp_path, monkeypatch):
    """A message names all that it found; without those files the next one names the others."""
    cases = image_folders.UNDECODABLE
    root, paths = write_together(tmp_path, list(cases.values()))
    assert len(paths) == len(cases) >= 30
    refused_at_first = {
        path for path in paths if decode.inspect_files([str(path)], max_pixels=10**8)[0]
    }
    for path in set(paths) - refused_at_first:  # Also each on its own, as training decodes it.
        with pytest.raises((tf.errors.InvalidArgumentError, ValueError)):
            decode.decode_crops(
                tf.io.read_file(str(path)), lambda shape: tf.constant([[0, 0, 1, 1]]),
                any_format=True,
            )  # fmt: skip
    left, messages = set(paths), []
    while left:
        messages.append(preview(root, monkeypatch))
        named = {path for path in left if path.name in (messages[-1] or "")}
        assert named, (messages, left)
        for path in named:
            path.unlink()
        left -= named
    assert "cannot be decoded" in messages[-1]
    assert len(messages) < 6


APART = ("nothing odd", "no test", "one empty test class")


@pytest.mark.slow
def test_the_command_runs_with_every_odd_image(tmp_path_factory, monkeypatch):
    """All of them in one folder, but for other formats, which are decoded in another way."""
    cases = image_folders.RUNS
    assert len(cases) >= 38
    others = [f"{kind} named jpg" for kind in image_folders.READ]
    together = [name for name in cases if name not in (*APART, *others)]
    for names in (together, others, *([name] for name in APART[1:])):
        root, paths = write_together(
            tmp_path_factory.mktemp("folder"), [cases[name] for name in names]
        )
        assert preview(root, monkeypatch) is None, names
        if names == others:
            assert len(paths) == len(others)
