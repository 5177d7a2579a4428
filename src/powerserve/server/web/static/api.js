// The server's API, as far as this page uses it.

const CUT_OFF = "The connection ended before the answer did.";

/** An answer that is an error; `message` is a sentence for the reader. */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Names of the models that can be asked for. Throws ApiError. */
export async function listModels(key) {
  const response = await request("v1/models", { headers: headers(key) });
  const list = await json(response);
  if (!Array.isArray(list?.data)) throw new ApiError("The server sent no list of models.");
  return list.data.map((model) => model.id);
}

/** The chunks of one answer, parsed, as they come. Throws ApiError, or AbortError after `signal`. */
export async function* streamChat(body, key, signal) {
  const response = await request("v1/chat/completions", {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = parsed(data);
    if (chunk.error) throw new ApiError(chunk.error.message ?? "The server reported an error.");
    yield chunk;
  }
  throw new ApiError(CUT_OFF);
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    throw explained(error, "The server cannot be reached. Is it still running?");
  }
  if (response.ok) return response;
  const error = await response.json().catch(() => ({}));
  // The original's clients get a flat body.
  const message = error?.error?.message ?? error?.message;
  throw new ApiError(message ?? `The server answered with status ${response.status}.`, response.status);
}

async function json(response) {
  return response.json().catch(() => {
    throw new ApiError("The server’s answer is not JSON.");
  });
}

/** The data of each server-sent event. */
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await read(reader);
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    throw explained(error, CUT_OFF);
  }
}

/** A network error in words; a stopped request is none. */
function explained(error, sentence) {
  return error.name === "AbortError" ? error : new ApiError(sentence);
}

function parsed(data) {
  try {
    return JSON.parse(data);
  } catch {
    throw new ApiError("The server sent something that is not JSON.");
  }
}
