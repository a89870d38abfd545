#!/bin/bash
# Trains on two hosts of eight GPUs: sbatch slurm.sh --problem=... --output_dir=... ...
#
# JAX learns of the processes from Slurm, and takes one GPU for each. Two minutes before
# the time is over Slurm sends SIGTERM: the run saves, leaves, and goes on when it is
# queued again.
#SBATCH --job-name=et-trainer
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u
export KERAS_BACKEND=jax
status=0
srun et-trainer "$@" --strategy=data --coordinator=auto || status=$?
# 143: ended by SIGTERM, and saved.
if [ "$status" -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
