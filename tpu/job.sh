#!/usr/bin/env bash
# The same on Google Kubernetes Engine: tpu/job.sh start RECIPE [--flag=value ...] | logs | delete
#   start  fills in tpu/job.yaml and applies it; with --dry_run prints it
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

: "${JOB_NAME:=supcon}" "${JOB_MAX_RESTARTS:=5}" "${JOB_SERVICE_ACCOUNT:=default}"
: "${TPU_HOSTS:=1}" "${TPU_CHIPS_PER_HOST:=4}"

# json TEXT: as a JSON string, which is YAML too.
json() {
  [[ "$1" != *[[:cntrl:]]* ]] || fail "a line break or control character in $(printf '%q' "$1")."
  local text="${1//\\/\\\\}"
  printf '"%s"' "${text//\"/\\\"}"
}

# job.yaml with every variable filled in.
render() {
  local text name
  text="$(<"$HERE/job.yaml")"
  for name in JOB_NAME JOB_MAX_RESTARTS JOB_SERVICE_ACCOUNT JOB_IMAGE TPU_HOSTS \
    TPU_CHIPS_PER_HOST GKE_TPU_ACCELERATOR GKE_TPU_TOPOLOGY JOB_ARGUMENTS; do
    text="${text//"\${$name}"/"${!name}"}"
  done
  echo "$text"
}

start() { # start RECIPE FLAGS...
  require JOB_IMAGE GKE_TPU_ACCELERATOR GKE_TPU_TOPOLOGY
  [[ $# -gt 0 && "$1" != -* ]] ||
    fail "the recipe comes first: job.sh start RECIPE [--flag=value ...] [--dry_run]"
  [[ -f "$HERE/../flags/$1.flags" ]] ||
    fail "there is no recipe $1; there are $(cd "$HERE/../flags" && echo *.flags)"
  [[ " $* " == *" --model_dir=gs://"* ]] ||
    fail "give --model_dir=gs://BUCKET/FOLDER: what is on a pod's own disk goes with the pod."
  local flag arguments
  arguments="$(json "--recipe=$1")"
  shift
  if [[ -n "${TFDS_DATA_DIR:-}" ]]; then
    set -- "--data_dir=$TFDS_DATA_DIR" "$@"
  fi
  for flag in "$@"; do arguments+=", $(json "$flag")"; done
  export JOB_ARGUMENTS="[$arguments]"
  if $DRY_RUN; then
    echo "# kubectl apply -f - with:"
    render
  else
    render | kubectl apply -f -
  fi
}

case "${ARGUMENTS[0]:-}" in
  start) start "${ARGUMENTS[@]:1}" ;;
  logs)
    run kubectl logs --follow --prefix \
      "--selector=jobset.sigs.k8s.io/jobset-name=$JOB_NAME,batch.kubernetes.io/job-completion-index=0"
    ;;
  delete) run kubectl delete jobset "$JOB_NAME" ;;
  *) fail "job.sh takes start, logs or delete, not '${ARGUMENTS[0]:-}'." ;;
esac
