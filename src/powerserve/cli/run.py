"""Answer one prompt: the answer goes to standard output, statistics to standard error.

The prompt comes from -p, -f or standard input. It is continued as raw text; with --chat or --system
it becomes a user's message in the model's chat template.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

from powerserve.cli import options
from powerserve.cli.grammar import add_grammar_flags, grammar_from_flags
from powerserve.cli.prompt import add_prompt_flags, encode_prompt, read_prompt
from powerserve.cli.speculation_flags import add_speculation_flags, show_trees, with_draft
from powerserve.cli.trace import add_trace_flag, tracer_from_flags

if TYPE_CHECKING:
    from powerserve.engine.generation import Completion
    from powerserve.llm import LLM
    from powerserve.sampler.grammar import Grammar
    from powerserve.sampler.params import SamplingParams


def configure(parser: ArgumentParser) -> None:
    """Declare the command's flags."""
    add_prompt_flags(parser)
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
    group.add_argument(
        "--chat-template",
        metavar="NAME",
        help="a known format, such as chatml, instead of the model's own; implies --chat",
    )
    group.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    group.add_argument("-q", "--quiet", action="store_true", help="no statistics")
    options.add_model_flags(parser)
    options.add_engine_flags(parser)
    options.add_sampling_flags(parser)
    add_grammar_flags(parser)
    add_speculation_flags(parser)
    add_trace_flag(parser)


def execute(arguments: Namespace) -> int:
    """Run the command."""
    prompt = read_prompt(arguments)
    from powerserve.cli.build_offer import offer_native_build
    from powerserve.cli.interrupt import interruptible
    from powerserve.llm import DEFAULT_MODEL, LLM

    source = with_draft(arguments, options.find_model(arguments, DEFAULT_MODEL))
    params = options.sampling_params(arguments, source.hparams, arguments.n_predicts)
    grammar = grammar_from_flags(arguments)
    load_options = options.load_options(arguments, source.hparams)
    with (
        tracer_from_flags(arguments, source.weights) as tracer,
        LLM(source, load_options, tracer=tracer) as llm,
    ):
        show_trees(arguments, llm)
        with interruptible(llm.loaded.backend):
            completion = answer(llm, arguments, prompt, params, grammar)
        if not arguments.quiet:
            report(llm, arguments, completion)
        if not arguments.quiet and not arguments.json:
            offer_native_build(llm.loaded.backend)
    return 0


def answer(
    llm: LLM,
    arguments: Namespace,
    prompt: str,
    params: SamplingParams,
    grammar: Grammar | None = None,
) -> Completion:
    """Generate and print the answer as it comes (as a whole with --json)."""
    from powerserve.cli.completion_json import as_json
    from powerserve.cli.terminal import TextPrinter

    generation = llm.start(_encode(llm, arguments, prompt), params, grammar)
    printer = TextPrinter(sys.stdout)
    for piece in llm.pieces(generation):
        if not arguments.json:
            printer.write(piece.text)
    completion = generation.completion()
    if arguments.json:
        print(json.dumps(as_json(llm, completion), ensure_ascii=False, allow_nan=False))
    else:
        printer.write("\n")
    return completion


def report(llm: LLM, arguments: Namespace, completion: Completion) -> None:
    """Statistics, and what the user may want to know, on standard error."""
    from powerserve.cli.statistics import info, speculation_lines, speed_lines

    loaded = llm.loaded
    trained, context = loaded.config.context_length, loaded.engine.config.context_size
    info(f"context     : {context} tokens (the model was trained for {trained})", sys.stderr)
    if completion.token_ids:
        for line in speed_lines(completion):
            info(line, sys.stderr)
    if completion.finish_reason == "context":
        info("the context is full; -c makes it larger", sys.stderr)
    if completion.speculation is not None and completion.speculation.num_draft_tokens:
        print("\n".join(speculation_lines(completion.speculation)), file=sys.stderr)
    if not arguments.model and arguments.work_folder is None:
        info(
            f"{loaded.source.name} is the tiny built-in model; "
            "`powerserve pull owner/repo` fetches a better one for -m",
            sys.stderr,
        )


def _encode(llm: LLM, arguments: Namespace, prompt: str) -> list[int]:
    template = arguments.chat_template
    if not (arguments.chat or arguments.system is not None or template):
        return encode_prompt(llm.loaded.tokenizer, prompt)
    from powerserve.tokenizer.chat import ChatTemplate

    messages = [{"role": "user", "content": prompt}]
    if arguments.system is not None:
        messages.insert(0, {"role": "system", "content": arguments.system})
    if template:
        return ChatTemplate.by_name(template, llm.loaded.tokenizer).encode(messages)
    return llm.encode_chat(messages)
