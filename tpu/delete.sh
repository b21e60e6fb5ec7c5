#!/usr/bin/env bash
# Deletes the slice, and its queued resource if there is one: tpu/delete.sh [--dry_run]
# The files that the run saved in the bucket are kept.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

require TPU_NAME TPU_ZONE
[[ ${#ARGUMENTS[@]} -eq 0 ]] || fail "unexpected arguments ${ARGUMENTS[*]}; usage: delete.sh [--dry_run]"
place
state=GONE
if $DRY_RUN; then
  echo "# if there is a queued resource (create.sh --queued):"
else
  state="$(queued_state)"
fi
if $DRY_RUN || [[ "$state" != GONE ]]; then
  run gcloud compute tpus queued-resources delete "$(queued_name)" "${PLACE[@]}" --force --quiet
fi
if $DRY_RUN; then
  echo "# otherwise:"
fi
if $DRY_RUN || [[ "$state" == GONE ]]; then
  run gcloud compute tpus tpu-vm delete "$TPU_NAME" "${PLACE[@]}" --quiet
fi
