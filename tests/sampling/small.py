"""A small model, its engines and a plain forward pass to compare them with, for the tests of the sampler."""

import drawn
import jax
import jax.numpy as jnp
import numpy as np

from leafe_jax.models import decoder
from leafe_jax.models.attention import segment_attend
from leafe_jax.models.decoder import ModelConfig
from leafe_jax.sampling.engine import Engine, Request
from leafe_jax.sampling.programs import Programs
from leafe_jax.sampling.requests import EngineConfig
from leafe_jax.types import Sampling

CONFIG = ModelConfig(
    model_type="qwen2", vocab_size=61, hidden_size=48, intermediate_size=80, num_layers=2,
    num_heads=6, num_kv_heads=2, head_dim=8, rope_theta=1e4, rms_norm_eps=1e-6,
    tie_word_embeddings=True, max_position_embeddings=128,
)  # fmt: skip
STOP = 7
LONG = dict(max_len=128, max_new_tokens=70, turn_chunk=4, prefill_chunk=8, page_size=4)

# Of every engine made, so that tests of equal engines compile once.
HELD: list[Programs] = []


def make_params(config=CONFIG, seed=0):
    # Larger weights than at initialisation, so that the distributions are far from uniform.
    return drawn.params(config, seed, 8 * 0.02)


def make(params, **changes) -> Engine:
    sizes = dict(
        num_slots=3, max_len=64, turn_chunk=4, prefill_chunk=8, max_new_tokens=6, stop_ids=(STOP,)
    )
    engine = Engine(CONFIG, params, EngineConfig(**{**sizes, **changes}))
    HELD.append(engine.programs)
    return engine


@jax.jit
def _forward(params, tokens, segment_ids):
    positions = jnp.arange(tokens.shape[1])[None]
    attend = segment_attend(segment_ids)
    hidden = decoder.hidden(CONFIG, params, tokens, positions, attend)
    scores = decoder.head(CONFIG, params, hidden)[0]
    return scores, jax.nn.log_softmax(scores, axis=-1)


def _padded(params, ids) -> tuple:
    tokens = np.zeros((1, 128), np.int32)  # one length, so that it compiles once
    tokens[0, : len(ids)] = ids
    segment_ids = (np.arange(128) < len(ids)).astype(np.int32)[None]
    return _forward(params, tokens, segment_ids)


def forward(params, ids) -> np.ndarray:
    """Log-probabilities [T, V] by the training path."""
    return np.asarray(_padded(params, ids)[1])[: len(ids)]


def last_logits(params, ids) -> np.ndarray:
    """Logits [V] of what follows `ids`, by the training path."""
    return np.array(_padded(params, ids)[0][len(ids) - 1])


def reference(params, ids, count, temperature, seed) -> list[int]:
    """Samples token by token with a full forward pass each."""
    ids, new = list(ids), []
    while len(new) < count:
        logits = forward(params, ids)[-1]
        if temperature > 0:
            key = jax.random.fold_in(jax.random.PRNGKey(seed), len(ids))
            logits = logits / temperature + np.asarray(jax.random.gumbel(key, logits.shape))
        new.append(int(logits.argmax()))
        ids.append(new[-1])
        if new[-1] == STOP:
            break
    return new


def prompt(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(8, 61, length).tolist()


def ask(session, ids, temperature=0.0, seed=0, count=6) -> Request:
    return Request(session, ids, count, Sampling(temperature), seed)


def check_pages(engine):
    """Every page is free, in the tree, or a running row's own."""
    nodes = [n.page for n in engine.tree.nodes()]
    own = [page for job in engine._running for page in job.pages.values()]
    assert sorted([*engine.tree.free, *nodes, *own]) == list(range(engine.tree.num_pages))


def check_no_leak(engine):
    """Every page is free or in the tree, once, and nothing is pinned when nothing is in flight."""
    assert not engine._running and not engine._waiting and not engine._busy and not engine._charged
    check_pages(engine)
    assert all(n.pins == 0 and n.tokens for n in engine.tree.nodes())


def mixed_load(engine, turns=2, live=9, temperature=1.0):
    """Sessions of unequal prompts and replies that come back as soon as they are answered, forks among
    them: {name: ids}."""
    rng = np.random.default_rng(5)
    plan = {
        (i, t): (prompt(97 * i + t, int(rng.integers(1, 13))), int(rng.integers(8, 51)))
        for i in range(live) for t in range(turns)
    }  # fmt: skip
    tickets, ids = {}, {}

    def send(name, session):
        new, count = plan[name]
        request = Request(session, new, count, Sampling(temperature), hash(name) & 0xFFFF)
        tickets[engine.submit(request)] = (name, session)

    for i in range(live):
        send((i, 0), engine.start())
    while tickets:
        for ticket, result in engine.collect():
            (i, t), session = tickets.pop(ticket)
            assert result.finish_reason in ("stop", "length")
            ids[i, t] = list(session.ids)
            assert session.ids[-len(result.ids) :] == list(result.ids)
            if t + 1 < turns:
                # Every third session goes on from the middle of what it has.
                cut = len(session) if i % 3 else len(session) // 2
                send((i, t + 1), engine.fork(session, cut))
        check_pages(engine)
    return ids
