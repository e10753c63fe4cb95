# SPDX-License-Identifier: Apache-2.0
"""Clocks: how long a call takes, how much memory it needs, how fast memory is.

The method is that of llm.c and of Triton's ``do_bench``. Calls are warmed up first.
On CUDA each call is timed by two events, and the L2 cache is overwritten before it, so
that every call reads its inputs from device memory. On the CPU the caches are left as
the call before leaves them, as they are in a model. Participants take turns, so that a
machine that slows down slows all of them; the median and the quartiles are reported.
"""

import ctypes
import gc
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

Call = Callable[[], object]

#: Overwritten between calls on CUDA: ten times the 50 MB of an H100's L2, which takes
#: it 0.2 ms, longer than Python needs to queue a kernel.
_FLUSH_BYTES = 512 * 2**20
#: A call that takes this many seconds cares little for what is in the caches.
_SLOW = 0.5
#: Where the kernel keeps, and forgets, how much memory this process had at most.
_STATUS = Path('/proc/self/status')
_FORGET_PEAK = Path('/proc/self/clear_refs')


class Timing(NamedTuple):
    """Seconds of one call: the median and quartiles of ``runs`` calls."""

    median_s: float
    q1_s: float
    q3_s: float
    runs: int


class Effort(NamedTuple):
    """How often to run one participant.

    For ``seconds``, but ``runs`` times at least and ``most`` times at most, spread over
    ``rounds`` turns. Machines in a cloud change their speed within seconds.
    """

    seconds: float = 1.0
    runs: int = 6
    rounds: int = 12
    most: int = 1000


THOROUGH = Effort()
QUICK = Effort(seconds=0.0, runs=2, rounds=1)


def time_together(
    calls: dict[str, Call], device: torch.device, effort: Effort = THOROUGH
) -> dict[str, Timing]:
    """Time calls that take turns.

    Args:
        calls: What to run, by name. Each must do all its work on ``device``.
        device: Whose clock is read.
        effort: How long.
    """
    clock = _time_on_cuda if device.type == 'cuda' else _time_on_cpu
    turns, warm_up = {}, {}
    for name, call in calls.items():
        # The first call also compiles, allocates and wakes threads.
        clock(call, 1)
        estimate = max(clock(call, 1)[0], 1e-7)
        runs = min(effort.most, math.ceil(effort.seconds / estimate))
        turns[name] = _spread(max(effort.runs, runs), effort.rounds)
        # What another participant left in the caches costs the first call of a turn.
        warm_up[name] = int(estimate < _SLOW)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    try:
        for turn in range(effort.rounds):
            for name, call in calls.items():
                if turns[name][turn]:
                    times = clock(call, warm_up[name] + turns[name][turn])
                    samples[name] += times[warm_up[name] :]
    finally:
        gc.enable()
    return {name: _summary(times) for name, times in samples.items()}


def _spread(runs: int, rounds: int) -> list[int]:
    """Return how often to run in each round, as evenly as can be."""
    ends = [runs * (i + 1) // rounds for i in range(rounds)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _summary(times: list[float]) -> Timing:
    quartiles = torch.tensor([0.5, 0.25, 0.75], dtype=torch.float64)
    values = torch.tensor(times, dtype=torch.float64).quantile(quartiles).tolist()
    median, q1, q3 = values
    return Timing(median, q1, q3, len(times))


def _time_on_cpu(call: Call, runs: int) -> list[float]:
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def _time_on_cuda(call: Call, runs: int) -> list[float]:
    """Return seconds between events around each call, L2 overwritten before it.

    The overwriting takes longer than queueing a kernel, so that the queue of a single
    kernel never runs dry; a call that queues many shows what its launches cost.
    """
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device='cuda')
    events = []
    for _ in range(runs):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        events.append((start, end))
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


def copy_bandwidth(device: torch.device, size: int) -> float:
    """Return bytes per second, read plus written, of a copy that fits no cache.

    Args:
        device: Whose memory.
        size: Bytes to copy.
    """
    source = torch.ones(size, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    effort = Effort(seconds=0.3, runs=3, rounds=1)
    calls: dict[str, Call] = {'copy': lambda: target.copy_(source)}
    return 2 * size / time_together(calls, device, effort)['copy'].median_s


def peak_memory(call: Call, device: torch.device) -> int | None:
    """Return the bytes that a call needs at most, above what was held before it.

    On CUDA what PyTorch allocates; on the CPU the growth of the resident set, which
    misses what fits into memory that was freed and kept. None if the system does not
    tell.
    """
    gc.collect()
    if device.type == 'cuda':
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # give back what is free: the call counts it
        _FORGET_PEAK.write_text('5')
        before = _status_bytes('VmRSS')
        call()
        return max(0, _status_bytes('VmHWM') - before)
    except (OSError, AttributeError, KeyError):
        return None


def _status_bytes(key: str) -> int:
    lines = dict(line.split(':', 1) for line in _STATUS.read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


def say(text: str = '') -> None:
    """Print a line at once: measuring takes minutes."""
    print(text, flush=True)
