"use strict";
// The page is whole without this: it keeps it fresh, and lets an operator act. What is shown always comes from the
// server's own HTML, so that nothing from outside is ever made into markup here.

const LIVE = ["sentence", "now", "fills", "today", "images", "stores", "hooks", "audit", "events", "foot"];
const OLD = 10000; // milliseconds until the page asks by itself: a proxy may hold events back, and "2m ago" ages as well
const HERE = location.origin + document.body.dataset.prefix; // not with the user and password that a bookmark may name: fetch refuses to take those

const dialog = document.getElementById("confirm");
const outcome = document.getElementById("outcome");
const token = document.getElementById("token");
let loading = false;
let asked = Date.now();
let wanted = null;

document.documentElement.classList.add("scripted");

async function refresh() {
  if (loading || document.hidden) return;
  loading = true;
  asked = Date.now();
  try {
    const answer = await fetch(`${HERE}/`, { cache: "no-store", signal: AbortSignal.timeout(OLD) });
    if (!answer.ok) return lose(`The mirror answered ${answer.status}`);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.title = page.title;
    for (const id of LIVE) replace(id, page);
  } catch (error) {
    lose("The mirror does not answer");
  } finally {
    loading = false;
  }
}

function lose(words) {
  const sentence = document.getElementById("sentence");
  const said = `${words}. What is below was so at ${document.querySelector("#foot time").textContent}.`;
  document.title = `${words} · pps-mirror`;
  if (sentence.textContent !== said) sentence.textContent = said;
  sentence.className = "bad";
}

function replace(id, page) {
  const before = document.getElementById(id);
  const after = page.getElementById(id);
  if (before.innerHTML === after.innerHTML && before.className === after.className) return;
  if (before.querySelector(":active")) return; // it is being pressed: the press would be lost
  const focused = before.contains(document.activeElement) ? key(document.activeElement) : null;
  const scrolled = before.querySelector(".scroll")?.scrollLeft;
  before.className = after.className;
  before.replaceChildren(...after.childNodes);
  if (scrolled) before.querySelector(".scroll").scrollLeft = scrolled;
  if (focused) focusOn(focused);
}

// What stays the same of something that can have the focus when it is replaced: Unpin comes in the place of Pin.
function key(element) {
  return (element.dataset.path ?? element.href ?? element.className).replace(/\/unpin$/, "/pin");
}

function focusOn(name) {
  const all = [...document.querySelectorAll("main .act, main .scroll, footer a")];
  (all.find((each) => key(each) === name) ?? document.getElementById("main")).focus({ preventScroll: true });
}

document.addEventListener("click", (event) => {
  const button = event.target.closest(".act");
  if (button === null) return;
  wanted = { method: button.dataset.method, path: button.dataset.path, key: key(button) };
  document.getElementById("question").textContent = button.dataset.question.replace(" ?", "?");
  document.getElementById("token-row").hidden = document.body.dataset.needsToken !== "yes";
  document.getElementById("do").hidden = false;
  document.getElementById("cancel").textContent = "Cancel";
  outcome.textContent = "";
  dialog.showModal();
});

dialog.addEventListener("close", () => focusOn(wanted.key));
document.getElementById("cancel").addEventListener("click", () => dialog.close());
document.getElementById("do").addEventListener("click", act);
token.addEventListener("keydown", (event) => {
  if (event.key === "Enter") act();
});

async function act() {
  const headers = { "X-Requested-With": "pps-mirror" };
  if (token.value) headers.Authorization = `Bearer ${token.value}`;
  const credentials = token.value ? "omit" : "same-origin"; // or a wrong token would have the browser forget its login
  outcome.textContent = "…";
  try {
    const answer = await fetch(HERE + wanted.path, { method: wanted.method, headers, credentials });
    const said = await answer.json();
    outcome.textContent = said.message;
    if (answer.ok) {
      document.getElementById("do").hidden = true;
      document.getElementById("cancel").textContent = "Close";
      document.getElementById("cancel").focus();
    }
  } catch (error) {
    outcome.textContent = "The mirror did not answer.";
  }
  refresh();
}

function watch() {
  const source = new EventSource(`${HERE}/api/events`);
  source.addEventListener("status", refresh);
  source.addEventListener("error", () => {
    refresh(); // it says when nobody answers; the browser tries to connect again, unless it was told not to
    if (source.readyState === EventSource.CLOSED) setTimeout(watch, OLD);
  });
}

document.addEventListener("visibilitychange", refresh);
setInterval(() => {
  if (Date.now() - asked >= OLD) refresh();
}, 1000);
watch();
