"""LEAFE on CodeContests with Qwen2.5-7B-Instruct: four submissions, judged as in CTRL.

    python -m leafe_jax.main --config=configs/codecontests_qwen2_5_7b.py \
        --config.model.path=Qwen2.5-7B-Instruct --workdir=runs/codecontests_7b \
        --config.env.options.problems="('train-00000-of-00039.parquet','test-00000-of-00001.parquet')"

The files are those of deepmind/code_contests on the hub, or its protocol buffers in JSON Lines; each
name says its split. Programs run in the sandbox (docs/SECURITY.md): install bubblewrap.
Optimizer, rollback and evaluation settings are the paper's (arXiv 2603.16843), tests and sampling
of solutions are CTRL's. Numbers are compared more strictly: an expected integer must be met exactly, where
CTRL's judge takes what is within 1e-5 of it (docs/ENVIRONMENTS.md). Needs accelerators: 64 sessions take
70 GiB on one device, half of that on each of two with `--config.sampler.tensor=2`; the sampler has as
many as there is room for. No numbers have been measured with it yet.
"""

from leafe_jax.run.presets import load_config, set_environment, set_training


def get_config(mode: str = "full"):
    c = load_config("household_instruct", mode)
    c.model.path = "Qwen2.5-7B-Instruct"  # a directory; left out, the embedded model would play
    set_environment(
        c,
        "code",
        layout="codecontests",  # files in env.options.problems; see above
        num_tests=10,  # the first ones decide (CTRL)
        time_limit=30.0,  # processor seconds per test, the data's own ignored (CTRL)
        memory_mb=1024,
        ignore_case=True,  # as CTRL's judge does
    )
    c.env.horizon = 4  # submissions (paper)
    c.prompts.style = "program"
    c.sampler.max_len = 16384
    c.sampler.max_action_tokens = 1024  # (CTRL)
    c.sampler.temperature = 0.7  # (CTRL)
    c.sampler.top_p = 0.8  # (CTRL)
    c.sampler.repetition_penalty = 1.05  # (CTRL)
    c.search.tree.reflect_every = 4  # rollback only when all submissions are used up (paper)
    c.search.tree.max_env_steps = 24  # submissions: six episodes
    c.search.tree.num_tasks = 0
    c.evaluate.num_tasks = 0
    c.evaluate.num_samples = 128  # (paper)
    c.evaluate.temperature, c.evaluate.top_p = 0.7, 0.8
    # Rows of about 16 examples (paper: 128 examples a step).
    set_training(c, seq_len=16384, batch_size=8)
    if mode == "smoke":
        c.env.options.layout = "own"
        c.env.options.time_limit = 2.0
        c.search.tree.num_tasks = c.evaluate.num_tasks = 6
        c.search.tree.reflect_every = c.env.horizon = 2
        c.search.tree.max_env_steps = 8
        c.evaluate.num_samples = 2
        c.sampler.max_len = 2048
        c.sampler.max_action_tokens = 24
    return c
