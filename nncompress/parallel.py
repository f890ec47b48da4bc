"""Several processes as one (torchrun): who this process is, its share of the samples, sums over all.

A process that was not started by torchrun is a group of one. torch is imported by what needs it, when it is called.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, TypeVar

from nncompress.errors import NNCompressError, one_line

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


def several() -> bool:
    """Return whether torchrun started more than one process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def first() -> bool:
    """Return whether this process is the first, once it has joined the others."""
    if not several():
        return True
    start()
    return rank() == 0


def start() -> None:
    """Join the group that torchrun describes in the environment, once; nothing without one."""
    if not several():
        return
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        gpus = torch.cuda.is_available()
        if gpus:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpus else "gloo")


def size() -> int:
    """Return how many processes work together."""
    import torch.distributed as dist

    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this process, from 0; process 0 writes the run folder."""
    import torch.distributed as dist

    return dist.get_rank() if dist.is_initialized() else 0


def share(n: int) -> slice:
    """Return this process's samples of n: consecutive, their numbers differing by at most one between processes."""
    return slice(n * rank() // size(), n * (rank() + 1) // size())


def sum_(*tensors: Tensor) -> None:
    """Replace each tensor by its sum over all processes, the same bits in each."""
    import torch.distributed as dist

    if size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def check_alike(tensors: Iterable[Tensor], what: str) -> None:
    """Raise NNCompressError unless all processes hold the same bits."""
    import torch
    import torch.distributed as dist

    if size() == 1:
        return
    digest = sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().tobytes())
    hashes: list[str] = [""] * size()
    dist.all_gather_object(hashes, digest.hexdigest())
    if len(set(hashes)) > 1:
        short = ", ".join(text[:8] for text in hashes)
        raise NNCompressError(
            f"all processes must hold the same {what}, found hashes {short}; use the same versions and devices for all"
        )


def gather(part: Tensor, n: int) -> Tensor:
    """Gather the n rows of which each process holds its share, on process 0 (elsewhere `part`)."""
    import torch
    import torch.distributed as dist

    if size() == 1:
        return part
    most = -(-n // size())
    filled = torch.cat([part, part.new_zeros(most - len(part), *part.shape[1:])]).contiguous()
    parts = [torch.empty_like(filled) for _ in range(size())] if rank() == 0 else None
    dist.gather(filled, parts)
    if parts is None:
        return part
    lengths = [n * (r + 1) // size() - n * r // size() for r in range(size())]
    return torch.cat([p[:length] for p, length in zip(parts, lengths, strict=True)])


def decide(find: Callable[[], T]) -> T:
    """Return what the first process finds, in every process; what goes wrong there goes wrong in all."""
    if not several():
        return find()
    values: list[T] = []
    with together():
        if rank() == 0:
            values.append(find())
    return broadcast(values)[0]


def broadcast(value: T) -> T:
    """Return process 0's value, in every process."""
    import torch.distributed as dist

    if size() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def largest(code: int) -> int:
    """Return the largest of all processes' codes, in every process."""
    import torch
    import torch.distributed as dist

    if size() == 1:
        return code
    most = torch.tensor(code)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return int(most)


@contextmanager
def together() -> Iterator[None]:
    """Let what goes wrong within it in one process go wrong in all, so that none waits for one that has left.

    No sums within it. Raises NNCompressError: another process failed (with its message), or this one with any error of
    several processes.
    """
    try:
        yield
    except Exception as error:
        message = str(error) if isinstance(error, NNCompressError) else f"{type(error).__name__}: {one_line(error)}"
        _first_failure(message)
        if size() == 1 or isinstance(error, NNCompressError):
            raise
        raise NNCompressError(message) from error
    failure = _first_failure(None)
    if failure:
        raise NNCompressError(failure)


def _first_failure(message: str | None) -> str | None:
    """Return the message of the first process that failed, given that of this one; None when none has failed."""
    import torch.distributed as dist

    if not largest(int(message is not None)):
        return None
    messages: list[str | None] = [None] * size()
    if size() > 1:
        dist.all_gather_object(messages, message)
    return next((f"process {r}: {text}" for r, text in enumerate(messages) if text), None)
