#!/usr/bin/env bash
# A run on Google Kubernetes Engine: tpu/job.sh start RECIPE [--flag=value ...] | logs | delete
#   start  fills in tpu/job.yaml and applies it; with --dry_run, prints it instead
#   logs   follows the log of the first host
#   delete deletes the job
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

: "${JOB_NAME:=supcon}" "${JOB_MAX_RESTARTS:=5}" "${JOB_SERVICE_ACCOUNT:=default}"
: "${TPU_HOSTS:=1}" "${TPU_CHIPS_PER_HOST:=4}"

# json TEXT: prints the text as a JSON string, which is also valid YAML.
json() {
  [[ "$1" != *[[:cntrl:]]* ]] || fail "$(printf '%q' "$1") contains a line break or control character."
  local text="${1//\\/\\\\}"
  printf '"%s"' "${text//\"/\\\"}"
}

# Prints job.yaml with all variables filled in.
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
    fail "a recipe is required; usage: job.sh start RECIPE [--flag=value ...] [--dry_run]"
  [[ -f "$HERE/../flags/$1.flags" ]] ||
    fail "unknown recipe $1; expected one of $(cd "$HERE/../flags" && echo *.flags)"
  [[ " $* " == *" --model_dir=gs://"* ]] ||
    fail "set --model_dir=gs://BUCKET/FOLDER; files on a pod's own disk are lost with the pod."
  local flag arguments
  arguments="$(json "--recipe=$1")"
  shift
  if [[ -n "${TFDS_DATA_DIR:-}" ]]; then
    set -- "--data_dir=$TFDS_DATA_DIR" "$@"
  fi
  for flag in "$@"; do arguments+=", $(json "$flag")"; done
  export JOB_ARGUMENTS="[$arguments]"
  if $DRY_RUN; then
    echo "# kubectl apply -f - with this input:"
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
  *) fail "unknown command '${ARGUMENTS[0]:-}'; usage: job.sh start|logs|delete" ;;
esac
