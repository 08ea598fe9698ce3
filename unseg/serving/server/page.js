// The page of `unseg serve`; app.py has the requests. A label is 0 (background), cluster + 1, or 255 (ignored).

const IGNORED = 255;
const find = (selector, within = document) => within.querySelector(selector);
const percent = (x) => (x > 0 && x < 0.005 ? "< 1\u00a0%" : `${Math.round(100 * x)}\u00a0%`);
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const [photo, overlay] = [find("#photo"), find("#overlay")];

let state = { clusters: [], about: {} }; // what GET /clusters answers
let answer = null; // of the photograph that is shown: the reply of /predict, its labels and confidence as bytes
let shown = null; // { file, button }
let edges = null; // 1 where a neighbour of a pixel has another label
let spot = null; // the label of the row under the pointer: the other labels are darkened
let pinned = null; // the label that was clicked: likewise
let queue = Promise.resolve(); // photographs and edits, one after the other

// ---- requests

async function ask(path, options) {
  let reply;
  try {
    reply = await fetch(path, options);
  } catch {
    throw new Error("unseg serve does not answer; start it again");
  }
  const is_json = (reply.headers.get("content-type") || "").includes("json");
  const content = is_json ? await reply.json() : {};
  if (!reply.ok) throw new Error(content.error || `unseg serve failed with status ${reply.status}; its terminal says why`);
  return content;
}

function say(line) {
  const message = find("#message");
  message.textContent = line && message.textContent ? `${message.textContent}\n${line}` : line;
  message.hidden = !line;
}

function enqueue(task) {
  queue = queue.then(task);
}

function open(files) {
  say("");
  for (const file of files) enqueue(() => segment(file));
}

async function segment(file, entry = null) {
  if (file.size > state.max_bytes) {
    say(`${file.name}: more than ${state.max_bytes / 1e6} MB; send a smaller file`);
    return;
  }
  const body = await file.arrayBuffer().catch(() => null);
  if (!body) {
    say(`${file.name}: cannot be read; choose a photograph, not a folder`);
    return;
  }
  find("#busy").hidden = false;
  try {
    const reply = await ask("predict", { method: "POST", body });
    const image = new Image();
    image.src = `data:image/jpeg;base64,${reply.photo}`;
    await image.decode();
    answer = { ...reply, labels: bytes(reply.labels), confidence: bytes(reply.confidence) };
    edges = outline(answer.labels, answer.width, answer.height);
    state = reply;
    for (const canvas of [photo, overlay]) {
      Object.assign(canvas, { width: answer.width, height: answer.height, hidden: false });
    }
    photo.getContext("2d").drawImage(image, 0, 0);
    if (!shown) find("#absent").open = false;
    shown = entry ?? remember(file, image.src);
    spot = pinned = null;
    find("#invitation").hidden = true;
    find("#stage").classList.remove("empty");
    draw();
  } catch (error) {
    say(`${file.name}: ${error.message}`);
  } finally {
    find("#busy").hidden = true;
  }
}

function edit(...edits) {
  say("");
  enqueue(() => send(edits));
}

async function send(edits) {
  const before = state.clusters.map((row) => row.label).join();
  try {
    state = { ...state, ...(await ask("edit", { method: "POST", body: JSON.stringify(edits) })) };
  } catch (error) {
    say(error.message);
  }
  draw();
  if (shown && before !== state.clusters.map((row) => row.label).join()) await segment(shown.file, shown);
}

// ---- the photograph

function remember(file, source) {
  const button = document.createElement("button");
  const image = new Image();
  Object.assign(image, { src: source, alt: file.name });
  Object.assign(button, { type: "button", title: file.name });
  button.append(image);
  const entry = { file, button };
  button.addEventListener("click", () => enqueue(() => segment(file, entry)));
  find("#recent").append(button);
  return entry;
}

function outline(labels, width, height) {
  const result = new Uint8Array(labels.length);
  for (let i = 0; i < labels.length; i++) {
    const x = i % width;
    const [left, right] = [x ? i - 1 : i, x < width - 1 ? i + 1 : i];
    const [above, below] = [i < width ? i : i - width, i + width < labels.length ? i + width : i];
    result[i] = [left, right, above, below].some((j) => labels[j] !== labels[i]);
  }
  return result;
}

