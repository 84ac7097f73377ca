// The page of demo.py: opens images, moves sliders, corrects masks.
import { enlarge, highlight, setLayer, showImage, showLayer, showShapes, startDrawing, stopDrawing } from "/stage.js";

const byId = (id) => document.getElementById(id);
const facts = JSON.parse(byId("facts").textContent);
const colours = new Map(facts.classes.map(({ name, colour }) => [name, colour]));
const PICTURES = "PNG, JPEG, BMP, TIFF or WebP";
const DRAWING = "Click the corners; click the first one again, or press Enter, to close. Keys: arrows move the cross " +
  "(with Shift by a pixel), Space sets a corner, Backspace takes it back, Esc stops.";

let key = null; // of the open result
let picture = null; // its name in the list of the folder
let state = null; // what the server says of it
let view = {}; // threshold, min_area, keep_all as far as they were moved
let edits = new Map(); // number of an object -> its class, null if removed
let drawn = []; // {label, points}
let saved = true;
let listed = []; // pictures of the folder
let opening = 0, asking = null; // of requests, only the last counts

const element = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};
const number = (value) => value.toLocaleString("en");
const fail = (text) => { byId("error").textContent = text; byId("error").hidden = !text; };
const tell = (text) => { byId("status").textContent = text; };

// Return the JSON of an answer; an error has the server's words and its status.
const ask = async (address, options) => {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw Object.assign(new Error("demo.py does not answer. Is it still running?"), { status: 0 });
  }
  const content = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(content.error), { status: answer.status });
  return content;
};
// Ask the user; resolves to whether the answer is yes.
const confirmed = (text, yes) => new Promise((resolve) => {
  const dialog = byId("ask");
  byId("ask-text").textContent = text;
  byId("ask-yes").textContent = yes;
  byId("ask-yes").onclick = () => dialog.close("yes");
  byId("ask-no").onclick = () => dialog.close("no");
  dialog.returnValue = "no";
  dialog.onclose = () => resolve(dialog.returnValue === "yes");
  dialog.showModal();
  byId("ask-no").focus();
});
const mayLeave = async () => saved || confirmed("The correction is not saved.", "Leave it");

// Open an image.
const open = async (name, address, body, inList = null) => {
  if (!await mayLeave()) return;
  const turn = ++opening;
  stopDrawing(false);
  fail("");
  tell(`The networks look at ${name} ...`);
  byId("stage").setAttribute("aria-busy", "true");
  try {
    const said = await ask(address, { method: "POST", body });
    if (turn !== opening) return;
    ({ key } = said);
    picture = inList;
    view = {};
    forget();
    byId("keep").checked = false;
    setLayer("correction", "");
    setLayer("cam", said.cam_classes === null ? "" : `/results/${key}/cam`);
    for (const radio of document.getElementsByName("layer")) {
      radio.checked = radio.value === "mask";
      radio.disabled = radio.value === "correction" || (radio.value === "cam" && said.cam_classes === null);
    }
    showImage(`/results/${key}/image`, said.name, [said.height, said.width]);
    for (const id of ["results", "looks"]) byId(id).hidden = false;
    update(said);
    if (byId("status").getBoundingClientRect().top > 0.6 * window.innerHeight) byId("status").scrollIntoView();
    tell(`${said.name}: ${number(said.width)} x ${number(said.height)} pixels`);
  } catch (error) {
    if (turn !== opening) return;
    fail(error.message);
    tell(key ? "The image before is still open." : "No image is open yet.");
  } finally {
    if (turn === opening) byId("stage").removeAttribute("aria-busy");
  }
};
const openFile = (file) => {
  if (file.size > facts.max_bytes) {
    fail(`${file.name}: expected at most ${facts.max_bytes / 1e6} MB, got ${(file.size / 1e6).toFixed(1)} MB. ` +
      "Make the picture smaller, or start demo.py with a higher --max-mb.");
    return;
  }
  open(file.name, `/uploads?name=${encodeURIComponent(file.name)}`, file);
};
const openFirst = (transfer) => {
  const file = transfer.files[0];
  if (file) openFile(file);
  else if (transfer.types?.length) fail(`Expected a picture file (${PICTURES}), got something else.`);
};
byId("file").addEventListener("change", ({ target }) => { openFirst(target); target.value = ""; });
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => { event.preventDefault(); document.body.classList.add("dragged"); });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dragged");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dragged");
  openFirst(event.dataTransfer);
});
document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) openFirst(event.clipboardData); });

