#!/bin/bash
# TPU=NAME ZONE=us-east5-a [FOLDER=rlhf_jax] [PYTHON=.venv/bin/python] tpu_vm.sh EXPERIMENT [--set a.b=c ...] --workdir DIR
# COMMAND=sweep TPU=NAME ZONE=us-east5-a tpu_vm.sh EXPERIMENT --over a.b=x,y ... --group K --workdir DIR: one group of a sweep, on one host
# Runs an experiment on all workers of a TPU VM slice, from FOLDER below their home, where the project is. See tpu_vm.md.
set -euo pipefail
: "${TPU:?the name of the TPU VM}" "${ZONE:?the zone that it is in}" "${FOLDER:=rlhf_jax}" "${PYTHON:=.venv/bin/python}"
printf -v command ' %q' "$@"
exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all \
    --command="cd $FOLDER && experiments/launch/again.sh $PYTHON -m experiments.run ${COMMAND:-run}$command --resume auto"
