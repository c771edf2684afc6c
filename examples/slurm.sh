#!/usr/bin/env bash
# Train on several nodes under SLURM. Before the time limit the run is saved and queued again; it then goes on.
#
#   sbatch --nodes=4 --gpus-per-node=8 examples/slurm.sh gpt-1.3b crisp data.remote=s3://bucket/data \
#       save_folder=s3://bucket/runs/{run_name}
#
# One task per node is the launcher, which starts one process per GPU. Credentials of object storage must be in
# the environment of sbatch. The first line of the output names the nodes.
#
#SBATCH --job-name=crisp-stream
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# SIGTERM to this script, ten minutes before the time limit and when the job is preempted: enough for the batch in
# progress and for the upload of a checkpoint of 100 GB at 200 MB/s.
#SBATCH --signal=B:TERM@600
set -euo pipefail

if (($# == 0)); then
    echo "usage: sbatch slurm.sh RECIPE… [key=value…]" >&2
    exit 2
fi

NPROC=${NPROC:-${SLURM_GPUS_ON_NODE:-1}} # processes per node
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_ADDR=${nodes%%$'\n'*}
MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}
WORLD_SIZE=$((SLURM_JOB_NUM_NODES * NPROC))
export NPROC MASTER_ADDR MASTER_PORT WORLD_SIZE
echo "$SLURM_JOB_NODELIST: $WORLD_SIZE processes, rank 0 on $MASTER_ADDR:$MASTER_PORT"

# autoresume makes the second start of this job, and every later one, go on from the newest checkpoint.
# shellcheck disable=SC2016 # the variables are those of each task
srun --kill-on-bad-exit=1 bash -c 'NODE_RANK=$SLURM_NODEID exec crisp-stream train "$@" --nproc "$NPROC"' \
    crisp-stream "$1" autoresume=true "${@:2}" &
srun=$!
trap 'kill -TERM "$srun" 2>/dev/null || true' TERM # srun hands it to the task of every node

code=0
wait "$srun" || code=$?
while kill -0 "$srun" 2>/dev/null; do # `wait` returned for the signal; the run is still saving
    code=0
    wait "$srun" || code=$?
done
if ((code == 143)); then # stopped in order, with a checkpoint
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
