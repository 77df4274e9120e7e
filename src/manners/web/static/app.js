// The page: compare models, vote on their replies, read the results. No library, and no address but this server's.

const $ = (id) => document.getElementById(id);
const state = { models: [], chats: {}, running: null, ballot: null, busy: false, drawn: "" };

// Elements are made of text, never of markup: replies are shown as they are.
function element(tag, options = {}, ...children) {
  const { dataset, on, ...rest } = options;
  const made = Object.assign(document.createElement(tag), rest);
  Object.assign(made.dataset, dataset);
  for (const [event, handler] of Object.entries(on || {})) made.addEventListener(event, handler);
  made.append(...children);
  return made;
}

function say(text, isError = false) {
  $("message").textContent = text;
  $("message").className = isError ? "error" : "";
}

async function call(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer: is it still running?");
  }
  if (!response.ok) throw new Error(await refusal(response));
  return response;
}

async function refusal(response) {
  const { detail } = await response.json().catch(() => ({}));
  return typeof detail === "string" ? detail : `the server refused this (${response.status})`;
}

const post = async (path, body) => (await call(path, body)).json();
const annotator = () => $("annotator").value.trim();

// Run what a button asks for, and show its mistake where everybody looks.
async function attempt(action) {
  try {
    say("");
    await action();
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
  }
}

// --- Tabs ---

const tabs = ["compare", "vote", "results"];

function show(name) {
  for (const tab of tabs) {
    $(tab).hidden = tab !== name;
    $(`tab-${tab}`).setAttribute("aria-selected", String(tab === name));
  }
  if (name === "vote" && !state.ballot) attempt(() => nextBallot());
  if (name === "results") attempt(showResults);
}

// --- Compare ---

function shownModels() {
  return state.models.filter((name) => state.chats[name].check.checked);
}

function makeColumns() {
  for (const name of state.models) {
    const check = element("input", { type: "checkbox", checked: true, on: { change: drawColumns } });
    $("columns").append(element("label", {}, check, name));
    state.chats[name] = { turns: [], check, card: element("section", { className: "card" }) };
  }
  drawColumns();
}

function drawColumns() {
  $("chats").replaceChildren(...shownModels().map((name) => state.chats[name].card));
  state.models.forEach(drawChat);
}

function drawChat(name) {
  const chat = state.chats[name];
  const parts = [element("h2", {}, name + (name === state.base ? " (base)" : ""))];
  chat.turns.forEach((turn, i) => {
    parts.push(turn.element = element("div", { className: `turn ${turn.role}` }));
    drawText(turn);
    if (turn.error) parts.push(element("div", { className: "under error" }, turn.error));
    if (turn.role === "assistant" && turn.done) parts.push(underReply(name, conversation(chat.turns.slice(0, i)), turn));
  });
  chat.card.replaceChildren(...parts);
}

// What the model and the votes are told of a chat: no exchange to which there was no reply.
function conversation(turns) {
  const kept = [];
  for (const { role, content } of turns) {
    if (role === "assistant" && !content) kept.pop();
    else kept.push({ role, content });
  }
  return kept;
}

function drawText(turn) {
  if (!turn.credit?.words) return turn.element.replaceChildren(turn.content);
  const { words, credits } = turn.credit;
  const largest = Math.max(...credits.map(Math.abs), 1e-9);
  const spans = words.flatMap((word, i) => {
    const strength = Math.round((60 * Math.abs(credits[i])) / largest) / 100;
    const span = element("span", { title: `${credits[i] >= 0 ? "+" : ""}${credits[i].toFixed(2)}` }, word);
    span.style.backgroundColor = `rgb(var(--${credits[i] >= 0 ? "earned" : "lost"}) / ${strength})`;
    return [span, " "];
  });
  turn.element.replaceChildren(...spans);
}

