#!/usr/bin/env bash
# Several nodes. Use: sbatch scripts/slurm/multi_node.sh pretrain model=gpt/xl parallel.dp_shard=8
# One torchrun per node, and the words of `llmtrain` as anywhere else.
#
# Never run on a cluster: tried out with stand-ins for Slurm's commands (tests/launch/test_slurm.py), and with
# two torchruns on one machine (tests/launch/test_torchrun.py).
#
# Change what your cluster needs:
#SBATCH --job-name=llmtrain
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
# Leave as it is: five minutes before the time is up (and before preemption, where the cluster is set up to
# tell) Slurm sends SIGUSR1 to this script. The run saves and the job is queued again, under the same number;
# so it is when a node fails.
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

set -uo pipefail
: "${1:?give the words of llmtrain, for example: pretrain model=gpt/small}"

# source /path/to/.venv/bin/activate     # where llmtrain is installed, the same on all nodes
# cd /shared/experiments                 # all nodes have to see the run directory
# export HF_HUB_OFFLINE=1                # compute nodes without the internet
# export GLOO_SOCKET_IFNAME=ib0 NCCL_SOCKET_IFNAME=ib0   # where several networks join the nodes
# export LLMTRAIN_JOIN_TIMEOUT=600       # seconds in which the processes of all nodes have to meet

processes="${SLURM_GPUS_ON_NODE:-1}" # per node; on nodes without GPUs: one
first_node="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
port=$((20000 + SLURM_JOB_ID % 10000)) # of another job on the same node another
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((${SLURM_CPUS_PER_TASK:-$processes} / processes))}"

# torchrun would die of SIGUSR1, and its workers with it: it is told to pass the signal on, and to give them
# 240 seconds for saving. Those that are lost are started again on all nodes, at most three times.
srun --kill-on-bad-exit=0 torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" \
    --nproc-per-node="$processes" \
    --rdzv-backend=c10d \
    --rdzv-endpoint="$first_node:$port" \
    --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
    --max-restarts=3 \
    --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    --shutdown-timeout=240 \
    -m llmtrain "$@" &
step=$!

# scancel reaches the processes of the step on all nodes, but not this script. `wait` returns early when a
# signal comes, with a code of its own: only a wait without a signal counts.
asked=no
trap 'signalled=yes; asked=yes; scancel --signal=USR1 "$SLURM_JOB_ID"' USR1
signalled=yes
while [[ $signalled == yes ]]; do
    signalled=no
    wait "$step"
    code=$?
done

# torchrun ends with 1 even where all workers have saved and ended with 75. What was saved is whole in any
# case; the requeued job runs the same words and goes on from there.
if [[ $asked == yes && $code -ne 0 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
    exit 75
fi
exit "$code"
