// The page: controls, selection, and moving about.

const $ = (id) => document.getElementById(id);
const MOST_EDGES = 400; // drawn at opening; the slider draws the others
const SMALLEST = 0.2, LARGEST = 3, LEGIBLE = 0.62, READ = 0.85; // zooms

const state = {
  view: "concepts", scheme: matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light",
  shares: {}, selected: -1, hovered: -1, matches: [], revealed: new Set(), zoom: 1, fitted: true,
};
for (const [key, view] of Object.entries(data.views)) {
  state.shares[key] = { nodes: 1, edges: openingShare(view, MOST_EDGES) };
}
let shown;

const view = () => data.views[state.view];
const palette = () => data.palettes[state.scheme];
function picture() {
  const { wide, narrow } = view().pictures;
  return $("frame").clientWidth < 640 && narrow ? narrow : wide;
}

/** Draw anew, after the view, a slider, the scheme or the width has changed. */
function redraw() {
  const { nodes, edges } = state.shares[state.view];
  shown = chosen(view(), nodes, edges, state.revealed);
  document.documentElement.dataset.scheme = state.scheme;
  const done = draw($("picture"), picture(), shown, palette());
  count();
  focus();
  zoomTo(state.fitted ? fitting() : state.zoom);
  return done;
}

function count() {
  const nodes = shown.nodes.filter(Boolean).length;
  const edges = shown.edges.filter(Boolean).length;
  const carried = shown.edges.reduce((sum, kept, e) => sum + (kept ? view().edges.share[e] : 0), 0);
  const all = view().edges.share.reduce((sum, s) => sum + s, 0) || 1;
  const what = state.view === "concepts" ? "concepts, words and outputs" : "features, words and outputs";
  $("count").textContent =
    `${nodes} of ${shown.nodes.length} ${what} · ${edges} of ${shown.edges.length} edges, carrying ${percent(carried / all)}` +
    (edges < shown.edges.length ? "; the sliders show more" : "");
  for (const key of ["nodes", "edges"]) {
    const share = Math.round(100 * state.shares[state.view][key]);
    $(key).value = share;
    $(`${key}-share`).textContent = `${share}%`;
  }
}

/** Bring out the box under the pointer, or the selected one, with its card. */
function focus() {
  const seen = state.selected >= 0 ? state.selected : state.hovered;
  const near = state.hovered >= 0 ? state.hovered : state.selected;
  const shapes = highlights(view(), picture(), shown, near, state.matches, palette());
  $("picture").classList.toggle("dimmed", near >= 0);
  Plotly.relayout($("picture"), { shapes });
  $("frame").style.cursor = state.hovered >= 0 ? "pointer" : "";
  if ($("card").dataset.of === `${state.view} ${seen}`) return;
  $("card").dataset.of = `${state.view} ${seen}`;
  $("card").replaceChildren(...(seen >= 0 ? card(view(), seen, state.revealed.has(seen), goTo) : overview()));
  $("card").scrollTop = 0;
}

function select(n) {
  state.selected = n;
  state.hovered = -1;
  focus();
}

/** Select a box, show it if the sliders left it out, and bring it into sight. */
function goTo(n) {
  if (!shown.nodes[n]) {
    state.revealed.add(n);
    redraw();
  }
  select(n);
  const { boxes, layout } = picture();
  const smooth = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  $("frame").scrollTo({
    left: boxes.x[n] * state.zoom - $("frame").clientWidth / 2,
    top: (layout.height - boxes.y[n]) * state.zoom - $("frame").clientHeight / 2,
    behavior: smooth ? "smooth" : "instant",
  });
}

/** The zoom at which the whole width is seen, if it can be read then; else one at which it can. */
function fitting() {
  const whole = $("frame").clientWidth / picture().layout.width;
  return whole < LEGIBLE ? READ : Math.min(1.3, whole);
}

/** Zoom about the middle of the frame, or about a point of it. */
function zoomTo(zoom, x = $("frame").clientWidth / 2, y = $("frame").clientHeight / 2) {
  const frame = $("frame");
  const { width, height } = picture().layout;
  const left = (frame.scrollLeft + x) / state.zoom, top = (frame.scrollTop + y) / state.zoom;
  state.zoom = Math.max(SMALLEST, Math.min(LARGEST, zoom));
  $("sizer").style.width = `${width * state.zoom}px`;
  $("sizer").style.height = `${height * state.zoom}px`;
  $("picture").style.transform = `scale(${state.zoom})`;
  frame.scrollLeft = left * state.zoom - x;
  frame.scrollTop = top * state.zoom - y;
}

