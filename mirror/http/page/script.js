"use strict";
// The page is whole without this: it keeps it fresh, and lets an operator act. What is shown always comes from the
// server's own HTML, so that nothing from outside is ever made into markup here.

const dialog = document.getElementById("confirm");
const outcome = document.getElementById("outcome");
const token = document.getElementById("token");
let loading = false;
let wanted = null;

document.documentElement.classList.add("scripted");

async function refresh() {
  if (loading || document.hidden) return;
  loading = true;
  try {
    const answer = await fetch("/", { cache: "no-store" });
    if (!answer.ok) return;
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.title = page.title;
    for (const id of ["sentence", "now", "fills", "today", "images", "stores", "events"]) replace(id, page);
    document.querySelector("footer").replaceWith(page.querySelector("footer"));
  } catch (error) {
    document.title = "Not reachable · pps-mirror";
  } finally {
    loading = false;
  }
}

function replace(id, page) {
  const before = document.getElementById(id);
  const after = page.getElementById(id);
  if (before.innerHTML === after.innerHTML && before.className === after.className) return;
  const focused = before.contains(document.activeElement) ? document.activeElement.dataset.path : null;
  const scrolled = before.querySelector(".scroll")?.scrollLeft;
  before.className = after.className;
  before.replaceChildren(...after.childNodes);
  if (scrolled) before.querySelector(".scroll").scrollLeft = scrolled;
  if (focused) [...before.querySelectorAll(".act")].find((each) => each.dataset.path === focused)?.focus();
}

document.addEventListener("click", (event) => {
  const button = event.target.closest(".act");
  if (button === null) return;
  wanted = { method: button.dataset.method, path: button.dataset.path };
  document.getElementById("question").textContent = button.dataset.question.replace(" ?", "?");
  document.getElementById("token-row").hidden = document.body.dataset.needsToken !== "yes";
  document.getElementById("do").hidden = false;
  document.getElementById("cancel").textContent = "Cancel";
  outcome.textContent = "";
  dialog.showModal();
});

document.getElementById("cancel").addEventListener("click", () => dialog.close());
document.getElementById("do").addEventListener("click", act);
token.addEventListener("keydown", (event) => {
  if (event.key === "Enter") act();
});

async function act() {
  const headers = { "X-Requested-With": "pps-mirror" };
  if (token.value) headers.Authorization = `Bearer ${token.value}`;
  outcome.textContent = "…";
  try {
    const answer = await fetch(wanted.path, { method: wanted.method, headers });
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
  const source = new EventSource("/api/events");
  source.addEventListener("status", refresh);
  source.addEventListener("error", () => {
    if (source.readyState === EventSource.CLOSED) setInterval(refresh, 5000);
  });
}

document.addEventListener("visibilitychange", refresh);
watch();
