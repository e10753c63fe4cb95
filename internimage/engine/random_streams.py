# SPDX-License-Identifier: Apache-2.0
"""Random numbers that a resumed run draws as the unbroken one would have."""

import logging
import random
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler

# What a stream of random numbers is for; part of its seed.
_STEP, _SAMPLE, _ORDER = range(3)


@HOOKS.register_module()
class RandomStreamHook(Hook):
    """Seed each training step, and each sample of a data loader, by its number.

    The generators of Python, NumPy and PyTorch (CPU and CUDA) are seeded before a step
    from the seed of the run and the number of the iteration, and before a sample is
    loaded, in whatever process, from the seed of the run, the rank, and the place of
    the sample in the order of its epoch. So nothing that happens elsewhere changes what
    is drawn: a resumed run draws what the unbroken one would have drawn, and the
    number of workers, what they load ahead and validation make no difference. Nothing
    but seeds needs to be kept: mmengine keeps that of the run, ``random_state`` in the
    checkpoint has that of the sampler, drawn anew where the config gives none.

    A run killed anywhere and resumed is bit for bit the unbroken one on the CPU, if its
    checkpoints hold the optimizer. Loops of mmengine set these limits:

    * ``IterBasedTrainLoop`` skips what was trained on. With ``InfiniteSampler`` and
      fixed batches it does so at once. For other samplers, worker processes load and
      throw away; ``fast_forward_on_resume=True`` starts the order of the images anew.
    * ``EpochBasedTrainLoop`` resumed from within an epoch starts it again from its
      first batch. This hook skips what was trained on (log lines of that epoch count
      from 1), but not where batches are formed by a sampler of their own, as mmdet's
      ``AspectRatioBatchSampler``: there, save by epochs.
    * A validation that was not finished is not done again: mmengine goes on with the
      next epoch.
    * Gradients accumulated over several iterations are not in a checkpoint: save
      where a step is made.
    * What a data set or transform remembers from one sample to the next
      (``CachedMosaic``) is not known.

    Without effect, and saying so, for data sets without length and loaders without
    batches, which have no order.
    """

    priority = 'LOWEST'  # the last before a step: other hooks may draw as they like

    _saved: dict[str, Any] | None = None

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        sampler = _seeded_sampler(runner.train_dataloader)
        checkpoint['random_state'] = {
            'sampler_seed': None if sampler is None else int(sampler.seed),
            'world_size': get_world_size(),
        }

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        if runner._resume:  # as mmengine's EMAHook asks
            saved = checkpoint.get('random_state')
            self._saved = saved if isinstance(saved, dict) else {}

    def before_train(self, runner: Any) -> None:
        loader = runner.train_dataloader
        if self._saved is not None:
            self._restore(loader)
        if isinstance(loader.dataset, IterableDataset) or not hasattr(
            loader.batch_sampler, 'sampler'
        ):
            _say('the data set has no order: what is drawn for its samples is not kept')
            return
        sampler = loader.batch_sampler.sampler
        if not isinstance(sampler, _NumberedSampler):
            loader.batch_sampler.sampler = _NumberedSampler(
                sampler,
                seed=runner.seed,
                epoch=runner.epoch,
                **_where_it_starts(runner, loader),
            )
            # PyTorch's protocol for data sets that load a batch at a time.
            loader.dataset.__getitems__ = _SeededBatch(
                loader.dataset, (runner.seed, _SAMPLE, get_rank())
            )

    def before_train_epoch(self, runner: Any) -> None:
        # What is drawn between steps, for instance by a sampler without a seed.
        _seed_generators(runner.seed, _ORDER, runner.epoch)

    def before_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None
    ) -> None:
        _seed_generators(runner.seed, _STEP, runner.iter)

    def _restore(self, loader: DataLoader) -> None:
        """Restore the order of the images, and say where it cannot be restored."""
        saved = self._saved or {}
        sampler, seed = _seeded_sampler(loader), saved.get('sampler_seed')
        if sampler is not None and isinstance(seed, int):
            sampler.seed = seed
        elif sampler is not None:
            _say('the checkpoint has no random state: images may come in another order')
        size = saved.get('world_size', get_world_size())
        if size != get_world_size():
            _say(
                f'saved by {size} processes, resumed by {get_world_size()}: images are '
                'shared out differently, so this is not the unbroken run'
            )


