#!/bin/bash
# CLUSTER=NAME IMAGE=gcr.io/... STORAGE=NAME TPU_TYPE=v5p-32 [SLICES=1] gke.sh WORKLOAD EXPERIMENT [--set a.b=c ...] --workdir DIR
# Runs an experiment as a workload of a GKE cluster that xpk has made. What is in XPK_FLAGS goes to xpk as well. See gke.md.
set -euo pipefail
: "${CLUSTER:?the cluster}" "${IMAGE:?the image with the project}" "${STORAGE:?the storage that DIR is in}" "${TPU_TYPE:?such as v5p-32}"
workload=${1:?a name for the workload}
shift
printf -v command ' %q' "$@"
# exec: xpk hands SIGTERM to what it has started itself. It restarts after 42 and 127-255 by its own rules.
# shellcheck disable=SC2086 # XPK_FLAGS are several words
exec xpk workload create --cluster="$CLUSTER" --workload="$workload" --tpu-type="$TPU_TYPE" --num-slices="${SLICES:-1}" \
    --docker-image="$IMAGE" --storage="$STORAGE" --restart-on-exit-codes=75 --max-restarts=100 \
    --termination-grace-period-seconds=300 ${XPK_FLAGS:-} \
    --command="exec python -m experiments.run run$command --resume auto"
