"""Stage 1: train encoder and projection head with the supervised contrastive loss."""

from __future__ import annotations

import time

from supcon_tf.cli import flag_rules
from supcon_tf.data import data_identity
from supcon_tf.evaluation import metrics, predictions
from supcon_tf.losses import baselines, supcon
from supcon_tf.losses.momentum_queue import MomentumQueue
from supcon_tf.models import batch_norm, contrastive
from supcon_tf.stages import chance, choices, image_size, inputs, memory_check, process, trainer
from supcon_tf.training import progress, steps

# The values of --loss beside supcon and cross_entropy.
OTHER_LOSSES = {
    "npairs": baselines.NPairsLoss,
    "triplet": baselines.TripletLoss,
    "max_margin": baselines.MaxMarginLoss,
}
# k-NN looks at no more examples than these, so that it stays quick on large datasets.
KNN_TRAIN_EXAMPLES, KNN_TEST_EXAMPLES = 10_000, 10_000


def run(flags, strategy) -> dict:
    """Trains to the end, or says that it is finished; returns its figures."""
    train_source, test_source = inputs.sources_from_flags(flags)
    choices.choose_batch_size(flags, strategy, train_source, "pretrain")
    choices.choose_epochs(flags, train_source)
    choices.choose_warmup(flags, "pretrain")
    with process.open_folder(flags, strategy, "pretrain") as folder:
        folder.check_data(data_identity.identity_of(train_source))
        if folder.result() is not None:
            folder.say_finished()
            return folder.result()
        train_source = inputs.training_examples_from_flags(flags, train_source)
        inputs.check_batches(flags, strategy, train_source)
        side = image_size.image_size_from_flags(flags, train_source)
        policy = inputs.policy_from_flags(flags, flags.augmentation_type)
        _check_microbatch_divides(flags, strategy)
        schedule = trainer.schedule_from_flags(flags, "pretrain", train_source.num_examples)

        whitening = inputs.whitening_from_flags(flags, train_source, folder, side)
        with strategy.scope(), progress.waiting("pretrain: building the model"):
            step = step_from_flags(flags, side, len(train_source.class_names), schedule, whitening)
        encoder = step.encoder
        if flags.reference_ckpt:
            _warm_start(flags, step)
        print(
            f"pretrain: {encoder.name} of {_count(encoder):,} parameters at {side} px, "
            f"{schedule.total_steps:,} steps of {flags.batch_size} examples x {flags.num_views} "
            "views, "
            f"{choices.describe_learning_rate(flags, 'pretrain', schedule.peak_learning_rate)}."
        )
        if isinstance(step, steps.ContrastiveStep):
            print(
                "          positives and negatives are the mean cosine similarity within and "
                "between classes; they separate as training works."
                if flags.use_labels
                else "          positives and negatives are the mean cosine similarity of views of "
                "the same image and of different ones; they separate as training works."
            )

        memory_check.check_memory(flags, strategy, step, num_views=flags.num_views)
        embed = predictions.create_predictor(strategy, lambda x: encoder(x, training=False))
        parts = [
            (source, inputs.eval_batches_from_flags(flags, source, image_size=side, limit=limit))
            for source, limit in (
                (train_source, KNN_TRAIN_EXAMPLES),
                (test_source, KNN_TEST_EXAMPLES),
            )
        ]

        test_labels = {}

        def measure_knn():
            arrays = []
            for source, batches in parts:
                count = min(source.num_examples, KNN_TRAIN_EXAMPLES)
                waiting = progress.waiting(f"pretrain: computing {count:,} embeddings for k-NN")
                with inputs.naming_broken_images(source), waiting:
                    arrays += predictions.in_order(embed(batches))
            test_labels.update(chance.of_labels(arrays[3]))
            with progress.waiting(f"pretrain: measuring k-NN on {len(arrays[0]):,} embeddings"):
                return {"knn_accuracy": metrics.knn_accuracy(*arrays)}

        folder.begin(schedule)
        started = time.monotonic()
        last = trainer.train_stage(
            flags,
            strategy,
            folder,
            step=step,
            schedule=schedule,
            source=train_source,
            image_size=side,
            policy=policy,
            num_views=flags.num_views,
            crop_area_range=flags.crop_area_range,
            evaluation=(
                measure_knn,
                int(flags.knn_interval_epochs * schedule.steps_per_epoch),
            ),
        )
        folder.artifacts.write_json("class_names.json", list(train_source.class_names))
        with progress.waiting("pretrain: saving the encoder"):
            _save(step, folder)
        result = {
            "steps": schedule.total_steps,
            "seconds": round(time.monotonic() - started, 1),
            "image_size": side,
            "num_features": encoder.output_shape[-1],
            **{
                name: last[name]
                for name in ("loss", "collapse_ratio", "accuracy", "knn_accuracy")
                if name in last
            },
            **test_labels,
        }
        folder.finish(result)
        return result


