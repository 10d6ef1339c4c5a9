// The board's pages follow the runs: they ask again every two seconds, or after 20 times as long as the last answer took,
// and change only what is new.

const PAUSE = 2000, SHARE = 20, filter = document.querySelector("#filter");

function applyFilter() {
  if (!filter) return;
  const words = filter.value.toLowerCase().split(/\s+/), rows = [...document.querySelectorAll("[data-part=runs] tr")];
  const text = row => (row.textContent + " " + (row.querySelector("[title]")?.title ?? "")).toLowerCase();
  for (const row of rows) row.hidden = !words.every(word => text(row).includes(word));
  const left = rows.filter(row => !row.hidden).length;
  document.querySelector("#count").textContent = left === rows.length ? `${left} runs` : `${left} of ${rows.length} runs`;
}

function replace(old, made) {
  const focused = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  old.replaceChildren(...made.childNodes);
  if (focused) [...old.querySelectorAll("a")].find(link => link.getAttribute("href") === focused)?.focus();
}

async function follow(address, change) {
  let last = null, pause = PAUSE;
  for (;;) {
    await new Promise(done => setTimeout(done, pause));
    if (document.hidden) continue;
    const began = performance.now();
    let gone = true;
    try {
      const response = await fetch(address), text = await response.text();
      gone = false;
      if (response.ok && text !== last) { change(text); last = text; }
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;  // fetch's, where the server is away
    }
    document.querySelector("#gone").hidden = !gone;
    pause = Math.max(PAUSE, SHARE * (performance.now() - began));
  }
}

function changeRows(text) {
  const made = document.createElement("template");
  made.innerHTML = text;
  for (const part of made.content.querySelectorAll("[data-part]")) {
    const old = document.querySelector(`[data-part=${part.dataset.part}]`);
    if (old.innerHTML !== part.innerHTML) replace(old, part);
  }
  document.querySelectorAll("table.sortable").forEach(table => table.sortAgain());
  applyFilter();
}

function changeRun(text) {
  const { status, panels, state } = JSON.parse(text), made = document.createElement("template");
  if (state !== document.body.dataset.state && document.body.dataset.state === "training") location.reload();  // its report and its pages are there now
  made.innerHTML = status;
  replace(document.querySelector("#status"), made.content);
  document.querySelector(".curves").update(panels);
}

filter?.addEventListener("input", applyFilter);
applyFilter();
if (document.body.dataset.rows) follow(document.body.dataset.rows, changeRows);
if (document.body.dataset.live) follow(document.body.dataset.live, changeRun);