function underReply(name, messages, turn) {
  const reply = { text: turn.content, model: name, ...turn.options };
  const label = (verdict, edited) => attempt(async () => {
    const body = { annotator: annotator(), verdict, messages, system: turn.system, reply, edited };
    const { mine } = await post("/api/label", body);
    turn.said = verdict === "edit" ? turn.said : verdict;
    drawChat(name);
    say(`counted: ${mine} ${mine === 1 ? "vote" : "votes"} of yours`);
  });
  const button = (text, title, click) =>
    element("button", { type: "button", title, ariaPressed: turn.said && String(turn.said === text), on: { click } }, text);
  const parts = [
    button("copy", "copy the reply", () => attempt(() => navigator.clipboard.writeText(turn.content))),
    button("good", "a good reply", () => label("good")),
    button("bad", "a bad reply", () => label("bad")),
    button("edit", "write what it should have said", () => edit(turn.element, turn.content, (text) => label("edit", text))),
  ];
  if (state.hasReward || turn.category) {
    const score = turn.credit ? `reward ${turn.credit.score.toFixed(2)}` : "score";
    parts.push(button(score, "the judge's verdict, and the words that earned or lost reward", () => attempt(async () => {
      const body = { messages, system: turn.system, reply: turn.content, category: turn.category };
      Object.assign(turn, await post("/api/score", body));
      drawChat(name);
    })));
  }
  if (turn.verdict) {
    const failed = Object.entries(turn.verdict.parts).filter(([, passed]) => !passed).map(([part]) => part);
    const why = failed.length ? `fails: ${failed.join(", ")}` : "fits";
    parts.push(element("span", {}, `${turn.verdict.style}, ${why}`));
  }
  return element("div", { className: "under" }, ...parts);
}

// A text to write over: Ctrl+Enter keeps it, Escape leaves everything as it was.
function edit(place, text, keep) {
  const area = element("textarea", { rows: 4, value: text });
  const end = () => editor.replaceWith(place);
  const done = () => { end(); keep(area.value); };
  area.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Escape") end();
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) done();
  });
  const buttons = [["Keep", done], ["Cancel", end]];
  const editor = element("div", {}, area, element("div", { className: "actions" },
    ...buttons.map(([name, click]) => element("button", { type: "button", on: { click } }, name))));
  place.replaceWith(editor);
  area.focus();
}

async function sendAll(text) {
  for (const name of shownModels()) state.chats[name].turns.push({ role: "user", content: text });
  await replyAll();
}

async function replyAll() {
  state.running = new AbortController();
  setRunning(true);
  try {
    await Promise.all(shownModels().map(streamReply));
  } finally {
    state.running = null;
    setRunning(false);
  }
}

function setRunning(running) {
  for (const id of ["retry", "undo", "clear", "save"]) $(id).disabled = running;
  $("prompt-form").querySelector(".main").disabled = running;
  $("stop").disabled = !running;
}

async function streamReply(name) {
  const { turns } = state.chats[name];
  if (turns.at(-1)?.role !== "user") return;
  const messages = conversation(turns);
  const scale = name === state.base ? 0 : Number($("scale").value);
  const temperature = $("temperature").value === "" ? state.temperature : Number($("temperature").value);
  const options = { temperature, scale };
  const turn = { role: "assistant", content: "", options, system: $("system").value, category: $("category").value };
  turns.push(turn);
  drawChat(name);
  try {
    const body = { model: name, messages, system: turn.system, ...options };
    const response = await fetch("/api/reply", {
      method: "POST", headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body), signal: state.running.signal,
    });
    if (!response.ok) throw new Error(await refusal(response));
    for await (const line of lines(response.body)) {
      if ("seed" in line) turn.options.seed = line.seed;
      if (line.error) turn.error = line.error;
      if (line.text) turn.content += line.text;
      turn.element.textContent = turn.content;
    }
  } catch (error) {
    turn.error = error.name === "AbortError" ? "(stopped)" : error.message;
  }
  if (!turn.content && !turn.error) turn.error = "(an empty reply)";
  turn.done = !turn.error; // half a reply is not voted on
  drawChat(name);
}

async function* lines(stream) {
  let rest = "";
  for await (const text of stream.pipeThrough(new TextDecoderStream())) {
    const parts = (rest + text).split("\n");
    rest = parts.pop();
    for (const part of parts) if (part) yield JSON.parse(part);
  }
}

