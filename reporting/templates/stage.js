// The image with its layers, the outlines of objects, and polygons that are drawn over it.
const SVG = "http://www.w3.org/2000/svg";
const NEAR = 12; // screen pixels around the first corner in which a click closes the polygon
const byId = (id) => document.getElementById(id);
const stage = byId("stage"), layers = byId("layers"), lines = byId("lines");

let size = [1, 1]; // height, width of the image
let zoom = 1;
let draft = null; // {colour, points, cursor, done, told} while a polygon is drawn

const path = (d, attributes) => {
  const made = document.createElementNS(SVG, "path");
  made.setAttribute("d", d);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};
const line = (points, end) => "M" + points.map((point) => point.join(",")).join("L") + end;
const clamped = ([x, y]) => [Math.min(Math.max(x, 0), size[1]), Math.min(Math.max(y, 0), size[0])];

const resize = () => {
  if (layers.hidden) return;
  const [height, width] = size, most = 0.76 * window.innerHeight;
  const fit = Math.max(120, Math.min(stage.clientWidth, most * width / height));
  layers.style.width = `${fit * zoom}px`;
  layers.style.height = `${fit * zoom * height / width}px`;
};
window.addEventListener("resize", resize);

export const enlarge = (times) => { zoom = times; resize(); };

// Show an image of (height, width); a layer that has no address is hidden by showLayer.
export const showImage = (address, name, imageSize) => {
  size = imageSize;
  byId("base").src = address;
  byId("base").alt = `the image ${name}`;
  lines.setAttribute("viewBox", `0 0 ${size[1]} ${size[0]}`);
  lines.setAttribute("preserveAspectRatio", "none");
  layers.hidden = false;
  byId("empty").hidden = true;
  resize();
  stage.scrollTo(0, 0);
};
export const setLayer = (layer, address) => {
  if (address) byId(layer).src = address;
  else byId(layer).removeAttribute("src");
};
export const showLayer = (layer) => {
  for (const id of ["cam", "mask", "correction"]) byId(id).hidden = id !== layer || !byId(id).getAttribute("src");
  byId("outlines").style.display = layer === "mask" ? "" : "none";
  byId("drawn").style.display = layer === "correction" ? "none" : "";
};

// objects: {key, colour, outlines, removed}; polygons: {key, colour, points}. Both take clicks.
export const showShapes = (objects, polygons, picked) => {
  const shift = (points) => points.map(([x, y]) => [x + 0.5, y + 0.5]); // to the centres of pixels
  const shapes = (group, list, drawn) => byId(group).replaceChildren(...list.map((one) => {
    const d = (drawn ? [one.points] : one.outlines.map(shift)).map((points) => line(points, "Z")).join("");
    const made = path(d, { stroke: one.colour, fill: one.removed ? "url(#hatch)" : one.colour, "data-key": one.key });
    made.classList.toggle("removed", Boolean(one.removed));
    made.addEventListener("click", () => picked(one.key));
    return made;
  }));
  shapes("outlines", objects, false);
  shapes("drawn", polygons, true);
  const scale = size[1] / Math.max(1, layers.clientWidth);
  byId("hatch").setAttribute("patternTransform", `scale(${scale})`);
};
export const highlight = (key) => {
  for (const one of lines.querySelectorAll("[data-key]")) one.classList.toggle("active", one.dataset.key === key);
};

const redraw = () => {
  if (!draft) { byId("draft").replaceChildren(); return; }
  const { points, cursor, colour } = draft, both = cursor ? [...points, cursor] : points;
  const parts = [];
  for (const halo of [true, false]) {
    const look = (more) => ({ class: `${halo ? "halo " : ""}${more}`, ...(halo ? {} : { stroke: colour }) });
    if (both.length) parts.push(path(line(both, ""), look("")));
    for (const point of points) parts.push(path(line([point], "Z"), look("corner")));
  }
  if (cursor) {
    const [x, y] = cursor;
    parts.push(path(`M0,${y}H${size[1]}M${x},0V${size[0]}`, { class: "cross" }));
  }
  byId("draft").replaceChildren(...parts);
};

// Draw one polygon. done(points or null) is called at its end, told(text) after each corner.
export const startDrawing = (colour, done, told) => {
  draft = { colour, points: [], cursor: null, done, told };
  document.body.classList.add("drawing");
  stage.setAttribute("role", "application");
  stage.focus({ preventScroll: true });
  redraw();
};
export const stopDrawing = (finished) => {
  if (!draft) return;
  const { points, done, told } = draft;
  if (finished && points.length < 3) { told("A polygon needs three corners or more."); return; }
  draft = null;
  document.body.classList.remove("drawing");
  stage.setAttribute("role", "region");
  redraw();
  done(finished ? points : null);
};
const addCorner = (point) => {
  const last = draft.points.at(-1);
  if (last && last[0] === point[0] && last[1] === point[1]) return;
  draft.points.push(point);
  draft.told(`Corner ${draft.points.length} at ${point.map(Math.round).join(", ")}.`);
  redraw();
};

const scale = () => { // screen pixels for a pixel of the image
  const box = lines.getBoundingClientRect();
  return [box.width / size[1], box.height / size[0]];
};
const placeOf = (event) => {
  const box = lines.getBoundingClientRect(), [x, y] = scale();
  return clamped([(event.clientX - box.left) / x, (event.clientY - box.top) / y].map((c) => Math.round(10 * c) / 10));
};
lines.addEventListener("pointermove", (event) => {
  if (draft) { draft.cursor = placeOf(event); redraw(); }
});
lines.addEventListener("click", (event) => {
  if (!draft || event.detail > 1) return;
  const point = placeOf(event), first = draft.points[0], [x, y] = scale();
  const closes = draft.points.length > 2 &&
    Math.hypot((point[0] - first[0]) * x, (point[1] - first[1]) * y) < NEAR;
  if (closes) stopDrawing(true);
  else addCorner(point);
});
lines.addEventListener("dblclick", () => stopDrawing(true));

stage.addEventListener("keydown", (event) => {
  if (!draft || event.ctrlKey || event.metaKey || event.altKey) return;
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key in moves) {
    const step = event.shiftKey ? 1 : Math.max(1, Math.round(size[1] / 50));
    const [x, y] = draft.cursor ?? [size[1] / 2, size[0] / 2].map(Math.round);
    draft.cursor = draft.cursor ? clamped([x + step * moves[event.key][0], y + step * moves[event.key][1]]) : [x, y];
    redraw();
    const box = lines.getBoundingClientRect(), [right, down] = scale(), view = stage.getBoundingClientRect();
    stage.scrollBy(box.left + draft.cursor[0] * right - view.left - view.width / 2,
      box.top + draft.cursor[1] * down - view.top - view.height / 2);
  } else if (event.key === " " && draft.cursor) addCorner(draft.cursor);
  else if (event.key === "Enter") stopDrawing(true);
  else if (event.key === "Escape") stopDrawing(false);
  else if (event.key === "Backspace") { draft.points.pop(); redraw(); } else return;
  event.preventDefault();
});
