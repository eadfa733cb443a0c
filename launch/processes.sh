#!/usr/bin/env bash
# Runs one program in N processes of this machine, as N hosts would run it; each holds some virtual CPU devices:
#   launch/processes.sh 2 train --config=configs/quickstart.py --workdir=runs/two
#   DEVICES=4 launch/processes.sh 2 train ...      four devices a process (by default one)
# The first process prints as it would alone; what the others print stands behind their number. Signals are passed on.
# Ends with the exit code of the first process that fails, after which the others are ended, or with 0.
# PYTHON names the interpreter; by default that of .venv (see launch/local.sh).
set -euo pipefail
top="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
grace="${GRACE:-15}" # seconds that the others have to end by themselves, once one has failed

if [ $# -lt 2 ] || ! [[ "$1" =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/processes.sh N VERB ...  (N processes of one \`fedrsclip VERB ...\`)" >&2
  exit 2
fi
number="$1"
shift
python="${PYTHON:-$top/.venv/bin/python}"
if ! command -v "$python" >/dev/null; then
  echo "launch/processes.sh: there is no $python; run launch/local.sh once, or set PYTHON" >&2
  exit 2
fi

port="$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')"
export FEDRSCLIP_LAUNCHER="$0 $number" # of the line that says how to go on
export FEDRSCLIP_PROCESSES="$number" FEDRSCLIP_COORDINATOR="127.0.0.1:$port"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-1}"
if [ -n "${https_proxy:-}${http_proxy:-}" ]; then
  export no_proxy="127.0.0.1${no_proxy:+,$no_proxy}" # among themselves
fi

# Each process leads a group of its own: Ctrl-C comes here alone, and reaches every process once, from here.
set -m
pids=()
for ((process = 0; process < number; process++)); do
  export FEDRSCLIP_PROCESS="$process"
  if [ "$process" -eq 0 ]; then
    "$python" -m fedrsclip_jax.cli "$@" &
  else
    "$python" -m fedrsclip_jax.cli "$@" > >(sed -u "s/^/[process $process] /" >&2) 2>&1 </dev/null &
  fi
  pids+=($!)
done

forward() {
  for pid in "${pids[@]}"; do kill -s "$1" "$pid" 2>/dev/null || true; done
}
trap 'forward INT' INT
trap 'forward TERM' TERM
trap 'forward KILL' EXIT

status=0
deadline=0
while [ ${#pids[@]} -gt 0 ]; do
  for index in "${!pids[@]}"; do
    kill -0 "${pids[index]}" 2>/dev/null && continue
    code=0
    wait "${pids[index]}" 2>/dev/null || code=$?
    unset "pids[index]"
    if [ "$code" -ne 0 ] && [ "$status" -eq 0 ]; then
      status="$code"
      deadline=$((SECONDS + grace))
    fi
  done
  if [ "$deadline" -gt 0 ] && [ "$SECONDS" -ge "$deadline" ]; then forward KILL; fi
  sleep 0.2 || true
done
exit "$status"