function paint() {
  if (!answer) return;
  const { width, labels } = answer;
  const alpha = Math.round(2.55 * find("#opacity").value);
  const focus = spot ?? pinned;
  const pack = (rgb, a) => ((a << 24) | ((rgb & 255) << 16) | (rgb & 0xff00) | (rgb >> 16)) >>> 0; // as a canvas has it
  const colours = Array.from({ length: 256 }, (_, label) => {
    const cluster = state.clusters[label - 1];
    return cluster ? Number.parseInt(cluster.colour.slice(1), 16) : 0xffffff;
  });
  const dim = pack(0x0c0e12, 180);
  const isDimmed = (label) => focus !== null && label !== focus;
  const regions = colours.map((colour, label) => (isDimmed(label) ? dim : label && label !== IGNORED ? pack(colour, alpha) : 0));
  const rims = colours.map((colour, label) => (isDimmed(label) || !alpha ? regions[label] : label ? pack(colour, 255) : 0));
  const stripe = isDimmed(IGNORED) ? dim : pack(0xffffff, alpha);
  const image = new ImageData(width, answer.height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < labels.length; i++) {
    const label = labels[i];
    const striped = label === IGNORED && ((i % width) + Math.floor(i / width)) % 12 < 4;
    pixels[i] = striped ? stripe : edges[i] ? rims[label] : regions[label];
  }
  overlay.getContext("2d").putImageData(image, 0, 0);
}

function pixelAt(event) {
  const box = overlay.getBoundingClientRect(); // the picture is centred in it (object-fit: contain)
  const scale = Math.min(box.width / overlay.width, box.height / overlay.height);
  const x = Math.floor((event.clientX - box.left - (box.width - scale * overlay.width) / 2) / scale);
  const y = Math.floor((event.clientY - box.top - (box.height - scale * overlay.height) / 2) / scale);
  return x >= 0 && y >= 0 && x < overlay.width && y < overlay.height ? y * overlay.width + x : null;
}

function title(label) {
  return label === 0 ? "background" : label === IGNORED ? "ignored" : state.clusters[label - 1].title;
}

function point(event) {
  const i = answer && pixelAt(event);
  const tag = find("#tag");
  tag.hidden = i === null;
  if (i === null) return null;
  const stage = find("#stage").getBoundingClientRect();
  tag.textContent = `${title(answer.labels[i])}, confidence ${percent(answer.confidence[i] / 255)}`;
  const [x, y] = [event.clientX - stage.left, event.clientY - stage.top];
  tag.style.left = `${Math.min(x + 14, stage.width - tag.offsetWidth - 4)}px`;
  tag.style.top = `${y + tag.offsetHeight + 24 < stage.height ? y + 18 : y - tag.offsetHeight - 10}px`;
  return answer.labels[i];
}

function spotlight(label) {
  spot = label;
  requestAnimationFrame(paint);
}

function mark(hot = null) {
  for (const item of document.querySelectorAll(".clusters li")) {
    item.classList.toggle("hot", Number(item.dataset.label) === hot);
    item.classList.toggle("pinned", Number(item.dataset.label) === pinned);
  }
}

// ---- the clusters

const mergedInto = (label) => state.clusters.flatMap((row, k) => (row.label === label && label !== k + 1 ? [k] : []));
const isOwn = (k) => state.clusters[k].label === k + 1;

