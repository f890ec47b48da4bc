#!/usr/bin/env bash
# The sensitivity study of NN-BCD on UCI HAR: eight initialisations, seeds 10 20 30, for the network with four hidden
# layers (har4) or five (har5). One aggregated table at the end. More words go to every run:
#   scripts/har_initialisations.sh har4 'dataset.test_subjects=[25,26,27,28,29,30]' solver.num_steps=100
set -eu
network=${1:-har4}
shift || true
schemes=uniform,kaiming_normal,kaiming_uniform,xavier_normal,xavier_uniform,lecun_normal,lecun_uniform,orthogonal
exec nncompress train -m experiment=nnbcd/"$network" solver.initial=$schemes seed=10,20,30 "$@"
