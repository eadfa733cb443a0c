#!/usr/bin/env bash
# One process on each host of a Cloud TPU slice:
#   TPU=name ZONE=us-central2-b launch/tpu_pod.sh setup         once: copies this clone there and installs it
#   TPU=name ZONE=us-central2-b launch/tpu_pod.sh train --config=configs/aid.py --workdir=/mnt/bucket/aid
#   TPU=name ZONE=us-central2-b launch/tpu_pod.sh stop          asks what runs there to save and end
# Change the lines marked <--, or set these variables. The first host writes the results; to go on with a run, and for
# `evaluate`, --workdir has to be one that all hosts see, such as a mounted bucket.
set -euo pipefail
top="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
tpu="${TPU:?set TPU to the name of the slice}"    # <-- as in: gcloud compute tpus tpu-vm list
zone="${ZONE:?set ZONE to the zone of the slice}" # <--
folder="${FOLDER:-fedrsclip_jax}"                 # <-- in the home folder of each host
python="${PYTHON:-}"                              # <-- interpreter there; by default the first that is 3.11 or newer
if [ $# -eq 0 ]; then
  echo "usage: TPU=NAME ZONE=ZONE launch/tpu_pod.sh setup | stop | VERB ...  (a verb of fedrsclip)" >&2
  exit 2
fi

everywhere() { gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all --command="$1"; }

case "$1" in
  setup)
    if [ -n "$(git -C "$top" status --porcelain)" ]; then
      echo "launch/tpu_pod.sh: warning: what is not committed in $top is not copied" >&2
    fi
    archive="$(mktemp)"
    trap 'rm -f "$archive"' EXIT
    git -C "$top" archive --format=tar.gz -o "$archive" HEAD
    gcloud compute tpus tpu-vm scp "$archive" "$tpu:$folder.tar.gz" --zone="$zone" --worker=all
    everywhere "
      for python in $python python3.13 python3.12 python3.11 python3; do
        if \$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi
        python=
      done
      if [ -z \"\$python\" ]; then
        echo \"\$(hostname): no Python 3.11 or newer; install one there, or set PYTHON\" >&2
        exit 2
      fi
      mkdir -p $folder && tar -xzf $folder.tar.gz -C $folder && \$python -m venv $folder/.venv &&
        $folder/.venv/bin/pip install --quiet --editable '${folder}[tpu]'"
    ;;
  stop)
    everywhere "pid=\$(cat $folder/run.pid 2>/dev/null) && grep -aqs fedrsclip /proc/\$pid/cmdline && kill -TERM \$pid ||
      echo \"\$(hostname): nothing runs here\""
    ;;
  *)
    # The remote shell reads the words once more. Its number becomes that of the program, for stop.
    launcher="$(printf 'TPU=%q ZONE=%q launch/tpu_pod.sh' "$tpu" "$zone")"
    everywhere "cd $folder && echo \$\$ > run.pid &&
      FEDRSCLIP_PROCESSES=auto FEDRSCLIP_LAUNCHER=$(printf %q "$launcher") \
        exec .venv/bin/fedrsclip$(printf ' %q' "$@")"
    ;;
esac
