// The candidates as cards to choose from; the one that is pointed at is shown in the picture as well.

const cards = element.querySelector(".cards");

function make(tag, properties, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

function show(detail) {
  document.dispatchEvent(new CustomEvent("studio-preview", { detail }));
}

function choose() {
  const boxes = [...cards.querySelectorAll("input")];
  boxes.forEach((box) => box.closest("label").classList.toggle("chosen", box.checked));
  props.value = boxes.filter((box) => box.checked).map((box) => Number(box.value));
}

function card(candidate, number, best, box) {
  const check = make("input", { type: "checkbox", value: number, disabled: candidate.kept || !candidate.visible });
  check.setAttribute("aria-label", "candidate " + (number + 1));
  check.addEventListener("change", choose);
  const score = candidate.score === null ? "no critic" : "score " + candidate.score.toFixed(2);
  const state = candidate.kept ? "kept" : candidate.visible ? "" : "too faint to keep";
  const label = make(
    "label",
    { className: "card" },
    make("img", { src: candidate.image, alt: "candidate " + (number + 1) }),
    make(
      "span",
      { className: "caption" },
      check,
      make("b", { textContent: number + 1 }),
      make("span", { className: "score", textContent: score }),
      make("span", { className: "visibility", textContent: "visibility " + candidate.visibility.toFixed(1) }),
    ),
  );
  if (state || best) label.append(make("span", { className: "badge", textContent: state || "best score" }));
  label.classList.toggle("kept", candidate.kept);
  label.classList.toggle("faint", !candidate.visible);
  for (const start of ["pointerenter", "focusin"]) {
    label.addEventListener(start, () => show({ image: candidate.image, box }));
  }
  for (const end of ["pointerleave", "focusout"]) label.addEventListener(end, () => show(null));
  return label;
}

function receive() {
  const sent = props.value;
  if (!sent.candidates) return;
  cards.replaceChildren();
  show(null);
  if (sent.candidates.length) {
    const caption = make("span", { className: "caption", textContent: "normal image, mask outlined" });
    cards.append(make("div", { className: "card normal" }, make("img", { src: sent.normal, alt: "normal" }), caption));
    const scores = sent.candidates.filter((one) => one.visible && one.score !== null).map((one) => one.score);
    const best = scores.length > 1 ? Math.max(...scores) : null;
    cards.append(...sent.candidates.map((one, i) => card(one, i, one.visible && one.score === best, sent.box)));
    const text =
      "Score: how real the critic finds it; the higher, the better. Visibility: the change in the mask over the " +
      "base's own error; from " + sent.least + " it can be kept. Point at a candidate to see it in the picture.";
    cards.append(make("p", { className: "explain", textContent: text }));
  }
  props.value = [];
}
watch("value", receive);

document.addEventListener("keydown", (event) => {
  const check = cards.querySelectorAll("input")[event.key - 1];
  if (!check || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("textarea, select, input:not([type=checkbox], [type=range])")) return;
  check.click();
});
