#!/bin/bash
#SBATCH --job-name=rlhf_jax
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@180
# sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 slurm.sh EXPERIMENT [--set a.b=c ...] --workdir DIR
# COMMAND=sweep sbatch --array=0-3 --gpus-per-node=1 slurm.sh EXPERIMENT --over a.b=x,y ... --workdir DIR: a job for each group of a sweep
# Runs an experiment with a process for each GPU. Three minutes before its time is up it saves, and queues again. See slurm.md.
export FAILED="$PWD/slurm-$SLURM_JOB_ID.failed"
rm -f "$FAILED"
group=()
if [ "${COMMAND:-run}" = sweep ] && [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    group=(--group "$SLURM_ARRAY_TASK_ID")
fi
# srun knows the highest code alone, which is that of the processes that one takes along. So each says whether it has failed by itself.
# shellcheck disable=SC2016 # the variables are those of the tasks
srun --kill-on-bad-exit=0 --label bash -c '
    trap : TERM # which Python hears too, and ends this in order
    "$@"
    code=$?
    case $code in
        0 | 75 | 134 | 137) ;;
        *) touch "$FAILED" ;;
    esac
    exit "$code"' task "${PYTHON:-python}" -m experiments.run "${COMMAND:-run}" "$@" --resume auto "${group[@]}"
code=$?
case $code in
    75 | 134 | 137)
        if [ ! -e "$FAILED" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
            scontrol requeue "$SLURM_JOB_ID"
        fi
        ;;
esac
exit "$code"