// Without its last exchange, or with `onlyReply` without the reply alone.
function dropLast(name, onlyReply) {
  const { turns } = state.chats[name];
  if (turns.at(-1)?.role === "assistant") turns.pop();
  if (!onlyReply) turns.pop();
  drawChat(name);
}

function saveChats() {
  const rows = shownModels().map((name) => {
    const turns = conversation(state.chats[name].turns);
    const system = $("system").value.trim();
    return { messages: system ? [{ role: "system", content: system }, ...turns] : turns, model: name };
  }).filter((row) => row.messages.length > 1);
  if (!rows.length) return say("there is no reply to save yet", true);
  const blob = new Blob(rows.map((row) => JSON.stringify(row) + "\n"), { type: "application/jsonl" });
  const link = element("a", { href: URL.createObjectURL(blob), download: "chats.jsonl" });
  link.click();
  URL.revokeObjectURL(link.href);
}

// --- Vote ---

const pair = () => state.pairs[$("pair").selectedIndex];

function showCounts({ votes, mine }) {
  $("counter").textContent = `${mine} of yours, ${votes} in all`;
}

async function nextBallot(typed = "") {
  state.ballot = null;
  setVoting(false);
  $("ballot").replaceChildren(element("p", { className: "hint" }, "both reply …"));
  if (!typed && !state.prompts) {
    return $("ballot").replaceChildren(element("p", {}, "Type a prompt, and ask."));
  }
  let found;
  try {
    found = await post("/api/ballot", { annotator: annotator(), pair: pair(), typed });
  } catch (error) {
    $("ballot").replaceChildren();
    $("typed").value ||= typed;
    throw error;
  }
  showCounts(found);
  if (!found.ballot) {
    const why = typed ? "Both gave the same reply." : `You have judged all ${state.prompts} ${state.source} prompts.`;
    return $("ballot").replaceChildren(element("p", {}, why));
  }
  state.ballot = found.ballot;
  const turns = found.ballot.messages.map((m) => element("div", { className: `turn ${m.role}` }, m.content));
  const replies = found.ballot.replies.map((text, side) => {
    const place = element("div", { className: "turn", id: `reply-${side}` }, text || "(an empty reply)");
    const change = element("button", { type: "button", title: "write what it should have said", on: { click: () => editReply(side) } }, "edit");
    return element("section", { className: "card" }, element("h2", {}, side ? "right" : "left"), place,
      element("div", { className: "under" }, change));
  });
  $("ballot").replaceChildren(...turns, element("div", { className: "columns" }, ...replies));
  setVoting(true);
}

function setVoting(possible) {
  document.querySelectorAll("[data-verdict]").forEach((button) => { button.disabled = !possible; });
}

async function castVote(verdict, more = {}) {
  if (!state.ballot || state.busy) return;
  if ($("ballot").querySelector("textarea")) throw new Error("a reply is being edited: keep it, or cancel");
  state.busy = true;
  try {
    showCounts(await post("/api/vote", { ballot: state.ballot.id, verdict, annotator: annotator(), ...more }));
  } finally {
    state.busy = false;
  }
  await nextBallot();
}

function editReply(side) {
  if (!state.ballot || $(`reply-${side}`) === null) return;
  edit($(`reply-${side}`), state.ballot.replies[side],
    (text) => attempt(() => castVote("edit", { side, edited: text })));
}

async function undoVote() {
  const found = await post("/api/undo", { annotator: annotator(), pair: pair() });
  showCounts(found);
  await nextBallot();
  say("your last vote is taken back");
}

const keys = { 1: "first", 2: "second", 3: "tie", 4: "both_bad", s: "skip" };

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, textarea, select");
  if (typing || $("vote").hidden || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const key = event.key.toLowerCase();
  if (key in keys) attempt(() => castVote(keys[key]));
  else if (key === "u") attempt(undoVote);
  else if (key === "e") { event.preventDefault(); editReply(Number(event.shiftKey)); }
});

// --- Results ---

