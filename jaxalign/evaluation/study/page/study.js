// The rater's page. Texts of models are only ever set as text; what was answered is kept until the server has it.

import { ask, askUntilAnswered, link, newId, remembered, store, stored } from "./server.js";

const element = (id) => document.getElementById(id);
const SCREENS = ["message", "welcome", "comparison", "finished"];

const tab = remembered(sessionStorage, "study-tab", newId);
let study = null; // title, questions ...: once
let state = null; // { done, total, previous, comparison }: what the server said last
let busy = false; // something is on its way: keys and buttons wait
let clock = null; // how long this comparison has been looked at

// One thing at a time: what is pressed meanwhile is not meant for what comes next.
async function alone(action) {
  if (busy) return;
  busy = true;
  element("comparison").setAttribute("aria-busy", "true");
  try {
    await action();
  } finally {
    busy = false;
    element("comparison").removeAttribute("aria-busy");
  }
}

const waiting = () => say("Waiting for the study's server …");
const goOn = () => alone(async () => receive(await askUntilAnswered("/api/next", { tab }, waiting)));

const goBack = () => alone(async () => {
  if (state.previous === null) return;
  receive(await askUntilAnswered(`/api/comparisons/${state.previous}`, undefined, waiting));
});

const save = () => alone(async () => {
  const missing = groups().find((group) => !chosen(group));
  if (missing) {
    point(missing);
    missing.focus();
    say(`Please answer: ${missing.querySelector(".question").textContent}`);
    return;
  }
  const comparison = state.comparison;
  const answer = {
    id: newId(),
    tab,
    position: comparison.position,
    preferences: Object.fromEntries(groups().map((group) => [group.dataset.axis, chosen(group)])),
    seconds: Math.round(clock.seconds() * 10) / 10,
    comment: element("comment").value,
    revises: comparison.answer ? comparison.answer.id : null,
  };
  store(sessionStorage, "study-unsaved", JSON.stringify({ credential: link.credential, answer }));
  await deliver(answer);
});

async function deliver(answer) {
  const unsaved = () => say("Not saved yet: the server does not answer. Trying again …");
  const { status, data } = await askUntilAnswered("/api/answers", answer, unsaved);
  store(sessionStorage, "study-unsaved", null);
  if (status === 409 || (status === 400 && state === null)) {
    receive(await askUntilAnswered("/api/next", { tab }, waiting));
    say(`Not saved: ${data.error}.`);
  } else if (status === 400) {
    say(`Not saved: ${data.error}.`);
  } else {
    receive({ status, data });
  }
}

function receive({ status, data }) {
  if (status !== 200) {
    announce("The study cannot go on", sentence(data.error));
    return;
  }
  state = data;
  say("");
  if (state.comparison) showComparison();
  else showFinished();
}

// ----------------------------------------------------------------------------------------------------- the screens

function screen(name) {
  for (const id of SCREENS) element(id).hidden = id !== name;
  element("skip").hidden = name !== "comparison";
  scrollTo(0, 0);
}

function say(text, quietly = false) {
  const status = element("status");
  status.classList.toggle("quiet-status", quietly);
  status.textContent = text;
}

const sentence = (line) => `${line[0].toUpperCase()}${line.slice(1)}.`;

function announce(title, text) {
  element("message-title").textContent = title;
  element("message-text").textContent = text;
  screen("message");
  element("message-title").focus();
}

function showProgress() {
  element("meter").hidden = false;
  element("bar").max = Math.max(state.total, 1);
  element("bar").value = state.done;
  element("count").textContent = `${state.done} of ${state.total} answered`;
}

function paragraphs(node, text) {
  node.replaceChildren(
    ...text.trim().split(/\n\s*\n/).map((part) => {
      const paragraph = document.createElement("p");
      paragraph.textContent = part;
      return paragraph;
    }),
  );
}

function textNode(text) {
  const node = document.createElement("div");
  node.className = "text";
  node.dir = "auto";
  node.textContent = text.trim();
  return node;
}

// A text, or the turns of a dialogue.
function fill(node, content) {
  if (typeof content === "string") {
    node.replaceChildren(textNode(content));
    return;
  }
  const names = { user: "Person", assistant: "Assistant", system: "Setting" };
  const alone = content.length === 1 && content[0].role === "assistant"; // an answer needs no "Assistant" above it
  node.replaceChildren(
    ...content.map((message) => {
      if (alone) return textNode(message.content);
      const turn = document.createElement("div");
      turn.className = message.role === "assistant" ? "turn assistant" : "turn";
      const role = document.createElement("p");
      role.className = "role";
      role.textContent = Object.hasOwn(names, message.role) ? names[message.role] : message.role;
      turn.append(role, textNode(message.content));
      return turn;
    }),
  );
}

