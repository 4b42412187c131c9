"use strict";
// The picture: which boxes and edges are shown, drawn by plotly; what is near the pointer.

const data = JSON.parse(document.getElementById("data").textContent);

/** The indices of the fewest values that carry the share of their sum, the largest first. */
function fewest(values, candidates, share) {
  const order = candidates.slice().sort((a, b) => values[b] - values[a]);
  if (share >= 1) return order;
  const wanted = share * order.reduce((sum, n) => sum + values[n], 0) * (1 - 1e-12);
  let sum = 0;
  return order.filter((n) => {
    const needed = sum < wanted;
    sum += values[n];
    return needed;
  });
}

/** Which nodes and edges of a view are shown: masks, and the share of the edges' influence. */
function chosen(view, nodeShare, edgeShare, revealed) {
  const { role, pinned, influence } = view.nodes;
  const nodes = role.map((what, n) => what === "word" || what === "output" || pinned[n] || revealed.has(n));
  const optional = [...nodes.keys()].filter((n) => !nodes[n]);
  for (const n of fewest(influence, optional, nodeShare)) nodes[n] = true;
  const { source, target, share } = view.edges;
  const edges = new Array(share.length).fill(false);
  const within = [...edges.keys()].filter((e) => nodes[source[e]] && nodes[target[e]]);
  for (const e of fewest(share, within, edgeShare)) edges[e] = true;
  return { nodes, edges };
}

/** The edge share at which a view opens: all edges, or as many as stay quick to draw. */
function openingShare(view, most) {
  const sorted = view.edges.share.slice().sort((a, b) => b - a);
  if (sorted.length <= most) return 1;
  const total = sorted.reduce((sum, s) => sum + s, 0);
  return Math.floor((100 * sorted.slice(0, most).reduce((sum, s) => sum + s, 0)) / total) / 100;
}

/** Where each piece of a trace begins and ends. */
function pieces(trace) {
  if (trace.pieces) return trace.pieces;
  const found = [];
  let start = 0;
  if (trace.mode === "text") trace.meta.items.forEach((_, n) => found.push([n, n + 1]));
  else trace.x.forEach((x, n) => {
    if (x !== null) return;
    found.push([start, n + 1]);
    start = n + 1;
  });
  return (trace.pieces = found);
}

/** A trace with only the pieces that are shown, in the colours of the scheme. */
function filtered(trace, shown, palette) {
  const { role, of, items } = trace.meta;
  const [line, fill, text] = data.styles[role].map((key) => palette[key]);
  const found = { ...trace };
  delete found.pieces;
  if (trace.line) found.line = { ...trace.line, color: line };
  if (trace.fillcolor) found.fillcolor = fill;
  if (trace.textfont) found.textfont = { ...trace.textfont, color: text };
  const keep = { nodes: shown.nodes, edges: shown.edges }[of];
  if (keep && !items.every((item) => keep[item])) {
    const kept = pieces(trace).filter((_, n) => keep[items[n]]);
    for (const key of ["x", "y", "text"]) {
      if (trace[key]) found[key] = kept.flatMap(([a, b]) => trace[key].slice(a, b));
    }
  }
  return found;
}

/** Draw what is shown. */
function draw(where, picture, shown, palette) {
  const traces = picture.traces.map((trace) => filtered(trace, shown, palette));
  const family = getComputedStyle(document.body).fontFamily;
  const annotations = picture.layout.annotations.map((note) => ({ ...note, font: { ...note.font, color: palette.muted } }));
  const layout = {
    ...picture.layout, annotations, shapes: [], paper_bgcolor: palette.paper, plot_bgcolor: palette.paper,
    font: { ...picture.layout.font, family },
  };
  return Plotly.react(where, traces, layout, { staticPlot: true, displayModeBar: false });
}

/** The path of some items' pieces, for a shape over or under the picture. */
function outline(picture, of, wanted, roles) {
  const parts = [];
  for (const trace of picture.traces) {
    if (trace.meta.of !== of || trace.mode === "text" || (roles && !roles(trace.meta.role))) continue;
    const bounds = pieces(trace);
    trace.meta.items.forEach((item, n) => {
      if (!wanted.has(item)) return;
      const [a, b] = bounds[n];
      const points = [];
      for (let k = a; k < b - 1; k++) points.push(`${trace.x[k]},${trace.y[k]}`);
      parts.push(`M${points.join("L")}`);
    });
  }
  return parts.join("");
}

/** Shapes that bring out a node with its edges and neighbours, and what was searched for. */
function highlights(view, picture, shown, focus, matches, palette) {
  const shapes = [];
  const add = (path, color, width, layer, dash) => {
    if (path) shapes.push({ type: "path", path, layer, line: { color, width, dash }, fillcolor: "rgba(0,0,0,0)" });
  };
  const box = (role) => role !== "stack";
  if (focus >= 0) {
    const near = new Set();
    const { source, target, weight, share } = view.edges;
    const signs = { plus: new Set(), minus: new Set() };
    share.forEach((_, e) => {
      if (!shown.edges[e] || (source[e] !== focus && target[e] !== focus)) return;
      near.add(source[e]).add(target[e]);
      signs[weight[e] >= 0 ? "plus" : "minus"].add(e);
    });
    near.delete(focus);
    for (const [sign, edges] of Object.entries(signs)) {
      for (const trace of picture.traces) {
        if (trace.meta.of !== "edges") continue;
        const own = new Set(trace.meta.items.filter((item) => edges.has(item)));
        const path = own.size ? outline({ traces: [trace] }, "edges", own) : "";
        add(path, palette[`strong-${sign}`], Math.max(1.4, trace.line.width), "below");
      }
    }
    add(outline(picture, "nodes", near, box), palette.mark, 1.4, "above");
    add(outline(picture, "nodes", new Set([focus]), box), palette["strong-plus"], 3, "above");
  }
  add(outline(picture, "nodes", new Set(matches.filter((n) => shown.nodes[n] && n !== focus)), box), palette["strong-minus"], 2.2, "above", "4px,2px");
  return shapes;
}

/** The shown box at a point of the picture, or -1; small marks catch a little around them. */
function boxAt(picture, shown, x, y) {
  const { x: cx, y: cy, wide, high } = picture.boxes;
  let best = -1;
  let nearest = Infinity;
  for (let n = 0; n < cx.length; n++) {
    if (!shown.nodes[n]) continue;
    const slack = high[n] < 20 ? 5 : 1;
    const dx = Math.max(0, Math.abs(x - cx[n]) - wide[n] / 2);
    const dy = Math.max(0, Math.abs(y - cy[n]) - high[n] / 2);
    const distance = Math.hypot(dx, dy);
    if (distance <= slack && distance < nearest) [best, nearest] = [n, distance];
  }
  return best;
}
