#!/usr/bin/env bash
# Creates a slice: tpu/create.sh [--queued] [--spot] [--dry_run]
#   --queued  create a queued resource, which waits for capacity, instead of a TPU VM right away
#   --spot    use spot capacity, which is much cheaper but can be preempted
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

require TPU_NAME TPU_ZONE TPU_ACCELERATOR TPU_RUNTIME
place
queued=false
options=()
for argument in "${ARGUMENTS[@]+"${ARGUMENTS[@]}"}"; do
  case "$argument" in
    --queued) queued=true ;;
    --spot) options+=(--spot) ;;
    *) fail "unknown argument $argument; usage: create.sh [--queued] [--spot] [--dry_run]" ;;
  esac
done
if [[ -n "${TPU_NETWORK:-}" ]]; then
  options+=("--network=$TPU_NETWORK")
fi
if [[ -n "${TPU_SERVICE_ACCOUNT:-}" ]]; then
  options+=("--service-account=$TPU_SERVICE_ACCOUNT")
fi

if $queued; then
  run gcloud compute tpus queued-resources create "$(queued_name)" "--node-id=$TPU_NAME" \
    "${PLACE[@]}" "--accelerator-type=$TPU_ACCELERATOR" "--runtime-version=$TPU_RUNTIME" \
    "${options[@]+"${options[@]}"}"
else
  run gcloud compute tpus tpu-vm create "$TPU_NAME" "${PLACE[@]}" \
    "--accelerator-type=$TPU_ACCELERATOR" "--version=$TPU_RUNTIME" \
    "${options[@]+"${options[@]}"}"
fi
