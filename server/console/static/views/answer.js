/** One model's side of a conversation: it comes as a stream, token by token, each with how likely it was. */

import { ask as request, events, url } from "../api.js";
import { fill, h, say } from "../dom.js";
import * as format from "../format.js";
import { errorBox } from "../parts/notices.js";

/**
 * @typedef {{text: string, logprob: number | null, others: {token: string, logprob: number}[]}} Token
 * @typedef {object} Question
 * @property {"chat" | "text"} mode
 * @property {string} text
 * @property {string} system
 * @property {Record<string, number>} options
 * @property {boolean} logprobs
 */

const LEVELS = [0.85, 0.5, 0.2, 0.05]; // a token less likely than the n-th has at least the n-th colour
const TOP = 5;

/** @param {number} logprob */
const level = (logprob) => LEVELS.filter((bound) => Math.exp(logprob) < bound).length;

/** @param {string} text */
const visible = (text) => JSON.stringify(text).slice(1, -1).replaceAll('\\"', '"');

/** @param {string} model */
export function answerPanel(model) {
  const served = h("span", { class: "muted" });
  const figures = h("p", { class: "hint figures-line" }, " ");
  const talk = h("div", { class: "talk", "aria-live": "off" });
  const detail = h("p", { class: "detail hint", role: "status" });
  const node = h(
    "section",
    { class: "card panel", "aria-label": `Answers of ${model}` },
    h("div", { class: "card-head" }, h("h3", { class: "clip" }, model), served),
    talk,
    detail,
    figures,
  );
  /** @type {{role: string, content: string}[]} */
  let history = [];
  let stopping = new AbortController();

  /** @param {Question} question */
  async function ask(question) {
    stopping.abort();
    stopping = new AbortController();
    fill(detail);
    say(served, "");
    say(figures, "waiting");
    if (question.mode === "text") fill(talk);
    const asked = h("div", { class: "said user" }, question.text);
    const answer = tokenLine(detail);
    talk.append(asked, answer.node);
    answer.node.setAttribute("aria-busy", "true");
    const clock = { began: performance.now(), first: 0, count: 0, why: "" };
    try {
      const response = await request("POST", url(question.mode === "chat" ? "v1/chat/completions" : "v1/completions"), {
        body: bodyOf(question),
        signal: stopping.signal,
      });
      say(served, response.headers.get("x-hotswap-adapter") ?? "");
      for await (const event of events(response)) take(event, question.mode, answer, clock);
      history.push({ role: "user", content: question.text }, { role: "assistant", content: answer.text() });
      say(figures, summary(clock));
    } catch (error) {
      const stopped = stopping.signal.aborted;
      say(figures, stopped ? `stopped · ${summary(clock)}` : "");
      if (!stopped) talk.append(errorBox(error));
      else if (answer.text())
        history.push({ role: "user", content: question.text }, { role: "assistant", content: answer.text() });
    }
    answer.node.removeAttribute("aria-busy");
    talk.scrollTop = talk.scrollHeight;
  }

  /** @param {Question} question */
  function bodyOf({ mode, text, system, options, logprobs }) {
    const common = { model, stream: true, stream_options: { include_usage: true }, ...options };
    if (mode === "text") return { ...common, prompt: text, ...(logprobs ? { logprobs: TOP } : {}) };
    const messages = [
      ...(system ? [{ role: "system", content: system }] : []),
      ...history,
      { role: "user", content: text },
    ];
    return { ...common, messages, ...(logprobs ? { logprobs: true, top_logprobs: TOP } : {}) };
  }

  /**
   * @param {any} event
   * @param {"chat" | "text"} mode
   * @param {ReturnType<typeof tokenLine>} answer
   * @param {any} clock
   */
  function take(event, mode, answer, clock) {
    if (event.usage) clock.count = event.usage.completion_tokens;
    const choice = event.choices?.[0];
    if (!choice) return;
    clock.why = choice.finish_reason ?? clock.why;
    const text = (mode === "chat" ? (choice.delta?.content ?? choice.delta?.reasoning_content) : choice.text) ?? "";
    const tokens = mode === "chat" ? chatTokens(choice.logprobs) : textTokens(choice.logprobs);
    if (!text && !tokens.length) return;
    clock.first ||= performance.now();
    clock.last = performance.now();
    answer.add(text, tokens);
    talk.scrollTop = talk.scrollHeight;
    say(figures, summary(clock));
  }

  return {
    node,
    ask,
    stop: () => stopping.abort(),
    clear() {
      stopping.abort();
      history = [];
      fill(talk);
      fill(detail);
      say(served, "");
      say(figures, " ");
    },
  };
}

