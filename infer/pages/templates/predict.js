"use strict";
// Posts each chosen image, lists what it is, and shows one of them in detail: classes, members, views, Grad-CAM.

const form = document.querySelector("#images"), note = document.querySelector("#note"), shown = document.querySelector("#shown");
const body = document.querySelector(".predictions tbody"), limit = Number(form.dataset.limit);
const percent = value => (100 * value).toFixed(1) + "%";

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

async function ask(file, query) {
  if (file.size > limit) throw new Error(`the image has more than ${limit} bytes`);
  const response = await fetch(form.dataset.post + query, { method: "POST", body: file });
  const said = await response.json();
  if (!response.ok) throw new Error(said.error);
  return said;
}

function best(probabilities, count) {
  return Object.entries(probabilities).sort((a, b) => b[1] - a[1]).slice(0, count);
}

function bars(probabilities) {
  const rows = best(probabilities, 5).map(([name, value]) => {
    const bar = element("i", {});
    bar.style.width = percent(value);
    return element("div", { className: "bar" }, element("span", {}, name), element("span", { className: "meter" }, bar), element("b", {}, percent(value)));
  });
  return element("div", { className: "bars" }, ...rows);
}

function gallery(title, pictures) {
  const figures = Object.entries(pictures).map(([name, uri]) =>
    element("figure", {}, element("img", { src: uri, alt: `${title}: ${name}` }), element("figcaption", {}, name)));
  return figures.length ? [element("h3", {}, title), element("div", { className: "pictures" }, ...figures)] : [];
}

// Members by what is left of their paths without the folder that all of them share.
function shortened(of) {
  const names = Object.keys(of), parts = names.map(name => name.split("/"));
  let shared = 0;
  while (names.length > 1 && parts.every(each => shared < each.length - 1 && each[shared] === parts[0][shared])) shared++;
  return Object.fromEntries(names.map((name, i) => [parts[i].slice(shared).join("/"), of[name]]));
}

let current = 0;
async function show(file, said) {
  const mine = ++current, pictures = element("div", {}, element("p", { className: "soft" }, "Making the pictures ..."));
  const rows = Object.entries(shortened(said.members)).map(([name, of]) => {
    const [[label, value]] = best(of, 1);
    return element("tr", {}, element("td", { className: "wide" }, name), element("td", { className: "text" }, label), element("td", {}, percent(value)));
  });
  const head = ["Member", "Class", "Probability"].map((text, i) => element("th", { className: i === 1 ? "text" : "" }, text));
  const alone = element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows));
  const members = rows.length > 1 ? [element("h3", {}, "Each member alone"), element("div", { className: "scroll" }, alone)] : [];
  shown.replaceChildren(element("h2", {}, file.name), element("p", {}, said.summary), bars(said.probabilities), ...members, pictures);
  shown.hidden = false;
  for (const row of body.rows) row.classList.toggle("current", row.file === file);
  try {
    const { views, looks } = await ask(file, form.dataset.post.includes("?") ? "&pictures" : "?pictures");
    if (mine !== current) return;
    pictures.replaceChildren(...gallery("What the members saw", views), ...gallery("Where each member looked (Grad-CAM; red counts most)", shortened(looks)));
  } catch (error) {
    if (mine === current) pictures.replaceChildren(element("p", { className: "note" }, error.message));
  }
}

function row(file) {
  const thumb = element("img", { className: "thumb", alt: "", src: URL.createObjectURL(file) });
  thumb.onerror = () => thumb.remove();  // a format that the browser does not have
  const made = element("tr", { file }, element("td", {}, thumb, element("span", {}, file.name)), element("td", { className: "text soft", colSpan: 4 }, "waiting"));
  body.append(made);
  return made;
}

async function predict(files) {
  const rows = files.map(row);
  document.querySelector("#all").hidden = false;
  let first = true;
  for (const [i, made] of rows.entries()) {
    note.textContent = `${i + 1} of ${files.length} ...`;
    try {
      const said = await ask(files[i], ""), count = Object.keys(said.members).length;
      const agreeing = Object.values(said.members).filter(of => best(of, 1)[0][0] === said.label).length;
      const name = element("button", { type: "button", onclick: () => show(files[i], said) }, files[i].name);
      made.cells[0].lastChild.replaceWith(name);
      made.cells[1].remove();
      const cells = [said.label, percent(said.confidence), percent(said.margin), `${agreeing} of ${count}`];
      made.append(...cells.map((text, k) => element("td", { className: k ? "" : "text" }, text)));
      if (first) show(files[i], said);
      first = false;
    } catch (error) {
      made.cells[1].textContent = `unreadable: ${error.message}`;
      made.cells[1].className = "wide text";
    }
  }
  note.textContent = "";
}

let queue = Promise.resolve();
const add = files => { if (files.length) queue = queue.then(() => predict([...files])); };
form.addEventListener("submit", event => event.preventDefault());
form.querySelector("input").addEventListener("change", event => { add([...event.target.files]); event.target.value = ""; });
document.addEventListener("paste", event => add(event.clipboardData.files));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, event => {
    event.preventDefault();
    form.classList.toggle("over", kind === "dragover");
    if (kind === "drop") add(event.dataTransfer.files);
  });
}
