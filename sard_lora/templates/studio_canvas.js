// The picture, the mask painted over it, and the tools for that. The mask is a canvas at the picture's own size whose
// pixels are either opaque or not there at all: what is seen is what is sent. Undo draws all steps but the last again.

const INK = [255, 60, 30, 255];
const find = (selector) => element.querySelector(selector);
const [stage, sheet, picture, preview, cursor] = [".stage", ".sheet", ".picture", ".preview", ".cursor"].map(find);
const canvas = find("canvas");
const brush = canvas.getContext("2d", { willReadFrequently: true });
const button = (name) => find("[data-do=" + name + "]");

let steps = [];
let undone = [];
let stroke = null;
let erase = false;
let zoom = 1;

// --- steps ---

function segment(from, to, size, erasing) {
  const radius = size / 2;
  const left = Math.max(0, Math.floor(Math.min(from[0], to[0]) - radius));
  const top = Math.max(0, Math.floor(Math.min(from[1], to[1]) - radius));
  const right = Math.min(canvas.width, Math.ceil(Math.max(from[0], to[0]) + radius));
  const bottom = Math.min(canvas.height, Math.ceil(Math.max(from[1], to[1]) + radius));
  if (right <= left || bottom <= top) return;
  const patch = brush.getImageData(left, top, right - left, bottom - top);
  const [dx, dy] = [to[0] - from[0], to[1] - from[1]];
  const length = dx * dx + dy * dy;
  for (let y = top; y < bottom; y++) {
    for (let x = left; x < right; x++) {
      const [px, py] = [x + 0.5 - from[0], y + 0.5 - from[1]];
      const along = length ? Math.min(1, Math.max(0, (px * dx + py * dy) / length)) : 0;
      if (Math.hypot(px - along * dx, py - along * dy) <= radius) {
        patch.data.set(erasing ? [0, 0, 0, 0] : INK, 4 * ((y - top) * patch.width + x - left));
      }
    }
  }
  brush.putImageData(patch, left, top);
}

function apply(step) {
  if (step.points) {
    step.points.forEach((to, i) => segment(step.points[Math.max(0, i - 1)], to, step.size, step.erasing));
  } else {
    brush.clearRect(0, 0, canvas.width, canvas.height);
    if (step.image) brush.drawImage(step.image, 0, 0);
  }
}

function took(step) {
  steps.push(step);
  undone = [];
  publish();
}

function redraw() {
  brush.clearRect(0, 0, canvas.width, canvas.height);
  steps.forEach(apply);
  publish();
}

function publish() {
  button("undo").disabled = !steps.length;
  button("redo").disabled = !undone.length;
  props.value = steps.length ? canvas.toDataURL("image/png") : "";
}

// --- painting ---

function size() {
  const most = Math.max(8, Math.min(canvas.width, canvas.height) / 2);
  return Math.max(1, Math.round(most ** (find(".size").value / 100)));
}

// Centres of pixels, so that a brush of one pixel marks exactly one.
function place(event) {
  const area = canvas.getBoundingClientRect();
  const x = ((event.clientX - area.left) / area.width) * canvas.width;
  const y = ((event.clientY - area.top) / area.height) * canvas.height;
  return [Math.floor(x) + 0.5, Math.floor(y) + 0.5];
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  if (sheet.classList.contains("hidden-mask")) hide();
  stroke = { points: [place(event)], size: size(), erasing: erase };
  apply(stroke);
});
canvas.addEventListener("pointermove", (event) => {
  follow(event);
  if (!stroke) return;
  const to = place(event);
  segment(stroke.points.at(-1), to, stroke.size, stroke.erasing);
  stroke.points.push(to);
});
for (const ending of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(ending, () => {
    if (stroke) took(stroke);
    stroke = null;
  });
}
canvas.addEventListener("pointerleave", () => (cursor.hidden = true));

function follow(event) {
  const area = canvas.getBoundingClientRect();
  const side = (size() * area.width) / canvas.width;
  cursor.hidden = false;
  cursor.style.width = cursor.style.height = side + "px";
  cursor.style.left = event.clientX - area.left - side / 2 + "px";
  cursor.style.top = event.clientY - area.top - side / 2 + "px";
}

// --- tools ---

function use(eraser) {
  erase = eraser;
  button("brush").setAttribute("aria-pressed", !eraser);
  button("eraser").setAttribute("aria-pressed", eraser);
}

function resize(by) {
  find(".size").value = Number(find(".size").value) + by;
  find("output").textContent = size() + " px";
}

