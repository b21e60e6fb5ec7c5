#!/usr/bin/env bash
# Installs this checkout on every host of the slice: tpu/setup.sh [--dry_run]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

require TPU_NAME TPU_ZONE TPU_RUNTIME
[[ ${#ARGUMENTS[@]} -eq 0 ]] || fail "unexpected arguments ${ARGUMENTS[*]}; usage: setup.sh [--dry_run]"
place

# Only the files that the hosts need, without .git, .venv and results.
archive="$(mktemp -t supcon_tf.XXXXXX)"
trap 'rm -f "$archive"' EXIT
run tar -czf "$archive" -C "$HERE/.." setup.py pyproject.toml README.md LICENSE supcon_tf flags tpu
run gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:supcon_tf.tar.gz" "${PLACE[@]}" \
  --worker=all
on_hosts all "mkdir -p supcon_tf && tar -xzf supcon_tf.tar.gz -C supcon_tf && \
bash supcon_tf/tpu/host_setup.sh $(tensorflow_source)"
