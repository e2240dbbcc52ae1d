#!/usr/bin/env bash
# One training run on every host of a Cloud TPU VM slice. From the clone's root, on your own machine:
#
#   export TPU=my-slice ZONE=us-central1-a
#   launch/tpu_vm.sh install       # the clone and its environment, on every host
#   launch/tpu_vm.sh run           # starts, or goes on; the same command on every host, in the background
#   launch/tpu_vm.sh watch         # the first host's log
#   launch/tpu_vm.sh stop          # SIGTERM: all hosts save one checkpoint and end
#
# JAX finds the other hosts by the slice's metadata. OUTPUT_DIR must be a folder that all hosts share: docs/pods.md.
set -euo pipefail

: "${TPU:?the name of the slice}" "${ZONE:?its zone}"
MODEL=${MODEL:-/mnt/shared/models/start}
DATASET=${DATASET:-/mnt/shared/data/preferences.jsonl}
OUTPUT_DIR=${OUTPUT_DIR:-/mnt/shared/runs/dpo}

on() { # on WORKER COMMAND
    gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker="$1" --command="$2"
}

# A step that hangs for ten minutes ends the run, and so does a save that takes five after `stop`.
TRAIN="jaxalign dpo --model '$MODEL' --dataset '$DATASET' --output-dir '$OUTPUT_DIR' \
--mesh data=1,fsdp=-1 --dtype bfloat16 --batch-size 64 --max-length 1024 --beta 0.1 --save-every 200 \
--step-timeout 600 --stop-deadline 300"

case "${1:-}" in
install)
    # The clone without what stays here: history, environment, results, models.
    packed=$(mktemp -d)
    trap 'rm -rf "$packed"' EXIT
    tar -czf "$packed/jaxalign.tar.gz" --exclude=./.git --exclude=./.venv --exclude=./runs --exclude=./models \
        --exclude='./.*_cache' .
    gcloud compute tpus tpu-vm scp --zone="$ZONE" --worker=all "$packed/jaxalign.tar.gz" "$TPU:~/jaxalign.tar.gz"
    # The images' own Python may be older than 3.11; uv brings one. A second time replaces the clone, not the environment.
    on all "rm -rf ~/jaxalign && mkdir ~/jaxalign && tar -xzf ~/jaxalign.tar.gz -C ~/jaxalign \
        && curl -LsSf https://astral.sh/uv/install.sh | sh \
        && { test -d ~/venv || ~/.local/bin/uv venv --python 3.12 ~/venv; } \
        && VIRTUAL_ENV=~/venv ~/.local/bin/uv pip install --reinstall-package jaxalign \"\$HOME/jaxalign[tpu]\""
    ;;
run)
    on all "PATH=~/venv/bin:\$PATH setsid nohup $TRAIN >> ~/jaxalign.log 2>&1 < /dev/null &"
    ;;
watch)
    on 0 "tail -n 40 -F ~/jaxalign.log"
    ;;
stop)
    on all "pkill -TERM -f '[j]axalign dpo' || true"
    ;;
*)
    echo "usage: $0 install | run | watch | stop" >&2
    exit 2
    ;;
esac
