"""Measure what a model knows: MMLU's questions of 57 subjects, with four options each.

  powerserve mmlu -m MODEL --dataset data                    the likeliest of the letters A to D
  powerserve mmlu -m MODEL --dataset data -s 0 -k 5          all questions, after five examples
  powerserve mmlu --model NAME --port 8080 --dataset data    ask a server, as the original does

Answers are kept as they come: a test that was stopped goes on with the same command.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from powerserve.cli import options
from powerserve.cli.multiple_choice import add_server_flags, add_test_flags, run_test


def configure(parser: ArgumentParser) -> None:
    """Declare the flags: the original's, and ours."""
    add_test_flags(parser)
    parser.add_argument(
        "-k",
        "--num-examples",
        type=options.whole_number,
        default=1,
        metavar="N",
        help="answered examples before each question (default: 1)",
    )
    add_server_flags(parser)
    options.add_model_flags(parser)
    options.add_engine_flags(parser)


def execute(arguments: Namespace) -> int:
    """Run the test."""
    from powerserve.evaluate.mmlu import read_mmlu

    test = read_mmlu(
        arguments.dataset,
        num_questions=arguments.scale_factor,
        num_examples=arguments.num_examples,
        subjects=arguments.subjects,
    )
    return run_test(arguments, "mmlu", test, num_examples=arguments.num_examples)
