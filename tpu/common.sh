#!/usr/bin/env bash
# Functions for the other scripts, which source this file. README.md describes the variables.
set -euo pipefail

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export HERE
DRY_RUN=false
ARGUMENTS=()  # The command line without --dry_run.
for argument in "$@"; do
  if [[ "$argument" == "--dry_run" || "$argument" == "--dry-run" ]]; then
    DRY_RUN=true
  else
    ARGUMENTS+=("$argument")
  fi
done

fail() {
  echo "ERROR: $*" >&2
  exit 1
}

# check VARIABLE PATTERN MEANING: fails if the variable is set and does not match the whole pattern.
check() {
  local value="${!1:-}" LC_ALL=C
  [[ -z "$value" || "$value" =~ ^($2)$ ]] || fail "$1=$(printf '%q' "$value"): expected $3."
}

# Checked before any use, because bash executes commands inside arithmetic expressions, and a line
# break in a value would add lines to job.yaml.
for name in TPU_HOSTS TPU_CHIPS_PER_HOST TPU_WORKER_ID TPU_POLL_SECONDS TPU_MAX_FAILURES \
  JOB_MAX_RESTARTS; do
  check "$name" '0|[1-9][0-9]{0,8}' "a whole number"
done
label='[a-z]([-a-z0-9]{0,61}[a-z0-9])?'
check TPU_NAME "$label" "lower-case letters, digits and hyphens, starting with a letter"
check JOB_NAME "$label" "lower-case letters, digits and hyphens, starting with a letter"
check JOB_SERVICE_ACCOUNT '[a-z0-9]([-.a-z0-9]*[a-z0-9])?' "a Kubernetes service account"
check JOB_IMAGE '[A-Za-z0-9][-A-Za-z0-9._/:@]*' "the name of a container image"
check GKE_TPU_ACCELERATOR '[A-Za-z0-9][-A-Za-z0-9._]*' "a node label, such as tpu-v5-lite-podslice"
check GKE_TPU_TOPOLOGY '[0-9]+(x[0-9]+){1,2}' "a topology, such as 8x16"

# require VARIABLE...: fails unless all variables are set.
require() {
  local name
  for name in "$@"; do
    [[ -n "${!name:-}" ]] || fail "$name is not set; tpu/README.md describes its values."
  done
}

# run COMMAND...: runs the command. With --dry_run, prints it in a form that can be pasted.
run() {
  if $DRY_RUN; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# Sets PLACE to the zone and project flags of every gcloud call.
place() {
  require TPU_ZONE
  PLACE=("--zone=$TPU_ZONE")
  if [[ -n "${GCP_PROJECT:-}" ]]; then
    PLACE+=("--project=$GCP_PROJECT")
  fi
}

# on_hosts WORKERS COMMAND: runs a shell command on all hosts of the slice ("all") or on one ("0").
on_hosts() {
  run gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${PLACE[@]}" "--worker=$1" "--command=$2"
}

# The name of the queued resource of a slice.
queued_name() {
  echo "$TPU_NAME-queued"
}

# Prints the state of the queued resource: WAITING_FOR_RESOURCES, PROVISIONING, ACTIVE, SUSPENDED,
# FAILED, ..., or GONE if there is none.
queued_state() {
  local listed
  # `list` prints nothing if there is no such resource. `describe` would fail in this case, but it
  # also fails without a network.
  listed="$(gcloud compute tpus queued-resources list "${PLACE[@]}" \
    "--filter=name~/$(queued_name)\$" "--format=value(state.state)")" || return 1
  echo "${listed:-GONE}"
}

# Prints the internal addresses of the slice's hosts, separated by spaces.
host_addresses() {
  gcloud compute tpus tpu-vm describe "$TPU_NAME" "${PLACE[@]}" \
    "--format=value(networkEndpoints[].ipAddress)" | tr ';,' '  '
}

# Prints "image" if the TPU software image provides TensorFlow (and on a pod, a server on each host),
# or "wheel" if tensorflow-tpu is installed from requirements.txt.
tensorflow_source() {
  require TPU_RUNTIME
  case "$TPU_RUNTIME" in
    tpu-vm-tf-*) echo image ;;
    *) echo wheel ;;
  esac
}
