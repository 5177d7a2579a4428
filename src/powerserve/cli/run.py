"""Answer one prompt: the answer goes to standard output, statistics to standard error.

The prompt comes from -p, -f or standard input. It is continued as raw text; with --chat or --system
it becomes a user's message in the model's chat template.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING, Any

from powerserve.cli import options
from powerserve.core.errors import UsageError

if TYPE_CHECKING:
    from powerserve.engine.generation import Completion
    from powerserve.llm import LLM
    from powerserve.sampler.params import SamplingParams


def configure(parser: ArgumentParser) -> None:
    """Declare the command's flags."""
    options.add_prompt_flags(parser)
    group = parser.add_argument_group("answer")
    group.add_argument(
        "-n",
        "--n-predicts",
        type=options.whole_number,
        metavar="N",
        help="tokens to generate at most (default: until the model stops or the context is full)",
    )
    group.add_argument("--chat", action="store_true", help="use the model's chat template")
    group.add_argument("--system", metavar="TEXT", help="a system message; implies --chat")
    group.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    group.add_argument("-q", "--quiet", action="store_true", help="no statistics")
    options.add_model_flags(parser)
    options.add_engine_flags(parser)
    options.add_sampling_flags(parser)
    options.add_speculation_flags(parser)


def execute(arguments: Namespace) -> int:
    """Run the command."""
    prompt = read_prompt(arguments)
    from powerserve.cli.interrupt import interruptible
    from powerserve.llm import DEFAULT_MODEL, LLM

    source = options.find_model(arguments, DEFAULT_MODEL)
    params = options.sampling_params(arguments, source.hparams, arguments.n_predicts)
    with LLM(source, options.load_options(arguments, source.hparams)) as llm:
        with interruptible(llm.loaded.backend):
            completion = answer(llm, arguments, prompt, params)
        if not arguments.quiet:
            report(llm, arguments, completion)
    return 0


def read_prompt(arguments: Namespace) -> str:
    """The prompt from the flags, or from standard input if that is not a terminal."""
    if arguments.prompt is not None:
        return str(arguments.prompt)
    if arguments.prompt_file is not None:
        return options.read_prompt_file(arguments.prompt_file)
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError('there is no prompt: give one with -p "…", -f FILE or on standard input')
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError("the prompt on standard input is not UTF-8 text") from None


def answer(llm: LLM, arguments: Namespace, prompt: str, params: SamplingParams) -> Completion:
    """Generate and print the answer as it comes (as a whole with --json)."""
    generation = llm.start(_encode(llm, arguments, prompt), params)
    for piece in llm.pieces(generation):
        if not arguments.json:
            print(piece.text, end="", flush=True)
    completion = generation.completion()
    ending = json.dumps(as_json(llm, completion), ensure_ascii=False) if arguments.json else ""
    print(ending, flush=True)
    return completion


def as_json(llm: LLM, completion: Completion) -> dict[str, Any]:
    """A completion as plain data."""
    timings = completion.timings
    return {
        "model": llm.loaded.source.name,
        "text": completion.text,
        "finish_reason": str(completion.finish_reason),
        "token_ids": completion.token_ids,
        "logprobs": [sample.logprob for sample in completion.samples],
        "top_logprobs": [dict(sample.top_logprobs) for sample in completion.samples],
        "prompt_tokens": completion.num_prompt_tokens,
        "cached_tokens": completion.num_cached_tokens,
        "completion_tokens": len(completion.token_ids),
        "prefill_s": timings.prefill_s,
        "decode_s": timings.decode_s,
    }


def report(llm: LLM, arguments: Namespace, completion: Completion) -> None:
    """Statistics, and what the user may want to know, on standard error."""
    from powerserve.cli.statistics import info, speed_lines

    loaded = llm.loaded
    trained, context = loaded.config.context_length, loaded.engine.config.context_size
    info(f"context     : {context} tokens (the model was trained for {trained})", sys.stderr)
    for line in speed_lines(completion):
        info(line, sys.stderr)
    if completion.finish_reason == "context":
        info("the context is full; -c makes it larger", sys.stderr)
    if arguments.use_spec or arguments.draft_model:
        info("speculation is not available yet: this was plain decoding", sys.stderr)
    if not arguments.model and arguments.work_folder is None:
        info(
            f"{loaded.source.name} is the tiny built-in model; "
            "`powerserve pull owner/repo` fetches a better one for -m",
            sys.stderr,
        )


def _encode(llm: LLM, arguments: Namespace, prompt: str) -> list[int]:
    if not arguments.chat and arguments.system is None:
        return llm.loaded.tokenizer.encode(prompt)
    messages = [{"role": "user", "content": prompt}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    return llm.encode_chat(messages)
