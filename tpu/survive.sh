#!/usr/bin/env bash
# Keeps a run going on queued resources until it is done, through preemptions and failures:
#   tpu/survive.sh RECIPE [--flag=value ...] [--on_demand] [--dry_run]
# It creates the slice, installs the package and starts the run. Every TPU_POLL_SECONDS it checks
# the run, restarts it if it was stopped, and creates a new slice if the slice was preempted. The
# run resumes from its last checkpoint. This script can be stopped and started again at any time.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

require TPU_NAME TPU_ZONE TPU_ACCELERATOR TPU_RUNTIME
place
create=("$HERE/create.sh" --queued --spot)
run_arguments=()
for argument in "${ARGUMENTS[@]+"${ARGUMENTS[@]}"}"; do
  case "$argument" in
    --on_demand) create=("$HERE/create.sh" --queued) ;;
    *) run_arguments+=("$argument") ;;
  esac
done
[[ ${#run_arguments[@]} -gt 0 ]] ||
  fail "a recipe is required; usage: survive.sh RECIPE [--flag=value ...] [--on_demand] [--dry_run]"
poll_seconds="${TPU_POLL_SECONDS:-60}"
max_failures="${TPU_MAX_FAILURES:-5}"
stopped_code=75 # Exit code of a run that was asked to stop and has saved; not a failure.

if $DRY_RUN; then
  "${create[@]}" --dry_run
  "$HERE/setup.sh" --dry_run
  "$HERE/run.sh" "${run_arguments[@]}" --dry_run
  on_hosts 0 "bash supcon_tf/tpu/host_run.sh state"
  "$HERE/delete.sh" --dry_run
  exit 0
fi

say() { echo "$(date +%H:%M:%S) $*"; }

# Prints "running", an exit code, "none" or "unreachable".
train_state() {
  local said
  if said="$(on_hosts 0 "bash supcon_tf/tpu/host_run.sh state" 2>/dev/null)"; then
    tail -n 1 <<<"$said"
  else
    echo unreachable
  fi
}

delete_queued() {
  gcloud compute tpus queued-resources delete "$(queued_name)" "${PLACE[@]}" --force --quiet
}

# Calls to the cloud can fail for a while. The next check tries again.
attempt() {
  "$@" || say "failed, will be retried: $1"
}

installed=false
last_state=""
failures=0
while true; do
  state="$(queued_state)" || state=UNKNOWN
  if [[ "$state" != "$last_state" ]]; then
    say "slice: $state"
    last_state="$state"
  fi
  case "$state" in
    GONE)
      installed=false
      attempt "${create[@]}"
      ;;
    SUSPENDED | FAILED)
      say "the slice was preempted; creating a new one"
      installed=false
      attempt delete_queued
      continue
      ;;
    ACTIVE)
      if ! $installed; then
        if "$HERE/setup.sh"; then
          installed=true
        else
          say "installation failed, will be retried"
          sleep "$poll_seconds"
          continue
        fi
      fi
      case "$(train_state)" in
        running | unreachable) ;;
        none) attempt "$HERE/run.sh" "${run_arguments[@]}" ;;
        0)
          say "done; delete the slice with tpu/delete.sh"
          exit 0
          ;;
        "$stopped_code")
          say "the run was stopped; resuming it"
          attempt "$HERE/run.sh" "${run_arguments[@]}"
          ;;
        *)
          failures=$((failures + 1))
          say "the run failed ($failures of $max_failures); see tpu/logs.sh for the reason"
          [[ "$failures" -lt "$max_failures" ]] || exit 1
          attempt "$HERE/run.sh" "${run_arguments[@]}"
          ;;
      esac
      ;;
  esac
  sleep "$poll_seconds"
done
