#!/usr/bin/env bash
# Makes the run save a checkpoint and exit. The slice is kept: tpu/stop.sh [--dry_run]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

require TPU_NAME TPU_ZONE
[[ ${#ARGUMENTS[@]} -eq 0 ]] || fail "unexpected arguments ${ARGUMENTS[*]}; usage: stop.sh [--dry_run]"
place
on_hosts 0 "bash supcon_tf/tpu/host_run.sh stop"