class _NumberedIndex(int):
    """An index of a data set that knows its place in the order of the samples."""

    place: tuple[int, int]  # epoch, position in it


class _NumberedSampler(Sampler):
    """A sampler whose indices know their place; else as the one it is made of.

    Args:
        sampler: What gives the indices.
        seed: Seed of the run.
        epoch: Number of the first pass.
        position: Place of the first index in the first pass.
        num_skipped: How many indices to leave out before it.
    """

    def __init__(
        self, sampler: Any, seed: int, epoch: int, position: int, num_skipped: int
    ) -> None:
        self._sampler = sampler
        self._seed = seed
        self._epoch = epoch
        self._position = position
        self._num_skipped = num_skipped

    def __getattr__(self, name: str) -> Any:
        if name == '_sampler':  # not there yet: while it is unpickled
            raise AttributeError(name)
        return getattr(self._sampler, name)

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Any]:
        epoch, position, num_skipped = self._epoch, self._position, self._num_skipped
        self._epoch, self._position, self._num_skipped = epoch + 1, 0, 0
        _seed_generators(self._seed, _ORDER, epoch)  # PyTorch's RandomSampler draws
        for place, index in enumerate(islice(self._sampler, num_skipped, None)):
            if isinstance(index, int):
                index = _NumberedIndex(index)
                index.place = (epoch, position + place)
            yield index


class _SeededBatch:
    """Loads the samples of a batch, each with generators seeded by its place.

    Args:
        dataset: Where samples come from.
        key: What the seeds of all samples have in common.
    """

    def __init__(self, dataset: Any, key: tuple[int, ...]) -> None:
        self._dataset = dataset
        self._key = key
        self._load = getattr(dataset, '__getitems__', None)

    def __call__(self, indices: Sequence[Any]) -> list[Any]:
        if self._load is not None:
            self._seed(indices[0])
            return self._load([_plain(index) for index in indices])
        samples = []
        for index in indices:
            self._seed(index)
            samples.append(self._dataset[_plain(index)])
        return samples

    def _seed(self, index: Any) -> None:
        if isinstance(index, _NumberedIndex):
            _seed_generators(*self._key, *index.place)


def _plain(index: Any) -> Any:
    return int(index) if isinstance(index, _NumberedIndex) else index


def _seed_generators(*key: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch from some numbers."""
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    seed = int(words[2]) << 32 | int(words[3])
    # Not `torch.manual_seed`, which formats the call stack where CUDA is not in use, as
    # in every worker process: 10 times the rest.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def _seeded_sampler(loader: DataLoader) -> Any:
    """Return the sampler that has a seed, or None."""
    inner = getattr(loader.batch_sampler, 'sampler', None)
    for sampler in (inner, loader.sampler):
        if isinstance(getattr(sampler, 'seed', None), int):
            return sampler
    return None


def _where_it_starts(runner: Any, loader: DataLoader) -> dict[str, int]:
    """Return where a resumed run finds its first sample in the order of its epoch."""
    has_fixed_batches = type(loader.batch_sampler) is BatchSampler
    if isinstance(runner.train_loop, IterBasedTrainLoop):
        # The loop skips: by the sampler, whose indices then start later, or by drawing
        # them all.
        skips = has_fixed_batches and hasattr(loader.sampler, 'skip')
        num_indices = runner.iter * loader.batch_size if skips else 0
        return {'position': num_indices, 'num_skipped': 0}
    num_batches = runner.iter - runner.epoch * len(loader)
    if num_batches > 0 and not has_fixed_batches:
        _say(
            f'resumed from within epoch {runner.epoch + 1}, which starts again: '
            f'{type(loader.batch_sampler).__name__} cannot be told what to skip'
        )
        num_batches = 0
    num_indices = max(num_batches, 0) * (loader.batch_size or 0)
    return {'position': num_indices, 'num_skipped': num_indices}


_say = partial(print_log, logger='current', level=logging.WARNING)
