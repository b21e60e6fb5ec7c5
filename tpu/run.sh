#!/usr/bin/env bash
# Starts or resumes a run on the slice: tpu/run.sh RECIPE [--flag=value ...] [--dry_run]
#   tpu/run.sh supcon_imagenet_resnet50 --model_dir=gs://my-bucket/runs/first
# The run continues after this terminal is closed. tpu/logs.sh shows its log.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

require TPU_NAME TPU_ZONE TPU_RUNTIME
place
[[ ${#ARGUMENTS[@]} -gt 0 && "${ARGUMENTS[0]}" != -* ]] ||
  fail "a recipe is required; usage: run.sh RECIPE [--flag=value ...] [--dry_run]"
recipe="${ARGUMENTS[0]}"
overrides=("${ARGUMENTS[@]:1}")
[[ -f "$HERE/../flags/$recipe.flags" ]] ||
  fail "unknown recipe $recipe; expected one of $(cd "$HERE/../flags" && echo *.flags)"
[[ " ${overrides[*]-} " == *" --model_dir=gs://"* ]] ||
  fail "set --model_dir=gs://BUCKET/FOLDER; files on a TPU's own disk are lost with the TPU."

# One process on the first host drives all hosts. If there are several, each runs a server.
addresses=(HOST_ADDRESS)
if ! $DRY_RUN; then
  read -r -a addresses <<<"$(host_addresses)"
elif [[ "${TPU_HOSTS:-1}" -gt 1 ]]; then
  addresses=()
  for ((index = 0; index < TPU_HOSTS; index++)); do addresses+=("HOST_ADDRESS_$index"); done
fi
[[ ${#addresses[@]} -gt 0 ]] || fail "$TPU_NAME has no hosts; create the slice with tpu/create.sh."
source="$(tensorflow_source)"
if [[ ${#addresses[@]} -eq 1 ]]; then
  tpu=local
else
  printf -v tpu 'grpc://%s:8470,' "${addresses[@]}"
  tpu="${tpu%,}"
  if [[ "$source" == wheel ]]; then
    on_hosts all "bash supcon_tf/tpu/host_run.sh serve"
  fi
fi

flags=("--recipe=$recipe" --strategy=tpu "--tpu_name=$tpu" --precision=mixed_bfloat16)
if [[ -n "${TFDS_DATA_DIR:-}" ]]; then
  flags+=("--data_dir=$TFDS_DATA_DIR")
fi
flags+=("${overrides[@]}")
printf -v quoted '%q ' "${flags[@]}"
on_hosts 0 "bash supcon_tf/tpu/host_run.sh start $source $tpu ${quoted% }"