async function showResults() {
  const { markdown } = await (await call("/api/results")).json();
  $("tables").replaceChildren(...fromMarkdown(markdown));
}

// Tables and lines, which is all that the results have.
function fromMarkdown(markdown) {
  const parts = [];
  for (const block of markdown.trim().split("\n\n")) {
    const rows = block.split("\n").filter((line) => line.startsWith("|") && !line.startsWith("| ---"));
    if (rows.length) {
      const cells = rows.map((row) => row.split("|").slice(1, -1).map((cell) => cell.trim()));
      const table = element("table", {}, ...cells.map((row, i) =>
        element("tr", {}, ...row.map((cell, j) => element(i ? "td" : "th", { dataset: { heading: cells[0][j] } }, cell)))));
      parts.push(element("div", { className: "scroll" }, table));
    } else {
      parts.push(...block.split("\n").map((line) => element("p", {}, line || "No votes yet.")));
    }
  }
  return parts;
}

// --- Start ---

async function start() {
  const found = await (await call("/api/state")).json();
  Object.assign(state, found, { hasReward: found.has_reward });
  $("temperature").value = found.temperature;
  $("system").value = found.system;
  $("pair").append(...found.pairs.map(([a, b]) => element("option", {}, a === b ? `${a}, two samples` : `${a} and ${b}`)));
  $("command").textContent = found.commands.join("\n");
  $("category").append(...["", ...found.categories].map((name) => element("option", { value: name }, name.replaceAll("_", " "))));
  $("category").parentElement.hidden = !found.categories.length;
  $("from-data").hidden = !found.prompts;
  $("annotator").value = localStorage.getItem("annotator") || "";
  makeColumns();
}

for (const tab of tabs) $(`tab-${tab}`).addEventListener("click", () => show(tab));
$("annotator").addEventListener("change", () => {
  localStorage.setItem("annotator", annotator());
  if (!$("vote").hidden) attempt(() => nextBallot());
});
$("scale").addEventListener("input", () => { $("scale-value").textContent = $("scale").value; });
$("prompt-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("prompt").value.trim();
  if (!text || state.running) return;
  if (!shownModels().length) return say("tick a model under Settings first", true);
  $("prompt").value = "";
  attempt(() => sendAll(text));
});
$("prompt").addEventListener("input", () => { // the category is that of the prompt that was drawn
  if (state.drawn && $("prompt").value !== state.drawn) state.drawn = $("category").value = "";
});
$("category").addEventListener("change", () => {
  state.drawn = "";
  for (const name of state.models) {
    const last = state.chats[name].turns.at(-1);
    if (last?.role === "assistant") Object.assign(last, { category: $("category").value, verdict: null });
    drawChat(name);
  }
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("prompt-form").requestSubmit();
  }
});
$("from-data").addEventListener("click", () => attempt(async () => {
  const { messages, category } = await (await call("/api/prompt")).json();
  $("prompt").value = state.drawn = messages.at(-1).content;
  $("category").value = category;
  $("prompt").focus();
}));
$("stop").addEventListener("click", () => state.running?.abort());
$("retry").addEventListener("click", () => attempt(() => {
  shownModels().forEach((name) => dropLast(name, true));
  return replyAll();
}));
$("undo").addEventListener("click", () => {
  const asked = shownModels().map((name) => state.chats[name].turns.findLast(({ role }) => role === "user")?.content);
  shownModels().forEach((name) => dropLast(name, false));
  $("prompt").value ||= asked.find(Boolean) || "";
});
$("clear").addEventListener("click", () => state.models.forEach((name) => { state.chats[name].turns = []; drawChat(name); }));
$("save").addEventListener("click", saveChats);
$("pair").addEventListener("change", () => attempt(() => nextBallot()));
$("typed-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const typed = $("typed").value.trim();
  $("typed").value = "";
  attempt(() => nextBallot(typed));
});
$("vote-undo").addEventListener("click", () => attempt(undoVote));
for (const button of document.querySelectorAll("[data-verdict]")) {
  button.addEventListener("click", () => attempt(() => castVote(button.dataset.verdict)));
}
attempt(start);
