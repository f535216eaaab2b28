"""Samples of many requests gathered into batches, which one thread computes."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mcls.inference.predict import NumpyArray


class Batcher:
    """Computes samples that arrive at any time, those that wait together in one batch. It lives in one event loop.

    Args:
        compute: samples (n, ...) to probabilities (n, C); called in one thread, never twice at a time.
        max_batch: samples in a batch; no request may bring more.
        max_wait: seconds that a sample waits for others before its batch is begun.
        max_queue: samples that may wait.
    """

    def __init__(
        self, compute: Callable[[NumpyArray], NumpyArray], max_batch: int, max_wait: float, max_queue: int
    ) -> None:
        self.compute, self.max_batch, self.max_wait, self.max_queue = compute, max_batch, max_wait, max_queue
        self.waiting: deque[tuple[float, NumpyArray, asyncio.Future[NumpyArray]]] = deque()
        self.samples = self.batches = self.computed = 0  # that wait; begun; samples in those
        self.seconds = 0.0  # spent computing
        self.arrived, self.filled = asyncio.Event(), asyncio.Event()

    def full(self, samples: int) -> bool:
        """Whether there is no room for so many samples more."""
        return self.samples + samples > self.max_queue

    async def probabilities(self, samples: NumpyArray) -> NumpyArray:
        """Probabilities (n, C) of `samples` (n, ...). Raises what the model raises."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[NumpyArray] = loop.create_future()
        self.waiting.append((loop.time(), samples, future))
        self.samples += len(samples)
        self.arrived.set()
        if self.samples >= self.max_batch:
            self.filled.set()
        return await future

    async def work(self) -> None:
        """Compute batches until cancelled."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "model") as thread:
            while True:
                await self.arrived.wait()
                if self.samples < self.max_batch:
                    self.filled.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout_at(self.waiting[0][0] + self.max_wait):
                            await self.filled.wait()
                if not (batch := self.take()):
                    continue
                started = loop.time()
                try:
                    answers = await loop.run_in_executor(
                        thread, self.compute, np.concatenate([part for part, _ in batch])
                    )
                except Exception as error:  # what models raise is of every kind; those who wait are given it
                    for _, future in batch:
                        if not future.done():
                            future.set_exception(error)
                    continue
                self.seconds += loop.time() - started
                self.hand_out(batch, answers)

    def take(self) -> list[tuple[NumpyArray, "asyncio.Future[NumpyArray]"]]:
        """The samples of the next batch; those that nobody waits for any more are dropped."""
        batch, size = [], 0
        while self.waiting and size + len(self.waiting[0][1]) <= self.max_batch:
            _, samples, future = self.waiting.popleft()
            self.samples -= len(samples)
            if not future.done():
                batch.append((samples, future))
                size += len(samples)
        if not self.waiting:
            self.arrived.clear()
        self.batches, self.computed = self.batches + bool(batch), self.computed + size
        return batch

    def hand_out(self, batch: list[tuple[NumpyArray, "asyncio.Future[NumpyArray]"]], probabilities: NumpyArray) -> None:
        """Give each request its rows of what was computed."""
        start = 0
        for samples, future in batch:
            rows = probabilities[start : start + len(samples)]
            start += len(samples)
            if not future.done():
                future.set_result(rows)
