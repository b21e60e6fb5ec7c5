#!/usr/bin/env bash
# Creates ~/supcon_env on one host of a slice: host_setup.sh image|wheel [--dry_run]
#   image  use the TensorFlow of the TPU software image, whose servers must have the same version
#   wheel  install tensorflow-tpu and libtpu from requirements.txt
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

environment="$HOME/supcon_env"
requirements="$HERE/requirements.txt"
case "${ARGUMENTS[0]:-}" in
  image)
    # Keep the TensorFlow of the image and install the other pinned packages.
    run python3 -m venv --system-site-packages "$environment"
    filtered="$(mktemp)"
    trap 'rm -f "$filtered"' EXIT
    grep -vE '^(tensorflow-tpu|libtpu)==' "$requirements" >"$filtered"
    requirements="$filtered"
    ;;
  wheel) run python3 -m venv "$environment" ;;
  *) fail "unknown source '${ARGUMENTS[0]:-}'; usage: host_setup.sh image|wheel [--dry_run]" ;;
esac
run "$environment/bin/pip" install -q --upgrade pip
run "$environment/bin/pip" install -q -r "$requirements"
# --no-deps, because the package requires tensorflow, which would hide tensorflow-tpu.
run "$environment/bin/pip" install -q --no-deps "$HERE/.."