// The pictures of the folder.
const pictures = byId("pictures");
const list = () => {
  const part = byId("search").value.toLowerCase(), chosen = pictures.value;
  const fitting = listed.filter(({ name }) => name.toLowerCase().includes(part));
  pictures.replaceChildren(...fitting.map(({ name, annotated }) =>
    new Option(annotated ? `${name} (annotated)` : name, name, false, name === chosen)));
  byId("counted").textContent = `${number(fitting.length)} of ${number(listed.length)}`;
};
const loadList = async () => {
  const said = await ask("/pictures");
  listed = said.pictures;
  list();
  if (said.left_out) byId("counted").textContent += `, and ${said.left_out} whose names cannot be shown`;
};
const openListed = () => {
  const name = pictures.value;
  if (name) open(name, `/pictures/${name.split("/").map(encodeURIComponent).join("/")}`, undefined, name);
};
if (pictures) {
  byId("search").addEventListener("input", list);
  byId("open").addEventListener("click", openListed);
  pictures.addEventListener("dblclick", openListed);
  pictures.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // or it would answer the question that may follow
    openListed();
  });
  loadList().then(() => {
    pictures.value = decodeURIComponent(location.hash.slice(1)); // .../#a.png opens a picture
    openListed();
  }).catch((error) => fail(error.message));
}

// What is shown.
const update = (said) => {
  state = said;
  byId("verdict").textContent = state.verdict;
  byId("verdict").dataset.verdict = state.verdict;
  byId("why").textContent = state.why;
  byId("scores").replaceChildren(...Object.entries(state.class_scores).map(([name, score]) => {
    const item = element("li"), track = element("span", "track"), bar = element("span");
    const title = element("span", "bar-name"), spot = element("span", "key");
    spot.style.background = bar.style.background = colours.get(name);
    bar.style.width = `${100 * score}%`;
    track.append(bar);
    track.setAttribute("aria-hidden", "true");
    title.append(spot, name);
    item.append(title, element("span", "bar-value", score.toFixed(2)), track);
    return item;
  }));
  setLayer("mask", state.mask);
  const query = new URLSearchParams(view);
  for (const [id, file] of [["get-mask", "mask.png"], ["get-json", "result.json"], ["get-coco", "coco.json"]]) {
    byId(id).href = `/results/${key}/${file}?${query}`;
  }
  byId("threshold").value = view.threshold ?? facts.start;
  byId("threshold-value").textContent = "threshold" in view ? Number(view.threshold).toFixed(2) : "as the run has it";
  if (!("min_area" in view)) byId("area").value = 0;
  byId("area-value").textContent = "min_area" in view ? `${number(view.min_area)} px` : "as the run has it";
  look();
  listObjects();
};
const look = () => {
  const layer = document.querySelector("[name=layer]:checked").value;
  showLayer(layer);
  const { cam_classes: seen, num_objects: count, verdict } = state;
  const emptied = verdict === "ok" && !view.keep_all;
  byId("layer-note").textContent = {
    mask: count ? "" : emptied ? "The image is ok, so its mask is left empty." : "The mask is empty.",
    cam: seen?.length ? `Where the localiser sees ${seen.join(", ")}: the stronger, the surer.`
      : "The localiser sees no class in this image.",
    image: "",
    correction: "What a reader of the LabelMe file gets.",
  }[layer];
};
for (const radio of document.getElementsByName("layer")) radio.addEventListener("change", look);
byId("opacity").addEventListener("input", (event) =>
  document.documentElement.style.setProperty("--opacity", event.target.value / 100));
byId("zoom").addEventListener("input", (event) => enlarge(Number(event.target.value)));
byId("legend").replaceChildren(...facts.classes.map(({ name, colour }) => {
  const item = element("li"), spot = element("span", "key");
  spot.style.background = colour;
  item.append(spot, name);
  return item;
}));

// Sliders: a second request, which runs no network; the last one counts.
const move = async () => {
  asking?.abort();
  const mine = asking = new AbortController();
  try {
    const said = await ask(`/results/${key}?${new URLSearchParams(view)}`, { signal: mine.signal });
    if (mine === asking) update(said);
  } catch (error) {
    if (error.name !== "AbortError") fail(error.message);
  }
};
byId("threshold").addEventListener("input", (event) => { view.threshold = Number(event.target.value); move(); });
byId("area").addEventListener("input", (event) => {
  view.min_area = Math.round((event.target.value / 100) ** 3 * 0.05 * state.height * state.width); // to 5 %
  move();
});
byId("keep").addEventListener("change", (event) => { view.keep_all = event.target.checked; move(); });
byId("reset").addEventListener("click", () => { view = byId("keep").checked ? { keep_all: true } : {}; move(); });

// The correction.
const classes = (label, chosen) => {
  const made = element("select");
  made.setAttribute("aria-label", label);
  made.append(...facts.classes.map(({ name }) => new Option(name, name, false, name === chosen)));
  return made;
};
byId("class").append(...classes("").children);
byId("class").selectedIndex = 0;
const changed = () => { saved = false; byId("saved").textContent = ""; listObjects(); };
const forget = () => { edits = new Map(); drawn = []; saved = true; byId("saved").textContent = ""; };
const labelOf = (one) => edits.has(one.index) ? edits.get(one.index) : one.class;

