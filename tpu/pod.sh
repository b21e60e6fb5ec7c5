#!/usr/bin/env bash
# The program of each pod of tpu/job.yaml: pod.sh --recipe=NAME [--flag=value ...] [--dry_run]
# GKE sets the index of this host in TPU_WORKER_ID and all hosts of the slice in
# TPU_WORKER_HOSTNAMES. Every host serves its TPU. The first host also runs the training.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

IFS=, read -r -a hosts <<<"${TPU_WORKER_HOSTNAMES:-localhost}"
flags=(--strategy=tpu --precision=mixed_bfloat16)
command=(python -m supcon_tf.main "${ARGUMENTS[0]:---helpshort}" "${flags[@]}")
if [[ ${#hosts[@]} -eq 1 ]]; then
  run exec "${command[@]}" --tpu_name=local "${ARGUMENTS[@]:1}"
  exit 0
fi
if [[ "${TPU_WORKER_ID:-0}" -ne 0 ]]; then
  # Runs until GKE stops it. The job is complete when the first host is.
  run exec python "$HERE/host_server.py"
  exit 0
fi
if $DRY_RUN; then
  run python "$HERE/host_server.py" # in the background
else
  python "$HERE/host_server.py" &
fi
printf -v tpu 'grpc://%s:8470,' "${hosts[@]}"
run exec env TPU_LOAD_LIBRARY=0 "${command[@]}" "--tpu_name=${tpu%,}" "${ARGUMENTS[@]:1}"
