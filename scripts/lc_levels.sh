#!/usr/bin/env bash
# LeNet-300-100 on MNIST, all layers quantised (K values) or pruned (a part kept): LC against direct compression with retraining,
# iterated, distillation and direct learning, 60 epochs each after the same reference (60 epochs), three seeds; then one report.
#   scripts/lc_levels.sh outputs/lc_levels [SOLVER ...]     # K=2,4 KEEP=0.01,0.02 SEED=0 in the environment choose less
set -eu
out=${1:?usage: scripts/lc_levels.sh FOLDER [SOLVER ...]}
shift
[ $# -gt 0 ] || set -- lc dc_retrain idc distillation direct_learning direct_compression
common="experiment=lc/lenet300 reference_training.num_steps=60 reference_training.schedule.decay=0.95 seed=${SEED:-0,1,2}
  compression.layers=all"
for solver in "$@"; do
  case $solver in
    lc) settings="solver.num_steps=59 solver.epochs=1 solver.growth=1.1 eval_every=10" ;; # 60 epochs: the first step has two
    idc) settings="solver.num_steps=59 solver.epochs=1 eval_every=10" ;;
    dc_retrain | distillation) settings="solver.num_steps=60 eval_every=10" ;;
    direct_learning) settings="solver.num_steps=60 solver.batch_size=256 eval_every=10" ;; # from random weights
    *) settings="" ;;
  esac
  codebook=$settings # Adam moves the few shared values too slowly at the default rate
  case $solver in dc_retrain | distillation | direct_learning) codebook="$settings solver.lr=0.1" ;; esac
  # shellcheck disable=SC2086
  nncompress train -m $common solver=$solver $codebook compression=codebook compression.K="${K:-2,4,8,16,32,64}" \
    hydra.sweep.dir="$out/$solver-codebook"
  # shellcheck disable=SC2086
  nncompress train -m $common solver=$solver $settings compression=l0 compression.keep="${KEEP:-0.01,0.02,0.05,0.1}" \
    compression.joint=true hydra.sweep.dir="$out/$solver-l0"
done
nncompress report "$out"
