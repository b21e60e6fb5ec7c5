"""What the linear and finetune stages share: training in steps, the encoder, what is saved."""

from __future__ import annotations

import os
import time

from supcon_tf.data import data_identity
from supcon_tf.evaluation import metrics, predictions
from supcon_tf.models import batch_norm, contrastive
from supcon_tf.stages import chance, choices, inputs, memory_check, process, trainer
from supcon_tf.stages.run_directory import RunDirectory, artifacts_of, find_part
from supcon_tf.training import progress, steps


def train_classifier(
    flags, strategy, stage, *, augmentation_type, crop_area_range, train_encoder=False
) -> dict:
    """Trains to the last step, whatever the test accuracy on the way; returns the figures.

    Args:
        stage: "linear" or "finetune": names the folder and the flags.
        augmentation_type, crop_area_range: of the training images.
        train_encoder: train all layers instead of the linear head alone.
    """
    encoder_path = find_encoder(flags)
    run, built_on = RunDirectory.of(flags), {"encoder": encoder_identity(encoder_path)}
    keeps_head = (
        stage == "linear" and flags.linear_epochs == 0 and run.has("pretrain", "linear_head.keras")
    )
    if keeps_head:
        built_on["linear_head"] = run.artifacts("pretrain").identity("linear_head.keras")
    train_source, test_source = inputs.sources_from_flags(flags)
    choices.choose_batch_size(flags, strategy, train_source, stage)
    choices.choose_warmup(flags, stage)
    with process.open_folder(flags, strategy, stage, inputs=built_on) as folder:
        check_training_data(flags, folder, train_source, encoder_path)
        if folder.result() is not None:
            folder.say_finished()
            return folder.result()
        train_source = inputs.training_examples_from_flags(flags, train_source)
        inputs.check_batches(flags, strategy, train_source)
        policy = inputs.policy_from_flags(flags, augmentation_type)
        schedule = trainer.schedule_from_flags(flags, stage, train_source.num_examples)

        with strategy.scope(), progress.waiting(f"{stage}: loading the encoder"):
            encoder = load_encoder(encoder_path)
            if train_encoder:
                batch_norm.use_fused_batch_norm(encoder)
            linear_head = (
                run.artifacts("pretrain").load_model("linear_head.keras")
                if keeps_head
                else contrastive.create_linear_head(
                    encoder.output_shape[-1],
                    len(train_source.class_names),
                    normalize_embedding=flags.normalize_embedding,
                    zero_initialize=flags.zero_initialize_classifier,
                )
            )
            parts = [(linear_head, True), *([(encoder, True)] if train_encoder else [])]
            optimizer = trainer.optimizer_from_flags(flags, stage, schedule, parts=parts)
            step = steps.ClassifierStep(
                encoder=encoder,
                linear_head=linear_head,
                optimizer=optimizer,
                global_batch_size=flags.batch_size,
                label_smoothing=flags.label_smoothing,
                train_encoder=train_encoder,
            )
        if flags.reference_ckpt and flags.warm_start_classifier:
            trainer.warm_start_part(flags, "classifier", linear_head)
        image_size = encoder.input_shape[1]
        if keeps_head:
            print(f"linear: no epochs; using the classifier of pretraining, {run.linear_head}.")
        print(
            f"{stage}: {len(train_source.class_names)} classes on {encoder.output_shape[-1]} "
            f"features of {encoder_path}, {schedule.total_steps:,} steps, "
            f"{choices.describe_learning_rate(flags, stage, schedule.peak_learning_rate)}."
        )
        if train_encoder:
            memory_check.check_memory(flags, strategy, step, num_views=1)
        folder.begin(schedule)
        started = time.monotonic()
        last = trainer.train_stage(
            flags,
            strategy,
            folder,
            step=step,
            schedule=schedule,
            source=train_source,
            image_size=image_size,
            policy=policy,
            num_views=1,
            crop_area_range=crop_area_range,
        )
        figures = {
            "steps": schedule.total_steps,
            "train_accuracy_of_last_batch": last.get("accuracy"),
        }
        if train_encoder:
            with progress.waiting(f"{stage}: saving the encoder"):
                folder.artifacts.save_model("encoder.keras", encoder)
        return finish_classifier(
            flags,
            strategy,
            folder,
            encoder=encoder,
            linear_head=linear_head,
            class_names=train_source.class_names,
            test_source=test_source,
            started=started,
            figures=figures,
        )


def finish_classifier(
    flags, strategy, folder, *, encoder, linear_head, class_names, test_source, started, figures
) -> dict:
    """Measures the classifier on the test images, saves it, and ends the stage.

    Args:
        class_names: of the logits, in their order.
        started: `time.monotonic()` when the training began.
        figures: what the stage has to say of the training itself.
    """
    with strategy.scope():
        classifier = contrastive.create_classifier(encoder, linear_head)
    with progress.waiting(
        f"{folder.stage}: evaluating on {test_source.num_examples:,} test images"
    ):
        logits, labels = predict_source(
            flags, strategy, classifier, test_source, image_size=encoder.input_shape[1]
        )
    with progress.waiting(f"{folder.stage}: saving the classifier"):
        folder.artifacts.save_model("classifier.keras", classifier)
    folder.artifacts.write_json("class_names.json", list(class_names))
    result = {
        **figures,
        "seconds": round(time.monotonic() - started, 1),
        "top_1": metrics.top_k_accuracy(logits, labels),
        **chance.of_labels(labels),
    }
    folder.finish(result)
    return result


def predict_source(flags, strategy, model, source, *, image_size) -> tuple:
    """Outputs [M, ...] of a model on every image of a source, without augmentation, and labels."""
    with inputs.naming_broken_images(source):
        return predictions.predict(
            strategy,
            lambda images: model(images, training=False),
            inputs.eval_batches_from_flags(flags, source, image_size=image_size),
        )


def check_training_data(flags, folder, source, encoder_path) -> None:
    """Refuses training data that differs from that of this stage or of the run's encoder."""
    is_own = encoder_path == RunDirectory.of(flags).encoder
    folder.check_data(data_identity.identity_of(source), built_on="pretrain" if is_own else None)


def load_encoder(path: str):
    """The encoder in a file that `find_encoder` found, checked."""
    return artifacts_of(path).load_model(os.path.basename(path))


def encoder_identity(path: str) -> str:
    """A hash of the encoder's layers and weights."""
    artifacts, name = artifacts_of(path), os.path.basename(path)
    artifacts.check(name)
    return artifacts.identity(name)


def find_encoder(flags) -> str:
    """The encoder that this model directory's pretraining left, else that of --reference_ckpt."""
    run = RunDirectory.of(flags)
    path = run.encoder
    if run.has("pretrain", "encoder.keras"):
        return path
    if flags.reference_ckpt and flags.reference_ckpt.endswith(".pth"):
        raise ValueError(
            f"reference_ckpt={flags.reference_ckpt} holds weights without their network: make an "
            "encoder of them with --mode=pretrain --pretrain_epochs=0 and the same --model_dir "
            "first."
        )
    if flags.reference_ckpt:
        return find_part(flags.reference_ckpt, "encoder")
    raise ValueError(
        f"There is no pretrained encoder at {path}: run --mode=pretrain with this --model_dir "
        "first, or name another run's model directory or encoder.keras with --reference_ckpt."
    )
