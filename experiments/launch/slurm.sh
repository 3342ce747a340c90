#!/bin/bash
#SBATCH --job-name=rlhf_jax
#SBATCH --output=slurm-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@180
# sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 slurm.sh EXPERIMENT [--set a.b=c ...] --workdir DIR
# Runs an experiment with a process for each GPU. Three minutes before its time is up it saves, and queues again. See slurm.md.
srun --kill-on-bad-exit=1 --label "${PYTHON:-python}" -m experiments.run run "$@" --resume auto
code=$?
case $code in
    75 | 134 | 137)
        if [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
            scontrol requeue "$SLURM_JOB_ID"
        fi
        ;;
esac
exit "$code"
