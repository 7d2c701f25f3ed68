#!/usr/bin/env bash
# A distillation over several Slurm nodes: one Ray on all of them, the command once, and everything ends with it.
#   sbatch cluster/slurm.sh distill --data pneumoniamnist --data-root /shared/medmnist --ipc 10 \
#       --experts-dir /shared/experts --out /shared/runs/pneumonia
# Whatever follows is a command of ptm-ray. Submit it again to go on where the time limit stopped it.
#SBATCH --job-name=ptm-ray
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=48G
#SBATCH --time=04:00:00
set -euo pipefail

if [[ "$#" -eq 0 ]]; then
    echo "usage: sbatch cluster/slurm.sh COMMAND [flags]   (a command of ptm-ray, such as distill)" >&2
    exit 2
fi

# Set by sbatch; without it there is nothing to run on.
: "${SLURM_JOB_ID:?submit this with sbatch}" "${SLURM_JOB_NODELIST:?}" "${SLURM_JOB_NUM_NODES:?}" "${SLURM_CPUS_PER_TASK:?}"

nodes=$(scontrol show hostnames "${SLURM_JOB_NODELIST}")
head=${nodes%%$'\n'*}
# Two jobs on one node must not meet.
port=$((20000 + SLURM_JOB_ID % 20000))

# One token for this job's nodes, which its user alone can read.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

# The command joins that Ray instead of starting its own.
srun --kill-on-bad-exit=1 ray symmetric-run \
    --address "${head}:${port}" \
    --min-nodes "${SLURM_JOB_NUM_NODES}" \
    --num-cpus "${SLURM_CPUS_PER_TASK}" \
    -- env RAY_ADDRESS="${head}:${port}" python -m ptm_ray "$@"