function showComparison() {
  const { position, prompt, first, second, answer } = state.comparison;
  showProgress();
  element("prompt").hidden = prompt.length === 0;
  element("prompt-label").textContent = typeof prompt === "string" ? "Text" : "Conversation";
  fill(element("prompt-content"), prompt);
  fill(element("first-content"), first);
  fill(element("second-content"), second);
  for (const group of groups()) {
    for (const input of group.querySelectorAll("input")) {
      input.checked = answer !== null && answer.preferences[group.dataset.axis] === input.value;
    }
  }
  element("comment").value = answer ? answer.comment : "";
  element("save-label").textContent = answer ? "Save the change" : "Save";
  element("back").disabled = state.previous === null;
  element("comparison").dataset.position = position;
  element("heading").textContent = answer
    ? "A comparison that you have answered; you may change it"
    : `Comparison ${state.done + 1} of ${state.total}`;
  screen("comparison");
  point(groups().find((group) => !chosen(group)) ?? groups()[0]);
  element("heading").focus({ preventScroll: true });
  if (answer) say("You have answered this one: change it and save, or save it as it is.");
  clock = stopwatch();
}

function showFinished() {
  showProgress();
  const all = state.done === 1 ? "the only comparison" : `all ${state.done} comparisons`;
  element("finished-title").textContent = `Thank you, ${study.rater}.`;
  element("finished-text").textContent = state.done === 0
    ? "There is nothing left to compare."
    : `You have answered ${all}; every answer is stored.`;
  element("revise").hidden = state.previous === null;
  screen("finished");
  element("finished-title").focus();
}

function showWelcome() {
  element("welcome-title").textContent = study.rater ? `Welcome, ${study.rater}.` : study.title;
  element("join").hidden = Boolean(study.rater);
  element("start").hidden = !study.rater;
  screen("welcome");
  if (study.rater) {
    element("begin").focus({ preventScroll: true });
    return;
  }
  const before = JSON.parse(stored(localStorage, "study-rater") ?? "null");
  element("return").hidden = before === null;
  element("return").textContent = before ? `Go on as ${before.name}` : "";
  element("return").onclick = () => enter(before.key);
  element("name").focus({ preventScroll: true });
}

// Seconds that this page was in sight.
function stopwatch() {
  const start = performance.now();
  let hidden = 0;
  let since = document.hidden ? start : null;
  return {
    change() {
      if (document.hidden) since ??= performance.now();
      else if (since !== null) {
        hidden += performance.now() - since;
        since = null;
      }
    },
    seconds: () => (performance.now() - start - hidden - (since === null ? 0 : performance.now() - since)) / 1000,
  };
}

// --------------------------------------------------------------------------------------------------- the questions

const groups = () => [...element("axes").children];
const WORDS = { first: "Response 1", tie: "No difference", second: "Response 2" };
const chosen = (group) => group.querySelector("input:checked")?.value;

function point(group) {
  for (const other of groups()) other.classList.toggle("current", other === group);
}

function makeQuestions() {
  element("axes").replaceChildren(
    ...study.axes.map((axis, index) => {
      const group = element("axis-template").content.firstElementChild.cloneNode(true);
      const question = group.querySelector(".question");
      const hint = group.querySelector(".hint");
      group.dataset.axis = axis.name;
      question.id = `question-${index}`;
      question.textContent = axis.question;
      hint.id = `hint-${index}`;
      hint.textContent = axis.hint;
      group.setAttribute("aria-labelledby", question.id);
      if (axis.hint) group.setAttribute("aria-describedby", hint.id);
      for (const input of group.querySelectorAll("input")) {
        input.name = `axis-${index}`;
        if (input.value === "tie" && !study.ties) input.closest("label").remove();
      }
      group.addEventListener("focusin", () => point(group));
      return group;
    }),
  );
  element("tie-key").hidden = !study.ties;
  element("comment").maxLength = study.max_comment;
}

