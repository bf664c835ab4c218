#!/bin/bash
# One run on two nodes with eight GPUs each: sbatch docs/slurm.sh experiment=cifar10 run_dir=/shared/outputs/cifar10
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --open-mode=append

# srun starts one process a GPU and passes USR1 on to all of them; a run that has been told saves itself and its first
# process ends with 75. Queued again, the same command goes on exactly there.
srun --kill-on-bad-exit=0 python -m scorefield.cli.train trainer=ddp \
  trainer.devices="${SLURM_NTASKS_PER_NODE}" trainer.num_nodes="${SLURM_NNODES}" "$@"
code=$?
if [ "${code}" -eq 75 ]; then
  scontrol requeue "${SLURM_JOB_ID}"
fi
exit "${code}"
