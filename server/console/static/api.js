/** The server's HTTP API, asked with the key of this tab. */

import { session } from "./session.js";

/** Where the API is: beside the page, below whatever prefix a proxy has. */
const ROOT = new URL("./", document.baseURI);
const PATIENCE_MS = 30_000; // with a reading that is no stream: a machine that is gone does not say so

/** Whether asking again with the same key may help. @param {any} error */
export const mayPass = (error) => error?.status !== 401 && error?.status !== 403;

/** What the server refused, or why it could not be asked; `code` is the server's own word for it. */
export class ApiError extends Error {
  /**
   * @param {number} status 0: no answer came
   * @param {{message?: string, code?: string | null, type?: string, param?: string | null}} error
   * @param {Headers} [headers]
   */
  constructor(status, error, headers) {
    super(error.message || `the server answered ${status} without saying why`);
    this.status = status;
    this.code = error.code ?? null;
    this.type = error.type ?? "";
    this.param = error.param ?? null;
    this.requestId = headers?.get("x-request-id") ?? "";
    this.retryAfter = Number(headers?.get("retry-after")) || 0;
  }
}

/** @param {unknown} cause */
function unreachable(cause) {
  const why = cause instanceof Error && cause.message ? ` (${cause.message})` : "";
  return new ApiError(0, { message: `the server at ${ROOT.href} does not answer${why}`, code: "unreachable" });
}

/** @param {string} path @param {Record<string, string | number | undefined | null>} [query] */
export function url(path, query = {}) {
  const made = new URL(path.replace(/^\//, ""), ROOT);
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== null && value !== "") made.searchParams.set(name, String(value));
  }
  return made;
}

/** The part of a path that names something. @param {string} name */
export const part = (name) => encodeURIComponent(name);

/** @returns {Record<string, string>} */
function keyHeader() {
  return session.key ? { authorization: `Bearer ${session.key}` } : {};
}

/** @param {number} status @param {string} text @param {Headers} [headers] */
function refused(status, text, headers) {
  try {
    return new ApiError(status, JSON.parse(text).error ?? {}, headers);
  } catch {
    return new ApiError(status, { message: text.slice(0, 500) }, headers);
  }
}

/**
 * One request, not yet read. Throws ApiError for every answer that is none.
 * @param {string} method
 * @param {URL} where
 * @param {{body?: any, headers?: Record<string, string>, signal?: AbortSignal}} [options]
 * @returns {Promise<Response>}
 */
export async function ask(method, where, { body, headers = {}, signal } = {}) {
  const init = {
    method,
    signal,
    cache: /** @type {RequestCache} */ ("no-store"),
    credentials: /** @type {RequestCredentials} */ ("same-origin"),
  };
  /** @type {Record<string, string>} */
  const json = body === undefined ? {} : { "content-type": "application/json" };
  let response;
  try {
    const text = body === undefined ? undefined : JSON.stringify(body);
    response = await fetch(where, { ...init, body: text, headers: { ...json, ...keyHeader(), ...headers } });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw unreachable(error);
  }
  if (!response.ok) throw refused(response.status, await response.text(), response.headers);
  return response;
}

/** @param {string} path @param {Record<string, any>} [query] @returns {Promise<any>} */
export const get = async (path, query) => JSON.parse(await read(url(path, query)));

/** @param {string} path @returns {Promise<string>} */
export const getText = (path) => read(url(path));

/** @param {URL} where */
async function read(where) {
  const patience = new AbortController();
  const timer = setTimeout(() => patience.abort(), PATIENCE_MS);
  try {
    return await (await ask("GET", where, { signal: patience.signal })).text();
  } catch (error) {
    if (patience.signal.aborted) throw unreachable(new Error(`no answer within ${PATIENCE_MS / 1000} s`));
    throw error instanceof ApiError ? error : unreachable(error); // it broke off amid the answer
  } finally {
    clearTimeout(timer);
  }
}

/**
 * A change. `etag`: only if what it changes is still as it was when that tag was read.
 * @param {"POST" | "PATCH" | "DELETE"} method
 * @param {string} path
 * @param {{body?: any, query?: Record<string, any>, etag?: string | null}} [options]
 * @returns {Promise<any>}
 */
export async function change(method, path, { body, query, etag } = {}) {
  const headers = etag ? { "if-match": etag } : undefined;
  return (await ask(method, url(path, query), { body, headers })).json();
}

/**
 * Send a form; `onProgress` is told the bytes that were sent and how many there are. Throws ApiError.
 * @param {string} path
 * @param {FormData} form
 * @param {(sent: number, total: number) => void} onProgress
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 */
export function upload(path, form, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch tells of no progress
    request.open("POST", url(path));
    for (const [name, value] of Object.entries(keyHeader())) request.setRequestHeader(name, value);
    request.upload.addEventListener("progress", (event) => onProgress(event.loaded, event.total));
    request.addEventListener("load", () => {
      const headers = new Headers({ "x-request-id": request.getResponseHeader("x-request-id") ?? "" });
      if (request.status >= 200 && request.status < 300) resolve(JSON.parse(request.responseText));
      else reject(refused(request.status, request.responseText, headers));
    });
    request.addEventListener("error", () => reject(unreachable(null)));
    request.addEventListener("abort", () =>
      reject(new ApiError(0, { message: "the upload was stopped", code: "stopped" })),
    );
    signal?.addEventListener("abort", () => request.abort());
    request.send(form);
  });
}

/**
 * The events of a stream: the JSON after each `data:`, to the end or to [DONE]. Throws ApiError, for errors inside too.
 * @param {Response} response
 * @returns {AsyncGenerator<any>}
 */
export async function* events(response) {
  const reader = /** @type {ReadableStream<any>} */ (response.body).pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop() ?? "";
      for (const line of lines) {
        if (!line.startsWith("data:")) continue;
        const data = line.slice(5).trim();
        if (data === "[DONE]") return;
        const event = JSON.parse(data);
        if (event.error) throw new ApiError(response.status, event.error, response.headers);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
