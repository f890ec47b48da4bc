"""Matrices and tensors of low rank."""

from nncompress.compressions.decomposition.cp import CP, CPFactors, cp
from nncompress.compressions.decomposition.low_rank import Factorisation, Factors, LowRank, low_rank
from nncompress.compressions.decomposition.rank_selection import RankSelection, rank_selection
from nncompress.compressions.decomposition.tensor_train import Cores, TensorTrain, tt
from nncompress.compressions.decomposition.tt_matrix import TTMatrix, tt_matrix
from nncompress.compressions.decomposition.tucker import CoreFactors, Tucker, tucker

__all__ = [
    "CP", "CPFactors", "CoreFactors", "Cores", "Factorisation", "Factors", "LowRank", "RankSelection", "TTMatrix",
    "TensorTrain", "Tucker", "cp", "low_rank", "rank_selection", "tt", "tt_matrix", "tucker",
]  # fmt: skip
