"""Measure what a model knows about images: questions as MMMU's, with up to ten options each.

  powerserve mmmu --url http://localhost:8080 --model NAME --dataset folder

A server that takes no images, or a model in this process, is asked the questions without images
only; the others are counted. Answers are kept as they come: a test that was stopped goes on with
the same command.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from powerserve.cli import options
from powerserve.cli.multiple_choice import add_server_flags, add_test_flags, run_test

# Of the original's script: where it kept things, and how it copied images to a phone.
_UNUSED = ("config_path", "data_cache_path", "split", "seed", "device_root", "device_url")


def configure(parser: ArgumentParser) -> None:
    """Declare the flags: the original's, and ours."""
    add_test_flags(parser, "--data_path")
    for name in _UNUSED:
        parser.add_argument(f"--{name}", help="accepted, unused")
    add_server_flags(parser)
    options.add_model_flags(parser)
    options.add_engine_flags(parser)


def execute(arguments: Namespace) -> int:
    """Run the test."""
    from powerserve.evaluate.mmmu import read_mmmu

    test = read_mmmu(
        arguments.dataset, num_questions=arguments.scale_factor, subjects=arguments.subjects
    )
    return run_test(arguments, "mmmu", test, num_examples=0)