function row(label, fraction = null) {
  const item = find("#row").content.cloneNode(true).firstElementChild;
  const k = label - 1;
  const cluster = state.clusters[k]; // undefined: background and ignored
  const editable = Boolean(cluster && state.about.file);
  const colour = cluster?.colour ?? "transparent";
  item.dataset.label = label;
  const [picker, name, menu] = [find("[type=color]", item), find("[type=text]", item), find("select", item)];
  find(".swatch", item).style.background = label === IGNORED ? "" : colour;
  find(".swatch", item).classList.toggle("void", label === IGNORED);
  find(".title", item).textContent = title(label);
  for (const selector of editable ? [".swatch", ".title"] : ["[type=color]", "[type=text]"]) find(selector, item).remove();
  if (fraction) {
    find(".area", item).textContent = percent(fraction.fraction);
    Object.assign(find(".rail span", item).style, { width: `${100 * fraction.fraction}%`, background: cluster ? colour : "" });
  } else {
    find(".rail", item).remove();
  }
  const notes = fraction?.confidence === undefined ? [] : [`confidence ${percent(fraction.confidence)}`];
  if (cluster && !isOwn(k)) notes.push(cluster.label === IGNORED ? "ignored" : `merged into ${title(cluster.label)}`);
  if (cluster && isOwn(k) && mergedInto(label).length) {
    notes.push(`with ${mergedInto(label).map((j) => state.clusters[j].title).join(", ")}`);
  }
  if (cluster && cluster.title !== `cluster ${k}`) notes.push(`cluster ${k}`);
  find(".state", item).textContent = notes.join(" · ");
  item.addEventListener("pointerenter", () => fraction && spotlight(label));
  item.addEventListener("pointerleave", () => fraction && spotlight(null));
  if (!editable) {
    find(".actions", item).remove();
    return item;
  }
  picker.value = colour;
  picker.addEventListener("change", () => edit(["colour", `${k}=${picker.value}`]));
  name.value = cluster.title;
  name.addEventListener("change", () => (name.value.trim() ? edit(["name", `${k}=${name.value.trim()}`]) : draw()));
  const group = [k, ...mergedInto(label)]; // what is merged into a cluster goes with it
  const targets = state.clusters.flatMap((other, j) => (j !== k && isOwn(j) ? [[other.title, String(j)]] : []));
  for (const [text, value] of [["Merge into", ""], ["background", "background"], ...targets]) menu.add(new Option(text, value));
  menu.addEventListener("change", () => edit(...group.map((j) => ["merge", `${j}=${menu.value}`])));
  find("[data-key=ignore]", item).addEventListener("click", () => edit(...group.map((j) => ["ignore", String(j)])));
  find("[data-key=reset]", item).addEventListener("click", () => edit(["reset", String(k)]));
  if (!isOwn(k)) {
    menu.remove();
    find("[data-key=ignore]", item).remove();
  }
  if (!cluster.edited) find("[data-key=reset]", item).remove();
  return item;
}

function fill(id, rows) {
  find(`${id} ul`).replaceChildren(...rows);
  find(id).hidden = !rows.length;
}

function keepFocus(change) {
  const active = document.activeElement;
  const [item, controls] = [active?.closest(".clusters li"), "input,select,button"];
  const index = item ? [...item.querySelectorAll(controls)].indexOf(active) : -1;
  change();
  const again = item && find(`.clusters li[data-label="${item.dataset.label}"]`)?.querySelectorAll(controls)[index];
  again?.focus();
  if (again?.type === "text" && active.value.trim()) again.value = active.value;
}

function draw() {
  const { about, clusters } = state;
  const saved = `Names, colours and merges are saved to ${about.file}.`;
  const where = about.file ? saved : "Start it with --clusters FILE to edit them.";
  find("#about").textContent = `${about.model} knows ${clusters.length} clusters. ${where}`;
  const present = answer ? answer.fractions : [];
  const ignored = answer && answer.ignored > 0 ? [row(IGNORED, { fraction: answer.ignored })] : [];
  const seen = new Set(present.map((f) => f.label));
  keepFocus(() => {
    fill("#here", [...present.map((f) => row(f.label, f)), ...ignored]);
    fill("#absent", clusters.flatMap((_, k) => (isOwn(k) && !seen.has(k + 1) ? [row(k + 1)] : [])));
    fill("#gone", clusters.flatMap((_, k) => (isOwn(k) ? [] : [row(k + 1)])));
  });
  find("#absent summary").textContent = answer ? "Not in this photograph" : "All clusters";
  if (!answer) find("#absent").open = true;
  find("#reset").hidden = !about.file || !clusters.some((row) => row.edited);
  find("#readout").hidden = !answer;
  for (const button of find("#recent").children) button.toggleAttribute("aria-current", button === shown?.button);
  mark();
  paint();
}

// ---- events

find("#file").addEventListener("change", (event) => {
  const files = [...event.target.files];
  event.target.value = ""; // the same file can be chosen again
  open(files);
});
find("#opacity").addEventListener("input", (event) => {
  find("#percent").textContent = `${event.target.value} %`;
  requestAnimationFrame(paint);
});
find("#reset").addEventListener("click", () => {
  if (confirm("Remove all names, colours and merges?")) edit(["reset", "all"]);
});
overlay.addEventListener("pointermove", (event) => mark(point(event)));
overlay.addEventListener("pointerleave", () => {
  find("#tag").hidden = true;
  mark();
});
overlay.addEventListener("click", (event) => {
  const label = point(event);
  pinned = label === pinned ? null : label;
  mark(label);
  paint();
  find(".clusters li.pinned")?.scrollIntoView({ block: "nearest", behavior: "smooth" });
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle("drag", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") open([...event.dataTransfer.files]);
  });
}
addEventListener("paste", (event) => open([...event.clipboardData.files]));

state = await ask("clusters");
draw();
