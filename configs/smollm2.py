"""LEAFE on a real pretrained model on a laptop: SmolLM2-135M-Instruct plays the household.

    pip install torch gguf
    python -m leafe_jax.tools.smollm2 --out=models/smollm2
    python -m leafe_jax.main --config=configs/smollm2.py --workdir=runs/smollm2

Any other instruct checkpoint goes into --config.model.path. The phases, each of which can be resumed:

bootstrap  warm start: the model is trained on 1,000 conversations of scripted players, so that its replies
           parse and it reflects in one line. It takes over the players' bad habits, too.
explore    trees of the warm-started model on 48 tasks
fit        rejection-sampling fine-tuning (rft) and LEAFE, both from the warm-started model
evaluate   the warm-started model (base), rft and leafe on 24 held-out tasks
report     the table

Planned for at most three hours on 2 cores in float32, and for minutes on one GPU. These flags fill a GPU:

    --config.sampler.num_slots=256 --config.search.tree.block_size=48 --config.evaluate.block_size=24

All weights are trained. With these flags rft and leafe train adapters of rank 16 instead:

    --config.rft.train.lora.rank=16 --config.rft.train.learning_rate=2e-4 \
    --config.leafe.train.lora.rank=16 --config.leafe.train.learning_rate=2e-4

`--config=configs/smollm2.py:smoke` runs the same program on a handful of tasks.
"""

from leafe_jax.run.presets import load_config, set_training


def get_config(mode: str = "full"):
    if mode not in ("full", "smoke"):
        raise ValueError(f"--config=configs/smollm2.py:{mode}: the modes are full and smoke")
    c = load_config("bootstrap", "household")
    c.phases = ("bootstrap", "explore", "fit", "evaluate", "report")
    c.methods = ("base", "rft", "leafe")
    c.model.path = "models/smollm2"
    c.prompts.style = "chat"  # in words: a system message, and the whole reply is the action
    c.prompts.answer_tokens = 24
    c.sampler.num_slots = 48
    c.sampler.max_len = 1024
    c.sampler.turn_chunk = 64
    c.sampler.prefill_chunk = 128
    c.sampler.max_action_tokens = 16
    b = c.bootstrap
    b.from_scratch = False
    b.dtype = "float32"
    b.num_conversations = 1000
    b.games.household.prompts = c.prompts  # one section: what is trained is what is asked later
    # The players do the right thing unasked three times as often as the embedded model's: with every
    # habit at 4%, hardly a branch that avoids one of them succeeds.
    b.rate_scale = 3.0
    b.train.update(
        seq_len=1024, batch_size=4, num_epochs=1, learning_rate=2e-4, schedule="cosine",
        warmup_steps=10, checkpoint_every=20, scan_layers=True,
    )  # fmt: skip
    tree = c.search.tree
    tree.num_tasks = 48
    tree.block_size = 24
    tree.max_env_steps = 100  # five episodes
    set_training(
        c, seq_len=1024, batch_size=4, num_epochs=2, learning_rate=5e-5, warmup_steps=5,
        checkpoint_every=20, scan_layers=True,
    )  # fmt: skip
    c.evaluate.split = "test"
    c.evaluate.num_tasks = 24
    c.evaluate.num_samples = 16
    if mode == "smoke":
        b.num_conversations = 12
        b.train.batch_size = 1
        set_training(c, batch_size=1, num_epochs=1)
        c.env.horizon = 6
        tree.num_tasks = tree.block_size = 4
        tree.max_env_steps = 18
        tree.reflect_every = 3
        c.evaluate.num_tasks = 4
        c.evaluate.num_samples = 2
        c.sampler.num_slots = 8
        c.sampler.compile_ahead = False  # so short a run is over before it pays
    return c
