"""One thread that replies to many requests at once: continuous batching (Yu et al. 2022, "Orca").

Each step reads a piece of the waiting prompts and computes one token of every running reply. Replies join and leave between steps.

- A reply depends on its prompt, its settings and its seed, not on the replies next to it: see generation/separate_rows.py for the
  products, prefix_cache.py for the prompts, choose.py for the random numbers.
- Prompts are read in the order in which they came, for at most `READ_SECONDS` in a step, so that running replies continue.
- A reply that is canceled frees its row at the beginning of the next step, whether it waits, is read or runs.
- A failure ends the replies that were part of it, and no others.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from mini_chat_gpt.generation.decode import Model, cache_bytes_per_token, concrete_seed, suppressed_tokens
from mini_chat_gpt.generation.separate_rows import RowDecoder, row_decoder
from mini_chat_gpt.serve.choose import TokenSampler, choose
from mini_chat_gpt.serve.prefix_cache import BLOCK, Block, PrefixCache, restore
from mini_chat_gpt.serve.reply import Finish, Reply, TokenProbs
from mini_chat_gpt.tokenizer.chat_tokenizer import ChatTokenizer

MAX_ROWS, MAX_QUEUE = 16, 64
READ_SECONDS = 0.1
"""Reading continues after a block only while less than this has passed in a step."""


class QueueFull(Exception):
    """More requests wait than the queue holds."""


class ShuttingDown(Exception):
    """No request is accepted any more."""


@dataclass
class Variant:
    """A model that the engine serves: the base, or the base with an adapter. `model` reads prompts, `decoder` computes replies."""

    model: Model
    decoder: RowDecoder
    tokenizer: ChatTokenizer
    number: int = 0

    @classmethod
    def of(cls, model: Model, tokenizer: ChatTokenizer, max_rows: int = MAX_ROWS, number: int = 0) -> Variant:
        """The variant with the fastest decoder for the model."""
        return cls(model, row_decoder(model, max_rows), tokenizer, number)

    def __post_init__(self) -> None:
        self.bytes_per_token = cache_bytes_per_token(self.model)
        self.suppressed = suppressed_tokens(self.tokenizer, self.model.config.vocab_size).to(self.model.device)


class _Row:
    """A reply that has been admitted, with its KV cache."""

    def __init__(self, reply: Reply, variant: Variant) -> None:
        self.reply, self.variant = reply, variant
        sampling, config = reply.asked.sampling, variant.model.config
        self.n_max = min(sampling.max_new_tokens, config.context_length - len(reply.prompt))
        self.cache = variant.model.make_cache(1, len(reply.prompt) + self.n_max)
        seed = concrete_seed(sampling.seed)
        self.sampler = TokenSampler(reply.asked, reply.prompt, seed, config.vocab_size, variant.tokenizer)
        self.block: Block | None = None  # the last one of the prefix that is in the prefix cache
        self.is_shared = True  # whether everything read so far is in the prefix cache
        self.last_id = -1  # the token to read next, if the prompt has been read

    @property
    def n_read(self) -> int:
        return self.cache.lengths[0]

    @property
    def is_reading(self) -> bool:
        return self.last_id < 0


class ReplyEngine:
    """See the module. `start` runs it in a thread of its own; a test may call `step` instead.

    variants      models with one base in memory
    max_rows      replies that are computed at once
    max_queue     requests that may wait beyond those
    prefix_bytes  bytes of keys and values that are kept for later prompts
    row_bytes     bytes of keys and values of the running replies; at least one runs, whatever its size
    on_error      called with the traceback of a failure; the replies that were part of it have ended with "error"
    """

    def __init__(
        self,
        variants: Sequence[Variant],
        max_rows: int = MAX_ROWS,
        max_queue: int = MAX_QUEUE,
        prefix_bytes: int = 2**28,
        row_bytes: int = 2**40,
        on_error: Callable[[str], object] = print,
    ) -> None:
        self.variants, self.max_rows, self.max_queue, self.on_error = list(variants), max_rows, max_queue, on_error
        self.row_bytes, self.prefixes = row_bytes, PrefixCache(prefix_bytes)
        self.rows: list[_Row] = []
        self.queue: deque[tuple[Reply, Variant]] = deque()
        self.n_steps = self.n_prompt_tokens = self.n_tokens_read = self.n_tokens_cached = self.n_tokens_generated = 0
        self.n_ended: Counter[Finish] = Counter()
        self._changed = threading.Condition()  # protects `queue` and `_closing`
        self._closing = self._canceling = False
        self._thread: threading.Thread | None = None

    # Called from other threads

    def start(self) -> None:
        """Run until `close`."""
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def submit(self, variant: Variant, replies: Sequence[Reply]) -> None:
        """Put replies into the queue, all or none. Raises QueueFull and ShuttingDown."""
        with self._changed:
            if self._closing:
                raise ShuttingDown
            free = self.max_rows - len(self.rows)
            if len(self.queue) + len(replies) > self.max_queue + free:
                raise QueueFull
            self.queue.extend((reply, variant) for reply in replies)
            self._changed.notify()

    def wake(self) -> None:
        """Look at canceled replies now."""
        with self._changed:
            self._changed.notify()

    def shut_down(self) -> None:
        """Accept nothing more, and end the replies that wait. Those that run are finished."""
        with self._changed:
            self._closing = True
            waiting, self.queue = list(self.queue), deque()
            self._changed.notify()
        for reply, _ in waiting:
            self._end(reply, "shutdown")

    def cancel_all(self) -> None:
        """Cancel the running replies, after `shut_down`."""
        self._canceling = True  # and not each row's reply: another one may be about to become a row
        self.wake()

    def close(self) -> None:
        """End everything and wait for the thread."""
        self.shut_down()
        self.cancel_all()
        if self._thread is not None:
            self._thread.join()

    # The model's thread

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self.queue and not self.rows and not self._closing:
                    self._changed.wait()
                if self._closing and not self.rows:
                    return
            with self._ending_at_failure(self.rows):
                self.step()

    @contextmanager
    def _ending_at_failure(self, rows: Sequence[_Row]) -> Iterator[None]:
        """Context in which a failure, such as a full memory, ends the replies of these rows. They can't be continued."""
        try:
            yield
        except Exception:
            for row in rows:
                if row.reply.finish is None:
                    self._end(row.reply, "error")
            self.on_error(traceback.format_exc())

    @torch.inference_mode()
    def step(self) -> None:
        """Admit waiting replies, read a piece of the prompts, and compute one token of every running reply."""
        self.n_steps += 1
        self._leave()
        self._admit()
        self._read()
        running = [row for row in self.rows if not row.is_reading and row.reply.finish is None]
        for variant in self.variants:
            rows = [row for row in running if row.variant is variant]
            if rows:
                with self._ending_at_failure(rows):
                    logits = variant.decoder.next_logits([row.last_id for row in rows], [row.cache for row in rows])
                    self._add_tokens(rows, logits)
        self._drop_ended_rows()

    def _drop_ended_rows(self) -> None:
        self.rows = [row for row in self.rows if row.reply.finish is None]

    def _why_unwanted(self, reply: Reply) -> Finish | None:
        """Why a reply is not continued: its client has gone, or its time is over."""
        if self._canceling or reply.is_canceled:
            return "canceled"
        return "timeout" if reply.is_late else None

    def _leave(self) -> None:
        """End the replies that are not continued."""
        self._drop_ended_rows()  # a step that has failed left them
        with self._changed:
            waiting = [(reply, self._why_unwanted(reply)) for reply, _ in self.queue]
            self.queue = deque(item for item, (_, why) in zip(self.queue, waiting, strict=True) if why is None)
        for reply, why in [*waiting, *((row.reply, self._why_unwanted(row.reply)) for row in self.rows)]:
            if why is not None:
                self._end(reply, why)
        self._drop_ended_rows()

    def _admit(self) -> None:
        while len(self.rows) < self.max_rows:
            with self._changed:
                if not self.queue or not self._has_memory(*self.queue[0]):
                    return
                reply, variant = self.queue.popleft()
            try:
                self.rows.append(_Row(reply, variant))
            except Exception:
                self._end(reply, "error")
                self.on_error(traceback.format_exc())
            else:
                self.n_prompt_tokens += len(reply.prompt)

    def _has_memory(self, reply: Reply, variant: Variant) -> bool:
        """Whether the keys and values of another reply fit next to those of the running ones."""
        if not self.rows:
            return True
        n_tokens = min(len(reply.prompt) + reply.asked.sampling.max_new_tokens, variant.model.config.context_length)
        used = sum(row.cache.table.nbytes for row in self.rows)
        return used + n_tokens * variant.bytes_per_token <= self.row_bytes

    def _read(self) -> None:
        """Read blocks of the prompts, in the order in which they came, until the time for it is over."""
        deadline = time.monotonic() + READ_SECONDS
        for row in self.rows:
            with self._ending_at_failure([row]):
                while row.is_reading and self._why_unwanted(row.reply) is None:
                    if not self._restore_block(row):
                        logits = self._read_block(row)
                        if row.n_read == len(row.reply.prompt):
                            self._add_tokens([row], logits)
                    if time.monotonic() > deadline:
                        return

    def _restore_block(self, row: _Row) -> bool:
        """Take the next block of the prompt from the prefix cache. The last token is always read: its logits are needed."""
        start, prompt = row.n_read, row.reply.prompt
        if not row.is_shared or start + BLOCK >= len(prompt):
            return False
        block = self.prefixes.find(row.variant.number, row.block, prompt[start : start + BLOCK])
        if block is None:
            return False
        restore(block, row.cache, start)
        row.block = block
        row.reply.usage.n_cached += BLOCK
        self.n_tokens_cached += BLOCK
        return True

    def _read_block(self, row: _Row) -> torch.Tensor:
        """Read the next block of the prompt and keep it. Returns the logits (1, V) after it."""
        start = row.n_read
        ids = row.reply.prompt[start : start + BLOCK]
        model = row.variant.model
        logits = model.next_logits(torch.tensor([ids], device=model.device), row.cache, [len(ids)])
        self.n_tokens_read += len(ids)
        if len(ids) == BLOCK and row.is_shared:
            row.block = self.prefixes.add(row.variant.number, row.block, ids, row.cache, start)
            row.is_shared = row.block is not None
        return logits

    def _add_tokens(self, rows: Sequence[_Row], logits: torch.Tensor) -> None:
        """Choose the next token of each row from logits (B, V)."""
        variant = rows[0].variant
        chosen = choose(logits, [row.sampler for row in rows], variant.suppressed)
        for row, (token_id, probs) in zip(rows, chosen, strict=True):
            row.last_id = token_id
            with self._ending_at_failure([row]):
                self._add_token(row, token_id, probs)

    def _add_token(self, row: _Row, token_id: int, probs: TokenProbs | None) -> None:
        reply = row.reply
        if reply.usage.first_token is None:
            reply.usage.first_token = time.monotonic()
        if token_id in row.variant.tokenizer.stop_ids:
            self._end(reply, "stop")
            return
        self.n_tokens_generated += 1
        if reply.push(token_id, probs):
            self._end(reply, "stop")
        elif reply.usage.n_new == row.n_max:
            self._end(reply, "length")

    def _end(self, reply: Reply, finish: Finish) -> None:
        self.n_ended[reply.end(finish)] += 1
