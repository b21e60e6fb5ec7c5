#!/usr/bin/env bash
# Shows the log of the run on the slice and follows it: tpu/logs.sh [--dry_run]
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

require TPU_NAME TPU_ZONE
[[ ${#ARGUMENTS[@]} -eq 0 ]] || fail "unexpected arguments ${ARGUMENTS[*]}; usage: logs.sh [--dry_run]"
place
on_hosts 0 "tail -n 100 -F supcon_run/train.log"
