#!/usr/bin/env bash
# One process on each host of a Cloud TPU slice:
#   TPU=name ZONE=us-central2-b launch/tpu_pod.sh setup         once: copies this clone there and installs it
#   TPU=name ZONE=us-central2-b launch/tpu_pod.sh train --config=configs/aid.py --workdir=runs/aid
# Change the lines marked <--, or set these variables. The first host writes the results; `evaluate` needs a --workdir
# that all hosts see, such as a mounted bucket.
set -euo pipefail
top="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
tpu="${TPU:?set TPU to the name of the slice}"    # <-- as in: gcloud compute tpus tpu-vm list
zone="${ZONE:?set ZONE to the zone of the slice}" # <--
folder="${FOLDER:-fedrsclip_jax}"                 # <-- in the home folder of each host
if [ $# -eq 0 ]; then
  echo "usage: TPU=NAME ZONE=ZONE launch/tpu_pod.sh setup | VERB ...  (a verb of fedrsclip)" >&2
  exit 2
fi

everywhere() { gcloud compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker=all --command="$1"; }

if [ "$1" = setup ]; then
  archive="$(mktemp)"
  trap 'rm -f "$archive"' EXIT
  git -C "$top" archive --format=tar.gz -o "$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$tpu:$folder.tar.gz" --zone="$zone" --worker=all
  everywhere "mkdir -p $folder && tar -xzf $folder.tar.gz -C $folder && python3 -m venv $folder/.venv &&
    $folder/.venv/bin/pip install --quiet --editable '${folder}[tpu]'"
else
  # The remote shell reads the words once more.
  everywhere "cd $folder && FEDRSCLIP_PROCESSES=auto .venv/bin/fedrsclip$(printf ' %q' "$@")"
fi
