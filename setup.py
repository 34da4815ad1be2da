"""Installation; the packages above the line are those that the project is built on."""

from setuptools import find_packages, setup

setup(
    name="leafe_jax",
    version="0.1.0",
    description="LEAFE in JAX: language-model agents that learn to recover from their own mistakes",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["leafe_jax*", "envs*"]), "leafe_jax.configs"],
    package_dir={"leafe_jax.configs": "configs"},
    package_data={
        "leafe_jax": ["assets/**/*", "run/report/assets/*"],
        "leafe_jax.configs": ["*.py"],
        "envs": ["assets/**/*", "webshop/*.json", "templates/**/*"],
    },
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "transformers>=5.22",
        "sentencepiece>=0.2.1",
        "grain>=0.2.18",
        "array_record",  # Grain's record files: training examples
        "ml-collections>=1.1.0",
        "tensorboardX>=2.6.5",
        # -- beyond these, each with its reason --
        "absl-py",  # command-line flags; ml_collections' config flags are built on it
        "numpy",  # host-side arrays
        "scipy",  # special functions and root finding of the intervals; jax brings it
        "ml_dtypes",  # bfloat16 for NumPy, which jax brings
        "etils[epath]",  # paths, which orbax brings
        "tokenizers",  # makes the embedded model's tokenizer; transformers brings it
        "safetensors",  # the hub's checkpoint format, read without pickle
        "jinja2>=3.1.6",  # chat templates, report page; in older versions a template escapes the sandbox
        "tqdm",  # progress bars with rate and time left
        "nltk",  # WebShop: Porter's stemmer as Lucene has it (others miss its later rules)
        "regex",  # WebShop: Unicode's word segmentation classes, which `re` does not know
        "rapidfuzz",  # WebShop: the fuzzy comparison of its reward
        "matplotlib",  # the Pass@k plot of the report
    ],
    extras_require={
        "parquet": ["pyarrow"],  # the form in which the hub stores CodeContests
        # The benchmark itself (needs Java too). Pinned: another version plays the same actions otherwise.
        "scienceworld": ["scienceworld==1.2.3"],
        "alfworld": [
            "alfworld==0.4.2",  # the real package, behind `alfworld_real`
            "textworld[pddl]==1.7.0",  # its engine; builds Fast Downward, so needs cmake and g++
        ],
        "test": [
            "pytest",
            "pytest-xdist",  # two files at a time: programs compile on one core each
            "hypothesis",  # property tests of the environments and parsers
            "ruff",
            "mypy",  # types of agent, methods, run and training
            "thefuzz",  # the original's fuzzy comparison: the independent side of WebShop's tests
            "pyarrow",  # the Parquet loader's test
            "torch==2.13.0",  # transformers runs on it: the independent side of the parity tests
            "peft",  # reads the adapters that training writes
            "gguf",  # transformers reads SmolLM2's weights with it: a real model in the tests
            # compiles the TPU programs for a topology on a machine without a TPU
            "libtpu; sys_platform == 'linux' and platform_machine == 'x86_64'",
        ],
    },
)
