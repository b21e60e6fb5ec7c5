"""Every damaged or odd image folder ends in one message that names the file, or runs."""

import json
import threading

import pytest
from helpers import image_folders
from helpers.command import run_inside

from supcon_tf.data import pipeline, sources
from supcon_tf.data.folder_layout import printable
from supcon_tf.stages import inputs

HANGS_AFTER_SECONDS = 300
SMALL = (
    "--dataset=folder", "--mode=preview", "--batch_size=4", "--preview_examples=2",
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


@pytest.mark.parametrize("name", image_folders.REFUSED)
def test_what_is_no_image_is_named_before_training(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = write(tmp_path, image_folders.REFUSED[name])
    message = message_of(load, root)
    assert refused_names(message) and "--skip_broken_images" in message
    assert printable(message.replace("\n", "")) == message.replace("\n", "")
    assert message_of(load, root, skip_broken_images=True) is None


@pytest.mark.parametrize("name", image_folders.UNDECODABLE)
def test_what_cannot_be_decoded_is_left_out_and_named(name, tmp_path):
    root = write(tmp_path, image_folders.UNDECODABLE[name])
    message = message_of(load, root)  # Some are found by their first bytes.
    assert message is None or refused_names(message)
    source = sources.load_source("folder", "train", str(root), skip_broken_images=True)
    assert [path[-7:] for path in source.skipped] == ["odd.jpg"]
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


@pytest.mark.slow
def test_every_odd_folder_ends_in_one_message_or_in_the_run_asked_for(
    tmp_path_factory, capsys, monkeypatch
):
    """Every folder through the command: previews read and decode the training images."""
    outcomes = {}
    kinds = ("REFUSED", "UNDECODABLE", "LAYOUT", "RUNS")
    for kind in kinds:
        for name, change in getattr(image_folders, kind).items():
            tmp_path = tmp_path_factory.mktemp("folder")
            monkeypatch.chdir(tmp_path)
            root = write(tmp_path, change)
            batch = f"--batch_size={8 if kind == 'UNDECODABLE' else 4}"
            arguments = (*SMALL, batch, f"--data_dir={root}", f"--model_dir={tmp_path / 'run'}")
            if kind == "UNDECODABLE":  # Nine training images: one epoch meets the odd one.
                arguments = (*arguments, "--batch_size=9")
            message = message_of(run_inside, *arguments)
            outcomes[kind, name] = message
            if kind == "RUNS":
                assert message is None, (name, message)
            elif kind == "LAYOUT":
                assert message and str(root) in message, (name, message)
            else:
                assert message and refused_names(message), (name, message)
    counts = {kind: sum(which == kind for which, _ in outcomes) for kind in kinds}
    with capsys.disabled():
        print(f"\n{len(outcomes)} folders: {json.dumps(counts)}, 0 silent, 0 tracebacks, 0 hangs")
    assert len(outcomes) >= 74
