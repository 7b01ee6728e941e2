#!/usr/bin/env bash
# A search on several nodes of Slurm: one worker on each node, or on each GPU of it.
#
#   sbatch examples/cluster/slurm.sh space.yaml
#
# A job that is requeued resumes the study. results/ and the cache lie on a file system that all
# nodes share, and so does the virtual environment, which has the extra `cluster`.
#SBATCH --job-name=triton-cost-optimizer
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=09:00:00
#SBATCH --requeue
# On nodes with GPUs, so that Slurm gives all of them to Ray:
##SBATCH --gpus-per-node=4
set -euo pipefail

space=${1:?usage: sbatch slurm.sh SPACE.yaml}
programs=${VIRTUAL_ENV:-$PWD/.venv}/bin
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$head:6379

# Starts Ray on every node, runs the command on the first once all have joined, and stops Ray.
srun "$programs/ray" symmetric-run --address "$address" \
    --min-nodes "$SLURM_JOB_NUM_NODES" -- \
    "$programs/python" -m optimizer run "$space" --cluster "$address" --cache cache --timeout 8h