function search() {
  const query = $("search").value.trim().toLowerCase();
  const { label, name, key, members } = view().nodes;
  const keys = data.views.features.nodes.key;
  const own = (n) => [label[n], name[n], key[n] || "", ...members[n].map((m) => keys[m] || "")];
  state.matches = query ? [...label.keys()].filter((n) => own(n).some((text) => text.toLowerCase().includes(query))) : [];
  state.matches.sort((a, b) => view().nodes.influence[b] - view().nodes.influence[a]);
  const hidden = state.matches.filter((n) => !shown.nodes[n]).length;
  $("found").textContent = query ? `${state.matches.length} found${hidden ? `, ${hidden} not shown` : ""}` : "";
  focus();
}

/** The strongest path, each step leading to its box. */
function tellPath() {
  if (!data.path) return;
  const { labels, nodes, share } = data.path;
  const steps = labels.flatMap((label, place) => {
    const go = () => {
      const members = data.views.features.nodes.name;
      const own = view().nodes.members.map((each) => each.some((m) => nodes[place].includes(members[m])));
      const found = [...own.keys()].filter((n) => own[n]);
      goTo(found.sort((a, b) => view().nodes.influence[b] - view().nodes.influence[a])[0]);
    };
    const button = el("button", { type: "button", class: "step", dir: "auto", onclick: go }, label);
    return place ? [el("span", { class: "arrow" }, "→"), button] : [button];
  });
  $("path").append(el("span", { class: "unseen" }, "Strongest path: "), ...steps, el("span", { class: "muted" }, `the strongest path, ${percent(share)} of the influence`));
  $("path").hidden = false;
}

function controls() {
  for (const radio of document.querySelectorAll("input[name=view]")) {
    radio.addEventListener("change", () => {
      Object.assign(state, { view: radio.value, selected: -1, hovered: -1, revealed: new Set() });
      redraw();
      search();
    });
  }
  let waiting = 0;
  for (const key of ["nodes", "edges"]) {
    $(key).addEventListener("input", () => {
      state.shares[state.view][key] = Number($(key).value) / 100;
      state.revealed.clear();
      cancelAnimationFrame(waiting);
      waiting = requestAnimationFrame(redraw);
    });
  }
  $("search").addEventListener("input", search);
  $("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && state.matches.length) goTo(state.matches[0]);
  });
  $("scheme").addEventListener("click", () => {
    state.scheme = state.scheme === "dark" ? "light" : "dark";
    redraw();
  });
  const zoom = (factor) => () => { state.fitted = false; zoomTo(state.zoom * factor); };
  $("closer").addEventListener("click", zoom(1.25));
  $("farther").addEventListener("click", zoom(0.8));
  $("fit").addEventListener("click", () => { state.fitted = true; zoomTo($("frame").clientWidth / picture().layout.width); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") select(-1); });
}

/** Point, click, drag to move, control and wheel to zoom; a finger scrolls as anywhere. */
function pointer() {
  const frame = $("frame");
  let from = null, moved = false;
  const at = (event) => {
    const area = $("sizer").getBoundingClientRect();
    const x = (event.clientX - area.left) / state.zoom;
    return boxAt(picture(), shown, x, picture().layout.height - (event.clientY - area.top) / state.zoom);
  };
  frame.addEventListener("pointerdown", (event) => {
    moved = false;
    if (event.pointerType === "mouse" && event.button === 0) from = { x: event.clientX, y: event.clientY, left: frame.scrollLeft, top: frame.scrollTop };
  });
  addEventListener("pointermove", (event) => {
    if (!from) return;
    const dx = event.clientX - from.x, dy = event.clientY - from.y;
    moved ||= Math.hypot(dx, dy) > 4;
    if (moved) frame.scrollTo({ left: from.left - dx, top: from.top - dy, behavior: "instant" });
  });
  addEventListener("pointerup", () => { from = null; });
  frame.addEventListener("pointermove", (event) => {
    if (event.pointerType !== "mouse" || from) return;
    const n = at(event);
    if (n === state.hovered) return;
    state.hovered = n;
    focus();
  });
  frame.addEventListener("pointerleave", () => { if (state.hovered >= 0) { state.hovered = -1; focus(); } });
  frame.addEventListener("click", (event) => { if (!moved) select(at(event)); });
  frame.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    const area = frame.getBoundingClientRect();
    state.fitted = false;
    zoomTo(state.zoom * Math.exp(-event.deltaY / 300), event.clientX - area.left, event.clientY - area.top);
  }, { passive: false });
}

function start() {
  document.documentElement.dataset.scheme = state.scheme;
  $("prompt").textContent = data.prompt || "A circuit";
  $("prompt").title = data.prompt;
  $("source").textContent = data.source;
  $("scores").textContent = data.scores;
  tellPath();
  controls();
  pointer();
  redraw();
  $("frame").scrollLeft = $("frame").scrollWidth; // where the outputs are
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => {
    state.scheme = event.matches ? "dark" : "light";
    redraw();
  });
  let width = $("frame").clientWidth;
  new ResizeObserver(() => {
    if (width === $("frame").clientWidth) return;
    width = $("frame").clientWidth;
    redraw();
  }).observe($("frame"));
  document.documentElement.dataset.ready = "";
}

start();