const rowOf = (id, title, label, text) => {
  const row = element("li"), select = classes(`Class of ${title}`, label), button = element("button", "", "Remove");
  button.type = "button";
  row.append(element("span", "", title), select, button, element("span", "figures-of", text));
  row.dataset.key = id;
  for (const kind of ["mouseenter", "focusin"]) row.addEventListener(kind, () => activate(id));
  return { row, select, button };
};
const objectRow = (one, place) => {
  const label = labelOf(one), gone = label === null;
  const { row, select, button } = rowOf(`object-${one.index}`, `${place + 1}`, label ?? one.class,
    `${number(one.area_px)} px, score ${one.score.toFixed(2)}`);
  row.classList.toggle("removed", gone);
  select.disabled = gone;
  button.textContent = gone ? "Restore" : "Remove";
  button.setAttribute("aria-label", `${button.textContent} object ${place + 1}`);
  const set = (value) => { // what the networks said is no edit
    if (value === one.class) edits.delete(one.index);
    else edits.set(one.index, value);
    changed();
    document.querySelector(`#objects [data-key="object-${one.index}"] ${value === null || gone ? "button" : "select"}`).focus();
  };
  select.addEventListener("change", () => set(select.value));
  button.addEventListener("click", () => set(gone ? one.class : null));
  return row;
};
const drawnRow = (one, place) => {
  const { row, select, button } = rowOf(`drawn-${place}`, `new ${place + 1}`, one.label, `drawn, ${one.points.length} corners`);
  button.setAttribute("aria-label", `Remove new ${place + 1}`);
  select.addEventListener("change", () => { one.label = select.value; changed(); });
  button.addEventListener("click", () => { drawn.splice(place, 1); changed(); byId("draw").focus(); });
  return row;
};
const listObjects = () => {
  byId("objects").replaceChildren(...drawn.map(drawnRow), ...state.objects.map(objectRow));
  showShapes(
    state.objects.map((one) => ({ key: `object-${one.index}`, outlines: one.outlines,
      colour: colours.get(labelOf(one) ?? one.class), removed: labelOf(one) === null })),
    drawn.map((one, place) => ({ key: `drawn-${place}`, points: one.points, colour: colours.get(one.label) })),
    (id) => { activate(id); byId("objects").querySelector(`[data-key="${id}"] button`).focus(); },
  );
  const more = state.num_objects - state.objects.length, gone = [...edits.values()].filter((label) => label === null).length;
  byId("counts").textContent = `${number(state.num_objects)} object${state.num_objects === 1 ? "" : "s"}` +
    (gone ? `, ${gone} removed` : "") + (drawn.length ? `, ${drawn.length} drawn` : "") +
    (more ? `. The ${facts.most_objects} largest are listed; move the least area up to save a correction.` : "");
  byId("save").disabled = more > 0;
  byId("undo").disabled = !edits.size && !drawn.length;
  byId("sliders").disabled = edits.size > 0; // the numbers of objects change with them
  byId("sliders-rest").hidden = !edits.size;
};
const activate = (id) => {
  highlight(id);
  for (const row of byId("objects").children) row.classList.toggle("active", row.dataset.key === id);
};

byId("draw").addEventListener("click", () => {
  const pressed = byId("draw").getAttribute("aria-pressed") === "true";
  if (pressed) { stopDrawing(false); return; }
  const label = byId("class").value;
  document.querySelector("[name=layer][value=mask]").checked = true;
  look();
  byId("draw").setAttribute("aria-pressed", "true");
  byId("stage-keys").textContent = DRAWING;
  byId("stage-keys").hidden = false;
  byId("stage").scrollIntoView({ block: "nearest" });
  startDrawing(colours.get(label), (points) => {
    byId("draw").setAttribute("aria-pressed", "false");
    byId("stage-keys").hidden = true;
    if (points) {
      drawn.push({ label, points });
      tell(`A polygon of ${label} with ${points.length} corners was drawn.`);
      changed();
    }
    byId("draw").focus({ preventScroll: true });
  }, tell);
});
byId("undo").addEventListener("click", () => { forget(); listObjects(); byId("draw").focus(); });
byId("save").addEventListener("click", async () => {
  const kept = state.objects.filter((one) => labelOf(one) !== null).map((one) => [one.index, labelOf(one)]);
  const send = (replace) => ask(`/results/${key}/correction`, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ view, kept: Object.fromEntries(kept), drawn, replace }),
  });
  const isThere = listed.some(({ name, annotated }) => name === picture && annotated);
  fail("");
  if (isThere && !await confirmed(`${picture} has an annotation already. Replace it?`, "Replace it")) return;
  try {
    const said = await send(isThere);
    if (!said.file) download(said.content, `${state.name.replace(/\.[^.]*$/, "")}.json`);
    saved = true;
    byId("saved").textContent = said.file ? `${said.file} was written beside ${state.name}.` : "The LabelMe file was downloaded.";
    if (said.file) await loadList();
    setLayer("correction", said.mask);
    const radio = document.querySelector("[name=layer][value=correction]");
    radio.disabled = false;
    radio.checked = true;
    look();
  } catch (error) {
    fail(error.message);
    if (error.status === 409) loadList(); // so that the next save asks
  }
});
const download = (content, name) => {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
};
window.addEventListener("beforeunload", (event) => { if (!saved) event.preventDefault(); });