/** @param {any} clock */
function summary(clock) {
  const spent = clock.last - clock.first;
  const parts = [
    clock.first && `first token ${format.seconds((clock.first - clock.began) / 1000)}`,
    clock.count > 1 && spent > 0 && `${format.rate((clock.count - 1) / (spent / 1000))} tokens/s`,
    clock.count && `${clock.count} tokens`,
    clock.why && `ended by ${clock.why}`,
  ];
  return parts.filter(Boolean).join(" · ");
}

/** @param {any} logprobs @returns {Token[]} */
function chatTokens(logprobs) {
  return (logprobs?.content ?? []).map((/** @type {any} */ one) => ({
    text: one.token,
    logprob: one.logprob,
    others: one.top_logprobs ?? [],
  }));
}

/** @param {any} logprobs @returns {Token[]} */
function textTokens(logprobs) {
  return (logprobs?.tokens ?? []).map((/** @type {string} */ text, /** @type {number} */ i) => ({
    text,
    logprob: logprobs.token_logprobs[i],
    others: Object.entries(logprobs.top_logprobs?.[i] ?? {}).map(([token, logprob]) => ({
      token,
      logprob: Number(logprob),
    })),
  }));
}

/**
 * An answer as a line of tokens: the pointer, or the arrow keys, tell of each in `detail`.
 * @param {HTMLElement} detail
 */
function tokenLine(detail) {
  const node = h("div", {
    class: "said assistant",
    tabindex: 0,
    role: "group",
    "aria-label": "Answer; arrow keys go from token to token",
  });
  /** @type {Map<Node, Token>} */
  const known = new Map();
  /** @type {Element | null} */
  let current = null;
  let all = "";

  /** @param {Element | null | undefined} span */
  function tell(span) {
    const token = span && known.get(span);
    if (!span || !token || token.logprob === null) return;
    current?.classList.remove("current");
    current = span;
    span.classList.add("current");
    const likely = (/** @type {number} */ logprob) => format.percent(Math.exp(logprob));
    fill(
      detail,
      h("code", {}, visible(token.text)),
      ` ${likely(token.logprob)}`,
      h("span", { class: "muted" }, ` logprob ${token.logprob.toFixed(3)}`),
      token.others.length
        ? [
            " · ",
            token.others.map((one) =>
              h("span", { class: "other" }, h("code", {}, visible(one.token)), ` ${likely(one.logprob)}`),
            ),
          ]
        : null,
    );
  }
  node.addEventListener("pointerover", (/** @type {any} */ event) => tell(event.target));
  node.addEventListener("focus", () => tell(current ?? node.querySelector(".token")));
  node.addEventListener("keydown", (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
    event.preventDefault();
    const next = event.key === "ArrowRight" ? current?.nextElementSibling : current?.previousElementSibling;
    tell(current ? next : node.querySelector(".token"));
  });
  return {
    node,
    text: () => all,
    /** @param {string} text @param {Token[]} tokens those that make up the text, or none */
    add(text, tokens) {
      all += text;
      if (!tokens.length) return node.append(text);
      const whole = tokens.map((one) => one.text).join("") === text;
      if (!whole) {
        // some hold a part of a character, or are of no text: they stand together
        const least = Math.min(...tokens.map((one) => one.logprob ?? 0));
        tokens = [{ text, logprob: least, others: tokens.length === 1 ? tokens[0].others : [] }];
      }
      for (const token of tokens) {
        if (!token.text) continue;
        const span = h(
          "span",
          { class: `token level-${token.logprob === null ? 0 : level(token.logprob)}` },
          token.text,
        );
        known.set(span, token);
        node.append(span);
      }
    },
  };
}