function hide() {
  const hidden = sheet.classList.toggle("hidden-mask");
  button("hide").setAttribute("aria-pressed", hidden);
}

// The picture fills the stage at zoom 1; beyond that the stage scrolls. The point at (x, y) of the window stays.
function scale(factor, x, y) {
  const before = canvas.getBoundingClientRect();
  const room = stage.getBoundingClientRect();
  [x, y] = [x ?? room.left + room.width / 2, y ?? room.top + room.height / 2];
  zoom = Math.min(32, Math.max(1, factor));
  fit();
  const after = canvas.getBoundingClientRect();
  stage.scrollLeft += after.left - x + ((x - before.left) / before.width) * after.width;
  stage.scrollTop += after.top - y + ((y - before.top) / before.height) * after.height;
}

function fit() {
  const share = Math.min(stage.clientWidth / canvas.width, stage.clientHeight / canvas.height);
  sheet.style.width = Math.round(canvas.width * share * zoom) + "px";
  sheet.style.height = Math.round(canvas.height * share * zoom) + "px";
  sheet.classList.toggle("pixels", share * zoom > 3);
  button("fit").textContent = zoom > 1 ? Math.round(share * zoom * 100) + " %" : "Fit";
}

const press = (id) => () => document.querySelector(id).click();

const tools = {
  brush: () => use(false),
  eraser: () => use(true),
  random: press("#random"),
  undo: () => steps.length && (undone.push(steps.pop()), redraw()),
  redo: () => undone.length && (steps.push(undone.pop()), redraw()),
  clear: () => steps.length && (apply({}), took({})),
  hide,
  in: () => scale(zoom * 1.5),
  out: () => scale(zoom / 1.5),
  fit: () => scale(1),
};
for (const name of Object.keys(tools)) button(name).addEventListener("click", tools[name]);
find(".size").addEventListener("input", () => resize(0));
stage.addEventListener(
  "wheel",
  (event) => {
    if (!event.ctrlKey || sheet.hidden) return;
    event.preventDefault();
    scale(zoom * (event.deltaY < 0 ? 1.25 : 0.8), event.clientX, event.clientY);
  },
  { passive: false },
);
new ResizeObserver(() => sheet.hidden || fit()).observe(stage);

// --- keyboard ---

const keys = {
  b: tools.brush,
  e: tools.eraser,
  m: tools.hide,
  "[": () => resize(-4),
  "]": () => resize(4),
  "+": tools.in,
  "-": tools.out,
  0: tools.fit,
  r: tools.random,
  g: press("#generate"),
  k: press("#keep"),
};
document.addEventListener("keydown", (event) => {
  if (event.target.closest("textarea, select, [contenteditable], input:not([type=checkbox], [type=range])")) return;
  const key = event.key.toLowerCase();
  let action = keys[key];
  if (event.ctrlKey || event.metaKey) action = { z: event.shiftKey ? tools.redo : tools.undo, y: tools.redo }[key];
  if (event.altKey || !action) return;
  event.preventDefault();
  action();
});

// --- what comes from elsewhere: pictures and masks from the server, files dropped here, the card pointed at ---

function receive() {
  const sent = props.value;
  if (typeof sent !== "object") return;
  if (sent.picture) {
    picture.src = sent.picture;
    [canvas.width, canvas.height] = [sent.width, sent.height];
    [steps, undone] = [[], []];
    sheet.hidden = find(".zooms").hidden = false;
    find(".hint").hidden = true;
    zoom = 1;
    fit();
    resize(0);
    publish();
  }
  if (sent.mask) {
    const image = new Image();
    image.onload = () => {
      apply({ image });
      took({ image });
    };
    image.src = sent.mask;
  }
}
watch("value", receive);
receive();

stage.addEventListener("dragover", (event) => event.preventDefault());
stage.addEventListener("drop", (event) => {
  event.preventDefault();
  const chooser = document.querySelector("input[type=file]");
  chooser.files = event.dataTransfer.files;
  chooser.dispatchEvent(new Event("change", { bubbles: true }));
});

document.addEventListener("studio-preview", (event) => {
  preview.hidden = !event.detail;
  sheet.classList.toggle("previewing", !!event.detail);
  if (!event.detail) return;
  preview.src = event.detail.image;
  ["left", "top", "width", "height"].forEach((side, i) => (preview.style[side] = 100 * event.detail.box[i] + "%"));
});
publish();
