"""Answer one prompt on a device: build and send what is missing, run, stream the answer back.

The exit status is that of the program on the device. Models of the table answer in their prompt
format, as the original's; others continue the raw text, unless --chat is given.

  powerserve deploy run llama-3.2-1b -p "Why is the sky blue?"
  powerserve deploy run model.gguf -p "Once upon a time" --flags='--temp 0'
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace

from powerserve.cli import options
from powerserve.cli.deploy_flags import (
    add_device_flag,
    add_further_flags,
    add_model_flags,
    deploy_model,
)
from powerserve.cli.prompt import add_prompt_flags, prompt_from_flags

DEFAULT_PROMPT = "What is the capital of France?"
DEFAULT_TOKENS = 1500  # the original's


def configure(parser: ArgumentParser) -> None:
    """Declare the flags; -p -f -n -s -c are the original's."""
    add_model_flags(parser)
    add_prompt_flags(parser)
    parser.add_argument(
        "-n",
        "--n-predicts",
        type=options.whole_number,
        default=DEFAULT_TOKENS,
        metavar="N",
        help=f"tokens to generate at most (default: {DEFAULT_TOKENS})",
    )
    parser.add_argument("--chat", action="store_true", help="use the model's chat template")
    parser.add_argument(
        "-s", "--use-spec", action="store_true", help="guess tokens ahead with a draft model"
    )
    add_device_flag(parser)
    add_further_flags(parser, "run")


def execute(arguments: Namespace) -> int:
    """Deploy and run; returns the exit status of the program on the device."""
    prompt = prompt_from_flags(arguments)
    from powerserve.deploy.jobs import job_folder, run_program
    from powerserve.storage.progress import console_progress

    deployed = deploy_model(arguments, console_progress())
    with job_folder(deployed.device) as folder:
        file = folder.write("prompt.txt", DEFAULT_PROMPT if prompt is None else prompt)
        flags = [*deployed.flags, "-f", str(file), "-n", str(arguments.n_predicts)]
        if deployed.template is not None:
            flags += ["--chat-template", deployed.template]
        elif arguments.chat:
            flags += ["--chat"]
        return run_program(folder, deployed.program, ["run", *flags, *arguments.flags])
