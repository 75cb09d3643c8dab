"""What the tests of the server share: engines that are stepped by the test."""

from mini_chat_gpt.generation.decode import for_inference
from mini_chat_gpt.generation.settings import Sampling
from mini_chat_gpt.serve.engine import ReplyEngine, Variant
from mini_chat_gpt.serve.reply import Asked, Piece, Reply

FREE = Sampling(max_new_tokens=20, temperature=1.0, seed=5)


def variant_of(model, tokenizer, max_rows=8, weights="auto"):
    return Variant.of(for_inference(model, weights=weights), tokenizer, max_rows)


def new_reply(prompt, tokenizer, sampling=FREE, **asked):
    """A reply that collects its pieces in `pieces`."""
    pieces: list[Piece] = []
    reply = Reply(prompt, Asked(sampling, **asked), tokenizer, pieces.append)
    reply.pieces = pieces
    return reply


def text_of(reply):
    return "".join(piece.text for piece in reply.pieces)


def run(engine, replies, variant=None):
    """Submit the replies and step until all have ended."""
    engine.submit(variant or engine.variants[0], replies)
    step_until_ended(engine, replies)


def step_until_ended(engine, replies, limit=2000):
    for _ in range(limit):
        if all(reply.finish is not None for reply in replies):
            return
        engine.step()
    raise AssertionError("the replies did not end")


def new_engine(variant, **options):
    return ReplyEngine([variant], **{"max_rows": 8, **options})
