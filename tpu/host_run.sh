#!/usr/bin/env bash
# Runs on one host of a slice: host_run.sh start image|wheel TPU FLAGS... | state | stop | serve
#   start  starts `python -m supcon_tf.main FLAGS...` in the background if it is not running
#   state  prints "running", the exit code of the last run, or "none"
#   stop   makes the run save a checkpoint and exit
#   serve  starts the host's TensorFlow server in the background if it is not running
# With --dry_run, prints the command instead of starting it.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

FOLDER="$HOME/supcon_run"
PYTHON="$HOME/supcon_env/bin/python"
mkdir -p "$FOLDER"

is_alive() { # is_alive NAME
  [[ -f "$FOLDER/$1.pid" ]] && kill -0 "$(<"$FOLDER/$1.pid")" 2>/dev/null
}

start() { # start image|wheel TPU FLAGS...
  local source="$1" tpu="$2"
  shift 2
  if is_alive train; then
    echo "The run is already running as process $(<"$FOLDER/train.pid"); nothing started."
    return
  fi
  local variables=()
  if [[ "$tpu" == grpc://* ]]; then
    variables=(TPU_LOAD_LIBRARY=0) # The servers own the TPU.
  elif [[ "$source" == image ]]; then
    variables=(NEXT_PLUGGABLE_DEVICE_USE_C_API=true TF_PLUGGABLE_DEVICE_LIBRARY_PATH=/lib/libtpu.so)
  fi
  local command=(env "${variables[@]+"${variables[@]}"}" "$PYTHON" -m supcon_tf.main "$@")
  if $DRY_RUN; then
    run "${command[@]}"
    return
  fi
  rm -f "$FOLDER/train.exit" "$FOLDER/train.pid"
  # With setsid, the run continues after the ssh session ends.
  setsid bash "$HERE/host_run.sh" supervise "${command[@]}" </dev/null >>"$FOLDER/train.log" 2>&1 &
  for _ in {1..50}; do
    [[ ! -f "$FOLDER/train.pid" ]] || break
    sleep 0.1
  done
  echo "Started; the log is $FOLDER/train.log."
}

supervise() { # supervise COMMAND...: writes the process id, and at the end the exit code
  local code=0
  "$@" &
  echo "$!" >"$FOLDER/train.pid"
  wait "$!" || code=$?
  echo "$code" >"$FOLDER/train.exit"
}

state() {
  if is_alive train; then
    echo running
  elif [[ -f "$FOLDER/train.exit" ]]; then
    cat "$FOLDER/train.exit"
  else
    echo none
  fi
}

serve() {
  local command=("$PYTHON" "$HERE/host_server.py")
  if $DRY_RUN; then
    run "${command[@]}"
  elif ! is_alive server; then
    setsid "${command[@]}" </dev/null >>"$FOLDER/server.log" 2>&1 &
    echo "$!" >"$FOLDER/server.pid"
  fi
}

case "${ARGUMENTS[0]:-}" in
  start)
    [[ ${#ARGUMENTS[@]} -ge 4 ]] || fail "usage: host_run.sh start image|wheel TPU FLAGS..."
    start "${ARGUMENTS[@]:1}"
    ;;
  supervise) supervise "${ARGUMENTS[@]:1}" ;;
  state) state ;;
  stop) is_alive train && run kill -TERM "$(<"$FOLDER/train.pid")" ;;
  serve) serve ;;
  *) fail "unknown command '${ARGUMENTS[0]:-}'; usage: host_run.sh start|state|stop|serve" ;;
esac