// Answer the question that is pointed at, and point at the next one that has no answer.
function answerByKey(word) {
  const group = groups().find((other) => other.classList.contains("current"));
  const input = group?.querySelector(`input[value="${word}"]`);
  if (!input) return;
  input.checked = true;
  const rest = groups().slice(groups().indexOf(group) + 1).concat(groups());
  const next = rest.find((other) => !chosen(other));
  say(`${group.querySelector(".question").textContent} ${WORDS[word]}`, true);
  if (next) {
    point(next);
    next.focus({ preventScroll: true }); // the question, not one of its answers: neither may stand out
  } else {
    element("save").focus({ preventScroll: true });
  }
}

const KEYS = {
  1: () => answerByKey("first"),
  ArrowLeft: () => answerByKey("first"),
  2: () => answerByKey("second"),
  ArrowRight: () => answerByKey("second"),
  t: () => answerByKey("tie"),
  b: () => goBack(),
  c: () => element("comment").focus(),
  Enter: () => save(),
};

function pressed(event) {
  if (event.defaultPrevented || event.isComposing) return;
  const on = document.activeElement;
  if (on === element("comment")) {
    if (event.key === "Escape") groups().find((group) => group.classList.contains("current"))?.focus();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) save();
    return;
  }
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) {
    if (event.repeat && event.key === "Enter") event.preventDefault(); // a key held down is one answer
    return;
  }
  const shown = SCREENS.find((id) => !element(id).hidden);
  if (shown === "finished" && element("keys").checked && event.key.toLowerCase() === "b") goBack();
  if (shown !== "comparison") return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!Object.hasOwn(KEYS, key)) return;
  // Enter does what the button under it does, and arrows in a group of answers are the browser's own.
  if (key === "Enter" && (on?.tagName === "BUTTON" || on?.tagName === "SUMMARY" || on?.tagName === "A")) return;
  if (key.startsWith("Arrow") && on?.type === "radio" && chosen(on.closest(".axis"))) return;
  if (key !== "Enter" && !element("keys").checked) return;
  event.preventDefault();
  if (!busy) KEYS[key]();
}

// ------------------------------------------------------------------------------------------------------- beginning

function enter(key) {
  history.replaceState(null, "", `#${encodeURIComponent(key)}`);
  link.credential = key;
  open();
}

async function join(event) {
  event.preventDefault();
  const { status, data } = await ask("/api/join", { name: element("name").value });
  if (status !== 200) {
    say(sentence(data.error));
    element("name").focus();
    return;
  }
  say("");
  store(localStorage, "study-rater", JSON.stringify({ key: data.key, name: element("name").value.trim() }));
  enter(data.key);
}

async function open() {
  const { status, data } = await askUntilAnswered("/api/study", undefined, waiting);
  say("");
  if (status !== 200) {
    const before = JSON.parse(stored(localStorage, "study-rater") ?? "null");
    if (before?.key === link.credential) store(localStorage, "study-rater", null);
    announce("This link does not open the study", sentence(data.error));
    return;
  }
  study = data;
  document.title = study.title;
  element("title").textContent = study.title;
  element("who").textContent = study.rater ?? "";
  for (const node of document.querySelectorAll("[data-instructions]")) paragraphs(node, study.instructions);
  makeQuestions();
  const unsaved = JSON.parse(stored(sessionStorage, "study-unsaved") ?? "null");
  if (study.rater && unsaved?.credential === link.credential) await alone(() => deliver(unsaved.answer));
  else if (study.rater && study.done > 0) await goOn();
  else showWelcome();
}

element("join").addEventListener("submit", join);
element("begin").addEventListener("click", goOn);
element("back").addEventListener("click", goBack);
element("revise").addEventListener("click", goBack);
element("questions").addEventListener("submit", (event) => {
  event.preventDefault();
  save();
});
element("keys").checked = stored(localStorage, "study-keys") !== "off";
const showKeys = () => document.body.classList.toggle("keys-off", !element("keys").checked);
element("keys").addEventListener("change", () => {
  store(localStorage, "study-keys", element("keys").checked ? null : "off");
  showKeys();
});
showKeys();
addEventListener("keydown", pressed);
addEventListener("hashchange", () => location.reload());
document.addEventListener("visibilitychange", () => clock?.change());
addEventListener("pagehide", () => {
  if (study?.rater) ask("/api/leave", { tab }, { keepalive: true });
});
addEventListener("pageshow", (event) => {
  if (event.persisted && study?.rater && !busy) goOn();
});
open();
