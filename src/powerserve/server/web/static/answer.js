// One answer while it comes: its text, its reasoning, and how fast it was.

/** A message of role "assistant" that has nothing in it yet. */
export function emptyAnswer() {
  return { role: "assistant", content: "", reasoning: "", error: "", facts: [] };
}

/** Puts an answer's chunks into a message. */
export class Answer {
  #began = performance.now();
  #firstAt = null;
  #numPieces = 0;
  #finishReason = null;
  #usage = null;
  #timings = null;

  constructor(message) {
    this.message = message;
  }

  take(chunk) {
    const choice = chunk.choices?.[0];
    this.#usage = chunk.usage ?? this.#usage;
    this.#timings = chunk.timings ?? this.#timings;
    this.#finishReason = choice?.finish_reason ?? this.#finishReason;
    this.#append(choice?.delta ?? {});
    this.message.facts = this.#soFar();
  }

  end(wasStopped) {
    this.message.facts = this.#usage ? this.#counted() : this.#soFar();
    if (wasStopped) this.message.facts.push("stopped");
    if (this.#finishReason === "length") this.message.facts.push("ended by the limit of tokens");
  }

  #append({ content, reasoning_content: reasoning }) {
    if (!content && !reasoning) return;
    this.#firstAt ??= performance.now();
    this.#numPieces += 1;
    this.message.content += content ?? "";
    this.message.reasoning += reasoning ?? "";
  }

  /** A piece is nearly always a token; the exact count comes with the end. */
  #soFar() {
    if (!this.#numPieces) return [];
    const seconds = (performance.now() - this.#firstAt) / 1000;
    const rate = this.#numPieces > 1 ? [speed((this.#numPieces - 1) / seconds)] : [];
    return [`about ${tokens(this.#numPieces)}`, ...rate];
  }

  #counted() {
    const { prompt_tokens: numPrompt, completion_tokens: numGenerated } = this.#usage;
    const numCached = this.#usage.prompt_tokens_details?.cached_tokens;
    const facts = [tokens(numGenerated)];
    const rate = this.#timings?.predicted_per_second;
    if (rate) facts.push(speed(rate));
    if (this.#firstAt) facts.push(`first after ${duration(this.#firstAt - this.#began)}`);
    facts.push(`prompt ${tokens(numPrompt)}${numCached ? `, ${numCached} of them cached` : ""}`);
    return facts;
  }
}

function tokens(count) {
  return count === 1 ? "1 token" : `${count} tokens`;
}

function speed(rate) {
  return `${rate < 10 ? rate.toFixed(1) : Math.round(rate)} tokens/s`;
}

function duration(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}