def _warm_start(flags, step):
    if flags.warm_start_encoder:
        trainer.warm_start_part(flags, "encoder", step.encoder)
    if flags.warm_start_projection_head:
        trainer.warm_start_part(flags, "projection_head", step.model.projection_head)
    if flags.queue_size:
        step.queue.copy_weights(step.model)


def _save(step, folder):
    """The encoder, and what was trained beside it; what an earlier run left alone is removed."""
    parts = {"linear_head.keras": step.linear_head, "encoder.keras": step.encoder}
    if isinstance(step, steps.ContrastiveStep):
        parts = {"projection_head.keras": contrastive.create_projector(step.model), **parts}
    for name, model in parts.items():
        if model is not None:
            folder.artifacts.save_model(name, model)
        elif folder.is_chief:
            folder.artifacts.remove(name)


def _check_microbatch_divides(flags, strategy):
    per_replica = flags.batch_size // strategy.num_replicas_in_sync
    if flags.microbatch_size is not None and per_replica % flags.microbatch_size:
        raise ValueError(
            f"microbatch_size={flags.microbatch_size} must divide the batch of a replica, "
            f"{per_replica} (batch_size {flags.batch_size} over "
            f"{strategy.num_replicas_in_sync} replica(s))."
        )


def encoder_from_flags(flags, image_size, whitening):
    """The encoder of the flags, new, under the current strategy's scope."""
    options = {"image_size": image_size, "use_global_batch_norm": flags.use_global_batch_norm}
    if not flag_rules.is_application(flags.encoder):
        mean, std = whitening
        options |= {
            "depth": flags.resnet_depth,
            "width": flags.resnet_width,
            "first_conv_kernel_size": flags.first_conv_kernel_size,
            "first_conv_stride": flags.first_conv_stride,
            "use_initial_max_pool": flags.use_initial_max_pool,
            "initial_max_pool_padding": flags.initial_max_pool_padding,
            "mean": mean,
            "std": std,
        }
    return contrastive.create_encoder(flags.encoder, **options)


def step_from_flags(
    flags, image_size, num_classes, schedule, whitening
) -> steps.ContrastiveStep | steps.ClassifierStep:
    """Model, loss and optimizer of the flags, under the current strategy's scope."""
    encoder = encoder_from_flags(flags, image_size, whitening)
    parts = [(encoder, flags.pretrain_use_encoder_weight_decay)]
    linear_head = probe = None
    if flags.loss == "cross_entropy" or flags.cross_entropy_weight:
        linear_head = contrastive.create_linear_head(
            encoder.output_shape[-1], num_classes, normalize_embedding=flags.normalize_embedding
        )
        parts.append((linear_head, True))
    if flags.loss == "cross_entropy":
        batch_norm.use_fused_batch_norm(encoder)
        return steps.ClassifierStep(
            encoder=encoder,
            linear_head=linear_head,
            optimizer=trainer.optimizer_from_flags(flags, "pretrain", schedule, parts=parts),
            global_batch_size=flags.batch_size,
            label_smoothing=flags.pretrain_label_smoothing,
            train_encoder=True,
        )
    head = contrastive.ProjectionHead(
        flags.projection_head_layers,
        use_batch_norm=flags.projection_head_use_batch_norm,
        use_batch_norm_beta=flags.projection_head_use_batch_norm_beta,
        use_global_batch_norm=flags.use_global_batch_norm,
        name="projection_head",  # Not counted up, so that its weights are found by name.
    )
    classification = linear_head and steps.ClassificationTerm(
        linear_head,
        weight=flags.cross_entropy_weight,
        label_smoothing=flags.pretrain_label_smoothing,
        stop_gradient=flags.stop_gradient_before_classifier,
    )
    if flags.online_probe:
        probe = contrastive.create_linear_head(encoder.output_shape[-1], num_classes, name="probe")
    model = contrastive.ContrastiveModel(
        encoder, head, normalize_embedding=flags.normalize_embedding
    )
    loss, queue = loss_from_flags(flags), None
    if flags.queue_size:
        queue = MomentumQueue(
            model, loss, queue_size=flags.queue_size, momentum=flags.encoder_momentum
        )
    parts.append((head, flags.pretrain_use_projection_head_weight_decay))
    return steps.ContrastiveStep(
        model=model,
        loss=loss,
        queue=queue,
        optimizer=trainer.optimizer_from_flags(flags, "pretrain", schedule, parts=parts),
        global_batch_size=flags.batch_size,
        num_views=flags.num_views,
        probe=probe,
        classification=classification,
        microbatch_size=flags.microbatch_size,
    )


def loss_from_flags(flags):
    if flags.loss in OTHER_LOSSES:
        return OTHER_LOSSES[flags.loss](reduction=None)
    return supcon.SupConLoss(
        temperature=flags.temperature,
        contrast_mode=flags.contrast_mode,
        summation_location=flags.summation_location,
        denominator_mode=flags.denominator_mode,
        positives_cap=flags.positives_cap,
        scale_by_temperature=flags.scale_by_temperature,
        use_labels=flags.use_labels,
        reduction=None,
    )


def _count(model):
    return sum(int(variable.value.shape.num_elements()) for variable in model.trainable_variables)
