"""Metadata and dependencies of mtlzoo.

Every dependency carries its reason and a window. The lower ends are the versions that the suite runs
on; the upper ends stop before the next release that may break an interface that this project uses.
"""

from pathlib import Path

from setuptools import find_packages, setup

DEPENDENCIES = [
    "tensorflow>=2.21,<2.22",  # the backend: training, tf.data, SavedModel
    "keras>=3.15,<3.16",  # layers, models and `fit`; Keras 3 on the TensorFlow backend
    "keras-tuner>=1.4.8,<1.5",  # hyper-parameter search
    "scikit-learn>=1.6,<2",  # its Bayesian search, and what mattered in one; the reference for metrics in tests
    "tensorflow-serving-api>=2.21,<2.22",  # protocol of TF Serving: warmup records, client, development server
    "grpcio>=1.80,<2",  # gRPC of the development server and the client
    "grpcio-health-checking>=1.80,<2",  # health service of the development server
    "aiohttp>=3.14,<4",  # REST of the development server
    "requests>=2.32,<3",  # REST of the client
    "prometheus-client>=0.22,<1",  # metrics of the development server
    "scipy>=1.15,<2",  # isotonic regression: calibrated exports
    "tensorboard>=2.20,<2.22",  # training logs; KerasTuner imports it without declaring it
    "tensorflow-recommenders>=0.7.7,<0.8",  # compared with; runs in its own process (docs/design.md)
    "tensorflow-datasets>=4.9.10,<4.10",  # datasets in `rows` layout open as TFDS datasets
    "numpy>=2.1,<3",  # arrays between Arrow and TensorFlow
    "pyarrow>=22,<27",  # CSV and Parquet as record batches, in bounded memory
    "pydantic>=2.11,<3",  # the schema file and its error messages
    "PyYAML>=6.0,<7",  # schema.yaml
    "typer>=0.16,<1",  # the command line
    "rich>=14,<16",  # tables and progress bars
    "matplotlib>=3.10,<3.12",  # figures of what a model learned
    "jinja2>=3.1,<4",  # the report of `mtlzoo explain`
]

DEVELOPMENT = [
    "pytest>=8.4,<10",  # the suite
    "pytest-xdist>=3.6,<4",  # the suite on every core
    "hypothesis>=6.130,<7",  # property tests
    "zstandard>=0.23,<1",  # tests write .zst files
    "nbformat>=5.10,<6",  # the notebooks as files
    "nbclient>=0.11,<0.12",  # the notebooks, executed by the suite and by `make notebooks`
    "ipykernel>=7.2,<8",  # the kernel that they run in
    "lightgbm>=4.6,<5",  # what the models have to pass on census (benchmarks/boosted_trees.py)
    "ruff>=0.11,<0.18",  # format and lint
    "mypy>=1.15,<3",  # types
    "types-PyYAML>=6.0,<7",  # types of PyYAML
]

setup(
    name="mtlzoo",
    version="0.1.0",
    description="A model zoo for multi-task click and conversion ranking in Keras 3 on TensorFlow",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["mtlzoo", "mtlzoo.*", "pipelines", "pipelines.*"]),
    package_data={"mtlzoo": ["py.typed", "inspection/*.j2"], "pipelines": ["py.typed"]},
    install_requires=DEPENDENCIES,
    extras_require={"dev": DEVELOPMENT},
    entry_points={"console_scripts": ["mtlzoo=mtlzoo.cli:main"]},
)
